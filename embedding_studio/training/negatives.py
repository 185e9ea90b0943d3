"""Hard negatives: items that are near to a query and were not meant by it."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sentence_transformers import SentenceTransformer

from embedding_studio.training.data import QueryLists
from embedding_studio.training.encoder import embed_frozen
from embedding_studio.training.metrics import RELEVANT_FROM

Ints = NDArray[np.integer]
_CHUNK = 512


def mine_negatives(
    model: SentenceTransformer, lists: QueryLists, pairs: Ints, margin: float
) -> Ints:
    """Return (n_pairs,) the hard negative of each pair of a query and an item that it meant: of the
    whole catalogue, the item nearest to the query among those that are less similar to it than what
    it meant, by the margin; where none is, the least similar one. -1 where there is none at all.

    model: what tells how similar they are. pairs: places in the columns of lists. margin: >= 0, a
    difference of cosines; it keeps out what is as good and was never shown (de Souza P. Moreira et
    al. 2024, NV-Retriever). What the query, or one spelled almost alike, probably meant is no
    negative of it."""
    catalogue = np.flatnonzero(lists.texts.is_item)
    items = _unit(embed_frozen(model, lists.texts, catalogue))
    queries = _unit(embed_frozen(model, lists.texts, np.asarray(lists.queries)))
    row, column = lists.pair_queries(), np.searchsorted(catalogue, lists.items)
    meant = _meant(lists, row, column, len(catalogue))
    found = np.full(len(pairs), -1)
    for chunk in (slice(n, n + _CHUNK) for n in range(0, len(pairs), _CHUNK)):
        some, each = pairs[chunk], np.arange(len(pairs[chunk]))
        similar = queries[row[some]] @ items.T
        least = similar[each, column[some]] - margin
        is_negative = ~meant[row[some]].toarray()
        near = np.where(is_negative & (similar <= least[:, None]), similar, -np.inf)
        far = np.where(is_negative, similar, np.inf)
        is_near = np.isfinite(near.max(axis=1))
        best = np.where(is_near, near.argmax(axis=1), far.argmin(axis=1))
        found[chunk] = np.where(is_negative[each, best], catalogue[best], -1)
    return found


def _meant(lists: QueryLists, row: Ints, column: Ints, n_items: int) -> csr_array:
    """Return (n_queries, n_items) which items a query, or one spelled almost alike, meant."""
    is_meant = np.asarray(lists.relevance) >= RELEVANT_FROM
    own = _true_at(row[is_meant], column[is_meant], (len(lists), n_items))
    one, other = np.asarray(lists.near).T
    return own + _true_at(one, other, (len(lists), len(lists))) @ own


def _true_at(row: Ints, column: Ints, shape: tuple[int, int]) -> csr_array:
    return csr_array((np.ones(len(row), np.bool_), (row, column)), shape=shape)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
