"""The schedule: when tasks come by themselves, and what they ask for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from embedding_studio.clickstream import MIN_NEW_SESSIONS
from embedding_studio.tasks import Budget, Promote, SearchOptions


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a task is created, and which: exactly one of cron and interval_seconds is set."""

    id: str
    project: str
    fine_tuning_method: str
    created_at: datetime
    #: when to look again
    next_at: datetime
    #: five fields, UTC
    cron: str | None = None
    interval_seconds: float | None = None
    #: clicked ones, which the collecting batch, or the time range, must hold; else that time passes
    #: without a task
    min_new_sessions: int = MIN_NEW_SESSIONS
    budget: Budget = field(default_factory=Budget)
    search: SearchOptions = field(default_factory=SearchOptions)
    event_weights: Mapping[str, float] | None = None
    promote: Promote | None = None
    folds: int | None = None
    #: of the tasks' time ranges, of which those of a schedule have no end
    last: str | None = None
    since: datetime | None = None
    #: of the tasks; those to learn from only beside a time range
    labels_id: str | None = None
    judge_labels_id: str | None = None
    model_name: str | None = None
    initial_model: str | None = None
    seed: int | None = None
    parameters: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    webhook_url: str | None = None
    is_paused: bool = False
    last_task_id: str | None = None
    #: what the last look came to
    last_outcome: str | None = None
