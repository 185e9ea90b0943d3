"""What crashes leave is found and removed; champions and live iterations are not touched."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from embedding_studio.clock import utc_now
from embedding_studio.errands.sweep import sweep
from embedding_studio.errors import LeaseLost
from embedding_studio.projects import RegisteredName
from embedding_studio.tasks import FineTuningTask, TaskStatus
from embedding_studio.tracking.iterations import Iterations
from embedding_studio.tracking.models import Models
from embedding_studio.tracking.runs import Runs
from tests.iterations import TOY, Bench

pytestmark = pytest.mark.slow


def swept(bench: Bench, dry_run: bool = False) -> list[str]:
    house = bench.house
    return sweep(house.store, house.tracking, house.settings, house.clock(), dry_run)


def everything(bench: Bench) -> dict[str, str]:
    """Return all there is: files by path, runs and experiments by id with their states."""
    settings = bench.house.settings
    files = [path for path in settings.artifacts_folder.rglob("*") if path.is_file()]
    found = {str(path): str(path.stat().st_size) for path in files}
    for experiment in bench.experiments():
        found[experiment.experiment_id] = experiment.tags["es.state"]
        for run in bench.mlflow.search_runs([experiment.experiment_id]):
            found[run.info.run_id] = f"{run.info.status} {run.data.tags.get('es.model')}"
    return found


def die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt  # no handler of ours catches it: like a killed worker


@pytest.mark.quick
def test_a_finished_house_has_nothing_to_sweep(bench: Bench) -> None:
    """After a promoted and a refused iteration nothing is found, and nothing changes."""
    bench.run_task()
    bench.run_task("Worse", start=60)
    before = everything(bench)
    assert swept(bench) == []
    assert everything(bench) == before


def test_an_iteration_that_another_worker_removes_meanwhile_is_passed_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow reads experiments and then their tags: one that was removed between the two has none,
    and no search of ours finds it."""
    bench.run_task()
    bench.run_task("Worse", start=60)
    (first, *_), tracking = bench.experiments(), bench.house.tracking
    search = tracking.client.reading.search_experiments

    def search_late(**options: Any) -> Any:
        page = search(**options)
        for experiment in page:
            if experiment.experiment_id == first.experiment_id:
                experiment._tags = {}
        return page

    monkeypatch.setattr(tracking.client.reading, "search_experiments", search_late)
    assert first.tags["es.kind"] == "iteration"
    found = [one.experiment_id for one in tracking.iterations.with_models()]
    assert first.experiment_id not in found
    name = RegisteredName(first.tags["es.method"])
    tracking.iterations.remove_older(name, first.experiment_id)
    assert tracking.iterations.previous_search(name, first.experiment_id) is None


def test_a_live_iteration_is_not_touched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither that of a task at work nor that of one whose worker died and whose turn will come."""
    bench.post_sessions()
    task = bench.post_task()
    monkeypatch.setattr(Runs, "keep_best", die)
    with pytest.raises(KeyboardInterrupt):
        bench.worker.work_once()
    work = bench.house.settings.work_folder / f"{task.id}-1"
    work.mkdir(parents=True)  # the exception's way out removed what a kill would have left
    before = everything(bench)
    assert swept(bench) == []
    assert (everything(bench), work.exists()) == (before, True)
    house = bench.house
    later = utc_now() + timedelta(days=1)
    assert sweep(house.store, house.tracking, house.settings, later) == []  # it may wake up
    assert house.store.tasks.claim("another", later, lease_seconds=60)
    (only,) = sweep(house.store, house.tracking, house.settings, later)
    assert str(work) in only
    assert (everything(bench), work.exists()) == (before, False)


@pytest.mark.parametrize("end", ["canceled", "error"])
def test_what_a_dead_owner_left_of_an_ended_task_is_removed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A worker killed after the task's end, before it tidied up: runs end, models go, once the
    lease is out; a dry run only tells."""
    task = dead_in_mid_upload(bench, monkeypatch)
    if end == "canceled":
        bench.house.store.tasks.cancel(task.id, utc_now())
    else:
        for _ in range(5):
            late = utc_now() + timedelta(days=1)
            bench.house.store.tasks.claim("w", late, -1, max_expired_leases=1)
        assert bench.house.store.tasks.get(task.id).status is TaskStatus.ERROR
    now = utc_now() + timedelta(days=2)
    house = bench.house
    before = everything(bench)
    found = sweep(house.store, house.tracking, house.settings, now, dry_run=True)
    assert any("was left running" in what for what in found)
    assert everything(bench) == before
    sweep(house.store, house.tracking, house.settings, now)
    (experiment,) = bench.experiments()
    assert experiment.tags["es.state"] == end
    statuses = {run.info.status for run in bench.mlflow.search_runs([experiment.experiment_id])}
    assert "RUNNING" not in statuses
    assert len(bench.model_files()) == 1  # the initial model's
    assert sweep(house.store, house.tracking, house.settings, now) == []


def dead_in_mid_upload(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> FineTuningTask:
    bench.post_sessions()
    task = bench.post_task()
    with monkeypatch.context() as dying:
        # the folder of the initial model is confirmed before
        confirm = bench.house.tracking.models.confirm
        calls: list[object] = []

        def die_at_second(_: Models, model: object) -> None:
            calls.append(model)
            die() if len(calls) == 2 else confirm(model)  # type: ignore[arg-type]

        dying.setattr(Models, "confirm", die_at_second)
        with pytest.raises(KeyboardInterrupt):
            bench.worker.work_once()
    assert len(bench.model_files()) == 2
    return task


def test_files_of_removed_experiments_go(bench: Bench) -> None:
    """What a zombie uploaded after its experiment was removed is found by the experiment."""
    bench.run_task("Worse")
    (experiment,) = bench.experiments()
    folder = Path(experiment.artifact_location)
    bench.house.tracking.iterations.remove(experiment.experiment_id)
    stray = folder / "run" / "artifacts" / "model" / "arrays.safetensors"
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"late")
    assert any(str(folder) in what for what in swept(bench))
    assert not folder.exists()
    assert swept(bench) == []


def test_a_version_without_files_goes_unless_it_is_champion(bench: Bench) -> None:
    """Registered versions stand for files; the champion's is not touched."""
    task = bench.run_task()
    assert task.best_model is not None
    client = bench.mlflow
    orphan = client.create_run(bench.experiments()[0].experiment_id)
    client.create_model_version("Toy", "somewhere", run_id=orphan.info.run_id)
    client.delete_run(orphan.info.run_id)
    assert swept(bench) == ["version 3 of Toy has no files"]
    left = client.search_model_versions("name = 'Toy'")
    assert {str(version.version) for version in left} == {"1", "2"}
    assert bench.house.tracking.registry.champion(TOY) == task.best_model


def test_an_initial_model_stored_twice_is_kept_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of two copies the one that is registered stays; what was stored within the hour does too."""
    task = bench.run_task("Worse")
    tracking = bench.house.tracking
    first = tracking.registry.champion(RegisteredName("Worse"))
    assert first is not None
    looked_up = tracking.client.runs
    with monkeypatch.context() as racing:  # another worker looks before the first copy is there
        racing.setattr(tracking.client, "runs", lambda _: iter(()))
        saved = tmp_path / "saved"
        saved.mkdir()
        (saved / "arrays.safetensors").write_bytes(b"the same")
        second = tracking.models.store_initial(RegisteredName("Worse"), saved)
    bench.mlflow.set_terminated(second.run_id)
    assert swept(bench) == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    (found,) = swept(bench)
    assert "repeats the initial model of Worse" in found
    assert swept(bench) == []
    initial = [run for run in looked_up(_initial(bench)) if run.data.tags["es.model"] == "stored"]
    assert [run.info.run_id for run in initial] == [first.run_id]
    assert task.status is TaskStatus.DONE


def _initial(bench: Bench) -> str:
    (found,) = bench.mlflow.search_experiments(filter_string="tags.`es.kind` = 'initial'")
    return str(found.experiment_id)


def test_a_sweep_is_not_held_up_by_a_lost_lease(bench: Bench) -> None:
    """What guards one task's writes guards no other's, nor the sweep's."""
    bench.run_task("Worse")

    def refuse() -> None:
        raise LeaseLost("no longer this worker's")

    (experiment,) = bench.experiments()
    guarded = bench.house.tracking.guarded(refuse)
    with pytest.raises(LeaseLost):
        guarded.iterations.set_state(experiment.experiment_id, "running")
    bench.house.tracking.iterations.set_state(experiment.experiment_id, "running")
    assert any("was left running" in what for what in swept(bench))


@pytest.mark.parametrize(("keep", "models"), [(1, 1), (3, 1), (3, 2)])
def test_older_iterations_are_kept_as_told(bench: Bench, keep: int, models: int) -> None:
    """So many iterations stay, and so many of them with their models, beside the initial one."""
    settings = bench.house.settings.replaced(keep_iterations=keep, keep_models=models)
    bench.worker._house = replace(bench.house, settings=settings)
    for number in range(4):
        bench.run_task("Worse", start=60 * number)
    assert len(bench.experiments()) == keep
    assert len(bench.model_files()) == models + 1


def test_the_sweep_follows_the_pages(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many iterations a crash left and MLflow tells at a time, each is found."""
    monkeypatch.setattr("embedding_studio.tracking.client._PAGE", 2)
    for number in range(5):
        bench.house.tracking.iterations.open(f"task {number}", TOY, f"batch {number}", "start")
    assert sum("was left running" in what for what in swept(bench)) == 5
    assert {experiment.tags["es.state"] for experiment in bench.experiments()} == {"error"}


def test_an_iteration_costs_the_same_after_many(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither beginning, ending nor sweeping one asks MLflow more often, or for more, as iterations
    that stay become more."""
    tracking = bench.house.tracking
    asked: list[int] = []

    def noting(search: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **options: Any) -> Any:
            page = search(*args, **options)
            asked.append(len(page))
            return page

        return noted

    def finish_another(number: int) -> None:
        name = f"{number}"
        opened = tracking.iterations.open(name, TOY, name, "start")
        tracking.iterations.previous_search(TOY, opened.experiment_id)
        tracking.iterations.set_state(opened.experiment_id, "done")
        tracking.iterations.remove_older(TOY, opened.experiment_id, keep=100)
        swept(bench)

    for number in range(9):
        finish_another(number)
    for name in ("search_experiments", "search_runs", "search_model_versions"):
        reading = tracking.client.reading
        monkeypatch.setattr(reading, name, noting(getattr(reading, name)))
    monkeypatch.setattr(Iterations, "previous_search", lambda *_: None)  # none has any trial
    finish_another(9)
    few, asked[:] = sorted(asked), []
    for number in range(10, 20):
        finish_another(number)
    assert sorted(asked) == sorted(few * 10)


def test_iterations_of_before_are_swept_too(bench: Bench) -> None:
    """Version 0.1 did not say of an iteration whether it keeps models: a worker brings that along
    when it starts. Registered models that are not ours are nobody's to sweep."""
    tracking = bench.house.tracking
    opened = tracking.iterations.open("a task", TOY, "a batch", "start")
    bench.mlflow.delete_experiment_tag(opened.experiment_id, "es.models")
    bench.mlflow.create_registered_model("Theirs")
    orphan = bench.mlflow.create_run(opened.experiment_id)
    bench.mlflow.create_model_version("Theirs", "somewhere", run_id=orphan.info.run_id)
    bench.mlflow.delete_run(orphan.info.run_id)
    assert swept(bench) == []
    bench.worker.mirror()
    (found,) = swept(bench)
    assert "was left running" in found
    assert len(bench.mlflow.search_model_versions("name = 'Theirs'")) == 1


def interposed(monkeypatch: pytest.MonkeyPatch, other: Callable[[], object]) -> list[object]:
    """Have another deleter do all its work just before the first file is deleted; return a list
    that has an entry when that has happened."""
    unlink = os.unlink
    happened: list[object] = []

    def delete(path: str, **options: Any) -> None:
        if not happened:
            happened.append(path)
            other()
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", delete)
    return happened


def test_a_sweep_beside_a_task_that_was_taken_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both delete what a killed attempt left, at once: the task is done."""
    bench.post_sessions()
    task = bench.post_task()
    store = bench.house.store
    assert store.tasks.claim("killed", utc_now() - timedelta(days=1), lease_seconds=1)
    left = bench.house.settings.work_folder / f"{task.id}-1" / "data"
    left.mkdir(parents=True)
    for number in range(9):
        (left / str(number)).touch()
    happened = interposed(monkeypatch, lambda: swept(bench))
    assert bench.worker.work_once()
    assert happened
    done = store.tasks.get(task.id)
    assert (done.status, done.error) == (TaskStatus.DONE, None)
    assert not left.exists()


def test_two_workers_remove_the_same_iteration(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes second, at whatever step, finds it removed, and goes on."""
    bench.run_task("Worse")
    (experiment,) = bench.experiments()
    tracking = bench.house.tracking
    remove = partial(tracking.iterations.remove, experiment.experiment_id)
    happened = interposed(monkeypatch, remove)
    remove()
    assert happened
    assert bench.experiments() == []


def test_a_models_removal_beside_that_of_its_iteration(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that keeps fewer iterations removes one whole while another removes its models."""
    settings = bench.house.settings.replaced(keep_iterations=9, keep_models=9)
    bench.worker._house = replace(bench.house, settings=settings)
    bench.run_task("Worse")
    bench.run_task("Worse", start=60)
    first, last = sorted(bench.experiments(), key=lambda one: int(one.experiment_id))
    tracking = bench.house.tracking
    happened = interposed(monkeypatch, lambda: tracking.iterations.remove(first.experiment_id))
    tracking.iterations.remove_older(
        RegisteredName("Worse"), last.experiment_id, keep=9, keep_models=1
    )
    assert happened
    assert [one.experiment_id for one in bench.experiments()] == [last.experiment_id]
