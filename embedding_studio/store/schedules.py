"""Schedules as they are kept.

Each holds a place of its project's, numbered from 1. Of two that are added at the same moment one
gets the place and the other looks again, so no project has more than it may."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from embedding_studio.errors import unknown
from embedding_studio.schedules import Schedule
from embedding_studio.store.codec import Codec, milliseconds
from embedding_studio.store.documents import Documents, Filter, Kind, up_to

SCHEDULES = Kind(
    "schedules",
    unique=(("project", "place"),),
    indexes=(("project", "created_at", "id"), ("is_paused", "next_at")),
)
SCHEDULE = Codec(Schedule)
OLDEST_FIRST = ("created_at", "id")


class Schedules:
    """The schedules of a project, and, for workers, of all of them."""

    def __init__(self, documents: Documents, project: str) -> None:
        self._documents = documents
        self._project = project

    def add(self, schedule: Schedule, most: int | None = None) -> bool:
        """Keep a new schedule of its project; adding it again changes nothing.

        False, and nothing kept, where the project has `most` already."""
        whose = {"project": schedule.project}
        while True:
            found = self._documents.find(SCHEDULES, whose, fields=("id", "place"))
            places = {one["id"]: one["place"] for one in found}
            if schedule.id in places:
                return True
            if most is not None and len(places) >= most:
                return False
            free = set(range(1, len(places) + 2)).difference(places.values())
            document = {**SCHEDULE.encode(schedule), "place": min(free)}
            if self._documents.insert_one(SCHEDULES, document):
                return True

    def get(self, schedule_id: str) -> Schedule:
        """Return one of this project's schedules. Raises NotFound."""
        return _found(self._documents.find_one(SCHEDULES, self._which(schedule_id)), schedule_id)

    def all(self) -> list[Schedule]:
        """Return this project's schedules, oldest first."""
        found = self._documents.find(SCHEDULES, {"project": self._project}, sort=OLDEST_FIRST)
        return [*map(SCHEDULE.decode, found)]

    def pause(self, schedule_id: str, is_paused: bool, next_at: datetime) -> Schedule:
        """Pause or resume one of this project's schedules. Raises NotFound."""
        changes = {"is_paused": is_paused, "next_at": milliseconds(next_at)}
        changed = self._documents.change(SCHEDULES, self._which(schedule_id), set=changes)
        return _found(changed and changed.document, schedule_id)

    def remove(self, schedule_id: str) -> None:
        """Delete one of this project's schedules. Raises NotFound."""
        if not self._documents.delete(SCHEDULES, self._which(schedule_id)):
            raise unknown("schedule", schedule_id)

    def due(self, now: datetime) -> list[Schedule]:
        """Return the schedules of all projects whose time has come and that are not paused."""
        due: Filter = {"is_paused": False, "next_at": up_to(milliseconds(now))}
        return [*map(SCHEDULE.decode, self._documents.find(SCHEDULES, due, sort=OLDEST_FIRST))]

    def advance(self, seen: Schedule, next_at: datetime, task_id: str | None, outcome: str) -> bool:
        """Set when to look next and what came of the look; task_id None keeps the last one.

        False, and nothing changed, unless its next_at is still as seen and it is not paused."""
        changes = {"next_at": milliseconds(next_at), "last_outcome": outcome}
        if task_id is not None:
            changes["last_task_id"] = task_id
        as_seen: Filter = {"id": seen.id, "next_at": milliseconds(seen.next_at), "is_paused": False}
        return self._documents.change(SCHEDULES, as_seen, set=changes) is not None

    def _which(self, schedule_id: str) -> dict[str, str]:
        return {"id": schedule_id, "project": self._project}


def _found(document: Mapping[str, Any] | None, schedule_id: str) -> Schedule:
    if document is None:
        raise unknown("schedule", schedule_id)
    return SCHEDULE.decode(document)
