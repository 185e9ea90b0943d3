"""What every store promises. `tests/contracts/test_store.py` holds each sentence below.

Every method may raise StoreUnavailable when the database does not answer. Repeating the call is
then safe and completes it, whatever part of it took effect. (But a task added without an
idempotency_key may be there twice, and an owner who has ended or given back its task hears
LeaseLost.) Methods are safe to call from several threads and several processes at once.

Times are UTC-aware, come from the caller and are kept to the millisecond. Free-form JSON comes back
equal; what a database cannot hold, such as a whole number beyond 64 bits or a document beyond
16 MB in MongoDB, raises InvalidInput.

A store sees one project. What its clients ask of clickstream and tasks is asked of that project:
what another one holds is not found, its ids and keys are free, and nothing of it is changed. Owners
of tasks, workers and API keys are of all projects.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType, SimpleNamespace
from typing import Any, Self

from embedding_studio.clickstream import (
    IGNORED_KINDS,
    BatchCount,
    NumberedSession,
    Session,
    SessionBatch,
    SessionEvent,
    Usage,
)
from embedding_studio.errors import Conflict, InvalidInput, NotFound
from embedding_studio.errors import unknown as unknown
from embedding_studio.keys import ApiKey
from embedding_studio.models import RegisteredModel
from embedding_studio.projects import DEFAULT_PROJECT, check_project
from embedding_studio.schedules import Schedule
from embedding_studio.tasks import (
    Claim,
    FineTuningTask,
    NumberedTaskEvent,
    Promotion,
    StoredModel,
    TaskEvent,
    TaskProgress,
    TaskRequest,
    TaskStatus,
)
from embedding_studio.workers import WorkerRecord

PAGE_BYTES = 4 * 1024 * 1024
"""What the sessions of a page come to at most, as the database keeps them, or it is one session."""
EVENTS_BYTES = 16 * 1024 * 1024
"""What the events of a session come to at most; in MongoDB it is all of the session."""


def cannot_release(named: SessionBatch | None) -> NotFound | Conflict:
    """Return the refusal to release; named: the batch that was asked for, which has been taken."""
    if named is None:
        return NotFound("nothing to release: no session came since the last release")
    return Conflict(
        f"batch {named.batch_id!r} is released already, as {named.release_id!r}: a batch is taken "
        "once; post more sessions, or name it in batch_id to learn from it again"
    )


def ensure_page(size: int) -> None:
    """Raise InvalidInput if the metadata of a page of tasks are larger than a page may be."""
    if size > PAGE_BYTES:
        raise InvalidInput(
            f"the metadata of these tasks come to more than {PAGE_BYTES} bytes: ask for fewer at a "
            "time (limit)"
        )


def ensure_room(pending: int, most: int | None) -> None:
    """Raise Conflict if so many tasks of a project are pending that no other may be."""
    if most is not None and pending >= most:
        raise Conflict(
            f"{pending} tasks are waiting for a worker already, the most there may be "
            "(ES_MAX_PENDING_TASKS): wait, cancel one, or start more workers"
        )


@dataclass(frozen=True, slots=True)
class Registered:
    """What happened to a session that was posted, or to which events were.

    is_new: whether the session is, and new_events: how many of the posted events are;
    stored: the session as it is kept, but for its events, and where events alone were posted for
    any meta, which may be missing;
    is_late: of a new session, that it was made before the last release, after which it came; of a
    known one, that its batch is released;
    early_events: how many that had come before the session joined it now.
    """

    is_new: bool
    new_events: int
    stored: NumberedSession
    is_late: bool = False
    early_events: int = 0


@dataclass(frozen=True, slots=True)
class EarlyFeedback:
    """Events of a session that has not come yet, or the mark that its results were all wrong."""

    session_id: str
    events: tuple[SessionEvent, ...] = ()
    is_irrelevant: bool = False


class Store(ABC):
    """project: the one whose clickstream and tasks it sees."""

    project = DEFAULT_PROJECT

    def in_project(self, project: str) -> Self:
        """Return this store as another project sees it. Raises InvalidInput for no project's id.

        It is cheap, and shares the connections: closing is left to whoever opened the store.
        """
        view = copy.copy(self)
        view.project = check_project(project)
        return view

    # the nouns, as they will be called

    @property
    def clickstream(self) -> Any:
        return SimpleNamespace(
            register=self.register_sessions,
            get=self.get_session,
            append_events=self.append_events,
            keep_early=self.keep_early,
            count_early=self.count_early,
            mark_irrelevant=self.mark_irrelevant,
            release=self.release_batch,
            find_release=self.find_release,
            get_batch=self.get_batch,
            collecting_batch=self.collecting_batch,
            add_counts=self.add_counts,
            count_clicked=self.count_clicked_sessions,
            delete_older=self.delete_older_batches,
            read=self.read_batch,
            usage=self.usage,
        )

    @property
    def tasks(self) -> Any:
        return SimpleNamespace(
            add=self.add_task,
            get=self.get_task,
            find=self.find_task,
            page=self.list_tasks,
            count=self.count_tasks,
            waiting_for_batch=self.waiting_for_batch,
            cancel=self.cancel_task,
            stop=self.stop_task,
            restart=self.restart_task,
            events=self.list_events,
            claim=self.claim_task,
            renew=self.renew_lease,
            record=self.record,
            finish=self.finish_task,
            give_back=self.release_task,
            release_canceled=self.release_canceled,
            forget_iteration=self.forget_iteration,
            at_work=self.tasks_at_work,
        )

    @property
    def deliveries(self) -> Any:
        return SimpleNamespace(
            claim=self.claim_delivery,
            settle=self.settle_delivery,
        )

    @property
    def keys(self) -> Any:
        return SimpleNamespace(
            add=self.add_key,
            find=self.find_key,
            all=self.list_keys,
            end=self.end_key,
        )

    @property
    def models(self) -> Any:
        return SimpleNamespace(
            find=self.find_model,
            change=self.change_model,
            update=self.update_model,
            all=self.all_models,
        )

    @property
    def schedules(self) -> Any:
        return SimpleNamespace(
            add=self.add_schedule,
            get=self.get_schedule,
            all=self.list_schedules,
            pause=self.pause_schedule,
            remove=self.remove_schedule,
            due=self.due_schedules,
            advance=self.advance_schedule,
        )

    @property
    def workers(self) -> Any:
        return SimpleNamespace(
            record=self.record_worker,
            seen=self.list_workers,
            remove=self.remove_worker,
        )

    # -- clickstream ---------------------------------------------------------------------------

    @abstractmethod
    def register_sessions(
        self, sessions: Sequence[Session], now: datetime, most: Usage | None = None
    ) -> list[Registered | InvalidInput]:
        """Add sessions with their events to the batch now collecting, opening one if none is.

        Answers in the order given. Of a session that the database cannot hold, with the events that
        it brings, nothing is kept: its answer is InvalidInput, and the others are kept. A known
        session_id keeps its stored query, results, mark and number; only events with unknown
        event_ids are added to it. Numbers in a batch run from 1 without gaps, whatever is posted
        again or at the same time. A session is in exactly one batch, also when that batch is being
        released meanwhile.

        most: what the project may hold. Raises TooManyRequests, and keeps nothing, where what is
        new of all this would be too much, give or take what others add at the same time.
        """

    @abstractmethod
    def get_session(self, session_id: str) -> NumberedSession:
        """Return one session with all its events. Raises NotFound."""

    @abstractmethod
    def append_events(
        self, session_id: str, events: Sequence[SessionEvent], most: Usage | None = None
    ) -> Registered:
        """Add the events whose event_id the session does not have, all of them or none. Raises
        NotFound; TooManyRequests as above."""

    @abstractmethod
    def usage(self) -> dict[str, Usage]:
        """Return what each project holds; of what came before this was counted, an estimate, from
        the project's next post on. Deleted batches count no more."""

    @abstractmethod
    def keep_early(
        self, feedback: EarlyFeedback, now: datetime, expires_at: datetime, most: int
    ) -> bool:
        """Keep feedback until its session comes, and have it join then; if it has come, at once.

        Events of ids that the session has, or that wait already, are left out. What has expired
        joins no more, and is deleted. False, and nothing kept, where more than `most` events and
        marks of this project would wait.
        """

    @abstractmethod
    def count_early(self, now: datetime) -> int:
        """Return how many events and marks of this project wait for their session."""

    @abstractmethod
    def mark_irrelevant(self, session_id: str) -> None:
        """Mark a session as one whose results were all wrong; for good. Raises NotFound."""

    @abstractmethod
    def release_batch(
        self, release_id: str, now: datetime, batch_id: str | None = None
    ) -> SessionBatch:
        """Release the batch now collecting: nothing joins it afterwards.

        The same release_id gives the same batch again, at any later time, also after a crash in
        mid-release. Raises NotFound when nothing is collecting (no session since the last release),
        and Conflict when another batch than `batch_id` is, if one is named.
        """

    @abstractmethod
    def find_release(self, release_id: str) -> SessionBatch | None:
        """Return the batch that was released under this id, None if none was."""

    @abstractmethod
    def get_batch(self, batch_id: str) -> SessionBatch:
        """Return a batch, collecting or released. Raises NotFound."""

    @abstractmethod
    def collecting_batch(self) -> SessionBatch | None:
        """Return the batch that release_batch would release now, None where it would refuse."""

    @abstractmethod
    def add_counts(self, batch_id: str, counts: Mapping[BatchCount, int]) -> None:
        """Add to what is counted of a batch. Raises NotFound."""

    @abstractmethod
    def count_clicked_sessions(
        self, batch_id: str, ignored_kinds: Collection[str] = IGNORED_KINDS
    ) -> int:
        """Return how many sessions of a batch have an event on a shown item, of a kind that is not
        ignored, and are not marked irrelevant. Raises NotFound.

        Of a batch that was released before kinds of events were kept, nothing is counted.
        """

    @abstractmethod
    def delete_older_batches(self, keep: int) -> list[str]:
        """Delete this project's released batches but the latest `keep`, their sessions with them.

        Returns the ids. One that was interrupted is completed by the next. A batch that a task
        which has not ended names stays. Numbers and ids of the others do not change.
        """

    @abstractmethod
    def read_batch(
        self, batch_id: str, after_number: int, limit: int, events_limit: int | None = None
    ) -> list[NumberedSession]:
        """Return up to `limit` sessions numbered above `after_number`, in order; fewer where they
        are large (PAGE_BYTES), but none only where there are none.

        Each carries its first `events_limit` events (all when None). Takes a fixed number of
        queries, whatever `limit` is. Raises NotFound for an unknown batch.
        """

    # -- tasks, as their clients see them --------------------------------------------------------

    @abstractmethod
    def add_task(
        self,
        request: TaskRequest,
        now: datetime,
        most_pending: int | None = None,
        most: Usage | None = None,
    ) -> tuple[FineTuningTask, bool]:
        """Add a pending task; True if it is new.

        The same idempotency_key with the same request gives the task that exists already, also
        under concurrent posts; with another request it raises Conflict. So it does where
        `most_pending` of the project are pending already; in MongoDB those that are added at the
        same moment may pass it. most: what the project may hold, as in `register_sessions`; tasks
        are never deleted.
        """

    @abstractmethod
    def get_task(self, task_id: str) -> FineTuningTask:
        """Raises NotFound, also for an id that is no id."""

    @abstractmethod
    def find_task(self, idempotency_key: str) -> FineTuningTask | None:
        """Return the task that was added with this key, None if there is none."""

    @abstractmethod
    def list_tasks(
        self, status: TaskStatus | None = None, skip: int = 0, limit: int = 100
    ) -> list[FineTuningTask]:
        """Return tasks newest first. Raises InvalidInput where their metadata are too large for a
        page (PAGE_BYTES)."""

    @abstractmethod
    def count_tasks(self, status: TaskStatus) -> int:
        """Return how many tasks have the status."""

    @abstractmethod
    def waiting_for_batch(self) -> FineTuningTask | None:
        """Return the oldest task that has not ended and has no batch yet, None if there is none."""

    @abstractmethod
    def cancel_task(self, task_id: str, now: datetime) -> FineTuningTask:
        """Set a pending or processing task to canceled at once; its owner's next write fails.

        Canceling a canceled task changes nothing. Raises NotFound; Conflict for done and error,
        and for a task whose promotion is recorded, which is all but done.
        worker_id and lease stay until the owner lets go (release_canceled) or the lease expires.
        """

    @abstractmethod
    def stop_task(self, task_id: str, now: datetime) -> FineTuningTask:
        """Ask for a task to end with what it has: stopping at once, stopped once its owner is done.

        A task that was begun and given back becomes stopping too, and is claimed to be ended.
        Stopping a task that is stopping or stopped changes nothing. Raises NotFound; Conflict for
        a task that never began, one that has ended, and one whose promotion is recorded.
        """

    @abstractmethod
    def restart_task(self, task_id: str, now: datetime, fresh: bool = False) -> FineTuningTask:
        """Set a stopped, canceled or failed task to pending, error, progress, promotion, best model
        and expired_leases cleared, the batch kept. A pending task stays as it is. One with a very
        long history is not restarted (Conflict).

        fresh: count one more fresh start, by which the next attempt forgets earlier trials.
        Raises Conflict for a task at work or done, and while a canceled task's owner still holds an
        unexpired lease (it is still removing what it wrote); NotFound.
        """

    @abstractmethod
    def list_events(
        self, task_id: str, after_number: int = 0, limit: int = 100
    ) -> list[NumberedTaskEvent]:
        """Return up to `limit` of a task's events numbered above `after_number`, oldest first.

        Each move of a task leaves its event in the same atomic step. Raises NotFound.
        """

    # -- tasks, as their owner sees them ---------------------------------------------------------

    @abstractmethod
    def claim_task(
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
        alone. A lease that ends further in the future than any may (`clock.latest_end`) is
        over: a clock was wrong.
        """

    @abstractmethod
    def renew_lease(
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
        and changes nothing.
        """

    @abstractmethod
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

        An event that is equal to one that is there, to its time, is not added again: the call may
        be repeated when its answer was lost. Raises LeaseLost.
        """

    @abstractmethod
    def finish_task(
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
        nothing else does. Returns what it ended as.
        """

    @abstractmethod
    def release_task(self, claim: Claim, now: datetime) -> None:
        """Give a task back without counting an expired lease: pending, or stopping without an
        owner. Raises LeaseLost."""

    @abstractmethod
    def release_canceled(self, claim: Claim) -> None:
        """Let go of a canceled task, once what this attempt wrote is removed.

        Clears worker, lease and best model if the task is canceled and this claim was its last
        owner; else does nothing.
        """

    # -- tasks, as those see them who tidy up and tell of them ----------------------------------

    @abstractmethod
    def forget_iteration(
        self, task_id: str, experiment_id: str, now: datetime, why: str, is_whole: bool
    ) -> None:
        """Note that a task's model is no longer kept, and why; is_whole: nor is its experiment.

        Nothing of a task that is at work, or whose experiment is another one. Raises NotFound.
        """

    @abstractmethod
    def tasks_at_work(self) -> list[FineTuningTask]:
        """Return the tasks of all projects that a worker is at, or was until it died."""

    @abstractmethod
    def claim_delivery(
        self, now: datetime, seconds: float, skip_projects: Collection[str] = ()
    ) -> FineTuningTask | None:
        """Take a task whose end is due to be told to its webhook, for so many seconds.

        Tasks of `skip_projects` are left alone. Of several claimants one gets it. Who dies over it
        leaves it to the next: an end may be told twice, never not at all.
        """

    @abstractmethod
    def settle_delivery(
        self, task: FineTuningTask, now: datetime, error: str | None, due_at: datetime | None
    ) -> bool:
        """Note how an attempt went and when the next is due, None for never again.

        task: as claimed; when it has ended anew meanwhile, nothing is changed: False.
        """

    # -- API keys --------------------------------------------------------------------------------

    @abstractmethod
    def add_key(self, key: ApiKey) -> None:
        """Keep a new key; adding it again changes nothing."""

    @abstractmethod
    def find_key(self, key_id: str) -> ApiKey | None:
        """Return the key of that id, None if there is none."""

    @abstractmethod
    def list_keys(self) -> list[ApiKey]:
        """Return all keys, those that have ended too, oldest first."""

    @abstractmethod
    def end_key(
        self,
        key_id: str,
        *,
        expires_at: datetime | None = None,
        revoked_at: datetime | None = None,
    ) -> ApiKey:
        """Set when a key expires or was revoked, and return it. Raises NotFound.

        An end comes nearer, never further off: a later time than the one that is set is ignored.
        """

    # -- models ----------------------------------------------------------------------------------

    @abstractmethod
    def find_model(self, method: str) -> RegisteredModel | None:
        """Return what this project has registered of a method, None if nothing yet."""

    @abstractmethod
    def change_model(self, changed: RegisteredModel) -> RegisteredModel | None:
        """Put it in the place of what is kept of its method, its revision one higher.

        None, and nothing changed, unless what is kept still has the revision that `changed` brings
        along (0: nothing is kept yet). After a lost answer that may be this call's own doing.
        """

    def update_model(
        self, method: str, rule: Callable[[RegisteredModel], RegisteredModel]
    ) -> RegisteredModel:
        """Change what is registered of a method by a rule, again if somebody else was quicker.

        A rule that gives back what it was given writes nothing; so does one that raises. It is safe
        to repeat if the rule is.
        """
        while True:
            seen = self.find_model(method) or RegisteredModel(self.project, method)
            wanted = rule(seen)
            if wanted == seen:
                return seen
            if (changed := self.change_model(wanted)) is not None:
                return changed

    @abstractmethod
    def all_models(self, are_mirrored: bool | None = None) -> list[RegisteredModel]:
        """Return the registered models of all projects; only those whose champion MLflow's alias
        shows, or does not, if that is asked."""

    # -- schedules -------------------------------------------------------------------------------

    @abstractmethod
    def add_schedule(self, schedule: Schedule, most: int | None = None) -> bool:
        """Keep a new schedule of its project; adding it again changes nothing.

        False, and nothing kept, where the project has `most` already. In MongoDB those that are
        added at the same moment may pass it.
        """

    @abstractmethod
    def get_schedule(self, schedule_id: str) -> Schedule:
        """Return one of this project's schedules. Raises NotFound."""

    @abstractmethod
    def list_schedules(self) -> list[Schedule]:
        """Return this project's schedules, oldest first."""

    @abstractmethod
    def pause_schedule(self, schedule_id: str, is_paused: bool, next_at: datetime) -> Schedule:
        """Pause or resume one of this project's schedules. Raises NotFound."""

    @abstractmethod
    def remove_schedule(self, schedule_id: str) -> None:
        """Delete one of this project's schedules. Raises NotFound."""

    @abstractmethod
    def due_schedules(self, now: datetime) -> list[Schedule]:
        """Return the schedules of all projects whose time has come and that are not paused."""

    @abstractmethod
    def advance_schedule(
        self, seen: Schedule, next_at: datetime, task_id: str | None, outcome: str
    ) -> bool:
        """Set when to look next and what came of the look; task_id None keeps the last one.

        False, and nothing changed, unless its next_at is still as seen and it is not paused.
        """

    # -- workers ---------------------------------------------------------------------------------

    @abstractmethod
    def record_worker(self, worker: WorkerRecord) -> datetime:
        """Insert or replace the record of one worker; return the time by the database's clock."""

    @abstractmethod
    def list_workers(self, seen_after: datetime) -> list[WorkerRecord]:
        """Return the workers seen after that time."""

    @abstractmethod
    def remove_worker(self, worker_id: str) -> None:
        """Forget a worker that ends; unknown ids are fine."""

    # -- life cycle ------------------------------------------------------------------------------

    @abstractmethod
    def ping(self) -> None:
        """Write a little. Raises StoreUnavailable if the database does not answer or takes no
        writes."""

    @abstractmethod
    def close(self) -> None:
        """Release connections; the store is of no use afterwards."""
