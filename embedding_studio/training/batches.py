"""What one step learns from: some queries, some items, and which goes with which."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedding_studio.training.data import QueryLists

Ints = NDArray[np.integer]
Weights = NDArray[np.float32]

_POSITIVE_FROM = 0.15


@dataclass(frozen=True)
class Batch:
    """What one step of training learns from.

    queries: (b,) distinct text indices and items: (n,) distinct item indices; relevance and
    negative_weight: (b, n), what the losses take. An item that only other queries of the batch
    were shown is a negative, unless a near-identical query meant it."""

    queries: Ints
    items: Ints
    relevance: Weights
    negative_weight: Weights


class Batches:
    """Cuts an epoch's queries into batches, each query with its positives and some skipped items.

    A positive is an item that was probably meant. Any other shown item is a negative by 1 minus its
    relevance: one skipped at the top, where people look, nearly in full, one far down less.

    An item is a negative of a query by no more than 1 minus the likeliest relevance it has to any
    query spelled almost alike (`QueryLists.near`)."""

    def __init__(self, lists: QueryLists, batch_size: int, negatives_per_click: int) -> None:
        self._queries = np.asarray(lists.queries)
        self._items = np.asarray(lists.items)
        self._row = lists.pair_queries()
        likely = np.asarray(lists.relevance)
        self._is_positive = likely >= _POSITIVE_FROM
        self._batch_size = batch_size
        positives = np.bincount(self._row, self._is_positive, len(lists)).astype(np.int64)
        self._drawn_per_query = np.minimum(
            positives * (1 + negatives_per_click), np.diff(lists.offsets)
        )
        self._drawn_offsets = _offsets(self._drawn_per_query)
        self._rows = np.flatnonzero(positives)
        self._offsets = np.asarray(lists.offsets)
        self._known = _Known.of(lists, likely, self._is_positive)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def shuffled(self, random: np.random.Generator) -> Iterator[Batch]:
        """Yield an epoch's batches, with negatives drawn anew."""
        drawn = self._items[self._draw_pairs(random)]
        order = random.permutation(self._rows)
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            items = np.unique(drawn[_places(self._drawn_offsets, rows)])
            relevance, negative_weight = self._known.tables(rows, items)
            yield Batch(self._queries[rows], items, relevance, negative_weight)

    def _draw_pairs(self, random: np.random.Generator) -> Ints:
        """Return an epoch's pairs by query: all positives, and others as far as they are paid for.

        A query's pairs are put in random order behind its positives by one sort of them all."""
        luck = np.where(self._is_positive, 0.0, random.random(len(self._items)))
        order = np.argsort(self._row + luck, kind="stable")
        place_in_query = np.arange(len(order)) - self._offsets[self._row]
        drawn: Ints = order[place_in_query < self._drawn_per_query[self._row]]
        return drawn


@dataclass(frozen=True)
class _Known:
    """What there is to say of (query, item) pairs, by query: offsets (n_queries + 1,) into the
    others, (n_known,). A pair that is not here is an ordinary negative."""

    offsets: Ints
    items: Ints
    relevance: Weights
    negative_weight: Weights

    @classmethod
    def of(cls, lists: QueryLists, likely: Weights, is_positive: NDArray[np.bool_]) -> "_Known":
        """Put what a query's own searchers did beside what was meant by those of like queries."""
        own_row, own_item = lists.pair_queries(), np.asarray(lists.items)
        # the pairs that a neighbour meant, once for each query it is a neighbour of
        row, neighbour = np.asarray(lists.near).T
        counts = np.bincount(own_row, is_positive, len(lists)).astype(np.int64)
        meant = np.flatnonzero(is_positive)[_places(_offsets(counts), neighbour)]
        rows = np.concatenate([own_row, np.repeat(row, counts[neighbour])])
        items = np.concatenate([own_item, own_item[meant]])
        relevance = np.concatenate(
            [np.where(is_positive, likely, 0.0), np.zeros(len(meant))]
        ).astype(np.float32)
        negative_weight = 1 - np.concatenate([likely, likely[meant]])

        order = np.lexsort((items, rows))
        is_first = np.ones(len(order), dtype=np.bool_)
        is_first[1:] = np.diff(rows[order]).astype(bool) | np.diff(items[order]).astype(bool)
        first = np.flatnonzero(is_first)
        return cls(
            offsets=_offsets(np.bincount(rows[order[first]], minlength=len(lists))),
            items=items[order[first]],
            relevance=_reduce(np.maximum, relevance[order], first),
            negative_weight=_reduce(np.minimum, negative_weight[order], first),
        )

    def tables(self, rows: Ints, items: Ints) -> tuple[Weights, Weights]:
        """Return relevance and negative_weight as (len(rows), len(items)). items: ascending."""
        known = _places(self.offsets, rows)
        row = np.repeat(np.arange(len(rows)), self.offsets[rows + 1] - self.offsets[rows])
        column = np.minimum(np.searchsorted(items, self.items[known]), len(items) - 1)
        is_here = items[column] == self.items[known]
        cells = row[is_here], column[is_here]
        relevance = np.zeros((len(rows), len(items)), np.float32)
        negative_weight = np.ones_like(relevance)
        relevance[cells] = self.relevance[known[is_here]]
        negative_weight[cells] = self.negative_weight[known[is_here]]
        return relevance, negative_weight


def _offsets(lengths: NDArray[np.number]) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _places(offsets: Ints, rows: Ints) -> Ints:
    """Return the places of all entries of `rows`, row after row."""
    lengths = offsets[rows + 1] - offsets[rows]
    before = np.cumsum(lengths) - lengths
    places: Ints = np.arange(lengths.sum()) + np.repeat(offsets[rows] - before, lengths)
    return places


def _reduce(ufunc: np.ufunc, values: Weights, starts: Ints) -> Weights:
    found: Weights = ufunc.reduceat(values, starts) if len(starts) else values
    return found
