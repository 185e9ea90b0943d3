"""Sessions as they are posted, read in one pass where nothing is wrong with them.

msgspec reads a session in a fraction of the time that `SessionBody` takes, but names the first
fault only, and not in our words. So a session that is not plainly right is left to `SessionBody`,
which judges it and finds the words. What is read here `SessionBody` would take too, and read the
same (`tests/wire/test_quick.py`).
"""

from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any

import msgspec

from embedding_studio.clickstream import SearchResult, Session, SessionEvent
from embedding_studio.plain import check_plain
from embedding_studio.settings import Settings
from embedding_studio.wire.clickstream import ToInstant, to_seconds
from embedding_studio.wire.fields import check_meta


class Quick(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What was posted, and is plainly right."""


_RESULTS = tuple[SearchResult, ...]


class _Result(Quick):
    object_id: str
    rank: float | None = None
    meta: dict[str, Any] = {}


class _Event(Quick):
    event_id: str
    object_id: str
    event_type: str = "click"
    created_at: float | str | None = None
    meta: dict[str, Any] | None = None

    def to_event(self, session_id: str, to_instant: ToInstant) -> SessionEvent:
        owner = f"event {self.event_id!r} of session {session_id!r}"
        return SessionEvent(
            self.event_id,
            self.object_id,
            to_instant(_seconds(self.created_at), owner),
            self.event_type,
            self.meta or {},
        )


class QuickSession(Quick):
    """A posted session that `SessionBody` would take."""

    session_id: str
    search_query: str
    search_results: list[_Result]
    search_meta: dict[str, Any] | None = None
    user_id: str | None = None
    created_at: float | str | None = None
    events: list[_Event] = []
    is_irrelevant: bool = False

    def to_session(self, to_instant: ToInstant) -> Session:
        return Session(
            self.session_id,
            self.search_query,
            msgspec.convert(self.search_results, _RESULTS, from_attributes=True),
            to_instant(_seconds(self.created_at), f"session {self.session_id!r}"),
            self.search_meta or {},
            self.user_id,
            tuple([event.to_event(self.session_id, to_instant) for event in self.events]),
            self.is_irrelevant,
        )

    def check(self, settings: Settings) -> None:
        """Raise ValueError unless the session is within the bounds of the settings."""
        ids = [self.session_id]
        ids += [one.object_id for one in self.search_results]
        for event in self.events:
            ids += (event.event_id, event.object_id, event.event_type)
        if not (
            len(self.search_results) <= settings.max_results_per_session
            and len(self.events) <= settings.max_events_per_session
            and len(self.search_query) <= settings.max_query_chars
            and len(self.user_id or "") <= settings.max_id_chars
            and all(ids)
            and max(map(len, ids)) <= settings.max_id_chars
        ):
            raise ValueError
        check_plain("".join(ids))
        check_plain(self.user_id or "")
        for meta in self._metas():
            if meta and not _is_small_text(meta, settings.max_meta_bytes):
                check_meta(meta, settings)
        times = [self.created_at, *[event.created_at for event in self.events]]
        if not all(isfinite(_seconds(time) or 0) for time in times):
            raise ValueError

    def _metas(self) -> Iterator[dict[str, Any] | None]:
        yield self.search_meta
        for one in self.search_results:
            yield one.meta
        for event in self.events:
            yield event.meta


class _Many(Quick):
    sessions: list[msgspec.Raw]


class QuickSessions(Quick):
    """Many posted sessions: those that are not plainly right are as they were posted."""

    sessions: list[Any]


_session = msgspec.json.Decoder(QuickSession)
_many = msgspec.json.Decoder(_Many)
Parse = Callable[[bytes], Any]


def read_session(settings: Settings, parse: Parse, body: bytes) -> Any:
    """Return the session of a body, or what `parse` makes of it where it is not plainly right."""
    return quick_session(body, settings) or parse(body)


def read_sessions(settings: Settings, parse: Parse, body: bytes) -> Any:
    """Return the sessions of a body, or what `parse` makes of it where it has no list of them."""
    try:
        items = _many.decode(body).sessions
    except (msgspec.DecodeError, RecursionError):
        return parse(body)
    read: list[Any] = [quick_session(item, settings) for item in items]
    if not all(read):
        parsed = parse(body)["sessions"]
        read = [quick or item for quick, item in zip(read, parsed, strict=True)]
    return QuickSessions(read)


def quick_session(body: bytes | msgspec.Raw, settings: Settings) -> QuickSession | None:
    """Return the session of a body, None where it is not plainly right."""
    try:
        session = _session.decode(body)
        session.check(settings)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    return session


def _is_small_text(meta: dict[str, Any], most_bytes: int) -> bool:
    """Tell quickly of most meta that it is a few texts: a character has six bytes at most."""
    chars = 0
    for name, value in meta.items():
        if type(value) is not str or "\0" in name:
            return False
        chars += len(name) + len(value) + 2
    return 6 * chars <= most_bytes


def _seconds(posted: float | str | None) -> float | None:
    return to_seconds(posted) if isinstance(posted, str) else posted
