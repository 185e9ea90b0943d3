"""Names, ids and addresses that would forge a line of a log, or steer a terminal."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from embedding_studio.api.clickstream_schemas import EventView, SessionView
from embedding_studio.store import Store
from tests.api.samples import METHOD, event_json, session_json

SESSION = "/clickstream/session"
SESSIONS = "/clickstream/sessions"
TASK = "/fine-tuning/task"
SCHEDULE = "/fine-tuning/schedule"
FORGED = "x\n2026-01-31 12:00:00,000 INFO embedding_studio.worker: done"

FIELDS: list[tuple[str, dict[str, Any]]] = [
    (SESSION, session_json(FORGED)),
    (SESSION, session_json(user_id=FORGED)),
    (SESSION, session_json(search_results=[{"object_id": FORGED}])),
    (SESSION, session_json(events=[event_json(FORGED)])),
    (SESSION, session_json(events=[event_json(object_id=FORGED)])),
    (SESSION, session_json(events=[event_json(event_type=FORGED)])),
    (f"{SESSION}/events", {"session_id": FORGED, "events": []}),
    (f"{SESSION}/irrelevant", {"session_id": FORGED}),
    ("/clickstream/internal/batch/release", {"release_id": FORGED}),
    (TASK, {"fine_tuning_method": FORGED}),
    (TASK, {"fine_tuning_method": METHOD, "batch_id": FORGED}),
    (TASK, {"fine_tuning_method": METHOD, "idempotency_key": FORGED}),
    (TASK, {"fine_tuning_method": METHOD, "event_weights": {FORGED: 1}}),
    (TASK, {"fine_tuning_method": METHOD, "webhook_url": f"https://example.com/{FORGED}"}),
    (SCHEDULE, {"fine_tuning_method": METHOD, "interval_seconds": 60, "idempotency_key": FORGED}),
    (SCHEDULE, {"fine_tuning_method": METHOD, "cron": "30 3 * *\n1"}),
    ("/fine-tuning/champion/rollback", {"fine_tuning_method": METHOD, "reason": FORGED}),
]


@pytest.mark.parametrize(("route", "body"), FIELDS)
def test_control_characters_are_refused(
    api: TestClient, store: Store, route: str, body: dict[str, Any]
) -> None:
    """In whatever people name things by: the refusal says which character, and nothing is kept."""
    answer = api.post(route, json=body)
    assert answer.status_code == 422
    assert "control character U+000A" in answer.json()["detail"][0]["msg"]
    assert (store.list_tasks(), store.list_schedules(), store.collecting_batch()) == ([], [], None)


@pytest.mark.parametrize(
    "character", ["\0", "\r", "\t", "\x1b", "\x7f", "\x85", "\u2028", "\u202e"]
)
def test_every_kind_of_control_character_is_refused(api: TestClient, character: str) -> None:
    """Alone and in bulk, where it costs only its own session, whose id is not repeated."""
    bad = session_json(f"a{character}b")
    assert api.post(SESSION, json=bad).status_code == 422
    answer = api.post(SESSIONS, json={"sessions": [bad, session_json()]}).json()["sessions"]
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
