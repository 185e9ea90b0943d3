"""The JSON of schedules."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

from embedding_studio.clickstream import MIN_NEW_SESSIONS
from embedding_studio.tasks import Budget, Promote, SearchOptions
from embedding_studio.wire.fields import MAX_PAGE_OFFSET, Id, Plain, is_none
from embedding_studio.wire.tasks import Terms


class ScheduleBody(Terms):
    """Exactly one of cron and interval_seconds."""

    model_config = ConfigDict(
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

    cron: Annotated[str, StringConstraints(max_length=256), Plain] | None = Field(
        None, description="minute, hour, day of month, month, day of week; in UTC"
    )
    interval_seconds: Annotated[FiniteFloat, Field(ge=60, le=366 * 86400)] | None = None
    min_new_sessions: Annotated[int, Field(ge=1, le=MAX_PAGE_OFFSET)] = Field(
        MIN_NEW_SESSIONS,
        description="clicked, in the batch now collecting; with `last` or `since`, in that time "
        "range, and one of them new; fewer: no task this time",
    )
    idempotency_key: Id | None = Field(None, description="the same key gives the same schedule")


class ScheduleView(BaseModel):
    """A schedule as its clients see it. Times are UTC."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    fine_tuning_method: str
    cron: str | None
    interval_seconds: float | None
    min_new_sessions: int
    metadata: Mapping[str, Any] | None
    budget: Budget
    search: SearchOptions
    event_weights: Mapping[str, float] | None = Field(None, exclude_if=is_none)
    promote: Promote | None = Field(None, exclude_if=is_none)
    folds: int | None = Field(None, exclude_if=is_none)
    last: str | None = Field(None, exclude_if=is_none)
    since: datetime | None = Field(None, exclude_if=is_none)
    labels_id: str | None = Field(None, exclude_if=is_none)
    judge_labels_id: str | None = Field(None, exclude_if=is_none)
    model_name: str | None = Field(None, exclude_if=is_none)
    initial_model: str | None = Field(None, exclude_if=is_none)
    seed: int | None = Field(None, exclude_if=is_none)
    parameters: Mapping[str, Any] | None = Field(None, exclude_if=is_none)
    webhook_url: str | None
    is_paused: bool
    created_at: datetime
    next_at: datetime
    last_task_id: str | None = Field(description="the last task that was created")
    last_outcome: str | None = Field(description="what the last time came to")
