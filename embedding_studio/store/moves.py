"""The moves of a task, written once for every database.

A move reads the task, decides, and writes only if nobody moved the task meanwhile; otherwise it
reads again. So a database gives three atomic steps and no transaction.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter

from embedding_studio.clock import is_held
from embedding_studio.errors import Conflict, LeaseLost
from embedding_studio.store.base import Store
from embedding_studio.tasks import (
    OWNED,
    Claim,
    FineTuningTask,
    Promotion,
    StoredModel,
    TaskEvent,
    TaskEventKind,
    TaskProgress,
    TaskRequest,
    TaskStatus,
    sources_of,
)

NO_OWNER: Mapping[str, None] = {"worker_id": None, "lease_expires_at": None}
CLEARED_BY_RESTART = ("error", "progress", "promotion", "best_model", "delivery", *NO_OWNER)


MAX_HISTORY = 10_000
"""A task to which more has happened is not restarted: MongoDB keeps a task in one document."""


class TaskMoves(Store):
    @abstractmethod
    def _oldest_claimable(
        self, now: datetime, skip_methods: frozenset[str]
    ) -> FineTuningTask | None:
        """Return the oldest task, not of those methods, that is pending or whose lease is over."""

    @abstractmethod
    def _change_seen(
        self, seen: FineTuningTask, changes: Mapping[str, Any], *events: TaskEvent
    ) -> FineTuningTask | None:
        """Change a task whose status, attempt and lease are still as seen, and add the events to
        its history, in one atomic step; else return None."""

    @abstractmethod
    def _change_owned(
        self,
        claim: Claim,
        statuses: Collection[TaskStatus],
        changes: Mapping[str, Any],
        *events: TaskEvent,
        once: bool = False,
    ) -> FineTuningTask | None:
        """Change the task of this id and attempt if its status is among these, as above.

        once: leave out events equal to one that is there."""

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
            event = TaskEvent(TaskEventKind.CANCELED, now, f"canceled while {task.status}")
            if (canceled := self._change_seen(task, changes, event)) is not None:
                return canceled

    def stop_task(self, task_id: str, now: datetime) -> FineTuningTask:
        changes = {"status": TaskStatus.STOPPING, "updated_at": now}
        event = TaskEvent(
            TaskEventKind.STOP_REQUESTED, now, "asked to end with the best model so far"
        )
        while True:
            task = self.get_task(task_id)
            if task.status in (TaskStatus.STOPPING, TaskStatus.STOPPED):
                return task
            _ensure_stoppable(task)
            if (stopping := self._change_seen(task, changes, event)) is not None:
                return stopping

    def restart_task(self, task_id: str, now: datetime, fresh: bool = False) -> FineTuningTask:
        while True:
            task = self.get_task(task_id)
            if task.status == TaskStatus.PENDING:
                return task
            _ensure_restartable(task, now)
            if self.list_events(task_id, MAX_HISTORY, limit=1):
                raise Conflict(
                    f"task {task_id} cannot be restarted any more: more than {MAX_HISTORY} things "
                    "have happened to it already; ask for another task"
                )
            changes = {
                "status": TaskStatus.PENDING,
                "updated_at": now,
                "expired_leases": 0,
                "fresh_starts": task.fresh_starts + fresh,
                **dict.fromkeys(CLEARED_BY_RESTART),
                "delivery_due_at": now if task.webhook_url else None,
            }
            how = "from the beginning" if fresh else "going on from its finished trials"
            event = TaskEvent(TaskEventKind.RESTARTED, now, f"restarted, {how}", {"fresh": fresh})
            if (restarted := self._change_seen(task, changes, event)) is not None:
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
            events = []
            deaths = task.expired_leases
            if task.worker_id is not None:
                deaths += 1
                events.append(_lease_expired(task, now))
            changes: dict[str, Any] = {"updated_at": now, "expired_leases": deaths}
            if deaths > max_expired_leases:
                why = f"its worker died {deaths} times"
                changes |= _ended(TaskStatus.ERROR, why)
                events.append(TaskEvent(TaskEventKind.ERROR, now, why))
            else:
                changes |= {
                    "attempt": task.attempt + 1,
                    "worker_id": worker_id,
                    "lease_expires_at": now + timedelta(seconds=lease_seconds),
                }
                if task.status == TaskStatus.PENDING:
                    changes["status"] = TaskStatus.PROCESSING
                events.append(_claimed(task.attempt + 1, worker_id, now))
            # Of several claimants one finds the task as it was seen; the others look again.
            changed = self._change_seen(task, changes, *events)
            if changed is not None and changed.status in OWNED:
                return changed
        return None

    def renew_lease(
        self,
        claim: Claim,
        now: datetime,
        lease_seconds: float,
        progress: TaskProgress | None = None,
    ) -> TaskStatus:
        lease_expires_at = now + timedelta(seconds=lease_seconds)
        changes = {"lease_expires_at": lease_expires_at, **_given(progress=progress)}
        return self._write_owned(claim, now, changes).status

    def record(
        self,
        claim: Claim,
        now: datetime,
        *,
        batch_id: str | None = None,
        experiment_id: str | None = None,
        best_model: StoredModel | None = None,
        promotion: Promotion | None = None,
        event: TaskEvent | None = None,
    ) -> None:
        changes = _given(
            batch_id=batch_id,
            experiment_id=experiment_id,
            best_model=best_model,
            promotion=promotion,
        )
        self._write_owned(claim, now, changes, *([event] if event else []), once=True)

    def finish_task(
        self,
        claim: Claim,
        now: datetime,
        status: TaskStatus,
        error: str | None = None,
        data: Mapping[str, Any] = MappingProxyType({}),
    ) -> TaskStatus:
        if status == TaskStatus.ERROR:
            event = TaskEvent(TaskEventKind.ERROR, now, error or "no reason given", dict(data))
            return self._write_owned(claim, now, _ended(status, error), event).status
        if status not in (TaskStatus.DONE, TaskStatus.STOPPED):
            raise ValueError(f"a task ends as done, stopped or error, not as {status}")
        return self._end_by_status(
            claim,
            now,
            {TaskStatus.PROCESSING: TaskStatus.DONE, TaskStatus.STOPPING: TaskStatus.STOPPED},
            lambda end: (_ended(end, error), TaskEvent(TaskEventKind(end), now, error or end)),
        )

    def release_task(self, claim: Claim, now: datetime) -> None:
        event = TaskEvent(
            TaskEventKind.GIVEN_BACK, now, f"worker {claim.worker_id} was asked to end"
        )
        self._end_by_status(
            claim,
            now,
            {TaskStatus.PROCESSING: TaskStatus.PENDING, TaskStatus.STOPPING: TaskStatus.STOPPING},
            lambda end: ({"status": end, **NO_OWNER}, event),
        )

    def release_canceled(self, claim: Claim) -> None:
        self._change_owned(claim, {TaskStatus.CANCELED}, {**NO_OWNER, "best_model": None})

    def forget_iteration(
        self, task_id: str, experiment_id: str, now: datetime, why: str, is_whole: bool
    ) -> None:
        kind = TaskEventKind.ITERATION_REMOVED if is_whole else TaskEventKind.MODEL_REMOVED
        changes: dict[str, Any] = {"best_model": None, "updated_at": now}
        if is_whole:
            changes["experiment_id"] = None
        while True:
            task = self.get_task(task_id)
            is_gone = task.best_model is None and not is_whole
            if is_gone or task.status in OWNED or task.experiment_id != experiment_id:
                return
            if self._change_seen(task, changes, TaskEvent(kind, now, why)):
                return

    def _end_by_status(
        self,
        claim: Claim,
        now: datetime,
        ends: Mapping[TaskStatus, TaskStatus],
        change_to: Callable[[TaskStatus], tuple[Mapping[str, Any], TaskEvent]],
    ) -> TaskStatus:
        """Give a task up; by its status now, it becomes what `ends` says. From processing it may
        turn to stopping meanwhile, never back: so each is tried once, in that order."""
        for status, end in ends.items():
            changes, event = change_to(end)
            changed = self._change_owned(claim, {status}, {"updated_at": now, **changes}, event)
            if changed is not None:
                return end
        raise _lease_lost(claim)

    def _write_owned(
        self,
        claim: Claim,
        now: datetime,
        changes: Mapping[str, Any],
        *events: TaskEvent,
        once: bool = False,
    ) -> FineTuningTask:
        # Fenced: a stale owner matches nothing.
        changes = {"updated_at": now, **changes}
        changed = self._change_owned(claim, OWNED, changes, *events, once=once)
        if changed is None:
            raise _lease_lost(claim)
        return changed


def to_document(value: Any) -> Any:
    """Return a dataclass as JSON-like data, the form in which the parts of a task are kept."""
    return TypeAdapter(Any).dump_python(value, mode="json")


def new_task(project: str, request: TaskRequest, now: datetime) -> dict[str, Any]:
    """Return a pending task but for its id; its request is kept beside it for later posts."""
    return {
        "project": project,
        **to_document(request),
        "request": to_document(request),
        "status": TaskStatus.PENDING,
        "created_at": now,
        "updated_at": now,
        "attempt": 0,
        "expired_leases": 0,
        "fresh_starts": 0,
        # due from the first: what is to be told is the end, once there is one
        "delivery_due_at": now if request.webhook_url else None,
        **NO_OWNER,
    }


def created(now: datetime) -> TaskEvent:
    """Return the first event of every task."""
    return TaskEvent(TaskEventKind.CREATED, now, "added, waits for a worker")


def ensure_same_request(task_id: str, stored: Mapping[str, Any], request: TaskRequest) -> None:
    """Raise Conflict if the request that made the task is not `request`; stored: its document.

    The request is compared, not the task: a worker fills in the task's batch_id later.
    """
    first = TypeAdapter(TaskRequest).validate_python(stored)  # fields newer than it are filled in
    posted, made = to_document(request), to_document(first)
    different = sorted(name for name in posted if posted[name] != made[name])
    if different:
        raise Conflict(
            f"the idempotency key {request.idempotency_key!r} belongs to task {task_id}, whose "
            f"request differs in {', '.join(different)}: use another key for another request"
        )


def _given(**values: Any) -> dict[str, Any]:
    return {name: to_document(value) for name, value in values.items() if value is not None}


def _ended(status: TaskStatus, error: str | None) -> dict[str, Any]:
    return {"status": status, "error": error, **NO_OWNER}


def _lease_lost(claim: Claim) -> LeaseLost:
    return LeaseLost(
        f"task {claim.task_id} is no longer owned by attempt {claim.attempt} of worker "
        f"{claim.worker_id}: it was canceled, ended or claimed again"
    )


def _claimed(attempt: int, worker_id: str, now: datetime) -> TaskEvent:
    return TaskEvent(
        TaskEventKind.CLAIMED,
        now,
        f"attempt {attempt}, by worker {worker_id}",
        {"attempt": attempt, "worker_id": worker_id},
    )


def _lease_expired(task: FineTuningTask, now: datetime) -> TaskEvent:
    return TaskEvent(
        TaskEventKind.LEASE_EXPIRED,
        now,
        f"worker {task.worker_id} fell silent in attempt {task.attempt}",
        {"attempt": task.attempt, "worker_id": task.worker_id},
    )


def _ensure_stoppable(task: FineTuningTask) -> None:
    if task.status == TaskStatus.PENDING and task.attempt == 0:
        raise Conflict(
            f"task {task.id} cannot be stopped: it has not begun, so there is nothing to keep; "
            "cancel it"
        )
    if task.status not in sources_of(TaskStatus.STOPPING):
        raise Conflict(f"task {task.id} cannot be stopped: its status is already {task.status}")
    if task.promotion is not None:
        raise Conflict(
            f"task {task.id} cannot be stopped any more: its verdict is in and is being carried "
            "out; it is done in a moment"
        )


def _ensure_restartable(task: FineTuningTask, now: datetime) -> None:
    if task.status not in sources_of(TaskStatus.PENDING) - OWNED:
        raise Conflict(
            f"task {task.id} cannot be restarted while its status is {task.status}: only stopped, "
            "canceled and failed tasks can"
        )
    if task.lease_expires_at is not None and is_held(task.lease_expires_at, now):
        raise Conflict(
            f"task {task.id} cannot be restarted yet: worker {task.worker_id} is still removing "
            f"what it wrote; try again after {task.lease_expires_at.isoformat()} at the latest"
        )
