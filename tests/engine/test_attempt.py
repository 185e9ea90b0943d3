"""The iteration: what it keeps, what it refuses, and what it leaves behind."""

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from embedding_studio.clock import utc_now
from embedding_studio.engine import jobs
from embedding_studio.engine.champions import Champions
from embedding_studio.engine.feedback import Feedback
from embedding_studio.engine.jobs import MethodRef, Train
from embedding_studio.engine.lease import Lease
from embedding_studio.engine.worker import Worker
from embedding_studio.errors import LeaseLost, MethodError
from embedding_studio.executors.base import Report
from embedding_studio.methods import Parameters, Scores
from embedding_studio.search import Trial
from embedding_studio.settings import Settings
from embedding_studio.tasks import Budget, TaskEventKind, TaskRequest, TaskStatus
from embedding_studio.tracking.models import Models
from embedding_studio.tracking.runs import Runs
from tests.iterations import TOY, TOYS, Bench, make_session, open_bench
from tests.toys.toys import Toy

pytestmark = pytest.mark.slow


def champion_run_id(client: MlflowClient, method: str = "Toy") -> str | None:
    run_id: str | None = client.get_model_version_by_alias(method, "champion").run_id
    return run_id


def initial_run_ids(bench: Bench) -> list[str]:
    (found,) = bench.mlflow.search_experiments(filter_string="tags.`es.kind` = 'initial'")
    return [run.info.run_id for run in bench.mlflow.search_runs([found.experiment_id])]


def keep_champions(bench: Bench, count: int) -> None:
    settings = bench.house.settings.replaced(keep_champions=count)
    bench.worker._house = replace(bench.house, settings=settings)


@pytest.mark.quick
def test_a_task_becomes_a_promoted_champion(bench: Bench) -> None:
    """A task on clicks ends done, with a run per set, a baseline, and the champion alias moved."""
    task = bench.run_task()
    assert task.status is TaskStatus.DONE
    assert task.error is None
    assert task.promotion is not None
    assert task.promotion.promoted
    assert task.promotion.delta_ci95 is not None
    assert task.promotion.delta_ci95[0] > 0
    assert [run.info.status for run in bench.runs(task)] == ["FINISHED"] * 3
    assert len(bench.runs(task, "baseline")) == 1
    assert task.best_model is not None
    assert champion_run_id(bench.mlflow) == task.best_model.run_id
    names = {experiment.name for experiment in bench.mlflow.search_experiments()}
    assert {"iteration / initial", f"iteration / Toy / {task.batch_id}"} <= names


def test_one_model_is_left_beside_the_initial_one(bench: Bench) -> None:
    """After an iteration the best run alone carries a model; the other runs are kept, tagged."""
    task = bench.run_task(trials=5)
    best = max(bench.runs(task), key=lambda run: run.data.metrics["skill"])
    assert task.best_model is not None
    assert best.info.run_id == task.best_model.run_id
    assert best.data.tags["es.is_best"] == "true"
    assert len(bench.model_files()) == 2
    kept = [run.data.tags.get("es.model") for run in bench.runs(task)]
    assert kept.count("stored") == 1
    assert set(kept) <= {"stored", "deleted", None}


@pytest.mark.quick
def test_a_second_iteration_starts_from_the_champion_and_removes_the_first(bench: Bench) -> None:
    """The next task starts from the champion, tries its best sets first, and cleans up: where no
    former champion is to be kept, all of the iteration that made it."""
    keep_champions(bench, 0)
    first = bench.run_task()
    second = bench.run_task(start=1000)
    assert second.status is TaskStatus.DONE
    assert first.promotion is not None
    assert second.promotion is not None
    assert second.promotion.promoted
    assert second.promotion.baseline == pytest.approx(first.promotion.best)
    assert second.best_model is not None
    (initial,) = initial_run_ids(bench)
    assert [e.experiment_id for e in bench.experiments()] == [second.experiment_id]
    assert len(bench.model_files()) == 2
    versions = bench.mlflow.search_model_versions("name = 'Toy'")
    assert {version.run_id for version in versions} == {initial, second.best_model.run_id}


def test_a_task_whose_iteration_is_removed_says_so(bench: Bench) -> None:
    """The next iteration removes one that was not promoted: its task has no model and no link any
    more, and its history tells why."""
    first = bench.run_task("Worse")
    assert first.best_model is not None
    second = bench.run_task("Worse", start=1000)
    assert second.best_model is not None
    first = bench.house.store.tasks.get(first.id)
    assert (first.best_model, first.experiment_id) == (None, None)
    last = bench.house.store.tasks.events(first.id, 0, 1000)[-1].event
    assert last.kind is TaskEventKind.ITERATION_REMOVED
    assert second.id in last.detail


def test_parameters_read_back_from_mlflow_keep_their_types(bench: Bench) -> None:
    """The previous iteration's best sets are tried first, as numbers and booleans, not strings."""
    first = bench.run_task()
    assert first.best_model is not None
    best = next(r for r in bench.runs(first) if r.info.run_id == first.best_model.run_id)
    second = bench.run_task(start=1000)
    again = bench.suggested(bench.runs(second)[0])
    assert again == bench.suggested(best)
    assert [type(again[name]) for name in ("skill", "layers", "kind", "shuffle")] == [
        float,
        int,
        str,
        bool,
    ]
    drawn = [json.dumps(bench.suggested(run)) for run in bench.runs(second)]
    assert len(set(drawn)) == 3


@pytest.mark.quick
def test_a_worse_model_is_not_promoted_and_the_champion_is_not_touched(bench: Bench) -> None:
    """When no set beats the baseline on the test split, the task is done, and the initial model,
    which was champion from the first, still is."""
    task = bench.run_task("Worse")
    assert task.status is TaskStatus.DONE
    assert task.promotion is not None
    assert not task.promotion.promoted
    assert [champion_run_id(bench.mlflow, "Worse")] == initial_run_ids(bench)


def test_the_champion_outlives_iterations_that_do_not_beat_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iteration that is refused leaves the champion's files and experiment in place."""
    bench = open_bench(settings)
    first = bench.run_task()
    with monkeypatch.context() as unlucky:
        toy = type(bench.worker._catalog.methods["Toy"])
        unlucky.setattr(toy, "suggest", lambda *_: {"skill": 0.1})
        last = bench.run_task(start=1000)
    assert last.promotion is not None
    assert not last.promotion.promoted
    champion = bench.house.tracking.registry.champion(TOY)
    assert champion == first.best_model
    assert champion is not None
    bench.house.tracking.models.download(champion, settings.data_folder / "copy")
    assert len(bench.experiments()) == 2
    assert len(bench.model_files()) == 3  # the initial model, the champion, the refused best


@pytest.mark.quick
def test_a_failed_set_is_a_failed_run_and_the_search_goes_on(bench: Bench) -> None:
    """A set that raises is a FAILED run with its traceback; the others still give a model."""
    task = bench.run_task("Failing once")
    assert task.status is TaskStatus.DONE
    failed, *others = bench.runs(task)
    assert failed.info.status == "FAILED"
    assert [run.info.status for run in others] == ["FINISHED", "FINISHED"]
    assert "es.value" not in failed.data.tags
    traceback = bench.mlflow.download_artifacts(failed.info.run_id, "traceback.txt")
    with open(traceback) as text:  # noqa: PTH123 - a path from mlflow
        assert "an unlucky set" in text.read()
    assert task.progress is not None
    assert task.progress.failed_trials == 1


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("Failing", "the loss is NaN"),
        ("Failing to save", "no space left on device"),
        ("Forgetful", "loaded back"),
        ("Collapsed", "not a number"),
    ],
)
def test_when_all_sets_fail_the_task_is_an_error_that_says_why(
    bench: Bench, method: str, why: str
) -> None:
    """Failed training, saving, reading back or scoring never counts: no score, no model, error."""
    task = bench.run_task(method)
    assert task.status is TaskStatus.ERROR
    assert task.error is not None
    assert why in task.error
    assert {run.info.status for run in bench.runs(task)} == {"FAILED"}
    assert not any("es.value" in run.data.tags for run in bench.runs(task))
    assert len(bench.model_files()) == 1  # the initial one
    assert task.best_model is None


def test_the_former_best_is_deleted_only_after_the_new_one_was_read_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment a new best is confirmed, the former best's files are still there."""
    seen: list[int] = []
    confirm = bench.house.tracking.models.confirm

    def confirm_and_count(_: Models, model: object) -> None:
        seen.append(len(bench.model_files()))
        confirm(model)  # type: ignore[arg-type]

    monkeypatch.setattr(Models, "confirm", confirm_and_count)
    bench.run_task(trials=6)
    assert seen[:2] == [1, 2]  # the initial model; then the first best beside it
    assert set(seen[2:]) == {3}  # the former best, the new one, the initial one
    assert len(seen) > 2


@pytest.mark.quick
def test_a_finished_run_is_never_retrained(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash in mid-search the finished trials are replayed and only the rest is run."""
    bench.post_sessions()
    task = bench.post_task(trials=4)
    start_trial = bench.house.tracking.runs.start_trial
    started: list[int] = []

    def die_at_third(
        _: Runs, experiment_id: str, trial: Trial, params: Parameters, seed: int
    ) -> str:
        started.append(trial.number)
        if len(started) == 3:
            raise KeyboardInterrupt  # no handler of ours catches it: like a killed worker
        return start_trial(experiment_id, trial, params, seed)

    monkeypatch.setattr(Runs, "start_trial", die_at_third)
    with pytest.raises(KeyboardInterrupt):
        bench.worker.work_once()
    assert bench.house.store.tasks.get(task.id).status is TaskStatus.PROCESSING

    later = Worker(
        replace(bench.house, clock=lambda: utc_now() + timedelta(days=1)), bench.worker._catalog
    )
    assert later.work_once()
    task = bench.house.store.tasks.get(task.id)
    assert task.status is TaskStatus.DONE
    assert (task.attempt, task.expired_leases) == (2, 1)
    assert started == [0, 1, 2, 2, 3]
    runs = bench.runs(task)
    assert [run.data.tags["es.trial"] for run in runs] == ["0", "1", "2", "3"]
    assert len({bench.suggested(run)["skill"] for run in runs}) == 4


@pytest.mark.quick
def test_a_crash_after_the_verdict_is_carried_out_by_the_next_worker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead between the recorded verdict and the alias: the next attempt trains nothing, promotes
    the recorded model and finishes."""
    bench.post_sessions()
    task = bench.post_task()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(Champions, "promote", die)
        with pytest.raises(KeyboardInterrupt):
            bench.worker.work_once()
    assert [champion_run_id(bench.mlflow)] == initial_run_ids(bench)
    monkeypatch.setattr(Train, "__call__", die)
    later = Worker(
        replace(bench.house, clock=lambda: utc_now() + timedelta(days=1)), bench.worker._catalog
    )
    assert later.work_once()
    task = bench.house.store.tasks.get(task.id)
    assert task.status is TaskStatus.DONE
    assert task.best_model is not None
    assert champion_run_id(bench.mlflow) == task.best_model.run_id


def test_cost_is_counted_per_run_and_per_task(bench: Bench) -> None:
    """Each run says what it cost by then, a failed one as far as it came; the task and its
    experiment say the sum, and the task what was expected."""
    task = bench.run_task("Counting")
    assert task.progress is not None
    assert task.progress.trained_tokens == 200 + 100 + 200
    assert task.progress.estimated_trained_tokens == 150 * 3
    first, failed, _ = bench.runs(task)
    history = bench.mlflow.get_metric_history(first.info.run_id, "trained_tokens")
    assert [(point.step, point.value) for point in history] == [(0, 100), (1, 200), (2, 200)]
    assert failed.info.status == "FAILED"
    assert failed.data.metrics["trained_tokens"] == 100
    (baseline,) = bench.runs(task, "baseline")
    assert baseline.data.metrics["estimated_trained_tokens"] == 450
    (experiment,) = bench.experiments()
    assert experiment.tags["es.trained_tokens"] == "500"
    assert "500 trained tokens" in experiment.tags["mlflow.note.content"]


def test_a_method_that_counts_nothing_has_no_cost(bench: Bench) -> None:
    """Without a count there is no metric, and without the hook no estimate."""
    task = bench.run_task()
    assert task.progress is not None
    assert task.progress.trained_tokens == 0
    assert task.progress.estimated_trained_tokens is None
    runs = [*bench.runs(task), *bench.runs(task, "baseline")]
    names = {name for run in runs for name in run.data.metrics}
    assert not [name for name in names if name.endswith("trained_tokens")]


def test_the_cost_of_earlier_attempts_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash in mid-trial, what was spent before is in the sum, on an unfinished trial too;
    a crash after the verdict loses none of it."""
    bench.post_sessions()
    task = bench.post_task("Counting")
    log_reports = bench.house.tracking.runs.log_reports
    reports: list[Report] = []
    monkeypatch.setattr("embedding_studio.engine.trials.LOG_SECONDS", 0.0)

    def die_at_fifth(_: Runs, run_id: str, some: list[Report]) -> None:
        log_reports(run_id, some)
        reports.extend(some)
        if len(reports) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Runs, "log_reports", die_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        bench.worker.work_once()
    spent = 200 + 100 + 200  # the third trial had reported all, but was not finished

    def work_later(days: int) -> None:
        house = replace(bench.house, clock=lambda: utc_now() + timedelta(days=days))
        assert Worker(house, bench.worker._catalog).work_once()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(Champions, "promote", die)
        with pytest.raises(KeyboardInterrupt):
            work_later(1)
    work_later(2)
    done = bench.house.store.tasks.get(task.id)
    assert done.status is TaskStatus.DONE
    assert done.progress is not None
    assert done.progress.trained_tokens == spent + 200
    assert done.progress.estimated_trained_tokens == 450


def test_a_model_that_is_no_better_is_not_saved(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a set that beats the best so far writes its model."""
    toy = type(MethodRef("Toy", bench.house.settings.plugins_folder).load())
    save, saved = toy.save, []

    def count(method: object, model: Any, folder: object) -> None:
        saved.append(float(model[0]))
        save(method, model, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(toy, "save", count)
    task = bench.run_task(trials=6)
    skills = [bench.suggested(run)["skill"] for run in bench.runs(task)]
    records = [skill for place, skill in enumerate(skills) if skill == max(skills[: place + 1])]
    # the initial model, its copy that shows whether `save` is whole, then each new best
    assert saved == pytest.approx([0.2, 0.2, *records])
    assert len(records) < len(skills)


def test_runs_left_running_by_a_dead_worker_are_killed(bench: Bench) -> None:
    """A run that nobody ended is KILLED, its upload deleted, and it does not count."""
    bench.run_task()
    tracking, client = bench.house.tracking, bench.mlflow
    experiment_id = bench.experiments()[0].experiment_id
    orphan = client.create_run(experiment_id, tags={"es.kind": "trial", "es.trial": "9"})
    tracking.runs.kill_unfinished(experiment_id)
    assert client.get_run(orphan.info.run_id).info.status == "KILLED"
    assert len(tracking.runs.finished_trials(experiment_id)) == 3


@pytest.mark.parametrize("failure", [None, FileNotFoundError("swept, for it is canceled")])
def test_cancel_sticks_and_removes_what_the_attempt_wrote(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    """A task canceled in mid-trial stays canceled: no run counts, no model, no champion; also when
    its owner fails before it has noticed."""
    bench.post_sessions()
    task = bench.post_task()
    log_reports = bench.house.tracking.runs.log_reports

    def cancel_and_log(_: Runs, run_id: str, reports: list[Report]) -> None:
        bench.house.store.tasks.cancel(task.id, utc_now())
        if failure is not None:
            raise failure
        log_reports(run_id, reports)

    monkeypatch.setattr(Runs, "log_reports", cancel_and_log)
    monkeypatch.setattr(Lease, "check", check_against_store)
    assert bench.worker.work_once()
    assert bench.house.store.tasks.get(task.id).status is TaskStatus.CANCELED
    (experiment,) = bench.experiments()
    assert experiment.tags["es.state"] == "canceled"
    assert bench.house.tracking.runs.finished_trials(experiment.experiment_id) == []
    assert len(bench.model_files()) == 1
    assert [champion_run_id(bench.mlflow)] == initial_run_ids(bench)
    assert list(bench.house.settings.work_folder.iterdir()) == []
    # its owner has let go, so it can be restarted at once
    assert bench.house.store.tasks.restart(task.id, utc_now()).status is TaskStatus.PENDING


@pytest.mark.quick
def test_a_restart_of_a_canceled_task_goes_on_from_its_trials(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished trials count still, but the best one, whose model is gone, is run again first."""
    bench.post_sessions()
    task = bench.post_task(trials=4)
    with monkeypatch.context() as canceling:
        after_trials(
            canceling, bench, 2, lambda: bench.house.store.tasks.cancel(task.id, utc_now())
        )
        assert bench.worker.work_once()
    task = bench.house.store.tasks.get(task.id)
    assert task.status is TaskStatus.CANCELED
    assert len(bench.model_files()) == 1
    before = bench.runs(task) + bench.runs(task, "superseded")
    best = max(before, key=lambda run: float(run.data.tags["es.value"]))
    assert bench.runs(task, "superseded")[0].info.run_id == best.info.run_id

    bench.house.store.tasks.restart(task.id, utc_now())
    assert bench.worker.work_once()
    task = bench.house.store.tasks.get(task.id)
    assert task.status is TaskStatus.DONE
    assert len(bench.experiments()) == 1
    runs = bench.runs(task)
    assert len(runs) == 4
    assert sorted(run.info.run_id in {old.info.run_id for old in before} for run in runs) == [
        False, False, False, True,
    ]  # fmt: skip
    assert bench.suggested(best) in [bench.suggested(run) for run in runs]


def test_a_fresh_restart_forgets_earlier_trials(bench: Bench) -> None:
    """Another experiment is opened, and all of the budget is spent on it."""
    bench.post_sessions()
    task = bench.post_task("Failing", trials=2)
    bench.worker.work_once()
    bench.house.store.tasks.restart(task.id, utc_now(), fresh=True)
    bench.worker.work_once()
    first, second = bench.experiments()
    assert {first.tags["es.fresh_starts"], second.tags["es.fresh_starts"]} == {"0", "1"}
    for experiment in (first, second):
        assert len(bench.house.tracking.runs.finished_trials(experiment.experiment_id)) == 2


def after_trials(
    monkeypatch: pytest.MonkeyPatch, bench: Bench, count: int, act: Callable[[], object]
) -> None:
    """Act once that many trials have finished, and let the lease notice it at once."""
    finish_run = Runs._finish
    finished: list[str] = []

    def finish_and_act(runs: Runs, run_id: str, *args: Any) -> None:
        finish_run(runs, run_id, *args)
        finished.append(run_id)
        if len(finished) == count + 1:  # the baseline's run is the first
            act()

    monkeypatch.setattr(Runs, "_finish", finish_and_act)
    monkeypatch.setattr(Lease, "check", check_against_store)


@pytest.mark.quick
def test_a_stopped_task_keeps_the_best_model_so_far(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search ends; the best model is judged, promoted and kept, and the task is stopped."""
    bench.post_sessions()
    task = bench.post_task(trials=5)
    after_trials(monkeypatch, bench, 2, lambda: bench.house.store.tasks.stop(task.id, utc_now()))
    assert bench.worker.work_once()
    task = bench.house.store.tasks.get(task.id)
    assert task.status is TaskStatus.STOPPED
    assert bench.experiments()[0].tags["es.state"] == "stopped"
    assert [run.info.status for run in bench.runs(task)].count("FINISHED") == 2
    assert len(bench.runs(task)) < 5
    assert task.promotion is not None
    assert task.promotion.promoted
    assert task.best_model is not None
    assert champion_run_id(bench.mlflow) == task.best_model.run_id
    assert len(bench.model_files()) == 2


def test_a_trial_that_is_stopped_counts_as_it_stands(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at its next report, with its model; one that reports on and on does not count."""
    bench.post_sessions()
    task = bench.post_task("Heeding", trials=5)
    log_reports = bench.house.tracking.runs.log_reports

    def stop_and_log(_: Runs, run_id: str, reports: list[Report]) -> None:
        bench.house.store.tasks.stop(task.id, utc_now())
        log_reports(run_id, reports)

    monkeypatch.setattr(Runs, "log_reports", stop_and_log)
    monkeypatch.setattr(Lease, "show", show_and_beat)
    assert bench.worker.work_once()
    task = bench.house.store.tasks.get(task.id)
    assert task.status is TaskStatus.STOPPED
    (run,) = bench.runs(task)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["system/skill.last"] > 0
    assert task.best_model is not None

    task = bench.post_task("Slow", batch_id=task.batch_id, trials=5)
    assert bench.worker.work_once()
    task = bench.house.store.tasks.get(task.id)
    assert task.status is TaskStatus.STOPPED
    assert task.error == "stopped before any hyperparameter set had given a model"
    assert [run.info.status for run in bench.runs(task)] == ["KILLED"]
    assert task.best_model is None


def show_and_beat(lease: Lease, **changes: Any) -> None:
    """Lease.show with the beat that a timer would have given by then."""
    with lease._lock:
        lease._progress = replace(lease._progress, **changes)
    lease.beat()


def test_a_task_stopped_before_its_search_has_nothing_to_keep(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as stopped, says why there is no model, and can be restarted."""
    bench.post_sessions()
    task = bench.post_task()
    prepare = Feedback.prepare

    def stop_and_prepare(*args: Any) -> Any:
        bench.house.store.tasks.stop(task.id, utc_now())
        return prepare(*args)

    with monkeypatch.context() as stopping:
        stopping.setattr(Feedback, "prepare", stop_and_prepare)
        stopping.setattr(Lease, "check", check_against_store)
        assert bench.worker.work_once()
    task = bench.house.store.tasks.get(task.id)
    assert (task.status, task.best_model) == (TaskStatus.STOPPED, None)
    assert task.error is not None
    bench.house.store.tasks.restart(task.id, utc_now())
    assert bench.worker.work_once()
    assert bench.house.store.tasks.get(task.id).status is TaskStatus.DONE


@pytest.mark.quick
def test_the_history_tells_an_iteration(bench: Bench) -> None:
    """Each trial, best model and verdict leaves its event, with figures."""
    task = bench.run_task(trials=2)
    events = [numbered.event for numbered in bench.house.store.tasks.events(task.id)]
    kinds = [event.kind for event in events]
    assert kinds[:6] == [
        "created", "claimed", "data_prepared", "batch_released", "experiment_opened",
        "baseline_scored",
    ]  # fmt: skip
    assert kinds.count(TaskEventKind.TRIAL_FINISHED) == 2
    assert kinds[-2:] == ["promoted", "done"]
    promoted = events[-2]
    assert task.promotion is not None
    assert promoted.data == {"baseline": task.promotion.baseline, "best": task.promotion.best}


def check_against_store(lease: Lease) -> None:
    """Lease.check with the beat that a timer would have given by now."""
    lease.beat()
    if lease._is_lost:
        raise LeaseLost(lease.claim.task_id)


def test_a_failed_task_can_be_restarted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart keeps the batch and gives the failed sets' budget back."""
    with monkeypatch.context() as broken:
        broken.setattr(Train, "__call__", lambda *_: 1 / 0)
        task = bench.run_task()
        assert task.status is TaskStatus.ERROR
    assert bench.house.store.tasks.restart(task.id, utc_now()).status is TaskStatus.PENDING
    assert bench.worker.work_once()
    again = bench.house.store.tasks.get(task.id)
    assert again.status is TaskStatus.DONE
    assert again.batch_id == task.batch_id


def test_irrelevant_sessions_are_kept_out_and_reported(bench: Bench) -> None:
    """Sessions marked irrelevant count in the figures of the data and nowhere else."""
    store = bench.house.store
    store.clickstream.register(
        [make_session(number, is_irrelevant=number < 10) for number in range(70)], utc_now()
    )
    task = bench.post_task()
    bench.worker.work_once()
    (data,) = bench.runs(bench.house.store.tasks.get(task.id), "data")
    figures = data.data.metrics
    assert figures["data/sessions"] == 70
    assert figures["data/irrelevant_sessions"] == 10
    parts = ("data/train_sessions", "data/validation_sessions", "data/test_sessions")
    assert sum(figures[part] for part in parts) == 60
    page = (Path(data.info.artifact_uri) / "report.html").read_text()
    assert "70 sessions" in page


@pytest.mark.quick
def test_no_iteration_hangs_on_its_report(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be made, its place says why."""

    def fail(*_: object) -> None:
        raise ValueError("no <ink>")

    monkeypatch.setattr(jobs, "page_of", fail)
    task = bench.run_task()
    assert task.status is TaskStatus.DONE
    (data,) = bench.runs(task, "data")
    assert "no &lt;ink&gt;" in (Path(data.info.artifact_uri) / "report.html").read_text()


def test_a_method_that_no_worker_carries_is_an_error_with_the_known_names(bench: Bench) -> None:
    """A task accepted before any worker was known is judged when it is claimed."""
    task = bench.run_task("No such method")
    assert task.status is TaskStatus.ERROR
    assert task.error is not None
    assert "No such method" in task.error
    assert "'Toy'" in task.error


@pytest.mark.quick
def test_nothing_collecting_is_a_clear_error(bench: Bench) -> None:
    """A task without a batch, with no session to learn from, ends as an error that says so."""
    task = bench.post_task()
    bench.worker.work_once()
    done = bench.house.store.tasks.get(task.id)
    assert done.status is TaskStatus.ERROR
    assert done.error is not None
    assert "no batch is collecting" in done.error


def test_the_minutes_of_the_budget_end_the_search(bench: Bench) -> None:
    """No set is started once the minutes are spent; what finished by then counts."""
    bench.post_sessions()
    store = bench.house.store
    task, _ = store.tasks.add(TaskRequest("Toy", budget=Budget(500, 0.02)), utc_now())
    bench.worker.work_once()
    done = store.tasks.get(task.id)
    assert done.status is TaskStatus.DONE
    assert 1 <= len(bench.runs(done)) < 500


def test_a_model_changed_on_disk_is_refused(bench: Bench) -> None:
    """A byte flipped in the champion's file is noticed before anything starts from it."""
    first = bench.run_task()
    assert first.best_model is not None
    run_id = first.best_model.run_id
    (file,) = [path for path in bench.model_files() if run_id in str(path)]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    second = bench.run_task(start=1000)
    assert second.status is TaskStatus.ERROR
    assert second.error is not None
    assert "CorruptModel" in second.error
    assert run_id in second.error


def test_a_champion_whose_files_are_gone_is_said(bench: Bench) -> None:
    """The task's error says which model it is and what to do, and nothing is used up."""
    first = bench.run_task()
    assert first.best_model is not None
    shutil.rmtree(first.best_model.artifact_uri)
    second = bench.run_task(start=1000)
    assert second.status is TaskStatus.ERROR
    assert second.error is not None
    assert f"the files of the model of run {first.best_model.run_id} cannot be read" in second.error
    assert "roll back" in second.error


def register_foreign(bench: Bench, folder: Path) -> Path:
    """Make champion what somebody else registered in MLflow, of the flavor sentence_transformers,
    and return the folder of its files, which are still to come."""
    payload = folder / "model.sentence_transformer"
    payload.mkdir(parents=True)
    card = Model()
    card.add_flavor("sentence_transformers")
    card.save(str(folder / "MLmodel"))
    bench.mlflow.create_registered_model("Toy")
    bench.mlflow.create_model_version("Toy", str(folder))
    bench.mlflow.set_registered_model_alias("Toy", "champion", "1")
    return payload


def test_a_model_that_somebody_else_registered_is_started_from(
    bench: Bench, tmp_path: Path
) -> None:
    """It is adopted as version 1, beaten, and kept: it can be rolled back to."""
    Toy().save(np.array([0.25]), register_foreign(bench, tmp_path / "own"))
    task = bench.run_task()
    assert (task.status, task.error) == (TaskStatus.DONE, None)
    assert task.promotion is not None
    assert task.promotion.promoted
    assert task.promotion.baseline == pytest.approx(0.25)
    registered = bench.house.store.models.find("Toy")
    assert registered is not None
    assert registered.champion == 2
    assert registered.previous_version() == 1
    bench.mlflow.set_registered_model_alias("Toy", "champion", "1")
    assert bench.run_task(start=1000).promotion is not None
    bench.worker.sweep()
    assert (tmp_path / "own/model.sentence_transformer/arrays.safetensors").exists()
    assert "1" in {str(v.version) for v in bench.mlflow.search_model_versions("name = 'Toy'")}


def test_a_champion_that_the_method_cannot_load_is_said(bench: Bench, tmp_path: Path) -> None:
    """A model that somebody else registered, say: the error is not that of the file it misses."""
    (register_foreign(bench, tmp_path / "own") / "modules.json").write_text("[]")
    task = bench.run_task()
    assert task.status is TaskStatus.ERROR
    assert task.error is not None
    assert "`load` of 'Toy' cannot read the model to start from" in task.error
    assert "arrays.safetensors" in task.error


def test_mlflow_failing_is_no_failed_set(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the ledger cannot be written to, the task ends; no set is blamed for it."""

    def refuse(_: Runs, run_id: str, report: object) -> None:
        raise MlflowException("the server is on fire")

    monkeypatch.setattr(Runs, "log_reports", refuse)
    task = bench.run_task()
    assert task.status is TaskStatus.ERROR
    assert task.error is not None
    assert "the server is on fire" in task.error
    assert {run.info.status for run in bench.runs(task)} == {"KILLED"}


def test_local_copies_are_removed(bench: Bench) -> None:
    """The work folder is empty when an iteration is over, whichever way it ended."""
    bench.run_task()
    bench.run_task("Failing", start=1000)
    assert list(bench.house.settings.work_folder.iterdir()) == []


def test_runs_carry_metrics_per_step_and_aggregated(bench: Bench) -> None:
    """A run has a value per step, and last, min, max, mean and sliding mean, and its seconds."""
    task = bench.run_task()
    run = bench.runs(task)[0]
    history = bench.mlflow.get_metric_history(run.info.run_id, "skill")
    assert [point.step for point in history] == [0, 1, 2]  # two reports, then the final score
    names = {f"system/skill.{name}" for name in ("last", "min", "max", "mean", "sliding_mean")}
    assert names <= set(run.data.metrics)
    assert {"system/seconds.train", "system/seconds.wall"} <= set(run.data.metrics)
    assert run.data.params["layers"] == str(bench.suggested(run)["layers"])
    assert run.data.params["seed"] == "0"


def test_names_and_values_that_others_refuse_are_ordinary(bench: Bench) -> None:
    """A metric `ndcg@10`, parameters `seed` and `lr(log)`, NumPy's numbers, tuples and dictionaries
    as choices, more and longer values than MLflow takes: the method sees its own, MLflow near
    ones, and the next iteration tries the best set first."""
    first = bench.run_task("Odd")
    assert (first.status, first.error) == (TaskStatus.DONE, None)
    assert first.progress is not None
    assert first.progress.trained_tokens == 600
    runs = bench.runs(first)
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    run = runs[0]
    assert {"skill:40:10", "system/skill:40:10.last", "trained_tokens"} <= set(run.data.metrics)
    assert run.data.params.keys() >= {"lr:28:log:29:", "seed", "es.seed", "größe / 大小"}
    assert run.data.params["dims"] in ("(256, 64)", "(128,)")
    assert len(run.data.params["prompt"]) == 6000
    assert len(bench.suggested(run)) == 6
    trials = bench.house.tracking.runs.finished_trials(first.experiment_id or "", "skill@10")
    reported = {step: float(np.float32(0.2)) for step in range(2)}
    assert [trial.reports for trial in trials] == [reported] * 3
    second = bench.run_task("Odd", start=1000)
    assert (second.status, second.error) == (TaskStatus.DONE, None)
    best = max(runs, key=lambda run: run.data.metrics["skill:40:10"])
    assert bench.suggested(bench.runs(second)[0]) == bench.suggested(best)


def test_a_changed_space_is_no_error_and_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the previous iteration's best sets what the space has no more is left out or moved to the
    nearest, and the task's history tells."""
    bench.run_task()
    method = bench.worker._catalog.get("Toy")
    monkeypatch.setattr(
        method,
        "suggest",
        lambda trial: {
            "skill": trial.suggest_float("skill", 0.95, 0.99),
            "kind": trial.suggest_categorical("kind", ["a", "b"]),
        },
    )
    task = bench.run_task(start=1000)
    assert (task.status, task.error) == (TaskStatus.DONE, None)
    assert bench.suggested(bench.runs(task)[0])["skill"] == 0.95
    (warning, *_) = warnings_of(bench, task.id)
    assert "'layers' is gone" in warning
    assert "'skill' is 0.95, was" in warning
    bench.worker._catalog.get("Toy")
    monkeypatch.setattr(
        method,
        "suggest",
        lambda trial: {
            "skill": trial.suggest_float("skill", 0.3, 0.9),
            "kind": trial.suggest_categorical("kind", ["c"]),
        },
    )
    task = bench.run_task(start=2000)
    assert (task.status, task.error) == (TaskStatus.DONE, None)
    assert all("left out" in warning for warning in warnings_of(bench, task.id))


def warnings_of(bench: Bench, task_id: str) -> list[str]:
    return [
        numbered.event.detail
        for numbered in bench.house.store.tasks.events(task_id, 0, 1000)
        if numbered.event.kind is TaskEventKind.WARNING
    ]


def test_a_changed_plugin_runs_from_the_next_task_on(settings: Settings, tmp_path: Path) -> None:
    """A worker that is not started anew loads what has changed, between two tasks; a version that
    does not load leaves the former one, and health is told."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    text = (TOYS / "toys.py").read_text()
    file = plugins / "toys.py"
    file.write_text(text)
    bench = open_bench(settings.replaced(plugins_folder=plugins))
    bench.run_task()
    file.write_text(text.replace('"skill", 0.3, 0.9', '"skill", 0.95, 0.99'))
    second = bench.run_task(start=1000)
    assert all(bench.suggested(run)["skill"] >= 0.95 for run in bench.runs(second))
    file.write_text(f"{text[: len(text) // 2]}\n(")  # half of it may be whole by chance
    third = bench.run_task(start=2000)
    assert (third.status, third.error) == (TaskStatus.DONE, None)
    (worker,) = bench.house.store.workers.seen(utc_now() - timedelta(minutes=1))
    assert "stays as it was before" in worker.plugin_failures[str(file)]
    assert "Toy" in worker.methods
    bench.house.store.close()


DRAWN: Iterator[float] = itertools.cycle([0.31, 0.52, 0.73])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"save": lambda model, folder: Toy().save(model * 0.5, folder)},
            r"`save` loses something: the starting model's skill was 0\.1.* and 0\.05",
        ),
        (
            {"evaluate": lambda model, split: {"skill": next(DRAWN)}},
            r"`evaluate` is not deterministic: of the same queries one model's skill was 0\.\d+",
        ),
        (
            {"evaluate": lambda model, split: {"skill": np.ones(int(100 * next(DRAWN)))}},
            r"`evaluate` is not deterministic.* \(\d+ values\)",
        ),
        (
            {"evaluate": lambda model, split: {"skill": [float("nan")] * len(split)}},
            r"the main metric skill is not a number for 8 of 8 queries",
        ),
        ({"evaluate": lambda model, split: {"skill": []}}, "skill is an empty array"),
        (
            {"evaluate": lambda model, split: {"skill": {"mean": 1}}},
            "must be a number, or an array",
        ),
        ({"evaluate": lambda model, split: 0.5}, "`evaluate` gave 0.5: it must give a dictionary"),
        ({"evaluate": lambda model, split: {"skill": 0.5, "x" * 300: 1}}, "200 are allowed"),
        ({"suggest": lambda trial: {"x" * 300: 1}}, "200 are allowed"),
        ({"suggest": lambda trial: [1]}, "`suggest` gave \\[1\\]: it must give a dictionary"),
    ],
)
def test_a_method_that_cannot_be_judged_is_told_before_anything_is_used_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, changes: Mapping[str, Any], words: str
) -> None:
    """The starting model shows it: the error says what it is, no trial has run, and the batch is
    still collecting."""
    for name, function in changes.items():
        monkeypatch.setattr(bench.worker._catalog.get("Toy"), name, function)
    task = bench.run_task()
    assert task.status is TaskStatus.ERROR
    assert re.search(words, task.error or ""), task.error
    assert task.experiment_id is None
    assert task.batch_id is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": lambda model, *_: model + 0.1}, ["trial 1 ended and had never reported"]),
        (
            {"evaluate": lambda model, split: {"skill": [0.5] * len(split)}},
            ["skill is 0.5 for each of", "trial 1 scores exactly what the starting model does"],
        ),
        (
            {
                "evaluate": lambda model, split: {
                    "skill": model[0] if len(split) == 8 else np.linspace(0, model[0], len(split))
                }
            },
            ["one number on one split and has a value per query on the other"],
        ),
    ],
)
def test_what_may_be_a_mistake_in_a_method_is_said_and_no_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, changes: Mapping[str, Any], words: list[str]
) -> None:
    """In the task's history and in the note of the run that shows it, once."""
    for name, function in changes.items():
        monkeypatch.setattr(bench.worker._catalog.get("Toy"), name, function)
    task = bench.run_task()
    assert (task.status, task.error) == (TaskStatus.DONE, None)
    said = warnings_of(bench, task.id)
    runs = bench.runs(task, "baseline") + bench.runs(task)
    notes = " ".join(run.data.tags.get("mlflow.note.content", "") for run in runs)
    assert len(said) == len(words)
    for warning, expected in zip(said, words, strict=True):
        assert expected in warning
        assert expected in notes


def test_a_model_scored_on_other_queries_is_a_failed_set(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate compares query by query: a trial that leaves some out fails at once."""

    def evaluate(model: Any, split: Any) -> Scores:
        return {"skill": np.full(len(split) - (model[0] > 0.2), model[0])}

    monkeypatch.setattr(bench.worker._catalog.get("Toy"), "evaluate", evaluate)
    task = bench.run_task()
    assert task.status is TaskStatus.ERROR
    assert "gave 7 values of skill per query, and 8 for the starting model" in (task.error or "")


def test_a_missing_initial_model_is_told_by_the_worker_and_the_task(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's record has it before any task; the task's error is the method's own words, not
    those of what failed to load."""
    method = bench.worker._catalog.get("Toy")

    def load() -> Any:
        raise OSError("some library's words")

    def check() -> None:
        raise MethodError("ES_TOY names nothing")

    monkeypatch.setattr(method, "load_initial_model", load)
    bench.worker.check_initial_models()
    task = bench.run_task()
    assert task.status is TaskStatus.ERROR
    assert "some library's words" in (task.error or "")
    monkeypatch.setattr(method, "check_initial_model", check)
    bench.worker.check_initial_models()
    bench.worker.beat()
    (worker,) = bench.house.store.workers.seen(utc_now() - timedelta(minutes=1))
    assert worker.missing_models == {"Toy": "ES_TOY names nothing"}
    task = bench.run_task(start=1000)
    assert "MethodError: ES_TOY names nothing" in (task.error or "")
