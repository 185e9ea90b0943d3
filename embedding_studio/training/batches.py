"""What one step learns from: some queries, some items, and which goes with which."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_studio.training.data import QueryLists

_POSITIVE_FROM = 0.3


@dataclass(frozen=True)
class Batch:
    """queries: (b,) and items: (n,) distinct text indices; relevance and negative_weight: (b, n),
    what the losses take. An item that only other queries of the batch were shown is a negative."""

    queries: NDArray[np.integer]
    items: NDArray[np.integer]
    relevance: NDArray[np.float32]
    negative_weight: NDArray[np.float32]


class Batches:
    """Cuts an epoch's queries into batches, each query with its positives and some skipped items.

    A positive is an item that was probably meant; what is left of its relevance, like that of a
    skipped item, only lightens it as a negative of its query.
    """

    def __init__(
        self,
        lists: QueryLists,
        batch_size: int,
        negatives_per_click: int,
        debias: bool,
    ) -> None:
        self._queries = np.asarray(lists.queries)
        self._items = np.asarray(lists.items)
        self._offsets = np.asarray(lists.offsets)
        self._row = lists.pair_queries()
        clicked = np.asarray(lists.clicked) > 0
        likely = np.asarray(lists.relevance) if debias else clicked.astype(np.float32)
        self._is_positive = likely >= _POSITIVE_FROM
        self._positive_weight = np.where(self._is_positive, likely, 0.0).astype(np.float32)
        self._negative_weight = (1 - likely).astype(np.float32)
        self._batch_size = batch_size
        positives = np.bincount(self._row, self._is_positive, len(lists))
        self._drawn_per_query = positives * (1 + negatives_per_click)
        self._rows = np.flatnonzero(positives)
        self._width = int(self._items.max(initial=0)) + 1
        # pairs are sorted by query and item, so a pair is found by bisection
        self._keys = self._row * self._width + self._items

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def shuffled(self, random: np.random.Generator) -> Iterator[Batch]:
        """Yield an epoch's batches, with negatives drawn anew."""
        drawn = self._draw_pairs(random)
        order = random.permutation(self._rows)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            yield self._batch(rows, np.unique(self._items[drawn[np.isin(self._row[drawn], rows)]]))

    def _draw_pairs(self, random: np.random.Generator) -> NDArray[np.integer]:
        """Return an epoch's pairs: all positives, and at random as many others as they pay for."""
        luck = np.where(self._is_positive, -1.0, random.random(len(self._items)))
        order = np.lexsort((luck, self._row))
        place_in_query = np.arange(len(order)) - self._offsets[self._row]
        drawn: NDArray[np.integer] = order[place_in_query < self._drawn_per_query[self._row]]
        return drawn

    def _batch(self, rows: NDArray[np.integer], items: NDArray[np.integer]) -> Batch:
        keys = rows[:, None] * self._width + items
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        is_known = self._keys[place] == keys
        return Batch(
            queries=self._queries[rows],
            items=items,
            relevance=np.where(is_known, self._positive_weight[place], 0.0).astype(np.float32),
            negative_weight=np.where(is_known, self._negative_weight[place], 1.0).astype(
                np.float32
            ),
        )
