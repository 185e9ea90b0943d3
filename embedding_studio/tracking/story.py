"""What people read in MLflow's UI: names of runs, notes, and the view that a link opens.

Nothing is ever found by these: the tags `es.*` are for programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from embedding_studio.methods import Direction
from embedding_studio.search import Outcome
from embedding_studio.tasks import Comparison, MetricChange, Promotion, QueryChange, ServedModel
from embedding_studio.tracking.names import to_mlflow
from embedding_studio.tracking.reader import QUERIES_PAGE, RUNS_VIEW, TRAINING_UI, run_url

if TYPE_CHECKING:
    from mlflow.entities import Run

OTHER_CHAMPION = (
    "roll back to another version, or point the alias `champion` in MLflow to one that can be read"
)
"""What to do about a champion that cannot be read."""
BEST = " best"
"""The end of the name of the best trial's run."""
_MOST_COLUMNS = 20  # MLflow takes 5,000 characters of a tag
_TAG_LENGTH = 500
_NOTE_LENGTH = 5000  # of an experiment's tag
_MOST_METRICS = 12
_MOST_QUERIES = 5
_QUERY_LENGTH = 60
_PROSE_LENGTH = 2000  # of that, for escaped characters count twice
_BLOCK_LENGTH = 4000
ASIDE = "system/"
"""Metrics so named stand on a page of their own in MLflow, and after all others: what has another
prefix before a slash comes before the curves."""
TEST = "test_"
"""How metrics of the test split begin: they come after the curves."""


def short(value: float) -> str:
    """Return a score in three places, or in three digits where these would say nothing."""
    return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.3g}"


def name_of(
    number: int | None, outcome: Outcome, value: float | None, step: int | None, failure: str | None
) -> str:
    """Return what a run that has ended is called; number: the trial's, None for the baseline."""
    if number is None:
        return "baseline" if value is None else f"baseline {short(value)}"
    if outcome is Outcome.FAILED:
        kind = (failure or "").strip().rpartition("\n")[2].partition(":")[0].rpartition(".")[2]
        return f"{number} failed: {kind}" if kind.isidentifier() else f"{number} failed"
    if outcome is Outcome.PRUNED:
        return f"{number} pruned" + ("" if step is None else f" at {step}")
    return f"{number} · {short(value or 0.0)}"


def saved_view(
    metric: str, direction: Direction, params: Iterable[str], now_ms: int
) -> tuple[str, str]:
    """Return name and value of the experiment's tag that keeps a view of its runs.

    The best run comes first, the columns are what a trial is judged by and what was tried, and the
    charts begin with the curves."""
    columns = [f"metrics.`{to_mlflow(metric)}`", f"metrics.`{TEST}{to_mlflow(metric)}`"]
    columns += [f"params.`{to_mlflow(str(name))}`" for name in params][:_MOST_COLUMNS]
    state = {
        "orderByKey": columns[0],
        "orderByAsc": direction == "minimize",
        "selectedColumns": [*columns, "attributes.`Duration`"],
        "isAccordionReordered": True,
        "compareRunCharts": [],
        "compareRunSections": [_section("Model metrics"), _section("data", is_open=False)],
    }
    view = {"name": "Iteration", "createdAt": now_ms, "updatedAt": now_ms}
    return f"mlflow.sharedViewState.{RUNS_VIEW}", json.dumps({**view, "state": json.dumps(state)})


def _section(name: str, is_open: bool = True) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": is_open, "isReordered": True}


def prose(text: str) -> str:
    """Return Markdown that shows the beginning of a text as it is: what strangers posted may be
    part of it, and makes no links and no images."""
    return text[:_PROSE_LENGTH].replace("\\", "\\\\").replace("[", "\\[").replace("<", "&lt;")


def block(text: str) -> str:
    """Return Markdown that shows the end of a text, as it is, in lines of its own."""
    return "```\n" + text[-_BLOCK_LENGTH:].replace("```", "'''") + "\n```"


def _note(headline: str, rows: Mapping[str, str]) -> str:
    """Return Markdown: a line, for lists show no more of it, then a table of two columns."""
    cells = {name: " ".join(text.split()).replace("|", "\\|") for name, text in rows.items()}
    lines = [f"| {name} | {cell} |" for name, cell in cells.items()]
    return "\n".join([" ".join(headline.split()), "", "| | |", "|---|---|", *lines])


def _about(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the rows that every note has. tags: the experiment's."""
    about = {"method": tags["es.method"], "task": tags["es.task_id"]}
    if method := tags.get("es.plugin"):
        about = {"model": tags["es.method"], **about, "method": method}
    if batch_id := tags["es.batch_id"]:
        about["batch"] = batch_id
    if labels_id := tags.get("es.labels"):
        about["labels"] = labels_id
    if made := tags.get("es.made"):
        about["sessions"] = f"made {made}, in batches up to this one"
    if tokens := int(tags.get("es.trained_tokens", 0)):  # not every method counts any
        about["cost"] = f"{tokens:,} trained tokens"
    return about


_NEXT_STEPS = {
    "error": "put right what failed, then restart the task: finished trials are kept",
    "stopped": "restart the task, or start another",
    "canceled": "restart the task: its finished trials are kept, only the best is trained again",
}


def state_note(state: str, why: str, tags: Mapping[str, str]) -> str:
    """Return what stands above the runs of an iteration that has no verdict; tags: its own."""
    word = {"error": "Failed"}.get(state, state.capitalize())
    rows = {"next step": _NEXT_STEPS[state]} if state in _NEXT_STEPS else {}
    return _note(f"{word}: {prose(why)}" if why else word, {**rows, **_about(tags)})


def verdict(promotion: Promotion) -> str:
    """Say what the gate decided, in one line that tells the most where it is cut off."""
    queries = f"{promotion.test_queries} " if promotion.test_queries else ""
    queries += "held-out queries" if promotion.judge_labels_id is None else "labelled queries"
    told = (
        f"{'Promoted' if promotion.promoted else 'Not promoted'}: {promotion.best:.4f}, was "
        f"{promotion.baseline:.4f} ({promotion.metric_name} on {queries}): {promotion.reason}"
    )
    learnt = [one.change for one in promotion.others if one.labels_id is None]
    return f"{told}. What is learnt from says {change(learnt[0])}" if learnt else told


def judged_by(promotion: Promotion) -> str:
    """Say which queries made the verdict, and what it is about."""
    if (labels_id := promotion.judge_labels_id) is not None:
        models = "the best trial" if promotion.folds == 1 else f"{promotion.folds} models"
        return (
            f"the queries of labels {labels_id!r}, of which nothing was learnt, ranked by {models}"
        )
    if promotion.folds == 1:
        return "the test queries, which the best trial has not seen"
    return (
        f"{promotion.folds} parts of the queries: the best hyperparameter set was trained without "
        "each, and the model that had not seen a query ranked it"
    )


def served(promotion: Promotion) -> str:
    """Say which model the verdict's task has."""
    if promotion.served_model is ServedModel.TRIAL:
        return "the best trial's model"
    return "a refit: the same hyperparameter set, trained on all queries but those of validation"


def change(metric: MetricChange) -> str:
    """Say how a metric changed, and whether chance would do."""
    told = f"{metric.before:.4f} to {metric.after:.4f} ({metric.delta:+.4f}"
    if metric.delta_ci95 is None:
        return f"{told})"
    low, high = metric.delta_ci95
    side = "up" if low > 0 else "down" if high < 0 else "within chance"
    return f"{told}, 95 % interval {low:+.4f} to {high:+.4f}): {side}"


def _name_of(other: Comparison) -> str:
    name = other.change.name
    if other.labels_id is None:
        return f"{name} by what is learnt from"
    return f"{name} of golden {other.labels_id}"


def _changed(queries: Sequence[QueryChange]) -> str:
    shown = (
        f"{prose(one.query[:_QUERY_LENGTH])} ({one.before:.2f} to {one.after:.2f})"
        for one in queries[:_MOST_QUERIES]
    )
    return ", ".join(shown) or "none"


def promoted_by_hand(by: str, why: str) -> str:
    """Say in one line that a person made a model champion, and why if a reason was given."""
    return f"Promoted by hand, by {by}" + (f": {why}" if why else "")


def preceded(note: str, told: str) -> str:
    """Return a note with a line before it, once."""
    line = " ".join(prose(told).split())
    return note if note.startswith(line) else f"{line}\n\n{note}"[:_NOTE_LENGTH]


def verdict_note(
    promotion: Promotion, tags: Mapping[str, str], baseline: "Run | None", best: "Run"
) -> str:
    """Return what stands above an iteration's runs: the verdict in a line, then in figures.

    tags: the experiment's; best: the run of the model that is served."""
    link = run_url("", best.info.experiment_id, best.info.run_id).removeprefix("/")
    validation = baseline.data.metrics[to_mlflow(promotion.metric_name)] if baseline else None
    on_validation = "" if validation is None else f", its start {validation:.4f}"
    by_labels = promotion.judge_labels_id is not None or not tags["es.batch_id"]
    rows = {
        "promoted": ("yes" if promotion.promoted else "no") + f": {promotion.reason}",
        "next step": _next_step(promotion, tags["es.method"], by_labels),
        "judged by": judged_by(promotion),
        "served": f"[{best.info.run_name}]({link}) on validation{on_validation}: "
        + served(promotion),
        **{one.name: change(one) for one in promotion.metrics[:_MOST_METRICS]},
        **{_name_of(one): change(one.change) for one in promotion.others[:_MOST_METRICS]},
    }
    if promotion.warnings:
        rows["beware"] = "; ".join(promotion.warnings[:_MOST_METRICS])
    if promotion.gained or promotion.lost:
        rows |= {"gained": _changed(promotion.gained), "lost": _changed(promotion.lost)}
    if promotion.has_lists:
        page = run_url("", best.info.experiment_id, best.info.run_id, QUERIES_PAGE)
        rows["ranked first"] = f"[before and after]({page.removeprefix('/')})"
    return _note(verdict(promotion), {**rows, **_about(tags)})[:_NOTE_LENGTH]


def _next_step(promotion: Promotion, model_name: str, by_labels: bool) -> str:
    if promotion.promoted:
        registry = f"#/models/{quote(model_name)}?{TRAINING_UI}"
        return f"deploy [models:/{model_name}@champion]({registry}), and collect sessions with it"
    if promotion.sessions_needed is not None:
        return (
            f"collect more sessions: about {promotion.sessions_needed:,} would tell a difference "
            "of this size from chance"
        )
    more = "put more labels" if by_labels else "collect more sessions"
    if promotion.delta_ci95 and promotion.delta_ci95[0] * promotion.delta_ci95[1] < 0:
        return f"{more}, then start a new task: the test could not tell them apart"
    return f"{more} or try more sets: the champion stays"


def version_tags(run: "Run") -> dict[str, str]:
    """Return what a registered version shows of its run: scores on the test split, parameters."""
    metrics = run.data.metrics.items()
    scores = {name: f"{value:.4f}" for name, value in metrics if name.startswith(TEST)}
    return {**scores, **{name: value[:_TAG_LENGTH] for name, value in run.data.params.items()}}
