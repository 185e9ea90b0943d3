"""Sessions that were kept for as long as they may be go by themselves."""

from dataclasses import replace
from datetime import timedelta

import pytest

from embedding_studio.clock import utc_now
from embedding_studio.engine.worker import Worker
from embedding_studio.settings import Settings
from tests.iterations import Bench, open_bench

pytestmark = pytest.mark.slow


def expire(bench: Bench, days: int) -> int:
    """Have a worker look for them in some days; return how many sessions are left."""
    house = replace(bench.house, clock=lambda: utc_now() + timedelta(days=days))
    Worker(house, bench.worker._catalog).expire_sessions()
    return sum(one.sessions for one in house.store.clickstream.usage().values())


def test_a_worker_deletes_what_is_too_old(settings: Settings) -> None:
    """By ES_KEEP_SESSIONS; without it nothing goes."""
    bench = open_bench(settings.replaced(keep_sessions="2d"))
    bench.post_sessions(count=3)
    forever = replace(bench, house=replace(bench.house, settings=settings))
    assert [expire(forever, 999), expire(bench, 1), expire(bench, 3)] == [3, 3, 0]
    bench.house.store.close()
