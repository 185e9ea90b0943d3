"""The fine-tuning task: what was asked for, where it stands, and which moves are legal."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from embedding_studio.clickstream import TimeRange
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
    TaskStatus(status): frozenset(map(TaskStatus, targets.split()))
    for status, targets in {
        "pending": "processing stopping canceled error",
        "processing": "pending stopping done canceled error",
        "stopping": "stopped canceled error",
        "done": "pending",
        "stopped": "pending",
        "canceled": "pending",
        "error": "pending",
    }.items()
}
OWNED = frozenset({TaskStatus.PROCESSING, TaskStatus.STOPPING})
"""What a worker is at, or was until it died."""
TERMINAL = frozenset({TaskStatus.DONE, TaskStatus.STOPPED, TaskStatus.CANCELED, TaskStatus.ERROR})


def sources_of(target: TaskStatus) -> frozenset[TaskStatus]:
    """Return the statuses from which `target` may be reached."""
    return frozenset(source for source, targets in LEGAL_TRANSITIONS.items() if target in targets)


@dataclass(frozen=True, slots=True)
class Budget:
    """When a search ends, whichever limit comes first; None leaves that limit to the method."""

    max_trials: int | None = None
    #: of the search; at their end trials at work are asked to end
    max_minutes: float | None = None
    #: tokens seen times epochs, of all trials; the trial that passes it ends
    max_trained_tokens: int | None = None
    #: after which a trial is asked to end, at its next report
    max_minutes_per_trial: float | None = None

    def say(self) -> str:
        """Return in words what limits it."""
        limits = {limit.name: getattr(self, limit.name) for limit in fields(self)}
        return ", ".join(f"{name} {value:g}" for name, value in limits.items() if value)

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


class Promote(StrEnum):
    """What a new model has to show to become champion: that it is better beyond chance; that it is
    better, be it by chance; never: a person decides."""

    SIGNIFICANT = "significant"
    BETTER = "better"
    NEVER = "never"


MOST_FOLDS = 10
"""Into how many parts the queries that judge may be cut: each but the first is one training."""


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """The body of `POST /api/v1/fine-tuning/task`; two requests are the same if all fields are."""

    fine_tuning_method: str
    batch_id: str | None = None
    metadata: Mapping[str, Any] | None = None
    idempotency_key: str | None = None
    budget: Budget = field(default_factory=Budget)
    search: SearchOptions = field(default_factory=SearchOptions)
    #: as how many clicks events of a type count, where the method says otherwise
    event_weights: Mapping[str, float] | None = None
    #: None leaves it to the method
    promote: Promote | None = None
    #: how many parts of the queries judge, each a model that did not see it; None: the method's
    folds: int | None = None
    webhook_url: str | None = None
    #: to learn from the sessions of a time range, whichever batches they are in: how long it has
    #: lasted when the task is added, "30d" say, or its bounds
    last: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    #: several released batches to learn from, in place of one
    batch_ids: tuple[str, ...] = ()
    #: labels to learn from: beside the sessions of a batch or a time range, or alone
    labels_id: str | None = None
    #: labels whose queries decide what is promoted, in place of what is learnt from
    judge_labels_id: str | None = None
    #: of the registered model that it goes on with, and whose next version it makes; None: the
    #: method's name
    model_name: str | None = None
    #: what to start from in place of the champion: a registered model, "name", "name/3" or
    #: "name@champion", a folder, or the id of a model on a hub
    initial_model: str | None = None
    #: of the search, the trials and the gate; None: ES_SEED
    seed: int | None = None
    #: hyperparameters that are fixed, or narrowed to a range of two numbers or to some choices
    parameters: Mapping[str, Any] | None = None

    @property
    def registered_as(self) -> str:
        """The name of the registered model that it goes on with."""
        return self.model_name or self.fine_tuning_method

    @property
    def is_without_sessions(self) -> bool:
        """Whether it learns from labels alone, and takes no batch."""
        sessions = (self.batch_id, self.batch_ids, self.last, self.since, self.until)
        return self.labels_id is not None and not any(sessions)

    @property
    def named_batches(self) -> list[str]:
        """The batches that it names."""
        return [*self.batch_ids] or ([] if self.batch_id is None else [self.batch_id])

    @property
    def named_labels(self) -> list[str]:
        """The sets of labels that it names."""
        return [one for one in (self.labels_id, self.judge_labels_id) if one is not None]


def release_id_of(task_id: str) -> str:
    """Return the id under which a task releases the batch that it takes."""
    return f"task {task_id}"


@dataclass(frozen=True, slots=True)
class RunningTrial:
    """A trial at work, as it last reported."""

    trial: int
    started_at: datetime
    #: None before the first report
    step: int | None = None
    #: on the validation split
    main_metric: float | None = None
    #: of its reports so far, of many an even choice with the last: its curve
    main_metrics: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """What a person watching wants to know; rewritten as the iteration goes on.

    phase: prepare, baseline, search, cross-fit, promote, refit or clean up; of an ended task, the
    one it ended in.
    trial: 1-based number of the trial that last reported; step: the last step it reported.
    main_metric, best_so_far: on the validation split.
    seconds_left: of the phase, estimated from finished trials; until there is one, from the share
    of a trial's tokens that those at work have trained; None where that is not known either.
    trained_tokens: tokens seen times epochs, of all trials so far, whatever became of them; 0 if
    the method does not count. estimated_trained_tokens: of the whole search, before it started."""

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
    """A file of a stored model."""

    #: relative to the model's folder, with forward slashes
    path: str
    size_bytes: int
    #: hex digest
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a stored model's files say of it; None: they do not."""

    #: of the list of its files with their hashes
    sha256: str
    size_bytes: int
    #: how long its vectors are
    dimensions: int | None = None
    #: by its card
    base_model: str | None = None
    #: of the base model, by its card
    license: str | None = None
    #: what comes before a text, by the name of the prompt
    prompts: Mapping[str, str] | None = None
    #: of the files that give items their vectors: models with the same give them the same
    items_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model among MLflow's artifacts."""

    run_id: str
    #: the folder that holds `files`
    artifact_uri: str
    files: tuple[ModelFile, ...]
    #: None of one that was stored before facts were
    facts: ModelFacts | None = None


@dataclass(frozen=True, slots=True)
class MetricChange:
    """A metric before and after, on the same held-out queries; delta = after - before."""

    name: str
    before: float
    after: float
    delta: float
    #: None where it is one number, not one per query
    delta_ci95: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class QueryChange:
    """How good the rankings of one held-out query were and are, as its method explains them."""

    query: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the main metric changed on other queries than those that decide."""

    #: the labels that have them; None: they are the held-out ones of what is learnt from
    labels_id: str | None
    #: whether a fall keeps a model from being promoted
    is_golden: bool
    change: MetricChange
    #: how many they are; None where the metric is one number
    queries: int | None = None


class ServedModel(StrEnum):
    """What becomes champion: the model of the best trial, or one that the same hyperparameter set
    gave on all queries but those of validation."""

    TRIAL = "trial"
    REFIT = "refit"


@dataclass(frozen=True, slots=True)
class Promotion:
    """The gate's verdict on held-out queries; delta = best - baseline, its 95 % interval if known.

    From two folds on it is about the hyperparameter set: each fold's queries were ranked by a model
    that was trained with it and had not seen them."""

    promoted: bool
    reason: str
    metric_name: str
    baseline: float
    best: float
    delta: float
    delta_ci95: tuple[float, float] | None = None
    test_queries: int | None = None
    #: the main metric too
    metrics: tuple[MetricChange, ...] = ()
    #: the queries that changed most, each list by how much
    gained: tuple[QueryChange, ...] = ()
    lost: tuple[QueryChange, ...] = ()
    #: what speaks against a model that is better by the main metric
    warnings: tuple[str, ...] = ()
    folds: int = 1
    served_model: ServedModel = ServedModel.TRIAL
    #: how many would tell a difference of this size from chance; None where it is told, or there is
    #: none to tell
    sessions_needed: int | None = None
    #: the labels whose queries decided; None: the held-out ones of what is learnt from did
    judge_labels_id: str | None = None
    #: whether a page has what was ranked first for `gained` and `lost`, before and after
    has_lists: bool = False
    #: what was compared besides
    others: tuple[Comparison, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivery:
    """How far a webhook has been told the end of a task."""

    #: the same for every attempt to tell this end
    id: str
    #: with the one under way
    attempts: int = 0
    #: why the last attempt failed
    error: str | None = None
    #: when it was heard; if that is None and nothing is due, it was given up
    delivered_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuningTask(TaskRequest):
    """A request to fine-tune and everything known about its execution. Times are UTC.

    Its batch_id is that of the request, the last of several, or else of the batch that an attempt
    released; of a time range, that of its latest batch, once that is settled. Where `last`
    was asked for, `since` says what it came to."""

    id: str
    status: TaskStatus
    created_at: datetime
    updated_at: datetime
    project: str = DEFAULT_PROJECT
    #: the fencing token, one higher with each claim: a write by an older owner matches nothing
    attempt: int = 0
    #: how many owners died; a drained worker does not count
    expired_leases: int = 0
    #: how often it was restarted without what earlier attempts had tried
    fresh_starts: int = 0
    worker_id: str | None = None
    lease_expires_at: datetime | None = None
    progress: TaskProgress | None = None
    experiment_id: str | None = None
    best_model: StoredModel | None = None
    promotion: Promotion | None = None
    error: str | None = None
    #: of its end to webhook_url
    delivery: Delivery | None = None
    #: when to try (again), once it has ended
    delivery_due_at: datetime | None = None

    @property
    def time_range(self) -> TimeRange | None:
        """Whose sessions it learns from; None: those of its batch."""
        return TimeRange.of(None, self.since, self.until, self.created_at)

    @property
    def registered_name(self) -> RegisteredName:
        """What MLflow calls the models that it goes on with."""
        return registered_name(self.project, self.registered_as)


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
    TRAINED_AGAIN = "trained_again"
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
    """Something that happened to a task."""

    kind: TaskEventKind
    at: datetime
    #: one sentence for people
    detail: str
    #: the figures in it, for programs
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NumberedTaskEvent:
    """An event and its place among those of its task."""

    #: 1 for a task's first event, then one higher each time
    number: int
    event: TaskEvent


@dataclass(frozen=True, slots=True)
class Claim:
    """Proof of ownership that every write of a worker carries."""

    task_id: str
    attempt: int
    worker_id: str
