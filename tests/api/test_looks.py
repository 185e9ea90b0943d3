"""What is looked at once for all who ask."""

import asyncio
import threading
import time
from datetime import timedelta

import pytest

from embedding_studio.api.looks import Look
from tests.api.samples import Clock

SECOND = timedelta(seconds=1)


def test_who_asks_at_once_shares_a_look() -> None:
    """Many callers wait for one look, and hear the same."""
    begun: list[int] = []
    go_on = threading.Event()

    def count() -> int:
        begun.append(1)
        go_on.wait(10)
        return len(begun)

    async def ask() -> list[int]:
        look = Look(count, Clock(), 10)
        asked = [asyncio.create_task(look.latest(SECOND)) for _ in range(100)]
        await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(*asked)

    assert asyncio.run(ask()) == [1] * 100


def test_what_was_found_serves_until_it_is_too_old() -> None:
    """Nobody looks again before, and a clock that was set back keeps nothing."""
    numbers = iter(range(10))
    clock = Clock()
    look = Look(lambda: next(numbers), clock, 10)
    found = []
    for seconds in (0, 0.9, 0.2, -5):
        clock.now += timedelta(seconds=seconds)
        found.append(asyncio.run(look.latest(SECOND)))
    assert found == [0, 0, 1, 2]


def test_what_a_look_raises_is_raised_and_not_kept() -> None:
    """The next caller looks again."""
    divisors = iter([0, 1])
    look = Look(lambda: 7 // next(divisors), Clock(), 10)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(look.latest(SECOND))
    assert asyncio.run(look.latest(SECOND)) == 7


def test_nobody_waits_for_a_look_that_hangs() -> None:
    """Who comes first waits for as long as a look may take, who comes later not at all; once it
    ends after all, it serves."""
    go_on = threading.Event()
    look = Look(lambda: go_on.wait(30), Clock(), 0.05)
    with pytest.raises(TimeoutError):
        asyncio.run(look.latest(SECOND))
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(TimeoutError):
            asyncio.run(look.latest(SECOND))
    assert time.monotonic() - began < 1
    go_on.set()
    look._thread.shutdown()
    assert asyncio.run(look.latest(SECOND)) is True
