"""What many owners do at once; kept light, for each of its processes imports it."""

import time
from datetime import UTC, datetime

from embedding_studio.engine.lease import Lease
from embedding_studio.errors import LeaseLost
from embedding_studio.store import open_store
from embedding_studio.tasks import OWNED, TaskEvent, TaskEventKind, TaskStatus

EFFECTS = 3
LEASE_SECONDS = 2.0
DAWDLES_EVERY = 4
POLL_SECONDS = 0.05


def now() -> datetime:
    return datetime.now(UTC)


def work_until_all_is_done(url: str, name: str) -> tuple[int, int]:
    """Claim, beat, record effects and finish, as a worker does, until no task is left.

    An owner goes on from what the task's history holds. Every so often it sleeps past a lease that
    it took short, in the middle of its work. Returns how many it finished and how many it lost.
    """
    store = open_store(url)
    finished = lost = claims = 0
    while True:
        is_dawdling = claims % DAWDLES_EVERY == DAWDLES_EVERY - 1
        seconds = 0.2 if is_dawdling else LEASE_SECONDS
        task = store.tasks.claim(name, now(), seconds, max_expired_leases=1000)
        if task is None:
            if not store.tasks.page(TaskStatus.PENDING) and not any(
                store.tasks.page(status) for status in OWNED
            ):
                store.close()
                return finished, lost
            time.sleep(POLL_SECONDS)  # as a worker does between two looks
            continue
        claims += 1
        lease = Lease(store, task, name, LEASE_SECONDS, now)
        try:
            history = [numbered.event for numbered in store.tasks.events(task.id, limit=10_000)]
            there = [one for one in history if one.kind is TaskEventKind.TRIAL_FINISHED]
            for effect in range(len(there), EFFECTS):
                event = TaskEvent(
                    TaskEventKind.TRIAL_FINISHED, now(), f"by {name}", {"trial": effect}
                )
                store.tasks.record(lease.claim, now(), event=event)
                if is_dawdling and effect == 1:
                    time.sleep(0.5)  # past the lease: this is the fault
            lease.beat()
            lease.check()
            store.tasks.finish(lease.claim, now(), TaskStatus.DONE)
            finished += 1
        except LeaseLost:
            lost += 1
