"""Projects all the way to MLflow: each has its own line of models."""

from typing import Any

import pytest

from embedding_studio.clickstream import BatchStatus
from embedding_studio.clock import utc_now
from embedding_studio.projects import DEFAULT_PROJECT
from embedding_studio.store.clickstream import Clickstream
from embedding_studio.tasks import FineTuningTask, TaskRequest, TaskStatus
from tests.iterations import TOY, Bench, make_session


def run_task(bench: Bench, project: str, start: int) -> FineTuningTask:
    """Post sessions and a task in a project, work, and return the task as its project sees it."""
    store = bench.house.store.in_project(project)
    store.clickstream.register([make_session(n) for n in range(start, start + 60)], utc_now())
    task, _ = store.tasks.add(TaskRequest("Toy"), utc_now())
    assert bench.worker.work_once()
    return store.tasks.get(task.id)


@pytest.mark.parametrize(("project", "name"), [("default", "Toy"), ("acme", "Toy (acme)")])
def test_a_registered_name_is_a_projects_and_a_methods(project: str, name: str) -> None:
    """In `default` it bears the method's bare name, so that older champions stay."""
    now = utc_now()
    task = FineTuningTask(
        "Toy", id="1", status=TaskStatus.PENDING, created_at=now, updated_at=now, project=project
    )
    assert task.registered_name == name


def test_projects_have_champions_of_their_own(bench: Bench) -> None:
    """Two projects with sessions of the same ids train from their own batches, to champions of
    their own; neither's iteration is an older one of the other's, which would be removed."""
    tasks = {project: run_task(bench, project, 0) for project in (DEFAULT_PROJECT, "acme")}
    champions = {}
    for project, task in tasks.items():
        assert task.error is None
        assert task.status is TaskStatus.DONE
        assert task.promotion is not None
        assert task.promotion.promoted
        assert task.batch_id is not None
        batch = bench.house.store.in_project(project).clickstream.get_batch(task.batch_id)
        assert (batch.status, batch.session_count) == (BatchStatus.RELEASED, 60)
        champion = bench.house.tracking.registry.champion(task.registered_name)
        assert champion is not None
        assert champion == task.best_model
        champions[project] = champion.run_id
    assert len(set(champions.values())) == 2
    tags = {one.experiment_id: one.tags for one in bench.experiments()}
    assert {tags[str(task.experiment_id)]["es.project"] for task in tasks.values()} == set(tasks)

    again = run_task(bench, "acme", 100)
    assert again.status is TaskStatus.DONE
    stays = bench.house.tracking.registry.champion(TOY)
    assert stays is not None
    assert stays.run_id == champions[DEFAULT_PROJECT]


def test_a_canceled_task_of_a_project_is_cleaned_up(bench: Bench) -> None:
    """The worker finds out that the task was canceled, in whatever project, and lets go of it."""
    store = bench.house.store.in_project("acme")
    store.clickstream.register([make_session(n) for n in range(60)], utc_now())
    task, _ = store.tasks.add(TaskRequest("Toy"), utc_now())
    release = Clickstream.release

    def cancel_first(*asked: Any, **more: Any) -> object:
        store.tasks.cancel(task.id, utc_now())
        return release(*asked, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clickstream, "release", cancel_first)
        assert bench.worker.work_once()
    ended = store.tasks.get(task.id)
    assert (ended.status, ended.worker_id) == (TaskStatus.CANCELED, None)
