"""The contract of every store: how it is opened, and what is there when it is opened again."""

from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from embedding_studio.errors import ConfigurationError, StoreUnavailable
from embedding_studio.store import open_store
from embedding_studio.tasks import Claim, ModelFile, StoredModel, TaskRequest, TaskStatus
from embedding_studio.workers import WorkerRecord
from tests.contracts import store_processes
from tests.contracts.store_backends import BACKENDS, MONGO_VARIABLE, Backend
from tests.contracts.store_processes import NOW, batch_of, make_session, read_all, results_of

MODEL = StoredModel("run-1", "mlflow-artifacts:/1/model", (ModelFile("a/b.bin", 3, "ab" * 32),))


@pytest.mark.skipif("mongodb" in BACKENDS, reason=f"{MONGO_VARIABLE} is set")
def test_a_mongodb_server_holds_the_contract_too() -> None:
    """Says in the report that no real MongoDB took part; with one named, every test runs on it."""
    pytest.skip(f"no MongoDB server: name one in {MONGO_VARIABLE}")


def test_everything_is_there_after_reopening(backend: Backend) -> None:
    """A store opened anew on the same database finds what the former one was told."""
    first = backend.open()
    first.clickstream.register([make_session("s-1"), make_session("s-2")], NOW)
    first.clickstream.mark_irrelevant("s-2")
    released = first.clickstream.release("r", NOW)
    first.clickstream.register([make_session("s-3")], NOW)
    first.tasks.add(TaskRequest("m"), NOW)
    task = first.tasks.claim("w", NOW, 60)
    assert task is not None
    claim = Claim(task.id, task.attempt, "w")
    first.tasks.record(claim, NOW, best_model=MODEL)
    first.workers.record(WorkerRecord("w", ("m",), NOW))
    members, task = read_all(first, released.batch_id), first.tasks.get(task.id)
    first.close()
    second = backend.open()
    assert read_all(second, released.batch_id) == members
    assert second.clickstream.release("r", NOW) == released
    assert [one.number for one in read_all(second, batch_of(second, "s-3"))] == [1]
    assert second.tasks.get(task.id) == task
    assert second.workers.seen(NOW - timedelta(seconds=1)) == [WorkerRecord("w", ("m",), NOW)]
    second.tasks.finish(claim, NOW, TaskStatus.DONE)
    second.close()


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", "mongodb://host:notaport/db", "redis://host"],
)
def test_a_url_that_cannot_work_is_a_configuration_error(url: str) -> None:
    """A URL of another kind, without a file or malformed raises ConfigurationError."""
    with pytest.raises(ConfigurationError, match="ES_STORE_URL"):
        open_store(url)


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    """An SQLite path below a file raises ConfigurationError."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be created"):
        open_store(f"sqlite:///{tmp_path / 'file' / 'folder' / 'store.db'}")


def test_processes_may_open_a_new_database_at_once(
    shared: Backend, processes: ProcessPoolExecutor
) -> None:
    """Opening creates what is missing, whoever else is creating it."""
    opened = [processes.submit(store_processes.open_first, shared.url) for _ in range(3)]
    assert results_of(opened) == [True] * 3


@pytest.mark.parametrize("kind", ["sqlite", "mongodb"])
def test_a_database_that_does_not_answer_is_unavailable(kind: str, tmp_path: Path) -> None:
    """Opening such a database raises StoreUnavailable."""
    (tmp_path / "broken.db").write_bytes(b"this is not a database" * 100)
    urls = {
        "sqlite": f"sqlite:///{tmp_path / 'broken.db'}",
        "mongodb": "mongodb://127.0.0.1:1/nothing?serverSelectionTimeoutMS=100",
    }
    with pytest.raises(StoreUnavailable):
        open_store(urls[kind])
