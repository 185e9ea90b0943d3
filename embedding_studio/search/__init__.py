"""Everything Optuna: which hyperparameter set comes next, and which trial is hopeless.

The study lives in memory. MLflow keeps the trials (`FinishedTrial`), from which the study is
rebuilt after a crash; the sampler is seeded anew for every trial number, so that a rebuilt study
proposes what the uninterrupted one would have.
"""

import json
import math
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from embedding_studio.errors import MethodError
from embedding_studio.methods import Direction, Parameters
from embedding_studio.tasks import Pruner, Sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)

STARTUP_TRIALS = 5
"""So many sets are drawn at random before the sampler learns from them, and the median counts."""
WARMUP_RESOURCE = 2
"""The median judges no trial before this report."""
REDUCTION_FACTOR = 3
PATIENCE = 1
MAX_REPEATS = 8
"""After so many sets that were tried already, the rest of the space is enumerated."""


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

    @property
    def params(self) -> dict[str, Any]:
        """The values by name."""
        return json.loads(self.values)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """number: 0-based, among the trials that count; study_number: in the study, which counts more:
    sets that were drawn twice, and what it learnt from the previous iteration."""

    number: int
    study_number: int
    suggested: SuggestedSet


@dataclass(frozen=True, slots=True)
class Proposal:
    """The next trial. params: what the method's `suggest` returned."""

    planned: PlannedTrial
    params: Parameters

    @property
    def number(self) -> int:
        return self.planned.number


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """A trial as the ledger keeps it. value: the final main metric of a complete one.

    attrs: what the pruner noted on it, as JSON. ended: when, in ms since the epoch.
    has_model: whether its model is still there, as that of the best one is."""

    run_id: str
    planned: PlannedTrial
    outcome: Outcome
    value: float | None = None
    intermediate_values: Mapping[int, float] = field(default_factory=dict)
    attrs: str = "{}"
    seconds: float = 0.0
    ended: int = 0
    has_model: bool = False

    @property
    def suggested(self) -> SuggestedSet:
        return self.planned.suggested

    def frozen(self) -> FrozenTrial:
        """Return the trial as Optuna keeps it."""
        value = self.value
        if self.outcome is Outcome.PRUNED and self.intermediate_values:
            value = self.intermediate_values[max(self.intermediate_values)]  # as Optuna does
        return optuna.create_trial(
            state=_STATES[self.outcome],
            value=value,
            params=self.suggested.params,
            distributions=_distributions(self.suggested),
            intermediate_values={
                _resource(step): value for step, value in self.intermediate_values.items()
            },
            system_attrs=json.loads(self.attrs),
        )


class Search:
    """One iteration's study. Safe to use from several threads."""

    def __init__(
        self,
        direction: Direction,
        seed: int,
        sampler: Sampler = Sampler.TPE,
        pruner: Pruner = Pruner.MEDIAN,
    ) -> None:
        self._lock = threading.Lock()
        self._seed = seed
        self._sampler = sampler
        self._pruner = pruner
        self._study = optuna.create_study(
            study_name=f"search {seed}",  # hyperband draws a trial's bracket by it
            direction=direction,
            pruner=_make_pruner(pruner),
        )
        self._space = IntersectionSearchSpace(include_pruned=True)
        self._running: dict[int, optuna.Trial] = {}  # by number
        self._numbers: dict[int, int] = {}  # of trials that were interrupted, by study number
        self._used: set[int] = set()
        self._tried: set[str] = set()

    def learn(self, previous: Iterable[FinishedTrial], shift: float) -> None:
        """Let the sampler know an older iteration's complete trials, their values moved by `shift`:
        what the same set would have given if it had gained as much on this iteration's start.

        To be called before anything else.
        """
        for trial in previous:
            if trial.value is not None:
                self._study.add_trial(
                    optuna.create_trial(
                        value=trial.value + shift,
                        params=trial.suggested.params,
                        distributions=_distributions(trial.suggested),
                    )
                )

    def replay(
        self, finished: Iterable[FinishedTrial], interrupted: Iterable[PlannedTrial] = ()
    ) -> None:
        """Tell the study what there was before a crash; what was interrupted is tried first."""
        known = {trial.planned.study_number: trial for trial in finished}
        waiting = {
            planned.study_number: planned
            for planned in interrupted
            if planned.study_number not in known
        }
        planned_trials = [trial.planned for trial in known.values()] + list(waiting.values())
        if not planned_trials:
            return
        self._used.update(planned.number for planned in planned_trials)
        self._tried.update(map(_key, (planned.suggested.params for planned in planned_trials)))
        for number in range(len(self._study.trials), max(known | waiting) + 1):
            if number in known:
                self._study.add_trial(known[number].frozen())
            elif number in waiting:
                self._numbers[number] = waiting[number].number
                self._study.enqueue_trial(waiting[number].suggested.params)
            else:  # a set drawn twice, or one that counts no more: no sampler learns from it
                suggested = planned_trials[0].suggested
                self._study.add_trial(
                    optuna.create_trial(
                        state=TrialState.FAIL,
                        params=suggested.params,
                        distributions=_distributions(suggested),
                    )
                )
        complete = [trial for trial in known.values() if trial.outcome is Outcome.COMPLETE]
        for trial in sorted(complete, key=lambda trial: trial.ended):
            self._note_length(trial.frozen())

    def enqueue(self, sets: Iterable[SuggestedSet]) -> None:
        """Try these sets before any other; sets that the search knows already are skipped."""
        for suggested in sets:
            key = _key(suggested.params)
            if key not in self._tried:
                self._tried.add(key)
                self._study.enqueue_trial(suggested.params)

    def ask(self, suggest: Callable[[optuna.Trial], Parameters]) -> Proposal | None:
        """Propose the next trial: a set that was not tried yet, None if there is none."""
        with self._lock:
            for repeats in range(MAX_REPEATS + 1):
                trials = self._study.get_trials(deepcopy=False)
                waiting = [t.number for t in trials if t.state is TrialState.WAITING]
                seed = self._seed + (waiting[0] if waiting else len(trials))
                name = Sampler.GRID if repeats == MAX_REPEATS else self._sampler
                self._study.sampler = _make_sampler(name, seed, self._pruner)
                if isinstance(self._study.sampler, optuna.samplers.TPESampler):
                    # it goes through all trials for the space, but for those it has seen already
                    self._study.sampler._search_space = self._space
                trial = self._study.ask()
                try:
                    params = suggest(trial)
                except ValueError as error:
                    if name is Sampler.GRID:
                        raise MethodError(f"this space has no grid: {error}") from error
                    raise
                # a sampler that enumerates wants to end the study itself, which it cannot here
                self._study.sampler = optuna.samplers.RandomSampler()
                key = _key(trial.params)
                if waiting or key not in self._tried:
                    self._tried.add(key)
                    return Proposal(self._plan(trial), params)
                self._study.tell(trial.number, state=TrialState.FAIL)
            return None

    def report(self, number: int, value: float, step: int) -> bool:
        """Note an intermediate value; True if the trial should be pruned."""
        with self._lock:
            trial = self._running[number]
            trial.report(value, _resource(step))
            return trial.should_prune()

    def tell(self, number: int, outcome: Outcome, value: float | None = None) -> str:
        """End a trial; return what the pruner noted on it, for the ledger.

        value: the main metric of a complete trial.
        """
        with self._lock:
            trial = self._study.tell(
                self._running.pop(number).number, value, state=_STATES[outcome]
            )
            if outcome is Outcome.COMPLETE:
                self._note_length(trial)
            return json.dumps(trial.system_attrs)

    def _plan(self, trial: optuna.Trial) -> PlannedTrial:
        number = self._numbers.get(trial.number)
        if number is None:
            number = next(n for n in range(len(self._used) + 1) if n not in self._used)
        self._used.add(number)
        self._running[number] = trial
        distributions = {
            name: distribution_to_json(distribution)
            for name, distribution in trial.distributions.items()
        }
        suggested = SuggestedSet(json.dumps(trial.params), json.dumps(distributions))
        return PlannedTrial(number, trial.number, suggested)

    def _note_length(self, trial: FrozenTrial) -> None:
        """Tell hyperband, which has to know it, how long a trial is: as long as the first."""
        is_unknown = isinstance(self._study.pruner, optuna.pruners.NopPruner)
        if is_unknown and trial.last_step is not None:
            self._study.pruner = _make_pruner(self._pruner, trial.last_step)


def _resource(step: int) -> int:
    """Return what a trial had spent at a step: Optuna's pruners count from 1, methods from 0."""
    return step + 1


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def _distributions(suggested: SuggestedSet) -> dict[str, optuna.distributions.BaseDistribution]:
    texts = json.loads(suggested.distributions)
    return {name: json_to_distribution(text) for name, text in texts.items()}


def _make_sampler(name: Sampler, seed: int, pruner: Pruner) -> optuna.samplers.BaseSampler:
    match name:
        case Sampler.TPE:
            is_eager = pruner in (Pruner.ASHA, Pruner.HYPERBAND)
            with warnings.catch_warnings():
                # Optuna wants to do without `gamma` from version 6 on
                warnings.simplefilter("ignore", FutureWarning)
                return optuna.samplers.TPESampler(
                    seed=seed,
                    n_startup_trials=STARTUP_TRIALS,
                    constant_liar=True,
                    gamma=_count_good if is_eager else None,
                )
        case Sampler.GP:
            return optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False
            )
        case Sampler.RANDOM:
            return optuna.samplers.RandomSampler(seed)
        case Sampler.GRID:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.samplers.BruteForceSampler(seed, avoid_premature_stop=True)


def _count_good(trials: int) -> int:
    """Return how many of so many trials TPE learns from as good ones: a quarter of their root.

    Bergstra et al., 2013. Optuna's tenth is more than an eager pruner lets through to the end, so
    that whatever came through, the worst too, would be what later sets are made like.
    """
    return math.ceil(math.sqrt(trials) / 4)


def _make_pruner(name: Pruner, steps: int | None = None) -> optuna.pruners.BasePruner:
    """steps: of a trial; without it hyperband prunes nothing yet."""
    median = optuna.pruners.MedianPruner(
        n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARMUP_RESOURCE
    )
    match name:
        case Pruner.MEDIAN:
            return median
        case Pruner.PATIENT:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.pruners.PatientPruner(median, patience=PATIENCE)
        case Pruner.ASHA:
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=1, reduction_factor=REDUCTION_FACTOR
            )
        case Pruner.HYPERBAND if steps is not None:
            return optuna.pruners.HyperbandPruner(
                min_resource=1, max_resource=steps, reduction_factor=REDUCTION_FACTOR
            )
        case _:
            return optuna.pruners.NopPruner()


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
