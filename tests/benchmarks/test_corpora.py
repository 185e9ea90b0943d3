import numpy as np
import pytest

from benchmarks.corpora import generated_corpus
from embedding_studio.clickstream import normalize_query
from embedding_studio.demo.corpus import Corpus


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return generated_corpus()


def test_the_generated_corpus_has_its_size(corpus: Corpus) -> None:
    """1,500 items, 2,500 normalized queries, each with an answer, a fifth of them held out."""
    assert len({item.object_id for item in corpus.items}) == 1500
    assert len(set(corpus.queries)) == 2500 == len(corpus.posted) + len(corpus.held_out)
    assert all(normalize_query(query) == query for query in corpus.queries)
    assert corpus.relevance.shape == (2500, 1500)
    assert corpus.relevance.any(axis=1).all()
    assert len(corpus.held_out) / 2500 == pytest.approx(0.2, abs=0.02)
    assert not set(corpus.posted) & set(corpus.held_out)


def test_a_seed_fixes_the_generated_corpus(corpus: Corpus) -> None:
    """The same seed gives the same items and queries; another gives others."""
    again, other = generated_corpus(), generated_corpus(seed=1)
    assert again.items == corpus.items
    assert again.queries == corpus.queries
    assert (again.relevance == corpus.relevance).all()
    assert other.queries != corpus.queries


def test_every_query_uses_a_word_that_no_relevant_item_bears(corpus: Corpus) -> None:
    """Matching words alone does not answer a query."""
    for row in range(0, 2500, 10):
        words = set(corpus.queries[row].split())
        for item in np.flatnonzero(corpus.relevance[row]):
            assert not words <= set(corpus.items[item].label.split())


def test_held_out_queries_are_new_combinations_of_known_words(corpus: Corpus) -> None:
    """Each word of a held-out query is in posted ones too, where its meaning can be learnt."""
    known = {word for row in corpus.posted for word in corpus.queries[row].split()}
    assert {word for row in corpus.held_out for word in corpus.queries[row].split()} <= known


def test_a_word_always_means_the_same(corpus: Corpus) -> None:
    """The items relevant to all queries with one invented word share a word that says it."""
    counts: dict[str, list[int]] = {}
    for row, query in enumerate(corpus.queries):
        for word in query.split():
            counts.setdefault(word, []).append(row)
    for rows in counts.values():
        meant = np.flatnonzero(corpus.relevance[rows].any(axis=0))
        labels = [set(corpus.items[item].label.split()) for item in meant]
        assert set.intersection(*labels) - {"for"}
