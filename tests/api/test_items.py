"""Items over HTTP."""

from typing import Any

from fastapi.testclient import TestClient

from tests.api.samples import session_json

ITEMS = "/items"
SHOE = {"object_id": "shoe-7", "text": "Runner, red", "image": "https://a/7.jpg", "meta": {"x": 1}}


def put(api: TestClient, *items: Any) -> list[Any]:
    response = api.put(ITEMS, json={"items": items})
    assert response.status_code == 200, response.text
    outcomes: list[Any] = response.json()["items"]
    return outcomes


def test_items_from_put_to_delete(api: TestClient) -> None:
    """They are put, read, listed by pages and deleted."""
    other = {"object_id": "shoe-8", "fields": {"title": "Trail", "color": "blue"}}
    assert put(api, SHOE, other) == [
        {"object_id": "shoe-7", "status": "created"},
        {"object_id": "shoe-8", "status": "created"},
    ]
    assert [one["status"] for one in put(api, SHOE, {**other, "url": "u"})] == [
        "unchanged",
        "updated",
    ]
    first = api.get(ITEMS, params={"limit": 1}).json()
    assert (first["item_count"], first["last_id"]) == (2, "shoe-7")
    assert {name: value for name, value in first["items"][0].items() if value} == SHOE
    rest = api.get(ITEMS, params={"after_id": "shoe-7"}).json()
    assert rest["items"][0]["fields"] == other["fields"]
    assert api.get(ITEMS, params={"after_id": "shoe-8"}).json()["last_id"] is None
    named = api.get(ITEMS, params={"object_id": ["shoe-8", "shoe-7"]}).json()["items"]
    assert [one["object_id"] for one in named] == ["shoe-8", "shoe-7"]
    gone = api.delete(ITEMS, params={"object_id": ["shoe-7", "none"]})
    assert gone.json() == {"deleted": 1}
    missing = api.get(ITEMS, params={"object_id": "shoe-7"})
    assert missing.status_code == 404
    assert "shoe-7" in missing.json()["detail"]


def test_a_bad_item_costs_only_itself(api: TestClient) -> None:
    """Each is refused with its id and what is wrong; the others are kept."""
    wrong: list[tuple[Any, str | None, str]] = [
        ({"object_id": "a"}, "a", "no content"),
        ({"object_id": "b", "text": "", "fields": {"t": " "}}, "b", "no content"),
        ({"text": "x"}, None, "object_id"),
        ({"object_id": "", "text": "x"}, None, "object_id"),
        ({"object_id": "c", "text": 7}, "c", "text"),
        ({"object_id": "d", "title": "x"}, "d", "title"),
        ({"object_id": "e", "text": "x" * 70_000}, "e", "ES_MAX_META_BYTES"),
        ({"object_id": "f", "fields": {"a": ["x"]}}, "f", "fields"),
        ("g", None, "no JSON object"),
    ]
    outcomes = put(api, *(item for item, _, _ in wrong), SHOE)
    for (_, its_id, word), outcome in zip(wrong, outcomes, strict=False):
        assert (outcome["object_id"], outcome["status"]) == (its_id, "invalid")
        assert word in outcome["error"]
    assert outcomes[-1]["status"] == "created"
    assert api.get(ITEMS).json()["item_count"] == 1


def test_a_session_may_name_items_by_id_alone(api: TestClient) -> None:
    """No warning for those that are items, one for those that are not and carry nothing."""
    put(api, SHOE)
    body = session_json("s-1")
    body["search_results"] = [{"object_id": "shoe-7"}, {"object_id": "shoe-9"}]
    warnings = api.post("/clickstream/session", json=body).json()["warnings"]
    assert len(warnings) == 1
    assert "1 of 2 results" in warnings[0]
    assert "'shoe-9'" in warnings[0]
