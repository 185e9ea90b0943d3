"""The command that brings along what version 0.1 kept, and what is served afterwards."""

import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymongo
import pytest
from bson import json_util
from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.cli.app import main
from embedding_studio.errors import ConfigurationError
from embedding_studio.keys import Scope, make_key
from embedding_studio.settings import Settings
from embedding_studio.store import open_documents, open_store

FORMER = Path(__file__).parent.parent / "store"
KILLED = """
import os, sys
from embedding_studio.store.documents import Documents
from embedding_studio.store.mongo import MongoDocuments
from embedding_studio.store.sqlite import SqliteDocuments
from embedding_studio.cli.app import main

left = int(sys.argv.pop())
for kind in (MongoDocuments, SqliteDocuments):
    def insert(self, *what, insert=kind.insert):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), 9)
        return insert(self, *what)
    kind.insert = insert
main()
"""


@pytest.fixture(params=["sqlite", "mongodb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database as 0.1 left it."""
    if request.param == "sqlite":
        with closing(sqlite3.connect(tmp_path / "store.db")) as database:
            database.executescript((FORMER / "former_sqlite.sql").read_text(encoding="utf-8"))
        yield f"sqlite:///{tmp_path / 'store.db'}"
        return
    server: str = request.getfixturevalue("secantus_url")
    name = f"test_{secrets.token_hex(6)}"
    written = json_util.loads((FORMER / "former_mongo.json").read_text(encoding="utf-8"))
    with pymongo.MongoClient[dict[str, Any]](server) as client:
        for collection, documents in written.items():
            client[name][collection].insert_many(documents)
        yield f"{server}/{name}"
        client.drop_database(name)


@pytest.fixture
def migrate(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command; return what it prints."""
    monkeypatch.setenv("ES_STORE_URL", url)
    monkeypatch.setattr(sys, "argv", ["embedding-studio", "migrate"])

    def run() -> str:
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_it_is_refused_then_brought_along_and_served(
    url: str, migrate: Callable[[], str], tmp_path: Path
) -> None:
    """Nothing opens it before; afterwards all that it held is served, and there is nothing to do,
    also if the command was killed in the middle at first."""
    with pytest.raises(ConfigurationError, match="embedding-studio migrate"):
        open_store(url)
    for insertion in (3, 9, 15):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, "migrate", str(insertion)],
            env={**os.environ, "ES_STORE_URL": url},
            check=False,
        )
        assert killed.returncode == -9
        with pytest.raises(ConfigurationError, match="embedding-studio migrate"):
            open_documents(url)
    assert migrate() == (
        "brought along: 2 keys, 1 schedules, 1 models, 4 tasks, 3 batches, 8 sessions\n"
    )
    assert migrate().startswith("nothing to do")
    check_served(url, tmp_path)


def check_served(url: str, folder: Path) -> None:
    store = open_store(url)
    assert [key.name for key in store.keys.all()] == ["ann", "bob"]
    key, shown = make_key("test", [Scope.READ], "default", datetime.now(UTC))
    store.keys.add(key)
    with TestClient(
        create_app(store, Settings(data_folder=folder)), base_url="http://localhost"
    ) as client:
        headers = {"Authorization": f"Bearer {shown}"}

        def get(path: str, **query: Any) -> Any:
            answer = client.get(f"/api/v1{path}", params=query, headers=headers)
            assert answer.status_code == 200, answer.text
            return answer.json()

        tasks = get("/fine-tuning/task")
        assert [task["status"] for task in tasks] == ["pending", "processing", "done"]
        done = tasks[-1]
        assert done["promotion"]["promoted"]
        released = get("/clickstream/internal/batch", batch_id=done["batch_id"])
        assert (released["status"], released["session_count"]) == ("released", 3)
        collecting = get("/clickstream/internal/batch")
        assert (collecting["status"], collecting["session_count"]) == ("collecting", 4)
        numbers = {
            session["session_id"]: session["session_number"]
            for batch in (released, collecting)
            for session in get("/clickstream/internal/batch/sessions", batch_id=batch["batch_id"])[
                "sessions"
            ]
        }
        assert numbers == {
            "s-1": 1, "s-2": 2, "s-3": 3, "p:odd": 1, "s-4": 2, "s-5": 3, "s-6": 4,
        }  # fmt: skip
        events = get("/clickstream/session", session_id="s-1")["events"]
        assert [event["event_id"] for event in events] == ["e-1", "e-2", "e-3"]
        assert get("/models/m")["champion"] == 2
    acme = store.in_project("acme")
    assert [task.status for task in acme.tasks.page()] == ["canceled"]
    assert [schedule.id for schedule in acme.schedules.all()] == ["s-1"]
    store.close()
