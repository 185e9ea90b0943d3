"""A trial as Optuna proposed it and as the ledger keeps it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from embedding_studio.methods import Direction, Parameters
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


@dataclass(frozen=True, slots=True)
class SuggestedSet:
    """A hyperparameter set as Optuna sees it, in JSON."""

    #: by name, with their types
    values: str
    #: the range or the choices of each, by name
    distributions: str

    @property
    def params(self) -> dict[str, Any]:
        """The values by name."""
        return json.loads(self.values)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """A trial before it runs: its numbers and its set."""

    #: among the trials that count, from 0
    number: int
    #: in the study, which also counts sets that were drawn twice and the trials it learnt from
    study_number: int
    suggested: SuggestedSet


@dataclass(frozen=True, slots=True)
class Proposal:
    """The next trial, with the set as the method takes it."""

    planned: PlannedTrial
    #: what the method's `suggest` returned
    params: Parameters

    @property
    def number(self) -> int:
        return self.planned.number


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """A trial as the ledger keeps it."""

    run_id: str
    planned: PlannedTrial
    outcome: Outcome
    #: the final main metric of a complete trial
    value: float | None = None
    #: the reported main metric by step
    intermediate_values: Mapping[int, float] = field(default_factory=dict)
    #: what the pruner noted on it, as JSON
    attrs: str = "{}"
    seconds: float = 0.0
    #: when, in ms since the epoch
    ended: int = 0
    #: whether its model is still there, as that of the best trial is
    has_model: bool = False

    @property
    def suggested(self) -> SuggestedSet:
        return self.planned.suggested

    def frozen(self, fitted: FittedSet | None = None) -> FrozenTrial:
        """Return the trial as Optuna keeps it; fitted: its set as the present space holds it."""
        value = self.value
        if self.outcome is Outcome.PRUNED and self.intermediate_values:
            value = self.intermediate_values[max(self.intermediate_values)]  # as Optuna does
        return optuna.create_trial(
            state=STATES[self.outcome],
            value=value,
            params=dict(fitted.params) if fitted else self.suggested.params,
            distributions=dict(fitted.distributions if fitted else _distributions(self.suggested)),
            intermediate_values={
                resource_at(step): value for step, value in self.intermediate_values.items()
            },
            system_attrs=json.loads(self.attrs),
        )


def best_first(trials: Iterable[FinishedTrial], direction: Direction) -> list[FinishedTrial]:
    """Return the complete trials, best main metric first."""
    complete = [(trial.value, trial) for trial in trials if trial.value is not None]
    complete.sort(key=lambda pair: pair[0], reverse=direction == "maximize")
    return [trial for _, trial in complete]


def resource_at(step: int) -> int:
    """Return what a trial had spent at a step: Optuna's pruners count from 1, methods from 0."""
    return step + 1


def _distributions(suggested: SuggestedSet) -> dict[str, BaseDistribution]:
    texts = json.loads(suggested.distributions)
    return {name: json_to_distribution(text) for name, text in texts.items()}
