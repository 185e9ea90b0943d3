"""A task has one active owner."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from embedding_studio.store import open_store
from embedding_studio.tasks import TaskEventKind, TaskRequest, TaskStatus
from tests.faults.claimants import EFFECTS, now, work_until_all_is_done
from tests.faults.harness import check_history, events_of

pytestmark = pytest.mark.slow

PROCESSES = 8


@pytest.mark.parametrize(
    ("kind", "tasks"),
    [("sqlite", 40), pytest.param("secantus", 200, marks=pytest.mark.faults)],
)
def test_each_effect_of_each_task_happens_once(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, tasks: int
) -> None:
    """Eight processes on one database claim, work and finish; some sleep past their leases: each
    effect of each task is there once, and each history tells of one owner at a time."""
    url = (
        f"sqlite:///{tmp_path / 'store.db'}"
        if kind == "sqlite"
        else f"{request.getfixturevalue('secantus_url')}/owners"
    )
    store = open_store(url)
    for _ in range(tasks):
        store.tasks.add(TaskRequest("m"), now())
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        names = [f"worker-{number}" for number in range(PROCESSES)]
        done = list(pool.map(work_until_all_is_done, [url] * PROCESSES, names))
    assert sum(finished for finished, _ in done) == tasks
    for task in store.tasks.page(limit=1000):
        assert task.status is TaskStatus.DONE
        events = events_of(store, task)
        check_history(task, events)
        effects = [event for event in events if event.kind is TaskEventKind.TRIAL_FINISHED]
        assert [event.data["trial"] for event in effects] == list(range(EFFECTS))
    assert sum(lost for _, lost in done) > 0
    store.close()
