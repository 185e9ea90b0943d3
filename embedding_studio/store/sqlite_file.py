"""The SQLite file: its tables, how an older one is brought up to date, and its transactions.

Every write is one transaction that takes the write lock at its beginning (BEGIN IMMEDIATE), so
what it reads stays true until it commits; unique indexes hold the same promises a second time.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
import stamina
from sqlalchemy import Column, Connection, Table
from sqlalchemy.dialects.sqlite import insert as upsert

from embedding_studio.clickstream import BatchStatus, event_kind
from embedding_studio.errors import ConfigurationError, InvalidInput, StoreUnavailable
from embedding_studio.projects import DEFAULT_PROJECT
from embedding_studio.store.base import Store

BUSY_SECONDS = 30.0
REFUSED_SECONDS = 30.0
"""For so long after a write was refused the store counts as one that takes none, until one goes
well: a full disk may still take the smallest."""


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
    Column("project", sa.String, nullable=False, server_default=DEFAULT_PROJECT),
    Column("status", sa.String, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("session_count", sa.Integer, nullable=False),
    Column("release_id", sa.String),
    Column("released_at", UtcDateTime),
    Column("since", UtcDateTime),
    Column("counts", DOCUMENT, nullable=False, server_default="{}"),
    Column("bytes", sa.Integer, nullable=False, server_default="0"),  # as `usage` counts them
)
usage_rows = Table(
    "usage",
    schema,
    Column("project", sa.String, primary_key=True),
    Column("sessions", sa.Integer, nullable=False),
    Column("bytes", sa.Integer, nullable=False),
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
    Column("shown_kind", sa.String),  # of an event on an item that was shown, else null
    Column("document", DOCUMENT, nullable=False),
    sa.UniqueConstraint("session_id", "event_id"),
)
_results = sa.func.json_each(session_rows.c.document, "$.search_results").table_valued("value")


def is_shown(session_key: Any, object_id: Any) -> sa.ColumnElement[bool]:
    """Return whether a stored session shows an item."""
    return (
        sa.select(sa.literal(1))
        .select_from(session_rows.join(_results, sa.true()))
        .where(
            session_rows.c.session_id == session_key,
            sa.func.json_extract(_results.c.value, "$.object_id") == object_id,
        )
        .exists()
    )


early_rows = Table(
    "early_events",
    schema,
    Column("arrival", sa.Integer, primary_key=True),
    Column("project", sa.String, nullable=False),
    Column("session_id", sa.String, nullable=False),
    Column("event_id", sa.String, nullable=False),  # "": the mark that a session is irrelevant
    Column("document", DOCUMENT),
    Column("expires_at", UtcDateTime, nullable=False),
    sa.UniqueConstraint("session_id", "event_id"),
    sa.Index("early_events_by_age", "project", "expires_at"),
)
task_rows = Table(
    "tasks",
    schema,
    Column("arrival", sa.Integer, primary_key=True),
    Column("id", sa.String, nullable=False, unique=True),
    Column("project", sa.String, nullable=False, server_default=DEFAULT_PROJECT),
    Column("request", DOCUMENT, nullable=False),
    Column("fine_tuning_method", sa.String, nullable=False),
    Column("status", sa.String, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("batch_id", sa.String),
    Column("metadata", DOCUMENT),
    Column("idempotency_key", sa.String),
    Column("budget", DOCUMENT, nullable=False),
    Column("search", DOCUMENT, nullable=False, server_default="{}"),
    Column("event_weights", DOCUMENT),
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
    Column("webhook_url", sa.String),
    Column("delivery", DOCUMENT),
    Column("delivery_due_at", UtcDateTime),
    sa.Index("tasks_by_delivery", "delivery_due_at"),
    sa.Index("tasks_by_age", "status", "created_at", "arrival"),
    sa.Index("tasks_of_projects", "project", "created_at", "arrival"),
    sa.Index("tasks_by_status", "project", "status", "created_at", "arrival"),
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
    Column("plugin_failures", DOCUMENT, nullable=False, server_default="{}"),
    Column("missing_models", DOCUMENT, nullable=False, server_default="{}"),
    Column("clock_ahead_seconds", sa.Float, nullable=False, server_default="0"),
)


schedule_rows = Table(
    "schedules",
    schema,
    Column("arrival", sa.Integer, primary_key=True),
    Column("id", sa.String, nullable=False, unique=True),
    Column("project", sa.String, nullable=False),
    Column("fine_tuning_method", sa.String, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("next_at", UtcDateTime, nullable=False),
    Column("cron", sa.String),
    Column("interval_seconds", sa.Float),
    Column("min_new_sessions", sa.Integer, nullable=False),
    Column("budget", DOCUMENT, nullable=False),
    Column("search", DOCUMENT, nullable=False, server_default="{}"),
    Column("event_weights", DOCUMENT),
    Column("metadata", DOCUMENT),
    Column("webhook_url", sa.String),
    Column("is_paused", sa.Boolean, nullable=False),
    Column("last_task_id", sa.String),
    Column("last_outcome", sa.String),
)
key_rows = Table(
    "api_keys",
    schema,
    Column("arrival", sa.Integer, primary_key=True),
    Column("id", sa.String, nullable=False, unique=True),
    Column("name", sa.String, nullable=False),
    Column("project", sa.String, nullable=False),
    Column("scopes", DOCUMENT, nullable=False),
    Column("secret_sha256", sa.String, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
)
ping_rows = Table(
    "pings",
    schema,
    Column("id", sa.Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
)
model_rows = Table(
    "models",
    schema,
    Column("project", sa.String, primary_key=True),
    Column("method", sa.String, primary_key=True),
    Column("revision", sa.Integer, nullable=False),
    Column("is_mirrored", sa.Boolean, nullable=False),
    Column("document", DOCUMENT, nullable=False),
)
IS_COLLECTING = batch_rows.c.status == sa.literal_column(f"'{BatchStatus.COLLECTING}'")


def _unique_where(name: str, condition: sa.ColumnElement[bool], *columns: Column[Any]) -> None:
    sa.Index(name, *columns, unique=True, sqlite_where=condition)


_unique_where("one_collecting_batch_a_project", IS_COLLECTING, batch_rows.c.project)
_unique_where(
    "release_ids_of_projects",
    batch_rows.c.release_id.is_not(None),
    *(batch_rows.c.project, batch_rows.c.release_id),
)
_unique_where(
    "idempotency_keys_of_projects",
    task_rows.c.idempotency_key.is_not(None),
    *(task_rows.c.project, task_rows.c.idempotency_key),
)
FORMER_INDEXES = ("one_collecting_batch", "release_ids", "idempotency_keys")
"""Of files from before there were projects."""


class SqliteFile(Store):
    """url: sqlite:///relative/path or sqlite:////absolute/path; missing folders are created."""

    def __init__(self, url: str) -> None:
        self._path = _path_of(url)
        self._held: Connection | None = None
        self._files: dict[Path, os.stat_result] = {}
        self._refusals: list[tuple[float, str]] = []  # the last write's, if it was refused
        self._engine = sa.create_engine(
            sa.URL.create(
                "sqlite",
                database=f"file:{quote(str(self._path))}",
                query={"mode": "rw", "uri": "true"},  # a file that was removed is not made anew
            ),
            connect_args={"timeout": BUSY_SECONDS},
            max_overflow=64,
        )
        sa.event.listen(self._engine, "connect", _configure)
        sa.event.listen(self._engine, "begin", _begin)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        try:
            with self._answering():
                self._path.touch()
            self._create_tables()
            with self._answering():
                self._held = self._engine.connect()  # while one is open, its files stay the same
                files = [Path(f"{self._path}{end}") for end in ("", "-wal", "-shm")]
                self._files = {file: file.stat() for file in files if file.exists()}
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
                _bring_up_to_date(connection)

    @contextmanager
    def _transaction(self, engine: sa.Engine) -> Iterator[Connection]:
        with self._answering():
            self._ensure_same_files()
            with engine.begin() as connection:
                yield connection
            self._ensure_same_files()  # what was read or written is in the file that is there

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.IntegrityError, sa.exc.ProgrammingError):
            raise
        except (UnicodeEncodeError, OverflowError, sa.exc.DataError) as error:
            raise InvalidInput(f"SQLite cannot store this: {error}") from error
        except (sa.exc.DatabaseError, sa.exc.TimeoutError, OSError) as error:
            cause = getattr(error, "orig", error)  # without the statement and its parameters
            raise StoreUnavailable(f"the store {self._path} does not answer: {cause}") from error

    def _ensure_same_files(self) -> None:
        """Raise StoreUnavailable if a file is not the one that was opened: SQLite would go on with
        what no longer has a name, and nobody would find it again."""
        for file, opened in self._files.items():
            try:
                is_same = os.path.samestat(file.stat(), opened)
            except FileNotFoundError:
                is_same = False
            if not is_same:
                raise StoreUnavailable(
                    f"the store's file {file} was removed or replaced while it was in use, so "
                    "nothing is taken: put it back, or stop the API and all workers, restore a "
                    "backup (or leave none, to begin anew), and start them again"
                )

    def _reading(self) -> AbstractContextManager[Connection]:
        return self._transaction(self._engine)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with self._transaction(self._writer) as connection:
                yield connection
        except StoreUnavailable as error:
            self._refusals[:] = [(time.monotonic(), str(error))]
            raise
        self._refusals.clear()

    def ping(self) -> None:
        with self._transaction(self._writer) as connection:
            now = {"at": datetime.now(UTC)}
            connection.execute(
                upsert(ping_rows)
                .values(id=1, **now)
                .on_conflict_do_update(index_elements=["id"], set_=now)
            )
        for refused_at, why in self._refusals:
            if time.monotonic() - refused_at < REFUSED_SECONDS:
                raise StoreUnavailable(why)

    def close(self) -> None:
        if self._held is not None:
            self._held.close()
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
    connection.create_function("event_kind", 1, event_kind, deterministic=True)
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def session_key(project: str, session_id: str) -> str:
    """Return the key under which a session is kept: its id is its client's choice, and free in each
    project. In the default one it is the id itself, unless that could be another project's key."""
    if project == DEFAULT_PROJECT and not session_id.startswith("p:"):
        return session_id
    return f"p:{project}:{session_id}"


def _bring_up_to_date(connection: Connection) -> None:
    """Change the tables of an older version; columns only ever come to them."""
    inspector = sa.inspect(connection)
    for table in schema.sorted_tables:
        present = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in present:
                definition = sa.schema.CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f'ALTER TABLE "{table.name}" ADD COLUMN {definition}')
                if column is batch_rows.c.project:
                    _rename_ambiguous_sessions(connection)
                if column is event_rows.c.shown_kind:
                    _find_shown_kinds(connection)
        for index in table.indexes:
            index.create(connection, checkfirst=True)
    for name in FORMER_INDEXES:
        connection.exec_driver_sql(f"DROP INDEX IF EXISTS {name}")


def _rename_ambiguous_sessions(connection: Connection) -> None:
    """Give the sessions of before there were projects the keys that `session_key` says."""
    connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")  # until the transaction ends
    for table in (event_rows, session_rows):
        key = table.c.session_id
        connection.execute(
            sa.update(table)
            .where(sa.func.substr(key, 1, 2) == "p:")
            .values(session_id=sa.literal(f"p:{DEFAULT_PROJECT}:") + key)
        )


def _find_shown_kinds(connection: Connection) -> None:
    """Fill in what is counted of the batches now collecting; of others it is not asked."""
    collecting = sa.select(session_rows.c.session_id).join(batch_rows).where(IS_COLLECTING)
    event_type, object_id = (
        sa.func.json_extract(event_rows.c.document, path)
        for path in ("$.event_type", "$.object_id")
    )
    connection.execute(
        sa.update(event_rows)
        .where(event_rows.c.session_id.in_(collecting))
        .where(is_shown(event_rows.c.session_id, object_id))
        .values(shown_kind=sa.func.event_kind(event_type))
    )


def _is_locked(error: Exception) -> bool:
    return isinstance(error, StoreUnavailable) and "locked" in str(error)
