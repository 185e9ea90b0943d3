"""Names, ids and addresses that would forge a line of a log, or steer a terminal."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel

from embedding_studio.store import Store
from embedding_studio.wire.clickstream import (
    EventBody,
    EventsBody,
    EventView,
    IrrelevantBody,
    ReleaseBody,
    ResultBody,
    SessionBody,
    SessionView,
)
from embedding_studio.wire.models import PromoteBody, RollbackBody, WebhookBody
from embedding_studio.wire.schedules import ScheduleBody
from embedding_studio.wire.tasks import TaskBody
from tests.api.samples import METHOD, event_json, session_json

SESSION = "/clickstream/session"
FORGED = "x\n2026-01-31 12:00:00,000 INFO embedding_studio.engine.worker: done"
CONTENT = {"search_query", "meta", "search_meta", "metadata"}
"""What people wrote, rather than what they call something."""

EVENT = event_json(event_type="buy", meta={"a": "b"}, created_at=1)
RESULT = {"object_id": "shoe-1", "rank": 0.9, "meta": {"a": "b"}}
TASK = {
    "fine_tuning_method": METHOD, "metadata": {"a": "b"}, "idempotency_key": "k", "budget": None,
    "search": None, "event_weights": {"buy": 1.0}, "promote": None, "folds": None,
    "webhook_url": "https://example.com/", "last": None, "since": None, "labels_id": "l",
    "judge_labels_id": "j", "model_name": "m",
    "initial_model": "n", "seed": None, "parameters": {"p": "x"},
}  # fmt: skip
BODIES: list[tuple[str, type[BaseModel], dict[str, Any]]] = [
    (
        SESSION,
        SessionBody,
        session_json(
            user_id="u", search_results=[RESULT], search_meta={"a": "b"}, events=[EVENT],
            created_at=1, is_irrelevant=False,
        ),
    ),
    (f"{SESSION}/events", EventsBody, {"session_id": "s", "events": [EVENT]}),
    (f"{SESSION}/irrelevant", IrrelevantBody, {"session_id": "s"}),
    ("/clickstream/internal/batch/release", ReleaseBody, {"release_id": "r"}),
    ("/fine-tuning/task", TaskBody, {**TASK, "batch_id": "b", "batch_ids": None, "until": None}),
    (
        "/fine-tuning/schedule",
        ScheduleBody,
        {**TASK, "cron": "30 3 * * 1", "interval_seconds": None, "min_new_sessions": 1},
    ),
    (
        "/models/m/promote",
        PromoteBody,
        {"version": None, "task_id": "t", "expected_champion": 1, "reason": "r"},
    ),
    ("/models/m/webhook", WebhookBody, {"url": "https://search.example/"}),
    ("/models/m/rollback", RollbackBody, {"version": 1, "expected_champion": 1, "reason": "r"}),
]  # fmt: skip


def forged(body: Any) -> Iterator[tuple[str, Any]]:
    """Yield, for each name in a body, its field and the body with a line break in that name."""
    if isinstance(body, dict):
        for key, value in body.items():
            if key in CONTENT:
                continue
            for field, changed in forged(value):
                yield field or key, {**body, key: changed}
            if key == "buy":
                yield "", {key + FORGED: value}
    elif isinstance(body, list):
        for field, changed in forged(body[0]):
            yield field, [changed]
    elif isinstance(body, str):
        yield "", body + FORGED


def test_every_field_is_looked_at() -> None:
    """A field that comes to what may be posted comes to these tests."""
    parts: list[tuple[str, type[BaseModel], dict[str, Any]]]
    parts = [("", EventBody, EVENT), ("", ResultBody, RESULT)]
    for _, model, body in [*BODIES, *parts]:
        assert body.keys() == model.model_fields.keys()


CASES = [
    pytest.param(route, body, id=f"{model.__name__}-{field}")
    for route, model, whole in BODIES
    for field, body in forged(whole)
]


@pytest.mark.parametrize(("route", "body"), CASES)
def test_control_characters_are_refused(
    api: TestClient, store: Store, route: str, body: dict[str, Any]
) -> None:
    """In whatever people name things by: the refusal says which character, and nothing is kept."""
    answer = api.post(route, json=body)
    assert answer.status_code == 422
    assert "control character U+000A" in answer.json()["detail"][0]["msg"]
    assert (store.tasks.page(), store.schedules.all(), store.clickstream.collecting_batch()) == (
        [],
        [],
        None,
    )


@pytest.mark.parametrize(
    "character", ["\0", "\r", "\t", "\x1b", "\x7f", "\x85", "\u2028", "\u202e"]
)
def test_every_kind_of_control_character_is_refused(api: TestClient, character: str) -> None:
    """Alone and in bulk, where it costs only its own session, whose id is not repeated."""
    bad = session_json(f"a{character}b")
    assert api.post(SESSION, json=bad).status_code == 422
    answer = api.post(f"{SESSION}s", json={"sessions": [bad, session_json()]}).json()["sessions"]
    assert [one["status"] for one in answer] == ["invalid", "created"]
    assert answer[0]["session_id"] is None


def test_text_keeps_its_lines(api: TestClient) -> None:
    """Queries and free-form meta are content: tabs, line breaks and right-to-left text stay."""
    posted = session_json(
        "معرف-1", search_query="two\n\tlines \u202bنص", search_meta={"a\nb": "c\x1b\r\n"}
    )
    assert api.post(SESSION, json=posted).status_code == 200
    read = api.get(SESSION, params={"session_id": "معرف-1"}).json()
    assert (read["search_query"], read["search_meta"]) == (
        posted["search_query"],
        posted["search_meta"],
    )


def test_what_was_posted_before_can_be_read() -> None:
    """A client reads ids of sessions that an earlier version took."""
    read = SessionView.model_validate(
        session_json(FORGED, created_at=0, events=[event_json(FORGED, created_at=0)])
    )
    assert read.session_id == FORGED
    assert isinstance(read.events[0], EventView)
