"""Schedules in MongoDB."""

from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from pymongo import ASCENDING, ReturnDocument
from pymongo.collection import Collection

from embedding_studio.schedules import Schedule
from embedding_studio.store.base import Store, unknown
from embedding_studio.store.mongo_answers import answering
from embedding_studio.store.moves import to_document

SCHEDULE = TypeAdapter(Schedule)
OLDEST_FIRST = [("created_at", ASCENDING), ("_id", ASCENDING)]


class MongoSchedules(Store):
    _schedules: Collection[dict[str, Any]]

    def _whose(self, schedule_id: str) -> dict[str, str]:
        return {"_id": schedule_id, "project": self.project}

    @answering()
    def add_schedule(self, schedule: Schedule, most: int | None = None) -> bool:
        there = [one["_id"] for one in self._schedules.find({"project": schedule.project}, {})]
        if most is not None and len(there) >= most and schedule.id not in there:
            return False
        parts = {"search": to_document(schedule.search)}
        document = {**SCHEDULE.dump_python(schedule), **parts}
        self._schedules.update_one({"_id": schedule.id}, {"$setOnInsert": document}, upsert=True)
        return True

    @answering()
    def get_schedule(self, schedule_id: str) -> Schedule:
        return _found(self._schedules.find_one(self._whose(schedule_id)), schedule_id)

    @answering()
    def list_schedules(self) -> list[Schedule]:
        found = self._schedules.find({"project": self.project}, sort=OLDEST_FIRST)
        return [SCHEDULE.validate_python(document) for document in found]

    @answering()
    def pause_schedule(self, schedule_id: str, is_paused: bool, next_at: datetime) -> Schedule:
        changed = self._schedules.find_one_and_update(
            self._whose(schedule_id),
            {"$set": {"is_paused": is_paused, "next_at": next_at}},
            return_document=ReturnDocument.AFTER,
        )
        return _found(changed, schedule_id)

    @answering()
    def remove_schedule(self, schedule_id: str) -> None:
        if not self._schedules.delete_one(self._whose(schedule_id)).deleted_count:
            raise unknown("schedule", schedule_id)

    @answering()
    def due_schedules(self, now: datetime) -> list[Schedule]:
        due = {"is_paused": False, "next_at": {"$lte": now}}
        return [
            SCHEDULE.validate_python(document)
            for document in self._schedules.find(due, sort=OLDEST_FIRST)
        ]

    @answering()
    def advance_schedule(
        self, seen: Schedule, next_at: datetime, task_id: str | None, outcome: str
    ) -> bool:
        changes: dict[str, Any] = {"next_at": next_at, "last_outcome": outcome}
        if task_id is not None:
            changes["last_task_id"] = task_id
        as_seen = {"_id": seen.id, "next_at": seen.next_at, "is_paused": False}
        return self._schedules.update_one(as_seen, {"$set": changes}).matched_count == 1


def _found(document: dict[str, Any] | None, schedule_id: str) -> Schedule:
    if document is None:
        raise unknown("schedule", schedule_id)
    return SCHEDULE.validate_python(document)
