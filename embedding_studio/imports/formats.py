"""What rows mean: sessions as they are posted, or tables of impressions that become sessions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, islice
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from embedding_studio.clickstream import event_kind
from embedding_studio.errors import InvalidInput
from embedding_studio.imports.readers import Row
from embedding_studio.settings import Settings
from embedding_studio.wire.imports import ImportFormat, ImpressionBody, RowNote

ALIASES: Mapping[str, Sequence[str]] = {
    "query": ("query", "search query", "user query", "search term", "search", "keywords", "q"),
    "item": ("item", "item id", "object id", "product id", "doc id", "document id", "result id"),
    "position": ("position", "pos", "rank", "index", "item list index"),
    "score": ("score", "relevance score"),
    "clicked": ("clicked", "is clicked", "click", "is click", "clicks"),
    "event": ("event", "event type", "event name", "action", "action name"),
    "session": ("search id", "query id", "request id", "impression id", "session", "session id"),
    "time": ("time", "timestamp", "created at", "event time", "event timestamp", "datetime", "ts"),
    "user": ("user", "user id", "client id", "visitor id", "customer id", "user pseudo id"),
    "text": ("text", "item text", "title", "item name", "name", "description"),
}  # fmt: skip
"""The fields of a table of impressions, and the columns that are taken for them, the first that is
there, whatever the case, spaces, hyphens and underscores in its name."""
MAX_UNREADABLE = 10
"""A file that begins with so many rows that cannot be read is not read on, where nobody says what
it is."""
VISIT_SECONDS = 1800.0
"""After this a row of a table without sessions begins another search."""
MAX_KNOWN = 4096
"""For how many sets of columns it is remembered what they are, and how long their names may be."""
SHOWN = frozenset(map(event_kind, ("impression", "show", "shown", "view item list", "none")))
"""Kinds of events that say no more than that an item was shown."""
MAX_OPEN_ROWS = 100_000
MAX_OPEN_CHARS = 32 * 1024 * 1024
"""What sessions come to whose rows are still gathered; above, the one that waited longest for a row
is taken as it is."""


@dataclass(frozen=True, slots=True)
class Found:
    """A session that rows make, to be judged as if it was posted."""

    #: the first of its rows, and how many these are
    row: int
    rows: int
    #: JSON, or what is made of it
    posted: bytes | Mapping[str, Any]


def found_in(
    rows: Iterator[Row],
    import_id: str,
    settings: Settings,
    wanted: ImportFormat | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[ImportFormat, Iterator[Found | RowNote]]:
    """Return the format of a file, by its first row where none is wanted, and what is found in it:
    sessions, and rows that are refused.

    import_id: names what has no id of its own. columns: the table's, by the fields of ALIASES.
    Raises InvalidInput for a file of neither format."""
    fields = Fields(columns or {})
    begun = list(islice(rows, 1))
    if not begun:
        raise InvalidInput("the file has no rows")
    chosen = wanted or _recognised(begun, rows, fields)
    rows = chain(begun, rows)
    if chosen is ImportFormat.SESSIONS:
        return chosen, _sessions(rows)
    return chosen, _impressions(rows, fields, import_id, settings)


def _recognised(begun: list[Row], rows: Iterator[Row], fields: "Fields") -> ImportFormat:
    """Return the format that the first row which can be read has; what is read is added to those
    that are begun."""
    while True:
        try:
            values = values_of(begun[-1])
            if {"search_query", "search_results"} <= values.keys():
                return ImportFormat.SESSIONS
            if {"query", "item"} <= fields.named_by(values).keys():
                return ImportFormat.IMPRESSIONS
            break
        except ValueError as error:
            if len(begun) == MAX_UNREADABLE or (following := next(rows, None)) is None:
                raise InvalidInput(f"row {begun[-1].number}: {error}") from None
            begun.append(following)
    raise InvalidInput(
        "the rows are neither sessions, with search_query and search_results, nor impressions, "
        f"with columns for query and item; they have {_listed(values)}. "
        "Name the columns: query=...,item=..."
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name[:100]) for name in islice(names, 50)) or "nothing"


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


def _sessions(rows: Iterable[Row]) -> Iterator[Found | RowNote]:
    for row in rows:
        if row.fault is None:
            yield Found(row.number, 1, row.content)
        else:
            yield RowNote(row=row.number, reason=row.fault)


class Fields:
    """Which columns a table's fields are in. Raises InvalidInput for a field that there is not."""

    def __init__(self, given: Mapping[str, str]) -> None:
        for name in given:
            if name not in ALIASES:
                raise InvalidInput(f"columns: {name!r} is none of {', '.join(ALIASES)}")
        self._given = given
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
        free = [name for name in names if name not in self._given.values()]
        by_kind: dict[str, str] = {}
        for name in free:
            if (other := by_kind.setdefault(event_kind(name), name)) != name:
                raise ValueError(f"has the column {name[:100]!r} twice, also as {other[:100]!r}")
        found = {field: name for field, name in self._given.items() if name in names}
        for name, aliases in ALIASES.items():
            kinds = [kind for kind in map(event_kind, aliases) if kind in by_kind]
            if name not in self._given and kinds:
                found[name] = by_kind[kinds[0]]
        return found


@dataclass(slots=True)
class _Gathered:
    """A session whose rows are still coming."""

    session_id: str
    query: str
    first_row: int
    rows: int = 0
    chars: int = 0
    user: str | None = None
    time: float | None = None
    #: by their items: where each was shown, and how
    results: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    last_position: float = float("-inf")

    def add(self, body: ImpressionBody, event_id: str, settings: Settings) -> str | None:
        """Add a row; return why it cannot be one of this session's."""
        event_type = _event_type_of(body)
        if body.item not in self.results and len(self.results) >= settings.max_results_per_session:
            return f"session {self.session_id!r} is full (ES_MAX_RESULTS_PER_SESSION)"
        if event_type is not None and len(self.events) >= settings.max_events_per_session:
            return f"session {self.session_id!r} is full (ES_MAX_EVENTS_PER_SESSION)"
        self.rows += 1
        self.chars += sum(len(text or "") for text in (body.item, body.text, body.event, body.user))
        self.user = self.user or body.user
        if body.time is not None:
            self.time = body.time if self.time is None else min(self.time, body.time)
        if body.position is not None:
            self.last_position = body.position
        place = float("inf") if body.position is None else body.position
        self.results.setdefault(body.item, (place, body.result()))
        if event_type is not None:
            event = {"event_id": event_id, "object_id": body.item, "event_type": event_type}
            self.events.append({**event, "created_at": body.time})
        return None

    def is_over(self, body: ImpressionBody) -> bool:
        """Tell whether a row of the same query and user begins another search, in a table that
        names none."""
        if body.time is not None and body.time - (self.time or body.time) > VISIT_SECONDS:
            return True
        if body.item in self.results:
            return _event_type_of(body) is None or body.event is None
        return body.position is not None and body.position <= self.last_position

    def found(self) -> Found:
        """Return the session, its results in the order of their positions."""
        shown = sorted(self.results.values(), key=lambda placed: placed[0])
        posted = {
            "session_id": self.session_id,
            "search_query": self.query,
            "search_results": [result for _, result in shown],
            "user_id": self.user,
            "created_at": self.time,
            "events": self.events,
        }
        return Found(self.first_row, self.rows, posted)


def _event_type_of(body: ImpressionBody) -> str | None:
    """Return the type of what happened to an item, None where it was only shown."""
    if body.clicked is False:
        return None
    if body.event is not None and event_kind(body.event) not in SHOWN:
        return body.event
    return "click" if body.clicked else None


class _Window:
    """The sessions whose rows are still coming, within bounds."""

    def __init__(self, import_id: str, settings: Settings) -> None:
        self._import_id = import_id
        self._settings = settings
        self._opened: dict[tuple[str | None, ...], _Gathered] = {}  # first who waited longest
        self._ids: set[str] = set()
        self._rows = self._chars = 0

    def add(self, row: int, body: ImpressionBody) -> Iterator[Found | RowNote]:
        """Add a row; yield what it completes, or why it is refused."""
        key = (body.session, None if body.session else body.user, body.query)
        if not body.session and key in self._opened and self._opened[key].is_over(body):
            yield self._close(key)
        one = self._opened.pop(key, None)
        if one is None:
            one = _Gathered(self._id_for(row, body), body.query, row)
            one.chars = len(body.query) + len(one.session_id)
            self._ids.add(one.session_id)
            self._chars += one.chars
        self._opened[key] = one
        rows, chars = one.rows, one.chars
        refusal = one.add(body, f"{self._import_id}-{row}", self._settings)
        if refusal is not None:
            yield RowNote(row=row, reason=refusal)
        self._rows += one.rows - rows
        self._chars += one.chars - chars
        while self._rows > MAX_OPEN_ROWS or self._chars > MAX_OPEN_CHARS:
            yield self._close(next(iter(self._opened)))

    def close(self) -> Iterator[Found]:
        """Yield those that are left."""
        while self._opened:
            yield self._close(next(iter(self._opened)))

    def _close(self, key: tuple[str | None, ...]) -> Found:
        one = self._opened.pop(key)
        self._ids.discard(one.session_id)
        self._rows -= one.rows
        self._chars -= one.chars
        return one.found()

    def _id_for(self, row: int, body: ImpressionBody) -> str:
        """Return the id of a new session: where a visit has several queries, each has its own."""
        if body.session is None:
            return f"{self._import_id}-{row}"
        if body.session not in self._ids:
            return body.session
        return f"{body.session}-{sha256(body.query.encode()).hexdigest()[:8]}"


def _impressions(
    rows: Iterable[Row], fields: Fields, import_id: str, settings: Settings
) -> Iterator[Found | RowNote]:
    """Yield the sessions of a table: the rows of one query in one session; where it names no
    sessions, rows of one query of one user up to the next search."""
    window = _Window(import_id, settings)
    for row in rows:
        columns: Mapping[str, str] = {}
        try:
            values = values_of(row)
            columns = fields.named_by(values)
            named = {name: values[column] for name, column in columns.items()}
            body = ImpressionBody.model_validate(named, context=settings)
        except ValidationError as error:
            [wrong, *_] = error.errors()
            name = str(wrong["loc"][0])
            reason = wrong["msg"].removeprefix("Value error, ")
            yield RowNote(row=row.number, column=columns.get(name, name), reason=reason)
        except ValueError as error:
            yield RowNote(row=row.number, reason=str(error))
        else:
            yield from window.add(row.number, body)
    yield from window.close()
