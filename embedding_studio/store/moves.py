"""The moves of a task, written once for every database.

A move reads the task, decides, and writes only if nobody moved the task meanwhile; otherwise it
reads again. So a database gives three atomic steps and no transaction.
"""

from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter

from embedding_studio.errors import Conflict, LeaseLost
from embedding_studio.store.base import Store
from embedding_studio.tasks import (
    Claim,
    FineTuningTask,
    Promotion,
    StoredModel,
    TaskProgress,
    TaskRequest,
    TaskStatus,
    sources_of,
)

NO_OWNER: Mapping[str, None] = {"worker_id": None, "lease_expires_at": None}
CLEARED_BY_RESTART = ("error", "progress", "promotion", "best_model", *NO_OWNER)


class TaskMoves(Store):
    @abstractmethod
    def _oldest_claimable(
        self, now: datetime, skip_methods: frozenset[str]
    ) -> FineTuningTask | None:
        """Return the oldest task, not of those methods, that is pending or whose lease is over."""

    @abstractmethod
    def _change_seen(
        self, seen: FineTuningTask, changes: Mapping[str, Any]
    ) -> FineTuningTask | None:
        """Change a task whose status, attempt and lease are still as seen; else return None."""

    @abstractmethod
    def _change_owned(self, claim: Claim, status: TaskStatus, changes: Mapping[str, Any]) -> bool:
        """Change the task of this id, attempt and status; return False if there is none."""

    # -- as clients see them -----------------------------------------------------------------------

    def cancel_task(self, task_id: str, now: datetime) -> FineTuningTask:
        while True:
            task = self.get_task(task_id)
            if task.status == TaskStatus.CANCELED:
                return task
            if task.status not in sources_of(TaskStatus.CANCELED):
                raise Conflict(
                    f"task {task.id} cannot be canceled: its status is already {task.status}"
                )
            if task.promotion is not None:
                raise Conflict(
                    f"task {task.id} cannot be canceled any more: its verdict is in and is being "
                    "carried out; it is done in a moment"
                )
            changes = {"status": TaskStatus.CANCELED, "updated_at": now}
            if (canceled := self._change_seen(task, changes)) is not None:
                return canceled

    def restart_task(self, task_id: str, now: datetime) -> FineTuningTask:
        changes = {
            "status": TaskStatus.PENDING,
            "updated_at": now,
            "expired_leases": 0,
            **dict.fromkeys(CLEARED_BY_RESTART),
        }
        while True:
            task = self.get_task(task_id)
            if task.status == TaskStatus.PENDING:
                return task
            _ensure_restartable(task, now)
            if (restarted := self._change_seen(task, changes)) is not None:
                return restarted

    # -- as their owner sees them ------------------------------------------------------------------

    def claim_task(
        self,
        worker_id: str,
        now: datetime,
        lease_seconds: float,
        skip_methods: frozenset[str] = frozenset(),
        max_expired_leases: int = 3,
    ) -> FineTuningTask | None:
        while (task := self._oldest_claimable(now, skip_methods)) is not None:
            deaths = task.expired_leases + (task.status == TaskStatus.PROCESSING)
            changes: dict[str, Any] = {"updated_at": now, "expired_leases": deaths}
            if deaths > max_expired_leases:
                changes |= _ended(TaskStatus.ERROR, f"its worker died {deaths} times")
            else:
                changes |= {
                    "status": TaskStatus.PROCESSING,
                    "attempt": task.attempt + 1,
                    "worker_id": worker_id,
                    "lease_expires_at": now + timedelta(seconds=lease_seconds),
                }
            # Of several claimants one finds the task as it was seen; the others look again.
            changed = self._change_seen(task, changes)
            if changed is not None and changed.status == TaskStatus.PROCESSING:
                return changed
        return None

    def renew_lease(
        self,
        claim: Claim,
        now: datetime,
        lease_seconds: float,
        progress: TaskProgress | None = None,
    ) -> None:
        lease_expires_at = now + timedelta(seconds=lease_seconds)
        self._write_owned(
            claim, now, lease_expires_at=lease_expires_at, **_given(progress=progress)
        )

    def record(
        self,
        claim: Claim,
        now: datetime,
        *,
        batch_id: str | None = None,
        experiment_id: str | None = None,
        best_model: StoredModel | None = None,
        promotion: Promotion | None = None,
    ) -> None:
        changes = _given(
            batch_id=batch_id,
            experiment_id=experiment_id,
            best_model=best_model,
            promotion=promotion,
        )
        self._write_owned(claim, now, **changes)

    def finish_task(
        self, claim: Claim, now: datetime, status: TaskStatus, error: str | None = None
    ) -> None:
        if status not in (TaskStatus.DONE, TaskStatus.ERROR):
            raise ValueError(f"a task ends as done or error, not as {status}")
        self._write_owned(claim, now, **_ended(status, error))

    def release_task(self, claim: Claim, now: datetime) -> None:
        self._write_owned(claim, now, status=TaskStatus.PENDING, **NO_OWNER)

    def release_canceled(self, claim: Claim) -> None:
        self._change_owned(claim, TaskStatus.CANCELED, NO_OWNER)

    def _write_owned(self, claim: Claim, now: datetime, **changes: Any) -> None:
        # Fenced: a stale owner matches nothing.
        if not self._change_owned(claim, TaskStatus.PROCESSING, {"updated_at": now, **changes}):
            raise LeaseLost(
                f"task {claim.task_id} is no longer owned by attempt {claim.attempt} of worker "
                f"{claim.worker_id}: it was canceled, ended or claimed again"
            )


def to_document(value: Any) -> Any:
    """Return a dataclass as JSON-like data, the form in which the parts of a task are kept."""
    return TypeAdapter(Any).dump_python(value, mode="json")


def new_task(request: TaskRequest, now: datetime) -> dict[str, Any]:
    """Return a pending task but for its id; its request is kept beside it for later posts."""
    return {
        **to_document(request),
        "request": to_document(request),
        "status": TaskStatus.PENDING,
        "created_at": now,
        "updated_at": now,
        "attempt": 0,
        "expired_leases": 0,
        **NO_OWNER,
    }


def ensure_same_request(task_id: str, stored: Mapping[str, Any], request: TaskRequest) -> None:
    """Raise Conflict if the request that made the task is not `request`; stored: its document.

    The request is compared, not the task: a worker fills in the task's batch_id later.
    """
    posted = to_document(request)
    different = sorted(name for name in posted if posted[name] != stored.get(name))
    if different:
        raise Conflict(
            f"the idempotency key {request.idempotency_key!r} belongs to task {task_id}, whose "
            f"request differs in {', '.join(different)}: use another key for another request"
        )


def _given(**values: Any) -> dict[str, Any]:
    return {name: to_document(value) for name, value in values.items() if value is not None}


def _ended(status: TaskStatus, error: str | None) -> dict[str, Any]:
    return {"status": status, "error": error, **NO_OWNER}


def _ensure_restartable(task: FineTuningTask, now: datetime) -> None:
    if task.status not in (TaskStatus.CANCELED, TaskStatus.ERROR):
        raise Conflict(
            f"task {task.id} cannot be restarted while its status is {task.status}: only canceled "
            "and failed tasks can"
        )
    if task.lease_expires_at is not None and task.lease_expires_at > now:
        raise Conflict(
            f"task {task.id} cannot be restarted yet: worker {task.worker_id} is still removing "
            f"what it wrote; try again after {task.lease_expires_at.isoformat()} at the latest"
        )
