"""What the benchmark of serving tells."""

import pytest

from benchmarks.serve import TEXTS, Request, make_texts, p99, rate_of, split_by_swaps


def request(start: float, end: float) -> Request:
    return Request(start, end, version=1, status=200)


def test_requests_under_way_in_a_swap_are_told_apart() -> None:
    """One that began before it, within it, or lasted over it counts; one that ended before does
    not."""
    requests = [request(0, 1), request(0, 3), request(2.5, 2.6), request(1, 9), request(5, 6)]
    during, others = split_by_swaps(requests, [(2.0, 4.0)])
    assert during == requests[1:4]
    assert others == [requests[0], requests[4]]
    assert p99([request(0, 1)] * 3) == 1


def test_texts_a_second_count_while_all_ask() -> None:
    """What ends after the last request began is left out, for then clients are idle."""
    requests = [request(0, 1), request(1, 2), request(2, 5)]
    assert rate_of(requests) == pytest.approx(2 * TEXTS / 2)


def test_even_texts_are_of_like_length() -> None:
    """All of two names; others of one to eight."""
    assert {text.count(". ") for text in make_texts(1, 40, is_even=True)} == {1}
    assert len({text.count(". ") for text in make_texts(1, 40)}) > 2
