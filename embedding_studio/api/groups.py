"""What many requests ask for at the same time, done together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from embedding_studio.errors import StoreUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Sequence[Item]], Sequence[Result]]

THREADS = 40
"""As many as all other requests have."""
MOST = 500
"""How many items a group has at most, unless one request has more."""


@dataclass(slots=True, eq=False)
class _Asked(Generic[Item, Result]):
    """The items of one request, and what comes of them."""

    items: Sequence[Item]
    outcome: asyncio.Future[Sequence[Result] | Exception]


@dataclass(slots=True)
class _Group(Generic[Item, Result]):
    """The requests that wait while others are worked on."""

    waiting: list[_Asked[Item, Result]] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def take(self) -> list[_Asked[Item, Result]]:
        """Take those that are next."""
        size = taken = 0
        while taken < len(self.waiting):
            size += len(self.waiting[taken].items)
            if taken and size > MOST:
                break
            taken += 1
        together, self.waiting = self.waiting[:taken], self.waiting[taken:]
        return together


class Groups(Generic[Item, Result]):
    """Groups of requests by a key. One group of a key is worked on at a time, in a thread, and the
    next takes along what came meanwhile.

    So the more come at once, the less each of them costs; and one that comes alone waits for
    nothing.
    """

    def __init__(self) -> None:
        self._groups: WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[str, _Group[Item, Result]]
        ] = WeakKeyDictionary()
        self._threads = ThreadPoolExecutor(THREADS, "group")

    async def do(
        self, key: str, items: Sequence[Item], work: Work[Item, Result]
    ) -> Sequence[Result]:
        """Return what the work makes of each item. Raises what it raises of these alone."""
        loop = asyncio.get_running_loop()
        group = self._groups.setdefault(loop, {}).setdefault(key, _Group())
        asked: _Asked[Item, Result] = _Asked(items, loop.create_future())
        group.waiting.append(asked)
        async with group.turn:
            while asked in group.waiting:  # no other took it along
                together = group.take()
                posts = [one.items for one in together]
                outcomes = await loop.run_in_executor(self._threads, partial(_do, work, posts))
                for one, outcome in zip(together, outcomes, strict=True):
                    if not one.outcome.done():  # whoever asked may be gone
                        one.outcome.set_result(outcome)
        outcome = await asked.outcome
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def _do(
    work: Work[Item, Result], posts: Sequence[Sequence[Item]]
) -> Sequence[Sequence[Result] | Exception]:
    try:
        results = iter(work([item for items in posts for item in items]))
    except Exception as error:  # noqa: BLE001 - raised where each of them waits
        if len(posts) > 1 and not isinstance(error, StoreUnavailable):
            # one of them cannot be done: no other shares its fate
            return [outcome for items in posts for outcome in _do(work, [items])]
        return [error] * len(posts)
    return [list(islice(results, len(items))) for items in posts]
