"""One iteration's study: which hyperparameter set comes next, and which trial is hopeless.

The study lives in memory. MLflow keeps the trials (`FinishedTrial`), from which the study is
rebuilt after a crash; the sampler is seeded anew for every trial number, so that a rebuilt study
proposes what the uninterrupted one would have.
"""

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from embedding_studio.errors import MethodError
from embedding_studio.methods import Direction, Parameters
from embedding_studio.search.pruners import make_pruner
from embedding_studio.search.samplers import SeededByNumber
from embedding_studio.search.space import FittedSet, Suggest, fit, suggest_set
from embedding_studio.search.trial import (
    STATES,
    FinishedTrial,
    Outcome,
    PlannedTrial,
    Proposal,
    SuggestedSet,
    resource_at,
)
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
        self._told: list[Callable[[Suggest], None]] = []
        self._notes: list[str] = []

    def learn(self, previous: Iterable[FinishedTrial], shift: float) -> None:
        """Let the sampler know an older iteration's complete trials, their values moved by `shift`:
        what the same set would have given if it had gained as much on this iteration's start.

        To be called before anything else.
        """
        complete = [trial for trial in previous if trial.value is not None]
        self._told.append(partial(self._learn, complete, shift))

    def replay(
        self, finished: Iterable[FinishedTrial], interrupted: Iterable[PlannedTrial] = ()
    ) -> None:
        """Tell the study what there was before a crash; what was interrupted is tried first."""
        self._told.append(partial(self._replay, list(finished), list(interrupted)))

    def enqueue(self, sets: Iterable[SuggestedSet]) -> None:
        """Try these sets before any other; sets that the search knows already are skipped."""
        self._told.append(partial(self._enqueue, list(sets)))

    def take_notes(self) -> list[str]:
        """Return, once, what of the older sets the method's present space could not hold."""
        notes, self._notes = self._notes, []
        return notes

    # -- older sets, as the present space holds them: the first `ask` tells it -----------------

    def _learn(self, previous: Sequence[FinishedTrial], shift: float, suggest: Suggest) -> None:
        fits = [fit(trial.suggested.params, suggest, self._seed) for trial in previous]
        for trial, fitted in zip(previous, fits, strict=True):
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
        self._note_unlearnt("of the previous iteration", fits)

    def _replay(
        self,
        finished: Sequence[FinishedTrial],
        interrupted: Sequence[PlannedTrial],
        suggest: Suggest,
    ) -> None:
        known = {trial.planned.study_number: trial for trial in finished}
        planned = {one.study_number: one for one in interrupted}
        planned |= {number: trial.planned for number, trial in known.items()}
        if not planned:
            return
        fits = {
            number: fit(one.suggested.params, suggest, self._seed)
            for number, one in planned.items()
        }
        self._used.update(trial.planned.number for trial in known.values())
        # for a set drawn twice, or one that counts or fits no more: no sampler learns from it
        filler = _filler(min(fits.values(), key=lambda fitted: len(fitted.losses)))
        for number in range(len(self._study.trials), max(fits) + 1):
            fitted = fits.get(number)
            if fitted is None or (number not in known and not self._accepts(fitted)):
                self._study.add_trial(filler)
                continue
            if number not in known:
                self._used.add(planned[number].number)
                self._numbers[number] = planned[number].number
                self._study.enqueue_trial(dict(fitted.params))
            elif fitted.losses:
                self._study.add_trial(filler)
            else:
                self._tried.add(_key(fitted.params))
                self._study.add_trial(known[number].frozen(fitted))
        self._note_unlearnt("that are finished", [fits[number] for number in known])
        complete = [trial for trial in known.values() if trial.outcome is Outcome.COMPLETE]
        for trial in sorted(complete, key=lambda trial: trial.ended):
            self._note_length(trial.frozen())

    def _enqueue(self, sets: Sequence[SuggestedSet], suggest: Suggest) -> None:
        for suggested in sets:
            fitted = fit(suggested.params, suggest, self._seed)
            if self._accepts(fitted):
                self._study.enqueue_trial(dict(fitted.params))

    def _accepts(self, fitted: FittedSet) -> bool:
        """Return whether an older set is to be tried, and note what it loses."""
        losses = ", ".join(fitted.losses)
        if not fitted.is_held:
            self._notes.append(f"an older set is left out, the space has changed: {losses}")
            return False
        if _key(fitted.params) in self._tried:
            return False
        self._tried.add(_key(fitted.params))
        if losses:
            self._notes.append(
                f"an older set is tried as the space, which has changed, allows it: {losses}"
            )
        return True

    def _note_unlearnt(self, which: str, fits: Sequence[FittedSet]) -> None:
        unlearnt = [fitted for fitted in fits if fitted.losses]
        if unlearnt:
            self._notes.append(
                f"the search learns nothing from {len(unlearnt)} of {len(fits)} trials {which}, "
                f"the space has changed: {', '.join(unlearnt[0].losses)}"
            )

    # -- one trial after another ---------------------------------------------------------------

    def ask(self, suggest: Suggest) -> Proposal | None:
        """Propose the next trial: a set that was not tried yet, None if there is none."""
        with self._lock:
            while self._told:
                self._told.pop(0)(suggest)
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
                    return Proposal(self._plan(trial), params)
                self._study.tell(trial.number, state=TrialState.FAIL)
            return None

    def report(self, number: int, value: float, step: int) -> bool:
        """Note an intermediate value; True if the trial should be pruned."""
        with self._pruning:
            trial = self._running[number]
            trial.report(value, resource_at(step))
            return trial.should_prune()

    def tell(self, number: int, outcome: Outcome, value: float | None = None) -> str:
        """End a trial; return what the pruner noted on it, for the ledger.

        value: the main metric of a complete trial.
        """
        with self._lock:
            trial = self._study.tell(self._running.pop(number).number, value, state=STATES[outcome])
            if outcome is Outcome.COMPLETE:
                self._note_length(trial)
            attrs = {name: x for name, x in trial.system_attrs.items() if name != "fixed_params"}
            return json.dumps(attrs)  # of a set that was enqueued, the set itself is known

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
            with self._pruning:
                self._study.pruner = make_pruner(self._pruner, trial.last_step)


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


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
