"""Requests that share passes through a model."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import pytest

from embedding_studio.errors import StoreUnavailable, TooManyRequests
from embedding_studio.serving.batching import PASS_TEXTS, Batching, Encoded, Vectors

SECONDS = 10.0


class Counting:
    """Encodes a text to its length; waits at its first pass, so that requests pile up."""

    def __init__(self) -> None:
        self.began, self.may_go_on = threading.Event(), threading.Event()
        self.passes: list[tuple[bool, list[str]]] = []

    def encode(self, is_item: bool, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
        self.passes.append((is_item, list(texts)))
        self.began.set()
        assert self.may_go_on.wait(SECONDS)
        if "bad" in texts:
            raise ValueError("bad")
        lengths = [len(text) for text in texts]
        return np.array(lengths, np.float32)[:, None], lengths


def busy(most_texts: int = 1000) -> tuple[Batching, Counting, "Future[Encoded]"]:
    """Return a thread that is at a first text."""
    batching, model = Batching(most_texts), Counting()
    first = batching.submit(model, True, ["first"])
    assert model.began.wait(SECONDS)
    return batching, model, first


def test_requests_share_passes_by_length() -> None:
    """Texts of several requests are sorted together; each request gets its own, in its order."""
    batching, model, first = busy()
    texts = [["x" * (n + 1 + k) for n in range(40, 0, -1)] for k in range(3)]
    futures = [batching.submit(model, True, some) for some in texts]
    model.may_go_on.set()
    for some, future in zip(texts, futures, strict=True):
        found = future.result(SECONDS)
        assert found.vectors[:, 0].tolist() == [len(text) for text in some]
        assert found.tokens == sum(map(len, some))
    assert first.result(SECONDS).vectors.tolist() == [[5.0]]
    batching.close()
    lengths = [len(text) for _, some in model.passes[1:] for text in some]
    assert lengths == sorted(lengths)
    assert max(len(some) for _, some in model.passes) == PASS_TEXTS


def test_queries_and_items_are_passes_of_their_own() -> None:
    """A prompt is of one side: the two never share a pass."""
    batching, model, _ = busy()
    futures = [batching.submit(model, is_item, ["text"]) for is_item in (True, False, True)]
    model.may_go_on.set()
    for future in futures:
        future.result(SECONDS)
    batching.close()
    assert [(side, len(some)) for side, some in model.passes[1:]] == [(True, 2), (False, 1)]


def test_a_search_does_not_wait_for_a_catalogue() -> None:
    """A small request is the next pass, however many texts came before it."""
    batching, model, _ = busy()
    large = batching.submit(model, True, ["item"] * 500)
    small = batching.submit(model, False, ["query"])
    model.may_go_on.set()
    small.result(SECONDS)
    large.result(SECONDS)
    batching.close()
    assert (False, ["query"]) in model.passes[1:3]


def test_searches_do_not_keep_a_catalogue_waiting() -> None:
    """Of many small requests and a large one each has every second pass."""
    batching, model, _ = busy()
    small = [batching.submit(model, False, ["query"] * 4) for _ in range(40)]
    large = batching.submit(model, True, ["item"] * (2 * PASS_TEXTS))
    model.may_go_on.set()
    for future in [*small, large]:
        future.result(SECONDS)
    batching.close()
    assert [is_item for is_item, _ in model.passes[1:6]].count(True) == 2


def test_too_many_texts_are_told_to_come_again() -> None:
    """With as many as may wait, what comes is refused; one alone may be larger."""
    batching, model, _ = busy(most_texts=10)
    batching.submit(model, True, ["a"] * 9)
    with pytest.raises(TooManyRequests, match="ES_SERVE_QUEUE"):
        batching.submit(model, True, ["a"])
    model.may_go_on.set()
    batching.close()
    again = Batching(10)
    assert len(again.submit(model, True, ["a"] * 20).result(SECONDS).vectors) == 20
    again.close()


def test_a_pass_that_fails_is_the_answer_to_its_requests_alone() -> None:
    """The others have theirs, and the thread goes on."""
    batching, model, _ = busy()
    bad = batching.submit(model, True, ["bad"])
    good = batching.submit(model, False, ["good"])
    model.may_go_on.set()
    with pytest.raises(ValueError, match="bad"):
        bad.result(SECONDS)
    assert good.result(SECONDS).tokens == 4
    batching.close()


def test_what_nobody_waits_for_is_not_encoded() -> None:
    """A request that was canceled costs nothing, and makes room."""
    batching, model, _ = busy(most_texts=10)
    canceled = batching.submit(model, True, ["gone"] * 9)
    assert canceled.cancel()
    model.may_go_on.set()
    batching.close()
    assert [texts for _, texts in model.passes] == [["first"]]
    with pytest.raises(StoreUnavailable):
        batching.submit(model, True, ["late"])
