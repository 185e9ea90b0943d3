"""A worker whose machine's clock is wrong goes by the database's."""

import signal
from datetime import timedelta

import pytest

from embedding_studio.clock import utc_now
from embedding_studio.tasks import TaskStatus
from tests.faults.harness import Yard, check_invariants
from tests.faults.points import CLOCK_AHEAD
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.faults]

DAY_SECONDS = 86_400


def test_a_worker_a_day_ahead_takes_no_live_task(shared_yard: Yard) -> None:
    """It looks for tasks while another is at work on one, and leaves it alone; the next is its, for
    no longer than any other's."""
    yard = shared_yard
    store = yard.bench.house.store
    yard.bench.post_sessions()
    task = yard.bench.post_task("Paced", trials=3)
    first = yard.start_worker(lease_seconds=30.0)
    wait_until(lambda: yard.now(task).experiment_id is not None)
    yard.variables = {CLOCK_AHEAD: f"{DAY_SECONDS}"}
    ahead = yard.start_worker(lease_seconds=30.0)
    yard.wait_until_ready(ahead)
    yard.wait_for(task)
    done = yard.now(task)
    assert (done.status, done.attempt, done.expired_leases) == (TaskStatus.DONE, 1, 0), yard.log
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    seen_after = utc_now() - timedelta(seconds=30)
    wait_until(lambda: any(w.clock_ahead_seconds > 1000 for w in store.workers.seen(seen_after)))
    (record,) = store.workers.seen(seen_after)
    assert record.clock_ahead_seconds == pytest.approx(DAY_SECONDS, abs=5)
    yard.bench.post_sessions(start=1000)
    second = yard.bench.post_task("Paced", trials=1)
    wait_until(lambda: yard.now(second).lease_expires_at is not None)
    until = yard.now(second).lease_expires_at
    assert until is not None
    assert until < utc_now() + timedelta(seconds=60)
    yard.wait_for(second)
    assert yard.now(second).status is TaskStatus.DONE
    yard.drain()
    check_invariants(yard)
