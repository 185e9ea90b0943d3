"""The lease: renewed, lost, and how long a silent database is put up with."""

from datetime import datetime, timedelta

import pytest

from embedding_studio.clock import utc_now
from embedding_studio.engine.lease import Lease
from embedding_studio.errors import Draining, LeaseLost, StoreUnavailable
from embedding_studio.tasks import FineTuningTask
from tests.iterations import NOW, Bench


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def claim(bench: Bench, clock: Clock) -> tuple[FineTuningTask, Lease]:
    bench.post_sessions()
    bench.post_task()
    store = bench.house.store
    task = store.tasks.claim("w", clock(), lease_seconds=10)
    assert task is not None
    return task, Lease(store, task, "w", seconds=10, clock=clock)


def test_a_beat_renews_the_lease_and_writes_the_progress(bench: Bench) -> None:
    """Each beat moves the lease's end and replaces the progress."""
    clock = Clock()
    task, lease = claim(bench, clock)
    clock.now += timedelta(seconds=8)
    lease.show(phase="search", trial=2)
    lease.beat()
    lease.check()
    now = bench.house.store.tasks.get(task.id)
    assert now.lease_expires_at == clock.now + timedelta(seconds=10)
    assert now.progress is not None
    assert (now.progress.phase, now.progress.trial) == ("search", 2)


def test_a_canceled_task_is_noticed_by_the_next_beat(bench: Bench) -> None:
    """After a cancel the owner's next check raises LeaseLost."""
    task, lease = claim(bench, Clock())
    bench.house.store.tasks.cancel(task.id, utc_now())
    lease.check()
    lease.beat()
    with pytest.raises(LeaseLost, match=task.id):
        lease.check()


def test_a_silent_database_costs_nothing_until_the_lease_is_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a database the worker works on for its lease's length, and no longer."""
    clock = Clock()
    _, lease = claim(bench, clock)

    def silent(*_: object) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(bench.house.store.tasks, "renew", silent)
    clock.now += timedelta(seconds=9)
    lease.beat()
    lease.check()
    clock.now += timedelta(seconds=2)
    lease.beat()
    with pytest.raises(LeaseLost):
        lease.check()


def test_draining_ends_the_iteration_but_not_the_lease(bench: Bench) -> None:
    """A worker asked to end gives its task back: that is no lost lease."""
    _, lease = claim(bench, Clock())
    lease.drain()
    with pytest.raises(Draining):
        lease.check()
