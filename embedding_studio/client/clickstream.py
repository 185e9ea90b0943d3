"""Calls for sessions, events and batches."""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from embedding_studio.clickstream import NumberedSession, Session, SessionEvent
from embedding_studio.client.connection import REPORT_SECONDS, Connection, bulk_bodies
from embedding_studio.wire.clickstream import (
    BatchPage,
    BatchReportView,
    BatchSummary,
    BatchView,
    EventBody,
    EventsBody,
    EventsOutcome,
    EventView,
    IrrelevantBody,
    ReleaseBody,
    ReleaseView,
    SessionOutcome,
    SessionOutcomes,
    SessionView,
    from_unix_seconds,
)
from embedding_studio.wire.fields import MAX_PAGE_OFFSET


class ClickstreamCalls(Connection):
    """What is posted as people search and click, and read back."""

    def post_session(self, session: Session) -> SessionOutcome:
        return self._post(SessionOutcome, "/clickstream/session", SessionView.of(session))

    def post_sessions(self, sessions: Iterable[Session]) -> list[SessionOutcome]:
        """Post sessions with their events, many per request; the answers are in their order.

        An invalid session is answered as such and does not keep the others from being stored."""
        outcomes: list[SessionOutcome] = []
        # not validated here: the server judges each session, and answers per session
        given = (SessionView.of(session).model_dump(warnings=False) for session in sessions)
        for body in bulk_bodies("sessions", given):
            headers = {"Content-Type": "application/json"}
            response = self._call("POST", "/clickstream/sessions", content=body, headers=headers)
            outcomes += self._read(SessionOutcomes, response).sessions
        return outcomes

    def post_events(self, session_id: str, events: Sequence[SessionEvent]) -> int:
        """Add events to a session; return how many of them it did not have. Those of a session that
        has not come wait for it, and are not counted."""
        posted: list[EventBody] = [EventView.of(event) for event in events]
        body = EventsBody.model_construct(session_id=session_id, events=posted)
        return self._post(EventsOutcome, "/clickstream/session/events", body).new_events

    def mark_irrelevant(self, session_id: str) -> None:
        body = IrrelevantBody.model_construct(session_id=session_id)
        self._post(type(None), "/clickstream/session/irrelevant", body)

    def release_batch(self, release_id: str | None = None) -> ReleaseView:
        """Release the batch now collecting. Without a release_id, each call releases another."""
        body = ReleaseBody.model_construct(release_id=release_id or str(uuid.uuid4()))
        return self._post(ReleaseView, "/clickstream/internal/batch/release", body)

    def get_batch(self, batch_id: str | None = None) -> BatchView:
        """Return what is known of a batch, by default of the one now collecting."""
        params = {} if batch_id is None else {"batch_id": batch_id}
        return self._get(BatchView, "/clickstream/internal/batch", **params)

    def list_batches(self, skip: int = 0, limit: int = 100) -> list[BatchSummary]:
        """Return batches newest first, the one now collecting before all others."""
        return self._get(list[BatchSummary], "/clickstream/batches", skip=skip, limit=limit)

    def report_on_batch(self, batch_id: str) -> BatchReportView:
        """Return what a batch is worth: counts, shares, and warnings with what to do."""
        path = f"/clickstream/batch/{batch_id}/report"
        return self._read(BatchReportView, self._call("GET", path, timeout=REPORT_SECONDS))

    def export_batch(self, batch_id: str, file: Path) -> None:
        """Write a batch's sessions to a file, one a line, as JSON that can be posted again.

        The file appears, or is replaced, only once it is complete."""
        self._export(f"/clickstream/batch/{batch_id}/export", file)

    def read_batch(self, batch_id: str, page_size: int = 100) -> Iterator[NumberedSession]:
        """Yield all sessions of a batch in order, with all their events."""
        after_number: int | None = 0
        while after_number is not None:
            params = {
                "batch_id": batch_id,
                "after_number": after_number,
                "limit": page_size,
                "events_limit": MAX_PAGE_OFFSET,
            }
            response = self._call("GET", "/clickstream/internal/batch/sessions", params=params)
            page = BatchPage.model_validate_json(response.content, extra="ignore")
            for view in page.sessions:
                yield NumberedSession(view.to_session(_instant), batch_id, view.session_number)
            after_number = page.last_number


def _instant(seconds: float | None, owner: str) -> datetime:
    if seconds is None:
        raise ValueError(f"{owner} has no time")
    return from_unix_seconds(seconds)
