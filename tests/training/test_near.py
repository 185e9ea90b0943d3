"""Queries that are spelled almost alike."""

import pytest

from embedding_studio.demo.corpus import load_corpus
from embedding_studio.training import near as module
from embedding_studio.training.near import find_near_identical


@pytest.fixture(params=[5000, 0], ids=["compared", "hashed"])
def most(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether all are compared, or those alone that share a hash."""
    monkeypatch.setattr(module, "_COMPARE_ALL", request.param)


@pytest.mark.usefixtures("most")
def test_near_identical_queries_are_found() -> None:
    """Plurals, slips and another order of words, both ways; not other words, not itself."""
    queries = ["magnifying glass", "glass magnifying", "magnifying glasses", "magnifyng glass",
               "wine glass", "umbrella", "umbrellas", "Umbrella",
               *load_corpus().queries]  # fmt: skip
    near = {(int(a), int(b)) for a, b in find_near_identical(queries)}
    assert {(0, 1), (0, 2), (0, 3), (5, 6), (7, 5), (7, 6)} <= near
    assert (0, 4) not in near
    assert all((b, a) in near and a != b for a, b in near)


@pytest.mark.usefixtures("most")
def test_what_has_no_letters_is_near_nothing() -> None:
    """One of no pieces at the end, a single query, or none."""
    assert find_near_identical(["red chair", "", "chair red", " "]).tolist() == [[0, 2], [2, 0]]
    assert find_near_identical([]).shape == find_near_identical(["one"]).shape == (0, 2)


def test_hashes_find_nearly_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of real search terms 99 of 100 pairs that comparing all of them finds, and no other."""
    queries = load_corpus().queries
    expected = set(map(tuple, find_near_identical(queries).tolist()))
    monkeypatch.setattr(module, "_COMPARE_ALL", 0)
    found = set(map(tuple, find_near_identical(queries).tolist()))
    assert found <= expected
    assert len(found) > 0.99 * len(expected) > 1000
