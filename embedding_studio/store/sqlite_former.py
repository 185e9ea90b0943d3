"""What a SQLite file in the layout of version 0.1 holds."""

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter

from embedding_studio.clickstream import Session, SessionBatch, SessionEvent
from embedding_studio.keys import ApiKey
from embedding_studio.models import RegisteredModel
from embedding_studio.projects import DEFAULT_PROJECT
from embedding_studio.schedules import Schedule
from embedding_studio.store.migrate import Former, FormerBatch, FormerEarly, FormerTask
from embedding_studio.store.sqlite_file import SqliteFile
from embedding_studio.tasks import FineTuningTask, TaskEvent, TaskRequest

Row = dict[str, Any]

TASK = TypeAdapter(FineTuningTask)
REQUEST = TypeAdapter(TaskRequest)
TASK_EVENT = TypeAdapter(TaskEvent)
BATCH = TypeAdapter(SessionBatch)
SESSION = TypeAdapter(Session)
EVENT = TypeAdapter(SessionEvent)
KEY = TypeAdapter(ApiKey)
SCHEDULE = TypeAdapter(Schedule)
MODEL = TypeAdapter(RegisteredModel)

PAGE = 1000
TABLES = (
    "events", "sessions", "batches", "usage", "early_events", "task_events", "tasks", "workers",
    "schedules", "api_keys", "pings", "models",
)  # fmt: skip
DOCUMENTS = frozenset({
    "request", "metadata", "budget", "search", "event_weights", "progress", "best_model",
    "promotion", "delivery", "counts", "scopes", "document",
})  # fmt: skip
TIMES = frozenset({
    "created_at", "updated_at", "released_at", "since", "lease_expires_at", "delivery_due_at",
    "expires_at", "revoked_at", "next_at",
})  # fmt: skip


class SqliteFormer(Former):
    """The tables that 0.1 wrote: times are texts in UTC, parts of a row are JSON."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    def tasks(self) -> Iterator[FormerTask]:
        of_task = "SELECT document FROM task_events WHERE task_id = ? ORDER BY number"
        for row in self._pages("tasks", "created_at, arrival"):
            events = self._file.read(of_task, [row["id"]])
            yield FormerTask(
                TASK.validate_python(row),
                REQUEST.validate_python(row["request"]),
                [TASK_EVENT.validate_json(document) for (document,) in events],
            )

    def batches(self) -> Iterator[FormerBatch]:
        for row in self._pages("batches", "created_at, rowid"):
            project = row.get("project", DEFAULT_PROJECT)
            yield FormerBatch(project, BATCH.validate_python(row))

    def sessions(self, batch_id: str) -> Iterator[Session]:
        last = 0
        while page := self._rows(
            "sessions WHERE batch_id = ? AND number > ? ORDER BY number LIMIT ?",
            [batch_id, last, PAGE],
        ):
            last = page[-1]["number"]
            events = defaultdict(list)
            for event in self._rows(
                "events WHERE session_id IN (SELECT value FROM json_each(?)) ORDER BY arrival",
                [json.dumps([row["session_id"] for row in page])],
            ):
                events[event["session_id"]].append(event["document"])
            for row in page:
                yield SESSION.validate_python(
                    {
                        **row["document"],
                        "is_irrelevant": row["is_irrelevant"],
                        "events": events[row["session_id"]],
                    }
                )

    def early(self) -> Iterator[FormerEarly]:
        for row in self._pages("early_events", "arrival"):
            event = None if row["document"] is None else EVENT.validate_python(row["document"])
            # sessions had keys: with their projects before their ids, but for the default one's
            session_id = row["session_id"].removeprefix(f"p:{row['project']}:")
            expires_at = datetime.fromisoformat(row["expires_at"])
            yield FormerEarly(row["project"], session_id, event, expires_at)

    def api_keys(self) -> Iterator[ApiKey]:
        for row in self._pages("api_keys", "arrival"):
            yield KEY.validate_python(row)

    def schedules(self) -> Iterator[Schedule]:
        for row in self._pages("schedules", "created_at, arrival"):
            yield SCHEDULE.validate_python(row)

    def models(self) -> Iterator[RegisteredModel]:
        for row in self._pages("models", "project, method"):
            yield MODEL.validate_python(row["document"])

    def retire(self) -> None:
        self._file.retire(TABLES)

    def _pages(self, table: str, order: str) -> Iterator[Row]:
        if not self._file.read("SELECT 1 FROM sqlite_master WHERE name = ?", [table]):
            return  # of before there were any
        skip = 0
        while page := self._rows(f"{table} ORDER BY {order} LIMIT ? OFFSET ?", [PAGE, skip]):
            yield from page
            skip += len(page)

    def _rows(self, what: str, values: list[Any]) -> list[Row]:
        """Return the rows of "table WHERE ..." by the names of their columns."""
        table = what.split(" ", maxsplit=1)[0]
        columns = [name for _, name, *_ in self._file.read(f"PRAGMA table_info({table})", [])]
        return [
            {name: _value(name, value) for name, value in zip(columns, row, strict=True)}
            for row in self._file.read(f"SELECT * FROM {what}", values)
        ]


def _value(column: str, value: Any) -> Any:
    if value is None:
        return None
    if column in DOCUMENTS:
        return json.loads(value)
    return f"{value}+00:00" if column in TIMES else value
