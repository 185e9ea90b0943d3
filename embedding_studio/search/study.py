"""One iteration's study: which hyperparameter set comes next, and which trial is hopeless.

The study lives in memory. MLflow keeps the trials, from which the study is
rebuilt after a crash; the sampler is seeded anew for every trial number, so that a rebuilt study
proposes what the uninterrupted one would have."""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from embedding_studio.errors import MethodError
from embedding_studio.methods import Direction, Parameters
from embedding_studio.search.pruners import make_pruner
from embedding_studio.search.samplers import SeededByNumber
from embedding_studio.search.space import FittedSet, Repeating, Suggest, fit, suggest_set
from embedding_studio.search.trial import STATES, Outcome, Trial, resource_at
from embedding_studio.tasks import Pruner, Sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)

MAX_REPEATS = 8
"""After so many sets that were tried already, the rest of the space is enumerated."""


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
        self._pruning = threading.Lock()  # of its own: a `suggest` that hangs holds up no report
        self._seed = seed
        self._pruner = pruner
        self._sampler_name = sampler
        self._sampler = SeededByNumber(sampler, seed, pruner)
        self._study = optuna.create_study(
            study_name=f"search {seed}",  # hyperband draws a trial's bracket by it
            direction=direction,
            sampler=self._sampler,
            pruner=make_pruner(pruner),
        )
        self._running: dict[int, optuna.Trial] = {}  # by number
        self._numbers: dict[int, int] = {}  # of trials that were interrupted, by study number
        self._used: set[int] = set()
        self._tried: set[str] = set()

    # -- known sets, as the present space holds them: to be told before the first `ask` --------
    # each returns, in words, what the space cannot hold

    def learn(self, suggest: Suggest, previous: Iterable[Trial], shift: float) -> list[str]:
        """Let the sampler know an older iteration's complete trials, their values moved by `shift`:
        what the same set would have given if it had gained as much on this iteration's start.

        To be called before anything else."""
        complete = [trial for trial in previous if trial.value is not None]
        fits = [fit(trial.params, suggest, self._seed) for trial in complete]
        for trial, fitted in zip(complete, fits, strict=True):
            if fitted.losses:  # its number is used up all the same: later ones keep theirs
                self._study.add_trial(_filler(fitted))
            else:
                self._study.add_trial(
                    optuna.create_trial(
                        value=(trial.value or 0.0) + shift,
                        params=dict(fitted.params),
                        distributions=dict(fitted.distributions),
                    )
                )
        return _unlearnt("of the previous iteration", fits)

    def replay(self, suggest: Suggest, trials: Sequence[Trial]) -> list[str]:
        """Tell the study what there was before a crash; what was interrupted is tried first."""
        if not trials:
            return []
        # of a set that was tried once more after it was interrupted, the end counts
        trials = sorted(trials, key=lambda trial: trial.outcome is not None)
        known = {trial.study_number: trial for trial in trials}
        fits = {number: fit(trial.params, suggest, self._seed) for number, trial in known.items()}
        ended = [trial for trial in known.values() if trial.outcome is not None]
        self._used.update(trial.number for trial in ended)
        # for a set drawn twice, or one that counts or fits no more: no sampler learns from it
        filler = _filler(min(fits.values(), key=lambda fitted: len(fitted.losses)))
        notes: list[str] = []
        for number in range(len(self._study.trials), max(fits) + 1):
            trial, fitted = known.get(number), fits.get(number)
            if trial is None or fitted is None:
                self._study.add_trial(filler)
            elif trial.outcome is None:  # it runs under its number
                if self._accepts(fitted, notes):
                    self._used.add(trial.number)
                    self._numbers[number] = trial.number
                    self._study.enqueue_trial(dict(fitted.params))
                else:
                    self._study.add_trial(filler)
            elif fitted.losses:
                self._study.add_trial(filler)
            else:
                self._tried.add(_key(fitted.params))
                self._study.add_trial(trial.frozen(fitted))
        notes += _unlearnt("that are finished", [fits[trial.study_number] for trial in ended])
        for trial in sorted(ended, key=lambda trial: trial.ended):
            if trial.outcome is Outcome.COMPLETE:
                self._note_length(trial.frozen())
        return notes

    def recommend(
        self, suggest: Suggest, params: Parameters, is_narrowed: bool = False
    ) -> list[str]:
        """Try the method's own set next, unless it is known already; where a task narrows the
        space, as that allows it."""
        fitted = fit(params, suggest, self._seed)
        if fitted.losses and not is_narrowed:
            differences = ", ".join(fitted.losses)
            return [f"the recommended set is left out, `suggest` cannot draw it: {differences}"]
        if _key(fitted.params) not in self._tried:
            self._tried.add(_key(fitted.params))
            self._study.enqueue_trial(dict(fitted.params))
        return []

    def enqueue(self, suggest: Suggest, trials: Iterable[Trial]) -> list[str]:
        """Try the sets of these trials before any other, but for those that are known already."""
        notes: list[str] = []
        for trial in trials:
            fitted = fit(trial.params, suggest, self._seed)
            if self._accepts(fitted, notes):
                self._study.enqueue_trial(dict(fitted.params))
        return notes

    def _accepts(self, fitted: FittedSet, notes: list[str]) -> bool:
        """Return whether an older set is to be tried, and note what it loses."""
        losses = ", ".join(fitted.losses)
        if not fitted.is_held:
            notes.append(f"an older set is left out, the space has changed: {losses}")
            return False
        if _key(fitted.params) in self._tried:
            return False
        self._tried.add(_key(fitted.params))
        if losses:
            notes.append(
                f"an older set is tried as the space, which has changed, allows it: {losses}"
            )
        return True

    # -- one trial after another ---------------------------------------------------------------

    def ask(self, suggest: Suggest) -> tuple[Trial, Parameters] | None:
        """Propose the next trial, with the set as `suggest` returned it: one that was not tried
        yet, None if there is none."""
        with self._lock:
            for repeats in range(MAX_REPEATS + 1):
                is_last = repeats == MAX_REPEATS
                self._sampler.name = Sampler.GRID if is_last else self._sampler_name
                waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
                trial = self._study.ask()
                try:
                    params = suggest_set(suggest, trial)
                except ValueError as error:
                    if self._sampler.name is Sampler.GRID:
                        raise MethodError(f"this space has no grid: {error}") from error
                    raise
                key = _key(trial.params)
                if waiting or key not in self._tried:
                    self._tried.add(key)
                    return self._begin(trial), params
                self._study.tell(trial.number, state=TrialState.FAIL)
            return None

    def report(self, trial: Trial, value: float, step: int) -> bool:
        """Note an intermediate value; True if the trial should be pruned."""
        with self._pruning:
            running = self._running[trial.number]
            trial.reports[step] = value
            running.report(value, resource_at(step))
            return running.should_prune()

    def tell(self, trial: Trial, outcome: Outcome, value: float | None = None) -> None:
        """End a trial. value: the main metric of a complete one."""
        with self._lock:
            running = self._running.pop(trial.number)
            told = self._study.tell(running.number, value, state=STATES[outcome])
            if outcome is Outcome.COMPLETE:
                self._note_length(told)
            attrs = {name: x for name, x in told.system_attrs.items() if name != "fixed_params"}
            trial.attrs = json.dumps(attrs)  # of a set that was enqueued, the set itself is known
            trial.outcome, trial.value = outcome, value

    def _begin(self, trial: optuna.Trial) -> Trial:
        number = self._numbers.get(trial.number)
        if number is None:
            number = next(n for n in range(len(self._used) + 1) if n not in self._used)
        self._used.add(number)
        self._running[number] = trial
        distributions = {
            name: distribution_to_json(distribution)
            for name, distribution in trial.distributions.items()
        }
        return Trial(number, trial.number, trial.params, distributions)

    def _note_length(self, trial: FrozenTrial) -> None:
        """Tell hyperband, which has to know it, how long a trial is: as long as the first."""
        is_unknown = isinstance(self._study.pruner, optuna.pruners.NopPruner)
        if is_unknown and trial.last_step is not None:
            with self._pruning:
                self._study.pruner = make_pruner(self._pruner, trial.last_step)


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def _unlearnt(which: str, fits: Sequence[FittedSet]) -> list[str]:
    unlearnt = [fitted for fitted in fits if fitted.losses]
    if not unlearnt:
        return []
    return [
        f"the search learns nothing from {len(unlearnt)} of {len(fits)} trials {which}, "
        f"the space has changed: {', '.join(unlearnt[0].losses)}"
    ]


def _filler(fitted: FittedSet) -> FrozenTrial:
    """Return a trial that takes a number in the study, and from which no sampler learns."""
    return optuna.create_trial(
        state=TrialState.FAIL,
        params=dict(fitted.params),
        distributions=dict(fitted.distributions),
    )


def draw_sets(suggest: Suggest, count: int, seed: int) -> list[Parameters]:
    """Draw hyperparameter sets at random, apart from any search: what its trials may look like."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    return [suggest_set(suggest, study.ask()) for _ in range(count)]


def draw_again(suggest: Suggest, values: Mapping[str, Any], seed: int) -> Parameters:
    """Return the set of these values, Optuna's, as the method draws it."""
    return suggest_set(suggest, optuna.create_study(sampler=Repeating(values, seed)).ask())
