"""The difference of two rankings, as clicks on shown lists tell it.

`browsing` says how likely the clicks of a shown (query, item) pair are if it is relevant and if
not; a regression, how likely it is relevant before any click. The difference of a candidate's
ranking and the starting model's is what the regression expects of it, after it was told, by
likelihood, how relevance goes with the candidate's changes:

    logit P(r = 1) = b . x(starting scores, position) + c . h(changes)
    difference = mean over queries of sum over shown items of w P(r = 1) / scale,

w: discount at the candidate's rank less that at the starting one's. h holds w, so that the fit
agrees with the clicks where the rankings differ (targeting, as in van der Laan & Rubin 2006), and
the change of the log-softmax of scores. Its error is that of an M-estimator, by query (sandwich;
Huber 1967): the values that are returned have the difference as their mean, and its error as the
standard error of that."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]
Flags = NDArray[np.bool_]

TOP = 10
METRICS = ("ndcg", "mrr", "recall", "precision", "f1")
N_POSITIONAL = 4
_TEMPERATURES = (0.05, 0.1)
_RIDGE = 1.0
_ROUNDS = 100
_TIE_DECIMALS = 6
_DISCOUNTS = 1 / np.log2(np.arange(TOP) + 2.0)


@dataclass(frozen=True)
class Start:
    """What is known of a split before a candidate comes: shown pairs, as the start ranks them.

    offsets: (n_queries + 1,) places in the (n_pairs,) columns: evidence, how much likelier a pair's
    clicks are if it is relevant, in log; relevance, the probability that it is; scores, in units of
    cosine; discount, by the rank among all that was shown and the distractors.
    features: (n_pairs, n_features), see `starting_features`; is_asked: (n_queries,) whether a
    person asked; scale: of DCG, see `ideal_of_those_with_any`; unit: what scores are divided by."""

    offsets: Ints
    evidence: Floats
    relevance: Floats
    scores: Floats
    discount: Floats
    features: Floats
    is_asked: Flags
    scale: NDArray[np.floating[Any]]
    unit: NDArray[np.floating[Any]]

    def write(self, folder: Path, split: str) -> None:
        for field in fields(self):
            np.save(folder / _file_of(split, field.name), getattr(self, field.name))

    def judged(self, scores: NDArray[Any], discount: Floats, metric: str = "ndcg") -> Floats:
        """Return (n_asked,) values of a candidate, whose mean is a metric at 10, at most 1.

        scores: (n_pairs,) and discount, of the candidate; metric: one of METRICS. What ranks as
        the start does gets what the start's ranking is worth; another that, and the difference. A
        query that was shown nothing relevant counts 0."""
        own = scores.astype(np.float64) / float(self.unit)
        softer = [
            _log_softmax(own / t, self.offsets) - _log_softmax(self.scores / t, self.offsets)
            for t in _TEMPERATURES
        ]
        before, after = self._counts(metric, self.discount), self._counts(metric, discount)
        level = self._sums(before * self.relevance)[self.is_asked]
        values: Floats = level + self._differences(after - before, softer)
        return values - max(0.0, float(values.mean()) - 1) if len(values) else values

    def _counts(self, metric: str, discount: Floats) -> Floats:
        """Return (n_pairs,) what a relevant item counts at its rank, so that a metric is the sum.

        In F1 and the reciprocal rank, how many others are relevant, or rank above, is taken from
        what is known of the start."""
        is_found = (discount > 0).astype(np.float64)
        counts: Floats
        if metric == "ndcg":
            counts = discount / float(self.scale)
            return counts
        if metric == "precision":
            return is_found / TOP
        row = _rows(self.offsets)
        irrelevant = np.log1p(-np.clip(self.relevance, 0, 1 - 1e-9))
        if metric == "mrr":
            return self._reciprocal_ranks(discount, irrelevant, row)
        expected = self._sums(self.relevance)
        if metric == "f1":
            return 2 * is_found / (TOP + expected[row])
        with_any = (1 - np.exp(self._sums(irrelevant)))[self.is_asked].sum()
        most = float(expected[self.is_asked].sum() / max(1e-9, with_any))
        return is_found / max(1e-9, most)

    def _reciprocal_ranks(self, discount: Floats, irrelevant: Floats, row: Ints) -> Floats:
        """Return 1 / rank, times the chance that nothing relevant ranks above. irrelevant: the log
        of the chance that a pair is not relevant; row: the query of each; all (n_pairs,)."""
        rank = np.full(len(discount), np.inf)
        rank[discount > 0] = 2 ** (1 / discount[discount > 0]) - 1
        order = np.lexsort((rank, row))
        until = np.cumsum(irrelevant[order]) - irrelevant[order]
        chance = np.empty(len(rank))
        chance[order] = np.exp(until - until[self.offsets[row[order]]])
        counts: Floats = chance / rank
        return counts

    def _differences(self, gain: Floats, softer: Sequence[Floats]) -> Floats:
        """Return (n_asked,) values whose mean is the difference that a candidate makes.

        gain: (n_pairs,) by how much more a relevant item counts; softer: (n_pairs,) each, what a
        softmax at two temperatures makes of the scores, less what it made of the start's."""
        row = _rows(self.offsets)
        changes = np.stack([gain, *softer], axis=1)
        gain = gain * self.is_asked[row]
        spread = changes.std(axis=0)
        x = np.concatenate([self.features, changes[:, spread > 0] / spread[spread > 0]], axis=1)
        ridge = np.full(x.shape[1], 1e-6)
        ridge[: self.features.shape[1]] = _RIDGE
        weights = most_likely(x, self.evidence, ridge)
        prior, posterior = expit(x @ weights), expit(x @ weights + self.evidence)
        slope = (gain * prior * (1 - prior)) @ x
        curvature = _curvature(x, prior * (1 - prior) - posterior * (1 - posterior), ridge)
        expected = self._sums(gain * prior)[self.is_asked]
        # how far each query's clicks move the weights, and these the difference
        moved = x @ np.linalg.solve(curvature, slope) * (posterior - prior)
        values = expected + self._sums(moved)[self.is_asked]
        centred: Floats = values + (expected.mean() - values.mean() if len(values) else 0.0)
        return centred

    def _sums(self, values: Floats) -> Floats:
        """Return (n_queries,) sums over each query's pairs."""
        return np.add.reduceat(values, self.offsets[:-1]) if len(self.offsets) > 1 else values[:0]


def open_start(folder: Path, split: str) -> Start | None:
    """Map what `Start.write` wrote; None where nothing was written."""
    if not (folder / _file_of(split, fields(Start)[-1].name)).exists():
        return None
    columns = {
        field.name: np.load(folder / _file_of(split, field.name), mmap_mode="r", allow_pickle=False)
        for field in fields(Start)
    }
    return Start(**columns)


def _file_of(split: str, column: str) -> str:
    return f"{split}_start_{column}.npy"


def starting_features(scores: Floats, position: Ints, offsets: Ints) -> Floats:
    """Return (n_pairs, 9): `positional_features`, and what the starting model's scores say.

    scores: (n_pairs,) in units of cosine; position: (n_pairs,) the highest place that each was
    shown at; offsets: (n_queries + 1,), of lists that are not empty."""
    lengths = np.diff(offsets)
    row = _rows(offsets)
    best = np.maximum.reduceat(scores, offsets[:-1])
    is_best = np.zeros(len(scores), np.bool_)
    is_best[np.lexsort((-scores, row))[offsets[:-1]]] = True
    second = np.maximum.reduceat(np.where(is_best, -np.inf, scores), offsets[:-1])
    ahead = scores - np.where(scores == best[row], second[row], best[row])
    ahead[lengths[row] == 1] = 0.0
    mean = np.add.reduceat(scores, offsets[:-1]) / lengths
    of_scores = [
        *(_log_softmax(scores / t, offsets) for t in _TEMPERATURES),
        ahead,
        mean[row],
        scores,
    ]
    columns = [(column - column.mean()) / (column.std() + 1e-9) for column in of_scores]
    return np.column_stack([positional_features(position), *columns])


def positional_features(position: Ints) -> Floats:
    """Return (n_pairs, N_POSITIONAL): a constant, and the highest position of each, smoothly."""
    columns = [np.ones(len(position)), np.log1p(position) - 1.5, position == 0, position == 1]
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1)


def _rows(offsets: Ints) -> Ints:
    """Return (n_pairs,) the query of each pair."""
    rows: Ints = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return rows


def _log_softmax(values: Floats, offsets: Ints) -> Floats:
    """Return the log-softmax within each list."""
    row = _rows(offsets)
    below = values - np.maximum.reduceat(values, offsets[:-1])[row]
    result: Floats = below - np.log(np.add.reduceat(np.exp(below), offsets[:-1]))[row]
    return result


def discounts(shown: NDArray[Any], others: NDArray[Any], is_other: Flags, offsets: Ints) -> Floats:
    """Return (n_pairs,) what each shown item's rank counts in a DCG@10.

    shown: (n_pairs,) scores; others: (n_queries, n_others) those of what else is ranked, where
    is_other says so. Ties count against what was shown."""
    lists = padded(shown, offsets, -np.inf)
    table = np.concatenate([np.where(is_other, others, -np.inf), lists], axis=1)
    order = np.argsort(-np.round(table, _TIE_DECIMALS), axis=1, kind="stable")[:, :TOP]
    counts = np.zeros(table.shape)
    np.put_along_axis(counts, order, _DISCOUNTS[: order.shape[1]][None], axis=1)
    lengths = np.diff(offsets)
    result: Floats = counts[:, others.shape[1] :][np.arange(lists.shape[1]) < lengths[:, None]]
    return result


def ideal_of_those_with_any(relevance: Floats) -> float:
    """Return the expected ideal DCG of a query given that something it was shown is relevant.

    relevance: (n_queries, n_shown) independent probabilities; how many are relevant is
    Poisson-binomial, and from ten on it is one ideal."""
    count = np.zeros((len(relevance), TOP + 1))
    count[:, 0] = 1
    for column in relevance.T[..., None]:
        overflow = count[:, -1:] * column
        count[:, 1:] = count[:, 1:] * (1 - column) + count[:, :-1] * column
        count[:, -1:] += overflow
        count[:, :1] *= 1 - column
    ideal = count[:, 1:] @ np.cumsum(_DISCOUNTS)
    return float(ideal.mean() / max(1e-9, 1 - count[:, 0].mean()))


def padded(column: NDArray[Any], offsets: Ints, fill: float) -> NDArray[Any]:
    """Return a (n_pairs,) column as (n_queries, longest list), `fill` where a list is shorter."""
    lengths = np.diff(offsets)
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    table = np.full(mask.shape, fill, dtype=column.dtype)
    table[mask] = column
    return table


def most_likely(x: Floats, evidence: Floats, ridge: Floats) -> Floats:
    """Maximise sum log(1 - p + p exp(evidence)), logit p = x . weights, by damped Newton steps."""
    weights = np.zeros(x.shape[1])

    def value(weights: Floats) -> float:
        prior = x @ weights
        gained = np.logaddexp(0, prior + evidence) - np.logaddexp(0, prior)
        return float(gained.sum() - (ridge * weights**2).sum() / 2)

    now = value(weights)
    for _ in range(_ROUNDS):
        prior, posterior = expit(x @ weights), expit(x @ weights + evidence)
        complete = prior * (1 - prior)
        curvature = _curvature(x, complete - posterior * (1 - posterior), ridge)
        try:
            np.linalg.cholesky(curvature)
        except np.linalg.LinAlgError:  # not yet near: the steps of EM go up for sure
            curvature = _curvature(x, complete, ridge)
        step = np.linalg.solve(curvature, x.T @ (posterior - prior) - ridge * weights)
        size, then = 1.0, value(weights + step)
        while then < now and size > 1e-4:
            size /= 2
            then = value(weights + size * step)
        weights = weights + size * step
        if abs(then - now) < 1e-8 * max(1.0, abs(now)):
            break
        now = then
    return weights


def _curvature(x: Floats, information: Floats, ridge: Floats) -> Floats:
    curvature: Floats = (x * information[:, None]).T @ x + np.diag(ridge)
    return curvature
