"""Calls for tasks that come by themselves."""

import uuid
from contextlib import suppress
from typing import Unpack

from embedding_studio.clickstream import MIN_NEW_SESSIONS
from embedding_studio.client.connection import Connection
from embedding_studio.client.tasks import TaskTerms
from embedding_studio.errors import NotFound
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
        idempotency_key: str | None = None,
        **terms: Unpack[TaskTerms],
    ) -> ScheduleView:
        """Have tasks created at times of the clock, by cron (in UTC) or every so many seconds."""
        body = ScheduleBody.unchecked(
            fine_tuning_method=fine_tuning_method,
            cron=cron,
            interval_seconds=interval_seconds,
            min_new_sessions=min_new_sessions,
            idempotency_key=idempotency_key or str(uuid.uuid4()),
            **terms,
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
