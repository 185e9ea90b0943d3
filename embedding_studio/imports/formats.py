"""What rows mean: sessions, impressions that become sessions, items, or labels."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from pydantic import BaseModel, ValidationError

from embedding_studio.clickstream import event_kind
from embedding_studio.errors import InvalidInput
from embedding_studio.imports.columns import Columns, named, present, unnested, values_of
from embedding_studio.imports.contents import ITEM_ALIASES, Told, item_values, told_item
from embedding_studio.imports.impressions import Found, Happened, Window
from embedding_studio.imports.judgements import (
    CHAT_ALIASES,
    FILE_ALIASES,
    JUDGEMENT_ALIASES,
    PAIR_ALIASES,
    LabelledFiles,
    told_chat,
    told_judgement,
    told_pair,
)
from embedding_studio.imports.readers import Row
from embedding_studio.settings import Settings
from embedding_studio.wire.imports import (
    ChatBody,
    FileBody,
    HappenedBody,
    ImportFormat,
    ImpressionBody,
    JudgementBody,
    PairBody,
    RowNote,
)
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
"""What rows make: a session, an event, items and labels, or what is to be said of them."""


Values = Mapping[str, Any]
_EVENT = {"session", "item", "event"}
_HAPPENED = frozenset(("position", "clicked", "event", "time", "user"))


@dataclass(frozen=True, slots=True)
class Form:
    """A format of rows that have fields.

    needs: fields by any of which sets it is recognised. unless: fields of impressions of which none
    may be there for that. body: what a row is validated as, of the values by fields, or of those
    that `values` returns."""

    aliases: Mapping[str, Sequence[str]]
    needs: Sequence[set[str]]
    body: type[BaseModel]
    tell: Callable[[int, Any], Told] | None = None
    values: Callable[[Values, dict[str, str]], Values] = named
    unless: frozenset[str] = frozenset()

    def is_of(self, values: Values, columns: Mapping[str, str]) -> bool:
        """Tell whether a row has this format. Raises ValueError as Columns do."""
        if not columns.keys() <= self.aliases.keys():
            return False
        found = Columns(self.aliases, columns).named_by(values).keys()
        if self.unless & Columns(ALIASES).named_by(values).keys():
            return False
        return any(needed <= found for needed in self.needs)


FORMS: Mapping[ImportFormat, Form] = {
    ImportFormat.CHAT: Form(CHAT_ALIASES, [{"messages"}], ChatBody, told_chat),
    ImportFormat.LABELS: Form(
        FILE_ALIASES, [{"file", "labels"}], FileBody, unless=frozenset(("query", "item"))
    ),
    ImportFormat.PAIRS: Form(
        PAIR_ALIASES, [{"query", "positive"}], PairBody, told_pair, unless=_HAPPENED
    ),
    ImportFormat.QRELS: Form(
        JUDGEMENT_ALIASES,
        [{"query", "item", "grade"}, {"query_id", "item", "grade"}],
        JudgementBody,
        told_judgement,
        unless=_HAPPENED,
    ),
    ImportFormat.IMPRESSIONS: Form(ALIASES, [{"query", "item"}, _EVENT], ImpressionBody),
    ImportFormat.ITEMS: Form(
        ITEM_ALIASES,
        [{"item", name} for name in ITEM_ALIASES if name != "item"],
        ItemBody,
        told_item,
        item_values,
    ),
}
"""The formats that are recognised by their columns, in this order."""
LABELLED = frozenset(
    (ImportFormat.PAIRS, ImportFormat.CHAT, ImportFormat.QRELS, ImportFormat.LABELS)
)
"""Those that tell labels."""


def found_in(
    rows: Iterator[Row],
    import_id: str,
    settings: Settings,
    wanted: ImportFormat | None = None,
    columns: Mapping[str, str] | None = None,
    files: str | None = None,
) -> tuple[ImportFormat, Iterator[Made]]:
    """Return the format of a file, by its first row where none is wanted, and what is found in it.

    import_id: names what has no id of its own. columns: the table's, by the format's fields. files:
    what the names of labelled files are below. Raises InvalidInput for a file of no format."""
    given = columns or {}
    forms = [form for name, form in FORMS.items() if wanted in (None, ImportFormat.SESSIONS, name)]
    known = dict.fromkeys(name for form in forms for name in form.aliases)
    for name in given:
        if name not in known:
            raise InvalidInput(f"columns: {name!r} is none of {', '.join(known)}")
    begun = list(islice(rows, 1))
    if not begun:
        raise InvalidInput("the file has no rows")
    chosen = wanted or _recognised(begun, rows, given, settings)
    if files is not None and chosen is not ImportFormat.LABELS:
        raise InvalidInput(f"files are those of labels; this is a file of {chosen}")
    rows = chain(begun, rows)
    if chosen is ImportFormat.SESSIONS:
        return chosen, _sessions(rows)
    if chosen is ImportFormat.IMPRESSIONS:
        return chosen, _impressions(rows, Columns(ALIASES, given), import_id, settings)
    if chosen is ImportFormat.LABELS:
        labelled = LabelledFiles(files)
        told = _told(rows, replace(FORMS[chosen], tell=labelled.told), given, settings)
        return chosen, chain(told, _later(labelled.remarks))
    return chosen, _told(rows, FORMS[chosen], given, settings)


def _later(call: Callable[[], Iterator[RowNote]]) -> Iterator[RowNote]:
    yield from call()


def _recognised(
    begun: list[Row], rows: Iterator[Row], columns: Mapping[str, str], settings: Settings
) -> ImportFormat:
    """Return the format that the first row which can be read has; what is read is added to those
    that are begun."""
    while True:
        try:
            values = present(values_of(begun[-1]))
            if {"search_query", "search_results"} <= values.keys():
                return ImportFormat.SESSIONS
            flat = unnested(values, settings.max_results_per_session)[0]
            if not EXPORTED.isdisjoint(map(event_kind, (*values, *flat))):
                return ImportFormat.IMPRESSIONS
            for chosen, form in FORMS.items():
                if form.is_of(flat if form.body is ImpressionBody else values, columns):
                    return chosen
            break
        except ValueError as error:
            if len(begun) == MAX_UNREADABLE or (following := next(rows, None)) is None:
                raise InvalidInput(f"row {begun[-1].number}: {error}") from None
            begun.append(following)
    raise InvalidInput(
        "the rows are neither sessions, with search_query and search_results, nor impressions, "
        "with columns for query and item, nor items, pairs, judgements, conversations or labelled "
        f"files; they have {_listed(values)}. Name the format, and columns: query=...,item=..."
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

    def shown_in(number: int, values: Values, columns: dict[str, str]) -> list[HappenedBody]:
        shown: list[HappenedBody] = []
        for one in unnested(values, settings.max_results_per_session):
            columns.clear()
            columns.update(fields.named_by(one))
            is_event = "query" not in columns and columns.keys() >= _EVENT
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


def _told(
    rows: Iterable[Row], form: Form, given: Mapping[str, str], settings: Settings
) -> Iterator[Told | RowNote]:
    """Yield what rows tell, each by itself."""
    forms = [(form, Columns(form.aliases, given))]
    if form.body is ChatBody:  # or input and output, without messages
        pairs = FORMS[ImportFormat.PAIRS]
        forms.append((pairs, Columns(pairs.aliases, {})))

    def tell(number: int, values: Values, columns: dict[str, str]) -> Told:
        found = [(one, fields.named_by(values)) for one, fields in forms]
        chosen, named_by = next((pair for pair in found if pair[1]), found[0])
        columns |= named_by
        body = chosen.body.model_validate(chosen.values(values, columns), context=settings)
        assert chosen.tell is not None
        return chosen.tell(number, body)

    for _, told in _right(rows, tell):
        yield told


def _right(
    rows: Iterable[Row], read: Callable[[int, Values, dict[str, str]], Any]
) -> Iterator[tuple[int, Any]]:
    """Yield rows as they are read, or what is wrong with them.

    read: is given the number, the values, and a dict for the columns by their fields, by which it
    is told what is wrong; it raises ValueError."""
    for row in rows:
        columns: dict[str, str] = {}
        try:
            yield row.number, read(row.number, present(values_of(row)), columns)
        except ValidationError as error:
            [wrong, *_] = error.errors()
            field, *inner = map(str, wrong["loc"] or [""])
            reason = wrong["msg"].removeprefix("Value error, ")
            column = ".".join([columns.get(field, field), *inner]) or None
            yield row.number, RowNote(row=row.number, column=column, reason=reason)
        except ValueError as error:
            yield row.number, RowNote(row=row.number, reason=str(error))
