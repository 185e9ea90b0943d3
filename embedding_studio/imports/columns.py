"""Columns of tables: which of them a format's fields are in, and what lies in nested ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import from_json

from embedding_studio.clickstream import event_kind
from embedding_studio.imports.readers import Row

MAX_COLUMNS = 4096
MAX_KNOWN = 4096
"""For how many sets of columns it is remembered what they are, and how long their names may be."""
_ATTRIBUTES = ("eventattributes", "eventparams")
"""Columns whose inner ones need no prefix: those of OpenSearch's UBI, and of GA4's export."""
_LISTS = ("queryresponseobjectids", "queryresponsehitids", "items")
"""Columns with a list of what was shown, the first that is there."""


def values_of(row: Row) -> Mapping[str, Any]:
    """Return the values of a row. Raises ValueError with what is wrong with it."""
    if row.fault is not None:
        raise ValueError(row.fault)
    if not isinstance(row.content, bytes):
        return row.content
    try:
        values = from_json(row.content)
    except ValueError as error:
        raise ValueError(f"is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004 - of what a file says
    return values


class Columns:
    """Which columns a table's fields are in.

    aliases: the names that are taken for each field, whatever their case, spaces, hyphens and
    underscores, the first that is there. given: columns by their fields, which come before."""

    def __init__(
        self, aliases: Mapping[str, Sequence[str]], given: Mapping[str, str] | None = None
    ) -> None:
        self._given = given or {}
        self._kinds = {name: [*map(event_kind, names)] for name, names in aliases.items()}
        self._known: dict[tuple[str, ...], dict[str, str]] = {}

    def named_by(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return the columns of a row by their fields. Raises ValueError where two could be it."""
        names = tuple(values)
        if (known := self._known.get(names)) is None:
            known = self._look_up(names)
            if len(self._known) < MAX_KNOWN and sum(map(len, names)) < MAX_KNOWN:
                self._known[names] = known
        return known

    def _look_up(self, names: Sequence[str]) -> dict[str, str]:
        if len(names) > MAX_COLUMNS:
            raise ValueError(f"has {len(names)} columns; at most {MAX_COLUMNS} are taken")
        free = [name for name in names if name not in self._given.values()]
        by_kind: dict[str, str] = {}
        for name in free:
            if (other := by_kind.setdefault(event_kind(name), name)) != name:
                raise ValueError(f"has the column {name[:100]!r} twice, also as {other[:100]!r}")
        found = {field: name for field, name in self._given.items() if name in names}
        for field, kinds in self._kinds.items():
            there = [kind for kind in kinds if kind in by_kind]
            if field not in self._given and there:
                found[field] = by_kind[there[0]]
        return found


def named(values: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {
        name: value for name, column in columns.items() if (value := values[column]) is not None
    }


def present(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row without what is null: a column that is empty gives way to another's name."""
    if None not in values.values():
        return values
    return {name: value for name, value in values.items() if value is not None}


def unnested(values: Mapping[str, Any], most: int) -> list[Mapping[str, Any]]:
    """Return the impressions of a row: itself, or one for each of the items that it lists. Raises
    ValueError for more than so many.

    What is nested gets a name with dots, "product.id"; of lists of keys and values, as GA4's export
    has them, each key is a column."""
    if isinstance(source := values.get("_source"), dict):  # a document as OpenSearch dumps it
        values = source
    if {dict, list}.isdisjoint(map(type, values.values())):
        return [values]
    flat: dict[str, Any] = {}
    for name, value in _leaves(values):
        if value is not None:
            flat.setdefault(name, value)
    lists = {event_kind(name): name for name, value in flat.items() if isinstance(value, list)}
    names = [lists[kind] for kind in _LISTS if kind in lists and flat[lists[kind]]]
    if not names:
        return [flat]
    shown = flat.pop(names[0])
    if len(shown) > most:
        raise ValueError(
            f"lists {len(shown)} results; at most {most} are taken (ES_MAX_RESULTS_PER_SESSION)"
        )
    return [_with_item(flat, place, one) for place, one in enumerate(shown, 1)]


def _with_item(row: Mapping[str, Any], place: int, item: Any) -> Mapping[str, Any]:
    own = item if isinstance(item, dict) else {"item": item, "position": place}
    return {**row, **{name: one for name, one in own.items() if one is not None}}


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, list) and value and all(map(_is_pair, value)):
            inner = {one["key"]: _only(one.get("value")) for one in value}
        elif isinstance(value, dict):
            inner = dict(_leaves(value))
        else:
            yield name, value
            continue
        prefix = "" if event_kind(name) in _ATTRIBUTES else f"{name}."
        for inner_name, one in inner.items():
            yield f"{prefix}{inner_name}", one


def _is_pair(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("key"), str)


def _only(value: Any) -> Any:
    """Return the one value of a struct that has a field for each type."""
    if not isinstance(value, dict):
        return value
    return next((one for one in value.values() if one is not None), None)
