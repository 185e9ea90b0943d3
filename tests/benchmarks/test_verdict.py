"""The estimator of the study of the judge."""

import numpy as np
import pytest

from benchmarks.verdict_estimator import (
    changes_of,
    discounts,
    ideal_of_those_with_any,
    judge,
    people,
)


def test_discounts_are_those_of_ranks_among_all() -> None:
    """The best of two shown is second behind one distractor, the other fourth behind two."""
    found = discounts(np.array([[0.5, 0.1]]), np.array([[0.9, 0.3]]))
    assert found == pytest.approx(np.array([[1 / np.log2(3), 1 / np.log2(5)]]))


def test_the_scale_is_the_ideal_of_queries_with_something_relevant() -> None:
    """One sure item is an ideal of 1; two with a half each are one in two of three cases."""
    assert ideal_of_those_with_any(np.array([[1.0, 0.0]])) == pytest.approx(1.0)
    both = 1 + 1 / np.log2(3)
    expected = (2 * 1 + both) / 3
    assert ideal_of_those_with_any(np.array([[0.5, 0.5]])) == pytest.approx(expected)


def test_who_clicks_anywhere_is_no_person() -> None:
    """Most of those are left out; who clicks by position stays, with many clicks too."""
    random = np.random.default_rng(0)
    by_position = random.random((900, 20)) < 0.8 / np.arange(1, 21)
    anywhere = random.random((100, 20)) < 0.4
    kept = people(np.concatenate([by_position, anywhere]))
    assert kept[:900].mean() > 0.99
    assert kept[900:].mean() < 0.5


def test_a_better_and_a_worse_ranking_are_told_apart() -> None:
    """By clicks on what the initial ranking shows, half of whose relevant items are low in it; a
    ranking that changes nothing differs by nothing."""
    random = np.random.default_rng(1)
    n_queries, width = 300, 10
    relevant = random.random((n_queries, width)) < 0.2
    initial = np.sort(random.normal(size=(n_queries, width)), axis=1)[:, ::-1] / 10
    query = np.repeat(np.arange(n_queries), 8)
    seen = random.random((len(query), width)) < 1 / np.arange(1, width + 1)
    clicked = seen & (random.random(seen.shape) < np.where(relevant[query], 0.9, 0.05))
    judged = judge(query, clicked, initial)
    nothing = np.zeros((n_queries, 0))
    shown = np.zeros((n_queries, 0), np.bool_)

    def difference(scores: np.ndarray) -> tuple[float, float]:
        changes = changes_of((initial, nothing), (scores, nothing), shown)
        return judged.difference(changes)[:2]

    better, error = difference(initial + 0.1 * relevant)
    assert better > 3 * error
    worse, error = difference(initial - 0.1 * relevant)
    assert worse < -3 * error
    assert difference(initial) == (0.0, 0.0)
