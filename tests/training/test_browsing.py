"""How people look at a list, and who is no person."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from embedding_studio.training.browsing import (
    Cells,
    ClickChances,
    choose,
    clicks_like_a_person,
    count_cells,
    fit_likeliest,
    some_queries,
)
from embedding_studio.training.clicks import Showings
from embedding_studio.training.judge import starting_features

Table = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Searches:
    """Queries with lists of different lengths, and what people did with them.

    relevant, scores: (n_pairs,), the latter falling down each list."""

    showings: Showings
    offsets: Table
    relevant: Table
    scores: Table


def search(
    queries: int,
    sessions: int,
    way: str = "position",
    seed: int = 0,
    shortest: int = 6,
    longest: int = 12,
    share: float = 0.2,
    decay: float = 1.0,
) -> Searches:
    """Return searches: relevant ones have higher scores; "position": seen with 1 / k ** decay,
    clicked with 0.9 or 0.08 when seen; "trust": an irrelevant one with 0.6 / k; "cascade": from the
    top down, until a relevant one was clicked."""
    random = np.random.default_rng(seed)
    lengths = random.integers(shortest, longest + 1, queries)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    row = np.repeat(np.arange(queries), lengths)
    relevant = random.random(len(row)) < share
    scores = 0.4 + 0.1 * relevant + 0.1 * random.normal(size=len(row))
    order = np.lexsort((-scores, row))
    scores, relevant = scores[order], relevant[order]
    query = np.concatenate([np.arange(queries), random.integers(queries, size=sessions - queries)])
    session_of = np.repeat(np.arange(sessions), lengths[query])
    position = np.concatenate([np.arange(lengths[q]) for q in query])
    pair = offsets[query][session_of] + position
    attraction = np.where(relevant[pair], 0.9, 0.6 / (position + 1) if way == "trust" else 0.08)
    wanted = random.random(len(pair)) < attraction
    if way == "cascade":
        stops = (wanted & relevant[pair]).astype(int)
        stopped = np.concatenate([np.cumsum(part) - part for part in np.split(
            stops, np.cumsum(lengths[query])[:-1])]) > 0  # fmt: skip
        clicked = wanted & ~stopped
    else:
        clicked = wanted & (random.random(len(pair)) < (position + 1.0) ** -decay)
    showings = Showings(session_of, pair, position, clicked.astype(float), len(row), sessions)
    return Searches(showings, offsets, relevant, scores)


def features_of(searches: Searches) -> Table:
    lengths = np.diff(searches.offsets)
    position = np.concatenate([np.arange(length) for length in lengths])
    return starting_features(searches.scores, position, searches.offsets)


# -- cells -------------------------------------------------------------------------------------


def two_sessions() -> Showings:
    """Five results with clicks on the first and third, then two with a click on the first."""
    return Showings(
        session=np.array([0, 0, 0, 0, 0, 1, 1]),
        pair=np.array([0, 1, 2, 3, 4, 3, 0]),
        position=np.array([0, 1, 2, 3, 6, 0, 1]),
        weight=np.array([1.0, 0, 3, 0, 0, 1, 0]),
        n_pairs=5,
        n_sessions=2,
    )


def test_cells_by_the_last_click_by_hand() -> None:
    """None above, one above, two or three above, further; each session begins anew."""
    cells = count_cells(two_sessions(), "last_click")
    states = {
        (int(pair), int(cells.position[cell])): int(cell % 4)
        for pair, cell in zip(cells.pair, cells.cell, strict=True)
    }
    # the fifth result stands four places below the last click
    expected = {(0, 0): 0, (1, 1): 1, (2, 2): 2, (3, 3): 1, (4, 6): 3, (3, 0): 0, (0, 1): 1}
    assert states == expected
    assert cells.clicked.sum() == 3
    assert cells.weight.sum() == 5


def test_cells_by_what_was_found_by_hand() -> None:
    """By how sure the surest click above is: none, below 0.2, 0.5, 0.8, and above."""
    relevance = np.array([0.3, 0.9, 0.1, 0.85, 0.9])
    cells = count_cells(two_sessions(), "found", relevance)
    states = {
        (int(pair), int(cells.position[cell])): int(cell % 5)
        for pair, cell in zip(cells.pair, cells.cell, strict=True)
    }
    expected = {(0, 0): 0, (1, 1): 2, (2, 2): 2, (3, 3): 2, (4, 6): 2, (3, 0): 0, (0, 1): 4}
    assert states == expected


def test_showings_of_one_pair_in_one_cell_are_summed() -> None:
    """Three times the same session are three showings in each row."""
    once = two_sessions()
    many = Showings(
        session=np.concatenate([once.session + 2 * n for n in range(3)]),
        pair=np.tile(once.pair, 3),
        position=np.tile(once.position, 3),
        weight=np.tile(once.weight, 3),
        n_pairs=5,
        n_sessions=6,
    )
    one, three = count_cells(once, "last_click"), count_cells(many, "last_click")
    assert three.pair.tolist() == one.pair.tolist()
    assert three.shown.tolist() == (3 * one.shown).tolist()
    assert three.weight.tolist() == (3 * one.weight).tolist()


# -- fitting and choosing ----------------------------------------------------------------------


def one_pair(shown: float, clicked: float, cell: int, weight: float | None = None) -> Cells:
    return Cells(
        pair=np.array([0]),
        cell=np.array([cell]),
        shown=np.array([shown]),
        clicked=np.array([clicked]),
        weight=np.array([clicked if weight is None else weight]),
        position=np.arange(10),
        n_pairs=1,
    )


def odds(chances: ClickChances, cells: Cells) -> float:
    """A prior of one half."""
    likely = float(chances.relevance(cells, np.zeros((1, 1)))[0])
    return likely / (1 - likely)


_SEEN = 1 / np.arange(1.0, 11)
LOOKS = ClickChances(0.9 * _SEEN, 0.08 * _SEEN, np.zeros(1))


def test_pairs_that_are_alike_stand_for_one_another() -> None:
    """Of pairs with the same rows and features one is left, with its number; those that differ in a
    row, a count or a feature stay apart, and those without rows are left out."""
    cells = Cells(
        pair=np.array([0, 0, 1, 2, 2, 4, 5]),
        cell=np.array([0, 1, 0, 0, 1, 0, 0]),
        shown=np.array([3.0, 1, 3, 3, 1, 3, 2]),
        clicked=np.array([1.0, 0, 1, 1, 0, 1, 1]),
        weight=np.array([1.0, 0, 1, 1, 0, 1, 1]),
        position=np.arange(2),
        n_pairs=6,
    )
    features = np.array([[1.0, 0.5], [1, 0.5], [1, 0.5], [1, 0.5], [1, 0.25], [1, 0.5]])
    some, of_some, times = cells.alike(features)
    assert times.tolist() == [2, 1, 1, 1]
    assert of_some.tolist() == [[1, 0.5], [1, 0.5], [1, 0.25], [1, 0.5]]
    assert (some.pair.tolist(), some.n_pairs) == ([0, 0, 1, 2, 3], 4)
    assert (some.cell.tolist(), some.shown.tolist()) == ([0, 1, 0, 0, 0], [3, 1, 3, 3, 2])


def test_posterior_by_hand() -> None:
    """Three showings and one click on top: Bayes' rule with two binomials."""
    assert odds(LOOKS, one_pair(3, 1, 0)) == pytest.approx(0.9 * 0.1**2 / (0.08 * 0.92**2))


def test_a_skip_at_the_top_says_more_by_hand() -> None:
    """The log-odds lose 2.2 by a skip where all look, 0.09 by one where a tenth look."""
    assert np.log(odds(LOOKS, one_pair(1, 0, 0))) == pytest.approx(-2.219, abs=0.001)
    assert np.log(odds(LOOKS, one_pair(1, 0, 9))) == pytest.approx(-0.086, abs=0.001)


def test_a_purchase_says_as_much_as_its_weight_in_clicks_by_hand() -> None:
    """Three showings where half of the people look, one click of weight 3: more by each of three
    clicks, and less by two skips."""
    expected = (0.9 / 0.08) ** 3 * ((1 - 0.45) / (1 - 0.04)) ** 2
    assert odds(LOOKS, one_pair(3, 1, 1, 3)) == pytest.approx(expected)


def fitted(searches: Searches) -> tuple[ClickChances, Cells]:
    cells = count_cells(searches.showings, "position")
    return fit_likeliest(cells, features_of(searches), False), cells


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 2.0])
def test_looks_and_attractions_are_recovered(decay: float) -> None:
    """People look at position k with 1 / k ** decay, click 0.9 of the relevant and 0.08 of the
    others: from no position bias to a strong one."""
    chances, _ = fitted(search(queries=400, sessions=12_000, decay=decay))
    seen = np.arange(1.0, 7) ** -decay
    assert chances.clicks_1[:6] == pytest.approx(0.9 * seen, abs=0.08)
    assert chances.clicks_0[:6] == pytest.approx(0.08 * seen, abs=0.02)


def test_posteriors_are_calibrated() -> None:
    """Of pairs given a probability of 0.2 to 0.8, that share is relevant."""
    searches = search(queries=1000, sessions=10_000)
    chances, cells = fitted(searches)
    posterior = chances.relevance(cells, features_of(searches))
    unsure = (posterior > 0.2) & (posterior < 0.8)
    assert unsure.sum() > 100
    assert searches.relevant[unsure].mean() == pytest.approx(posterior[unsure].mean(), abs=0.08)


def test_purchases_tell_relevance_and_nothing_of_positions() -> None:
    """A fifth of the clicks on what is relevant become purchases, a hundredth of the others: the
    posterior is nearer to the truth, and how far people look is found as before."""
    plain = search(queries=300, sessions=8000)
    random, showings = np.random.default_rng(1), plain.showings
    rate = np.where(plain.relevant[showings.pair], 0.2, 0.01)
    bought = random.random(len(rate)) < rate
    weighed = replace(
        plain, showings=replace(showings, weight=showings.weight * (1 + 2.0 * bought))
    )
    (before, plainly), (after, by_weight) = fitted(plain), fitted(weighed)
    assert after.clicks_1[:6] == pytest.approx(before.clicks_1[:6], abs=0.02)
    errors = [
        float(np.square(model.relevance(cells, features_of(plain)) - plain.relevant).mean())
        for model, cells in ((before, plainly), (after, by_weight))
    ]
    assert errors[1] < errors[0]


def test_labels_lie_between_what_scores_and_what_positions_expect() -> None:
    """Of what was never clicked, that with high scores has a lower label than its probability."""
    searches = search(queries=300, sessions=600)
    query = np.repeat(np.arange(300), np.diff(searches.offsets))
    features = features_of(searches)
    choice = choose(searches.showings, features, query, query >= 0)
    low, high = np.quantile(searches.scores, [0.1, 0.9])
    assert (
        choice.labels[searches.scores > high].mean()
        < choice.relevance[searches.scores > high].mean()
    )
    assert (
        choice.labels[searches.scores < low].mean() > choice.relevance[searches.scores < low].mean()
    )


@pytest.mark.parametrize(
    ("way", "kinds"),
    [
        ("position", {("position", False)}),
        ("trust", {("position", True)}),
        ("cascade", {("found", False), ("found", True)}),
    ],
)
def test_the_way_that_people_click_is_found(way: str, kinds: set[tuple[str, bool]]) -> None:
    """By the likelihood of queries that the models were not fitted to."""
    searches = search(queries=300, sessions=4000, way=way)
    query = np.repeat(np.arange(300), np.diff(searches.offsets))
    everything = np.ones(len(query), np.bool_)
    choice = choose(searches.showings, features_of(searches), query, everything)
    assert choice.kind in kinds
    assert (
        choice.relevance[searches.relevant].mean()
        > choice.relevance[~searches.relevant].mean() + 0.2
    )


def test_what_did_not_take_part_in_fitting_is_judged_too() -> None:
    """Half of the queries tell enough of the others."""
    searches = search(queries=200, sessions=3000)
    query = np.repeat(np.arange(200), np.diff(searches.offsets))
    choice = choose(searches.showings, features_of(searches), query, query < 100)
    rest = query >= 100
    relevant = searches.relevant[rest]
    assert choice.relevance[rest][relevant].mean() > choice.relevance[rest][~relevant].mean() + 0.2


def test_some_queries_have_about_so_many_showings() -> None:
    """At least one query, and no more than are needed."""
    lengths = np.full(1000, 20)
    assert some_queries(lengths, 400).sum() == 20
    assert some_queries(lengths, 1).sum() == 1
    assert some_queries(lengths, 10**9).all()
    assert (some_queries(lengths, 400) == some_queries(lengths, 400)).all()


def test_no_clicks_at_all_are_survived() -> None:
    """Everything is finite."""
    searches = search(queries=20, sessions=40)
    silent = replace(searches.showings, weight=np.zeros(len(searches.showings.pair)))
    query = np.repeat(np.arange(20), np.diff(searches.offsets))
    choice = choose(silent, features_of(searches), query, query >= 0)
    assert np.isfinite(choice.evidence).all()
    assert np.isfinite(choice.relevance).all()
    assert np.isfinite(list(choice.log_likelihoods.values())).all()


# -- who is no person --------------------------------------------------------------------------


def test_who_clicks_anywhere_is_no_person() -> None:
    """Most of those are left out; who clicks by position stays, with many clicks too."""
    people = search(queries=300, sessions=3000, shortest=10, longest=20).showings
    random = np.random.default_rng(1)
    anywhere = people.session % 10 == 0
    clicks = np.where(anywhere, random.random(len(people.pair)) < 0.4, people.weight > 0).astype(
        float
    )
    kept = clicks_like_a_person(replace(people, weight=clicks))
    is_robot = np.arange(3000) % 10 == 0
    assert kept[~is_robot].mean() > 0.99
    assert kept[is_robot].mean() < 0.6
