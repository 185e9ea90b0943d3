"""What SQLite's documents promise besides: one file, and nothing that is answered is lost."""

import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import pytest

from embedding_studio.errors import InvalidInput, StoreUnavailable
from embedding_studio.store import sqlite_file
from embedding_studio.store.documents import Entry, Kind, above, absent, among
from embedding_studio.store.sqlite import SqliteDocuments
from embedding_studio.store.sqlite_file import SqliteFile

THINGS = Kind("things", unique=(("group", "number"),), indexes=(("state", "at", "id"),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is to be."""
    return tmp_path / "data" / "store.db"


@pytest.fixture
def documents(path: Path) -> Iterator[SqliteDocuments]:
    """Documents in that file, one of them there."""
    with closing(SqliteDocuments(f"sqlite:///{path}")) as documents:
        documents.insert(THINGS, [{"id": "first"}])
        yield documents


def replace_file(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    copy.replace(path)


LOSSES: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "replaced": replace_file,
    "log removed": lambda path: Path.unlink(Path(f"{path}-wal")),
    "log's index removed": lambda path: Path.unlink(Path(f"{path}-shm")),
    "folder removed": lambda path: shutil.rmtree(path.parent),
    "folder moved": lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_file_that_is_gone_takes_nothing(
    path: Path, documents: SqliteDocuments, loss: str
) -> None:
    """SQLite would write on into what has no name any more: each call says that the file was
    removed or replaced, and what to do; no new file is made in its place."""
    LOSSES[loss](path)
    before = [*path.parent.glob("*")]
    one = {"id": "second"}
    calls: list[Callable[[], object]] = [
        lambda: documents.insert(THINGS, [one]),
        lambda: documents.find(THINGS, {}),
        lambda: documents.change(THINGS, {"id": "first"}, set=one),
        lambda: documents.change_all(THINGS, {}, {"n": 1}),
        lambda: documents.logs(THINGS, ["first"]),
        lambda: documents.count(THINGS, {}),
        lambda: documents.delete(THINGS, {}),
        documents.ping,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match=f"{path}.*was removed or replaced.*start them"):
            call()
    assert [*path.parent.glob("*")] == before


def test_a_file_that_is_gone_in_mid_write_keeps_nothing(
    path: Path, documents: SqliteDocuments
) -> None:
    """Removed between the first look and the commit, it is noticed before the answer."""
    with pytest.raises(StoreUnavailable, match="was removed"):
        documents.file.write(lambda connection: path.unlink())


def test_a_file_that_was_put_back_is_used_on(path: Path, documents: SqliteDocuments) -> None:
    """Moved away and back, with what belongs to it, nothing is lost."""
    away = path.parent.with_name("away")
    path.parent.rename(away)
    with pytest.raises(StoreUnavailable):
        documents.insert(THINGS, [{"id": "second"}])
    away.rename(path.parent)
    documents.insert(THINGS, [{"id": "second"}])
    documents.ping()
    assert documents.count(THINGS, {}) == 2


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    """With the file's name; it stays as it was."""
    path = tmp_path / "broken.db"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreUnavailable, match=f"{path} does not answer"):
        SqliteDocuments(f"sqlite:///{path}")
    assert path.read_bytes() == b"this is not a database" * 100


def test_a_refusal_is_remembered_by_pings(
    documents: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full database may still have room for a ping's; it counts as one that takes no writes until
    one of another kind goes well, or none was refused for a while. Reading goes on."""
    connect = SqliteFile._connect
    limits = [1]

    def limited(file: SqliteFile) -> sqlite3.Connection:
        connection = connect(file)
        if limits:
            ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
            connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        return connection

    monkeypatch.setattr(SqliteFile, "_connect", limited)
    documents.file._idle.clear()
    with pytest.raises(StoreUnavailable, match="full"):
        documents.insert(THINGS, [{"id": "large", "text": secrets.token_hex(200_000)}])
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="full"):
            documents.ping()
    with monkeypatch.context() as later:
        later.setattr(sqlite_file, "REFUSED_SECONDS", 0.0)
        documents.ping()
    with pytest.raises(StoreUnavailable, match="full"):
        documents.ping()
    assert documents.count(THINGS, {}) == 1
    limits.clear()
    documents.file._idle.clear()
    documents.insert(THINGS, [{"id": "small"}])
    documents.ping()


def test_a_locked_file_is_waited_for_and_then_refused(
    path: Path, documents: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may hold the write lock for a while; all who wait here are told at once, and
    reading goes on."""
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.05)
    documents.file._idle.clear()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(4) as pool:
            waiting = [
                pool.submit(documents.insert, THINGS, [{"id": str(number)}]) for number in range(4)
            ]
            for future in waiting:
                with pytest.raises(StoreUnavailable, match="locked"):
                    future.result(10)
        assert documents.count(THINGS, {}) == 1
        other.execute("ROLLBACK")
    assert documents.insert(THINGS, [{"id": "1"}]) == [True]


class Commits:
    """Counts transactions, and holds the first one up until others wait for their turn."""

    def __init__(self, file: SqliteFile) -> None:
        self.sizes: list[int] = []
        self._file = file
        self._commit = file._commit

    def hold(self, waiting: int) -> Callable[..., Any]:
        is_first = Event()

        def commit(works: Any) -> Any:
            self.sizes.append(len(works))
            if not is_first.is_set():
                is_first.set()
                deadline = Event()
                while len(self._file._waiting) < waiting:
                    assert not deadline.wait(0.001)
            return self._commit(works)

        return commit


def test_writers_that_wait_share_a_transaction(
    documents: SqliteDocuments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine at once need two: the first one's, and one for all who came meanwhile. Each gets its own
    answer, also one that cannot be done, which costs no other anything."""
    commits = Commits(documents.file)
    monkeypatch.setattr(documents.file, "_commit", commits.hold(8))
    barrier = Barrier(9)

    def write(number: int) -> Any:
        barrier.wait(30)
        return documents.change(THINGS, {"id": "first"}, add={"n": 1}, append=[Entry("k", number)])

    with ThreadPoolExecutor(9) as pool:
        changes = list(pool.map(write, range(9)))
    assert commits.sizes == [1, 8]
    assert sorted(change.document["n"] for change in changes) == list(range(1, 10))
    assert sum(change.appended for change in changes) == 1

    commits = Commits(documents.file)
    monkeypatch.setattr(documents.file, "_commit", commits.hold(8))

    def write_oddly(number: int) -> Any:
        barrier.wait(30)
        where = {"id": "\ud800"} if number == 4 else {"id": "first"}
        try:
            return documents.change(THINGS, where, add={"n": 1})
        except InvalidInput as error:
            return error

    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(write_oddly, range(9)))
    assert [isinstance(answer, InvalidInput) for answer in answers].count(True) == 1
    (found,) = documents.find(THINGS, {"id": "first"})
    assert found["n"] == 9 + 8


def test_what_is_written_is_durable(documents: SqliteDocuments, path: Path) -> None:
    """Each connection waits until the disk has it, and readers do not wait for writers."""
    pragmas = ("journal_mode", "synchronous")
    values = [documents.file.read(f"PRAGMA {pragma}", []) for pragma in pragmas]
    assert values == [[("wal",)], [(2,)]]  # 2: FULL
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert documents.count(THINGS, {}) == 1


LOOKUPS: list[dict[str, Any]] = [
    {"id": "a"},
    {"id": among(["a", "b"])},
    {"group": "g", "number": 1},
    {"state": "x"},
    {"state": "x", "at": above(3)},
    {"state": absent},
    {"state": among(["x", "y"])},
]


@pytest.mark.parametrize("where", LOOKUPS, ids=str)
def test_what_has_an_index_is_found_by_it(documents: SqliteDocuments, where: Any) -> None:
    """No call that goes by an id, a unique group or an index looks at every document."""
    queries: list[str] = []
    read = documents.file.read

    def explain(query: str, values: Any) -> Any:
        queries.extend(str(row) for row in read(f"EXPLAIN QUERY PLAN {query}", values))
        return read(query, values)

    documents.file.read = explain  # type: ignore[method-assign]
    documents.find(THINGS, where)
    documents.count(THINGS, where)
    documents.find(THINGS, {"state": "x"}, sort=["at", "id"], limit=5)
    assert any("USING" in query for query in queries)
    plans = [query for query in queries if "json_each" not in query]
    assert not [query for query in plans if "SCAN" in query or "TEMP B-TREE" in query]


def test_work_done_together_is_kept_as_a_whole(documents: SqliteDocuments) -> None:
    """Where it raises, nothing that it did is: not the table of a kind that is new either."""
    new = Kind("new")

    def work(error: Exception | None) -> None:
        documents.insert(THINGS, [{"id": "second"}])
        documents.insert(new, [{"id": "one"}])
        if error:
            raise error

    with pytest.raises(KeyError):
        documents.together(lambda: work(KeyError("in the middle")))
    assert documents.count(THINGS, {}) == 1
    documents.together(lambda: work(None))
    assert (documents.count(THINGS, {}), documents.count(new, {})) == (2, 1)


def test_of_work_done_together_a_refused_call_is_undone_alone(documents: SqliteDocuments) -> None:
    """The calls before and after it are kept."""

    def work() -> None:
        documents.insert(THINGS, [{"id": "a", "n": 1}])
        half = Entry("\ud800", "half a character")
        with pytest.raises(InvalidInput):
            documents.change(THINGS, {"id": "first"}, set={"n": 2}, append=[half])
        documents.insert(THINGS, [{"id": "b", "n": 3}])

    documents.together(work)
    found = documents.find(THINGS, {}, sort=("id",))
    assert found == [{"id": "a", "n": 1}, {"id": "b", "n": 3}, {"id": "first"}]
