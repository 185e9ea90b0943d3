"""Which of Optuna's pruners judges a task's trials."""

import warnings

import optuna

from embedding_studio.search.samplers import STARTUP_TRIALS
from embedding_studio.tasks import Pruner

WARMUP_RESOURCE = 2
"""The median judges no trial before this report."""
REDUCTION_FACTOR = 3
PATIENCE = 1


def make_pruner(name: Pruner, steps: int | None = None) -> optuna.pruners.BasePruner:
    """Return Optuna's pruner; hyperband prunes nothing until it knows the `steps` of a trial."""
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
