from dataclasses import replace

import numpy as np
import pytest

from embedding_studio.training.batches import Batch, Batches
from embedding_studio.training.data import QueryLists
from embedding_studio.training.texts import TokenizedTexts


def lists_by_hand(**columns: object) -> QueryLists:
    """Two queries, 0 and 1; the first was shown items 2, 3, 4, the second 3 and 5."""
    texts: TokenizedTexts = None  # type: ignore[assignment]
    made = QueryLists(
        texts=texts,
        queries=np.array([0, 1]),
        offsets=np.array([0, 3, 5]),
        items=np.array([2, 3, 4, 3, 5]),
        relevance=np.array([0.9, 0.4, 0.1, 0.12, 0.8], np.float32),
        clicked=np.array([3, 0, 0, 1, 2], np.int32),
        distractors=np.array([5, 6]),
    )
    return replace(made, **columns)  # type: ignore[arg-type]


def only_batch(lists: QueryLists) -> Batch:
    """Return the batch of all queries and all they were shown, in the order of the queries."""
    batches = Batches(lists, batch_size=100, negatives_per_click=5)
    (batch,) = batches.shuffled(np.random.default_rng(0))
    order = np.argsort(batch.queries)
    return Batch(
        batch.queries[order], batch.items, batch.relevance[order], batch.negative_weight[order]
    )


def test_a_batch_by_hand() -> None:
    """From 0.15 on it is a positive; what only the other query was shown is a sure negative."""
    batch = only_batch(lists_by_hand())
    assert batch.items.tolist() == [2, 3, 4, 5]
    assert batch.relevance == pytest.approx(np.array([[0.9, 0.4, 0, 0], [0, 0, 0, 0.8]]))
    assert batch.negative_weight == pytest.approx(np.array([[0.1, 0.6, 0.9, 1], [1, 0.88, 1, 0.2]]))


def test_what_a_near_identical_query_meant_is_no_sure_negative() -> None:
    """By hand: a neighbour's positives lower a weight, never raise it, and make no positive."""
    batch = only_batch(lists_by_hand(near=np.array([[0, 1], [1, 0]])))
    assert batch.relevance == pytest.approx(np.array([[0.9, 0.4, 0, 0], [0, 0, 0, 0.8]]))
    # query 0 learns of item 5; query 1 of item 2, and of 3 that it is likelier than it knew
    assert batch.negative_weight == pytest.approx(
        np.array([[0.1, 0.6, 0.9, 0.2], [0.1, 0.6, 1, 0.2]])
    )


def test_neighbours_count_one_way_each() -> None:
    """Only the first of a pair of places learns from the second; the likeliest of several rules."""
    lists = QueryLists(
        texts=lists_by_hand().texts,
        queries=np.array([0, 1, 2]),
        offsets=np.array([0, 1, 2, 3]),
        items=np.array([5, 4, 4]),
        relevance=np.array([0.9, 0.5, 0.7], np.float32),
        clicked=np.ones(3, np.int32),
        distractors=np.array([6]),
        near=np.array([[0, 1], [0, 2]]),
    )
    batch = only_batch(lists)
    assert batch.items.tolist() == [4, 5]
    assert batch.negative_weight == pytest.approx(np.array([[0.3, 0.1], [0.5, 1], [0.3, 1]]))


def random_lists(queries: int, shown: int, seed: int = 0) -> QueryLists:
    random = np.random.default_rng(seed)
    items = np.sort([random.choice(300, shown, replace=False) for _ in range(queries)], axis=1)
    relevance = random.random(queries * shown).astype(np.float32) ** 4
    return lists_by_hand(
        queries=np.arange(1000, 1000 + queries),
        offsets=np.arange(queries + 1) * shown,
        items=items.ravel(),
        relevance=relevance,
        clicked=(relevance > 0.5).astype(np.int32),
        near=np.array([[n, n + 1] for n in range(0, queries - 1, 2)]),
    )


def test_every_query_with_a_positive_comes_once_an_epoch() -> None:
    """Batches hold all such queries, each once, and tables that agree with the columns."""
    lists = random_lists(queries=90, shown=8)
    batches = Batches(lists, batch_size=16, negatives_per_click=1)
    pairs = zip(lists.pair_queries(), lists.items, strict=True)
    relevance = dict(zip(pairs, lists.relevance, strict=True))
    seen = []
    for batch in batches.shuffled(np.random.default_rng(1)):
        assert (np.diff(batch.items) > 0).all()
        for query, row, weights in zip(
            batch.queries - 1000, batch.relevance, batch.negative_weight, strict=True
        ):
            seen.append(int(query))
            for item, positive, weight in zip(batch.items, row, weights, strict=True):
                likely = relevance.get((query, item), 0.0)
                assert positive == pytest.approx(likely if likely >= 0.15 else 0.0)
                near = relevance.get((query + 1, item), 0.0) if query % 2 == 0 else 0.0
                near = near if near >= 0.15 else 0.0
                assert weight == pytest.approx(1 - max(likely, near))
    with_positive = np.flatnonzero((lists.relevance.reshape(90, 8) >= 0.15).any(axis=1))
    assert sorted(seen) == with_positive.tolist()
    assert len(batches) == -(-len(with_positive) // 16)


@pytest.mark.parametrize(("negatives_per_click", "expected"), [(0, 2), (1, 4), (2, 6), (9, 8)])
def test_negatives_are_as_many_as_clicks_pay_for(negatives_per_click: int, expected: int) -> None:
    """A query with two positives among eight brings these and as many others as they pay for."""
    relevance = np.array([0.9, 0, 0, 0.4, 0, 0, 0, 0.1], np.float32)
    lists = lists_by_hand(
        queries=np.array([7]),
        offsets=np.array([0, 8]),
        items=np.arange(8),
        relevance=relevance,
        clicked=np.ones(8, np.int32),
    )
    batches = Batches(lists, 4, negatives_per_click)
    random = np.random.default_rng(0)
    drawn = [next(batches.shuffled(random)).items.tolist() for _ in range(60)]
    assert all(len(items) == expected and {0, 3} <= set(items) for items in drawn)
    # every other item has its turn
    assert set().union(*drawn) == (set(range(8)) if negatives_per_click else {0, 3})


def test_nothing_to_learn_from_makes_no_batch() -> None:
    """Without a positive there is no batch and no error."""
    lists = lists_by_hand(relevance=np.zeros(5, np.float32))
    batches = Batches(lists, 4, 2)
    assert len(batches) == 0
    assert list(batches.shuffled(np.random.default_rng(0))) == []
