"""Stores over each database, whose calls can be counted, broken and interrupted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from embedding_studio.errors import StoreUnavailable
from embedding_studio.store.clickstream import Clickstream
from embedding_studio.store.documents import Documents
from embedding_studio.store.memory import MemoryDocuments
from tests.contracts.document_backends import Place, mongo_place, sqlite_place
from tests.contracts.store_backends import Failure, Interruption, Moment

WRITES = ("insert", "change", "change_all", "delete")
READS = ("find", "logs", "count")


class Watched:
    """Documents of which each call goes through `around`."""

    def __init__(self, documents: Documents, backend: "WaistBackend") -> None:
        self._documents = documents
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._documents, name)
        if name in ("insert_one", "find_one", "each"):
            return lambda *a, **k: getattr(Documents, name)(self, *a, **k)
        if name not in WRITES + READS:
            return call
        return lambda *a, **k: self._backend.around(name, call, *a, **k)


class WaistBackend:
    is_shared = can_slice = is_bounded = True

    def __init__(self, make: Callable[[], Place]) -> None:
        self._make = make
        self._place = make()
        self._around: Callable[..., Any] | None = None

    def open(self) -> Any:
        documents = Watched(self._place.open(), self)

        def in_project(project: str) -> Any:
            clickstream = Clickstream(documents, project)  # type: ignore[arg-type]
            return SimpleNamespace(
                clickstream=clickstream, close=documents.close, in_project=in_project
            )

        return in_project("default")

    def around(self, name: str, call: Callable[..., Any], *a: Any, **k: Any) -> Any:
        around = self._around
        return around(name, call, *a, **k) if around else call(*a, **k)

    def another(self) -> "WaistBackend":
        return WaistBackend(self._make)

    @contextmanager
    def counted(self) -> Iterator[Any]:
        queries: list[str] = []

        def around(name: str, call: Callable[..., Any], *a: Any, **k: Any) -> Any:
            queries.append(name)
            return call(*a, **k)

        self._around = around
        yield self.open(), queries
        self._around = None

    @contextmanager
    def failing(self, nth: int, moment: Moment) -> Iterator[Failure]:
        failure = Failure(nth, moment, StoreUnavailable("connection reset"))

        def around(name: str, call: Callable[..., Any], *a: Any, **k: Any) -> Any:
            if name not in WRITES:
                return call(*a, **k)

            def half() -> None:
                if name == "insert" and len(a[1]) > 1:
                    call(a[0], a[1][: len(a[1]) // 2])

            return failure.around(lambda: call(*a, **k), half)

        self._around = around
        yield failure
        self._around = None

    @contextmanager
    def interrupted(self, nth: int, action: Callable[[], Any]) -> Iterator[Interruption]:
        interruption = Interruption(nth, action)

        def around(name: str, call: Callable[..., Any], *a: Any, **k: Any) -> Any:
            interruption.step()
            return call(*a, **k)

        self._around = around
        yield interruption
        self._around = None

    def drop(self) -> None:
        pass


@pytest.fixture(params=["memory", "sqlite", "secantus"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> WaistBackend:
    if request.param == "memory":

        def memory() -> Place:
            documents = MemoryDocuments()
            return Place(lambda: documents)

        return WaistBackend(memory)
    if request.param == "sqlite":
        folders = iter(range(10**6))
        return WaistBackend(lambda: sqlite_place(tmp_path / str(next(folders))))
    url = request.getfixturevalue("secantus_url")
    return WaistBackend(lambda: mongo_place(url))
