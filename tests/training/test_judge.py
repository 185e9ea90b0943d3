"""The difference of two rankings, told by clicks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, log_softmax

from embedding_studio.training.browsing import count_cells, fit_chances
from embedding_studio.training.clicks import Showings
from embedding_studio.training.judge import (
    METRICS,
    Start,
    discounts,
    ideal_of_those_with_any,
    most_likely,
    open_start,
    padded,
    starting_features,
)
from embedding_studio.training.metrics import ranking_metrics
from tests.training.test_browsing import Searches, search

Table = np.ndarray[Any, np.dtype[Any]]


def start_of(searches: Searches) -> Start:
    """Return what judges by these searches; everything was shown, nothing else is ranked."""
    showings, scores, offsets = searches.showings, searches.scores, searches.offsets
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    position = np.arange(len(scores)) - offsets[row]
    features = starting_features(scores, position, offsets)
    cells = count_cells(showings, "position")
    chances = fit_chances(cells, features, False, 1.0)
    relevance = chances.relevance(cells, features)
    is_asked = np.bincount(row[showings.pair], minlength=len(offsets) - 1) > 0
    lengths = np.diff(offsets)
    table = np.zeros((len(lengths), lengths.max()))
    table[np.arange(lengths.max()) < lengths[:, None]] = relevance
    return Start(
        offsets=offsets,
        evidence=chances.evidence(cells),
        relevance=relevance,
        scores=scores,
        discount=alone(scores, offsets),
        features=features,
        is_asked=is_asked,
        scale=np.array(ideal_of_those_with_any(table[is_asked])),
        unit=np.array(1.0),
    )


def alone(scores: Table, offsets: Table) -> Table:
    """Return discounts where nothing but the shown is ranked."""
    nothing = np.zeros((len(offsets) - 1, 0))
    return discounts(scores, nothing, nothing > 0, offsets)


def difference(start: Start, scores: Table) -> tuple[float, float]:
    """Return how much better a candidate is, and the standard error of that."""
    level = start.judged(start.scores, start.discount)
    values = start.judged(scores, alone(scores, start.offsets)) - level
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


# -- by hand -----------------------------------------------------------------------------------


def test_discounts_are_those_of_ranks_among_all() -> None:
    """The best of two shown is second behind one distractor, the other fourth behind two."""
    shown, others = np.array([0.5, 0.1]), np.array([[0.9, 0.3]])
    found = discounts(shown, others, np.ones((1, 2), np.bool_), np.array([0, 2]))
    assert found == pytest.approx([1 / np.log2(3), 1 / np.log2(5)])


def test_discounts_of_lists_of_different_lengths() -> None:
    """Each list is ranked by itself; a tie with a distractor counts against what was shown, and a
    distractor that was shown is none."""
    shown, others = np.array([0.5, 0.7, 0.2]), np.array([[0.7, 0.9], [0.2, 0.9]])
    is_other = np.array([[True, False], [True, True]])
    found = discounts(shown, others, is_other, np.array([0, 2, 3]))
    assert found == pytest.approx([1 / np.log2(4), 1 / np.log2(3), 1 / np.log2(4)])


def test_the_scale_is_the_ideal_of_queries_with_something_relevant() -> None:
    """One sure item is an ideal of 1; two with a half each are one in two of three cases."""
    assert ideal_of_those_with_any(np.array([[1.0, 0.0]])) == pytest.approx(1.0)
    both = 1 + 1 / np.log2(3)
    expected = (2 * 1 + both) / 3
    assert ideal_of_those_with_any(np.array([[0.5, 0.5]])) == pytest.approx(expected)
    ten = (1 / np.log2(np.arange(2, 12))).sum()
    assert ideal_of_those_with_any(np.ones((1, 30))) == pytest.approx(ten)


# -- equal lists, table by table ---------------------------------------------------------------


def features_of(scores: Table) -> Table:
    """Return the features of (n_queries, n_shown) scores as one writes them for a table."""
    position = np.arange(scores.shape[1])
    best, second = (np.sort(scores, axis=1)[:, [place]] for place in (-1, -2))
    of_scores = [
        *(log_softmax(scores / t, axis=1) for t in (0.05, 0.1)),
        scores - np.where(scores == best, second, best),
        np.broadcast_to(scores.mean(axis=1, keepdims=True), scores.shape),
        scores,
    ]
    of_position = [np.ones(len(position)), np.log1p(position) - 1.5, position == 0, position == 1]
    columns = [np.broadcast_to(column, scores.shape).astype(float) for column in of_position]
    columns += [(column - column.mean()) / column.std() for column in of_scores]
    return np.stack(columns, axis=2)


def discounts_of(scores: Table) -> Table:
    rank = (scores[:, None, :] > scores[:, :, None]).sum(axis=2)
    return np.where(rank < 10, 1 / np.log2(rank + 2.0), 0.0)


def test_equal_lists_give_what_tables_give() -> None:
    """Features, changes, fit and error, computed with one axis for queries and one for places."""
    searches = search(queries=60, sessions=600, shortest=12, longest=12)
    start = start_of(searches)
    before = searches.scores.reshape(60, 12)
    after = before + np.random.default_rng(5).normal(size=before.shape) / 30
    assert start.features.reshape(60, 12, -1) == pytest.approx(features_of(before))
    gain = discounts_of(after) - discounts_of(before)
    softer = [log_softmax(after / t, axis=1) - log_softmax(before / t, axis=1) for t in (0.05, 0.1)]
    changes = np.stack([gain, *softer], axis=2)
    used = changes / changes.std(axis=(0, 1))
    x = np.concatenate([features_of(before), used], axis=2).reshape(60 * 12, -1)
    ridge = np.array([1.0] * 9 + [1e-6] * 3)
    weights = most_likely(x, start.evidence, ridge)
    prior, posterior = expit(x @ weights), expit(x @ weights + start.evidence)
    score = (x * (posterior - prior)[:, None]).reshape(60, 12, -1).sum(axis=1)
    information = prior * (1 - prior) - posterior * (1 - posterior)
    hessian = (x * information[:, None]).T @ x + np.diag(ridge)
    slope = (x * (gain.ravel() * prior * (1 - prior))[:, None]).sum(axis=0)
    expected = (gain * prior.reshape(gain.shape)).sum(axis=1)
    values = (expected + score @ np.linalg.solve(hessian, slope)) / start.scale
    values += expected.mean() / start.scale - values.mean()
    found, error = difference(start, after.ravel())
    assert found == pytest.approx(expected.mean() / start.scale, rel=1e-5)
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(60), rel=1e-5)


# -- on simulated searches ---------------------------------------------------------------------


def test_a_better_and_a_worse_ranking_are_told_apart() -> None:
    """Lists have different lengths; a ranking that changes nothing differs by exactly nothing."""
    searches = search(queries=300, sessions=2400)
    start = start_of(searches)
    scores, relevant = searches.scores, searches.relevant
    better, error = difference(start, scores + 0.1 * relevant)
    assert better > 3 * error
    worse, error = difference(start, scores - 0.1 * relevant)
    assert worse < -3 * error
    assert difference(start, scores) == (0.0, 0.0)


def test_the_said_difference_is_about_the_true_one() -> None:
    """Of a ranking that finds some of what is relevant, over what was shown."""
    ratios = []
    for seed in range(3):
        searches = search(queries=400, sessions=4000, seed=seed)
        start = start_of(searches)
        after = searches.scores + 0.05 * searches.relevant
        change = alone(after, start.offsets) - start.discount
        truth = np.add.reduceat(change * searches.relevant, start.offsets[:-1])
        ratios.append(difference(start, after)[0] * float(start.scale) / truth.mean())
    assert np.mean(ratios) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_follows_the_truth(metric: str) -> None:
    """Of a ranking that is better, and of one that is worse, each metric is said to change as it
    does by what is truly relevant among the shown, within a third."""
    said, true = np.zeros(2), np.zeros(2)
    for seed in range(3):
        searches = search(queries=400, sessions=4000, seed=seed)
        start = start_of(searches)

        def truth(scores: Table, searches: Any = searches, start: Start = start) -> float:
            table, relevant = (
                padded(c, start.offsets, 0.0) for c in (scores, searches.relevant * 1.0)
            )
            shown = padded(np.ones(len(scores), np.bool_), start.offsets, False)
            return float(ranking_metrics(table, relevant, shown)[f"{metric}_at_10"].mean())

        for place, step in enumerate((0.05, -0.05)):
            after = searches.scores + step * searches.relevant
            before = start.judged(start.scores, start.discount, metric)
            then = start.judged(after, alone(after, start.offsets), metric)
            said[place] += then.mean() - before.mean()
            true[place] += truth(after) - truth(searches.scores)
    assert said == pytest.approx(true, rel=0.34, abs=0.005)


def test_noise_is_no_better_beyond_chance() -> None:
    """Of rankings with a little noise on their scores, which costs next to nothing, the differences
    over their errors are spread like a standard normal."""
    z = []
    for seed in range(4):
        searches = search(queries=300, sessions=2000, seed=seed)
        start = start_of(searches)
        random = np.random.default_rng(seed)
        for strength in np.repeat([0.005, 0.01], 10):
            noise = strength * random.normal(size=searches.scores.shape)
            found, error = difference(start, searches.scores + noise)
            z.append(found / error)
    assert abs(np.mean(z)) < 0.5
    assert 0.7 < np.std(z) < 1.3
    assert np.mean(np.array(z) > 1.96) <= 0.05


def test_a_mean_is_never_above_one() -> None:
    """However well a candidate ranks, and where all that was shown is relevant."""
    searches = search(queries=50, sessions=1000, share=0.9)
    start = start_of(searches)
    best = start.judged(searches.relevant * 1.0, alone(searches.relevant * 1.0, start.offsets))
    assert best.mean() <= 1
    tiny = replace(start, scale=np.array(start.scale / 10))
    assert tiny.judged(start.scores, start.discount).mean() == pytest.approx(1)


def test_only_queries_that_people_asked_judge() -> None:
    """One that nobody asked but a robot has no value, and moves none."""
    searches = search(queries=40, sessions=800)
    showings = searches.showings
    gone = showings.session[showings.pair < searches.offsets[1]]  # the first query's
    stays = ~np.isin(np.arange(showings.n_sessions), gone)
    start = start_of(replace(searches, showings=showings.of_sessions(stays)))
    after = searches.scores + 0.1 * searches.relevant
    values = start.judged(after, alone(after, start.offsets))
    assert len(values) == start.is_asked.sum() == 39
    other = after.copy()
    other[: searches.offsets[1]] = after[: searches.offsets[1]][::-1]
    again = start.judged(other, alone(other, start.offsets))
    assert again.mean() == pytest.approx(values.mean(), rel=0.05)


def test_a_purchase_is_more_evidence_than_a_click() -> None:
    """With weight 3 the relevant pairs that were bought get more log-odds, others none more."""
    searches = search(queries=100, sessions=1000)
    showings: Showings = searches.showings
    bought = (showings.weight > 0) & searches.relevant[showings.pair]
    weighed = replace(showings, weight=showings.weight + 2.0 * bought)
    plain = start_of(searches)
    other = start_of(replace(searches, showings=weighed))
    pairs = np.bincount(showings.pair, bought, showings.n_pairs) > 0
    assert (other.evidence[pairs] > plain.evidence[pairs]).all()


def test_a_start_comes_back_from_disk(tmp_path: Path) -> None:
    """Nothing before it was written; then the same values."""
    searches = search(queries=30, sessions=300)
    start = start_of(searches)
    assert open_start(tmp_path, "test") is None
    start.write(tmp_path, "test")
    again = open_start(tmp_path, "test")
    assert again is not None
    after = searches.scores + 0.1 * searches.relevant
    expected = start.judged(after, alone(after, start.offsets))
    assert (again.judged(after, alone(after, start.offsets)) == expected).all()
    assert open_start(tmp_path, "validation") is None
