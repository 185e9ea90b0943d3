"""The promotion gate: is the new model better than the one it started from, beyond chance?"""

import numpy as np
from numpy.typing import NDArray

from embedding_studio.errors import MethodError
from embedding_studio.methods import Direction, Scores
from embedding_studio.tasks import Promote, Promotion

RESAMPLES = 10_000


def bootstrap_ci95(differences: NDArray[np.floating], seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of paired differences (Efron & Tibshirani 1993, ch. 13).

    differences: (n_queries,), n_queries >= 1. Deterministic for a seed."""
    rng = np.random.default_rng(seed)
    n = len(differences)
    # queries drawn with replacement, as counts: (resamples, queries) once, in bounded memory
    means = np.concatenate(
        [
            rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES // 20) @ differences / n
            for _ in range(20)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def decide(
    metric: str,
    direction: Direction,
    baseline: Scores,
    best: Scores,
    seed: int,
    promote: Promote = Promote.SIGNIFICANT,
) -> Promotion:
    """Compare two models on the same untouched test split.

    With per-query arrays the difference is beyond chance if the whole 95 % interval of the paired
    difference lies on one side of zero; single numbers tell nothing of chance. promote: what it
    takes. Raises MethodError when the two were not scored on the same queries."""
    before, after = np.asarray(baseline[metric], float), np.asarray(best[metric], float)
    if before.shape != after.shape:
        raise MethodError(f"{metric} was scored on {before.size} and then on {after.size} queries")
    sign = 1.0 if direction == "maximize" else -1.0
    delta = float(np.mean(after - before))
    interval = bootstrap_ci95(after - before, seed) if before.ndim else None
    is_better = sign * delta > 0
    is_sure = is_better and (interval is None or min(sign * bound for bound in interval) > 0)
    if not is_better:
        reason = "no better on the test split"
    elif interval is None:
        reason = "better on the test split"
    elif is_sure:
        reason = "better on the test split: the whole 95 % interval is on the better side"
    else:
        reason = "better on the test split, but not beyond chance: the interval includes zero"
    if promote is Promote.NEVER:
        promoted = False
        reason += "; a person decides, for the task's `promote` is never"
    elif promote is Promote.BETTER:
        promoted = is_better
        if is_better and not is_sure:
            reason += "; that is enough, for the task's `promote` is better"
    else:
        promoted = is_sure
    return Promotion(
        promoted=promoted,
        reason=reason,
        metric_name=metric,
        baseline=float(np.mean(before)),
        best=float(np.mean(after)),
        delta=delta,
        delta_ci95=interval,
        test_queries=before.size if before.ndim else None,
    )
