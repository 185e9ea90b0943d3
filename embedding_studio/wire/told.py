"""A task in words: where it stands, and how it ended."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from embedding_studio.clock import in_words
from embedding_studio.tasks import TERMINAL, Promotion, TaskStatus

if TYPE_CHECKING:
    from embedding_studio.wire.tasks import TaskView

TOLD_QUERIES = 3


def describe(task: "TaskView") -> str:
    """Say in one line where a task stands."""
    now = task.progress
    if task.status is TaskStatus.PENDING:
        return "waits for a worker"
    if now is None or task.status in TERMINAL:
        return str(task.status)
    parts = [now.phase if task.status is TaskStatus.PROCESSING else f"{task.status}, {now.phase}"]
    if now.phase == "search":
        parts.append(f"{now.finished_trials} of {now.max_trials} trials have ended")
        parts += [
            f"trial {one.trial}, step {one.step}: {one.main_metric:.4f}"
            for one in now.running_trials
            if one.main_metric is not None
        ]
    if now.baseline is not None:
        parts.append(f"{now.main_metric_name} at the start {now.baseline:.4f}")
    if now.best_so_far is not None:
        parts.append(f"best so far {now.best_so_far:.4f}")
    if now.seconds_left is not None:
        parts.append(f"about {in_words(now.seconds_left)} left in this phase")
    return "; ".join(parts)


def verdict_lines(task: "TaskView") -> Iterator[str]:
    """Say how a task ended, in words."""
    if task.status is TaskStatus.ERROR:
        yield f"task {task.id} failed: {task.error}"
        yield f"once that is mended: embedding-studio task restart {task.id}"
    elif task.status is TaskStatus.CANCELED:
        yield f"task {task.id} was canceled; nothing of it is kept"
    elif task.promotion is None:
        yield f"task {task.id} is {task.status}, without a verdict: {task.error or 'no model'}"
    else:
        name = task.model_name or task.fine_tuning_method
        became = f"the model is champion of {name}" if task.promotion.promoted else "not promoted"
        yield f"task {task.id} is {task.status}; {became}: {task.promotion.reason}"
        yield from _figures(task.promotion)
        if task.best_model_url:
            yield f"the model as a ZIP: {task.best_model_url}"


def _figures(verdict: Promotion) -> Iterator[str]:
    where = f"on {verdict.test_queries} queries" if verdict.test_queries else "on held-out queries"
    interval = verdict.delta_ci95
    likely = (
        ""
        if interval is None
        else f", with 95 % confidence {interval[0]:+.4f} to {interval[1]:+.4f}"
    )
    yield (
        f"{verdict.metric_name} {where}: {verdict.baseline:.4f} before, {verdict.best:.4f} after "
        f"({verdict.delta:+.4f}{likely})"
    )
    if verdict.sessions_needed:
        yield f"about {verdict.sessions_needed:,} sessions would tell this difference from chance"
    for what, changed in (("gained", verdict.gained), ("lost", verdict.lost)):
        for one in changed[:TOLD_QUERIES]:
            yield f"{what}: {one.query!r} {one.before:.3f} to {one.after:.3f}"
    for warning in verdict.warnings:
        yield f"! {warning}"
