from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from embedding_studio.clickstream import Session
from embedding_studio.demo.corpus import Corpus, Icon, load_corpus
from embedding_studio.demo.searchers import Behaviour, held_out_quality, simulate_sessions

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus()


@pytest.fixture(scope="module")
def sessions(corpus: Corpus) -> list[Session]:
    return simulate(corpus, seed=0)


def simulate(corpus: Corpus, seed: int, behaviour: Behaviour | None = None) -> list[Session]:
    """Searches of a search engine that ranks at random."""
    random = np.random.default_rng(5)
    queries = random.normal(size=(len(corpus.queries), 8))
    items = random.normal(size=(len(corpus.items), 8))
    behaviour = behaviour or Behaviour()
    return list(simulate_sessions(corpus, queries, items, 3000, seed, NOW, behaviour))


def test_only_posted_queries_are_searched(corpus: Corpus, sessions: list[Session]) -> None:
    """No held-out query ever occurs in the sessions."""
    held_out = {corpus.queries[row] for row in corpus.held_out}
    assert not held_out & {session.search_query for session in sessions}


def test_a_seed_fixes_the_sessions(corpus: Corpus, sessions: list[Session]) -> None:
    """The same seed gives the same sessions; another gives other ids and clicks."""
    assert simulate(corpus, seed=0) == sessions
    other = simulate(corpus, seed=1)
    assert not {s.session_id for s in other} & {s.session_id for s in sessions}


def test_sessions_are_well_formed(sessions: list[Session]) -> None:
    """Twenty results by falling score, ids used once, clicks on what was shown, recent times."""
    for session in sessions:
        scores = [result.rank or 0.0 for result in session.search_results]
        assert len(scores) == 20
        assert scores == sorted(scores, reverse=True)
        assert session.clicked_ids() <= {result.object_id for result in session.search_results}
        assert all(result.meta["text"] for result in session.search_results)
        assert NOW - timedelta(hours=1) <= session.created_at < NOW
        assert all(session.created_at < e.created_at for e in session.events)
    assert len({session.session_id for session in sessions}) == len(sessions)
    events = [event.event_id for session in sessions for event in session.events]
    assert len(set(events)) == len(events)


def test_clicks_follow_examination_and_attraction(corpus: Corpus) -> None:
    """When everything attracts with 0.6, position k is clicked with probability 0.6 / k."""
    always = Behaviour(attraction_relevant=(0.6, 0.6), attraction_irrelevant=(0.6, 0.6))
    found = simulate(corpus, 0, always)
    clicks = np.zeros(20)
    for session in found:
        clicked = session.clicked_ids()
        clicks += [result.object_id in clicked for result in session.search_results]
    assert clicks / len(found) == pytest.approx(0.6 / np.arange(1, 21), abs=0.03)


def test_some_give_up_and_only_where_nothing_was_relevant(
    corpus: Corpus, sessions: list[Session]
) -> None:
    """Sessions marked irrelevant exist, are few, and showed nothing relevant."""
    row = {query: number for number, query in enumerate(corpus.queries)}
    column = {item.object_id: number for number, item in enumerate(corpus.items)}
    gave_up = [session for session in sessions if session.is_irrelevant]
    assert 0 < len(gave_up) < 0.1 * len(sessions)
    for session in gave_up:
        shown = [column[result.object_id] for result in session.search_results]
        assert not corpus.relevance[row[session.search_query], shown].any()


def test_queries_follow_zipfs_law(sessions: list[Session]) -> None:
    """The most popular query is asked about twice as often as the second."""
    counts = np.unique([s.search_query for s in sessions], return_counts=True)[1]
    first, second = sorted(counts)[-1:-3:-1]
    assert first / second == pytest.approx(2, rel=0.3)


def test_quality_by_hand() -> None:
    """Only held-out queries are measured, over all items, against true relevance."""
    corpus = Corpus(
        items=tuple(Icon(name, name, "") for name in "abc"),
        queries=("posted", "held out"),
        relevance=np.array([[True, False, False], [True, False, True]]),
        posted=np.array([0]),
        held_out=np.array([1]),
    )
    queries = np.array([[1.0, 0.0], [0.0, 1.0]])
    items = np.array([[0.0, 0.5], [0.0, 0.9], [0.0, 0.1]])
    quality = held_out_quality(corpus, queries, items)
    log = np.log2
    assert quality.ndcg_at_10 == pytest.approx([(1 / log(3) + 1 / log(4)) / (1 + 1 / log(3))])
    assert quality.mrr_at_10 == pytest.approx([1 / 2])


def test_a_collapsed_model_has_no_quality(corpus: Corpus) -> None:
    """Ties are ranked worst first, so equal vectors score zero."""
    same = np.ones((len(corpus.queries), 4))
    quality = held_out_quality(corpus, same, np.ones((len(corpus.items), 4)))
    assert quality.ndcg_at_10.max() == 0
