"""Which ended task is still to be told to its webhook."""

import secrets
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta

from embedding_studio.store.codec import milliseconds, to_json
from embedding_studio.store.documents import Documents, among, up_to
from embedding_studio.store.tasks import TASK, TASKS
from embedding_studio.tasks import TERMINAL, Delivery, FineTuningTask


class Deliveries:
    """The ends of the tasks of all projects that are to be told."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def claim(
        self, now: datetime, seconds: float, skip_projects: Collection[str] = ()
    ) -> FineTuningTask | None:
        """Take a task whose end is due to be told to its webhook, for so many seconds.

        Tasks of `skip_projects` are left alone. Of several claimants one gets it. If it dies over
        it another one tells the end: it may be told twice, never not at all."""
        while (task := self._longest_due(now, skip_projects)) is not None:
            delivery = task.delivery or Delivery(f"msg_{secrets.token_hex(12)}")
            # counted before it is made: one that costs the worker its life counts too
            begun = replace(delivery, attempts=delivery.attempts + 1)
            due_at = now + timedelta(seconds=seconds)
            if (claimed := self._change(task, begun, due_at)) is not None:
                return claimed
        return None

    def _longest_due(self, now: datetime, skip_projects: Collection[str]) -> FineTuningTask | None:
        ended = among(sorted(status.value for status in TERMINAL))
        due = self._documents.each(
            TASKS,
            {"delivery_due_at": up_to(milliseconds(now)), "status": ended},
            sort=("delivery_due_at", "id"),
        )
        first = next((one for one in due if one["project"] not in skip_projects), None)
        return TASK.decode(first) if first else None

    def settle(
        self, task: FineTuningTask, now: datetime, error: str | None, due_at: datetime | None
    ) -> bool:
        """Note how an attempt went and when the next is due, None for never again.

        task: as claimed; when it has ended anew meanwhile, nothing is changed: False."""
        assert task.delivery is not None
        delivered_at = now if error is None else None
        delivery = replace(task.delivery, error=error, delivered_at=delivered_at)
        return self._change(task, delivery, due_at) is not None

    def _change(
        self, seen: FineTuningTask, delivery: Delivery, due_at: datetime | None
    ) -> FineTuningTask | None:
        """Change a task whose status and delivery_due_at are as seen; else return None."""
        as_seen = {
            name: to_json(getattr(seen, name)) for name in ("id", "status", "delivery_due_at")
        }
        changes = to_json({"delivery": delivery, "delivery_due_at": due_at})
        changed = self._documents.change(TASKS, as_seen, set=changes)
        return None if changed is None else TASK.decode(changed.document)
