import numpy as np
import pytest

from benchmarks import clicks
from benchmarks.corpora import generated_corpus
from embedding_studio.demo.searchers import Behaviour
from embedding_studio.training.encoder import load_encoder
from tests.training.tiny import write_tiny_model


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
    found = list(clicks.recovered_shares(arena, [1.0], 2000, seed=0))
    assert [(eta, recipe) for eta, recipe, _ in found] == [(1.0, r) for r in clicks.RECIPES]
    assert np.isfinite([share for *_, share in found]).all()


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
