"""The databases that the store's contract is held against, and how each is watched and broken."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import mongomock
import mongomock.collection
import pytest
from pymongo.monitoring import CommandListener, CommandStartedEvent

from embedding_studio.errors import StoreUnavailable
from embedding_studio.store import Store
from embedding_studio.store.documents import Documents
from embedding_studio.store.memory import MemoryDocuments
from tests.contracts.document_backends import Place, mongo_place, sqlite_place

MONGO_VARIABLE = "ES_TEST_MONGO_URL"
BACKENDS = ["memory", "sqlite", "secantus"]
if os.environ.get(MONGO_VARIABLE):
    BACKENDS.append("mongodb")
PARAMS = [
    pytest.param(name, marks=() if name in ("memory", "sqlite") else pytest.mark.slow)
    for name in BACKENDS
]
"""Of a fixture: what needs a server is left out of the inner loop."""

WRITES = ("insert", "change", "change_all", "delete", "ping")
READS = ("find", "logs", "count")
MADE_OF_THEM = ("insert_one", "find_one", "each")

Moment = Literal["before", "halfway", "after"]


class Failure:
    """Breaks the n-th write of a store: before or after it takes effect, or halfway through."""

    def __init__(self, nth: int, moment: Moment) -> None:
        self.left = nth
        self.moment = moment

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
        raise StoreUnavailable("connection reset")


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


class Watched:
    """Documents of which each call goes through a backend's `around`."""

    def __init__(self, documents: Documents, backend: "Backend") -> None:
        self._documents = documents
        self._backend = backend

    def together(self, work: Callable[[], Any]) -> Any:
        if type(self._documents).together is Documents.together:
            return work()
        return self._backend.together(self._documents, work)

    def __getattr__(self, name: str) -> Any:
        if name in MADE_OF_THEM:
            return lambda *given, **named: getattr(Documents, name)(self, *given, **named)
        call = getattr(self._documents, name)
        if name not in WRITES + READS:
            return call
        return lambda *given, **named: self._backend.around(name, call, *given, **named)


class Backend:
    """One database, empty at first."""

    def __init__(self, make: Callable[[], Place]) -> None:
        self._make = make
        self._place = make()
        self._around: Callable[..., Any] | None = None
        self._is_joined = False

    @property
    def url(self) -> str:
        """What `open_store` takes; of a database that other processes can open."""
        assert self._place.url is not None
        return self._place.url

    @property
    def is_shared(self) -> bool:
        """Whether other processes can open it."""
        return self._place.url is not None

    def open(self) -> Store:
        return Store(cast(Documents, Watched(self._place.open(), self)))

    def another(self) -> "Backend":
        """Return one more empty database of this kind."""
        return Backend(self._make)

    def around(self, name: str, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if self._around is None:
            return call(*given, **named)
        return self._around(name, call, *given, **named)

    def together(self, documents: Documents, work: Callable[[], Any]) -> Any:
        """Have calls join a transaction: nothing comes between them."""

        def join() -> Any:
            self._is_joined = True
            try:
                return work()
            finally:
                self._is_joined = False

        return documents.together(join)

    @contextmanager
    def _calling(self, around: Callable[..., Any]) -> Iterator[None]:
        self._around = around
        try:
            yield
        finally:
            self._around = None

    @contextmanager
    def counted(self) -> Iterator[tuple[Store, list[str]]]:
        """Give a store and a list that grows with every call that is made."""
        calls: list[str] = []

        def around(name: str, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
            calls.append(name)
            return call(*given, **named)

        store = self.open()
        with self._calling(around):
            yield store, calls
        store.close()

    @contextmanager
    def failing(self, nth: int, moment: Moment) -> Iterator[Failure]:
        """Have the n-th write within fail."""
        failure = Failure(nth, moment)

        def around(name: str, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
            if name not in WRITES:
                return call(*given, **named)

            def half() -> None:
                if name == "insert" and len(given[1]) > 1:
                    call(given[0], given[1][: len(given[1]) // 2])

            return failure.around(lambda: call(*given, **named), half)

        with self._calling(around):
            yield failure

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Have every write within be refused, as with a full disk."""

        def around(name: str, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
            if name in WRITES:
                raise StoreUnavailable("there is no space left on the device")
            return call(*given, **named)

        with self._calling(around):
            yield

    @contextmanager
    def interrupted(self, nth: int, action: Callable[[], Any]) -> Iterator[Interruption]:
        """Have the action come before the n-th call within."""
        interruption = Interruption(nth, action)

        def around(name: str, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
            if not self._is_joined:
                interruption.step()
            return call(*given, **named)

        with self._calling(around):
            yield interruption


BulkOperationBuilder: Any = mongomock.collection.BulkOperationBuilder
add_update = BulkOperationBuilder.add_update


def add_update_without_sort(builder: Any, *rest: Any, sort: None, **options: Any) -> Any:
    return add_update(builder, *rest, **options)


# pymongo passes a sort, None here, that mongomock 4.3 does not know.
BulkOperationBuilder.add_update = add_update_without_sort


class QueryListener(CommandListener):
    """Keeps the names of the commands that a client sends."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.queries.append(event.command_name)

    def succeeded(self, event: object) -> None:
        pass

    def failed(self, event: object) -> None:
        pass


def make_backend(name: str, request: pytest.FixtureRequest) -> Backend:
    if name == "memory":

        def make() -> Place:
            documents = MemoryDocuments()
            return Place(lambda: documents)

        return Backend(make)
    if name == "sqlite":
        folder: Path = request.getfixturevalue("tmp_path")
        numbers = iter(range(10**6))
        return Backend(lambda: sqlite_place(folder / str(next(numbers))))
    is_test_server = name == "secantus"
    url = request.getfixturevalue("secantus_url") if is_test_server else os.environ[MONGO_VARIABLE]
    return Backend(lambda: mongo_place(url))
