"""Where the time of several processes goes: spans in one file, each instant given to one phase."""

import functools
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """start, end: time.monotonic(), which all processes of a Linux machine share."""

    thread: str
    phase: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Recorder:
    """Appends spans to a file; several processes may write to one."""

    file: Path

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            thread = f"{os.getpid()}-{threading.get_ident()}"
            line = json.dumps([thread, phase, start, time.monotonic()]) + "\n"
            with self.file.open("a") as lines:  # one short write: processes do not mix
                lines.write(line)

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Measure every call of a function, in its module or class, from now on."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(phase):
                return function(*args, **kwargs)

        setattr(owner, name, measured)


def read_spans(file: Path) -> list[Span]:
    return [Span(*json.loads(line)) for line in file.read_text().splitlines()]


def split_time(
    spans: Iterable[Span], start: float, end: float, phases: list[str]
) -> dict[str, float]:
    """Give each instant from start to end to one phase; the sum is end - start.

    A thread is in its innermost span. When threads are in different ones, the phase that comes
    first in `phases` has the instant; when none is in any, the last has it.
    """
    ordered = sorted(spans, key=lambda span: span.start)
    borders = sorted(
        {start, end}
        | {time for span in ordered for time in (span.start, span.end) if start < time < end}
    )
    seconds = dict.fromkeys(phases, 0.0)
    for left, right in pairwise(borders):
        innermost = {
            span.thread: span.phase for span in ordered if span.start <= left and span.end >= right
        }
        seconds[min(innermost.values(), key=phases.index, default=phases[-1])] += right - left
    return seconds
