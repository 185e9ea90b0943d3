"""The clock of the iteration's benchmark: each instant belongs to one phase."""

from pathlib import Path

import pytest

from benchmarks.spans import Recorder, Span, read_spans, split_time

PHASES = ["training", "evaluation", "logging", "waiting", "processes", "rest"]


def test_each_instant_goes_to_one_phase() -> None:
    """Innermost within a thread, first of the phases between threads, the last where none is."""
    spans = [
        Span("worker", "processes", 1.0, 9.0),
        Span("trial", "training", 2.0, 8.0),
        Span("trial", "evaluation", 3.0, 4.0),
        Span("trial", "waiting", 4.0, 5.0),
        Span("listener", "logging", 4.2, 4.9),
    ]
    seconds = split_time(spans, 0.0, 10.0, PHASES)
    assert seconds == pytest.approx(
        {
            "training": 4.0,  # 2 to 3 and 5 to 8
            "evaluation": 1.0,
            "logging": 0.7,  # while the trial waits for it
            "waiting": 0.3,
            "processes": 2.0,
            "rest": 2.0,
        }
    )
    assert sum(seconds.values()) == pytest.approx(10.0)


def test_what_is_outside_does_not_count() -> None:
    """A span that begins before the iteration counts from its start only."""
    seconds = split_time([Span("a", "training", 0.0, 3.0)], 2.0, 4.0, PHASES)
    assert (seconds["training"], seconds["rest"]) == (1.0, 1.0)


def test_a_wrapped_function_is_measured_even_if_it_raises(tmp_path: Path) -> None:
    """The span is written and the exception passes."""

    class Owner:
        def work(self) -> None:
            raise ValueError("boom")

    recorder = Recorder(tmp_path / "spans")
    recorder.wrap(Owner, "work", "training")
    with pytest.raises(ValueError, match="boom"):
        Owner().work()
    (span,) = read_spans(tmp_path / "spans")
    assert (span.phase, span.start <= span.end) == ("training", True)
