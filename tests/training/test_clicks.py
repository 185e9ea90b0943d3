from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from embedding_studio.clickstream import SessionEvent
from embedding_studio.training.clicks import (
    ClickModel,
    Impressions,
    count_impressions,
    fit_click_model,
    show,
)
from tests.training.tiny import NOW, session


def simulate(
    searches: int, seed: int = 0, decay: float = 1.0, positions: int = 10, queries: int = 400
) -> tuple[Impressions, NDArray[np.bool_]]:
    """Return impressions of Zipf-distributed queries and each pair's true relevance: likelier on
    top; seen with 1 / k ** decay, clicked with 0.9 or 0.08 when seen."""
    random = np.random.default_rng(seed)
    chance = 0.5 / np.arange(1, positions + 1)
    relevant = random.random((queries, positions)) < chance
    popularity = 1 / np.arange(1, queries + 1)
    shown = random.multinomial(searches, popularity / popularity.sum())
    theta = np.arange(1, positions + 1) ** -decay
    clicked = random.binomial(shown[:, None], theta * np.where(relevant, 0.9, 0.08))
    return Impressions(
        pair=np.arange(queries * positions),
        position=np.tile(np.arange(positions), queries),
        shown=np.repeat(shown, positions).astype(float),
        clicked=clicked.ravel().astype(float),
        weight=clicked.ravel().astype(float),
        n_pairs=queries * positions,
    ), relevant.ravel()


def one_pair(shown: float, clicked: float, position: int = 0) -> Impressions:
    clicks = np.array([clicked])
    return Impressions(
        np.array([0]), np.array([position]), np.array([shown]), clicks, weight=clicks, n_pairs=1
    )


MODEL = ClickModel(
    theta=np.array([1.0, 0.5]), attraction_1=0.8, attraction_0=0.1, prior=np.array([0.5, 0.2])
)


def test_posterior_by_hand() -> None:
    """Three showings and one click on top: Bayes' rule with two binomials."""
    yes, no = 0.5 * 0.8 * 0.2**2, 0.5 * 0.1 * 0.9**2
    assert MODEL.relevance(one_pair(3, 1)) == pytest.approx([yes / (yes + no)])


def test_posterior_below_the_top_by_hand() -> None:
    """Where half of the people look, a skip says less; unfitted positions count as the last."""
    yes, no = 0.2 * (1 - 0.4), 0.8 * (1 - 0.05)
    for position in (1, 7):
        assert MODEL.relevance(one_pair(1, 0, position)) == pytest.approx([yes / (yes + no)])


def test_a_skip_at_the_top_says_more_by_hand() -> None:
    """The log-odds lose 2.2 by a skip where all look, 0.09 by one where a tenth look."""
    theta = 1 / np.arange(1.0, 11)
    model = ClickModel(theta, attraction_1=0.9, attraction_0=0.08, prior=np.full(10, 0.5))

    def log_odds(position: int) -> float:
        likely = float(model.relevance(one_pair(1, 0, position))[0])
        return float(np.log(likely / (1 - likely)))

    assert log_odds(0) == pytest.approx(np.log(0.1 / 0.92)) == pytest.approx(-2.219, abs=0.001)
    assert log_odds(9) == pytest.approx(np.log(0.91 / 0.992)) == pytest.approx(-0.086, abs=0.001)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 2.0])
def test_examination_and_attraction_are_recovered(decay: float) -> None:
    """EM finds how far people look, from no position bias to a strong one."""
    model = fit_click_model(simulate(30_000, decay=decay)[0])
    assert model.theta == pytest.approx(np.arange(1.0, 11) ** -decay, abs=0.06)
    assert model.attraction_1 == pytest.approx(0.9, abs=0.05)
    assert model.attraction_0 == pytest.approx(0.08, abs=0.03)


def test_more_sessions_make_it_surer_where_any_click_gets_worse() -> None:
    """Precision of "clicked once" falls as sessions grow; that of the click model rises."""

    def precisions(searches: int) -> tuple[float, float]:
        impressions, relevant = simulate(searches)
        posterior = fit_click_model(impressions).relevance(impressions)
        clicked = impressions.total_clicked() > 0
        return float(relevant[clicked].mean()), float(relevant[posterior >= 0.5].mean())

    naive_few, debiased_few = precisions(3_000)
    naive_many, debiased_many = precisions(60_000)
    assert naive_many < naive_few
    assert debiased_many > debiased_few
    assert debiased_many > 0.9 > 0.6 > naive_many


def test_posteriors_are_calibrated() -> None:
    """Of pairs given a probability of 0.2 to 0.8, that share is relevant."""
    impressions, relevant = simulate(20_000, queries=2000)
    posterior = fit_click_model(impressions).relevance(impressions)
    unsure = (posterior > 0.2) & (posterior < 0.8)
    assert unsure.sum() > 100
    assert relevant[unsure].mean() == pytest.approx(posterior[unsure].mean(), abs=0.08)


@pytest.mark.parametrize("clicked", [0.0, 1.0])
@pytest.mark.parametrize("shown", [1.0, 50.0])
def test_no_clicks_and_all_clicked_are_survived(clicked: float, shown: float) -> None:
    """Degenerate data gives finite probabilities and keeps the two attractions apart."""
    impressions = Impressions(
        pair=np.arange(30),
        position=np.tile(np.arange(3), 10),
        shown=np.full(30, shown),
        clicked=np.full(30, shown * clicked),
        weight=np.full(30, shown * clicked),
        n_pairs=30,
    )
    model = fit_click_model(impressions)
    posterior = model.relevance(impressions)
    assert np.isfinite(posterior).all()
    assert model.attraction_1 > model.attraction_0


def test_nothing_shown_is_survived() -> None:
    """No impressions give no probabilities and no error."""
    nothing = count_impressions(show([], [], 0))
    assert fit_click_model(nothing).relevance(nothing).shape == (0,)


def test_impressions_are_summed_per_pair_and_position() -> None:
    """Lists of different lengths, a repeated search and a skipped result add up."""
    sessions = [
        session(0, "q", ["a", "b"], [1]),
        session(1, "q", ["a", "b"], [1]),
        session(2, "q", ["b", "c", "a"], [0]),
    ]
    found = count_impressions(show(sessions, [[0, 1], [0, 1], [1, -1, 0]], 2))
    rows = zip(found.pair, found.position, found.shown, found.clicked, strict=True)
    assert sorted(rows) == [(0, 0, 2, 0), (0, 2, 1, 0), (1, 0, 1, 1), (1, 1, 2, 2)]
    assert found.total_clicked().tolist() == [0, 3]
    assert found.first_position().tolist() == [0, 0]


# -- weights -----------------------------------------------------------------------------------


def test_a_purchase_says_as_much_as_its_weight_in_clicks_by_hand() -> None:
    """Three showings where half of the people look, one click of weight 3: of the odds 0.2 / 0.8,
    eight times more by each of three clicks, and less by two skips."""
    odds = 0.2 / 0.8 * (0.8 / 0.1) ** 3 * ((1 - 0.4) / (1 - 0.05)) ** 2
    impressions = replace(one_pair(3, 1, 1), weight=np.array([3.0]))
    assert MODEL.relevance(impressions) == pytest.approx([odds / (1 + odds)])


def test_purchases_tell_relevance_and_nothing_of_positions() -> None:
    """A fifth of the clicks on what is relevant become purchases, a hundredth of the others: the
    posterior is nearer to the truth, and how far people look is found as before."""
    plain, relevant = simulate(20_000)
    random = np.random.default_rng(1)
    clicked = plain.clicked.astype(int)
    bought = random.binomial(clicked, np.where(relevant, 0.2, 0.01))
    weighed = replace(plain, weight=plain.clicked + 2.0 * bought)
    before, after = fit_click_model(plain), fit_click_model(weighed)
    assert after.theta == pytest.approx(before.theta, abs=0.02)
    thrice = replace(plain, shown=plain.shown + 2.0 * bought, clicked=plain.clicked + 2.0 * bought)
    assert fit_click_model(thrice).theta[1] > 0.55  # half of the people look there
    errors = [
        float(np.square(model.relevance(data) - relevant).mean())
        for model, data in ((before, plain), (after, weighed))
    ]
    assert errors[1] < errors[0]


def test_an_item_is_clicked_once_a_showing_with_its_strongest_weight() -> None:
    """A click and a purchase on one item are one click of the purchase's weight; a view is none."""
    events = [("a", "click"), ("a", "purchase"), ("b", "view")]
    shown = replace(
        session(0, "q", ["a", "b"], []),
        events=tuple(
            SessionEvent(str(n), object_id, NOW, kind) for n, (object_id, kind) in enumerate(events)
        ),
    )
    found = count_impressions(show([shown, session(1, "q", ["a", "b"], [0])], [[0, 1], [0, 1]], 2))
    assert found.clicked.tolist() == [2, 0]
    assert found.weight.tolist() == [3 + 1, 0]
