from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from embedding_studio.errors import MethodError
from embedding_studio.training import evaluation
from embedding_studio.training.evaluation import evaluate_vectors
from embedding_studio.training.metrics import dcg, ideal_dcg
from embedding_studio.training.serving import unit_of
from tests.training.test_batches import lists_by_hand, random_lists


def test_evaluation_by_hand() -> None:
    """Gains at their ranks over the ideal of the average query, a random item among them."""
    lists = lists_by_hand()
    items = {2: [0.2, 0.1], 3: [0.9, 0.9], 4: [0.1, 0.2], 5: [0.3, 0.8], 6: [0.5, 0.0]}
    vectors = np.array([items.get(text, [0.0, 0.0]) for text in range(7)], np.float32)
    scores = evaluate_vectors(lists, np.eye(2, dtype=np.float32), lambda which: vectors[which])
    # query 0 ranks 3, 6, 5, 2, 4 (5 and 6 were not shown: no gain); query 1 ranks 3, 5, 6
    first = 0.5 + 1.5 / np.log2(5) - 0.1 / np.log2(6)
    second = 1.0 / np.log2(3)
    ideal = (0.9 + 0.4 / np.log2(3) + 0.1 / 2 + 0.8 + 0.2 / np.log2(3)) / 2
    assert scores["ndcg_at_10"] == pytest.approx(np.array([first, second]) / ideal)
    assert scores["mrr_at_10"] == pytest.approx([1 / 4, 1 / 2])
    assert scores["similarity_gap"] == pytest.approx((0.2 - 0.5 + 0.8 - 0.9) / 2)


def test_queries_weigh_by_their_searches() -> None:
    """Values are scaled so that their plain mean is the weighted mean."""
    vectors = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)

    def score(weight: list[float]) -> np.ndarray:
        lists = lists_by_hand(weight=np.array(weight, np.float32))
        scores = evaluate_vectors(lists, vectors[:2], lambda which: vectors[which])
        return np.asarray(scores["ndcg_at_10"])

    assert score([0.9, 0.3]) == pytest.approx(score([1, 1]) * [1.5, 0.5])


def random_vectors(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors of 90 queries and 300 items."""
    vectors = np.random.default_rng(seed).normal(size=(390, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:90], vectors[90:]


def test_a_distractor_that_was_shown_counts_once() -> None:
    """Then what was shown decides, and the item is not presumed irrelevant beside it."""
    queries, items = random_vectors()
    lists = random_lists(queries=90, shown=8)
    unshown = np.setdiff1d(np.arange(300), lists.items)[:5]
    few = replace(lists, distractors=unshown)
    more = replace(lists, distractors=np.concatenate([unshown, lists.items[:8]]))
    first, second = (
        np.asarray(evaluate_vectors(x, queries, lambda which: items[which])["ndcg_at_10"])
        for x in (few, more)
    )
    assert first[0] == pytest.approx(second[0])  # the first query was shown all that was added
    assert not np.allclose(first, second)


def test_scores_do_not_depend_on_how_the_work_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of pairs at a time, the values are the same."""
    queries, items = random_vectors()
    lists = random_lists(queries=90, shown=8)

    def scores() -> dict[str, Any]:
        return dict(evaluate_vectors(lists, queries, lambda which: items[which]))

    whole = scores()
    monkeypatch.setattr(evaluation, "_CHUNK", 7)
    for name, values in scores().items():
        assert values == pytest.approx(whole[name])


def test_a_collapsed_model_cannot_win() -> None:
    """A model that gives every input the same vector scores below a random one."""
    lists = replace(random_lists(queries=90, shown=8), distractors=np.arange(100))
    queries, items = random_vectors()
    random = evaluate_vectors(lists, queries, lambda which: items[which])
    same = np.full((300, 8), 8**-0.5, np.float32)
    collapsed = evaluate_vectors(lists, same[:90], lambda which: same[which])
    for metric in ("ndcg_at_10", "mrr_at_10", "recall_at_10", "precision_at_10", "f1_at_10"):
        assert np.mean(collapsed[metric]) < np.mean(random[metric])


def test_vectors_that_are_not_finite_are_an_error() -> None:
    """A diverged model gets an error and never a score."""
    nothing = np.full((7, 2), np.nan, np.float32)
    with pytest.raises(MethodError, match="diverged"):
        evaluate_vectors(lists_by_hand(), nothing[:2], lambda which: nothing[which])


@pytest.mark.parametrize("name", ["dot", "euclidean", "manhattan"])
def test_models_are_judged_by_their_own_similarity(name: str) -> None:
    """Scores are those of the similarity as NumPy has it, ranked."""
    lists = random_lists(queries=90, shown=8)
    queries, items = random_vectors()
    queries, items = 3 * queries, items * np.arange(1, 301, dtype=np.float32)[:, None]
    apart = queries[lists.pair_queries()] - items[lists.items]
    own = {
        "dot": (queries[lists.pair_queries()] * items[lists.items]).sum(axis=1),
        "euclidean": -np.sqrt((apart**2).sum(axis=1)),
        "manhattan": -np.abs(apart).sum(axis=1),
    }[name]
    alone = replace(lists, distractors=np.empty(0, np.int64))
    scores = evaluate_vectors(alone, queries, lambda which: items[which], name)
    ones = np.ones(len(lists.items), np.bool_)
    expected = (
        dcg(lists.padded(own, 0.0), lists.padded(lists.gain, 0.0), lists.padded(ones, False))
        / ideal_dcg(lists.padded(lists.relevance, 0.0)).mean()
    )
    weight = lists.weight / lists.weight.mean()
    assert scores["ndcg_at_10"] == pytest.approx(expected * weight, rel=1e-4)


def test_a_unit_of_similarity_is_worth_as_much_as_one_of_cosine() -> None:
    """For vectors of length 3 and 5, a dot product of 15; a distance has its own."""
    queries, items = (torch.from_numpy(vectors) for vectors in random_vectors())
    assert unit_of("cosine", queries, items) == 1
    assert unit_of("dot", 3 * queries, 5 * items) == pytest.approx(15, rel=1e-4)
    assert unit_of("euclidean", 3 * queries, 3 * items) == pytest.approx(
        3 * unit_of("euclidean", queries, items), rel=1e-4
    )
    assert unit_of("dot", 0 * queries, items) == 1
