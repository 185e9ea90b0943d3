"""The promotion gate."""

from dataclasses import replace

import numpy as np
import pytest

from embedding_studio.engine.jobs import Examined
from embedding_studio.engine.promotion import averaged, bootstrap_ci95, compare, decide, guard
from embedding_studio.errors import MethodError
from embedding_studio.methods import Direction
from embedding_studio.tasks import Promote


def test_the_interval_of_a_constant_difference_is_that_difference() -> None:
    """Without spread there is no uncertainty; each metric has an interval of its own."""
    differences = np.array([[0.25, 0.5]] * 50)
    assert bootstrap_ci95(differences, seed=0) == [(0.25, 0.25), (0.5, 0.5)]


@pytest.mark.slow
def test_the_interval_agrees_with_the_normal_approximation() -> None:
    """For many values it is the mean +- 1.96 standard errors, within sampling noise."""
    differences = np.random.default_rng(0).normal(0.1, 1.0, size=2000)
    ((low, high),) = bootstrap_ci95(differences[:, None], seed=1)
    error = differences.std() / np.sqrt(2000)
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.1 * error)
    assert [(low, high)] == bootstrap_ci95(differences[:, None], seed=1)


def test_a_clear_improvement_is_promoted() -> None:
    """Better on nearly every query: the interval lies above zero."""
    before = np.random.default_rng(0).random(100)
    verdict = decide("ndcg", "maximize", {"ndcg": before}, {"ndcg": before + 0.05}, seed=0)
    assert verdict.promoted
    assert verdict.delta == pytest.approx(0.05)
    assert verdict.test_queries == 100


def test_a_lucky_improvement_is_not() -> None:
    """Better on average, but within chance: refused, and the verdict says so."""
    rng = np.random.default_rng(3)
    before = rng.random(40)
    after = before + rng.normal(0, 0.5, 40)
    after += before.mean() - after.mean() + 0.01  # a gain of 0.01 in a spread of 0.5
    verdict = decide("ndcg", "maximize", {"ndcg": before}, {"ndcg": after}, seed=0)
    assert verdict.delta > 0
    assert not verdict.promoted
    assert "chance" in verdict.reason


def test_what_the_gate_asks_is_a_choice() -> None:
    """Better by chance is enough where that is asked, worse never is; a person may keep the word
    for herself."""
    before = {"m": np.array([0.1, 0.5, 0.4, 0.2])}
    luckier = {"m": np.array([0.9, 0.2, 0.4, 0.2])}
    asked = {p: decide("m", "maximize", before, luckier, 0, p) for p in Promote}
    assert [p for p in Promote if asked[p].promoted] == [Promote.BETTER]
    assert "that is enough" in asked[Promote.BETTER].reason
    assert not decide("m", "maximize", luckier, before, 0, Promote.BETTER).promoted
    sure = {"m": before["m"] + 0.1}
    kept = decide("m", "maximize", before, sure, 0, Promote.NEVER)
    assert (kept.promoted, kept.reason.startswith("better")) == (False, True)
    assert "a person decides" in kept.reason


def test_the_gate_knows_the_direction() -> None:
    """Where less is better, less is promoted and more is not."""
    before, less = np.full(30, 0.5), np.full(30, 0.4)
    assert decide("loss", "minimize", {"loss": before}, {"loss": less}, seed=0).promoted
    assert not decide("loss", "minimize", {"loss": less}, {"loss": before}, seed=0).promoted


def test_single_numbers_must_be_strictly_better() -> None:
    """Without per-query values, equal is refused and any gain passes, without an interval."""
    assert not decide("m", "maximize", {"m": 0.5}, {"m": 0.5}, seed=0).promoted
    verdict = decide("m", "maximize", {"m": 0.5}, {"m": 0.51}, seed=0)
    assert verdict.promoted
    assert verdict.delta_ci95 is None


def test_models_scored_on_different_queries_are_not_compared() -> None:
    """A paired comparison needs the same queries."""
    with pytest.raises(MethodError, match="30 and then on 29"):
        decide("m", "maximize", {"m": np.zeros(30)}, {"m": np.ones(29)}, seed=0)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("promote", [Promote.SIGNIFICANT, Promote.BETTER])
def test_a_fall_on_golden_queries_is_refused(direction: Direction, promote: Promote) -> None:
    """If it is beyond chance, and in words; what is told besides blocks nothing."""
    sign = 1 if direction == "maximize" else -1
    before = np.linspace(0.1, 0.9, 40)
    better, worse = before + 0.1 * sign, before - 0.1 * sign
    doubtful = before + np.tile([0.3, -0.31], 20) * sign
    verdict = decide("m", direction, {"m": before}, {"m": better}, 0, promote, "judged")
    assert verdict.promoted
    assert "on the queries of labels 'judged'" in verdict.reason
    for after, is_golden, is_blocked in (
        (worse, True, True),
        (worse, False, False),
        (doubtful, True, False),
        (better, True, False),
    ):
        other = compare("m", {"m": before}, {"m": after}, 0, "must-work", is_golden)
        assert (other.labels_id, other.queries) == ("must-work", 40)
        guarded = guard(replace(verdict, others=(other,)), direction)
        assert guarded.promoted is not is_blocked
        assert ("worse beyond chance on the golden queries of 'must-work'" in guarded.reason) is (
            is_blocked
        )


def test_models_are_averaged_query_by_query() -> None:
    """Of the same queries; what only one of them tells is left out."""
    one = Examined({"m": np.array([0.0, 1.0]), "n": 1.0, "o": np.ones(3)}, {"q": 0.2, "r": 1.0})
    two = Examined({"m": np.array([1.0, 0.0]), "n": 2.0, "o": np.ones(2)}, {"q": 0.4})
    found = averaged([one, two])
    assert np.asarray(found.scores["m"]).tolist() == [0.5, 0.5]
    assert found.scores["n"] == 1.5
    assert set(found.scores) == {"m", "n"}
    assert found.explained == {"q": pytest.approx(0.3)}


def test_what_arithmetic_leaves_is_no_difference() -> None:
    """Models that rank alike are neither better nor worse, be their averages a little off."""
    before = np.random.default_rng(0).random(40)
    alike = averaged([Examined({"m": before * (1 / 3) + before * (2 / 3)}, {}) for _ in range(3)])
    assert (np.asarray(alike.scores["m"]) != before).any()
    for after in (alike.scores["m"], before - 1e-16, before + 1e-16):
        verdict = decide("m", "maximize", {"m": before}, {"m": after}, 0, Promote.BETTER)
        assert not verdict.promoted
        other = compare("m", {"m": before}, {"m": after}, 0, "golden", is_golden=True)
        assert other.change.delta_ci95 == (0, 0)
        assert guard(replace(verdict, others=(other,)), "maximize").reason == verdict.reason
