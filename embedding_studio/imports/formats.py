"""What rows mean: sessions, impressions that become sessions, or items."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from pydantic import BaseModel, ValidationError

from embedding_studio.clickstream import event_kind
from embedding_studio.errors import InvalidInput
from embedding_studio.imports.columns import Columns, named, unnested, values_of
from embedding_studio.imports.contents import ITEM_ALIASES, Told, item_values, told_item
from embedding_studio.imports.impressions import Found, Happened, Window
from embedding_studio.imports.readers import Row
from embedding_studio.settings import Settings
from embedding_studio.wire.imports import HappenedBody, ImportFormat, ImpressionBody, RowNote
from embedding_studio.wire.items import ItemBody

ALIASES: Mapping[str, Sequence[str]] = {
    "query": ("query", "search query", "user query", "search term", "search", "keywords", "q"),
    "item": ("item", "item id", "object id", "product id", "doc id", "document id", "result id",
             "object object id"),
    "position": ("position", "pos", "rank", "index", "item list index", "position ordinal"),
    "score": ("score", "relevance score"),
    "clicked": ("clicked", "is clicked", "click", "is click", "clicks"),
    "event": ("event", "event type", "event name", "action", "action name"),
    "session": ("search id", "query id", "request id", "impression id", "session", "session id"),
    "time": ("time", "timestamp", "created at", "event time", "event timestamp", "datetime", "ts"),
    "user": ("user", "user id", "client id", "visitor id", "customer id", "user pseudo id"),
    "text": ("text", "item text", "title", "item name", "name", "description"),
}  # fmt: skip
"""The fields of a table of impressions, and the columns that are taken for them."""
EXPORTED = frozenset(("eventparams", "actionname", "queryresponseobjectids", "queryresponsehitids"))
"""Columns of GA4 and UBI, of whose rows not each is a search with results."""
MAX_UNREADABLE = 10
"""A file that begins with so many rows that cannot be read is not read on, where nobody says what
it is."""

Made = Found | Happened | Told | RowNote
"""What rows make: a session, an event, items, or a refusal."""


@dataclass(frozen=True, slots=True)
class Form:
    """A format of rows that have fields.

    needs: fields by any of which sets it is recognised. marks: column names one of which must be
    there for that."""

    aliases: Mapping[str, Sequence[str]]
    needs: Sequence[set[str]]
    marks: frozenset[str] = frozenset()

    def is_of(self, values: Mapping[str, Any], columns: Mapping[str, str]) -> bool:
        """Tell whether a row has this format. Raises ValueError as Columns do."""
        if not columns.keys() <= self.aliases.keys():
            return False
        found = Columns(self.aliases, columns).named_by(values).keys()
        is_marked = not self.marks or not self.marks.isdisjoint(map(event_kind, values))
        return is_marked and any(needed <= found for needed in self.needs)


FORMS: Mapping[ImportFormat, Form] = {
    ImportFormat.IMPRESSIONS: Form(ALIASES, [{"query", "item"}, {"session", "item", "event"}]),
    ImportFormat.ITEMS: Form(
        ITEM_ALIASES, [{"item", name} for name in ITEM_ALIASES if name != "item"]
    ),
}
"""The formats that are recognised by their columns, in this order."""


def found_in(
    rows: Iterator[Row],
    import_id: str,
    settings: Settings,
    wanted: ImportFormat | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[ImportFormat, Iterator[Made]]:
    """Return the format of a file, by its first row where none is wanted, and what is found in it.

    import_id: names what has no id of its own. columns: the table's, by the format's fields.
    Raises InvalidInput for a file of no format."""
    given = columns or {}
    known = dict.fromkeys(name for form in FORMS.values() for name in form.aliases)
    if wanted is not None and wanted in FORMS:
        known = dict.fromkeys(FORMS[wanted].aliases)
    for name in given:
        if name not in known:
            raise InvalidInput(f"columns: {name!r} is none of {', '.join(known)}")
    begun = list(islice(rows, 1))
    if not begun:
        raise InvalidInput("the file has no rows")
    chosen = wanted or _recognised(begun, rows, given)
    rows = chain(begun, rows)
    if chosen is ImportFormat.SESSIONS:
        return chosen, _sessions(rows)
    fields = Columns(FORMS[chosen].aliases, given)
    if chosen is ImportFormat.IMPRESSIONS:
        return chosen, _impressions(rows, fields, import_id, settings)
    return chosen, _judged(rows, fields, settings, ItemBody, item_values, told_item)


def _recognised(begun: list[Row], rows: Iterator[Row], columns: Mapping[str, str]) -> ImportFormat:
    """Return the format that the first row which can be read has; what is read is added to those
    that are begun."""
    while True:
        try:
            values = values_of(begun[-1])
            if {"search_query", "search_results"} <= values.keys():
                return ImportFormat.SESSIONS
            flat = {name: value for one in unnested(values)[:1] for name, value in one.items()}
            if not EXPORTED.isdisjoint(map(event_kind, (*values, *flat))):
                return ImportFormat.IMPRESSIONS
            for chosen, form in FORMS.items():
                if form.is_of(flat, columns):
                    return chosen
            break
        except ValueError as error:
            if len(begun) == MAX_UNREADABLE or (following := next(rows, None)) is None:
                raise InvalidInput(f"row {begun[-1].number}: {error}") from None
            begun.append(following)
    raise InvalidInput(
        "the rows are neither sessions, with search_query and search_results, nor impressions, "
        f"with columns for query and item, nor items; they have {_listed(values)}. "
        "Name the columns: query=...,item=..."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:100]) for name in islice(names, 50)) or "nothing"


def _sessions(rows: Iterable[Row]) -> Iterator[Found | RowNote]:
    for row in rows:
        if row.fault is None:
            yield Found(row.number, 1, row.content)
        else:
            yield RowNote(row=row.number, reason=row.fault)


def _impressions(
    rows: Iterable[Row], fields: Columns, import_id: str, settings: Settings
) -> Iterator[Found | Happened | RowNote]:
    """Yield the sessions of a table, and what happened in those that it does not have."""

    def shown_in(values: Mapping[str, Any], columns: dict[str, str]) -> list[HappenedBody]:
        shown: list[HappenedBody] = []
        for one in unnested(values):
            columns.clear()
            columns.update(fields.named_by(one))
            is_event = "query" not in columns and {"session", "item"} <= columns.keys()
            kind = HappenedBody if is_event else ImpressionBody
            shown.append(kind.model_validate(named(one, columns), context=settings))
        return shown

    window = Window(import_id, settings)
    for number, shown in _right(rows, shown_in):
        if isinstance(shown, RowNote):
            yield shown
        else:
            yield from window.add(number, shown)
    yield from window.close()


def _judged(
    rows: Iterable[Row],
    fields: Columns,
    settings: Settings,
    kind: type[BaseModel],
    values_by: Callable[[Mapping[str, Any], dict[str, str]], Mapping[str, Any]],
    tell: Callable[[int, Any], Told],
) -> Iterator[Told | RowNote]:
    """Yield what rows tell, each by itself."""

    def body_in(values: Mapping[str, Any], columns: dict[str, str]) -> BaseModel:
        columns.update(fields.named_by(values))
        return kind.model_validate(values_by(values, columns), context=settings)

    for number, body in _right(rows, body_in):
        yield body if isinstance(body, RowNote) else tell(number, body)


def _right(
    rows: Iterable[Row], read: Callable[[Mapping[str, Any], dict[str, str]], Any]
) -> Iterator[tuple[int, Any]]:
    """Yield rows as they are read, or what is wrong with them.

    read: is given the values, and a dict for the columns by their fields, by which it is told what
    is wrong; it raises ValueError."""
    for row in rows:
        columns: dict[str, str] = {}
        try:
            yield row.number, read(values_of(row), columns)
        except ValidationError as error:
            [wrong, *_] = error.errors()
            name = ".".join(map(str, wrong["loc"]))
            reason = wrong["msg"].removeprefix("Value error, ")
            column = columns.get(name, name) or None
            yield row.number, RowNote(row=row.number, column=column, reason=reason)
        except ValueError as error:
            yield row.number, RowNote(row=row.number, reason=str(error))
