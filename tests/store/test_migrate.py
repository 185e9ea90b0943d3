"""A database that 0.1 wrote is brought along whole."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mongomock
import pytest
from bson import json_util

from embedding_studio.errors import ConfigurationError
from embedding_studio.store.documents import Kind
from embedding_studio.store.migrate import Former
from embedding_studio.store.mongo_documents import MongoDocuments
from embedding_studio.store.mongo_former import MongoFormer
from embedding_studio.store.sqlite_documents import SqliteDocuments
from embedding_studio.store.sqlite_former import SqliteFormer

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
    client: Any = mongomock.MongoClient()
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
