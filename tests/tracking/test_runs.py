"""Runs: what is made of the reports of a trial."""

from embedding_studio.executors.base import Report
from embedding_studio.tracking.runs import aggregate


def test_aggregates_are_those_of_the_reports() -> None:
    """Last, min, max, mean, and the mean of the last three."""
    reports = [Report(step, {"m": value}) for step, value in enumerate([1.0, 5.0, 3.0, 4.0])]
    assert aggregate(reports) == {
        "system/m.last": 4.0,
        "system/m.min": 1.0,
        "system/m.max": 5.0,
        "system/m.mean": 3.25,
        "system/m.sliding_mean": 4.0,
    }
    assert aggregate([]) == {}
    assert "system/m.sliding_mean" not in aggregate(reports[:1])
