"""Calls for tasks that come by themselves."""

import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from embedding_studio.clickstream import MIN_NEW_SESSIONS
from embedding_studio.client.connection import Connection
from embedding_studio.errors import NotFound
from embedding_studio.tasks import Budget, Promote, SearchOptions
from embedding_studio.wire.schedules import ScheduleBody, ScheduleView


class ScheduleCalls(Connection):
    """What has tasks created by the clock."""

    def create_schedule(
        self,
        fine_tuning_method: str,
        *,
        cron: str | None = None,
        interval_seconds: float | None = None,
        min_new_sessions: int = MIN_NEW_SESSIONS,
        metadata: Mapping[str, Any] | None = None,
        budget: Budget | None = None,
        search: SearchOptions | None = None,
        event_weights: Mapping[str, float] | None = None,
        promote: Promote | None = None,
        folds: int | None = None,
        webhook_url: str | None = None,
        last: str | None = None,
        since: datetime | None = None,
        labels_id: str | None = None,
        judge_labels_id: str | None = None,
        model_name: str | None = None,
        initial_model: str | None = None,
        seed: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> ScheduleView:
        """Have tasks created at times of the clock, by cron (in UTC) or every so many seconds."""
        body = ScheduleBody.unchecked(
            fine_tuning_method=fine_tuning_method,
            cron=cron,
            interval_seconds=interval_seconds,
            min_new_sessions=min_new_sessions,
            metadata=metadata,
            budget=budget,
            search=search,
            event_weights=event_weights,
            promote=promote,
            folds=folds,
            webhook_url=webhook_url,
            last=last,
            since=since,
            labels_id=labels_id,
            judge_labels_id=judge_labels_id,
            model_name=model_name,
            initial_model=initial_model,
            seed=seed,
            parameters=parameters,
            idempotency_key=idempotency_key or str(uuid.uuid4()),
        )
        return self._post(ScheduleView, "/fine-tuning/schedule", body)

    def list_schedules(self) -> list[ScheduleView]:
        """Return schedules oldest first."""
        return self._get(list[ScheduleView], "/fine-tuning/schedule")

    def pause_schedule(self, schedule_id: str) -> ScheduleView:
        return self._put(ScheduleView, f"/fine-tuning/schedule/{schedule_id}/pause")

    def resume_schedule(self, schedule_id: str) -> ScheduleView:
        return self._put(ScheduleView, f"/fine-tuning/schedule/{schedule_id}/resume")

    def delete_schedule(self, schedule_id: str) -> None:
        """Delete a schedule; one that is gone already is fine, for a lost answer is asked again."""
        with suppress(NotFound):
            self._call("DELETE", f"/fine-tuning/schedule/{schedule_id}", fine=204)
