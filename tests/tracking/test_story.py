"""What people read in MLflow: names of runs, the note above them, and the view that links open."""

import json
from typing import Any

import pytest

from embedding_studio.search import Outcome
from embedding_studio.tasks import (
    FineTuningTask,
    MetricChange,
    Promotion,
    QueryChange,
    ServedModel,
    TaskStatus,
)
from embedding_studio.tracking import story
from embedding_studio.tracking.reader import RUNS_VIEW, experiment_url
from tests.iterations import Bench

TAGS = {"es.method": "Toy", "es.task_id": "t-1", "es.batch_id": "b-1"}


def names(bench: Bench, task: FineTuningTask, kind: str = "trial") -> list[str]:
    return [run.info.run_name for run in bench.runs(task, kind)]


def experiment_tags(bench: Bench, task: FineTuningTask) -> dict[str, Any]:
    assert task.experiment_id is not None
    return dict(bench.mlflow.get_experiment(task.experiment_id).tags)


def test_names_of_runs_say_how_each_ended(bench: Bench) -> None:
    """Baseline and trials are called by their scores, one trial is the best, data has its own."""
    task = bench.run_task(trials=4)
    runs = bench.runs(task)
    values = [run.data.metrics["skill"] for run in runs]
    best = values.index(max(values))
    expected = [f"{number} · {value:.3f}" for number, value in enumerate(values, start=1)]
    expected[best] += " best"
    assert names(bench, task) == expected
    assert runs[best].data.tags["es.is_best"] == "true"
    assert names(bench, task, "baseline") == ["baseline 0.200"]
    (data,) = bench.runs(task, "data")
    assert data.data.metrics["data/sessions"] == 60
    assert {name.partition("/")[0] for name in data.data.metrics} == {"data"}
    (baseline,) = bench.runs(task, "baseline")
    assert not [name for name in baseline.data.metrics if name.startswith("data")]


def test_a_failed_run_is_called_so(bench: Bench) -> None:
    """The name tells the kind of error; the note is the traceback."""
    task = bench.run_task("Failing once")
    assert names(bench, task)[0] == "1 failed: RuntimeError"
    assert len([name for name in names(bench, task) if name.endswith(" best")]) == 1


@pytest.mark.parametrize(
    ("outcome", "value", "step", "failure", "name"),
    [
        (Outcome.COMPLETE, 0.7912, 4, None, "2 · 0.791"),
        (Outcome.COMPLETE, 0.00012, 4, None, "2 · 0.00012"),
        (Outcome.COMPLETE, 123456.0, 4, None, "2 · 1.23e+05"),
        (Outcome.PRUNED, None, 3, None, "2 pruned at 3"),
        (Outcome.FAILED, None, 3, "Traceback:\n  x\nmy.errors.Bad: no: way", "2 failed: Bad"),
        (Outcome.FAILED, None, None, "", "2 failed"),
    ],
)
def test_a_name_fits_its_outcome(
    outcome: Outcome, value: float | None, step: int | None, failure: str | None, name: str
) -> None:
    """Scores have three places where that says something; errors are named without their module."""
    assert story.name_of(2, outcome, value, step, failure) == name


def test_a_restarted_task_marks_the_runs_that_count_no_more(bench: Bench) -> None:
    """What failed before a restart keeps its name and is called superseded, once."""
    task = bench.run_task("Failing")
    for _ in range(2):
        bench.house.store.tasks.restart(task.id, bench.house.clock())
        bench.worker.work_once()
    superseded = names(bench, bench.house.store.tasks.get(task.id), "superseded")
    assert set(superseded) == {f"{n} failed: RuntimeError, superseded" for n in (1, 2, 3)}


def test_the_note_begins_with_the_verdict(bench: Bench) -> None:
    """A line that tells even where it is cut off, then a table with links to run and registry."""
    task = bench.run_task()
    promotion = task.promotion
    assert promotion is not None
    assert promotion.delta_ci95 is not None
    first, _, table = experiment_tags(bench, task)["mlflow.note.content"].partition("\n\n")
    expected = (
        f"Promoted: {promotion.best:.4f}, was 0.2000 (skill on {promotion.test_queries} held-"
    )
    assert first.startswith(expected)
    rows = dict(line.strip("| ").split(" | ", 1) for line in table.splitlines()[2:])
    assert rows["judged by"].startswith("the test queries")
    (best,) = [run for run in bench.runs(task) if "es.is_best" in run.data.tags]
    assert rows["served"].startswith(
        f"[{best.info.run_name}](#/experiments/{task.experiment_id}/runs/{best.info.run_id}?"
    )
    low, high = promotion.delta_ci95
    told = f"0.2000 to {promotion.best:.4f} ({promotion.delta:+.4f}, 95 % interval {low:+.4f} to "
    assert rows["skill"] == f"{told}{high:+.4f}): up"
    assert rows["promoted"].startswith("yes: ")
    assert "models:/Toy@champion" in rows["next step"]
    assert rows["task"] == task.id
    assert rows["batch"] == task.batch_id


def test_the_note_of_a_refused_model_says_what_to_do(bench: Bench) -> None:
    """Where the interval includes zero more data may tell; where it does not, it may not."""
    task = bench.run_task("Worse")
    assert experiment_tags(bench, task)["mlflow.note.content"].startswith("Not promoted: ")
    (best,) = [run for run in bench.runs(task) if "es.is_best" in run.data.tags]

    def next_step(interval: tuple[float, float]) -> str:
        promotion = Promotion(False, "why | so", "m", 0.5, 0.51, 0.01, interval, 20)
        text = story.verdict_note(promotion, TAGS, None, best)
        assert "why \\| so" in text  # a cell of its table stays one cell
        return text.partition("next step | ")[2]

    assert "could not tell them apart" in next_step((-0.01, 0.02))
    far = Promotion(False, "", "m", 0.5, 0.51, 0.01, (-0.01, 0.03), 20, sessions_needed=4000)
    assert "about 4,000 would tell" in story.verdict_note(far, TAGS, None, best)
    assert "could not tell them apart" not in next_step((-0.02, -0.01))


def test_a_note_tells_what_else_changed(bench: Bench) -> None:
    """Metrics that fell, the queries that changed most, and what a verdict of folds is about; what
    strangers searched for makes no links, and the note fits into MLflow's tag."""
    task = bench.run_task()
    (best,) = [run for run in bench.runs(task) if "es.is_best" in run.data.tags]
    metrics = [MetricChange(f"m{n}", 0.5, 0.4, -0.1, (-0.2, -0.05)) for n in range(100)]
    promotion = Promotion(
        True, "r", "m", 0.5, 0.6, 0.1, (0.05, 0.2), 20,
        metrics=tuple(metrics),
        gained=(QueryChange("![](https://evil.example)" * 20, 0.1, 0.9),),
        warnings=("recall_at_10 falls",),
        folds=3,
        served_model=ServedModel.REFIT,
    )  # fmt: skip
    note = story.verdict_note(promotion, TAGS, None, best)
    assert "| m0 | 0.5000 to 0.4000 (-0.1000, 95 % interval -0.2000 to -0.0500): down |" in note
    assert "| beware | recall_at_10 falls |" in note
    assert "3 parts of the queries" in note
    assert "a refit: " in note
    assert "![](" not in note
    assert len(note) <= 5000


def test_the_note_of_an_iteration_without_a_verdict_says_why(bench: Bench) -> None:
    """A failed one tells the error and that a restart goes on from what there is."""
    task = bench.run_task("Failing")
    assert task.status is TaskStatus.ERROR
    note = experiment_tags(bench, task)["mlflow.note.content"]
    assert note.startswith("Failed: AllTrialsFailed: none of 3 hyperparameter sets gave a model")
    assert "restart the task" in note
    assert task.id in note


def test_what_strangers_posted_makes_no_links() -> None:
    """An error may have an item's address or a query in it: MLflow shows these in letters."""
    posted = "no image at <img src=//x> ![](https://evil.example/p.png) \\[a](javascript:b)"
    shown = r"no image at &lt;img src=//x> !\[](https://evil.example/p.png) \\\[a](javascript:b)"
    assert story.state_note("error", posted, TAGS).startswith(f"Failed: {shown}\n")
    assert story.block("a\n```\n![](b)") == "```\na\n'''\n![](b)\n```"


def test_links_open_a_view_that_the_experiment_has(bench: Bench) -> None:
    """The tag that the link names sorts by the main metric and shows it beside the parameters."""
    task = bench.run_task()
    url = experiment_url("http://mlflow", task.experiment_id or "")
    assert url.endswith(f"?workflowType=machine_learning&viewStateShareKey={RUNS_VIEW}")
    view = json.loads(experiment_tags(bench, task)[f"mlflow.sharedViewState.{RUNS_VIEW}"])
    state = json.loads(view["state"])
    assert state["orderByKey"] == "metrics.`skill`"
    assert state["orderByAsc"] is False
    shown = {"metrics.`skill`", "metrics.`test_skill`", "params.`skill`", "params.`shuffle`"}
    assert shown <= set(state["selectedColumns"])


def test_a_view_fits_into_a_tag() -> None:
    """MLflow takes 5,000 characters: of a great many parameters only the first are columns."""
    _, value = story.saved_view("loss", "minimize", [f"parameter_{n}" for n in range(500)], 0)
    assert len(value) < 5000
    assert json.loads(json.loads(value)["state"])["orderByAsc"] is True


def test_a_version_in_the_registry_tells_its_scores(bench: Bench) -> None:
    """Its description is the verdict; its tags are the test scores and the parameters."""
    task = bench.run_task()
    promotion = task.promotion
    assert promotion is not None
    first, second = sorted(
        bench.mlflow.search_model_versions("name = 'Toy'"), key=lambda v: int(v.version)
    )
    (best,) = [run for run in bench.runs(task) if "es.is_best" in run.data.tags]
    assert second.description == story.verdict(promotion)
    assert second.tags["test_skill"] == f"{promotion.best:.4f}"
    assert second.tags["layers"] == best.data.params["layers"]
    assert first.tags == {}  # the initial model
