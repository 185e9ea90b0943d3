"""A worker goes by the database's clock, whatever its machine's says."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from embedding_studio.clock import DatabaseClock, is_held, utc_now
from embedding_studio.engine.worker import Worker
from embedding_studio.tasks import FineTuningTask
from tests.iterations import NOW, Bench

DAY = timedelta(days=1)


def test_the_clock_goes_on_from_what_the_database_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It took its time half way through the call; what passes since then is counted without the
    machine's clock, however that is set; a slow answer changes nothing."""
    passed = [100.0]
    monkeypatch.setattr("embedding_studio.clock._elapsed", lambda: passed[0])
    machine = [NOW + DAY]
    clock = DatabaseClock(lambda: machine[0])
    assert (clock(), clock.is_told) == (NOW + DAY, False)

    def tell(seconds: float) -> datetime:
        passed[0] += seconds
        return NOW

    clock.ask(lambda: tell(0.5))
    assert clock() == NOW + timedelta(seconds=0.25)
    assert clock.ahead_seconds == DAY.total_seconds() - 0.25
    machine[0] -= 9 * DAY
    passed[0] += 10
    assert clock() == NOW + timedelta(seconds=10.25)
    clock.ask(lambda: tell(5.0))
    assert clock() == NOW + timedelta(seconds=15.25)


@pytest.mark.parametrize(
    ("seconds", "holds"), [(None, False), (0, False), (1, True), (3601, True), (3700, False)]
)
def test_a_lease_holds_until_its_end(seconds: float | None, holds: bool) -> None:
    """None at all, one that is over, and one that ends too far in the future hold nothing. The
    longest, of a worker whose clock is a second ahead, does."""
    until = None if seconds is None else NOW + timedelta(seconds=seconds)
    assert is_held(until, NOW) == holds


@pytest.mark.parametrize("off", [DAY, -DAY])
def test_a_worker_whose_clock_is_a_day_off(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, off: timedelta
) -> None:
    """It leaves the task of a live worker alone, takes over that of a dead one, holds it no longer
    than others would, and says how far its clock is off."""
    claimed: list[FineTuningTask] = []
    monkeypatch.setattr(
        "embedding_studio.engine.worker.run_iteration", lambda house, task, *_: claimed.append(task)
    )
    bench.post_sessions()
    bench.post_task()
    store = bench.house.store
    lost = Worker(replace(bench.house, clock=lambda: utc_now() + off), bench.worker._catalog, "off")
    lost.beat()
    assert store.tasks.claim("live", utc_now(), lease_seconds=60)
    assert not lost.work_once()
    later = utc_now() + timedelta(seconds=90)
    assert store.tasks.claim("dead", later, lease_seconds=-180)
    assert lost.work_once()
    (task,) = claimed
    assert task.attempt == 3
    assert is_held(task.lease_expires_at, utc_now())
    lost.beat()
    (record,) = store.workers.seen(utc_now() - timedelta(seconds=30))
    assert record.clock_ahead_seconds == pytest.approx(off.total_seconds(), abs=5)
