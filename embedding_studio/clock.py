"""Clocks: this machine's, and the one that all workers share, the database's; durations."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from embedding_studio.errors import InvalidInput

Clock = Callable[[], datetime]
"""Tells the time, in UTC."""

MAX_LEASE_SECONDS = 3600.0
"""No lease is longer. One that ends much later was written by a clock that was wrong."""
MAX_APART_SECONDS = 60.0
"""How far the clocks of two workers may be apart that ask one database."""
MAX_ROUND_TRIP_SECONDS = 1.0
"""An answer that took longer says too little of the time."""


def utc_now() -> datetime:
    """Return the time by this machine's clock."""
    return datetime.now(UTC)


DURATION = re.compile(r"(\d{1,6})([mhdw])")
_UNITS = {
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}


def parse_duration(text: str) -> timedelta:
    """Return what "90d", "2w", "24h" or "30m" means. Raises InvalidInput."""
    found = DURATION.fullmatch(text)
    if found is None:
        raise InvalidInput(f"{text!r} is no duration: write 90d, 2w, 24h or 30m")
    return int(found[1]) * _UNITS[found[2]]


def in_words(seconds: float) -> str:
    """Return how long that is, in the units in which people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours >= 48 and not (rest or hours % 24):
        return f"{hours // 24} d"
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def is_held(until: datetime | None, now: datetime) -> bool:
    """Return whether a lease that ends then holds now. One that ends further in the future than
    any may does not: a clock was wrong."""
    latest = now + timedelta(seconds=MAX_LEASE_SECONDS + MAX_APART_SECONDS)
    return until is not None and now < until <= latest


class DatabaseClock:
    """The time by the database's clock; by this machine's until the database has told it.

    machine: this machine's clock, which somebody may set. What passes since the database was asked
    is counted without it."""

    def __init__(self, machine: Clock) -> None:
        self._machine = machine
        self._told: tuple[datetime, float] | None = None
        self.ahead_seconds = 0.0

    def __call__(self) -> datetime:
        if self._told is None:
            return self._machine()
        time_then, then = self._told
        return time_then + timedelta(seconds=_elapsed() - then)

    @property
    def is_told(self) -> bool:
        """Whether the database has told its time."""
        return self._told is not None

    def ask(self, tell: Callable[[], datetime]) -> None:
        """Set the clock by an answer of the database, which took its time half way through; note
        how far this machine's clock is ahead of it. Raises what `tell` does."""
        began = _elapsed()
        time_then = tell()
        took = _elapsed() - began
        if self._told is None or took < MAX_ROUND_TRIP_SECONDS:
            self._told = time_then, began + took / 2
            self.ahead_seconds = (self._machine() - self()).total_seconds()


def _elapsed() -> float:
    """Seconds since any one moment, those in which the machine slept included where it counts
    them."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
