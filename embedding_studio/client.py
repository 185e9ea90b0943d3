"""The HTTP API from Python: what a search product's backend calls, and what the demo calls."""

import json
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import httpx
import stamina
from pydantic import TypeAdapter

from embedding_studio.clickstream import (
    MIN_NEW_SESSIONS,
    NumberedSession,
    Session,
    SessionEvent,
)
from embedding_studio.errors import (
    CorruptModel,
    EmbeddingStudioError,
    InvalidInput,
    NotFound,
    StoreUnavailable,
)
from embedding_studio.tasks import TERMINAL, Budget, SearchOptions, TaskStatus
from embedding_studio.wire.clickstream import (
    BatchPage,
    BatchView,
    EventsOutcome,
    ReleaseView,
    SessionOutcome,
    SessionOutcomes,
    from_unix_seconds,
)
from embedding_studio.wire.errors import ERROR_BY_STATUS, summarize_field_errors
from embedding_studio.wire.fields import MAX_PAGE_OFFSET
from embedding_studio.wire.models import ChampionView
from embedding_studio.wire.schedules import ScheduleView
from embedding_studio.wire.system import HealthView, Pong
from embedding_studio.wire.tasks import TaskEventsPage, TaskEventView, TaskView

_SESSIONS_PER_REQUEST = 500
_BYTES_PER_REQUEST = 4 * 1024 * 1024  # far below what the API takes by default
_TASKS = TypeAdapter(list[TaskView])
_SCHEDULES = TypeAdapter(list[ScheduleView])


class EmbeddingStudioClient:
    """Calls one API. Every call may be repeated, so timeouts, lost connections and 5xx are retried
    with growing pauses, and 429 after the pause that the server asks for; another 4xx never is, and
    raises the matching error with the server's words.

    api_key: `es_...`, needed once the API has keys; its project is the one that is seen.
    timeout: seconds per connection, read and write. retry_seconds: when to stop retrying one call;
    what is then left of it is StoreUnavailable.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        retry_seconds: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._retry_seconds = retry_seconds
        self._http = httpx.Client(
            base_url=f"{self._base_url}/api/v1",
            timeout=timeout,
            transport=transport,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- clickstream -------------------------------------------------------------------------------

    def post_session(self, session: Session) -> SessionOutcome:
        response = self._call("POST", "/clickstream/session", json=_session_json(session))
        return SessionOutcome.model_validate_json(response.content)

    def post_sessions(self, sessions: Iterable[Session]) -> list[SessionOutcome]:
        """Post sessions with their events, many per request; the answers are in their order.

        An invalid session is answered as such and does not keep the others from being stored.
        """
        outcomes: list[SessionOutcome] = []
        for body in _bulk_bodies(sessions):
            response = self._call(
                "POST",
                "/clickstream/sessions",
                content=body,
                headers={"Content-Type": "application/json"},
            )
            outcomes += SessionOutcomes.model_validate_json(response.content).sessions
        return outcomes

    def post_events(self, session_id: str, events: Sequence[SessionEvent]) -> int:
        """Add events to a session; return how many of them it did not have. Those of a session that
        has not come wait for it, and are not counted."""
        body = {"session_id": session_id, "events": [_event_json(event) for event in events]}
        response = self._call("POST", "/clickstream/session/events", json=body)
        return EventsOutcome.model_validate_json(response.content).new_events

    def mark_irrelevant(self, session_id: str) -> None:
        self._call("POST", "/clickstream/session/irrelevant", json={"session_id": session_id})

    def release_batch(self, release_id: str | None = None) -> ReleaseView:
        """Release the batch now collecting. Without a release_id, each call releases another."""
        body = {"release_id": release_id or str(uuid.uuid4())}
        response = self._call("POST", "/clickstream/internal/batch/release", json=body)
        return ReleaseView.model_validate_json(response.content)

    def get_batch(self, batch_id: str | None = None) -> BatchView:
        """Return what is known of a batch, by default of the one now collecting."""
        params = {} if batch_id is None else {"batch_id": batch_id}
        response = self._call("GET", "/clickstream/internal/batch", params=params)
        return BatchView.model_validate_json(response.content)

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

    # -- fine-tuning -------------------------------------------------------------------------------

    def create_task(
        self,
        fine_tuning_method: str,
        *,
        batch_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        budget: Budget | None = None,
        search: SearchOptions | None = None,
        event_weights: Mapping[str, float] | None = None,
        webhook_url: str | None = None,
    ) -> TaskView:
        """Ask for a fine-tuning. Without an idempotency_key, each call asks for another one."""
        body = {
            "fine_tuning_method": fine_tuning_method,
            "batch_id": batch_id,
            "metadata": metadata,
            # made up here if need be: a retry after a lost answer must not add a second task
            "idempotency_key": idempotency_key or str(uuid.uuid4()),
            "budget": asdict(budget or Budget()),
            "search": asdict(search or SearchOptions()),
            "event_weights": event_weights,
            "webhook_url": webhook_url,
        }
        return _task(self._call("POST", "/fine-tuning/task", json=body))

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
        webhook_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> ScheduleView:
        """Have tasks created at times of the clock, by cron (in UTC) or every so many seconds."""
        body = {
            "fine_tuning_method": fine_tuning_method,
            "cron": cron,
            "interval_seconds": interval_seconds,
            "min_new_sessions": min_new_sessions,
            "metadata": metadata,
            "budget": asdict(budget or Budget()),
            "search": asdict(search or SearchOptions()),
            "event_weights": event_weights,
            "webhook_url": webhook_url,
            "idempotency_key": idempotency_key or str(uuid.uuid4()),
        }
        response = self._call("POST", "/fine-tuning/schedule", json=body)
        return ScheduleView.model_validate_json(response.content)

    def list_schedules(self) -> list[ScheduleView]:
        """Return schedules oldest first."""
        return _SCHEDULES.validate_json(self._call("GET", "/fine-tuning/schedule").content)

    def pause_schedule(self, schedule_id: str) -> ScheduleView:
        response = self._call("PUT", f"/fine-tuning/schedule/{schedule_id}/pause")
        return ScheduleView.model_validate_json(response.content)

    def resume_schedule(self, schedule_id: str) -> ScheduleView:
        response = self._call("PUT", f"/fine-tuning/schedule/{schedule_id}/resume")
        return ScheduleView.model_validate_json(response.content)

    def delete_schedule(self, schedule_id: str) -> None:
        """Delete a schedule; one that is gone already is fine, for a lost answer is asked again."""
        with suppress(NotFound):
            self._call("DELETE", f"/fine-tuning/schedule/{schedule_id}", fine=204)

    def champion(self, fine_tuning_method: str) -> ChampionView:
        """Return a method's versions, newest first, and which of them is champion."""
        params = {"fine_tuning_method": fine_tuning_method}
        response = self._call("GET", "/fine-tuning/champion", params=params)
        return ChampionView.model_validate_json(response.content)

    def roll_back(
        self, fine_tuning_method: str, version: int | None = None, reason: str = ""
    ) -> ChampionView:
        """Make an earlier version champion; None: the one whose place the present one took."""
        expected = None
        if version is None:  # named here: a retry after a lost answer must not go back once more
            found = self.champion(fine_tuning_method)
            version, expected = found.previous_version, found.champion
        body = {
            "fine_tuning_method": fine_tuning_method,
            "version": version,
            "expected_champion": expected,
            "reason": reason,
        }
        response = self._call("POST", "/fine-tuning/champion/rollback", json=body)
        return ChampionView.model_validate_json(response.content)

    def get_task(self, task_id: str) -> TaskView:
        return _task(self._call("GET", f"/fine-tuning/task/{task_id}"))

    def list_tasks(
        self, status: TaskStatus | None = None, skip: int = 0, limit: int = 100
    ) -> list[TaskView]:
        """Return tasks newest first."""
        params: dict[str, str | int] = {"skip": skip, "limit": limit}
        if status is not None:
            params["status"] = status
        return _TASKS.validate_json(self._call("GET", "/fine-tuning/task", params=params).content)

    def cancel_task(self, task_id: str) -> TaskView:
        return _task(self._call("PUT", f"/fine-tuning/task/{task_id}/cancel"))

    def stop_task(self, task_id: str) -> TaskView:
        """Ask for the task to end with the best model it has so far."""
        return _task(self._call("PUT", f"/fine-tuning/task/{task_id}/stop"))

    def restart_task(self, task_id: str, fresh: bool = False) -> TaskView:
        """Run a stopped, canceled or failed task again; fresh: without its finished trials."""
        params = {"fresh": fresh}
        return _task(self._call("PUT", f"/fine-tuning/task/{task_id}/restart", params=params))

    def task_events(self, task_id: str, after_number: int = 0) -> Iterator[TaskEventView]:
        """Yield what has happened to a task so far, oldest first."""
        next_page: int | None = after_number
        while next_page is not None:
            params = {"after_number": next_page}
            response = self._call("GET", f"/fine-tuning/task/{task_id}/events", params=params)
            page = TaskEventsPage.model_validate_json(response.content)
            yield from page.events
            next_page = page.last_number

    def wait_for_task(
        self,
        task_id: str,
        on_update: Callable[[TaskView], None] = lambda task: None,
        poll_seconds: float = 1.0,
    ) -> TaskView:
        """Return the task once it has ended, however; each look at it is passed on."""
        while True:
            task = self.get_task(task_id)
            on_update(task)
            if task.status in TERMINAL:
                return task
            time.sleep(poll_seconds)

    def download_model(self, task_id: str, folder: Path) -> None:
        """Write a task's model to `folder`, which must not exist yet or be empty.

        The folder appears only once it is complete. Raises CorruptModel for a damaged download.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InvalidInput(f"{folder} exists and is not an empty folder: name another one")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # beside the target, so that the last step is one rename within a file system
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as scratch:
            archive, unpacked = Path(scratch, "model.zip"), Path(scratch, "model")
            self._retrying(lambda: self._stream(f"/fine-tuning/task/{task_id}/model", archive))
            _unpack(archive, unpacked)
            unpacked.replace(folder)

    # -- system ------------------------------------------------------------------------------------

    def ping(self) -> datetime:
        """Return the server's time."""
        return Pong.model_validate_json(self._call("GET", "/ping").content).time

    def health(self) -> HealthView:
        """Return what is there and what is missing; the latter raises nothing."""
        response = self._retrying(lambda: _checked(self._http.get("/health"), fine=503))
        return HealthView.model_validate_json(response.content)

    # -- transport ---------------------------------------------------------------------------------

    def _call(self, method: str, path: str, fine: int = 200, **content: Any) -> httpx.Response:
        return self._retrying(lambda: _checked(self._http.request(method, path, **content), fine))

    def _stream(self, path: str, target: Path) -> httpx.Response:
        with self._http.stream("GET", path) as response, target.open("wb") as file:
            if not response.is_success:
                response.read()
            _checked(response)
            for chunk in response.iter_bytes():
                file.write(chunk)
        return response

    def _retrying(self, call: Callable[[], httpx.Response]) -> httpx.Response:
        try:
            for attempt in stamina.retry_context(
                on=self._is_transient, attempts=None, timeout=self._retry_seconds
            ):
                with attempt:
                    return call()
        except httpx.HTTPStatusError as error:
            raise _error_of(error.response) from error
        except httpx.HTTPError as error:
            raise StoreUnavailable(
                f"the API at {self._base_url} does not answer: {error or type(error).__name__}"
            ) from error
        raise AssertionError("stamina ends with an answer or an error")

    def _is_transient(self, error: Exception) -> bool | float:
        """Return whether to try again, or in how many seconds."""
        if isinstance(error, httpx.HTTPStatusError):
            status = error.response.status_code
            wait = error.response.headers.get("Retry-After", "")
            if status == 429 and wait.isdigit():
                return float(wait) if float(wait) <= self._retry_seconds else False
            return status == 429 or (status >= 500 and status != 501)
        return isinstance(
            error, (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
        )


def _checked(response: httpx.Response, fine: int = 200) -> httpx.Response:
    if response.status_code != fine:
        response.raise_for_status()
    return response


def _error_of(response: httpx.Response) -> EmbeddingStudioError:
    kind = ERROR_BY_STATUS.get(response.status_code, EmbeddingStudioError)
    try:
        detail = response.json()["detail"]
    except (ValueError, LookupError, TypeError):
        return kind(f"{response.request.url} answered {response.status_code}")
    return kind(summarize_field_errors(detail) if isinstance(detail, list) else str(detail))


def _bulk_bodies(sessions: Iterable[Session]) -> Iterator[bytes]:
    """Yield bodies of as many sessions as one request may carry."""
    chunk: list[bytes] = []
    size_bytes = 0
    for session in sessions:
        encoded = json.dumps(_session_json(session), ensure_ascii=False, allow_nan=False).encode()
        is_full = size_bytes + len(encoded) > _BYTES_PER_REQUEST
        if chunk and (is_full or len(chunk) == _SESSIONS_PER_REQUEST):
            yield b'{"sessions":[' + b",".join(chunk) + b"]}"
            chunk, size_bytes = [], 0
        chunk.append(encoded)
        size_bytes += len(encoded)
    if chunk:
        yield b'{"sessions":[' + b",".join(chunk) + b"]}"


def _session_json(session: Session) -> dict[str, Any]:
    # no model checks it here: the server judges each session, and answers per session
    return {
        "session_id": session.session_id,
        "search_query": session.search_query,
        "search_results": [
            {"object_id": shown.object_id, "rank": shown.rank, "meta": dict(shown.meta)}
            for shown in session.search_results
        ],
        "search_meta": dict(session.search_meta),
        "user_id": session.user_id,
        "created_at": session.created_at.timestamp(),
        "events": [_event_json(event) for event in session.events],
        "is_irrelevant": session.is_irrelevant,
    }


def _event_json(event: SessionEvent) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "object_id": event.object_id,
        "event_type": event.event_type,
        "created_at": event.created_at.timestamp(),
        "meta": dict(event.meta),
    }


def _instant(seconds: float | None, owner: str) -> datetime:
    if seconds is None:
        raise ValueError(f"{owner} has no time")
    return from_unix_seconds(seconds)


def _task(response: httpx.Response) -> TaskView:
    return TaskView.model_validate_json(response.content)


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as members:
            for name in members.namelist():
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or "\\" in name:
                    raise CorruptModel(f"the download holds the unsafe path {name!r}")
            members.extractall(folder)
    except zipfile.BadZipFile as error:
        raise CorruptModel(f"the download is damaged: {error}") from error
