"""What a SQLite file in the layout of version 0.1 holds."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from embedding_studio.store.migrate import Former
from embedding_studio.store.sqlite_file import SqliteFile

Row = dict[str, Any]

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


ORDER = {
    "tasks": "created_at, arrival",
    "batches": "created_at, rowid",
    "early_events": "arrival",
    "api_keys": "arrival",
    "schedules": "created_at, arrival",
    "models": "project, method",
}


class SqliteFormer(Former):
    """The tables that 0.1 wrote: times are texts in UTC, parts of a row are JSON."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    def rows(self, noun: str) -> Iterator[Row]:
        if not self._file.read("SELECT 1 FROM sqlite_master WHERE name = ?", [noun]):
            return  # of before there were any
        skip = 0
        while page := self._rows(f"{noun} ORDER BY {ORDER[noun]} LIMIT ? OFFSET ?", [PAGE, skip]):
            for row in page:
                yield self._as_in_mongo(noun, row)
            skip += len(page)

    def _as_in_mongo(self, noun: str, row: Row) -> Row:
        if noun == "tasks":
            of_task = "SELECT document FROM task_events WHERE task_id = ? ORDER BY number"
            events = self._file.read(of_task, [row["id"]])
            return {**row, "events": [json.loads(event) for (event,) in events]}
        if noun == "early_events":
            # sessions had keys: with their projects before their ids, but for the default one's
            session_id = row["session_id"].removeprefix(f"p:{row['project']}:")
            return {**row, "session_id": session_id, "event": row["document"]}
        return row

    def session_rows(self, batch_id: str) -> Iterator[Row]:
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
                own = events[row["session_id"]]
                yield {**row["document"], "is_irrelevant": row["is_irrelevant"], "events": own}

    def retire(self) -> None:
        self._file.retire(TABLES)

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
