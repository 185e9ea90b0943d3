"""What is looked at once for all who ask."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from embedding_studio.clock import Clock

T = TypeVar("T")


class Look(Generic[T]):
    """A look at something that may answer late or never: one at a time, in a thread of its own."""

    def __init__(self, look: Callable[[], T], clock: Clock, seconds: float) -> None:
        """Take what looks and returns what it found, and how long a look is waited for. Nobody
        waits for one that has taken longer."""
        self._look = look
        self._clock = clock
        self._seconds = seconds
        self._thread = ThreadPoolExecutor(1, "look")
        self._lock = threading.Lock()
        self._began = 0.0
        self._looking: Future[T] | None = None
        self._found: tuple[T, datetime] | None = None

    async def latest(self, max_age: timedelta) -> T:
        """Return what was found at most max_age ago, if need be by looking again.

        Raises what the look raises, and TimeoutError when it does not end in time."""
        if (found := self._found) is not None:
            age = self._clock() - found[1]
            if timedelta(0) <= age < max_age:  # a clock that was set back makes nothing fresh
                return found[0]
        with self._lock:
            if self._looking is None or self._looking.done():
                self._began = time.monotonic()
                self._looking = self._thread.submit(self._look_now)
            looking, left = self._looking, self._began + self._seconds - time.monotonic()
        if left <= 0 and not looking.done():
            raise TimeoutError
        return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(looking)), left)

    def _look_now(self) -> T:
        began = self._clock()
        found = self._look()
        self._found = found, began
        return found
