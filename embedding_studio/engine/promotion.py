"""The promotion gate: is the new model better than the one it started from, beyond chance?"""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from embedding_studio.compare_page import Result, SideBySide, compare_page_of
from embedding_studio.engine.jobs import Examined
from embedding_studio.engine.scores import queries_of
from embedding_studio.errors import MethodError
from embedding_studio.methods import Direction, MetricValues, Scores
from embedding_studio.tasks import Comparison, MetricChange, Promote, Promotion, QueryChange

RESAMPLES = 10_000
MOST_QUERIES_TOLD = 20
_DECIMALS = 12  # a difference beyond them is left by arithmetic
_QUERY_LENGTH = 200
_MORE_IS_BETTER = re.compile("ndcg|mrr|recall|precision|map|f1|hit", re.IGNORECASE)
_MOST_SESSIONS_TOLD = 100  # times those there are: more would be no advice


def bootstrap_ci95(differences: NDArray[np.floating], seed: int) -> list[tuple[float, float]]:
    """95 % percentile intervals of the means of paired differences (Efron & Tibshirani 1993,
    ch. 13), one per metric, all from the same resamples.

    differences: (n_queries, n_metrics), n_queries >= 1. Deterministic for a seed."""
    rng = np.random.default_rng(seed)
    n = len(differences)
    # queries drawn with replacement, as counts: (resamples, queries) once, in bounded memory
    means = np.concatenate(
        [
            rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES // 20) @ differences / n
            for _ in range(20)
        ]
    )
    return [(float(low), float(high)) for low, high in np.quantile(means, [0.025, 0.975], axis=0).T]


def decide(
    metric: str,
    direction: Direction,
    baseline: Scores,
    best: Scores,
    seed: int,
    promote: Promote = Promote.SIGNIFICANT,
    labels_id: str | None = None,
) -> Promotion:
    """Compare two models on the same held-out queries; labels_id: whose they are, if of labels.

    With per-query arrays the difference is beyond chance if the whole 95 % interval of the paired
    difference lies on one side of zero; single numbers tell nothing of chance. promote: what it
    takes. Raises MethodError when the two were not scored on the same queries."""
    before, after = np.asarray(baseline[metric], float), np.asarray(best[metric], float)
    if before.shape != after.shape:
        raise MethodError(f"{metric} was scored on {before.size} and then on {after.size} queries")
    sign = 1.0 if direction == "maximize" else -1.0
    delta = float(np.mean(_differences(before, after)))
    changes = changes_of(baseline, best, seed)
    interval = next(change.delta_ci95 for change in changes if change.name == metric)
    is_better = sign * delta > 0
    is_sure = is_better and (interval is None or min(sign * bound for bound in interval) > 0)
    where = "held-out queries" if labels_id is None else f"the queries of labels {labels_id!r}"
    if not is_better:
        reason = f"no better on {where}"
    elif interval is None:
        reason = f"better on {where}"
    elif is_sure:
        reason = f"better on {where}: the whole 95 % interval is on the better side"
    else:
        reason = f"better on {where}, but not beyond chance: the interval includes zero"
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
        test_queries=queries_of(best[metric]),
        metrics=tuple(changes),
        warnings=tuple(_losses(changes, metric)) if is_better else (),
        judge_labels_id=labels_id,
    )


def compare(
    metric: str,
    before: Scores,
    after: Scores,
    seed: int,
    labels_id: str | None = None,
    is_golden: bool = False,
) -> Comparison:
    """Compare two models on queries that do not decide."""
    [change] = changes_of({metric: before[metric]}, {metric: after[metric]}, seed)
    return Comparison(labels_id, is_golden, change, queries_of(after[metric]))


def guard(promotion: Promotion, direction: Direction) -> Promotion:
    """Refuse a model that got worse on golden queries beyond chance."""
    sign = 1.0 if direction == "maximize" else -1.0
    for one in promotion.others:
        interval = one.change.delta_ci95
        if one.is_golden and interval and max(sign * bound for bound in interval) < 0:
            told = (
                f"worse beyond chance on the golden queries of {one.labels_id!r} "
                f"({one.change.delta:+.4f}, 95 % interval {interval[0]:+.4f} to {interval[1]:+.4f})"
            )
            reason = f"{promotion.reason}, but {told}"
            promotion = replace(promotion, promoted=False, reason=reason)
    return promotion


def averaged(examined: Sequence[Examined]) -> Examined:
    """Return several models on the same queries as one: each query's values averaged."""
    scores = {
        name: np.mean([np.asarray(one.scores[name]) for one in examined], axis=0)
        for name in examined[0].scores
        if len({np.shape(one.scores.get(name, ())) for one in examined}) == 1
    }
    explained = {
        query: float(np.mean([one.explained[query] for one in examined]))
        for query in examined[0].explained
        if all(query in one.explained for one in examined)
    }
    return Examined(scores, explained, examined[0].ranked)


def changes_of(before: Scores, after: Scores, seed: int) -> list[MetricChange]:
    """Return how each metric changed that both have, with an interval where it has a value per
    query on both sides.

    What is not finite makes no interval."""
    changes: dict[str, MetricChange] = {}
    paired: dict[int, list[str]] = {}  # those of as many queries share their resamples
    for name in [name for name in after if name in before]:
        first, then = float(np.mean(before[name])), float(np.mean(after[name]))
        changes[name] = MetricChange(name, first, then, round(then - first, _DECIMALS))
        shape = np.shape(before[name])
        if len(shape) == 1 and shape == np.shape(after[name]) and math.isfinite(then - first):
            paired.setdefault(shape[0], []).append(name)
    for names in paired.values():
        differences = np.stack([_differences(before[name], after[name]) for name in names], axis=1)
        for name, interval in zip(names, bootstrap_ci95(differences, seed), strict=True):
            changes[name] = replace(changes[name], delta_ci95=interval)
    return [*changes.values()]


def _differences(before: MetricValues, after: MetricValues) -> NDArray[np.float64]:
    differences: NDArray[np.float64] = np.round(np.asarray(after, float) - before, _DECIMALS)
    return differences


def _losses(changes: Sequence[MetricChange], metric: str) -> list[str]:
    """Return a warning for each other ranking metric that fell beyond chance."""
    return [
        f"{change.name} falls from {change.before:.4f} to {change.after:.4f} "
        f"({change.delta:+.4f}, 95 % interval {change.delta_ci95[0]:+.4f} to "
        f"{change.delta_ci95[1]:+.4f}) while {metric} rises"
        for change in changes
        if change.name != metric
        and _MORE_IS_BETTER.match(change.name)
        and change.delta_ci95
        and change.delta_ci95[1] < 0
    ]


def sessions_needed(promotion: Promotion, sessions: int) -> int | None:
    """Return how many sessions would tell a difference of this size from chance, for its interval
    narrows with their square root; None where it is told, or would take a hundred times as many."""
    interval = promotion.delta_ci95
    if interval is None or promotion.delta == 0 or not interval[0] < 0 < interval[1]:
        return None
    times = ((interval[1] - interval[0]) / 2 / promotion.delta) ** 2
    return math.ceil(sessions * times) if 1 < times <= _MOST_SESSIONS_TOLD else None


def query_changes(before: Sequence[Examined], after: Sequence[Examined]) -> list[QueryChange]:
    """Return the queries that the method explains, those that gained most first. before, after: two
    models on the same parts of the queries."""
    changes = [
        QueryChange(query[:_QUERY_LENGTH], value, then.explained[query])
        for first, then in zip(before, after, strict=True)
        for query, value in first.explained.items()
        if query in then.explained
    ]
    return sorted(changes, key=lambda change: change.before - change.after)


def most_changed(changes: Sequence[QueryChange]) -> tuple[tuple[QueryChange, ...], ...]:
    """Return the queries that gained most, and those that lost most, of all by their gain."""
    gained = [change for change in changes if change.after > change.before]
    lost = [change for change in reversed(changes) if change.after < change.before]
    return tuple(gained[:MOST_QUERIES_TOLD]), tuple(lost[:MOST_QUERIES_TOLD])


def queries_page(
    before: Sequence[Examined],
    after: Sequence[Examined],
    changes: Sequence[QueryChange],
    metrics: Sequence[MetricChange],
) -> str:
    """Return a page of what two models rank first for the queries that changed most; empty where
    their method does not tell."""
    gained, lost = most_changed(changes)
    former, new = (
        {
            query[:_QUERY_LENGTH]: [*map(Result, found)]
            for one in some
            for query, found in one.ranked.items()
        }
        for some in (before, after)
    )
    lists = [
        SideBySide(one.query, former[one.query], new[one.query], (one.before, one.after))
        for one in (*gained, *lost)
        if one.query in former and one.query in new
    ]
    told = (
        f"The {len(gained)} of {len(changes)} held-out queries that gained most, then the "
        f"{len(lost)} that lost most. Each model ranked what searchers were shown, and items drawn "
        "at random among it."
    )
    return compare_page_of(("before", "after"), lists, metrics, told, "score") if lists else ""


def as_csv(changes: Sequence[QueryChange]) -> str:
    """Return a table of queries, before, after and difference."""
    table = io.StringIO()
    rows = ([c.query, c.before, c.after, c.after - c.before] for c in changes)
    csv.writer(table).writerows(chain([["query", "before", "after", "difference"]], rows))
    return table.getvalue()
