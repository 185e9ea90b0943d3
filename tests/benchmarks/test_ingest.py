"""What the speed of taking sessions is told by."""

import json

import pytest

from benchmarks.ingest import percentile, session, show
from embedding_studio.wire.clickstream import SessionBody


def test_percentiles_are_of_what_was_measured() -> None:
    """The hundredth of a hundred is the largest."""
    values = [float(number) for number in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99)) == (51.0, 100.0)


def test_ratios_are_of_sessions_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    """The median of the rounds, over the naive endpoint's or the bound's."""
    rates = {"naive": [1, 10, 99], "single": [15, 15, 15], "bulk": [65, 1, 99], "bound": [130]}
    show(
        {name: [float(rate) for rate in each] for name, each in rates.items()},
        {name: [0.001, 0.02] for name in rates},
    )
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :]) == {
        "bulk_ratio": 6.5,
        "single_ratio": 1.5,
        "single_p99_ms": 20.0,
        "bulk_share_of_bound": 0.5,
    }


def test_the_sessions_are_what_the_product_takes() -> None:
    """With results and clicks on the first of them."""
    taken = SessionBody.model_validate(session("s", 1e9))
    assert len(taken.search_results) == 20
    assert len(taken.events) == 2
