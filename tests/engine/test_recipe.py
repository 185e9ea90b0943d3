"""The best set judged by all folds of the queries, and trained on all of them for serving."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Run

from embedding_studio.clickstream import split_by_query
from embedding_studio.clock import utc_now
from embedding_studio.engine.jobs import Examined
from embedding_studio.engine.promotion import (
    as_csv,
    decide,
    most_changed,
    query_changes,
    sessions_needed,
)
from embedding_studio.engine.recipe import Recipe
from embedding_studio.engine.worker import Worker
from embedding_studio.errors import LeaseLost
from embedding_studio.methods import Scores
from embedding_studio.tasks import (
    FineTuningTask,
    Promote,
    Promotion,
    QueryChange,
    ServedModel,
    TaskEventKind,
    TaskStatus,
)
from embedding_studio.tracking.reader import run_url
from embedding_studio.wire.tasks import TaskView
from tests.iterations import Bench, make_session

pytestmark = pytest.mark.slow


def trainings(bench: Bench, task: FineTuningTask) -> dict[str, Run]:
    """The runs of further trainings, by what they are."""
    return {run.info.run_name.split(" · ")[0]: run for run in bench.runs(task, "training")}


def warnings(bench: Bench, task: FineTuningTask) -> list[str]:
    events = [one.event for one in bench.house.store.tasks.events(task.id, 0, 1000)]
    return [event.detail for event in events if event.kind is TaskEventKind.WARNING]


def verdict_of(task: FineTuningTask) -> Promotion:
    assert task.promotion is not None
    return task.promotion


# -- the folds -----------------------------------------------------------------------------------


@pytest.mark.quick
def test_every_query_but_those_of_validation_is_tested_once() -> None:
    """The folds' test parts have every such query once, validation is the same in all of them, and
    the first is the split that the trials have."""
    sessions = [make_session(number) for number in range(300)]
    folds = [split_by_query(sessions, 0.15, 0.3, 3, fold) for fold in range(3)]
    tested = [session.session_id for fold in folds for session in fold.test]
    (validation,) = {tuple(one.session_id for one in fold.validation) for fold in folds}
    assert len(tested) == len(set(tested))
    assert set(tested) | set(validation) == {one.session_id for one in sessions}
    assert all(len(fold.test) > 60 for fold in folds)
    assert folds[0] == split_by_query(sessions, 0.15, 0.3)


@pytest.mark.quick
def test_what_is_served_learns_from_all_but_validation() -> None:
    sessions = [make_session(number) for number in range(100)]
    parts = split_by_query(sessions, 0.15, 0.3, 3, None)
    assert len(parts.train) + len(parts.validation) == 100
    assert parts.test == parts.validation


# -- in an iteration -----------------------------------------------------------------------------


@pytest.mark.quick
def test_all_queries_judge_and_the_refit_is_served(bench: Bench) -> None:
    """With three folds, two further trainings and a refit have runs of their own with the best
    trial's parameters; the verdict counts all queries but validation's; the refit's model alone is
    kept, is champion, and the task says so."""
    task = bench.run_task("Folded")
    assert (task.status, task.error) == (TaskStatus.DONE, None)
    found = trainings(bench, task)
    assert sorted(found) == ["fold 2 of 3", "fold 3 of 3", "refit"]
    verdict = verdict_of(task)
    assert verdict.promoted
    assert (verdict.folds, verdict.served_model) == (3, ServedModel.REFIT)
    sessions = [make_session(number) for number in range(60)]
    validation = split_by_query(sessions, 0.15, 0.15).validation
    assert verdict.test_queries == 60 - len(validation)
    assert task.best_model is not None
    assert task.best_model.run_id == found["refit"].info.run_id
    assert bench.mlflow.get_model_version_by_alias("Folded", "champion").run_id == (
        task.best_model.run_id
    )
    assert len(bench.model_files()) == 2
    best = max(bench.runs(task), key=lambda run: float(run.data.tags["es.value"]))
    for run in found.values():
        assert run.data.params == best.data.params
    assert found["refit"].data.tags["es.training_of"] == best.info.run_id
    assert found["refit"].data.metrics["test_skill"] == pytest.approx(verdict.best)


def test_a_task_may_ask_for_the_test_split_alone(bench: Bench) -> None:
    """`folds` of a task is over the method's; with 1 nothing is trained again."""
    task = bench.run_task("Folded", folds=1)
    assert trainings(bench, task) == {}
    verdict = verdict_of(task)
    assert (verdict.folds, verdict.served_model) == (1, ServedModel.TRIAL)
    asked = bench.run_task("Toy", start=1000, folds=2)
    assert sorted(trainings(bench, asked)) == ["fold 2 of 2", "refit"]


def test_a_refused_set_is_not_trained_for_serving(bench: Bench) -> None:
    """The folds judge it; the refit is spared. Where a person is to decide, it is made."""
    task = bench.run_task("Folded and worse")
    assert sorted(trainings(bench, task)) == ["fold 2 of 3", "fold 3 of 3"]
    assert not verdict_of(task).promoted
    kept = bench.run_task("Folded", start=1000, promote=Promote.NEVER)
    assert "refit" in trainings(bench, kept)
    assert verdict_of(kept).served_model is ServedModel.REFIT
    assert not verdict_of(kept).promoted


@pytest.mark.parametrize("method", ["Failing in folds", "Refit is worse"])
def test_a_training_that_fails_costs_no_verdict(bench: Bench, method: str) -> None:
    """A fold that fails leaves the verdict to the test queries, a refit that fails or is worse than
    the folds' models leaves the best trial's to be served; the task's history tells why."""
    task = bench.run_task(method)
    verdict = verdict_of(task)
    assert (task.status, verdict.promoted) == (TaskStatus.DONE, True)
    assert verdict.served_model is ServedModel.TRIAL
    assert verdict.folds == (1 if method == "Failing in folds" else 3)
    assert task.best_model is not None
    assert task.best_model.run_id in {run.info.run_id for run in bench.runs(task)}
    (told,) = [text for text in warnings(bench, task) if "judged by" in text or "kept" in text]
    assert ("RuntimeError: no luck" in told) is (method == "Failing in folds")
    assert ("on the queries of the folds" in told) is (method == "Refit is worse")
    assert len(bench.model_files()) == 2


def test_a_death_among_the_trainings_costs_no_trial(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt trains the folds and the refit anew, with the trials that there are."""
    refit = Recipe.refit

    def die(self: Recipe, *args: Any) -> None:
        refit(self, *args)
        raise LeaseLost("the machine was switched off")

    monkeypatch.setattr(Recipe, "refit", die)
    task = bench.run_task("Folded")
    before = {run.info.run_id for run in bench.runs(task)}
    assert task.status is TaskStatus.PROCESSING
    monkeypatch.setattr(Recipe, "refit", refit)
    later = replace(bench.house, clock=lambda: utc_now() + timedelta(days=1))
    assert Worker(later, bench.worker._catalog).work_once()
    task = bench.house.store.tasks.get(task.id)
    assert task.status is TaskStatus.DONE
    assert {run.info.run_id for run in bench.runs(task)} == before
    assert sorted(trainings(bench, task)) == ["fold 2 of 3", "fold 3 of 3", "refit"]
    assert len(bench.model_files()) == 2


# -- what a verdict tells ------------------------------------------------------------------------


@pytest.mark.quick
def test_a_verdict_has_every_metric_and_says_which_fall() -> None:
    """Each has its own interval; one that falls beyond chance while the main one rises is told."""
    rng = np.random.default_rng(0)
    ndcg, recall = rng.random(200), rng.random(200)
    before: Scores = {"ndcg_at_10": ndcg, "recall_at_10": recall, "similarity_gap": 0.4}
    after: Scores = {
        "ndcg_at_10": ndcg + rng.normal(0.05, 0.05, 200),
        "recall_at_10": recall - rng.normal(0.06, 0.05, 200),
        "similarity_gap": 0.3,
    }
    verdict = decide("ndcg_at_10", "maximize", before, after, seed=0)
    changes = {change.name: change for change in verdict.metrics}
    assert changes["ndcg_at_10"].delta_ci95 == verdict.delta_ci95
    assert changes["similarity_gap"].delta_ci95 is None
    assert changes["recall_at_10"].delta == pytest.approx(-0.06, abs=0.01)
    (warning,) = verdict.warnings
    assert warning.startswith("recall_at_10 falls from")


@pytest.mark.quick
def test_a_refused_verdict_says_how_many_sessions_would_tell() -> None:
    """An interval twice as wide as the difference takes four times the sessions; none is said where
    chance is ruled out, or where it would take more than a hundred times as many."""
    verdict = Promotion(False, "", "m", 0.5, 0.51, 0.01, (-0.01, 0.03), 100)
    assert sessions_needed(verdict, 1000) == 4000
    assert sessions_needed(replace(verdict, delta_ci95=(0.001, 0.019)), 1000) is None
    assert sessions_needed(replace(verdict, delta=0.001), 1000) is None
    assert sessions_needed(replace(verdict, delta_ci95=None), 1000) is None


@pytest.mark.quick
def test_queries_are_told_by_what_they_gained() -> None:
    """The most gained and the most lost first, and all of them in a table."""
    before = [Examined({}, {"a": 0.5, "b": 0.2}), Examined({}, {"c, d": 0.5, "e": 0.3})]
    after = [Examined({}, {"a": 0.1, "b": 0.9}), Examined({}, {"c, d": 0.7, "e": 0.3})]
    changes = query_changes(before, after)
    gained, lost = most_changed(changes)
    assert gained == (QueryChange("b", 0.2, 0.9), QueryChange("c, d", 0.5, 0.7))
    assert lost == (QueryChange("a", 0.5, 0.1),)
    lines = as_csv(changes).splitlines()
    assert lines[0] == "query,before,after,difference"
    assert lines[2].startswith('"c, d",0.5,0.7,')
    assert len(lines) == 5


def test_a_method_that_explains_queries_leaves_a_table(bench: Bench) -> None:
    """`queries.csv` lies with the model that is served, and the task names the first of them."""
    task = bench.run_task("Explaining")
    assert task.best_model is not None
    table = bench.mlflow.download_artifacts(task.best_model.run_id, "queries.csv")
    verdict = verdict_of(task)
    assert len(Path(table).read_text().splitlines()) == 1 + (verdict.test_queries or 0)
    assert len(verdict.gained) == 20
    assert verdict.lost == ()


def test_a_method_that_ranks_leaves_a_page(bench: Bench) -> None:
    """`queries.html` lies beside the table, with both lists of the queries that changed most, and
    nothing in it is markup of strangers; the task and the note lead there."""
    task = bench.run_task("Explaining")
    assert task.best_model is not None
    assert task.experiment_id is not None
    run_id = task.best_model.run_id
    page = Path(bench.mlflow.download_artifacts(run_id, "queries.html")).read_text()
    verdict = verdict_of(task)
    assert verdict.has_lists
    assert page.count("<article>") == 20
    assert page.count('<span class="mark">new</span>') == 20
    assert "<b>" not in page
    assert "&lt;b&gt;lamp&lt;/b&gt;" in page
    place = run_url("", task.experiment_id, run_id, "queries.html").removeprefix("/")
    view = TaskView.of(task, bench.house.settings, None)
    assert (view.queries_url or "").endswith(f"/{place}")
    note = bench.mlflow.get_experiment(task.experiment_id).tags["mlflow.note.content"]
    assert f"[before and after]({place})" in note
