"""The embedded store: one SQLite file, shared by the API and the workers of one machine.

Every write is one transaction that takes the write lock at its beginning (BEGIN IMMEDIATE), so
what it reads stays true until it commits; unique indexes hold the same promises a second time.
"""

import json
import secrets
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import stamina
from pydantic import TypeAdapter
from sqlalchemy import Column, Connection, Table
from sqlalchemy.dialects.sqlite import insert as upsert

from embedding_studio.clickstream import (
    BatchStatus,
    NumberedSession,
    Session,
    SessionBatch,
    SessionEvent,
)
from embedding_studio.errors import (
    ConfigurationError,
    Conflict,
    InvalidInput,
    NotFound,
    StoreUnavailable,
)
from embedding_studio.store.base import Registered
from embedding_studio.store.moves import (
    TaskMoves,
    created,
    ensure_same_request,
    new_task,
    to_document,
)
from embedding_studio.tasks import (
    OWNED,
    Claim,
    FineTuningTask,
    NumberedTaskEvent,
    TaskEvent,
    TaskRequest,
    TaskStatus,
    WorkerRecord,
)

BUSY_SECONDS = 30.0
BATCH = TypeAdapter(SessionBatch)
SESSION = TypeAdapter(Session)
TASK = TypeAdapter(FineTuningTask)
TASK_EVENT = TypeAdapter(TaskEvent)
WORKER = TypeAdapter(WorkerRecord)


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """Aware datetimes outside; in the file UTC text of a fixed width, which sorts by time."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value and value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value and value.replace(tzinfo=UTC)


DOCUMENT = sa.JSON(none_as_null=True)
schema = sa.MetaData()
batch_rows = Table(
    "batches",
    schema,
    Column("batch_id", sa.String, primary_key=True),
    Column("status", sa.String, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("session_count", sa.Integer, nullable=False),
    Column("release_id", sa.String),
    Column("released_at", UtcDateTime),
)
session_rows = Table(
    "sessions",
    schema,
    Column("session_id", sa.String, primary_key=True),
    Column("batch_id", sa.ForeignKey(batch_rows.c.batch_id), nullable=False),
    Column("number", sa.Integer, nullable=False),
    Column("is_irrelevant", sa.Boolean, nullable=False),
    Column("document", DOCUMENT, nullable=False),
    sa.UniqueConstraint("batch_id", "number"),
)
event_rows = Table(
    "events",
    schema,
    Column("arrival", sa.Integer, primary_key=True),
    Column("session_id", sa.ForeignKey(session_rows.c.session_id), nullable=False),
    Column("event_id", sa.String, nullable=False),
    Column("document", DOCUMENT, nullable=False),
    sa.UniqueConstraint("session_id", "event_id"),
)
task_rows = Table(
    "tasks",
    schema,
    Column("arrival", sa.Integer, primary_key=True),
    Column("id", sa.String, nullable=False, unique=True),
    Column("request", DOCUMENT, nullable=False),
    Column("fine_tuning_method", sa.String, nullable=False),
    Column("status", sa.String, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("batch_id", sa.String),
    Column("metadata", DOCUMENT),
    Column("idempotency_key", sa.String),
    Column("budget", DOCUMENT, nullable=False),
    Column("attempt", sa.Integer, nullable=False),
    Column("expired_leases", sa.Integer, nullable=False),
    Column("fresh_starts", sa.Integer, nullable=False, server_default="0"),
    Column("worker_id", sa.String),
    Column("lease_expires_at", UtcDateTime),
    Column("progress", DOCUMENT),
    Column("experiment_id", sa.String),
    Column("best_model", DOCUMENT),
    Column("promotion", DOCUMENT),
    Column("error", sa.String),
    sa.Index("tasks_by_age", "status", "created_at", "arrival"),
)
task_event_rows = Table(
    "task_events",
    schema,
    Column("task_id", sa.ForeignKey(task_rows.c.id), primary_key=True),
    Column("number", sa.Integer, primary_key=True),
    Column("document", DOCUMENT, nullable=False),
)
worker_rows = Table(
    "workers",
    schema,
    Column("worker_id", sa.String, primary_key=True),
    Column("methods", DOCUMENT, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)


def _unique_where(name: str, column: Column[Any], condition: sa.ColumnElement[bool]) -> None:
    sa.Index(name, column, unique=True, sqlite_where=condition)


IS_COLLECTING = batch_rows.c.status == sa.literal_column(f"'{BatchStatus.COLLECTING}'")
_unique_where("one_collecting_batch", batch_rows.c.status, IS_COLLECTING)
_unique_where("release_ids", batch_rows.c.release_id, batch_rows.c.release_id.is_not(None))
_unique_where(
    "idempotency_keys", task_rows.c.idempotency_key, task_rows.c.idempotency_key.is_not(None)
)


class SqliteStore(TaskMoves):
    """url: sqlite:///relative/path or sqlite:////absolute/path; missing folders are created."""

    def __init__(self, url: str) -> None:
        self._path = _path_of(url)
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(self._path)),
            connect_args={"timeout": BUSY_SECONDS},
            max_overflow=64,
        )
        sa.event.listen(self._engine, "connect", _configure)
        sa.event.listen(self._engine, "begin", _begin)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        try:
            self._create_tables()
        except Exception:
            self.close()
            raise

    def _create_tables(self) -> None:
        # SQLite answers "locked" at once, whatever the busy timeout, while another process is
        # switching the same new file to WAL.
        for attempt in stamina.retry_context(
            on=_is_locked, attempts=None, timeout=BUSY_SECONDS, wait_initial=0.01, wait_max=0.5
        ):
            with attempt, self._writing() as connection:
                schema.create_all(connection)
                _add_missing_columns(connection)

    @contextmanager
    def _transaction(self, engine: sa.Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                yield connection
        except (sa.exc.IntegrityError, sa.exc.ProgrammingError):
            raise
        except (UnicodeEncodeError, OverflowError, sa.exc.DataError) as error:
            raise InvalidInput(f"SQLite cannot store this: {error}") from error
        except (sa.exc.DatabaseError, sa.exc.TimeoutError) as error:
            cause = getattr(error, "orig", error)  # without the statement and its parameters
            raise StoreUnavailable(f"the store {self._path} does not answer: {cause}") from error

    def _reading(self) -> AbstractContextManager[Connection]:
        return self._transaction(self._engine)

    def _writing(self) -> AbstractContextManager[Connection]:
        return self._transaction(self._writer)

    # -- clickstream ---------------------------------------------------------------------------

    def register_sessions(self, sessions: Sequence[Session], now: datetime) -> list[Registered]:
        with self._writing() as connection:
            known = _known_ids(connection, [session.session_id for session in sessions])
            new: dict[str, Session] = {}
            for session in sessions:
                if session.session_id not in known:
                    new.setdefault(session.session_id, session)
            if new:
                _add_sessions(connection, list(new.values()), now)
            added = _add_events(connection, [(s.session_id, s.events) for s in sessions])
            return [
                Registered(new.pop(session.session_id, None) is not None, new_events)
                for session, new_events in zip(sessions, added, strict=True)
            ]

    def get_session(self, session_id: str) -> NumberedSession:
        with self._reading() as connection:
            found = _read_sessions(
                connection, sa.select(session_rows).where(session_rows.c.session_id == session_id)
            )
        if not found:
            raise _no_session(session_id)
        return found[0]

    def append_events(self, session_id: str, events: Sequence[SessionEvent]) -> int:
        with self._writing() as connection:
            if not _known_ids(connection, [session_id]):
                raise _no_session(session_id)
            return _add_events(connection, [(session_id, events)])[0]

    def mark_irrelevant(self, session_id: str) -> None:
        with self._writing() as connection:
            marked = connection.execute(
                sa.update(session_rows)
                .where(session_rows.c.session_id == session_id)
                .values(is_irrelevant=True)
            )
            if not marked.rowcount:
                raise _no_session(session_id)

    def release_batch(self, release_id: str, now: datetime) -> SessionBatch:
        with self._writing() as connection:
            released = _find_batch(connection, batch_rows.c.release_id == release_id)
            if released is not None:
                return released
            collecting = _find_batch(connection, IS_COLLECTING)
            if collecting is None:
                raise Conflict("nothing to release: no session came since the last release")
            row = connection.execute(
                sa.update(batch_rows)
                .where(batch_rows.c.batch_id == collecting.batch_id)
                .values(status=BatchStatus.RELEASED, release_id=release_id, released_at=now)
                .returning(batch_rows)
            ).one()
            return BATCH.validate_python(row._asdict())

    def get_batch(self, batch_id: str) -> SessionBatch:
        with self._reading() as connection:
            return _get_batch(connection, batch_id)

    def collecting_batch(self) -> SessionBatch | None:
        with self._reading() as connection:
            return _find_batch(connection, IS_COLLECTING)

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
            _get_batch(connection, batch_id)
            return _read_sessions(connection, page, events_limit)

    # -- tasks, as their clients see them --------------------------------------------------------

    def add_task(self, request: TaskRequest, now: datetime) -> tuple[FineTuningTask, bool]:
        with self._writing() as connection:
            if request.idempotency_key is not None:
                row = _find_task_row(connection, request.idempotency_key)
                if row is not None:
                    ensure_same_request(row.id, row.request, request)
                    return _task(row), False
            values = {"id": secrets.token_hex(12), **new_task(request, now)}
            insert = sa.insert(task_rows).values(values).returning(task_rows)
            task = _task(connection.execute(insert).one())
            _add_task_events(connection, task.id, [created(now)])
            return task, True

    def get_task(self, task_id: str) -> FineTuningTask:
        with self._reading() as connection:
            return _get_task(connection, task_id)

    def find_task(self, idempotency_key: str) -> FineTuningTask | None:
        with self._reading() as connection:
            row = _find_task_row(connection, idempotency_key)
        return None if row is None else _task(row)

    def list_tasks(
        self, status: TaskStatus | None = None, skip: int = 0, limit: int = 100
    ) -> list[FineTuningTask]:
        newest = sa.select(task_rows).order_by(
            task_rows.c.created_at.desc(), task_rows.c.arrival.desc()
        )
        if status is not None:
            newest = newest.where(task_rows.c.status == status)
        with self._reading() as connection:
            return [_task(row) for row in connection.execute(newest.offset(skip).limit(limit))]

    def list_events(
        self, task_id: str, after_number: int = 0, limit: int = 100
    ) -> list[NumberedTaskEvent]:
        of_task = sa.select(task_event_rows).where(task_event_rows.c.task_id == task_id)
        page = of_task.where(task_event_rows.c.number > after_number).limit(limit)
        with self._reading() as connection:
            rows = connection.execute(page.order_by(task_event_rows.c.number)).all()
            if not rows:
                _get_task(connection, task_id)
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
    ) -> FineTuningTask | None:
        return self._change_task(
            changes,
            events,
            task_rows.c.id == claim.task_id,
            task_rows.c.attempt == claim.attempt,
            task_rows.c.status.in_(sorted(statuses)),
        )

    def _change_task(
        self,
        changes: Mapping[str, Any],
        events: Sequence[TaskEvent],
        *conditions: sa.ColumnElement[bool],
    ) -> FineTuningTask | None:
        change = sa.update(task_rows).where(*conditions).values(**changes).returning(task_rows)
        with self._writing() as connection:
            row = connection.execute(change).one_or_none()
            if row is None:
                return None
            _add_task_events(connection, row.id, events)
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

    def close(self) -> None:
        self._engine.dispose()


def _path_of(url: str) -> Path:
    path = url.removeprefix("sqlite:///")
    if path in (url, "", ":memory:"):
        raise ConfigurationError(
            f"ES_STORE_URL is {url!r}, which names no file: use sqlite:///path/to/store.db"
        )
    folder = Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"ES_STORE_URL is {url!r}, whose folder cannot be created: {error}"
        ) from error
    return Path(path).absolute()


def _configure(connection: sqlite3.Connection, _: object) -> None:
    # The driver begins no transaction by itself: _begin says which kind.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _add_missing_columns(connection: Connection) -> None:
    """Bring the tables of an older version up to date; columns only ever come to them."""
    inspector = sa.inspect(connection)
    for table in schema.sorted_tables:
        present = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in present:
                definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f'ALTER TABLE "{table.name}" ADD COLUMN {definition}')


def _is_locked(error: Exception) -> bool:
    return isinstance(error, StoreUnavailable) and "locked" in str(error)


def _no_session(session_id: str) -> NotFound:
    return NotFound(f"no session has the id {session_id!r}: register it first")


def _is_one_of(column: Column[str], ids: Iterable[str]) -> sa.ColumnElement[bool]:
    """As IN, but one parameter holds all ids: SQLite limits the number of parameters."""
    values = sa.func.json_each(json.dumps(list(ids))).table_valued("value")
    return column.in_(sa.select(values.c.value))


def _known_ids(connection: Connection, session_ids: Iterable[str]) -> set[str]:
    ids = sa.select(session_rows.c.session_id)
    return set(connection.scalars(ids.where(_is_one_of(session_rows.c.session_id, session_ids))))


def _add_sessions(connection: Connection, new: Sequence[Session], now: datetime) -> None:
    batch = _find_batch(connection, IS_COLLECTING)
    if batch is None:
        batch = SessionBatch(secrets.token_hex(12), BatchStatus.COLLECTING, now, 0)
        connection.execute(sa.insert(batch_rows).values(BATCH.dump_python(batch)))
    rows = [
        {
            "session_id": session.session_id,
            "batch_id": batch.batch_id,
            "number": number,
            "is_irrelevant": session.is_irrelevant,
            "document": SESSION.dump_python(
                session, mode="json", exclude={"events", "is_irrelevant"}
            ),
        }
        for number, session in enumerate(new, start=batch.session_count + 1)
    ]
    connection.execute(sa.insert(session_rows), rows)
    connection.execute(
        sa.update(batch_rows)
        .where(batch_rows.c.batch_id == batch.batch_id)
        .values(session_count=batch.session_count + len(rows))
    )


def _add_events(
    connection: Connection, posted: Sequence[tuple[str, Sequence[SessionEvent]]]
) -> list[int]:
    """Add each session's unknown events; return how many there were, in the order given."""
    known_pairs = sa.select(event_rows.c.session_id, event_rows.c.event_id).where(
        _is_one_of(event_rows.c.session_id, {session_id for session_id, _ in posted})
    )
    known = {(row.session_id, row.event_id) for row in connection.execute(known_pairs)}
    rows: list[dict[str, Any]] = []
    counts = []
    for session_id, events in posted:
        already = len(rows)
        for event in events:
            if (session_id, event.event_id) in known:
                continue
            known.add((session_id, event.event_id))
            rows.append(
                {
                    "session_id": session_id,
                    "event_id": event.event_id,
                    "document": to_document(event),
                }
            )
        counts.append(len(rows) - already)
    if rows:
        connection.execute(sa.insert(event_rows), rows)
    return counts


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
        .where(_is_one_of(event_rows.c.session_id, [row.session_id for row in rows]))
        .subquery()
    )
    first = sa.select(placed).order_by(placed.c.arrival)
    if events_limit is not None:
        first = first.where(placed.c.place <= events_limit)
    events = defaultdict(list)
    for row in connection.execute(first):
        events[row.session_id].append(row.document)
    return [
        NumberedSession(
            SESSION.validate_python(
                {
                    **row.document,
                    "is_irrelevant": row.is_irrelevant,
                    "events": events[row.session_id],
                }
            ),
            row.batch_id,
            row.number,
        )
        for row in rows
    ]


def _add_task_events(connection: Connection, task_id: str, events: Sequence[TaskEvent]) -> None:
    if not events:
        return
    of_task = task_event_rows.c.task_id == task_id
    last = connection.scalar(sa.select(sa.func.max(task_event_rows.c.number)).where(of_task)) or 0
    rows = [
        {"task_id": task_id, "number": number, "document": to_document(event)}
        for number, event in enumerate(events, start=last + 1)
    ]
    connection.execute(sa.insert(task_event_rows), rows)


def _find_batch(connection: Connection, condition: sa.ColumnElement[bool]) -> SessionBatch | None:
    row = connection.execute(sa.select(batch_rows).where(condition)).one_or_none()
    return None if row is None else BATCH.validate_python(row._asdict())


def _get_batch(connection: Connection, batch_id: str) -> SessionBatch:
    batch = _find_batch(connection, batch_rows.c.batch_id == batch_id)
    if batch is None:
        raise NotFound(f"no batch has the id {batch_id!r}")
    return batch


def _task(row: sa.Row[Any]) -> FineTuningTask:
    return TASK.validate_python(row._asdict())


def _find_task_row(connection: Connection, idempotency_key: str) -> sa.Row[Any] | None:
    return connection.execute(
        sa.select(task_rows).where(task_rows.c.idempotency_key == idempotency_key)
    ).one_or_none()


def _get_task(connection: Connection, task_id: str) -> FineTuningTask:
    row = connection.execute(sa.select(task_rows).where(task_rows.c.id == task_id)).one_or_none()
    if row is None:
        raise NotFound(f"no fine-tuning task has the id {task_id!r}")
    return _task(row)
