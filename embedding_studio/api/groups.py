"""What many requests ask for at the same time, done together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar, cast
from weakref import WeakKeyDictionary

from embedding_studio.errors import StoreUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Sequence[Item]], Sequence[Result | Exception]]


@dataclass(slots=True, eq=False)
class _Asked(Generic[Item, Result]):
    """What one request asks for, and what comes of it."""

    item: Item
    outcome: asyncio.Future[Result | Exception]


@dataclass(slots=True)
class _Group(Generic[Item, Result]):
    """The requests that wait while others are worked on."""

    waiting: list[_Asked[Item, Result]] = field(default_factory=list)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Groups(Generic[Item, Result]):
    """Groups of requests by a key. One group of a key is worked on at a time, in a thread, and the
    next takes along all that came meanwhile.

    So the more come at once, the less each of them costs; and one that comes alone waits for
    nothing.
    """

    def __init__(self) -> None:
        self._groups: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Group[Item, Result]]]
        self._groups = WeakKeyDictionary()
        self._threads = ThreadPoolExecutor(thread_name_prefix="group")

    async def do(self, key: str, item: Item, work: Work[Item, Result]) -> Result:
        """Return what the work makes of this item. Raises what it answers or raises instead."""
        loop = asyncio.get_running_loop()
        group = self._groups.setdefault(loop, {}).setdefault(key, _Group())
        asked = _Asked(item, loop.create_future())
        group.waiting.append(asked)
        async with group.turn:
            if asked in group.waiting:  # no other took it along
                together, group.waiting = group.waiting, []
                items = [one.item for one in together]
                outcomes = await loop.run_in_executor(self._threads, partial(_do, work, items))
                for one, outcome in zip(together, outcomes, strict=True):
                    if not one.outcome.done():  # whoever asked may be gone
                        one.outcome.set_result(outcome)
        if isinstance(outcome := await asked.outcome, Exception):
            raise outcome
        return cast(Result, outcome)


def _do(work: Work[Item, Result], items: Sequence[Item]) -> Sequence[Result | Exception]:
    try:
        return work(items)
    except Exception as error:  # noqa: BLE001 - raised where each of them waits
        if len(items) > 1 and not isinstance(error, StoreUnavailable):
            # one of them cannot be done: no other shares its fate
            return [outcome for item in items for outcome in _do(work, [item])]
        return [error] * len(items)
