"""Tables of impressions: rows are gathered to sessions, within bounds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from embedding_studio.settings import Settings
from embedding_studio.wire.imports import HappenedBody, ImpressionBody, RowNote

VISIT_SECONDS = 1800.0
"""After this a row of a table without sessions begins another search."""
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


@dataclass(frozen=True, slots=True)
class Happened:
    """An event of a session that the file does not have, or no longer."""

    row: int
    session_id: str
    posted: Mapping[str, Any]


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

    def add(self, shown: Sequence[HappenedBody], event_id: str, settings: Settings) -> str | None:
        """Add what a row shows; return why that cannot be this session's."""
        new = {body.item for body in shown if body.item not in self.results}
        if len(self.results) + len(new) > settings.max_results_per_session:
            return f"session {self.session_id!r} is full (ES_MAX_RESULTS_PER_SESSION)"
        events = [
            _event_of(body, event_type, f"{event_id}-{place}" if place else event_id)
            for place, body in enumerate(shown)
            if (event_type := body.event_type) is not None
        ]
        if len(self.events) + len(events) > settings.max_events_per_session:
            return f"session {self.session_id!r} is full (ES_MAX_EVENTS_PER_SESSION)"
        self.rows += 1
        self.events += events
        for body in shown:
            self._add_one(body)
        return None

    def _add_one(self, body: HappenedBody) -> None:
        self.chars += sum(len(text or "") for text in (body.item, body.text, body.event, body.user))
        self.user = self.user or body.user
        if body.time is not None:
            self.time = body.time if self.time is None else min(self.time, body.time)
        if body.position is not None:
            self.last_position = body.position
        place = float("inf") if body.position is None else body.position
        if body.item not in self.results:
            self.results[body.item] = (place, body.result())

    def is_over(self, body: ImpressionBody) -> bool:
        """Tell whether a row of the same query and user begins another search, in a table that
        names none."""
        if body.time is not None and body.time - (self.time or body.time) > VISIT_SECONDS:
            return True
        if body.item in self.results:
            return body.event_type is None or body.event is None
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


def _event_of(body: HappenedBody, event_type: str, event_id: str) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "object_id": body.item,
        "event_type": event_type,
        "created_at": body.time,
    }


_Key = tuple[str | None, ...]


class Window:
    """The sessions whose rows are still coming: the rows of one query in one session; where rows
    name no sessions, those of one query of one user up to the next search."""

    def __init__(self, import_id: str, settings: Settings) -> None:
        self._import_id = import_id
        self._settings = settings
        self._opened: dict[_Key, _Gathered] = {}  # first who waited longest
        self._keys: dict[str | None, _Key] = {}  # by session ids
        self._rows = self._chars = 0

    def add(self, row: int, shown: Sequence[HappenedBody]) -> Iterator[Found | Happened | RowNote]:
        """Add what a row shows, of one search; yield what it completes, or why it is refused."""
        body = shown[0]
        if isinstance(body, ImpressionBody):
            key: _Key = (body.session, None if body.session else body.user, body.query)
            if not body.session and key in self._opened and self._opened[key].is_over(body):
                yield self._close(key)
            if key not in self._opened:
                self._open(key, row, body)
        elif body.session in self._keys:
            key = self._keys[body.session]
        else:
            yield from self._happened(row, shown)
            return
        one = self._opened.pop(key)
        self._opened[key] = one
        rows, chars = one.rows, one.chars
        refusal = one.add(shown, f"{self._import_id}-{row}", self._settings)
        if refusal is not None:
            yield RowNote(row=row, reason=refusal)
            if not one.rows:
                self._forget(key)
                return
        self._rows += one.rows - rows
        self._chars += one.chars - chars
        while self._rows > MAX_OPEN_ROWS or self._chars > MAX_OPEN_CHARS:
            yield self._close(next(iter(self._opened)))

    def close(self) -> Iterator[Found]:
        """Yield those that are left."""
        while self._opened:
            yield self._close(next(iter(self._opened)))

    def _happened(self, row: int, shown: Sequence[HappenedBody]) -> Iterator[Happened]:
        for place, body in enumerate(shown):
            if body.session and (event_type := body.event_type) is not None:
                event_id = f"{self._import_id}-{row}" + (f"-{place}" if place else "")
                yield Happened(row, body.session, _event_of(body, event_type, event_id))

    def _open(self, key: _Key, row: int, body: ImpressionBody) -> None:
        one = _Gathered(self._id_for(row, body), body.query, row)
        one.chars = len(body.query) + len(one.session_id)
        self._opened[key] = one
        self._keys[one.session_id] = key
        self._chars += one.chars

    def _close(self, key: _Key) -> Found:
        return self._forget(key).found()

    def _forget(self, key: _Key) -> _Gathered:
        one = self._opened.pop(key)
        self._keys.pop(one.session_id, None)
        self._rows -= one.rows
        self._chars -= one.chars
        return one

    def _id_for(self, row: int, body: ImpressionBody) -> str:
        """Return the id of a new session: where a visit has several queries, each has its own."""
        if body.session is None:
            return f"{self._import_id}-{row}"
        if body.session not in self._keys:
            return body.session
        return f"{body.session}-{sha256(body.query.encode()).hexdigest()[:8]}"
