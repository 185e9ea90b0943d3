import numpy as np
import pytest

from embedding_studio.errors import MethodError
from embedding_studio.training.metrics import ideal_dcg, ranking_metrics, similarity_gap

SCORES = np.array([[0.9, 0.8, 0.7, 0.6]])


def test_each_metric_by_hand() -> None:
    """Two of four are relevant and stand second and fourth."""
    found = ranking_metrics(SCORES, np.array([[0.0, 1.0, 0.0, 1.0]]), k=3)
    log = np.log2
    assert found["ndcg_at_3"] == pytest.approx([(1 / log(3)) / (1 + 1 / log(3))])
    assert found["mrr_at_3"] == pytest.approx([1 / 2])
    assert found["recall_at_3"] == pytest.approx([1 / 2])
    assert found["precision_at_3"] == pytest.approx([1 / 3])
    assert found["f1_at_3"] == pytest.approx([2 * (1 / 3 * 1 / 2) / (1 / 3 + 1 / 2)])


def test_probabilities_are_gains() -> None:
    """A probable item on top of a surer one costs their difference in gain."""
    found = ranking_metrics(np.array([[0.9, 0.1]]), np.array([[0.25, 0.75]]))
    discount = 1 / np.log2(3)
    assert found["ndcg_at_10"] == pytest.approx(
        [(0.25 + 0.75 * discount) / (0.75 + 0.25 * discount)]
    )
    assert found["mrr_at_10"] == pytest.approx([0.5])


def test_a_perfect_ranking_scores_one() -> None:
    """The ideal order gives nDCG, MRR and recall of 1."""
    found = ranking_metrics(SCORES, np.array([[1.0, 1.0, 0.0, 0.0]]))
    assert [found[f"{name}_at_10"][0] for name in ("ndcg", "mrr", "recall")] == [1, 1, 1]


def test_nothing_relevant_scores_zero() -> None:
    """A query without a relevant item gets zeros and no NaN."""
    found = ranking_metrics(SCORES, np.zeros((1, 4)))
    assert all(values[0] == 0 for values in found.values())


def test_ties_rank_the_irrelevant_first() -> None:
    """One relevant item among twelve with the same score stands last, outside the ten."""
    relevance = np.zeros((1, 12))
    relevance[0, 0] = 1
    found = ranking_metrics(np.full((1, 12), 0.3), relevance)
    assert all(values[0] == 0 for values in found.values())


def test_differences_below_a_millionth_are_ties() -> None:
    """A lead that rounding could give is no lead."""
    found = ranking_metrics(np.array([[0.5 + 1e-8, 0.5]]), np.array([[1.0, 0.0]]))
    assert found["mrr_at_10"] == pytest.approx([0.5])


def test_padding_is_not_ranked() -> None:
    """What is not judged changes nothing, whatever its score and label."""
    judged = np.array([[True, True, False]])
    found = ranking_metrics(np.array([[0.2, 0.1, 9.0]]), np.array([[0.0, 1.0, 1.0]]), judged)
    assert found["mrr_at_10"] == pytest.approx([0.5])
    assert found["recall_at_10"] == pytest.approx([1.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_an_error(bad: float) -> None:
    """A diverged model gets an error and never a score."""
    scores = np.array([[0.1, bad]])
    with pytest.raises(MethodError, match="not finite"):
        ranking_metrics(scores, np.array([[1.0, 0.0]]))


def test_ideal_dcg_by_hand() -> None:
    """The best order is by relevance, cut at k."""
    assert ideal_dcg(np.array([[0.5, 1.0, 0.25]]), k=2) == pytest.approx([1 + 0.5 / np.log2(3)])


def test_similarity_gap_by_hand() -> None:
    """Mean similarity of the relevant minus that of the others; queries of one kind left out."""
    scores = np.array([[0.9, 0.3, 0.1, 7.0], [0.5, 0.5, 0.5, 0.5]])
    relevance = np.array([[1.0, 0.0, 0.2, 1.0], [1.0, 1.0, 1.0, 1.0]])
    judged = np.array([[True, True, True, False], [True, True, True, True]])
    assert similarity_gap(scores, relevance, judged) == pytest.approx(0.9 - 0.2)
    assert similarity_gap(scores[1:], relevance[1:]) == 0.0
