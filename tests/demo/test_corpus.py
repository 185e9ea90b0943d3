import subprocess
import sys

import numpy as np
import pytest

from embedding_studio.clickstream import normalize_query
from embedding_studio.demo.corpus import ATTRIBUTION, Corpus, load_corpus


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus()


def test_the_corpus_has_its_known_size(corpus: Corpus) -> None:
    """1,393 items, 3,673 distinct queries, 9,497 relevant pairs."""
    assert len(corpus.items) == len({item.object_id for item in corpus.items}) == 1393
    assert len(corpus.queries) == len(set(corpus.queries)) == 3673
    assert corpus.relevance.sum() == 9497


def test_every_query_is_normalized_and_has_an_answer(corpus: Corpus) -> None:
    """No query is spelled in two ways, and each has a relevant item."""
    assert all(normalize_query(query) == query for query in corpus.queries)
    assert corpus.relevance.any(axis=1).all()


def test_no_query_is_the_label_of_its_item(corpus: Corpus) -> None:
    """What a text match finds teaches nothing."""
    labels = [normalize_query(item.label) for item in corpus.items]
    for row, item in zip(*np.nonzero(corpus.relevance), strict=True):
        assert corpus.queries[row] != labels[item]


def test_queries_are_posted_or_held_out(corpus: Corpus) -> None:
    """A fifth is held out, and the two parts share nothing."""
    assert not set(corpus.posted) & set(corpus.held_out)
    assert len(corpus.posted) + len(corpus.held_out) == 3673
    assert len(corpus.held_out) / 3673 == pytest.approx(0.2, abs=0.02)


def test_items_can_be_shown(corpus: Corpus) -> None:
    """Each item has a label and a drawing, and their makers are named."""
    assert all(item.label and item.svg.startswith("<svg") for item in corpus.items)
    assert "Font Awesome" in ATTRIBUTION
    assert "CC BY 4.0" in ATTRIBUTION


def test_reading_the_corpus_and_searching_load_no_torch() -> None:
    """The demo's client side stays light."""
    code = "import sys, embedding_studio.demo.searchers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
