"""The JSON of schedules."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

from embedding_studio.clickstream import MIN_NEW_SESSIONS
from embedding_studio.tasks import Budget, SearchOptions
from embedding_studio.wire.fields import MAX_PAGE_OFFSET, Id, Meta, Plain, is_none
from embedding_studio.wire.tasks import BudgetBody, EventWeights, SearchBody, WebhookUrl


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
    webhook_url: str | None
    is_paused: bool
    created_at: datetime
    next_at: datetime
    last_task_id: str | None = Field(description="the last task that was created")
    last_outcome: str | None = Field(description="what the last time came to")
