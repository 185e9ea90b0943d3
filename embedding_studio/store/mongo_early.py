"""What came before its session, in MongoDB: a document for each event and each mark."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson import ObjectId
from pydantic import TypeAdapter
from pymongo import ASCENDING
from pymongo import errors as mongo_errors
from pymongo.collection import Collection

from embedding_studio.clickstream import SessionEvent
from embedding_studio.store.base import EarlyFeedback, Store
from embedding_studio.store.mongo_answers import answering

EVENT = TypeAdapter(SessionEvent)
DUPLICATE_KEY = 11000
OLDEST_FIRST = [("_id", ASCENDING)]
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Waiting:
    """What waits for one session. ids: of its documents."""

    events: list[SessionEvent] = field(default_factory=list)
    is_irrelevant: bool = False
    ids: list[ObjectId] = field(default_factory=list)


class MongoEarly(Store):
    _early: Collection[dict[str, Any]]

    def _index_early(self) -> None:
        unique = [("project", ASCENDING), ("session_id", ASCENDING), ("event_id", ASCENDING)]
        self._early.create_index(unique, unique=True)
        self._early.create_index([("project", ASCENDING), ("expires_at", ASCENDING)])

    @answering()
    def count_early(self, now: datetime) -> int:
        waiting = {"project": self.project, "expires_at": {"$gt": now}}
        return self._early.count_documents(waiting)

    def _add_early(
        self, feedback: EarlyFeedback, now: datetime, expires_at: datetime, most: int
    ) -> bool:
        over = {"project": self.project, "expires_at": {"$lte": now}}
        if expired := self._early.delete_many(over).deleted_count:
            log.warning("%d events expired: their sessions did not come", expired)
        whose = {"project": self.project, "session_id": feedback.session_id}
        there = {one["event_id"] for one in self._early.find(whose, {"event_id": 1})}
        by_id: dict[str | None, Any] = {
            event.event_id: EVENT.dump_python(event, exclude={"weight"})
            for event in feedback.events
        }
        if feedback.is_irrelevant:
            by_id[None] = None
        new = [
            {**whose, "event_id": event_id, "event": event, "expires_at": expires_at}
            for event_id, event in by_id.items()
            if event_id not in there
        ]
        if new and self._early.count_documents({"project": self.project}) + len(new) > most:
            return False
        try:
            if new:
                self._early.insert_many(new, ordered=False)
        except mongo_errors.BulkWriteError as error:
            if any(one["code"] != DUPLICATE_KEY for one in error.details["writeErrors"]):
                raise
        return True

    def _find_early(self, session_ids: Iterable[str], now: datetime) -> dict[str, Waiting]:
        """Return what waits for those sessions, by their ids."""
        found: dict[str, Waiting] = {}
        of_sessions = {"project": self.project, "session_id": {"$in": list(session_ids)}}
        for one in self._early.find({**of_sessions, "expires_at": {"$gt": now}}, sort=OLDEST_FIRST):
            waiting = found.setdefault(one["session_id"], Waiting())
            waiting.ids.append(one["_id"])
            if one["event"] is None:
                waiting.is_irrelevant = True
            else:
                waiting.events.append(EVENT.validate_python(one["event"]))
        return found

    def _drop_early(self, waiting: Waiting) -> None:
        self._early.delete_many({"_id": {"$in": waiting.ids}})
