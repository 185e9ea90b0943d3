"""A row of every format, what may be wrong with one, and how rows are written."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow
from pyarrow import parquet

SESSION = {
    "session_id": "s",
    "search_query": "coat",
    "search_results": [{"object_id": "a", "rank": 0.5, "meta": {"text": "Parka"}}],
    "events": [{"event_id": "e", "object_id": "a"}],
    "created_at": 1e9,
}
IMPRESSION = {
    "search_id": "s", "query": "coat", "item": "a", "position": 1, "clicked": 1, "score": 0.5,
    "time": "2026-01-31T12:00:00Z", "user": "u", "text": "Parka",
}  # fmt: skip
UBI = {
    "query_id": "q", "client_id": "c", "timestamp": 1769860800000, "user_query": "coat",
    "query_response_object_ids": ["a", "b"],
}  # fmt: skip
UBI_EVENT = {
    "query_id": "q", "client_id": "c", "timestamp": "2026-01-31T12:00:00Z", "action_name": "click",
    "event_attributes": {"object": {"object_id": "a"}, "position": {"ordinal": 1}},
}  # fmt: skip
GA4 = {
    "event_name": "select_item", "event_timestamp": 1769860800000000, "user_pseudo_id": "u",
    "event_params": [{"key": "search_term", "value": {"string_value": "coat"}}],
    "items": [{"item_id": "a", "item_name": "Parka", "index": 1}],
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "sessions": SESSION,
    "impressions": IMPRESSION,
    "ubi": UBI,
    "events": UBI_EVENT,
    "ga4": GA4,
    "items": {"id": "a", "title": "Parka", "image": "x.jpg", "price": 7.5, "meta": {"size": "M"}},
    "pairs": {"prompt": "q", "completion": "a", "negatives": ["b"], "score": 0.5},
    "chat": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    "qrels": {"query": "q", "item": "a", "grade": 2, "text": "Parka"},
    "labels": {"file": "a.jpg", "labels": ["coat", "red"]},
}
FLAT = [
    name
    for name, row in ROWS.items()
    if not any(isinstance(value, dict | list) for value in row.values())
]


def jsonl(rows: list[Any]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def as_csv(rows: list[Any]) -> bytes:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()


def as_json(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_yaml(rows: list[Any]) -> bytes:
    return "\n".join("- " + json.dumps(row) for row in rows).encode()


def as_parquet(rows: list[Any]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def zstd(content: bytes) -> bytes:
    packed: bytes = pyarrow.compress(content, codec="zstd", asbytes=True)
    return packed


WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    "jsonl": jsonl,
    "json": as_json,
    "yaml": as_yaml,
    "csv": as_csv,
    "parquet": as_parquet,
}


NASTY: list[Any] = [
    None, True, False, 0, -1, 10**18, 10**400, 1e308, float("nan"), float("inf"), -float("inf"),
    "", " ", "\0", "a\x1bb", "\u202e", "\ud800", "x" * 70_000, "../../x", "%2e%2e/x", "/x", "C:\\x",
    "2026-01-31", "2026-13-45T99:00:00Z", "12:00", "1e999", "-0", "NaN", "null", "[1]", "{}",
    [], {}, [[]], [None], [{}], {"": ""}, {"a": {"b": {"c": [1]}}}, ["x"] * 50, [1, "a", None],
    [{"key": "item"}], [{"key": "query", "value": {"string_value": None}}], {"object_id": "z"},
]  # fmt: skip


FIELDS = sorted({name for row in ROWS.values() for name in row} | {"items", "_source", "fields"})
HOW = ["replace", "remove", "add", "inside"]


def spoil(rows: list[dict[str, Any]], place: int, what: str, which: int, value: Any) -> None:
    """Change a field of a row."""
    row = rows[place]
    field = list(row)[which % len(row)] if row else "x"
    if what == "remove":
        row.pop(field, None)
    elif what == "add":
        row[FIELDS[which % len(FIELDS)]] = value
    elif what == "inside" and isinstance(row.get(field), list) and row[field]:
        row[field] = [value, *row[field]]
    else:
        row[field] = value
