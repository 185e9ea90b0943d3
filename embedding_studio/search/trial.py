"""A trial, from its proposal to its place in the ledger."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import optuna
from optuna.distributions import json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from embedding_studio.methods import Direction
from embedding_studio.search.space import FittedSet


class Outcome(StrEnum):
    """How a trial ended, for those that count against the budget."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


STATES = {
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.PRUNED: TrialState.PRUNED,
    Outcome.FAILED: TrialState.FAIL,
}


@dataclass(slots=True)
class Trial:
    """One hyperparameter set, what became of it, and the run that keeps it."""

    #: among the trials that count, from 0
    number: int
    #: in the study, which also counts sets that were drawn twice and the trials it learnt from
    study_number: int
    #: the set as Optuna has it, which JSON can hold
    params: Mapping[str, Any]
    #: the range or the choices of each parameter, as Optuna's JSON
    distributions: Mapping[str, str]
    run_id: str = ""
    #: None of one that is at work, or that was interrupted
    outcome: Outcome | None = None
    #: the final main metric of a complete trial
    value: float | None = None
    #: the main metric by step, as reported
    reports: dict[int, float] = field(default_factory=dict)
    #: what the pruner noted on it, as JSON
    attrs: str = "{}"
    trained_tokens: int = 0
    seconds: float = 0.0
    #: when, in ms since the epoch
    ended: int = 0
    #: whether its model is still there, as that of the best trial is
    has_model: bool = False

    def frozen(self, fitted: FittedSet | None = None) -> FrozenTrial:
        """Return a trial that ended as Optuna keeps it; fitted: its set as the present space holds
        it."""
        assert self.outcome is not None
        value = self.value
        if self.outcome is Outcome.PRUNED and self.reports:
            value = self.reports[max(self.reports)]  # as Optuna does
        distributions = {
            name: json_to_distribution(text) for name, text in self.distributions.items()
        }
        return optuna.create_trial(
            state=STATES[self.outcome],
            value=value,
            params=dict(fitted.params if fitted else self.params),
            distributions=dict(fitted.distributions) if fitted else distributions,
            intermediate_values={resource_at(step): v for step, v in self.reports.items()},
            system_attrs=json.loads(self.attrs),
        )


def best_first(trials: Iterable[Trial], direction: Direction) -> list[Trial]:
    """Return the complete trials, best main metric first."""
    complete = [(trial.value, trial) for trial in trials if trial.value is not None]
    complete.sort(key=lambda pair: pair[0], reverse=direction == "maximize")
    return [trial for _, trial in complete]


def resource_at(step: int) -> int:
    """Return what a trial had spent at a step: Optuna's pruners count from 1, methods from 0."""
    return step + 1
