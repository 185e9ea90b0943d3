"""Waiting for a condition, with a deadline."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], seconds: float = 60.0, pause: float = 0.02) -> None:
    """Return as soon as the condition holds; fail the test if it does not in time.

    pause: seconds between two looks."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(pause)
