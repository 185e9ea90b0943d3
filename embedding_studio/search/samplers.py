"""Which of Optuna's samplers draws the sets that a task asks for."""

import math
import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from embedding_studio.tasks import Pruner, Sampler

STARTUP_TRIALS = 5
"""So many sets are drawn at random before the sampler learns from them."""


class SeededByNumber(BaseSampler):
    """A sampler that is made anew for each trial, seeded by the trial's number."""

    def __init__(self, name: Sampler, seed: int, pruner: Pruner) -> None:
        #: what draws the next trial's set
        self.name = name
        self._seed = seed
        self._pruner = pruner
        self._sampler = _make_sampler(name, seed, pruner)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._sampler = _make_sampler(self.name, self._seed + trial.number, self._pruner)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


def _make_sampler(name: Sampler, seed: int, pruner: Pruner) -> BaseSampler:
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
    that whatever came through, the worst too, would be what later sets are made like."""
    return math.ceil(math.sqrt(trials) / 4)
