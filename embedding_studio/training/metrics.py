"""Ranking metrics of many queries at once. Ties count against the model; NaN is an error."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from embedding_studio.errors import MethodError
from embedding_studio.labels import RELEVANT_FROM as RELEVANT_FROM

Floats = NDArray[np.float64]

_TIE_DECIMALS = 6


def ranking_metrics(
    scores: NDArray[np.floating],
    relevance: NDArray[np.floating],
    judged: NDArray[np.bool_] | None = None,
    k: int = 10,
) -> Mapping[str, Floats]:
    """Return ndcg, mrr, recall, precision and f1 at k, named "ndcg_at_10" and so on, per query.

    scores: (n_queries, n_items) float; relevance: the same shape, in [0, 1]: a label or the
    probability of one. judged: the same shape; what it leaves out (padding) is not ranked at all.
    Returns (n_queries,) arrays in [0, 1]; 0.0 where nothing is relevant.

    ndcg (Järvelin & Kekäläinen 2002) takes relevance as the gain itself, which for labels 0 and 1
    is the same as 2^rel - 1 and for probabilities gives the expected DCG. The other metrics call
    an item relevant from 0.5 on.

    Scores are compared at six decimals and ties are ranked worst first (the irrelevant on top), so
    a model that gives everything the same vector gets the worst ranking there is. Raises
    MethodError when a judged score is not finite."""
    judged = _all(scores) if judged is None else judged
    known: Floats = np.where(judged, relevance, 0.0).astype(np.float64)
    ranked = _ranked(scores, known, judged, k)
    hits = ranked >= RELEVANT_FROM
    found = hits.sum(axis=1)
    first = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1.0, np.inf)
    precision = found / k
    recall = _ratio(found, (known >= RELEVANT_FROM).sum(axis=1))
    return {
        f"ndcg_at_{k}": _ratio(ranked @ _discounts(ranked), ideal_dcg(known, k)),
        f"mrr_at_{k}": 1 / first,
        f"recall_at_{k}": recall,
        f"precision_at_{k}": precision,
        f"f1_at_{k}": _ratio(2 * precision * recall, precision + recall),
    }


def ideal_dcg(relevance: NDArray[np.floating], k: int = 10) -> Floats:
    """Return (n_queries,) the highest DCG at k any ranking can have. relevance: >= 0, 0 to pad."""
    best = -np.sort(-relevance, axis=1)[:, :k]
    total: Floats = (best @ _discounts(best)).astype(np.float64)
    return total


def similarity_gap(
    scores: NDArray[np.floating],
    relevance: NDArray[np.floating],
    judged: NDArray[np.bool_] | None = None,
) -> float:
    """Return how much more similar a query is to its relevant items than to its irrelevant ones.

    Shapes as in `ranking_metrics`. The mean, over queries that have both kinds, of the mean score
    from relevance 0.5 on minus the mean score below; 0.0 when no query has both. The distance
    shift of a training is this gap after it minus this gap before it."""
    judged = _all(scores) if judged is None else judged
    is_relevant = judged & (relevance >= RELEVANT_FROM)
    is_irrelevant = judged & (relevance < RELEVANT_FROM)
    both = is_relevant.any(axis=1) & is_irrelevant.any(axis=1)
    if not both.any():
        return 0.0
    known = np.where(judged, scores, 0.0)[both].astype(np.float64)

    def mean(chosen: NDArray[np.bool_]) -> Floats:
        means: Floats = (known * chosen[both]).sum(axis=1) / chosen[both].sum(axis=1)
        return means

    return float((mean(is_relevant) - mean(is_irrelevant)).mean())


def _ranked(
    scores: NDArray[np.floating], gains: Floats, judged: NDArray[np.bool_], k: int
) -> Floats:
    """Return (n_queries, min(k, n_items)) gains in the order of the scores, ties worst first."""
    if not np.isfinite(scores[judged]).all():
        raise MethodError("the model gives scores that are not finite: it diverged in training")
    rounded = np.where(judged, np.round(scores, _TIE_DECIMALS), -np.inf)
    order = np.lexsort((gains, -rounded), axis=-1)[:, :k]
    return np.take_along_axis(gains, order, axis=1)


def _discounts(ranked: NDArray[np.floating]) -> Floats:
    return 1 / np.log2(np.arange(2, ranked.shape[1] + 2))


def _all(scores: NDArray[np.floating]) -> NDArray[np.bool_]:
    return np.ones(scores.shape, dtype=np.bool_)


def _ratio(part: NDArray[np.floating] | NDArray[np.integer], whole: NDArray[np.number]) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.zeros(len(part)), where=np.asarray(whole) > 0)
    return ratio
