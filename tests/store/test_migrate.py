"""A database that 0.1 wrote is brought along whole."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mongomock
import pytest
from bson import json_util

from embedding_studio.store.migrate import Former
from embedding_studio.store.mongo_documents import MongoDocuments
from embedding_studio.store.mongo_former import MongoFormer

HERE = Path(__file__).parent
MONGO_URL = "mongodb://nowhere/former"


@pytest.fixture
def former() -> Iterator[Former]:
    """What 0.1 wrote, in each database's form."""
    client: Any = mongomock.MongoClient()
    written = json_util.loads((HERE / "former_mongo.json").read_text(encoding="utf-8"))
    for name, documents in written.items():
        client["former"][name].insert_many(documents)
    with closing(MongoDocuments(MONGO_URL, client, is_migrating=True)) as documents:
        yield MongoFormer(documents.database)


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
    assert [key.name for key in former.api_keys()] == ["ann", "bob"]
    assert [schedule.project for schedule in former.schedules()] == ["acme"]
    assert [model.champion for model in former.models()] == [2]
