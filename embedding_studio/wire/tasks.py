"""The JSON that goes over the wire; the API and the client share these models, and pydantic is
all they need."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    ValidationInfo,
    WrapValidator,
)

from embedding_studio.clickstream import MIN_NEW_SESSIONS, check_weights
from embedding_studio.plain import check_plain
from embedding_studio.tasks import (
    Budget,
    Delivery,
    FineTuningTask,
    NumberedTaskEvent,
    Promotion,
    Pruner,
    Sampler,
    SearchOptions,
    TaskEventKind,
    TaskProgress,
    TaskRequest,
    TaskStatus,
)

if TYPE_CHECKING:
    from embedding_studio.settings import Settings

MAX_PAGE_OFFSET = 2**31 - 1


def _check_meta(meta: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    settings: Settings | None = info.context
    if settings is None:  # read by a client, from an API that has checked it
        return meta
    _check_storable(meta, settings.max_meta_depth)
    size_bytes = len(json.dumps(meta, ensure_ascii=False, allow_nan=False).encode())
    if size_bytes > settings.max_meta_bytes:
        raise ValueError(
            f"has {size_bytes} bytes as JSON; at most {settings.max_meta_bytes} are taken "
            "(ES_MAX_META_BYTES)"
        )
    return meta


def _check_storable(value: Any, most_depth: int, depth: int = 1) -> None:
    # what BSON and SQLite cannot hold would otherwise fail in the store, as a server's error
    if depth > most_depth and isinstance(value, dict | list):
        raise ValueError(f"is nested more than {most_depth} levels deep (ES_MAX_META_DEPTH)")
    if isinstance(value, dict):
        for key, inner in value.items():
            if "\0" in key:
                raise ValueError(f"has a NUL character in the key {key!r}")
            _check_storable(inner, most_depth, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_storable(inner, most_depth, depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"has an integer outside the 64-bit range: {value}")


T = TypeVar("T")
AsPosted = Annotated[T, WrapValidator(lambda posted, _: posted)]
"""What its route validates itself: see `requests.judged`."""
Plain = AfterValidator(check_plain)
Id = Annotated[str, StringConstraints(min_length=1, max_length=256), Plain]
Meta = Annotated[dict[str, Any], AfterValidator(_check_meta)]
"""Free-form JSON, within the bounds of the settings that the validation's context gives."""

SUMMARIZED = 3


def summarize_field_errors(errors: Sequence[Mapping[str, Any]], more: int = 0) -> str:
    """Return the first three of pydantic's errors as one line of text, which counts the others."""
    told = [
        f"{'.'.join(map(str, error['loc'])) or 'the item'}: {error['msg']}"
        for error in errors[:SUMMARIZED]
    ]
    left_out = len(errors[SUMMARIZED:]) + more
    and_more = f" (and {left_out} more)" if left_out else ""
    # a posted lone surrogate may be part of a field's name
    return ("; ".join(told) + and_more).encode("utf-8", "backslashreplace").decode()


# -- fine-tuning -----------------------------------------------------------------------------------


Minutes = Annotated[FiniteFloat, Field(gt=0, le=525_600)]


class BudgetBody(BaseModel):
    """Ends the search, whichever limit comes first; a limit left out is the method's own."""

    model_config = ConfigDict(extra="forbid")

    max_trials: Annotated[int, Field(ge=1, strict=True)] | None = None
    max_minutes: Minutes | None = Field(
        None, description="of the search; at their end trials at work are asked to end"
    )
    max_trained_tokens: Annotated[int, Field(ge=1, le=2**53, strict=True)] | None = Field(
        None, description="of all trials: tokens seen times epochs, as the method counts them"
    )
    max_minutes_per_trial: Minutes | None = Field(
        None, description="after which a trial is asked to end, at its next report"
    )

    def to_budget(self) -> Budget:
        return Budget(**dict(self))


class SearchBody(BaseModel):
    """How to search; what is left out is the method's own."""

    model_config = ConfigDict(extra="forbid")

    sampler: Sampler | None = Field(None, description="who proposes hyperparameter sets")
    pruner: Pruner | None = Field(None, description="who ends hopeless trials early")

    def to_options(self) -> SearchOptions:
        return SearchOptions(self.sampler, self.pruner)


WebhookUrl = Annotated[
    str,
    StringConstraints(max_length=2048),
    Plain,
    Field(description="is told when the task has ended, however: a signed POST"),
]


EventWeights = Annotated[
    dict[Id, FiniteFloat],
    AfterValidator(check_weights),
    Field(
        max_length=100,
        description="as how many clicks events of a type count, 0: not at all; over the method's",
    ),
]


class TaskBody(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "fine_tuning_method": "Default Fine Tuning Method",
                    "idempotency_key": "nightly-2026-01-31",
                    "budget": {"max_trials": 4, "max_minutes": 30},
                }
            ]
        },
    )

    fine_tuning_method: Id = Field(description="the `meta.name` of a plugin")
    batch_id: Id | None = Field(None, description="a released batch; absent: the one collecting")
    metadata: Meta | None = None
    idempotency_key: Id | None = Field(None, description="the same key gives the same task")
    budget: BudgetBody | None = None
    search: SearchBody | None = None
    event_weights: EventWeights | None = None
    webhook_url: WebhookUrl | None = None

    def to_request(self) -> TaskRequest:
        return TaskRequest(
            fine_tuning_method=self.fine_tuning_method,
            batch_id=self.batch_id,
            metadata=self.metadata,
            idempotency_key=self.idempotency_key,
            budget=(self.budget or BudgetBody()).to_budget(),
            search=(self.search or SearchBody()).to_options(),
            event_weights=self.event_weights,
            webhook_url=self.webhook_url,
        )


def _is_none(value: object) -> bool:
    return value is None


class TaskView(BaseModel):
    """A fine-tuning task as its clients see it. Times are UTC."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    fine_tuning_method: str
    status: TaskStatus
    created_at: datetime
    updated_at: datetime
    batch_id: str | None
    metadata: Mapping[str, Any] | None
    idempotency_key: str | None
    budget: Budget
    search: SearchOptions
    event_weights: Mapping[str, float] | None = Field(None, exclude_if=_is_none)
    attempt: int
    worker_id: str | None
    progress: TaskProgress | None
    promotion: Promotion | None
    error: str | None
    webhook_url: str | None = Field(None, exclude_if=_is_none)
    delivery: Delivery | None = Field(
        None, exclude_if=_is_none, description="how telling the webhook of the end goes"
    )
    delivery_due_at: datetime | None = Field(
        None, exclude_if=_is_none, description="when the webhook is told, again if need be"
    )
    mlflow_url: str | None = Field(None, description="the iteration's experiment, for people")
    # clients written for the reference take the presence of this field as "there is a model"
    best_model_url: str | None = Field(
        None, exclude_if=_is_none, description="the model as a ZIP; absent until there is one"
    )

    @classmethod
    def of(cls, task: FineTuningTask, mlflow_url: str | None, best_model_url: str | None) -> Self:
        links = {"mlflow_url": mlflow_url, "best_model_url": best_model_url}
        return cls.model_validate(task).model_copy(update=links)


class ScheduleBody(BaseModel):
    """Exactly one of cron and interval_seconds."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "fine_tuning_method": "Default Fine Tuning Method",
                    "cron": "30 3 * * 1",
                    "min_new_sessions": 1000,
                }
            ]
        },
    )

    fine_tuning_method: Id = Field(description="the `meta.name` of a plugin")
    cron: Annotated[str, StringConstraints(max_length=256), Plain] | None = Field(
        None, description="minute, hour, day of month, month, day of week; in UTC"
    )
    interval_seconds: Annotated[FiniteFloat, Field(ge=60, le=366 * 86400)] | None = None
    min_new_sessions: Annotated[int, Field(ge=1, le=MAX_PAGE_OFFSET)] = Field(
        MIN_NEW_SESSIONS,
        description="clicked, in the batch now collecting; fewer: no task this time",
    )
    metadata: Meta | None = None
    budget: BudgetBody | None = None
    search: SearchBody | None = None
    event_weights: EventWeights | None = None
    webhook_url: WebhookUrl | None = None
    idempotency_key: Id | None = Field(None, description="the same key gives the same schedule")

    def given(self) -> dict[str, Any]:
        """Return the fields of a Schedule that the body tells."""
        return {
            "fine_tuning_method": self.fine_tuning_method,
            "cron": self.cron,
            "interval_seconds": self.interval_seconds,
            "min_new_sessions": self.min_new_sessions,
            "metadata": self.metadata,
            "budget": (self.budget or BudgetBody()).to_budget(),
            "search": (self.search or SearchBody()).to_options(),
            "event_weights": self.event_weights,
            "webhook_url": self.webhook_url,
        }


class ScheduleView(BaseModel):
    """last_outcome: what the last time came to; last_task_id: the last task that was created."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    fine_tuning_method: str
    cron: str | None
    interval_seconds: float | None
    min_new_sessions: int
    metadata: Mapping[str, Any] | None
    budget: Budget
    search: SearchOptions
    event_weights: Mapping[str, float] | None = Field(None, exclude_if=_is_none)
    webhook_url: str | None
    is_paused: bool
    created_at: datetime
    next_at: datetime
    last_task_id: str | None
    last_outcome: str | None


class TaskEventView(BaseModel):
    """detail: for people; data: its figures, for programs."""

    number: int = Field(description="1 for the first, then one higher each time")
    kind: TaskEventKind
    at: datetime
    detail: str
    data: Mapping[str, Any]

    @classmethod
    def of(cls, numbered: NumberedTaskEvent) -> Self:
        event = numbered.event
        return cls(
            number=numbered.number,
            kind=event.kind,
            at=event.at,
            detail=event.detail,
            data=event.data,
        )


class TaskEventsPage(BaseModel):
    task_id: str
    last_number: int | None = Field(description="the next page's after_number; null: no more yet")
    events: list[TaskEventView]

    @classmethod
    def of(cls, task_id: str, events: Sequence[NumberedTaskEvent]) -> Self:
        return cls(
            task_id=task_id,
            last_number=events[-1].number if events else None,
            events=[TaskEventView.of(numbered) for numbered in events],
        )


# -- system ----------------------------------------------------------------------------------------


class Pong(BaseModel):
    time: datetime


class PartStatus(StrEnum):
    OK = "ok"
    UNAVAILABLE = "unavailable"
    UNCHECKED = "unchecked"


class PartHealth(BaseModel):
    """detail: what is missing and why, or what was found."""

    status: PartStatus
    detail: str


class WorkerView(BaseModel):
    worker_id: str
    methods: list[str]
    seen_at: datetime
    plugin_failures: Mapping[str, str] = Field(
        {}, description="what kept a plugin from loading, by its file; the others work"
    )
    missing_models: Mapping[str, str] = Field(
        {}, description="why the initial model of a method is not there, by the method's name"
    )


class WorkerHealth(PartHealth):
    live: list[WorkerView] = []
    methods: list[str] = []


class HealthView(BaseModel):
    status: PartStatus
    store: PartHealth
    mlflow: PartHealth
    worker: WorkerHealth
