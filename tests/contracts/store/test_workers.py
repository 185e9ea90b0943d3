"""The contract of every store: workers, and the database's clock."""

from datetime import UTC, datetime, timedelta

from embedding_studio.store import Store
from embedding_studio.workers import WorkerRecord
from tests.contracts.store_processes import NOW


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def test_workers_are_listed_while_they_are_seen(store: Store) -> None:
    """A record is inserted or replaced, and listed if it was seen after the time asked for."""
    store.workers.record(WorkerRecord("w-2", ("a",), later(0)))
    store.workers.record(WorkerRecord("w-1", (), later(5)))
    again = WorkerRecord("w-2", ("a", "b"), later(9), {"c.py": "why"}, {"a": "no model"}, -7.5)
    store.workers.record(again)
    assert store.workers.seen(later(0)) == [WorkerRecord("w-1", (), later(5)), again]
    assert store.workers.seen(later(5)) == [again]
    assert store.workers.seen(later(9)) == []


def test_a_worker_is_told_the_time_by_the_databases_clock(store: Store) -> None:
    """Whatever its own clock says."""
    for hours in (0, 1):
        told = store.workers.record(WorkerRecord("w", (), later(hours * 3600)))
        assert abs(datetime.now(UTC) - told) < timedelta(seconds=30)


def test_a_worker_that_ends_is_forgotten(store: Store) -> None:
    """Removing a worker leaves the others; an unknown id is fine."""
    workers = [WorkerRecord(f"w-{number}", ("a",), NOW) for number in (1, 2)]
    for worker in workers:
        store.workers.record(worker)
    store.workers.remove("w-1")
    store.workers.remove("w-1")
    assert store.workers.seen(later(-1)) == workers[1:]
