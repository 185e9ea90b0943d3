"""How good a model is, judged by clicks that another model's ranking received."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from embedding_studio.training.data import QueryLists
from embedding_studio.training.encoder import embed_frozen
from embedding_studio.training.inputs import Inputs
from embedding_studio.training.metrics import (
    RELEVANT_FROM,
    dcg,
    ideal_dcg,
    ranking_metrics,
    similarity_gap,
)
from embedding_studio.training.serving import COSINE, similarity_functions

PerQuery = NDArray[np.float64]
Vectors = NDArray[np.float32]
Ints = NDArray[np.integer]

_CHUNK = 10_000


def evaluate(
    model: SentenceTransformer, lists: QueryLists, items: Inputs | None = None
) -> dict[str, float | PerQuery]:
    """Score an encoder with `evaluate_vectors`, each distinct query and item encoded once.

    items: what the lists' items are, where they are not texts."""
    item_inputs = lists.texts if items is None else items
    return evaluate_vectors(
        lists,
        embed_frozen(model, lists.texts, lists.queries),
        lambda which: embed_frozen(model, item_inputs, which),
        model.similarity_fn_name,
    )


def evaluate_vectors(
    lists: QueryLists,
    queries: Vectors,
    embed_items: Callable[[NDArray[np.integer]], Vectors],
    similarity: str = COSINE,
) -> dict[str, float | PerQuery]:
    """Score a model by how it ranks what each query was shown, and random items among it.

    queries: (n_queries, d) embeddings of lists.queries; embed_items: those of any items.
    similarity: what a search compares them by; where it is the cosine, they are unit vectors.

    ndcg_at_10, (n_queries,): the click model's unbiased estimate of each query's DCG@10 over the
    ideal DCG@10 of the average query, times the query's weight. Single values are rough and may lie
    outside [0, 1]; the mean does not favour the ranking that was shown and clicked. The other
    metrics, only for queries with a probably relevant item, take the click model's probabilities as
    labels; they are steadier and do favour it. similarity_gap: one number, see `metrics`.

    Items never shown are unjudged and left out (Sakai 2007, condensed lists), for a better model
    finds relevant ones there; but a fixed random sample of items is presumed irrelevant, so that a
    model which keeps the order of the shown and loses its sense of everything else does not pass.
    """
    items, place = np.unique(np.concatenate([lists.items, lists.distractors]), return_inverse=True)
    vectors = embed_items(items)
    n_pairs, n_distractors = len(lists.items), len(lists.distractors)
    row, column = lists.pair_queries(), place[:n_pairs]
    of_all, of_pairs = similarity_functions(similarity)
    others = of_all(queries, vectors[place[n_pairs:]]).numpy()
    distractor = np.full(len(items), -1)
    distractor[place[n_pairs:]] = np.arange(n_distractors)
    is_distractor = distractor[column] >= 0
    is_presumed = np.ones(others.shape, dtype=np.bool_)
    is_presumed[row[is_distractor], distractor[column[is_distractor]]] = False

    shown = lists.padded(np.ones(n_pairs, dtype=np.bool_), False)
    judged = np.concatenate([shown, is_presumed], axis=1)
    of_shown = np.concatenate(
        [  # never all of queries x items, nor all pairs at once
            of_pairs(queries[row[chunk]], vectors[column[chunk]]).numpy()
            for chunk in (slice(n, n + _CHUNK) for n in range(0, n_pairs, _CHUNK))
        ]
    )
    scores = np.concatenate([lists.padded(of_shown, 0.0), others], axis=1)
    nothing = np.zeros_like(others)
    relevance = np.concatenate([lists.padded(lists.relevance, 0.0), nothing], axis=1)
    gains = np.concatenate([lists.padded(lists.gain, 0.0), nothing], axis=1)

    clear = (relevance >= RELEVANT_FROM).any(axis=1)
    ndcg: PerQuery = dcg(scores, gains, judged) / ideal_dcg(relevance).mean()
    return {
        **ranking_metrics(scores[clear], relevance[clear], judged[clear]),
        "ndcg_at_10": ndcg * (lists.weight / lists.weight.mean()),
        "similarity_gap": similarity_gap(
            scores[:, : shown.shape[1]], relevance[:, : shown.shape[1]], shown
        ),
    }
