"""Tasks as they are kept: how they are added, found, and moved from status to status.

A move reads the task, decides, and writes only if nobody moved the task meanwhile; otherwise it
reads again. Each move leaves its event in the task's log in the same atomic step."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, TypeAlias

from embedding_studio.clickstream import TimeRange, Usage
from embedding_studio.clock import is_held
from embedding_studio.errors import Conflict, InvalidInput, LeaseLost, unknown
from embedding_studio.store.codec import Codec, to_json
from embedding_studio.store.documents import Document, Documents, Entry, Filter, Kind, among, new_id
from embedding_studio.store.projects import Projects
from embedding_studio.store.usage import PAGE_BYTES, size_of_request
from embedding_studio.tasks import (
    OWNED,
    TERMINAL,
    Budget,
    Claim,
    FineTuningTask,
    NumberedTaskEvent,
    Promotion,
    StoredModel,
    TaskEvent,
    TaskEventKind,
    TaskProgress,
    TaskRequest,
    TaskStatus,
    sources_of,
)

TASKS = Kind(
    "tasks",
    unique=(("project", "idempotency_key"), ("project", "turn")),
    indexes=(
        ("status", "created_at", "id"),
        ("project", "created_at", "id"),
        ("project", "status", "created_at", "id"),
        ("delivery_due_at", "id"),
        ("project", "turn"),  # MongoDB sorts by a unique group only where it knows it to be whole
    ),
)
TASK = Codec(FineTuningTask)
REQUEST = Codec(TaskRequest)
EVENT = Codec(TaskEvent)

OLDEST_FIRST = ("created_at", "id")
NO_OWNER: Mapping[str, None] = {"worker_id": None, "lease_expires_at": None}
CLEARED_BY_RESTART = ("error", "progress", "promotion", "best_model", "delivery", *NO_OWNER)
_DONE = (TaskStatus.DONE, TaskStatus.STOPPED)
ENDS = {
    TaskStatus.DONE: _DONE,
    TaskStatus.STOPPED: _DONE,
    TaskStatus.ERROR: (TaskStatus.ERROR, TaskStatus.ERROR),
}
"""What a task ends as that was processing, or stopping, by what its owner calls it."""
GIVEN_BACK = (TaskStatus.PENDING, TaskStatus.STOPPING)
Move: TypeAlias = tuple[Mapping[str, Any], TaskEvent]
"""What of a task changes, and the event that tells of it."""
NO_BUDGET = Budget()
MAX_HISTORY = 10_000
"""A task to which more has happened is not restarted: MongoDB keeps a task in one document."""


class Tasks:
    """The tasks of a project for its clients, and those of all projects for workers."""

    def __init__(self, documents: Documents, project: str) -> None:
        self._documents = documents
        self._projects = Projects(documents)
        self._project = project

    # -- as clients see them -----------------------------------------------------------------------

    def add(
        self,
        request: TaskRequest,
        now: datetime,
        most_pending: int | None = None,
        most: Usage | None = None,
    ) -> tuple[FineTuningTask, bool]:
        """Add a pending task; True if it is new.

        The same idempotency_key with the same request gives the task that exists already, also
        under concurrent posts; with another request it raises Conflict. So it does where
        `most_pending` of the project are pending already. most: what the project may hold; raises
        TooManyRequests, and adds nothing, where it would hold more. Tasks are never deleted."""
        while True:
            if (made := self._made(request)) is not None:
                return made, False
            document = self._new(request, now)
            if most_pending is not None:
                # Of those that are added at once one gets the turn; the others count anew.
                document["turn"] = self._next_turn()
                ensure_room(self.count(TaskStatus.PENDING), most_pending)
            if self._insert(document, size_of_request(request), most):
                return TASK.decode(document), True

    def judge(
        self, request: TaskRequest, most_pending: int | None = None, most: Usage | None = None
    ) -> FineTuningTask | None:
        """Return the task that `add` would find, None where it would add one; raise what it would.
        Nothing is added."""
        if (made := self._made(request)) is not None:
            return made
        ensure_room(self.count(TaskStatus.PENDING), most_pending)
        self._projects.check(self._project, Usage(0, size_of_request(request)), most)
        return None

    def _made(self, request: TaskRequest) -> FineTuningTask | None:
        """Return the task that this request has made. Raises Conflict where another has its key."""
        key = request.idempotency_key
        made = None if key is None else self._with_key(key)
        if made is None:
            return None
        _ensure_same_request(made, request)
        return TASK.decode(made)

    def _new(self, request: TaskRequest, now: datetime) -> Document:
        """Return a pending task; its request is kept beside it for later posts."""
        asked = {field.name: getattr(request, field.name) for field in fields(request)}
        made = TimeRange.of(request.last, request.since, request.until, now)
        asked["since"] = made and made.since
        if request.batch_ids:
            asked["batch_id"] = request.batch_ids[-1]
        task = FineTuningTask(
            id=new_id(),
            status=TaskStatus.PENDING,
            created_at=now,
            updated_at=now,
            project=self._project,
            # due from the first: what is to be told is the end, once there is one
            delivery_due_at=now if request.webhook_url else None,
            **asked,
        )
        created = TaskEvent(TaskEventKind.CREATED, now, "added, waits for a worker")
        return {**TASK.encode(task), "request": REQUEST.encode(request), "log": [_entry(created)]}

    def _next_turn(self) -> int:
        last = self._documents.find(
            TASKS,
            {"project": self._project},
            sort=("project", "turn"),
            descending=True,
            limit=1,
            fields=("turn",),
        )
        return (last[0].get("turn", 0) if last else 0) + 1

    def _insert(self, document: Document, size: int, most: Usage | None) -> bool:
        added = Usage(0, size)
        self._projects.reserve(self._project, added, most, other_bytes=size)
        [answer] = self._documents.insert(TASKS, [document])
        if answer is not True:
            self._projects.give_back_bytes(self._project, size)
        if isinstance(answer, InvalidInput):
            raise answer
        return answer

    def get(self, task_id: str) -> FineTuningTask:
        """Return one task. Raises NotFound, also for an id that is no id."""
        document = self._documents.find_one(TASKS, {"id": task_id, "project": self._project})
        if document is None:
            raise unknown("fine-tuning task", task_id)
        return TASK.decode(document)

    def find(self, idempotency_key: str) -> FineTuningTask | None:
        """Return the task that was added with this key, None if there is none."""
        document = self._with_key(idempotency_key)
        return None if document is None else TASK.decode(document)

    def _with_key(self, idempotency_key: str) -> Document | None:
        which = {"project": self._project, "idempotency_key": idempotency_key}
        return self._documents.find_one(TASKS, which)

    def last_done(self, fine_tuning_method: str) -> FineTuningTask | None:
        """Return the newest task of a method that is done, None if there is none."""
        where = {
            "project": self._project,
            "status": TaskStatus.DONE.value,
            "fine_tuning_method": fine_tuning_method,
        }
        newest = self._documents.find(TASKS, where, sort=OLDEST_FIRST, descending=True, limit=1)
        return TASK.decode(newest[0]) if newest else None

    def page(
        self, status: TaskStatus | None = None, skip: int = 0, limit: int = 100
    ) -> list[FineTuningTask]:
        """Return tasks newest first. Raises InvalidInput where their metadata are too large for a
        page (PAGE_BYTES)."""
        if limit < 1:
            return []
        where: dict[str, Any] = {"project": self._project}
        if status is not None:
            where["status"] = status.value
        newest = self._documents.find(
            TASKS, where, sort=OLDEST_FIRST, descending=True, skip=skip, limit=limit
        )
        _ensure_page(newest)
        return [*map(TASK.decode, newest)]

    def count(self, status: TaskStatus) -> int:
        """Return how many tasks have the status."""
        return self._documents.count(TASKS, {"project": self._project, "status": status.value})

    def waiting_for_batch(self, model_name: str | None = None) -> FineTuningTask | None:
        """Return the oldest task, of a registered model if one is named, that has not ended and is
        still to take its batch, None if there is none."""
        where = {
            "project": self._project,
            "status": _among(set(TaskStatus) - TERMINAL),
            "batch_id": None,
        }
        waiting = map(TASK.decode, self._documents.each(TASKS, where, sort=OLDEST_FIRST))
        return next(
            (
                task
                for task in waiting
                if not task.is_without_sessions and model_name in (None, task.registered_as)
            ),
            None,
        )

    def events(
        self, task_id: str, after_number: int = 0, limit: int = 100
    ) -> list[NumberedTaskEvent]:
        """Return up to `limit` of a task's events numbered above `after_number`, oldest first.

        Each move of a task leaves its event in the same atomic step. Raises NotFound."""
        if not self._documents.count(TASKS, {"id": task_id, "project": self._project}):
            raise unknown("fine-tuning task", task_id)
        if limit < 1:
            return []
        logs = self._documents.logs(TASKS, [task_id], after=after_number, limit=limit)
        return [
            NumberedTaskEvent(number, EVENT.decode(event))
            for number, event in enumerate(logs.get(task_id, []), start=after_number + 1)
        ]

    def cancel(self, task_id: str, now: datetime) -> FineTuningTask:
        """Set a pending or processing task to canceled at once; its owner's next write fails.

        Canceling a canceled task changes nothing. Raises NotFound; Conflict for done and error,
        and for a task whose promotion is recorded, which is all but done.
        worker_id and lease stay until the owner lets go (release_canceled) or the lease expires."""

        def rule(task: FineTuningTask) -> Move | None:
            if task.status == TaskStatus.CANCELED:
                return None
            _ensure_undecided(task, TaskStatus.CANCELED, "canceled")
            event = TaskEvent(TaskEventKind.CANCELED, now, f"canceled while {task.status}")
            return {"status": TaskStatus.CANCELED}, event

        return self._move(task_id, now, rule)

    def stop(self, task_id: str, now: datetime) -> FineTuningTask:
        """Ask for a task to end with what it has: stopping at once, stopped once its owner is done.

        A task that was begun and given back becomes stopping too, and is claimed to be ended.
        Stopping a task that is stopping or stopped changes nothing. Raises NotFound; Conflict for
        a task that never began, one that has ended, and one whose promotion is recorded."""

        def rule(task: FineTuningTask) -> Move | None:
            if task.status in (TaskStatus.STOPPING, TaskStatus.STOPPED):
                return None
            if task.status == TaskStatus.PENDING and task.attempt == 0:
                raise Conflict(
                    f"task {task.id} cannot be stopped: it has not begun, so there is nothing to "
                    "keep; cancel it"
                )
            _ensure_undecided(task, TaskStatus.STOPPING, "stopped")
            asked = "asked to end with the best model so far"
            return {"status": TaskStatus.STOPPING}, TaskEvent(
                TaskEventKind.STOP_REQUESTED, now, asked
            )

        return self._move(task_id, now, rule)

    def restart(
        self, task_id: str, now: datetime, fresh: bool = False, more: Budget = NO_BUDGET
    ) -> FineTuningTask:
        """Set a stopped, canceled or failed task to pending, error, progress, promotion, best model
        and expired_leases cleared, the batch kept. A pending task stays as it is. One with a very
        long history is not restarted (Conflict).

        fresh: count one more fresh start, by which the next attempt forgets earlier trials.
        more: what limits the search from now on, in place of what the task had. With more trials a
        done task goes on too, whose model was not promoted and whose trials are still there.
        Raises Conflict for a task at work, for a done one else, and while a canceled task's owner
        still holds an unexpired lease (it is still removing what it wrote); NotFound."""
        how = "from the beginning" if fresh else "going on from its finished trials"
        how += "" if more == NO_BUDGET else f", with {more.say()}"
        event = TaskEvent(TaskEventKind.RESTARTED, now, f"restarted, {how}", {"fresh": fresh})

        def rule(task: FineTuningTask) -> Move | None:
            if task.status == TaskStatus.PENDING:
                return None
            _ensure_restartable(task, now)
            if task.status is TaskStatus.DONE:
                _ensure_goes_on(task, more)
            if self.events(task_id, MAX_HISTORY, limit=1):
                raise Conflict(
                    f"task {task_id} cannot be restarted any more: more than {MAX_HISTORY} things "
                    "have happened to it already; ask for another task"
                )
            return {
                "status": TaskStatus.PENDING,
                "expired_leases": 0,
                "fresh_starts": task.fresh_starts + fresh,
                "budget": more.or_else(task.budget),
                **dict.fromkeys(CLEARED_BY_RESTART),
                "delivery_due_at": now if task.webhook_url else None,
            }, event

        return self._move(task_id, now, rule)

    # -- as their owner sees them ------------------------------------------------------------------

    def claim(
        self,
        worker_id: str,
        now: datetime,
        lease_seconds: float,
        skip_methods: frozenset[str] = frozenset(),
        max_expired_leases: int = 3,
    ) -> FineTuningTask | None:
        """Take the oldest task that is pending, or processing or stopping without a valid lease.

        Atomic: of several claimants one gets it. attempt goes up by one with every claim, and
        expired_leases with every claim of an expired lease. A task that is stopping stays so. One
        whose lease would have expired more than max_expired_leases times becomes an error instead
        ("its worker died N times") and the next one is looked at. Tasks of `skip_methods` are left
        alone."""
        while (task := self._oldest_claimable(now, skip_methods)) is not None:
            events = []
            deaths = task.expired_leases
            if task.worker_id is not None:
                deaths += 1
                silent = f"worker {task.worker_id} fell silent in attempt {task.attempt}"
                whose = {"attempt": task.attempt, "worker_id": task.worker_id}
                events.append(TaskEvent(TaskEventKind.LEASE_EXPIRED, now, silent, whose))
            changes: dict[str, Any] = {"updated_at": now, "expired_leases": deaths}
            if deaths > max_expired_leases:
                why = f"its worker died {deaths} times"
                changes |= _ended(TaskStatus.ERROR, why)
                events.append(TaskEvent(TaskEventKind.ERROR, now, why))
            else:
                owner = {"attempt": task.attempt + 1, "worker_id": worker_id}
                changes |= {**owner, "lease_expires_at": now + timedelta(seconds=lease_seconds)}
                if task.status == TaskStatus.PENDING:
                    changes["status"] = TaskStatus.PROCESSING
                claimed = f"attempt {task.attempt + 1}, by worker {worker_id}"
                events.append(TaskEvent(TaskEventKind.CLAIMED, now, claimed, owner))
            # Of several claimants one finds the task as it was seen; the others look again.
            changed = self._change_seen(task, changes, *events)
            if changed is not None and changed.status in OWNED:
                return changed
        return None

    def _oldest_claimable(
        self, now: datetime, skip_methods: frozenset[str]
    ) -> FineTuningTask | None:
        """Return the oldest task, not of those methods, that is pending or whose lease is over."""
        pending = self._documents.each(
            TASKS, {"status": TaskStatus.PENDING.value}, sort=OLDEST_FIRST
        )
        waiting = (one for one in pending if one["fine_tuning_method"] not in skip_methods)
        first = next(waiting, None)
        candidates = [TASK.decode(first)] if first else []
        candidates += [
            task
            for task in self.at_work()
            if task.fine_tuning_method not in skip_methods
            and not is_held(task.lease_expires_at, now)
        ]
        return min(candidates, key=lambda task: (task.created_at, task.id), default=None)

    def renew(
        self,
        claim: Claim,
        now: datetime,
        lease_seconds: float,
        progress: TaskProgress | None = None,
    ) -> TaskStatus:
        """Extend the lease, and replace the progress if one is given. Raises LeaseLost.

        Returns processing, or stopping when the owner is to come to an end.
        Here and in every method that takes a Claim: the write matches only a task at work with
        this id and this attempt; anything else (canceled, claimed by another) raises LeaseLost
        and changes nothing."""
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
        """Set the given fields of the task and add the event; None leaves a field alone.

        An event that is equal to one that was recorded, to its time, is not added again: the call
        may be repeated when its answer was lost. Raises LeaseLost."""
        changes = _given(
            batch_id=batch_id,
            experiment_id=experiment_id,
            best_model=best_model,
            promotion=promotion,
        )
        self._write_owned(claim, now, changes, *([_once(event)] if event else []))

    def finish(
        self,
        claim: Claim,
        now: datetime,
        status: TaskStatus,
        error: str | None = None,
        data: Mapping[str, Any] = MappingProxyType({}),
    ) -> TaskStatus:
        """End a task as done, stopped or error, the lease given up. Raises LeaseLost.

        data: of the event that tells of an error.

        What was asked to stop, be it a moment ago, ends as stopped where it would be done, and
        nothing else does. Returns what it ended as."""
        if status not in ENDS:
            raise ValueError(f"a task ends as done, stopped or error, not as {status}")
        told = error or ("no reason given" if status == TaskStatus.ERROR else None)
        return self._let_go(
            claim,
            now,
            ENDS[status],
            error,
            lambda end: TaskEvent(TaskEventKind(end), now, told or end, dict(data)),
        )

    def give_back(self, claim: Claim, now: datetime) -> None:
        """Give a task back without counting an expired lease: pending, or stopping without an
        owner. Raises LeaseLost."""
        why = f"worker {claim.worker_id} was asked to end"
        event = TaskEvent(TaskEventKind.GIVEN_BACK, now, why)
        self._let_go(claim, now, GIVEN_BACK, None, lambda _: event)

    def release_canceled(self, claim: Claim) -> None:
        """Let go of a canceled task, once what this attempt wrote is removed.

        Clears worker, lease and best model if the task is canceled and this claim was its last
        owner; else does nothing."""
        changes = {**NO_OWNER, "best_model": None}
        self._change(_owned(claim, {TaskStatus.CANCELED}), changes)

    def _let_go(
        self,
        claim: Claim,
        now: datetime,
        ends: tuple[TaskStatus, TaskStatus],
        error: str | None,
        event_of: Callable[[TaskStatus], TaskEvent],
    ) -> TaskStatus:
        """Give a task up that is processing or stopping; it becomes the first or second of `ends`.
        From processing it may turn to stopping meanwhile, never back: each is tried once."""
        for status, end in zip((TaskStatus.PROCESSING, TaskStatus.STOPPING), ends, strict=True):
            changes = {"updated_at": now, **_ended(end, error)}
            if self._change(_owned(claim, {status}), changes, _entry(event_of(end))) is not None:
                return end
        raise _lease_lost(claim)

    def _write_owned(
        self, claim: Claim, now: datetime, changes: Mapping[str, Any], *entries: Entry
    ) -> FineTuningTask:
        # Fenced: a stale owner matches nothing.
        changed = self._change(_owned(claim, OWNED), {"updated_at": now, **changes}, *entries)
        if changed is None:
            raise _lease_lost(claim)
        return changed

    # -- as those see them who tidy up -------------------------------------------------------------

    def forget_iteration(
        self, task_id: str, experiment_id: str, now: datetime, why: str, is_whole: bool
    ) -> None:
        """Note that a task's model is no longer kept, and why; is_whole: nor is its experiment.

        Nothing of a task that is at work, or whose experiment is another one. Raises NotFound."""
        kind = TaskEventKind.ITERATION_REMOVED if is_whole else TaskEventKind.MODEL_REMOVED

        def rule(task: FineTuningTask) -> Move | None:
            is_gone = task.best_model is None and not is_whole
            if is_gone or task.status in OWNED or task.experiment_id != experiment_id:
                return None
            gone = ("best_model", "experiment_id") if is_whole else ("best_model",)
            return dict.fromkeys(gone), TaskEvent(kind, now, why)

        self._move(task_id, now, rule)

    def at_work(self) -> list[FineTuningTask]:
        """Return the tasks of all projects that a worker is at, or was until it died."""
        return [*map(TASK.decode, self._documents.find(TASKS, {"status": _among(OWNED)}))]

    # -- one atomic step ---------------------------------------------------------------------------

    def _move(
        self, task_id: str, now: datetime, rule: Callable[[FineTuningTask], Move | None]
    ) -> FineTuningTask:
        """Change a task by a rule, again if somebody else was quicker; None: it stays as it is."""
        while True:
            task = self.get(task_id)
            if (move := rule(task)) is None:
                return task
            changes, event = move
            moved = self._change_seen(task, {"updated_at": now, **changes}, event)
            if moved is not None:
                return moved

    def _change_seen(
        self, seen: FineTuningTask, changes: Mapping[str, Any], *events: TaskEvent
    ) -> FineTuningTask | None:
        """Change a task whose status, attempt and lease are still as seen; else return None."""
        as_seen = {
            name: to_json(getattr(seen, name))
            for name in ("id", "status", "attempt", "lease_expires_at")
        }
        return self._change(as_seen, changes, *map(_entry, events))

    def _change(
        self, where: Filter, changes: Mapping[str, Any], *entries: Entry
    ) -> FineTuningTask | None:
        changed = self._documents.change(TASKS, where, set=to_json(changes), append=entries)
        return None if changed is None else TASK.decode(changed.document)


def ensure_room(pending: int, most: int | None) -> None:
    """Raise Conflict if so many tasks of a project are pending that no other may be."""
    if most is not None and pending >= most:
        raise Conflict(
            f"{pending} tasks are waiting for a worker already, the most there may be "
            "(ES_MAX_PENDING_TASKS): wait, cancel one, or start more workers"
        )


def _ensure_page(documents: Collection[Document]) -> None:
    """Raise InvalidInput if the metadata of a page of tasks are larger than a page may be."""
    size = sum(len(json.dumps(document.get("metadata"))) for document in documents)
    if size > PAGE_BYTES:
        raise InvalidInput(
            f"the metadata of these tasks come to more than {PAGE_BYTES} bytes: ask for fewer at a "
            "time (limit)"
        )


def _ensure_same_request(document: Document, request: TaskRequest) -> None:
    """Raise Conflict if the request that made the task is another one.

    The request is compared, not the task: a worker fills in the task's batch_id later."""
    posted = REQUEST.encode(request)
    made = REQUEST.encode(REQUEST.decode(document["request"]))  # newer fields are filled in
    different = sorted(name for name in posted if posted[name] != made[name])
    if different:
        raise Conflict(
            f"the idempotency key {request.idempotency_key!r} belongs to task {document['id']}, "
            f"whose request differs in {', '.join(different)}: use another key for another request"
        )


def _among(statuses: Collection[TaskStatus]) -> Any:
    return among(sorted(status.value for status in statuses))


def _owned(claim: Claim, statuses: Collection[TaskStatus]) -> Filter:
    return {"id": claim.task_id, "attempt": claim.attempt, "status": _among(statuses)}


def _entry(event: TaskEvent) -> Entry:
    return Entry(None, EVENT.encode(event))


def _once(event: TaskEvent) -> Entry:
    """Return the entry that the log takes once, whoever adds it again."""
    value = EVENT.encode(event)
    content = json.dumps(value, sort_keys=True)
    return Entry(hashlib.sha256(content.encode()).hexdigest(), value)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _ended(status: TaskStatus, error: str | None) -> dict[str, Any]:
    return {"status": status, "error": error, **NO_OWNER}


def _lease_lost(claim: Claim) -> LeaseLost:
    return LeaseLost(
        f"task {claim.task_id} is no longer owned by attempt {claim.attempt} of worker "
        f"{claim.worker_id}: it was canceled, ended or claimed again"
    )


def _ensure_undecided(task: FineTuningTask, target: TaskStatus, what: str) -> None:
    """Raise Conflict for a task that has ended, or whose verdict is in."""
    if task.status not in sources_of(target):
        raise Conflict(f"task {task.id} cannot be {what}: its status is already {task.status}")
    if task.promotion is not None:
        raise Conflict(
            f"task {task.id} cannot be {what} any more: its verdict is in and is being carried "
            "out; it is done in a moment"
        )


def _ensure_goes_on(task: FineTuningTask, more: Budget) -> None:
    """Raise Conflict for a done task whose search there is nothing to go on with."""
    had = task.progress.max_trials if task.progress else task.budget.max_trials
    if task.promotion is not None and task.promotion.promoted:
        why = "its model was promoted: start a new task, which goes on from it"
    elif task.experiment_id is None:
        why = "its trials were removed: start a new task"
    elif (more.max_trials or 0) <= (had or 0):
        why = f"it had {had or 0} trials: name more in max_trials"
    else:
        return
    raise Conflict(f"task {task.id} is done and cannot be restarted: {why}")


def _ensure_restartable(task: FineTuningTask, now: datetime) -> None:
    if task.status not in sources_of(TaskStatus.PENDING) - OWNED:
        raise Conflict(
            f"task {task.id} cannot be restarted while its status is {task.status}: only those "
            "that have ended can"
        )
    if task.lease_expires_at is not None and is_held(task.lease_expires_at, now):
        raise Conflict(
            f"task {task.id} cannot be restarted yet: worker {task.worker_id} is still removing "
            f"what it wrote; try again after {task.lease_expires_at.isoformat()} at the latest"
        )
