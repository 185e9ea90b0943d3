"""The trials of an iteration: side by side, pruned, in their budget, begun anew after a crash."""

import csv
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from optuna import load_study
from optuna.storages import RDBStorage

from embedding_studio.clock import utc_now
from embedding_studio.engine.lease import Lease
from embedding_studio.engine.limits import seconds_at_work
from embedding_studio.engine.worker import Worker
from embedding_studio.errors import ExecutorUnavailable, TrialCrashed
from embedding_studio.executors.base import EVEN_SHARE, Job, Report, Resources, Verdict
from embedding_studio.executors.inline import InlineExecutor
from embedding_studio.search import Outcome, Search, Trial
from embedding_studio.search.plots import draw_search
from embedding_studio.settings import Settings
from embedding_studio.tasks import (
    Budget,
    FineTuningTask,
    Pruner,
    RunningTrial,
    Sampler,
    SearchOptions,
    TaskEventKind,
    TaskRequest,
    TaskStatus,
)
from tests.contracts.test_executor import Reporting, go_on
from tests.iterations import Bench, open_bench
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


def run(bench: Bench, method: str, start: int = 0, **request: Any) -> FineTuningTask:
    """Post sessions and a task, work until it ends, and return it."""
    bench.post_sessions(start)
    task, _ = bench.house.store.tasks.add(TaskRequest(method, **request), utc_now())
    assert bench.worker.work_once()
    return bench.house.store.tasks.get(task.id)


def test_trials_run_side_by_side_and_progress_shows_each(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two processes two trials are at work at once, each with its step and metric."""
    monkeypatch.setenv("TOY_MEETING", str(tmp_path))
    bench = open_bench(settings.replaced(executor="process:2"))
    bench.post_sessions()
    task = bench.post_task("Meeting", trials=3)
    working = threading.Thread(target=bench.worker.work_once)
    working.start()

    def running() -> tuple[RunningTrial, ...]:
        bench.worker.beat()
        progress = bench.house.store.tasks.get(task.id).progress
        return progress.running_trials if progress else ()

    wait_until(lambda: [one.step for one in running()] == [0, 0])
    assert [one.trial for one in running()] == [1, 2]
    assert all(one.main_metric == pytest.approx(0.2) for one in running())
    assert all(one.main_metrics == (one.main_metric,) for one in running())
    (tmp_path / "go on").touch()
    working.join(60)
    done = bench.house.store.tasks.get(task.id)
    assert done.status is TaskStatus.DONE, done.error
    assert done.progress is not None
    assert done.progress.running_trials == ()
    assert (done.progress.finished_trials, done.progress.pruned_trials) == (3, 0)
    assert len(bench.model_files()) == 2  # the initial model's and the best one's
    bench.house.executor.close()
    bench.house.store.close()


@pytest.mark.quick
def test_hopeless_trials_are_pruned_and_never_the_best(bench: Bench) -> None:
    """A pruned run is KILLED in MLflow, says at which step, has no model, and counts as pruned."""
    done = run(bench, "Climbing", budget=Budget(12))
    assert done.status is TaskStatus.DONE
    runs = bench.runs(done)
    pruned = [one for one in runs if one.data.tags["es.outcome"] == "pruned"]
    assert 0 < len(pruned) < len(runs) == 12
    for one in pruned:
        assert one.info.status == "KILLED"
        step = one.data.tags["es.pruned_at_step"]
        assert step in one.data.tags["mlflow.note.content"]
        history = bench.mlflow.get_metric_history(one.info.run_id, "skill")
        assert max(point.step for point in history) == int(step) < 7
        assert "es.model" not in one.data.tags
        assert "es.is_best" not in one.data.tags
    assert done.progress is not None
    assert done.progress.pruned_trials == len(pruned)
    assert done.best_model is not None
    assert done.best_model.run_id not in {one.info.run_id for one in pruned}


def test_a_task_names_its_sampler_and_pruner(bench: Bench) -> None:
    """What the task says goes before what the method says."""
    done = run(bench, "Climbing", budget=Budget(12), search=SearchOptions(pruner=Pruner.NONE))
    assert {one.data.tags["es.outcome"] for one in bench.runs(done)} == {"complete"}
    assert {"pruned"} < {
        one.data.tags["es.outcome"]
        for one in bench.runs(run(bench, "Climbing", start=1000, budget=Budget(12)))
    }
    refused = run(bench, "Toy", start=2000, search=SearchOptions(sampler=Sampler.GRID))
    assert refused.status is TaskStatus.ERROR
    assert "step" in str(refused.error)


@pytest.mark.quick
def test_a_search_ends_when_every_set_was_tried(bench: Bench) -> None:
    """A space of three sets gives three runs, whatever the budget."""
    done = run(bench, "Few", budget=Budget(50))
    assert done.status is TaskStatus.DONE
    skills = sorted(bench.suggested(one)["skill"] for one in bench.runs(done))
    assert skills == pytest.approx([0.3, 0.6, 0.9])
    assert done.progress is not None
    assert done.progress.seconds_left is None


def test_reports_that_come_fast_are_all_logged(bench: Bench) -> None:
    """A thousand reports within a second cost a few calls, and each is in MLflow."""
    done = run(bench, "Chatty", budget=Budget(1))
    assert done.status is TaskStatus.DONE, done.error
    (only,) = bench.runs(done)
    for metric in ("skill", "size"):
        history = bench.mlflow.get_metric_history(only.info.run_id, metric)
        assert sorted(point.step for point in history) == list(range(1001))


@pytest.mark.parametrize(("method", "is_known"), [("Counting", True), ("Toy", False)])
def test_the_time_left_is_known_from_the_first_report(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str, is_known: bool
) -> None:
    """Before a trial has ended it follows from the tokens that were trained; where these are not
    counted, nothing is told."""
    told = []
    show = Lease.show

    def note(self: Lease, **changes: Any) -> None:
        show(self, **changes)
        if self.progress.phase == "search" and not self.progress.finished_trials:
            told.append(self.progress.seconds_left)

    monkeypatch.setattr(Lease, "show", note)
    run(bench, method, budget=Budget(3))
    assert any(left is not None and left >= 0 for left in told) == is_known


def test_a_trials_curve_is_told_with_its_end(bench: Bench) -> None:
    """The event has the main metric of the reports; of a thousand an even choice, with the last."""
    done = run(bench, "Chatty", budget=Budget(1))
    events = bench.house.store.tasks.events(done.id, 0, 100)
    (ended,) = [one.event for one in events if one.event.kind is TaskEventKind.TRIAL_FINISHED]
    (only,) = bench.runs(done)
    history = bench.mlflow.get_metric_history(only.info.run_id, "skill")
    by_step = [point.value for point in sorted(history, key=lambda point: point.step)]
    reports = by_step[:1000]  # the last value is that of the model that the trial returned
    assert list(ended.data["main_metrics"]) == reports[7::32]
    assert len(by_step) == 1001


def test_the_tokens_of_the_budget_end_the_search(bench: Bench) -> None:
    """No set is started once so many tokens were trained on, over all trials."""
    done = run(bench, "Climbing", budget=Budget(50, max_trained_tokens=2400))
    assert done.status is TaskStatus.DONE
    assert done.progress is not None
    before_last = done.progress.trained_tokens - 800
    assert before_last < 2400 <= done.progress.trained_tokens


def test_the_minutes_of_the_budget_end_the_trials_at_work(bench: Bench) -> None:
    """At their end a trial is asked to stop, and what it returns counts; one that reports on is
    ended and says why."""
    done = run(bench, "Heeding", budget=Budget(50, max_minutes=0.01))
    assert done.status is TaskStatus.DONE
    assert done.best_model is not None
    assert {one.info.status for one in bench.runs(done)} == {"FINISHED"}
    failed = run(bench, "Slow", start=1000, budget=Budget(50, max_minutes=0.01))
    assert failed.status is TaskStatus.ERROR
    assert "the end of the search's max_minutes (0.01)" in str(failed.error)
    (ended,) = bench.runs(failed)
    assert ended.info.status == "KILLED"
    assert "max_minutes (0.01)" in ended.data.tags["mlflow.note.content"]


def test_a_trial_that_hangs_costs_no_more_than_the_minutes(settings: Settings) -> None:
    """It is killed when the budget and the grace are over, the best so far is judged as usual."""
    bench = open_bench(settings.replaced(executor="process:2", stop_grace_seconds=0.0))
    done = run(bench, "Stuck once", budget=Budget(2, max_minutes=0.05))
    assert done.status is TaskStatus.DONE, done.error
    assert done.promotion is not None
    assert [one.info.status for one in bench.runs(done)] == ["FINISHED", "KILLED"]
    bench.house.executor.close()
    bench.house.store.close()


def test_the_grace_is_no_longer_than_the_budget(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short search with a trial that hangs ends after twice its minutes, whatever the setting."""
    bench = open_bench(settings.replaced(executor="process:1"))
    started = time.monotonic()
    failed = run(bench, "Stuck", budget=Budget(50, max_minutes=0.01))
    assert time.monotonic() - started < 30 < settings.stop_grace_seconds
    assert failed.status is TaskStatus.ERROR
    assert "after the end of the search's max_minutes (0.01)" in str(failed.error)
    (warning,) = warnings(bench, failed)
    assert "trial 1 has not reported for 0 s" in warning
    bench.house.executor.close()
    bench.house.store.close()


def test_trials_that_never_report_are_told_of_once(bench: Bench) -> None:
    """In words that say what it costs and what to do."""
    done = run(bench, "Silent", budget=Budget(3))
    assert done.status is TaskStatus.DONE
    (warning,) = warnings(bench, done)
    assert warning.startswith("trial 1 ended and had never reported")
    assert "run.report(scores, step)" in warning


def warnings(bench: Bench, task: FineTuningTask) -> list[str]:
    events = [numbered.event for numbered in bench.house.store.tasks.events(task.id)]
    return [event.detail for event in events if event.kind is TaskEventKind.WARNING]


def test_a_trial_may_have_minutes_of_its_own(settings: Settings) -> None:
    """At their end it is asked to stop and counts; what hangs is a failed run that says so, and
    the search goes on."""
    bench = open_bench(settings.replaced(executor="process:2", stop_grace_seconds=0.0))
    done = run(bench, "Stuck once", budget=Budget(3, max_minutes_per_trial=0.05))
    assert done.status is TaskStatus.DONE, done.error
    runs = bench.runs(done)
    assert [one.info.status for one in runs] == ["FINISHED", "FAILED", "FINISHED"]
    assert "the end of its max_minutes_per_trial (0.05)" in runs[1].data.tags["es.failure"]
    assert runs[1].info.run_name == "2 failed: TrialTimedOut"
    assert done.progress is not None
    assert done.progress.failed_trials == 1
    bench.house.executor.close()
    bench.worker._house = replace(bench.house, executor=InlineExecutor())
    heeding = run(bench, "Heeding", start=1000, budget=Budget(1, max_minutes_per_trial=0.005))
    assert heeding.status is TaskStatus.DONE, heeding.error
    bench.house.store.close()


def test_what_trials_print_is_kept_with_their_runs(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also of one that failed; what other steps print is kept with the baseline; the worker's own
    output is spared."""
    bench = open_bench(settings.replaced(executor="process:1"))
    done = run(bench, "Talkative", budget=Budget(2))
    assert done.status is TaskStatus.DONE, done.error
    runs = bench.runs(done)
    assert [one.info.status for one in runs] == ["FINISHED", "FAILED"]
    for one in runs:
        output = bench.mlflow.download_artifacts(one.info.run_id, "output.txt")
        assert Path(output).read_text() == "Epoch 1 of 1\n"
    (baseline,) = bench.runs(done, "baseline")
    (file,) = bench.mlflow.list_artifacts(baseline.info.run_id, "output")
    assert file.path.endswith("preparing-the-data.txt")
    printed = capfd.readouterr()
    assert "Epoch" not in printed.err + printed.out
    assert list(settings.work_folder.iterdir()) == []
    bench.house.executor.close()
    bench.house.store.close()


def test_time_of_trials_side_by_side_counts_once() -> None:
    """The minutes of a budget are those of a clock on the wall, after a crash too."""

    def trial(start: int, end: int) -> Trial:
        return Trial(0, 0, {}, {}, seconds=end - start, ended=1000 * end)

    assert seconds_at_work([]) == 0
    assert seconds_at_work([trial(20, 25), trial(0, 10), trial(5, 12), trial(6, 7)]) == 17


def test_a_step_that_hangs_ends_the_task(settings: Settings) -> None:
    """What is no trial has a limit of its own, which the error names."""
    bench = open_bench(settings.replaced(executor="process:1", max_job_minutes=0.02))
    bench.house.executor.submit(Reporting(), go_on).result(60)  # the fork server has its imports
    failed = run(bench, "Stuck preparing")
    assert failed.status is TaskStatus.ERROR
    assert "still going on after 0.02 minutes" in str(failed.error)
    assert "while preparing the data" in str(failed.error)
    assert "ES_MAX_JOB_MINUTES" in str(failed.error)
    bench.house.executor.close()
    bench.house.store.close()


def test_a_plugin_that_hangs_in_the_worker_ends_the_task(settings: Settings) -> None:
    """What it is asked in the worker's own process cannot be killed, and is not waited for."""
    bench = open_bench(settings.replaced(max_job_minutes=0.02))
    failed = run(bench, "Stuck suggesting")
    assert failed.status is TaskStatus.ERROR
    assert "while proposing a hyperparameter set" in str(failed.error)
    bench.house.store.close()


def test_a_trial_at_work_in_a_crash_begins_anew_under_its_number(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt tries its set again first, with the same seed, and the search goes on as if
    nothing had happened."""
    expected = [
        bench.suggested(one) for one in bench.runs(run(bench, "Climbing", budget=Budget(6)))
    ]
    bench.post_sessions(start=1000)
    task, _ = bench.house.store.tasks.add(TaskRequest("Climbing", budget=Budget(6)), utc_now())
    report, reports = Search.report, []

    def die_in_fourth(self: Search, trial: Trial, value: float, step: int) -> bool:
        reports.append(trial.number)
        if trial.number == 3 and step == 0:
            raise KeyboardInterrupt  # no handler of ours catches it: like a killed worker
        return report(self, trial, value, step)

    house = replace(
        bench.house, settings=bench.house.settings.replaced(seed=0, warm_start_trials=0)
    )
    monkeypatch.setattr("embedding_studio.engine.attempt.SEEDS_PER_GENERATION", 0)
    with monkeypatch.context() as dying:
        dying.setattr(Search, "report", die_in_fourth)
        with pytest.raises(KeyboardInterrupt):
            Worker(house, bench.worker._catalog).work_once()
    later = replace(house, clock=lambda: utc_now() + timedelta(days=1))
    assert Worker(later, bench.worker._catalog).work_once()
    done = bench.house.store.tasks.get(task.id)
    assert done.status is TaskStatus.DONE
    counted = [one for one in bench.runs(done) if "es.outcome" in one.data.tags]
    assert [one.data.tags["es.trial"] for one in counted] == list("012345")
    assert [bench.suggested(one) for one in counted] == expected
    (interrupted,) = [one for one in bench.runs(done) if "es.outcome" not in one.data.tags]
    assert interrupted.info.status == "KILLED"
    assert interrupted.data.tags["es.trial"] == "3"
    assert interrupted.data.params["seed"] == counted[3].data.params["seed"]


class Unreliable(InlineExecutor):
    """Is out of order for its third job, and for a while after it."""

    def __init__(self) -> None:
        self.jobs = 0
        self.pings = 0

    def submit(
        self,
        job: Job[Any],
        on_report: Callable[[Report], Verdict],
        needs: Resources = EVEN_SHARE,
        output: Path | None = None,
    ) -> Future[Any]:
        self.jobs += 1
        if self.jobs == 5:
            raise ExecutorUnavailable("the head is gone")
        return super().submit(job, on_report, needs, output)

    def ping(self) -> None:
        self.pings += 1
        if self.pings < 2:
            raise ExecutorUnavailable("the head is gone")


def test_an_executor_out_of_order_is_waited_for(bench: Bench) -> None:
    """The task stays the worker's, nothing counts as failed, the search goes on where it was."""
    executor = Unreliable()
    bench.worker._house = replace(bench.house, executor=executor)
    done = run(bench, "Toy")
    assert (done.status, done.attempt) == (TaskStatus.DONE, 1)
    assert executor.pings == 2
    counted = [one for one in bench.runs(done) if "es.outcome" in one.data.tags]
    assert [one.data.tags["es.outcome"] for one in counted] == ["complete"] * 3


class CrashingOnce(Unreliable):
    """Is out of order for the job that is the next step, and loses the process of the one after."""

    def submit(
        self,
        job: Job[Any],
        on_report: Callable[[Report], Verdict],
        needs: Resources = EVEN_SHARE,
        output: Path | None = None,
    ) -> Future[Any]:
        self.jobs += 1
        if self.jobs == 1:
            raise ExecutorUnavailable("the head is gone")
        if self.jobs == 2:
            raise TrialCrashed("its memory was another's need")
        return InlineExecutor.submit(self, job, on_report, needs, output)


def test_an_outage_and_a_crash_are_counted_apart(bench: Bench) -> None:
    """A step whose process died is done again, also if the executor was out of order before."""
    bench.worker._house = replace(bench.house, executor=CrashingOnce())
    done = run(bench, "Toy")
    assert (done.status, done.error, done.attempt) == (TaskStatus.DONE, None, 1)


def test_the_sampler_may_learn_from_the_iteration_before(bench: Bench) -> None:
    """With the switch on, the second search proposes near what was best in the first."""
    run(bench, "Toy", budget=Budget(25))
    settings = bench.house.settings.replaced(learn_from_previous=True, warm_start_trials=0)
    bench.worker._house = replace(bench.house, settings=settings)
    bench.post_sessions(start=1000)
    task, _ = bench.house.store.tasks.add(TaskRequest("Toy", budget=Budget(4)), utc_now())
    assert bench.worker.work_once()
    runs = bench.runs(bench.house.store.tasks.get(task.id))
    assert [one.data.tags["es.trial"] for one in runs] == ["0", "1", "2", "3"]
    assert min(bench.suggested(one)["skill"] for one in runs) > 0.6


@pytest.mark.draws
def test_what_the_search_found_is_drawn(settings: Settings) -> None:
    """A summary run has the plots as pictures and as one page, the sets in order, and the study as
    Optuna opens it, with the trials by the numbers that MLflow shows."""
    bench = open_bench(settings)
    done = run(bench, "Climbing", budget=Budget(12))
    (summary,) = bench.runs(done, "summary")
    assert summary.info.status == "FINISHED"
    folder = Path(summary.info.artifact_uri)
    assert {file.name for file in folder.iterdir()} == {
        "search.html", "sets.csv", "study.db",
        "optimization_history.png", "intermediate_values.png",
    }  # fmt: skip
    page = (folder / "search.html").read_text()
    assert page.count("Plotly.newPlot(") == 2
    assert 'src="http' not in page
    names = re.findall(r'"name":"(Trial\d+)"', page)
    assert names[0] == "Trial1"  # as MLflow's runs are named
    with (folder / "sets.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    runs = bench.runs(done)
    assert [row["run_id"] for row in rows] == [one.info.run_id for one in runs]
    assert [float(row["skill"]) for row in rows] == [bench.suggested(r)["skill"] for r in runs]
    assert [row["outcome"] for row in rows] == [one.data.tags["es.outcome"] for one in runs]
    storage = RDBStorage(f"sqlite:///{folder / 'study.db'}")
    study = load_study(study_name=None, storage=storage)
    assert study.metric_names == ["skill"]
    _, *trials = study.trials
    assert [one.number for one in trials] == [*range(1, len(runs) + 1)]
    assert [one.params["skill"] for one in trials] == [float(row["skill"]) for row in rows]
    assert [one.user_attrs["run_id"] for one in trials] == [one.info.run_id for one in runs]
    assert study.best_value == max(one.data.metrics["skill"] for one in runs)
    assert all(one.duration is not None for one in trials)
    storage.remove_session()
    storage.engine.dispose()
    bench.house.store.close()


@pytest.mark.parametrize(("complete", "plots"), [(9, 1), (10, 3)])
def test_sets_are_compared_once_there_are_enough(complete: int, plots: int, tmp_path: Path) -> None:
    """Of fewer than ten, what matters cannot be told from chance; coordinates are drawn where one
    can be picked out, on the page."""
    search = Search("maximize", 0, Sampler.RANDOM, Pruner.NONE)
    trials = []
    for number in range(complete + 1):
        proposed = search.ask(lambda trial: {"x": trial.suggest_float("x", 0, 1)})
        assert proposed is not None
        trial, params = proposed
        is_pruned = number == complete
        outcome = Outcome.PRUNED if is_pruned else Outcome.COMPLETE
        search.tell(trial, outcome, None if is_pruned else float(params["x"]))
        trials.append(trial)
    draw_search(trials, "maximize", "skill", tmp_path)
    pictures = {file.name for file in tmp_path.glob("*.png")}
    expected = {"optimization_history.png", "param_importances.png"}
    assert pictures == (expected if plots == 3 else expected - {"param_importances.png"})
    assert (tmp_path / "search.html").read_text().count("Plotly.newPlot(") == plots


@pytest.mark.draws
def test_a_drawing_that_fails_costs_the_drawing_only(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is done all the same, and its summary run says what failed."""

    def fail(*_: object) -> None:
        raise OSError("no font")

    monkeypatch.setattr("embedding_studio.search.plots.draw_search", fail)
    bench = open_bench(settings)
    done = run(bench, "Toy")
    assert done.status is TaskStatus.DONE
    (summary,) = bench.runs(done, "summary")
    assert "no font" in summary.data.tags["mlflow.note.content"]
    bench.house.store.close()
