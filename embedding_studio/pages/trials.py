"""The trials of a task, as its history and its progress tell of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from embedding_studio.tasks import TaskEventKind, TaskProgress
from embedding_studio.wire.tasks import TaskEventView

_ENDED = {
    TaskEventKind.TRIAL_FINISHED: "done",
    TaskEventKind.TRIAL_PRUNED: "pruned",
    TaskEventKind.TRIAL_FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial at work, or one that has ended."""

    number: int
    state: str
    #: the main metric of its reports
    curve: tuple[float, ...] = ()
    #: the last one; of a trial that is done, its result
    value: float | None = None
    is_best: bool = False
    #: what its end was, in words
    detail: str = ""
    #: the hyperparameter set, in words
    parameters: str = ""
    run_id: str = ""


def trials_of(events: Iterable[TaskEventView], progress: TaskProgress | None) -> list[Trial]:
    """Return them by their numbers. A fresh start forgets those before it."""
    found: dict[int, Trial] = {}
    for event in events:
        if event.kind is TaskEventKind.RESTARTED and event.data.get("fresh"):
            found.clear()
        elif event.kind in _ENDED:
            number, curve = event.data["trial"], tuple(event.data.get("main_metrics", ()))
            value = event.data.get("value", curve[-1] if curve else None)
            found[number] = Trial(
                number,
                _ENDED[event.kind],
                curve,
                value,
                detail=event.detail,
                parameters=_told(event.data.get("parameters", {})),
                run_id=event.data.get("run_id", ""),
            )
    for one in progress.running_trials if progress else ():
        found[one.trial] = Trial(one.trial, "at work", one.main_metrics, one.main_metric)
    best = progress.best_so_far if progress else None
    for number, trial in found.items():
        if trial.state == "done" and trial.value == best:
            found[number] = replace(trial, is_best=True)
            break
    return [found[number] for number in sorted(found)]


def _told(parameters: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in parameters.items()
    )
