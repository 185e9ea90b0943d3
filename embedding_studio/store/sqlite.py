"""The embedded store: one SQLite file, shared by the API and the workers of one machine."""

import json
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError
from sqlalchemy import Connection
from sqlalchemy.dialects.sqlite import insert as upsert

from embedding_studio.clickstream import (
    IGNORED_KINDS,
    BatchCount,
    BatchStatus,
    NumberedSession,
    Session,
    SessionBatch,
    SessionEvent,
)
from embedding_studio.errors import InvalidInput
from embedding_studio.store.base import EarlyFeedback, Registered, cannot_release, unknown
from embedding_studio.store.deliveries import TaskDeliveries
from embedding_studio.store.moves import (
    TaskMoves,
    created,
    ensure_same_request,
    new_task,
    to_document,
)
from embedding_studio.store.sqlite_access import SqliteKeys
from embedding_studio.store.sqlite_early import add_early, count_early, is_one_of, take_early
from embedding_studio.store.sqlite_file import (
    IS_COLLECTING,
    batch_rows,
    event_rows,
    is_shown,
    session_key,
    session_rows,
    task_event_rows,
    task_rows,
    worker_rows,
)
from embedding_studio.store.sqlite_models import SqliteModels
from embedding_studio.store.sqlite_schedules import SqliteSchedules
from embedding_studio.tasks import (
    OWNED,
    TERMINAL,
    Claim,
    FineTuningTask,
    NumberedTaskEvent,
    TaskEvent,
    TaskRequest,
    TaskStatus,
    WorkerRecord,
)

BATCH = TypeAdapter(SessionBatch)
EVENT = TypeAdapter(SessionEvent)
SESSION = TypeAdapter(Session)
TASK = TypeAdapter(FineTuningTask)
TASK_EVENT = TypeAdapter(TaskEvent)
WORKER = TypeAdapter(WorkerRecord)


class SqliteStore(TaskMoves, TaskDeliveries, SqliteKeys, SqliteModels, SqliteSchedules):
    def _key(self, session_id: str) -> str:
        return session_key(self.project, session_id)

    def _with_key(self, connection: Connection, idempotency_key: str) -> sa.Row[Any] | None:
        return connection.execute(
            sa.select(task_rows).where(
                task_rows.c.project == self.project,
                task_rows.c.idempotency_key == idempotency_key,
            )
        ).one_or_none()

    # -- clickstream ---------------------------------------------------------------------------

    def register_sessions(
        self, sessions: Sequence[Session], now: datetime
    ) -> list[Registered | InvalidInput]:
        keys = [self._key(session.session_id) for session in sessions]
        refused = [_refusal(session) for session in sessions]
        posted = [
            (key, session)
            for key, session, refusal in zip(keys, sessions, refused, strict=True)
            if refusal is None
        ]
        with self._writing() as connection:
            known = _known(connection, [key for key, _ in posted])
            new: dict[str, Session] = {}
            for key, session in posted:
                if key not in known:
                    new.setdefault(key, session)
            placed = _add_sessions(connection, self.project, new, now) if new else {}
            added = _add_events(connection, [(key, session.events) for key, session in posted])
            joined = _join_early(connection, [key for key, _ in posted], now)
        answers = []
        for (key, _), new_events in zip(posted, added, strict=True):
            answer = replace(placed.get(key) or known[key], new_events=new_events)
            answers.append(replace(answer, early_events=joined.pop(key, 0)))
            if key in placed:  # if it is posted a second time, it is known
                known[key] = replace(placed.pop(key), is_new=False, is_late=False)
        in_order = iter(answers)
        return [next(in_order) if refusal is None else refusal for refusal in refused]

    def keep_early(
        self, feedback: EarlyFeedback, now: datetime, expires_at: datetime, most: int
    ) -> bool:
        key = self._key(feedback.session_id)
        with self._writing() as connection:
            if not _known(connection, [key]):
                return add_early(connection, self.project, key, feedback, now, expires_at, most)
            _add_events(connection, [(key, feedback.events)])
            if feedback.is_irrelevant:
                _mark(connection, [key])
            return True

    def count_early(self, now: datetime) -> int:
        with self._reading() as connection:
            return count_early(connection, self.project, now)

    def get_session(self, session_id: str) -> NumberedSession:
        with self._reading() as connection:
            found = _read_sessions(
                connection,
                sa.select(session_rows).where(session_rows.c.session_id == self._key(session_id)),
            )
        if not found:
            raise unknown("session", session_id, ": register it first")
        return found[0]

    def append_events(self, session_id: str, events: Sequence[SessionEvent]) -> Registered:
        with self._writing() as connection:
            key = self._key(session_id)
            known = _known(connection, [key]).get(key)
            if known is None:
                raise unknown("session", session_id, ": register it first")
            return replace(known, new_events=_add_events(connection, [(key, events)])[0])

    def mark_irrelevant(self, session_id: str) -> None:
        with self._writing() as connection:
            if not _mark(connection, [self._key(session_id)]):
                raise unknown("session", session_id, ": register it first")

    def release_batch(
        self, release_id: str, now: datetime, batch_id: str | None = None
    ) -> SessionBatch:
        with self._writing() as connection:
            released = _find_batch(connection, self.project, batch_rows.c.release_id == release_id)
            if released is not None:
                return released
            collecting = _find_batch(connection, self.project, IS_COLLECTING)
            if collecting is None or batch_id not in (None, collecting.batch_id):
                named = _get_batch(connection, self.project, batch_id) if batch_id else None
                raise cannot_release(named)
            row = connection.execute(
                sa.update(batch_rows)
                .where(batch_rows.c.batch_id == collecting.batch_id)
                .values(status=BatchStatus.RELEASED, release_id=release_id, released_at=now)
                .returning(batch_rows)
            ).one()
            return BATCH.validate_python(row._asdict())

    def find_release(self, release_id: str) -> SessionBatch | None:
        with self._reading() as connection:
            return _find_batch(connection, self.project, batch_rows.c.release_id == release_id)

    def get_batch(self, batch_id: str) -> SessionBatch:
        with self._reading() as connection:
            return _get_batch(connection, self.project, batch_id)

    def collecting_batch(self) -> SessionBatch | None:
        with self._reading() as connection:
            return _find_batch(connection, self.project, IS_COLLECTING)

    def add_counts(self, batch_id: str, counts: Mapping[BatchCount, int]) -> None:
        with self._writing() as connection:
            there = _get_batch(connection, self.project, batch_id).counts
            sums = {name: there.get(name, 0) + count for name, count in counts.items()}
            which = batch_rows.c.batch_id == batch_id
            connection.execute(sa.update(batch_rows).where(which).values(counts={**there, **sums}))

    def count_clicked_sessions(
        self, batch_id: str, ignored_kinds: Collection[str] = IGNORED_KINDS
    ) -> int:
        is_clicked = sa.exists().where(
            event_rows.c.session_id == session_rows.c.session_id,
            event_rows.c.shown_kind.is_not(None),
            event_rows.c.shown_kind.not_in(sorted(ignored_kinds)),
        )
        counted = (
            sa.select(sa.func.count())
            .select_from(session_rows)
            .where(session_rows.c.batch_id == batch_id)
            .where(session_rows.c.is_irrelevant.is_(False), is_clicked)
        )
        with self._reading() as connection:
            _get_batch(connection, self.project, batch_id)
            return connection.scalar(counted) or 0

    def delete_older_batches(self, keep: int) -> list[str]:
        of_project = batch_rows.c.project == self.project
        needed = sa.select(task_rows.c.batch_id).where(
            task_rows.c.batch_id.is_not(None), task_rows.c.status.not_in(sorted(TERMINAL))
        )
        released = (
            sa.select(batch_rows.c.batch_id, batch_rows.c.batch_id.in_(needed).label("is_needed"))
            .where(of_project, batch_rows.c.status == BatchStatus.RELEASED)
            .order_by(batch_rows.c.released_at.desc(), batch_rows.c.created_at.desc())
            .offset(keep)
        )
        with self._writing() as connection:
            older = [row.batch_id for row in connection.execute(released) if not row.is_needed]
            sessions = sa.select(session_rows.c.session_id).where(
                is_one_of(session_rows.c.batch_id, older)
            )
            connection.execute(sa.delete(event_rows).where(event_rows.c.session_id.in_(sessions)))
            for table in (session_rows, batch_rows):
                connection.execute(sa.delete(table).where(is_one_of(table.c.batch_id, older)))
        return older

    def read_batch(
        self, batch_id: str, after_number: int, limit: int, events_limit: int | None = None
    ) -> list[NumberedSession]:
        page = (
            sa.select(session_rows)
            .where(session_rows.c.batch_id == batch_id, session_rows.c.number > after_number)
            .order_by(session_rows.c.number)
            .limit(limit)
        )
        with self._reading() as connection:
            _get_batch(connection, self.project, batch_id)
            return _read_sessions(connection, page, events_limit)

    # -- tasks, as their clients see them --------------------------------------------------------

    def add_task(self, request: TaskRequest, now: datetime) -> tuple[FineTuningTask, bool]:
        with self._writing() as connection:
            if request.idempotency_key is not None:
                row = self._with_key(connection, request.idempotency_key)
                if row is not None:
                    ensure_same_request(row.id, row.request, request)
                    return _task(row), False
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
        newest = (
            sa.select(task_rows)
            .where(task_rows.c.project == self.project)
            .order_by(task_rows.c.created_at.desc(), task_rows.c.arrival.desc())
        )
        if status is not None:
            newest = newest.where(task_rows.c.status == status)
        with self._reading() as connection:
            return [_task(row) for row in connection.execute(newest.offset(skip).limit(limit))]

    def count_tasks(self, status: TaskStatus) -> int:
        of_project = sa.and_(task_rows.c.project == self.project, task_rows.c.status == status)
        with self._reading() as connection:
            count = sa.select(sa.func.count()).select_from(task_rows).where(of_project)
            return connection.execute(count).scalar_one()

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
            sa.or_(task_rows.c.lease_expires_at <= now, task_rows.c.lease_expires_at.is_(None)),
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

    def _oldest_due(self, now: datetime) -> FineTuningTask | None:
        # most tasks have ended, and few are due: SQLite would go by the status if not told so
        has_ended = sa.func.likely(task_rows.c.status.in_(sorted(TERMINAL)))
        due = (
            sa.select(task_rows)
            .where(task_rows.c.delivery_due_at <= now, has_ended)
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

    def record_worker(self, worker: WorkerRecord) -> None:
        values = WORKER.dump_python(worker)
        with self._writing() as connection:
            connection.execute(
                upsert(worker_rows)
                .values(values)
                .on_conflict_do_update(index_elements=["worker_id"], set_=values)
            )

    def list_workers(self, seen_after: datetime) -> list[WorkerRecord]:
        seen = sa.select(worker_rows).where(worker_rows.c.seen_at > seen_after)
        with self._reading() as connection:
            rows = connection.execute(seen.order_by(worker_rows.c.worker_id))
            return [WORKER.validate_python(row._asdict()) for row in rows]

    def remove_worker(self, worker_id: str) -> None:
        with self._writing() as connection:
            connection.execute(sa.delete(worker_rows).where(worker_rows.c.worker_id == worker_id))

    # -- life cycle ------------------------------------------------------------------------------

    def ping(self) -> None:
        with self._reading() as connection:
            connection.execute(sa.select(batch_rows.c.batch_id).limit(1))


def _refusal(session: Session) -> InvalidInput | None:
    """Return why no row can hold the session, if none can."""
    if "\0" in session.session_id:
        return InvalidInput("SQLite cannot store this: the session's id has a NUL character")
    try:
        for text in (session.session_id, *(event.event_id for event in session.events)):
            text.encode()
        json.dumps(_document(session))
    except (UnicodeEncodeError, OverflowError, PydanticSerializationError) as error:
        return InvalidInput(f"SQLite cannot store this: {error}")
    return None


def _document(session: Session) -> Any:
    return SESSION.dump_python(session, mode="json", exclude={"events", "is_irrelevant"})


def _known(connection: Connection, keys: Iterable[str]) -> dict[str, Registered]:
    """Return the sessions of those keys that are stored, as if nothing new was posted."""
    found = (
        sa.select(session_rows, batch_rows.c.status)
        .join(batch_rows)
        .where(is_one_of(session_rows.c.session_id, keys))
    )
    return {
        row.session_id: Registered(False, 0, _numbered(row, []), row.status == BatchStatus.RELEASED)
        for row in connection.execute(found)
    }


def _add_sessions(
    connection: Connection, project: str, new: Mapping[str, Session], now: datetime
) -> dict[str, Registered]:
    """Add sessions, by their keys, to the project's collecting batch, opened if there is none."""
    batch = _find_batch(connection, project, IS_COLLECTING) or _open_batch(connection, project, now)
    placed = {
        key: Registered(
            True,
            0,
            NumberedSession(session, batch.batch_id, number),
            batch.since is not None and session.created_at < batch.since,
        )
        for number, (key, session) in enumerate(new.items(), start=batch.session_count + 1)
    }
    rows = [
        {
            "session_id": key,
            "batch_id": batch.batch_id,
            "number": one.stored.number,
            "is_irrelevant": one.stored.session.is_irrelevant,
            "document": _document(one.stored.session),
        }
        for key, one in placed.items()
    ]
    connection.execute(sa.insert(session_rows), rows)
    connection.execute(
        sa.update(batch_rows)
        .where(batch_rows.c.batch_id == batch.batch_id)
        .values(session_count=batch.session_count + len(rows))
    )
    return placed


def _open_batch(connection: Connection, project: str, now: datetime) -> SessionBatch:
    last = sa.select(sa.func.max(batch_rows.c.released_at)).where(batch_rows.c.project == project)
    since = connection.scalar(last)
    batch = SessionBatch(secrets.token_hex(12), BatchStatus.COLLECTING, now, 0, since=since)
    values = {"project": project, **BATCH.dump_python(batch)}
    connection.execute(sa.insert(batch_rows).values(values))
    return batch


def _add_events(
    connection: Connection, posted: Sequence[tuple[str, Sequence[SessionEvent]]]
) -> list[int]:
    """Add the unknown events of sessions, by their keys; return how many, in the order given."""
    known_pairs = sa.select(event_rows.c.session_id, event_rows.c.event_id).where(
        is_one_of(event_rows.c.session_id, {key for key, _ in posted})
    )
    known = {(row.session_id, row.event_id) for row in connection.execute(known_pairs)}
    rows: list[dict[str, Any]] = []
    counts = []
    for key, events in posted:
        already = len(rows)
        for event in events:
            if (key, event.event_id) in known:
                continue
            known.add((key, event.event_id))
            rows.append(
                {
                    "key": key,
                    "id": event.event_id,
                    "event": EVENT.dump_python(event, mode="json", exclude={"weight"}),
                    "kind": event.kind,
                    "object": event.object_id,
                }
            )
        counts.append(len(rows) - already)
    if rows:
        connection.execute(_ADD_EVENT, rows)
    return counts


def _join_early(connection: Connection, keys: Iterable[str], now: datetime) -> dict[str, int]:
    """Have what waits for sessions that are stored join them; return how many events did."""
    events, marked = take_early(connection, keys, now)
    if marked:
        _mark(connection, marked)
    added = _add_events(connection, list(events.items())) if events else []
    return dict(zip(events, added, strict=True))


def _mark(connection: Connection, keys: Iterable[str]) -> int:
    """Mark sessions as irrelevant; return how many there are."""
    of_keys = is_one_of(session_rows.c.session_id, keys)
    return connection.execute(
        sa.update(session_rows).where(of_keys).values(is_irrelevant=True)
    ).rowcount


_ADD_EVENT = sa.insert(event_rows).values(
    session_id=sa.bindparam("key"),
    event_id=sa.bindparam("id"),
    document=sa.bindparam("event", type_=event_rows.c.document.type),
    shown_kind=sa.case(
        (is_shown(sa.bindparam("key"), sa.bindparam("object")), sa.bindparam("kind"))
    ),
)


def _read_sessions(
    connection: Connection, page: sa.Select[Any], events_limit: int | None = None
) -> list[NumberedSession]:
    """Return the sessions that `page` selects, with their first events: two queries."""
    rows = connection.execute(page).all()
    place = sa.func.row_number().over(
        partition_by=event_rows.c.session_id, order_by=event_rows.c.arrival
    )
    placed = (
        sa.select(event_rows, place.label("place"))
        .where(is_one_of(event_rows.c.session_id, [row.session_id for row in rows]))
        .subquery()
    )
    first = sa.select(placed).order_by(placed.c.arrival)
    if events_limit is not None:
        first = first.where(placed.c.place <= events_limit)
    events = defaultdict(list)
    for row in connection.execute(first):
        events[row.session_id].append(row.document)
    return [_numbered(row, events[row.session_id]) for row in rows]


def _numbered(row: sa.Row[Any], events: Sequence[Any]) -> NumberedSession:
    document = {**row.document, "is_irrelevant": row.is_irrelevant, "events": events}
    return NumberedSession(SESSION.validate_python(document), row.batch_id, row.number)


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


def _find_batch(
    connection: Connection, project: str, condition: sa.ColumnElement[bool]
) -> SessionBatch | None:
    found = sa.select(batch_rows).where(batch_rows.c.project == project, condition)
    row = connection.execute(found).one_or_none()
    return None if row is None else BATCH.validate_python(row._asdict())


def _get_batch(connection: Connection, project: str, batch_id: str) -> SessionBatch:
    batch = _find_batch(connection, project, batch_rows.c.batch_id == batch_id)
    if batch is None:
        raise unknown("batch", batch_id)
    return batch


def _task(row: sa.Row[Any]) -> FineTuningTask:
    return TASK.validate_python(row._asdict())


def _get_task(connection: Connection, project: str, task_id: str) -> FineTuningTask:
    found = sa.select(task_rows).where(task_rows.c.project == project, task_rows.c.id == task_id)
    row = connection.execute(found).one_or_none()
    if row is None:
        raise unknown("fine-tuning task", task_id)
    return _task(row)
