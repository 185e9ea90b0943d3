"""What a batch of any size is told to cost."""

import json
import sys

import pytest

from benchmarks import batch


@pytest.mark.slow
def test_a_batch_goes_all_the_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the store to columns, each step in a process of its own, and what it took is told."""
    monkeypatch.setattr(sys, "argv", ["batch", "--sizes", "600", "--before", ""])
    batch.main()
    told = capsys.readouterr().out
    summary = json.loads(told[told.index("{") :])
    assert summary["bytes_per_session"] > 200
    assert " 600 " in told


def test_sessions_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty of them: distinct queries, twenty results, two clicks on what was shown."""
    monkeypatch.setattr(batch, "N_QUERIES", 1000)
    [first], [again] = (list(batch.make_sessions(60)) for _ in range(2))
    assert [one.search_query for one in first] == [one.search_query for one in again]
    for one in first:
        assert len(one.search_results) == 20
        assert one.clicked_ids() <= {result.object_id for result in one.search_results}
