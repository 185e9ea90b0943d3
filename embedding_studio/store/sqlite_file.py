"""One SQLite file, shared by the threads and processes of one machine, and its transactions.

Every write takes the write lock at its beginning (BEGIN IMMEDIATE), so what it reads stays true
until it commits. Writes of one process that come at the same time share a transaction.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, local
from types import MappingProxyType
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import stamina

from embedding_studio.errors import ConfigurationError, InvalidInput, StoreUnavailable

LAYOUT = 3
"""The `user_version` of files with tables of documents; version 0.1 left it at 0."""
BUSY_SECONDS = 30.0
REFUSED_SECONDS = 30.0
"""For so long after a write was refused the file counts as one that takes none, until one goes
well: a full disk may still take the smallest."""

Result = TypeVar("Result")
Work = Callable[[sqlite3.Connection], Result]


class SqliteFile:
    """The file that a URL names: sqlite:///relative/path or sqlite:////absolute/path.

    Missing folders and the file itself are created.

    is_migrating: what it has in the layout of 0.1 is just being brought along. functions: what its
    queries may call.
    """

    def __init__(
        self,
        url: str,
        *,
        is_migrating: bool = False,
        functions: Mapping[str, Callable[[bytes, str], Any]] = MappingProxyType({}),
    ) -> None:
        self.path = _path_of(url)
        self._functions = functions
        self._idle: list[sqlite3.Connection] = []
        self._held: sqlite3.Connection | None = None
        self.is_former = False
        self._files: dict[Path, os.stat_result] = {}
        self._turn = Condition()
        self._waiting: list[_Job[Any]] = []
        self._is_writing = False
        self._local = local()
        #: when, and why, the last write was refused, if it was
        self._refusal: tuple[float, str] | None = None
        try:
            with self._answering():
                self.path.touch()
            self._begin(is_migrating)
            with self._answering():
                self._held = self._connect()  # while one is open, its files stay the same
                self._held.execute("SELECT name FROM sqlite_master").fetchall()
                files = [Path(f"{self.path}{end}") for end in ("", "-wal", "-shm")]
                self._files = {file: file.stat() for file in files if file.exists()}
        except Exception:
            self.close()
            raise

    def read(self, query: str, values: Sequence[Any]) -> list[Any]:
        if (joined := self._joined) is not None:
            with self._answering():
                return joined.execute(query, values).fetchall()
        with self._connection() as connection:
            return connection.execute(query, values).fetchall()

    def write(self, work: Work[Result]) -> Result:
        """Do work in a transaction, and remember whether it was refused."""
        if (joined := self._joined) is not None:
            return self._within(joined, work)
        try:
            result = self._in_turn(work)
        except StoreUnavailable as error:
            self._refusal = time.monotonic(), str(error)
            raise
        self._refusal = None
        return result

    def together(self, work: Callable[[], Result]) -> Result:
        """Do work whose reads and writes join one transaction."""

        def join(connection: sqlite3.Connection) -> Result:
            self._local.connection = connection
            try:
                return work()
            finally:
                self._local.connection = None

        return self.write(join)

    def _within(self, joined: sqlite3.Connection, work: Work[Result]) -> Result:
        with self._answering():
            joined.execute("SAVEPOINT one")
            try:
                result = work(joined)
            except BaseException:
                joined.execute("ROLLBACK TO one")
                joined.execute("RELEASE one")
                raise
            joined.execute("RELEASE one")
            return result

    @property
    def is_joined(self) -> bool:
        """Whether what this thread does joins a transaction."""
        return self._joined is not None

    @property
    def _joined(self) -> sqlite3.Connection | None:
        """The connection whose transaction is joined by what this thread does."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        return connection

    def _in_turn(self, work: Work[Result]) -> Result:
        """Do work when it is its turn, in one transaction with all that waits by then."""
        job = _Job(work)
        with self._turn:
            self._waiting.append(job)
            self._turn.wait_for(lambda: job.is_done or not self._is_writing)
            if job.is_done:  # another took it along
                return job.answer()
            self._is_writing = True
            jobs, self._waiting = self._waiting, []
        try:
            self._do(jobs)
        finally:
            with self._turn:
                for one in jobs:
                    one.is_done = True
                self._is_writing = False
                self._turn.notify_all()
        return job.answer()

    def _do(self, jobs: "Sequence[_Job[Any]]") -> None:
        try:
            results = self._commit([job.work for job in jobs])
        except Exception as error:  # noqa: BLE001 - raised where each of them waits
            if len(jobs) > 1 and not isinstance(error, StoreUnavailable):
                for job in jobs:  # one of them cannot be done: no other shares its fate
                    self._do([job])
                return
            for job in jobs:
                job.end(error=error)
        else:
            for job, result in zip(jobs, results, strict=True):
                job.end(result)

    def _commit(self, works: Sequence[Work[Any]]) -> list[Any]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            results = [work(connection) for work in works]
            connection.execute("COMMIT")
        return results

    def ping(self) -> None:
        """Write a little. Raises StoreUnavailable if that is refused, or a write lately was."""
        self._in_turn(lambda connection: connection.execute("REPLACE INTO ping VALUES (1)"))
        if self._refusal is not None:
            refused_at, why = self._refusal
            if time.monotonic() - refused_at < REFUSED_SECONDS:
                raise StoreUnavailable(why)

    def retire(self, tables: Sequence[str]) -> None:
        """Drop the tables of 0.1: from here on the file is one of the present layout."""

        def drop(connection: sqlite3.Connection) -> None:
            for table in tables:
                connection.execute(f"DROP TABLE IF EXISTS {table}")
            connection.execute(f"PRAGMA user_version = {LAYOUT}")

        self.write(drop)
        self.is_former = False

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if self._held is not None:
            self._held.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode=rw",  # a file that was removed is not made anew
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,  # transactions begin where BEGIN stands
            check_same_thread=False,  # one thread after the other has it
        )
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}").close()
        for name, function in self._functions.items():
            connection.create_function(name, 2, function, deterministic=True)
        return connection

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Give a connection that nobody else uses meanwhile; one that has failed is closed."""
        with self._answering():
            self._ensure_same_files()
            connection = self._idle.pop() if self._idle else self._connect()
            try:
                yield connection
                self._ensure_same_files()  # what was read or written is in the file that is there
            except BaseException:
                connection.close()  # rolls back what is not committed
                raise
            self._idle.append(connection)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise
        except (UnicodeEncodeError, OverflowError, sqlite3.DataError) as error:
            raise InvalidInput(f"SQLite cannot store this: {error}") from error
        except (sqlite3.DatabaseError, OSError) as error:
            raise StoreUnavailable(f"the store {self.path} does not answer: {error}") from error

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

    def _begin(self, is_migrating: bool) -> None:
        """Make a new file one of this layout. Raises ConfigurationError if it has another."""
        # SQLite answers "locked" at once, whatever the busy timeout, while another process is
        # switching the same new file to WAL.
        for attempt in stamina.retry_context(
            on=_is_locked, attempts=None, timeout=BUSY_SECONDS, wait_initial=0.01, wait_max=0.5
        ):
            with attempt, self._connection() as connection:
                connection.execute("BEGIN IMMEDIATE")
                self.is_former = _is_former(connection)
                if self.is_former and not is_migrating:
                    raise ConfigurationError(
                        f"the store {self.path} is one of Embedding Studio 0.1: stop the API and "
                        "all workers, make a backup, and run `embedding-studio migrate` once"
                    )
                if not self.is_former:
                    connection.execute(f"PRAGMA user_version = {LAYOUT}")
                connection.execute("CREATE TABLE IF NOT EXISTS ping (id INTEGER PRIMARY KEY)")
                connection.execute("COMMIT")


class _Job(Generic[Result]):
    """Work that waits for its transaction, and then what came of it."""

    def __init__(self, work: Work[Result]) -> None:
        self.work = work
        self.is_done = False
        self._result: Any = None
        self._error: Exception | None = StoreUnavailable("the write was interrupted: try again")

    def end(self, result: Any = None, error: Exception | None = None) -> None:
        self._result, self._error = result, error

    def answer(self) -> Result:
        if self._error is not None:
            raise self._error
        result: Result = self._result
        return result


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


def _is_former(connection: sqlite3.Connection) -> bool:
    """Return whether a file has tables, and they are not ours."""
    ((layout,),) = connection.execute("PRAGMA user_version").fetchall()
    tables = connection.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
    return layout != LAYOUT and bool(tables)


def _is_locked(error: Exception) -> bool:
    return isinstance(error, StoreUnavailable) and "locked" in str(error)
