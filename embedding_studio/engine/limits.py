"""What asks trials to come to their end: the stop, the minutes of the search, and their own."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from embedding_studio.engine.lease import Lease
from embedding_studio.search import Trial
from embedding_studio.tasks import Budget

SILENT_SECONDS = 300.0
"""A trial that has not reported for so long, or for a quarter of its minutes, is told of."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit that a trial has reached, and how long ago."""

    name: str
    seconds_ago: float
    #: how long the trial may go on after it was asked to end
    grace_seconds: float
    #: whether the trial took too long, rather than the search being over
    is_own: bool = False

    @property
    def overdue_seconds(self) -> float:
        """For how long the trial should have been at its end; negative before that."""
        return self.seconds_ago - self.grace_seconds


class Limits:
    """What ends the trials of one search: a stop, its minutes, or a trial's own."""

    def __init__(
        self, budget: Budget, lease: Lease, grace_seconds: float, spent_seconds: float
    ) -> None:
        """Begin to count the minutes of the search, of which earlier attempts have spent some.

        After a limit of fewer seconds than `grace_seconds`, a trial has no more grace than that."""
        self._lease = lease
        self._grace_seconds = grace_seconds
        self._search = _seconds(budget.max_minutes)
        self._each = _seconds(budget.max_minutes_per_trial)
        self._deadline = time.monotonic() + self._search - spent_seconds
        #: how long a trial may work without a report before it is told of
        self.patience_seconds = min(SILENT_SECONDS, self._search / 4, self._each / 4)

    @property
    def seconds_left(self) -> float:
        """Until the search's minutes are over, negative afterwards; infinite without a limit."""
        return self._deadline - time.monotonic()

    def reached(self, started: float) -> list[Limit]:
        """Return what asks a trial to come to its end, if anything does. started: by
        time.monotonic()."""
        limits = []
        if self._lease.is_stopping:
            limits.append(Limit("the stop", self._lease.seconds_since_stop, self._grace_seconds))
        if (late := -self.seconds_left) >= 0:
            name = f"the end of the search's max_minutes ({self._search / 60:g})"
            limits.append(Limit(name, late, min(self._grace_seconds, self._search)))
        if (late := time.monotonic() - started - self._each) >= 0:
            name = f"the end of its max_minutes_per_trial ({self._each / 60:g})"
            grace = min(self._grace_seconds, self._each)
            limits.append(Limit(name, late, grace, is_own=True))
        return limits


def _seconds(minutes: float | None) -> float:
    return math.inf if minutes is None else minutes * 60


def seconds_at_work(trials: Iterable[Trial]) -> float:
    """Return for how long any of some trials was at work: time of two at once counts once."""
    total, until = 0.0, -math.inf
    spans = [(trial.ended / 1000 - trial.seconds, trial.ended / 1000) for trial in trials]
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
