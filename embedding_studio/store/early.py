"""Feedback that came before its session: a document for each event and each mark."""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

from embedding_studio.clickstream import EarlyFeedback, SessionEvent
from embedding_studio.store.codec import Codec, milliseconds
from embedding_studio.store.documents import Documents, Filter, Kind, above, among, new_id, up_to

EARLY = Kind(
    "early",
    unique=(("project", "session_id", "event_id"),),
    indexes=(("project", "expires_at"),),
)
EVENT = Codec(SessionEvent)
MARK = ""  # no event has this id
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Waiting:
    """What waits for one session."""

    events: list[SessionEvent] = field(default_factory=list)
    is_irrelevant: bool = False
    #: of its documents
    ids: list[str] = field(default_factory=list)


class Early:
    """What waits for the sessions of one project."""

    def __init__(self, documents: Documents, project: str) -> None:
        self._documents = documents
        self._project = project

    def count(self, now: datetime) -> int:
        """Return how many events and marks wait."""
        waiting: Filter = {"project": self._project, "expires_at": above(milliseconds(now))}
        return self._documents.count(EARLY, waiting)

    def add(self, feedback: EarlyFeedback, now: datetime, expires_at: datetime, most: int) -> bool:
        """Keep feedback; False, and nothing kept, where more than `most` would wait."""
        over: Filter = {"project": self._project, "expires_at": up_to(milliseconds(now))}
        if expired := self._documents.delete(EARLY, over):
            log.warning("%d events expired: their sessions did not come", expired)
        whose = {"project": self._project, "session_id": feedback.session_id}
        found = self._documents.find(EARLY, whose, fields=("event_id",))
        there = {one["event_id"] for one in found}
        by_id = {event.event_id: EVENT.encode(event) for event in feedback.events}
        shared = {**whose, "expires_at": milliseconds(expires_at)}
        new = [
            {**shared, "id": new_id(), "event_id": event_id, "event": event}
            for event_id, event in [*by_id.items(), (MARK, None)]
            if event_id not in there and (event or feedback.is_irrelevant)
        ]
        if new and self._documents.count(EARLY, {"project": self._project}) + len(new) > most:
            return False
        for answer in self._documents.insert(EARLY, new) if new else ():
            if isinstance(answer, Exception):
                raise answer
        return True

    def find(self, session_ids: Collection[str], now: datetime) -> dict[str, Waiting]:
        """Return what waits for those sessions, by their session_ids."""
        which: Filter = {
            "project": self._project,
            "session_id": among(session_ids),
            "expires_at": above(milliseconds(now)),
        }
        found: dict[str, Waiting] = {}
        for one in self._documents.find(EARLY, which, sort=("id",)) if session_ids else ():
            waiting = found.setdefault(one["session_id"], Waiting())
            waiting.ids.append(one["id"])
            if one["event_id"] == MARK:
                waiting.is_irrelevant = True
            else:
                waiting.events.append(EVENT.decode(one["event"]))
        return found

    def drop(self, waiting: Waiting) -> None:
        self._documents.delete(EARLY, {"id": among(waiting.ids)})
