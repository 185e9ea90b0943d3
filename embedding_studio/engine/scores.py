"""What methods score: read from whatever they gave, averaged, compared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_studio.errors import MethodError
from embedding_studio.methods import MetricValues, Scores
from embedding_studio.tracking.names import to_mlflow

SCORE_TOLERANCE = 1e-3
"""How far the score of a model read back may be from the one it was saved with."""


@dataclass(slots=True)
class Baseline:
    """How the starting model did, on the data of every trial."""

    run_id: str
    #: on the validation split
    metrics: dict[str, float]
    #: how many values the main metric had there; None for one number, or if it is not known
    queries: int | None = None


def read_scores(scores: Any, source: str = "evaluate") -> dict[str, float | NDArray[np.float64]]:
    """Return what a method scored as numbers and arrays with a number per query, whatever library
    they came from. source: of its functions, the one that returned them.

    Raises MethodError for anything else."""
    if not isinstance(scores, Mapping) or not all(isinstance(name, str) for name in scores):
        raise MethodError(
            f"`{source}` gave {str(scores)[:200]}: it must give a dictionary by metric names"
        )
    for name in scores:
        to_mlflow(name)  # refuses one that could not be kept
    return {name: _numbers(name, values) for name, values in scores.items()}


def _numbers(name: str, values: Any) -> float | NDArray[np.float64]:
    if hasattr(values, "detach"):  # torch's, which NumPy reads from the CPU alone
        values = values.detach().cpu().double()
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        array = None
    if array is None or array.ndim > 1:
        raise MethodError(
            f"the metric {name!r} is {str(values)[:200]}: it must be a number, or an array with "
            "one number per query"
        )
    return array if array.ndim else float(array)


def mean_metrics(scores: Scores, main_metric: str) -> dict[str, float]:
    """Average the per-query arrays. Raises MethodError for a missing or non-finite main metric.

    Other metrics that are not finite are left out: MLflow's databases refuse them."""
    read = read_scores(scores)
    if main_metric not in read:
        raise MethodError(f"the scores {sorted(read)} lack the main metric {main_metric!r}")
    means = finite_means(read)
    if main_metric not in means:
        raise MethodError(f"the main metric {main_metric} {_describe(read[main_metric])}")
    return means


def join(parts: Sequence[Scores]) -> dict[str, float | NDArray[np.float64]]:
    """Return the scores of several sets of queries as those of one: arrays end to end, and of
    single numbers the mean."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {
        name: np.concatenate([part[name] for part in parts])
        if all(np.ndim(part[name]) for part in parts)
        else float(np.mean([np.mean(part[name]) for part in parts]))
        for name in names
    }


def finite_means(scores: Scores) -> dict[str, float]:
    means = {name: float(np.mean(values)) for name, values in scores.items() if np.size(values)}
    return {name: mean for name, mean in means.items() if np.isfinite(mean)}


def _describe(values: float | NDArray[np.float64]) -> str:
    """Tell why values have no mean."""
    if not np.size(values):
        return "is an empty array: the split has no query that it could be scored on"
    if np.ndim(values) == 0:
        return f"is {values}, not a number"
    wrong = np.count_nonzero(~np.isfinite(values))
    return f"is not a number for {wrong} of {np.size(values)} queries"


def queries_of(scores: MetricValues) -> int | None:
    """Return how many values of a metric there are; None where it is one number."""
    return np.size(scores) if np.ndim(scores) else None


def are_close(one: float, other: float) -> bool:
    """Return whether two scores may be the same model's on the same queries."""
    return abs(one - other) <= SCORE_TOLERANCE * max(1.0, abs(other))


def agree(one: Scores, other: Scores, metric: str) -> bool:
    before, after = np.mean(one[metric]), np.mean(other[metric])
    is_same_size = np.shape(one[metric]) == np.shape(other[metric])
    return is_same_size and are_close(float(before), float(after))


def say_score(scores: Scores, metric: str) -> str:
    count = queries_of(scores[metric])
    return f"{np.mean(scores[metric]):.6f}" + ("" if count is None else f" ({count} values)")


def suspicions(validation: Scores, test: Scores, metric: str) -> Iterator[str]:
    """Yield what may be a mistake in a starting model's scores."""
    on_validation, on_test = (queries_of(scores[metric]) for scores in (validation, test))
    if (on_validation is None) is not (on_test is None):
        yield (
            f"{metric} is one number on one split and has a value per query on the other: only "
            "values per query on the test split let the gate judge chance"
        )
    values = np.concatenate([np.ravel(scores[metric]) for scores in (validation, test)])
    if len(values) > 2 and np.ptp(values) == 0:
        yield (
            f"{metric} is {values[0]:g} for each of {len(values)} queries: does `evaluate` compute "
            "it from the model?"
        )
