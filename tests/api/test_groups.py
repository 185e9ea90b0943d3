"""What is asked for at the same time is done together."""

import asyncio
import threading
from collections.abc import Sequence

from embedding_studio.api.groups import Groups
from embedding_studio.errors import StoreUnavailable


async def ask(groups: Groups[int, int], items: Sequence[int], work: object) -> list[object]:
    asked = [groups.do("one", [item], work) for item in items]  # type: ignore[arg-type]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return [one if isinstance(one, BaseException) else one[0] for one in answers]


def test_those_that_come_meanwhile_go_together() -> None:
    """The first goes at once; all that come while it is worked on are one group."""
    seen: list[list[int]] = []
    rest_came = threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        seen.append(list(items))
        assert rest_came.wait(10)
        return [10 * item for item in items]

    async def run() -> list[object]:
        groups: Groups[int, int] = Groups()
        first = asyncio.create_task(groups.do("one", [1], work))
        while not seen:
            await asyncio.sleep(0.001)
        others = asyncio.create_task(ask(groups, [2, 3, 4], work))
        await asyncio.sleep(0.01)
        rest_came.set()
        return [*await first, *await others]

    assert asyncio.run(run()) == [10, 20, 30, 40]
    assert seen == [[1], [2, 3, 4]]


def test_who_has_gone_leaves_the_others_their_answers() -> None:
    """A request that was given up while its group was worked on disturbs nobody."""
    begun, go_on = threading.Event(), threading.Event()

    def work(items: Sequence[int]) -> list[int]:
        begun.set()
        assert go_on.wait(10)
        return list(items)

    async def run() -> list[object]:
        groups: Groups[int, int] = Groups()
        first = asyncio.create_task(groups.do("one", [1], work))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        gone, stays = (asyncio.create_task(groups.do("one", [item], work)) for item in (2, 3))
        await asyncio.sleep(0.01)
        gone.cancel()
        go_on.set()
        return [*await first, *await stays]

    assert asyncio.run(run()) == [1, 3]


def test_one_that_cannot_be_done_is_alone_with_it() -> None:
    """The others of its group get their answers."""

    def work(items: Sequence[int]) -> list[int]:
        if 2 in items:
            raise KeyError(2)
        return list(items)

    first, second, third = asyncio.run(ask(Groups(), [1, 2, 3], work))
    assert (first, third) == (1, 3)
    assert isinstance(second, KeyError)


def test_a_store_that_is_away_is_asked_once() -> None:
    """Nobody of the group tries again."""
    groups: list[list[int]] = []

    def work(items: Sequence[int]) -> list[int]:
        groups.append(list(items))
        raise StoreUnavailable("away")

    outcomes = asyncio.run(ask(Groups(), [1, 2, 3], work))
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert len(groups) == 2


def test_groups_of_other_keys_do_not_wait() -> None:
    """Each key has a thread of its own: they meet."""
    both = threading.Barrier(2, timeout=10)

    def work(items: Sequence[int]) -> list[int]:
        both.wait()
        return list(items)

    async def run() -> list[Sequence[int]]:
        groups: Groups[int, int] = Groups()
        return list(await asyncio.gather(*(groups.do(key, [1], work) for key in ("one", "two"))))

    assert asyncio.run(run()) == [[1], [1]]


def test_a_group_has_a_size() -> None:
    """Who waits behind many does not wait for all of them; one request stays together."""
    sizes: list[int] = []

    def work(items: Sequence[int]) -> list[int]:
        sizes.append(len(items))
        return list(items)

    async def run() -> None:
        groups: Groups[int, int] = Groups()
        many = [300, 200, 1, 700, 2]
        asked = [groups.do("one", range(size), work) for size in many]
        assert [len(answers) for answers in await asyncio.gather(*asked)] == many

    asyncio.run(run())
    assert sizes == [300, 201, 700, 2]
