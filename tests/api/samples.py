"""What the tests of the HTTP edge are made of: a clock that stands still, and small documents."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from embedding_studio.store import Store
from embedding_studio.tasks import Claim, FineTuningTask, ModelFile, StoredModel
from embedding_studio.workers import WorkerRecord

METHOD = "Default Fine Tuning Method"
START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@dataclass
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now


def session_json(session_id: str = "s-1", **more: Any) -> dict[str, Any]:
    return {
        "session_id": session_id,
        "search_query": "red shoes",
        "search_results": [
            {"object_id": "shoe-1", "rank": 0.9, "meta": {"text": "Runner, red"}},
            {"object_id": "shoe-2"},
        ],
        **more,
    }


def event_json(event_id: str = "e-1", **more: Any) -> dict[str, Any]:
    return {"event_id": event_id, "object_id": "shoe-1", **more}


def record_worker(
    store: Store, *methods: str, seen_at: datetime = START, name: str = "worker-1", **more: Any
) -> None:
    store.workers.record(WorkerRecord(name, methods or (METHOD,), seen_at, **more))


def claim(store: Store, now: datetime = START) -> Claim:
    """Take the one task that waits, as a worker would."""
    task = store.tasks.claim("worker-1", now, lease_seconds=60)
    assert task is not None
    return Claim(task.id, task.attempt, "worker-1")


def write_model(folder: Path) -> tuple[ModelFile, ...]:
    """Write a small model's files, one of them in a subfolder, and describe them."""
    contents = {
        "config.json": b'{"a": 1}',
        "1_Pooling/config.json": b"{}",
        "model.safetensors": bytes(range(256)) * 4096,
    }
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return tuple(
        ModelFile(path, len(content), hashlib.sha256(content).hexdigest())
        for path, content in contents.items()
    )


def finish_with_model(store: Store, artifact_uri: str, files: tuple[ModelFile, ...]) -> None:
    """Give the one waiting task a model and end it."""
    owner = claim(store)
    later = START + timedelta(seconds=1)
    store.tasks.record(
        owner, later, experiment_id="7", best_model=StoredModel("run-1", artifact_uri, files)
    )


def only_task(store: Store) -> FineTuningTask:
    (task,) = store.tasks.page()
    return task
