"""What is still to be told to webhooks: that a task has ended, that a champion has changed."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from embedding_studio.models import RegisteredModel
from embedding_studio.store.codec import milliseconds, to_json
from embedding_studio.store.documents import Documents, among, up_to
from embedding_studio.store.models import MODELS, Models, model_of
from embedding_studio.store.tasks import TASK, TASKS
from embedding_studio.tasks import TERMINAL, Delivery, FineTuningTask

Told = TypeVar("Told", FineTuningTask, RegisteredModel)


class Deliveries(ABC, Generic[Told]):
    """What of one kind is to be told, of all projects."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def claim(
        self, now: datetime, seconds: float, skip_projects: Collection[str] = ()
    ) -> Told | None:
        """Take what is due to be told to its webhook, for so many seconds.

        What is of `skip_projects` is left alone. Of several claimants one gets it. If it dies over
        it another one tells it: it may be told twice, never not at all."""
        while (told := self._longest_due(now, skip_projects)) is not None:
            delivery = told.delivery or Delivery(f"msg_{secrets.token_hex(12)}")
            # counted before it is made: one that costs the worker its life counts too
            begun = replace(delivery, attempts=delivery.attempts + 1)
            due_at = now + timedelta(seconds=seconds)
            if (claimed := self._change(told, begun, due_at)) is not None:
                return claimed
        return None

    def _longest_due(self, now: datetime, skip_projects: Collection[str]) -> Told | None:
        return next((one for one in self._due(now) if one.project not in skip_projects), None)

    def settle(
        self, claimed: Told, now: datetime, error: str | None, due_at: datetime | None
    ) -> bool:
        """Note how an attempt went and when the next is due, None for never again.

        Where there is something else to tell meanwhile, nothing is changed: False."""
        assert claimed.delivery is not None
        delivered_at = now if error is None else None
        delivery = replace(claimed.delivery, error=error, delivered_at=delivered_at)
        return self._change(claimed, delivery, due_at) is not None

    @abstractmethod
    def _due(self, now: datetime) -> Iterable[Told]:
        """Yield what is due, the longest first."""

    @abstractmethod
    def _change(self, seen: Told, delivery: Delivery, due_at: datetime | None) -> Told | None:
        """Change how far something is told, if that is as it was seen; else return None."""


class EndDeliveries(Deliveries[FineTuningTask]):
    """The ends of tasks."""

    def _due(self, now: datetime) -> Iterable[FineTuningTask]:
        ended = among(sorted(status.value for status in TERMINAL))
        due = {"delivery_due_at": up_to(milliseconds(now)), "status": ended}
        yield from map(
            TASK.decode, self._documents.each(TASKS, due, sort=("delivery_due_at", "id"))
        )

    def _change(
        self, seen: FineTuningTask, delivery: Delivery, due_at: datetime | None
    ) -> FineTuningTask | None:
        as_seen = {
            name: to_json(getattr(seen, name)) for name in ("id", "status", "delivery_due_at")
        }
        changes = to_json({"delivery": delivery, "delivery_due_at": due_at})
        changed = self._documents.change(TASKS, as_seen, set=changes)
        return None if changed is None else TASK.decode(changed.document)


class ChampionDeliveries(Deliveries[RegisteredModel]):
    """The champions that have changed."""

    def _due(self, now: datetime) -> Iterable[RegisteredModel]:
        due = self._documents.find(MODELS, {"delivery_due_at": up_to(milliseconds(now))})
        return map(model_of, sorted(due, key=lambda one: (one["delivery_due_at"], one["id"])))

    def _change(
        self, seen: RegisteredModel, delivery: Delivery, due_at: datetime | None
    ) -> RegisteredModel | None:
        changed = False

        def change(model: RegisteredModel) -> RegisteredModel:
            nonlocal changed
            changed = (model.delivery, model.delivery_due_at) == (
                seen.delivery,
                seen.delivery_due_at,
            )
            return model.told(delivery, due_at) if changed else model

        model = Models(self._documents, seen.project).update(seen.name, change)
        return model if changed else None
