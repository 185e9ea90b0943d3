"""The embedded store: one SQLite file, shared by the API and the workers of one machine."""

import secrets
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy import Connection
from sqlalchemy.dialects.sqlite import insert as upsert

from embedding_studio.clickstream import Usage
from embedding_studio.clock import latest_end
from embedding_studio.store.base import ensure_page, ensure_room, unknown
from embedding_studio.store.deliveries import TaskDeliveries
from embedding_studio.store.moves import (
    TaskMoves,
    created,
    ensure_same_request,
    new_task,
    to_document,
)
from embedding_studio.store.sqlite_access import SqliteKeys
from embedding_studio.store.sqlite_clickstream import SqliteClickstream
from embedding_studio.store.sqlite_file import (
    task_event_rows,
    task_rows,
    worker_rows,
)
from embedding_studio.store.sqlite_models import SqliteModels
from embedding_studio.store.sqlite_schedules import SqliteSchedules
from embedding_studio.store.sqlite_usage import change_usage, usage_of
from embedding_studio.store.usage import ensure_within, size_of_request
from embedding_studio.tasks import (
    OWNED,
    TERMINAL,
    Claim,
    FineTuningTask,
    NumberedTaskEvent,
    TaskEvent,
    TaskRequest,
    TaskStatus,
)
from embedding_studio.workers import WorkerRecord

TASK = TypeAdapter(FineTuningTask)
TASK_EVENT = TypeAdapter(TaskEvent)
WORKER = TypeAdapter(WorkerRecord)


class SqliteStore(
    TaskMoves, TaskDeliveries, SqliteClickstream, SqliteKeys, SqliteModels, SqliteSchedules
):
    def _with_key(self, connection: Connection, idempotency_key: str) -> sa.Row[Any] | None:
        return connection.execute(
            sa.select(task_rows).where(
                task_rows.c.project == self.project,
                task_rows.c.idempotency_key == idempotency_key,
            )
        ).one_or_none()

    # -- tasks, as their clients see them --------------------------------------------------------

    def add_task(
        self,
        request: TaskRequest,
        now: datetime,
        most_pending: int | None = None,
        most: Usage | None = None,
    ) -> tuple[FineTuningTask, bool]:
        with self._writing() as connection:
            if request.idempotency_key is not None:
                row = self._with_key(connection, request.idempotency_key)
                if row is not None:
                    ensure_same_request(row.id, row.request, request)
                    return _task(row), False
            ensure_room(self._count(connection, TaskStatus.PENDING), most_pending)
            added = Usage(0, size_of_request(request))
            ensure_within(self.project, usage_of(connection, self.project), added, most)
            change_usage(connection, self.project, added)
            values = {"id": secrets.token_hex(12), **new_task(self.project, request, now)}
            insert = sa.insert(task_rows).values(values).returning(task_rows)
            task = _task(connection.execute(insert).one())
            _add_task_events(connection, task.id, [created(now)])
            return task, True

    def get_task(self, task_id: str) -> FineTuningTask:
        with self._reading() as connection:
            return _get_task(connection, self.project, task_id)

    def find_task(self, idempotency_key: str) -> FineTuningTask | None:
        with self._reading() as connection:
            row = self._with_key(connection, idempotency_key)
        return None if row is None else _task(row)

    def list_tasks(
        self, status: TaskStatus | None = None, skip: int = 0, limit: int = 100
    ) -> list[FineTuningTask]:
        size = sa.func.coalesce(sa.func.length(task_rows.c.metadata), 0).label("size")
        newest = (
            sa.select(task_rows, size)
            .where(task_rows.c.project == self.project)
            .order_by(task_rows.c.created_at.desc(), task_rows.c.arrival.desc())
        )
        if status is not None:
            newest = newest.where(task_rows.c.status == status)
        with self._reading() as connection:
            tasks, total = [], 0
            for row in connection.execute(newest.offset(skip).limit(limit)):
                ensure_page(total := total + row.size)
                tasks.append(_task(row))
            return tasks

    def count_tasks(self, status: TaskStatus) -> int:
        with self._reading() as connection:
            return self._count(connection, status)

    def _count(self, connection: Connection, status: TaskStatus) -> int:
        of_project = sa.and_(task_rows.c.project == self.project, task_rows.c.status == status)
        count = sa.select(sa.func.count()).select_from(task_rows).where(of_project)
        return connection.execute(count).scalar_one()

    def waiting_for_batch(self) -> FineTuningTask | None:
        oldest = (
            sa.select(task_rows)
            .where(
                task_rows.c.project == self.project,
                task_rows.c.status.in_(sorted(set(TaskStatus) - TERMINAL)),
                task_rows.c.batch_id.is_(None),
            )
            .order_by(task_rows.c.created_at, task_rows.c.arrival)
            .limit(1)
        )
        with self._reading() as connection:
            row = connection.execute(oldest).one_or_none()
        return None if row is None else _task(row)

    def list_events(
        self, task_id: str, after_number: int = 0, limit: int = 100
    ) -> list[NumberedTaskEvent]:
        of_task = sa.select(task_event_rows).where(task_event_rows.c.task_id == task_id)
        page = of_task.where(task_event_rows.c.number > after_number).limit(limit)
        with self._reading() as connection:
            _get_task(connection, self.project, task_id)
            rows = connection.execute(page.order_by(task_event_rows.c.number)).all()
        return [
            NumberedTaskEvent(row.number, TASK_EVENT.validate_python(row.document)) for row in rows
        ]

    def _oldest_claimable(
        self, now: datetime, skip_methods: frozenset[str]
    ) -> FineTuningTask | None:
        is_expired = sa.and_(
            task_rows.c.status.in_(sorted(OWNED)),
            sa.or_(
                task_rows.c.lease_expires_at.is_(None),
                task_rows.c.lease_expires_at <= now,
                task_rows.c.lease_expires_at > latest_end(now),
            ),
        )
        oldest = (
            sa.select(task_rows)
            .where(
                sa.or_(task_rows.c.status == TaskStatus.PENDING, is_expired),
                task_rows.c.fine_tuning_method.not_in(sorted(skip_methods)),
            )
            .order_by(task_rows.c.created_at, task_rows.c.arrival)
            .limit(1)
        )
        with self._reading() as connection:
            row = connection.execute(oldest).one_or_none()
        return None if row is None else _task(row)

    def tasks_at_work(self) -> list[FineTuningTask]:
        at_work = sa.select(task_rows).where(task_rows.c.status.in_(sorted(OWNED)))
        with self._reading() as connection:
            return [_task(row) for row in connection.execute(at_work)]

    def _oldest_due(self, now: datetime, skip_projects: Collection[str]) -> FineTuningTask | None:
        # most tasks have ended, and few are due: SQLite would go by the status if not told so
        has_ended = sa.func.likely(task_rows.c.status.in_(sorted(TERMINAL)))
        due = (
            sa.select(task_rows)
            .where(
                task_rows.c.delivery_due_at <= now,
                has_ended,
                task_rows.c.project.not_in(sorted(skip_projects)),
            )
            .order_by(task_rows.c.delivery_due_at, task_rows.c.arrival)
            .limit(1)
        )
        with self._reading() as connection:
            row = connection.execute(due).one_or_none()
        return None if row is None else _task(row)

    def _change_delivery(
        self, seen: FineTuningTask, changes: Mapping[str, Any]
    ) -> FineTuningTask | None:
        return self._change_task(
            changes,
            (),
            task_rows.c.id == seen.id,
            task_rows.c.status == seen.status,
            task_rows.c.delivery_due_at == seen.delivery_due_at,
        )

    def _change_seen(
        self, seen: FineTuningTask, changes: Mapping[str, Any], *events: TaskEvent
    ) -> FineTuningTask | None:
        return self._change_task(
            changes,
            events,
            task_rows.c.id == seen.id,
            task_rows.c.attempt == seen.attempt,
            task_rows.c.status == seen.status,
            task_rows.c.lease_expires_at.is_not_distinct_from(seen.lease_expires_at),
        )

    def _change_owned(
        self,
        claim: Claim,
        statuses: Collection[TaskStatus],
        changes: Mapping[str, Any],
        *events: TaskEvent,
        once: bool = False,
    ) -> FineTuningTask | None:
        return self._change_task(
            changes,
            events,
            task_rows.c.id == claim.task_id,
            task_rows.c.attempt == claim.attempt,
            task_rows.c.status.in_(sorted(statuses)),
            once=once,
        )

    def _change_task(
        self,
        changes: Mapping[str, Any],
        events: Sequence[TaskEvent],
        *conditions: sa.ColumnElement[bool],
        once: bool = False,
    ) -> FineTuningTask | None:
        change = sa.update(task_rows).where(*conditions).values(**changes).returning(task_rows)
        with self._writing() as connection:
            row = connection.execute(change).one_or_none()
            if row is None:
                return None
            _add_task_events(connection, row.id, events, once)
        return _task(row)

    # -- workers ---------------------------------------------------------------------------------

    def record_worker(self, worker: WorkerRecord) -> datetime:
        values = WORKER.dump_python(worker)
        with self._writing() as connection:
            connection.execute(
                upsert(worker_rows)
                .values(values)
                .on_conflict_do_update(index_elements=["worker_id"], set_=values)
            )
        return datetime.now(UTC)  # all who share the file share this machine

    def list_workers(self, seen_after: datetime) -> list[WorkerRecord]:
        seen = sa.select(worker_rows).where(worker_rows.c.seen_at > seen_after)
        with self._reading() as connection:
            rows = connection.execute(seen.order_by(worker_rows.c.worker_id))
            return [WORKER.validate_python(row._asdict()) for row in rows]

    def remove_worker(self, worker_id: str) -> None:
        with self._writing() as connection:
            connection.execute(sa.delete(worker_rows).where(worker_rows.c.worker_id == worker_id))


def _add_task_events(
    connection: Connection, task_id: str, events: Sequence[TaskEvent], once: bool = False
) -> None:
    if not events:
        return
    of_task = task_event_rows.c.task_id == task_id
    last = connection.scalar(sa.select(sa.func.max(task_event_rows.c.number)).where(of_task)) or 0
    documents = [to_document(event) for event in events]
    if once:
        is_same = task_event_rows.c.document.in_(documents)
        known = connection.scalars(sa.select(task_event_rows.c.document).where(of_task, is_same))
        there = known.all()
        documents = [document for document in documents if document not in there]
    rows = [
        {"task_id": task_id, "number": number, "document": document}
        for number, document in enumerate(documents, start=last + 1)
    ]
    if rows:
        connection.execute(sa.insert(task_event_rows), rows)


def _task(row: sa.Row[Any]) -> FineTuningTask:
    return TASK.validate_python(row._asdict())


def _get_task(connection: Connection, project: str, task_id: str) -> FineTuningTask:
    found = sa.select(task_rows).where(task_rows.c.project == project, task_rows.c.id == task_id)
    row = connection.execute(found).one_or_none()
    if row is None:
        raise unknown("fine-tuning task", task_id)
    return _task(row)
