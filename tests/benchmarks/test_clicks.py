from typing import Any

import numpy as np
import pytest

from benchmarks import clicks
from benchmarks.corpora import generated_corpus
from embedding_studio.demo.searchers import Behaviour
from embedding_studio.training.encoder import load_encoder
from tests.training.tiny import write_tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> clicks.Arena:
    folder = write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(clicks.CORPORA, "small", lambda: generated_corpus(200, 300))
        return clicks.Arena("small", load_encoder(folder))


def test_true_clicks_are_on_all_that_is_relevant_and_nothing_else(arena: clicks.Arena) -> None:
    """The oracle sees the same searches and results, with the truth in place of the clicks."""
    sessions = arena.sessions(300, 0, Behaviour())
    corpus = arena.corpus
    row = {query: number for number, query in enumerate(corpus.queries)}
    column = {item.object_id: number for number, item in enumerate(corpus.items)}
    for before, after in zip(sessions, arena.with_true_clicks(sessions), strict=True):
        assert before.search_results == after.search_results
        shown = {result.object_id for result in after.search_results}
        assert after.clicked_ids() == {
            name for name in shown if corpus.relevance[row[after.search_query], column[name]]
        }


def test_every_recipe_runs_through(arena: clicks.Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each recipe gives a finite share of the oracle's gain."""
    monkeypatch.setattr(clicks, "FROZEN_LAYERS", 1)
    monkeypatch.setattr(clicks, "LEARNING_RATE", 3e-3)
    found = list(clicks.recovered_shares(arena, ["1"], 2000, seed=0))
    assert [(way, recipe) for way, recipe, _ in found] == [("1", r) for r in clicks.RECIPES]
    assert np.isfinite([share for *_, share in found]).all()


def test_other_ways_of_clicking_see_the_same_results(arena: clicks.Arena) -> None:
    """Whoever clicks in whichever way asks and is shown the same, and clicks on what is relevant
    more often than on the rest; those of a cascade hardly after they found something."""
    by_position = arena.sessions_of("1", 300, 0)
    shown = [(session.search_query, session.search_results) for session in by_position]
    for way in ("cascade", "trust", "bots"):
        sessions = arena.sessions_of(way, 300, 0)
        assert [(s.search_query, s.search_results) for s in sessions] == shown
        relevant = arena.relevant(sessions)
        clicked = np.array(
            [[r.object_id in s.clicked_ids() for r in s.search_results] for s in sessions]
        )
        assert clicked[relevant].mean() > 1.5 * clicked[~relevant].mean()
        if way == "cascade":
            found = np.cumsum(clicked & relevant, axis=1) - (clicked & relevant) > 0
            assert clicked[found].mean() < 0.1


def test_what_is_served_is_compared(arena: clicks.Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both searches pick from their own sets, so that no regret is below 0."""
    monkeypatch.setattr(clicks, "TRIALS", 2)
    found = clicks.served(arena, "1", 2000, seed=0)
    assert found.regret >= 0
    assert found.former_regret >= 0
    assert (found.corpus, found.sessions) == ("small", 2000)


def test_served_ratios_by_hand() -> None:
    """Sums of gains and regrets are compared within a corpus; corpora count alike."""
    found = [
        clicks.Served("a", 5, former_gain=0.1, gain=0.3, former_regret=0.2, regret=0.1),
        clicks.Served("a", 5, former_gain=0.1, gain=0.1, former_regret=0.0, regret=0.0),
        clicks.Served("b", 5, former_gain=1.0, gain=1.0, former_regret=0.1, regret=0.1),
        clicks.Served("b", 9, former_gain=1.0, gain=1.5, former_regret=0.1, regret=0.1),
    ]
    assert clicks.compare_served(found) == {
        "served_gain_ratio_5": 1.5,
        "served_gain_ratio_9": 1.5,
        "regret_ratio": 0.75,
    }
    assert clicks.compare_served([]) == {}


def test_random_clicks_know_nothing_of_relevance(arena: clicks.Arena) -> None:
    """What is relevant attracts no more than what is not; a verdict comes out."""
    assert clicks.RANDOM_CLICKS.attraction_relevant == clicks.RANDOM_CLICKS.attraction_irrelevant
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clicks, "FROZEN_LAYERS", 1)
        assert clicks.is_noise_promoted(arena, 2000, seed=0) in (True, False)


def test_the_standard_error_by_hand() -> None:
    """Of 1, 2 and 3: the mean is 2, the deviation 1, its error 1 / sqrt(3)."""
    assert clicks.summarize([1.0, 2.0, 3.0]) == pytest.approx((2.0, 3**-0.5))
    assert clicks.summarize([0.7]) == (0.7, 0.0)


def test_an_encoder_for_queries_alone_is_compared(arena: clicks.Arena) -> None:
    """It is trained from the same clicks, for fewer tokens."""
    shared, alone = clicks.trained(arena, "1", 2000, seed=0)
    assert np.isfinite([shared.gain, alone.gain]).all()
    assert alone.tokens < shared.tokens
    figures: Any = clicks.compare_sides([shared, alone])
    assert figures["query_side"]["small_1"][1] == alone.tokens
