"""Schedules in SQLite."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from embedding_studio.schedules import Schedule
from embedding_studio.store.base import unknown
from embedding_studio.store.moves import to_document
from embedding_studio.store.sqlite_file import SqliteFile, schedule_rows

SCHEDULE = TypeAdapter(Schedule)


class SqliteSchedules(SqliteFile):
    def _is(self, schedule_id: str) -> sa.ColumnElement[bool]:
        return sa.and_(schedule_rows.c.id == schedule_id, schedule_rows.c.project == self.project)

    def add_schedule(self, schedule: Schedule, most: int | None = None) -> bool:
        parts = {"budget": to_document(schedule.budget), "search": to_document(schedule.search)}
        values = {**SCHEDULE.dump_python(schedule), **parts}
        with self._writing() as connection:
            of_project = sa.select(schedule_rows.c.id).where(
                schedule_rows.c.project == schedule.project
            )
            there = connection.scalars(of_project).all()
            if schedule.id in there:
                return True
            if most is not None and len(there) >= most:
                return False
            connection.execute(sa.insert(schedule_rows).values(values))
            return True

    def get_schedule(self, schedule_id: str) -> Schedule:
        with self._reading() as connection:
            row = connection.execute(
                sa.select(schedule_rows).where(self._is(schedule_id))
            ).one_or_none()
        return _found(row, schedule_id)

    def list_schedules(self) -> list[Schedule]:
        return self._select(schedule_rows.c.project == self.project)

    def pause_schedule(self, schedule_id: str, is_paused: bool, next_at: datetime) -> Schedule:
        change = (
            sa.update(schedule_rows)
            .where(self._is(schedule_id))
            .values(is_paused=is_paused, next_at=next_at)
            .returning(schedule_rows)
        )
        with self._writing() as connection:
            row = connection.execute(change).one_or_none()
        return _found(row, schedule_id)

    def remove_schedule(self, schedule_id: str) -> None:
        with self._writing() as connection:
            removed = connection.execute(sa.delete(schedule_rows).where(self._is(schedule_id)))
            if not removed.rowcount:
                raise unknown("schedule", schedule_id)

    def due_schedules(self, now: datetime) -> list[Schedule]:
        return self._select(schedule_rows.c.is_paused.is_(False), schedule_rows.c.next_at <= now)

    def advance_schedule(
        self, seen: Schedule, next_at: datetime, task_id: str | None, outcome: str
    ) -> bool:
        changes: dict[str, Any] = {"next_at": next_at, "last_outcome": outcome}
        if task_id is not None:
            changes["last_task_id"] = task_id
        as_seen = (
            schedule_rows.c.id == seen.id,
            schedule_rows.c.next_at == seen.next_at,
            schedule_rows.c.is_paused.is_(False),
        )
        with self._writing() as connection:
            changed = connection.execute(sa.update(schedule_rows).where(*as_seen).values(**changes))
            return changed.rowcount == 1

    def _select(self, *conditions: sa.ColumnElement[bool]) -> list[Schedule]:
        oldest_first = sa.select(schedule_rows).order_by(schedule_rows.c.arrival)
        with self._reading() as connection:
            rows = connection.execute(oldest_first.where(*conditions))
            return [SCHEDULE.validate_python(row._asdict()) for row in rows]


def _found(row: sa.Row[Any] | None, schedule_id: str) -> Schedule:
    if row is None:
        raise unknown("schedule", schedule_id)
    return SCHEDULE.validate_python(row._asdict())
