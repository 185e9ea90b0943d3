"""Everything Optuna: which hyperparameter set comes next, and which trial is hopeless.

The study lives in memory. MLflow keeps the trials (`FinishedTrial`), from which the study is
rebuilt after a crash; the sampler is seeded anew for every trial number, so that a rebuilt study
proposes what the uninterrupted one would have.
"""

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import TrialState

from embedding_studio.methods import Direction, Parameters

optuna.logging.set_verbosity(optuna.logging.WARNING)

STARTUP_TRIALS = 5


class Outcome(StrEnum):
    """How a trial ended, for those that count against the budget."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


_STATES = {
    Outcome.COMPLETE: TrialState.COMPLETE,
    Outcome.PRUNED: TrialState.PRUNED,
    Outcome.FAILED: TrialState.FAIL,
}


@dataclass(frozen=True, slots=True)
class SuggestedSet:
    """Optuna's own view of a hyperparameter set, as JSON: values with their types, and ranges."""

    values: str
    distributions: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """The next trial. number: 0-based; params: what the method's `suggest` returned."""

    number: int
    params: Parameters
    suggested: SuggestedSet


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """A trial as the ledger keeps it. value: the final main metric of a complete one.

    has_model: whether its model is still there, as that of the best one is."""

    run_id: str
    suggested: SuggestedSet
    outcome: Outcome
    value: float | None = None
    intermediate_values: Mapping[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    has_model: bool = False


class Search:
    """One iteration's study. Safe to use from several threads."""

    def __init__(self, direction: Direction, seed: int) -> None:
        self._lock = threading.Lock()
        self._seed = seed
        self._study = optuna.create_study(
            direction=direction,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1),
        )
        self._running: dict[int, optuna.Trial] = {}

    def replay(self, trials: Iterable[FinishedTrial]) -> None:
        """Tell the study what was finished before a crash, in the order it was finished."""
        for trial in trials:
            self._study.add_trial(
                optuna.create_trial(
                    state=_STATES[trial.outcome],
                    value=trial.value,
                    params=json.loads(trial.suggested.values),
                    distributions={
                        name: json_to_distribution(text)
                        for name, text in json.loads(trial.suggested.distributions).items()
                    },
                    intermediate_values=dict(trial.intermediate_values),
                )
            )

    def enqueue(self, sets: Iterable[SuggestedSet]) -> None:
        """Try these sets before any other; sets that the study knows already are skipped."""
        for suggested in sets:
            self._study.enqueue_trial(json.loads(suggested.values), skip_if_exists=True)

    def ask(self, suggest: Callable[[optuna.Trial], Parameters]) -> Proposal:
        """Propose the next trial."""
        with self._lock:
            trials = self._study.get_trials(deepcopy=False)
            tried = sum(trial.state is not TrialState.WAITING for trial in trials)
            self._study.sampler = optuna.samplers.TPESampler(
                seed=self._seed + tried, n_startup_trials=STARTUP_TRIALS, constant_liar=True
            )
            trial = self._study.ask()
            params = suggest(trial)
            self._running[trial.number] = trial
            distributions = {
                name: distribution_to_json(distribution)
                for name, distribution in trial.distributions.items()
            }
            suggested = SuggestedSet(json.dumps(trial.params), json.dumps(distributions))
            return Proposal(trial.number, params, suggested)

    def report(self, number: int, value: float, step: int) -> bool:
        """Note an intermediate value; True if the trial should be pruned."""
        with self._lock:
            trial = self._running[number]
            trial.report(value, step)
            return trial.should_prune()

    def tell(self, number: int, outcome: Outcome, value: float | None = None) -> None:
        """End a trial. value: the main metric of a complete trial."""
        with self._lock:
            del self._running[number]
            self._study.tell(number, value, state=_STATES[outcome])


def draw_sets(
    suggest: Callable[[optuna.Trial], Parameters], count: int, seed: int
) -> list[Parameters]:
    """Draw hyperparameter sets at random, apart from any search: what its trials may look like."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    return [suggest(study.ask()) for _ in range(count)]


def best_first(trials: Iterable[FinishedTrial], direction: Direction) -> list[FinishedTrial]:
    """Return the complete trials, best main metric first."""
    complete = [(trial.value, trial) for trial in trials if trial.value is not None]
    complete.sort(key=lambda pair: pair[0], reverse=direction == "maximize")
    return [trial for _, trial in complete]
