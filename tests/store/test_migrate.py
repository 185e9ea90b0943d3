"""A database that 0.1 wrote is brought along whole."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import mongomock
import mongomock.collection
import pytest
from bson import json_util

from embedding_studio.clickstream import Session
from embedding_studio.errors import ConfigurationError, StoreUnavailable
from embedding_studio.store.clickstream import Clickstream
from embedding_studio.store.documents import Documents, Kind
from embedding_studio.store.keys import Keys
from embedding_studio.store.memory import MemoryDocuments
from embedding_studio.store.migrate import Former, bring_along
from embedding_studio.store.models import Models
from embedding_studio.store.mongo import MongoDocuments
from embedding_studio.store.mongo_former import MongoFormer
from embedding_studio.store.schedules import Schedules
from embedding_studio.store.sqlite import SqliteDocuments
from embedding_studio.store.sqlite_former import SqliteFormer
from embedding_studio.store.tasks import Tasks

HERE = Path(__file__).parent
MONGO_URL = "mongodb://nowhere/former"


@pytest.fixture(params=["mongodb", "sqlite"])
def former(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Former]:
    """What 0.1 wrote, in each database's form."""
    if request.param == "sqlite":
        write_former_file(tmp_path / "store.db")
        with closing(
            SqliteDocuments(f"sqlite:///{tmp_path / 'store.db'}", is_migrating=True)
        ) as sqlite:
            yield SqliteFormer(sqlite.file)
        return
    client: Any = mongomock.MongoClient(tz_aware=True)
    written = json_util.loads((HERE / "former_mongo.json").read_text(encoding="utf-8"))
    for name, documents in written.items():
        client["former"][name].insert_many(documents)
    with closing(MongoDocuments(MONGO_URL, client, is_migrating=True)) as documents:
        yield MongoFormer(documents.database)


def write_former_file(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.executescript((HERE / "former_sqlite.sql").read_text(encoding="utf-8"))


def test_a_former_file_is_refused_until_it_was_brought_along(tmp_path: Path) -> None:
    """It is no empty one and is not changed; once what was in it is retired it is opened."""
    file = tmp_path / "store.db"
    write_former_file(file)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="embedding-studio migrate"):
            SqliteDocuments(f"sqlite:///{file}")
    other = Kind("tasks")
    with closing(SqliteDocuments(f"sqlite:///{file}", is_migrating=True)) as documents:
        assert documents.file.is_former
        documents.insert_one(other, {"id": "brought"})
        former = SqliteFormer(documents.file)
        assert len(list(former.tasks())) == 4
        former.retire()
    with closing(SqliteDocuments(f"sqlite:///{file}")) as documents:
        assert documents.find(other, {}) == [{"id": "brought"}]
    with closing(sqlite3.connect(file)) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    assert {"tasks", "sessions", "events"}.isdisjoint(names)


def test_all_that_0_1_wrote_is_read(former: Former) -> None:
    """Tasks with their histories, sessions with their events in order, whatever their project."""
    tasks = list(former.tasks())
    assert [(one.task.project, one.task.status) for one in tasks] == [
        ("default", "done"), ("default", "processing"), ("default", "pending"),
        ("acme", "canceled"),
    ]  # fmt: skip
    assert tasks[0].request.metadata == {"a.b": {"$c": [1, None]}}
    assert [event.kind for event in tasks[3].events] == ["created", "canceled"]
    sessions = {
        (one.project, str(one.batch.status)): list(former.sessions(one.batch.batch_id))
        for one in former.batches()
    }
    ids = {where: [session.session_id for session in held] for where, held in sessions.items()}
    assert ids == {
        ("default", "released"): ["s-1", "s-2", "s-3"],
        ("default", "collecting"): ["p:odd", "s-4", "s-5", "s-6"],
        ("acme", "collecting"): ["s-1"],
    }
    first, second, _ = sessions["default", "released"]
    assert [event.event_id for event in first.events] == ["e-1", "e-2", "e-3"]
    assert second.is_irrelevant
    early = [(one.project, one.event and one.event.event_id) for one in former.early()]
    assert early == [("default", "e-1"), ("default", "e-2"), ("default", None), ("acme", "e-1")]
    assert {one.expires_at.year for one in former.early()} == {2125}
    assert [key.name for key in former.api_keys()] == ["ann", "bob"]
    assert [schedule.project for schedule in former.schedules()] == ["acme"]
    assert [model.champion for model in former.models()] == [2]


class Interrupted(MemoryDocuments):
    """A database whose n-th insertion is the last thing that happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.left = -1

    def insert(self, kind: Kind, documents: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise StoreUnavailable("killed")
        return super().insert(kind, documents)


@pytest.mark.parametrize("nth", range(28))
def test_all_that_0_1_kept_is_brought_along(
    former: Former, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """Wherever it is interrupted, repeating it completes it: ids, members and numbers of batches,
    histories and usage are as they were."""
    documents = Interrupted()
    monkeypatch.setattr(former, "retire", lambda: None)
    if nth:
        documents.left = nth
        with pytest.raises(StoreUnavailable):
            bring_along(former, documents)
    copied = bring_along(former, documents)
    assert copied == {
        "keys": 2, "schedules": 1, "models": 1, "tasks": 4, "batches": 3, "sessions": 8,
    }  # fmt: skip
    check_whole(former, documents)


def check_whole(former: Former, documents: Documents) -> None:
    tasks = Tasks(documents, "default")
    first, *_ = [one.task for one in former.tasks()]
    assert tasks.get(first.id) == first
    assert [event.event.kind for event in tasks.events(first.id)][-1] == "done"
    for one in former.batches():
        clickstream = Clickstream(documents, one.project)
        numbered = clickstream.read(one.batch.batch_id, 0, 100)
        assert [session.session for session in numbered] == [*former.sessions(one.batch.batch_id)]
        assert [session.number for session in numbered] == [*range(1, len(numbered) + 1)]
        kept = clickstream.get_batch(one.batch.batch_id)
        assert (kept.status, kept.release_id) == (one.batch.status, one.batch.release_id)
        assert (kept.created_at, kept.since) == (one.batch.created_at, one.batch.since)
        assert (kept.released_at, kept.counts) == (one.batch.released_at, one.batch.counts)
    default = Clickstream(documents, "default")
    collecting = default.collecting_batch()
    assert collecting is not None
    assert default.count_clicked(collecting.batch_id, {"click"}) == 1
    assert default.count_early(first.created_at) == 3
    assert {name: usage.sessions for name, usage in default.usage().items()} == {
        "default": 7, "acme": 1,
    }  # fmt: skip
    assert Keys(documents).all() == [*former.api_keys()]
    assert Schedules(documents, "acme").all() == [*former.schedules()]
    assert Models(documents, "default").all() == [*former.models()]


def test_batches_from_before_are_older(former: Former, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their ids are, they are deleted before those that are released later."""
    documents = MemoryDocuments()
    monkeypatch.setattr(former, "retire", lambda: None)
    bring_along(former, documents)
    default = Clickstream(documents, "default")
    now = datetime.now(UTC)
    default.release("r-2", now)
    default.register([Session("new", "", (), now)], now)
    latest = default.release("r-3", now + timedelta(seconds=1))
    assert len(default.delete_older(1)) == 2
    assert default.get_batch(latest.batch_id) == latest


def test_one_that_dies_while_it_puts_away_leaves_nothing_to_do(
    former: Former, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first collection of MongoDB on that is out of the way, none of it is copied again:
    the rest might be gone already."""
    if not isinstance(former, MongoFormer):
        pytest.skip("in SQLite it is one transaction")
    database = former._database
    documents = MongoDocuments(MONGO_URL, database.client, is_migrating=True)
    assert documents.is_former
    with monkeypatch.context() as patch:
        patch.setattr(mongomock.collection.Collection, "rename", interrupted_after(1))
        with pytest.raises(StoreUnavailable):
            former.retire()
    assert not documents.is_former


def interrupted_after(calls: int) -> Any:
    rename: Any = mongomock.collection.Collection.rename
    left = calls

    def wrapped(self: Any, *what: Any, **how: Any) -> Any:
        nonlocal left
        if not left:
            raise StoreUnavailable("killed")
        left -= 1
        return rename(self, *what, **how)

    return wrapped
