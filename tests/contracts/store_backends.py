"""The databases that the store's contract is held against, and how each is opened and broken."""

import os
import secrets
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import mongomock
import mongomock.collection
import pymongo
import pytest
import sqlalchemy as sa
from pymongo.errors import AutoReconnect, OperationFailure
from pymongo.monitoring import CommandListener, CommandStartedEvent
from sqlalchemy.engine.default import DefaultDialect

from embedding_studio.store import Store, open_store
from embedding_studio.store.mongo import MongoStore

MONGO_VARIABLE = "ES_TEST_MONGO_URL"
BACKENDS = ["sqlite", "mongomock", "secantus"]
if os.environ.get(MONGO_VARIABLE):
    BACKENDS.append("mongodb")

WRITES = (
    "bulk_write",
    "find_one_and_update",
    "insert_many",
    "insert_one",
    "replace_one",
    "update_one",
)

Moment = Literal["before", "halfway", "after"]


class Failure:
    """Breaks the n-th write of a store: before or after it takes effect, or halfway through."""

    def __init__(self, nth: int, moment: Moment, error: Exception) -> None:
        self.left = nth
        self.moment = moment
        self.error = error

    @property
    def happened(self) -> bool:
        return self.left <= 0

    def around(self, write: Callable[[], Any], half: Callable[[], Any]) -> Any:
        self.left -= 1
        if self.left != 0:
            return write()
        if self.moment == "after":
            write()
        elif self.moment == "halfway":
            half()
        raise self.error


class Interruption:
    """Does something else, once, just before the n-th step of a store."""

    def __init__(self, nth: int, action: Callable[[], Any]) -> None:
        self.left = nth
        self.action = action
        self.is_running = False

    @property
    def happened(self) -> bool:
        return self.left <= 0

    def step(self) -> None:
        if self.is_running:
            return
        self.left -= 1
        if self.left == 0:
            self.is_running = True
            self.action()
            self.is_running = False


class Backend(ABC):
    """One database, empty at first. url: what `open_store` takes."""

    url: str
    is_shared = True  # by threads and processes
    can_slice = True  # a list within a document, leaving its other fields
    is_bounded = True  # no document is larger than 16 MB

    def open(self) -> Store:
        return open_store(self.url)

    @abstractmethod
    def another(self) -> "Backend":
        """Return one more empty database of this kind."""

    @abstractmethod
    def unreachable_url(self, folder: Path) -> str:
        """Return the URL of a database of this kind that does not answer."""

    @abstractmethod
    def counted(self) -> AbstractContextManager[tuple[Store, list[str]]]:
        """Give a store and a list that grows with every query that is sent."""

    @abstractmethod
    def failing(self, nth: int, moment: Moment) -> AbstractContextManager[Failure]:
        """Have the n-th write within fail."""

    @abstractmethod
    def refusing(self) -> AbstractContextManager[None]:
        """Have every write within be refused, as with a full disk."""

    @abstractmethod
    def interrupted(
        self, nth: int, action: Callable[[], Any]
    ) -> AbstractContextManager[Interruption]:
        """Have the action come before the n-th step within.

        Steps are SQLite's transactions, MongoDB's writes and, where it costs no time, its reads.
        """

    @abstractmethod
    def forget_usage(self, store: Any) -> None:
        """Make the database one of before it was counted what projects hold."""

    @abstractmethod
    def drop(self) -> None:
        """Remove the database."""


@contextmanager
def listening(event: str, listener: Callable[..., None]) -> Iterator[None]:
    """Have SQLAlchemy tell the listener about every engine's events of that name."""
    sa.event.listen(sa.Engine, event, listener)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, event, listener)


class SqliteBackend(Backend):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"sqlite:///{folder / 'new' / 'store.db'}"

    def another(self) -> "SqliteBackend":
        return SqliteBackend(self._folder / secrets.token_hex(6))

    def unreachable_url(self, folder: Path) -> str:
        (folder / "broken.db").write_bytes(b"this is not a database" * 100)
        return f"sqlite:///{folder / 'broken.db'}"

    @contextmanager
    def counted(self) -> Iterator[tuple[Store, list[str]]]:
        queries: list[str] = []

        def count(connection: object, cursor: object, statement: str, *rest: object) -> None:
            queries.append(statement)

        with closing(self.open()) as store, listening("before_cursor_execute", count):
            yield store, queries

    @contextmanager
    def interrupted(self, nth: int, action: Callable[[], Any]) -> Iterator[Interruption]:
        interruption = Interruption(nth, action)

        def begin(connection: object) -> None:
            interruption.step()

        with listening("begin", begin):
            yield interruption

    @contextmanager
    def failing(self, nth: int, moment: Moment) -> Iterator[Failure]:
        failure = Failure(nth, moment, sqlite3.OperationalError("disk I/O error"))
        with pytest.MonkeyPatch.context() as patch:
            commit = DefaultDialect.do_commit

            def do_commit(dialect: DefaultDialect, connection: Any) -> None:
                write = partial(commit, dialect, connection)
                failure.around(write, half=lambda: None)

            patch.setattr(DefaultDialect, "do_commit", do_commit)
            yield failure

    @contextmanager
    def refusing(self) -> Iterator[None]:
        def begin(connection: sa.Connection) -> None:
            if "begin" in connection.get_execution_options():  # to write
                full = sqlite3.OperationalError("database or disk is full")
                raise sa.exc.OperationalError("BEGIN IMMEDIATE", {}, full)

        with listening("begin", begin):
            yield

    def forget_usage(self, store: Any) -> None:
        with store._writing() as connection:
            connection.exec_driver_sql("DELETE FROM usage")
            connection.exec_driver_sql("UPDATE batches SET bytes = 0")

    def drop(self) -> None:
        pass  # pytest removes the folder


class MongoBackend(Backend):
    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        parts = urlsplit(server_url)
        self._database = f"test_{secrets.token_hex(6)}"
        self.url = parts._replace(path=f"/{self._database}").geturl()

    def another(self) -> "MongoBackend":
        return MongoBackend(self._server_url)

    def unreachable_url(self, folder: Path) -> str:
        return "mongodb://127.0.0.1:1/nothing?serverSelectionTimeoutMS=100"

    @contextmanager
    def counted(self) -> Iterator[tuple[Store, list[str]]]:
        listener = QueryListener()
        client = pymongo.MongoClient[dict[str, Any]](self.url, event_listeners=[listener])
        with closing(MongoStore(self.url, client)) as store:
            yield store, listener.queries

    collection_class: Any = pymongo.collection.Collection
    interruptible: tuple[str, ...] = WRITES

    @contextmanager
    def failing(self, nth: int, moment: Moment) -> Iterator[Failure]:
        failure = Failure(nth, moment, AutoReconnect("connection reset"))

        def around(real: Any, collection: Any, first: Any, *rest: Any, **options: Any) -> Any:
            def half() -> None:
                if isinstance(first, list) and len(first) > 1:
                    real(collection, first[: len(first) // 2], *rest, **options)

            return failure.around(lambda: real(collection, first, *rest, **options), half)

        with self._wrapped(WRITES, around):
            yield failure

    @contextmanager
    def refusing(self) -> Iterator[None]:
        def refuse(*arguments: Any, **options: Any) -> Any:
            raise OperationFailure("there is no space left on the device", 14031)

        with self._wrapped(WRITES, refuse):
            yield

    @contextmanager
    def interrupted(self, nth: int, action: Callable[[], Any]) -> Iterator[Interruption]:
        interruption = Interruption(nth, action)

        def around(real: Any, *arguments: Any, **options: Any) -> Any:
            interruption.step()
            return real(*arguments, **options)

        with self._wrapped(self.interruptible, around):
            yield interruption

    @contextmanager
    def _wrapped(self, names: Sequence[str], around: Callable[..., Any]) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setattr(
                    self.collection_class,
                    name,
                    partialmethod(partial(around, getattr(self.collection_class, name))),
                )
            yield

    def forget_usage(self, store: Any) -> None:
        store._usage.delete_many({})
        store._batches.update_many({}, {"$unset": {"bytes": 1}})

    def drop(self) -> None:
        with pymongo.MongoClient[dict[str, Any]](self.url) as client:
            client.drop_database(self._database)


BulkOperationBuilder: Any = mongomock.collection.BulkOperationBuilder
add_update = BulkOperationBuilder.add_update


def add_update_without_sort(builder: Any, *rest: Any, sort: None, **options: Any) -> Any:
    return add_update(builder, *rest, **options)


# pymongo passes a sort, None here, that mongomock 4.3 does not know.
BulkOperationBuilder.add_update = add_update_without_sort


class MongomockBackend(MongoBackend):
    is_shared = False
    can_slice = False
    is_bounded = False
    collection_class = mongomock.collection.Collection
    interruptible = (*WRITES, "find")

    def __init__(self) -> None:
        super().__init__("mongodb://nowhere")
        self._client: Any = mongomock.MongoClient()

    def another(self) -> "MongomockBackend":
        return MongomockBackend()

    def open(self) -> Store:
        return MongoStore(self.url, self._client)

    @contextmanager
    def counted(self) -> Iterator[tuple[Store, list[str]]]:
        pytest.skip("mongomock has no command listeners")

    def drop(self) -> None:
        pass


class QueryListener(CommandListener):
    def __init__(self) -> None:
        self.queries: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.queries.append(event.command_name)

    def succeeded(self, event: object) -> None:
        pass

    def failed(self, event: object) -> None:
        pass


def make_backend(name: str, request: pytest.FixtureRequest) -> Backend:
    if name == "sqlite":
        return SqliteBackend(request.getfixturevalue("tmp_path"))
    if name == "mongomock":
        return MongomockBackend()
    if name == "secantus":
        return MongoBackend(request.getfixturevalue("secantus_url"))
    return MongoBackend(os.environ[MONGO_VARIABLE])
