"""The contract of every store: what was answered was kept, and a ping tells when nothing is."""

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedding_studio.errors import StoreUnavailable
from embedding_studio.store import Store, open_store
from tests.contracts.store_backends import Backend, listening
from tests.contracts.store_processes import NOW, make_session


def post(store: Store, session_id: str, **changes: Any) -> None:
    store.clickstream.register([replace(make_session(session_id), **changes)], NOW)


def test_a_ping_tells_whether_writes_are_taken(backend: Backend, store: Store) -> None:
    """ping returns where a write would go well, and raises what each of them does; once one goes
    well, it is over."""
    store.ping()
    with backend.refusing():
        with pytest.raises(StoreUnavailable, match=r"full|no space"):
            post(store, "s-1")
        with pytest.raises(StoreUnavailable, match=r"full|no space"):
            store.in_project("another").ping()
        assert store.clickstream.collecting_batch() is None  # reading goes on
    post(store, "s-1")
    store.ping()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the SQLite file of a store is to be."""
    return tmp_path / "data" / "store.db"


@pytest.fixture
def opened(file: Path) -> Any:
    """A store on that file, with a session in it."""
    with closing(open_store(f"sqlite:///{file}")) as store:
        post(store, "s-1")
        yield store


def replace_file(file: Path) -> None:
    copy = file.with_suffix(".copy")
    shutil.copy(file, copy)
    copy.replace(file)


LOSSES: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "replaced": replace_file,
    "log removed": lambda file: Path.unlink(Path(f"{file}-wal")),
    "log's index removed": lambda file: Path.unlink(Path(f"{file}-shm")),
    "folder removed": lambda file: shutil.rmtree(file.parent),
    "folder moved": lambda file: file.parent.rename(file.parent.with_name("elsewhere")),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_file_that_is_gone_takes_nothing(file: Path, opened: Store, loss: str) -> None:
    """SQLite would write on into what has no name any more: each call says that the file was
    removed or replaced, and what to do; no new file is made in its place."""
    LOSSES[loss](file)
    before = [*file.parent.glob("*")]
    calls: list[Callable[[], object]] = [
        lambda: post(opened, "s-2"),
        opened.ping,
        lambda: opened.in_project("another").get_session("s-1"),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match=f"{file}.*was removed or replaced.*start them"):
            call()
    assert [*file.parent.glob("*")] == before


def test_a_file_that_is_gone_in_mid_write_keeps_nothing(file: Path, opened: Store) -> None:
    """Removed between the first look and the commit, it is noticed before the answer."""

    def remove(connection: object) -> None:
        file.unlink(missing_ok=True)

    with listening("begin", remove), pytest.raises(StoreUnavailable, match="was removed"):
        post(opened, "s-2")


def test_a_file_that_was_put_back_is_used_on(file: Path, opened: Store) -> None:
    """Moved away and back, with what belongs to it, nothing is lost."""
    away = file.parent.with_name("away")
    file.parent.rename(away)
    with pytest.raises(StoreUnavailable):
        post(opened, "s-2")
    away.rename(file.parent)
    post(opened, "s-2")
    opened.ping()
    assert opened.get_session("s-1").number == 1
    assert opened.get_session("s-2").number == 2


def test_a_small_write_does_not_hide_that_large_ones_are_refused(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full database may still have room for a ping's; the store counts as one that takes no
    writes until one of another kind goes well, or none was refused for a while."""
    limit: Any = opened

    def limit_pages(connection: Any) -> None:
        (pages,) = connection.exec_driver_sql("PRAGMA page_count").one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    with listening("begin", limit_pages), pytest.raises(StoreUnavailable, match="full"):
        post(opened, "s-2", search_query="long " * 100_000)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="full"):
            opened.ping()
    monkeypatch.setattr("embedding_studio.store.sqlite_file.REFUSED_SECONDS", 0.0)
    opened.ping()
    monkeypatch.undo()
    with pytest.raises(StoreUnavailable, match="full"):
        opened.ping()
    limit._engine.dispose()  # the limit was its connections'
    post(opened, "s-3")
    opened.ping()
