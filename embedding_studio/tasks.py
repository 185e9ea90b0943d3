"""The fine-tuning task: what was asked for, where it stands, and which moves are legal."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from embedding_studio.projects import DEFAULT_PROJECT, RegisteredName, registered_name


class TaskStatus(StrEnum):
    PENDING = "pending"
    PROCESSING = "processing"
    STOPPING = "stopping"
    DONE = "done"
    STOPPED = "stopped"
    CANCELED = "canceled"
    ERROR = "error"


LEGAL_TRANSITIONS: Mapping[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.PENDING: frozenset(
        {TaskStatus.PROCESSING, TaskStatus.STOPPING, TaskStatus.CANCELED, TaskStatus.ERROR}
    ),
    TaskStatus.PROCESSING: frozenset(
        {
            TaskStatus.PENDING,
            TaskStatus.STOPPING,
            TaskStatus.DONE,
            TaskStatus.CANCELED,
            TaskStatus.ERROR,
        }
    ),
    TaskStatus.STOPPING: frozenset({TaskStatus.STOPPED, TaskStatus.CANCELED, TaskStatus.ERROR}),
    TaskStatus.DONE: frozenset(),
    TaskStatus.STOPPED: frozenset({TaskStatus.PENDING}),
    TaskStatus.CANCELED: frozenset({TaskStatus.PENDING}),
    TaskStatus.ERROR: frozenset({TaskStatus.PENDING}),
}
OWNED = frozenset({TaskStatus.PROCESSING, TaskStatus.STOPPING})
"""What a worker is at, or was until it died."""
TERMINAL = frozenset({TaskStatus.DONE, TaskStatus.STOPPED, TaskStatus.CANCELED, TaskStatus.ERROR})


def sources_of(target: TaskStatus) -> frozenset[TaskStatus]:
    """Return the statuses from which `target` may be reached."""
    return frozenset(source for source, targets in LEGAL_TRANSITIONS.items() if target in targets)


@dataclass(frozen=True, slots=True)
class Budget:
    """When a search ends, whichever limit comes first; None leaves that limit to the method.

    max_minutes: of the search; at their end trials at work are asked to end.
    max_trained_tokens: tokens seen times epochs, of all trials; the trial that passes it ends.
    max_minutes_per_trial: after which a trial is asked to end, at its next report.
    """

    max_trials: int | None = None
    max_minutes: float | None = None
    max_trained_tokens: int | None = None
    max_minutes_per_trial: float | None = None

    def or_else(self, other: "Budget") -> "Budget":
        """Return this budget with the limits it leaves open taken from another."""
        limits = {limit.name: getattr(self, limit.name) for limit in fields(self)}
        return replace(other, **{name: value for name, value in limits.items() if value})


class Sampler(StrEnum):
    """Who proposes hyperparameter sets; grid: each set of a finite space once."""

    TPE = "tpe"
    RANDOM = "random"
    GP = "gp"
    GRID = "grid"


class Pruner(StrEnum):
    """Who ends hopeless trials early, by what they report."""

    HYPERBAND = "hyperband"
    ASHA = "asha"
    MEDIAN = "median"
    PATIENT = "patient"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How a task searches; None leaves it to the method."""

    sampler: Sampler | None = None
    pruner: Pruner | None = None


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """The body of `POST /api/v1/fine-tuning/task`; two requests are the same if all fields are."""

    fine_tuning_method: str
    batch_id: str | None = None
    metadata: Mapping[str, Any] | None = None
    idempotency_key: str | None = None
    budget: Budget = field(default_factory=Budget)
    search: SearchOptions = field(default_factory=SearchOptions)
    event_weights: Mapping[str, float] | None = None
    webhook_url: str | None = None


@dataclass(frozen=True, slots=True)
class RunningTrial:
    """step, main_metric: as last reported, on the validation split; None before the first."""

    trial: int
    started_at: datetime
    step: int | None = None
    main_metric: float | None = None


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """What a person watching wants to know; rewritten as the iteration goes on.

    phase: prepare, baseline, search, promote or clean up; of an ended task, the one it ended in.
    trial: 1-based number of the trial that last reported; step: the last step it reported.
    main_metric, best_so_far: on the validation split; seconds_left: estimated from finished trials.
    trained_tokens: tokens seen times epochs, of all trials so far, whatever became of them; 0 if
    the method does not count. estimated_trained_tokens: of the whole search, before it started.
    """

    phase: str
    main_metric_name: str | None = None
    trial: int | None = None
    max_trials: int | None = None
    step: int | None = None
    main_metric: float | None = None
    best_so_far: float | None = None
    baseline: float | None = None
    finished_trials: int = 0
    failed_trials: int = 0
    pruned_trials: int = 0
    running_trials: tuple[RunningTrial, ...] = ()
    seconds_left: float | None = None
    trained_tokens: int = 0
    estimated_trained_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ModelFile:
    """path: relative to the model's folder, with forward slashes; sha256: hex digest."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model among MLflow's artifacts. artifact_uri: the folder that holds `files`."""

    run_id: str
    artifact_uri: str
    files: tuple[ModelFile, ...]


@dataclass(frozen=True, slots=True)
class Promotion:
    """The gate's verdict on the test split; delta = best - baseline, its 95 % interval if known."""

    promoted: bool
    reason: str
    metric_name: str
    baseline: float
    best: float
    delta: float
    delta_ci95: tuple[float, float] | None = None
    test_queries: int | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the telling of an end goes. id: the same for every attempt to tell this end of the task.

    attempts: with the one under way. error: why the last attempt failed. delivered_at: when it was
    heard; if that is None and nothing is due, it was given up.
    """

    id: str
    attempts: int = 0
    error: str | None = None
    delivered_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class FineTuningTask:
    """A request to fine-tune and everything known about its execution. Times are UTC.

    attempt: the fencing token, one higher with each claim; a write by an older owner matches
    nothing. expired_leases: how many owners died; a drained worker does not count.
    fresh_starts: how often it was restarted without what earlier attempts had tried.
    event_weights: as how many clicks events of a type count, where the method says otherwise.
    delivery: of its end to webhook_url; delivery_due_at: when to try (again), once it has ended.
    """

    id: str
    fine_tuning_method: str
    status: TaskStatus
    created_at: datetime
    updated_at: datetime
    project: str = DEFAULT_PROJECT
    batch_id: str | None = None
    metadata: Mapping[str, Any] | None = None
    idempotency_key: str | None = None
    budget: Budget = field(default_factory=Budget)
    search: SearchOptions = field(default_factory=SearchOptions)
    event_weights: Mapping[str, float] | None = None
    attempt: int = 0
    expired_leases: int = 0
    fresh_starts: int = 0
    worker_id: str | None = None
    lease_expires_at: datetime | None = None
    progress: TaskProgress | None = None
    experiment_id: str | None = None
    best_model: StoredModel | None = None
    promotion: Promotion | None = None
    error: str | None = None
    webhook_url: str | None = None
    delivery: Delivery | None = None
    delivery_due_at: datetime | None = None

    @property
    def registered_name(self) -> RegisteredName:
        """What MLflow calls the models that it goes on with."""
        return registered_name(self.project, self.fine_tuning_method)


class TaskEventKind(StrEnum):
    """What may happen to a task."""

    CREATED = "created"
    CLAIMED = "claimed"
    LEASE_EXPIRED = "lease_expired"
    GIVEN_BACK = "given_back"
    DATA_PREPARED = "data_prepared"
    BATCH_RELEASED = "batch_released"
    EXPERIMENT_OPENED = "experiment_opened"
    BASELINE_SCORED = "baseline_scored"
    WARNING = "warning"
    TRIAL_FINISHED = "trial_finished"
    TRIAL_PRUNED = "trial_pruned"
    TRIAL_FAILED = "trial_failed"
    BEST_MODEL_STORED = "best_model_stored"
    PROMOTED = "promoted"
    REFUSED = "refused"
    MODEL_REMOVED = "model_removed"
    ITERATION_REMOVED = "iteration_removed"
    STOP_REQUESTED = "stop_requested"
    RESTARTED = "restarted"
    DONE = "done"
    STOPPED = "stopped"
    CANCELED = "canceled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TaskEvent:
    """detail: one sentence for people; data: the figures in it, for programs."""

    kind: TaskEventKind
    at: datetime
    detail: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NumberedTaskEvent:
    """number: 1 for a task's first event, then one higher each time."""

    number: int
    event: TaskEvent


@dataclass(frozen=True, slots=True)
class Claim:
    """Proof of ownership that every write of a worker carries."""

    task_id: str
    attempt: int
    worker_id: str
