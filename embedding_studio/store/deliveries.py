"""Which ended task is still to be told to its webhook, written once for every database."""

import secrets
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from embedding_studio.store.base import Store
from embedding_studio.store.moves import to_document
from embedding_studio.tasks import Delivery, FineTuningTask


class TaskDeliveries(Store):
    @abstractmethod
    def _oldest_due(self, now: datetime, skip_projects: Collection[str]) -> FineTuningTask | None:
        """Return the ended task, not of those projects, whose delivery has been due longest."""

    @abstractmethod
    def _change_delivery(
        self, seen: FineTuningTask, changes: Mapping[str, Any]
    ) -> FineTuningTask | None:
        """Change a task whose status and delivery_due_at are as seen; else return None."""

    def claim_delivery(
        self, now: datetime, seconds: float, skip_projects: Collection[str] = ()
    ) -> FineTuningTask | None:
        while (task := self._oldest_due(now, skip_projects)) is not None:
            delivery = task.delivery or Delivery(f"msg_{secrets.token_hex(12)}")
            # counted before it is made: one that costs the worker its life counts too
            begun = replace(delivery, attempts=delivery.attempts + 1)
            changes = {
                "delivery": to_document(begun),
                "delivery_due_at": now + timedelta(seconds=seconds),
            }
            if (claimed := self._change_delivery(task, changes)) is not None:
                return claimed
        return None

    def settle_delivery(
        self, task: FineTuningTask, now: datetime, error: str | None, due_at: datetime | None
    ) -> bool:
        assert task.delivery is not None
        delivered_at = now if error is None else None
        delivery = replace(task.delivery, error=error, delivered_at=delivered_at)
        changes = {"delivery": to_document(delivery), "delivery_due_at": due_at}
        return self._change_delivery(task, changes) is not None
