"""Labels over HTTP."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embedding_studio.keys import Scope, make_key
from embedding_studio.store import Store
from tests.api.samples import START

RED = {"query": "red shoes", "object_id": "shoe-7", "grade": 3}
BLUE = {"query": "blue hat", "object_id": "hat-1", "grade": 0}


def put(api: TestClient, labels_id: str, *labels: Any, **more: Any) -> dict[str, Any]:
    response = api.put(f"/labels/{labels_id}", json={"labels": labels, **more})
    assert response.status_code == 200, response.text
    outcome: dict[str, Any] = response.json()
    return outcome


def test_labels_from_put_to_delete(api: TestClient) -> None:
    """They are put, told, listed, exported as they can be put again, and deleted."""
    assert put(api, "judged", RED, BLUE) == {"created": 2, "updated": 0, "unchanged": 0}
    assert put(api, "judged", RED, {**BLUE, "grade": 1}, golden=True)["updated"] == 1
    put(api, "other", RED)
    told = api.get("/labels/judged").json()
    assert told.pop("created_at") > 0
    assert told == {
        "labels_id": "judged", "golden": True,
        "labels": 2, "queries": 2, "relevant_queries": 1, "items": 2, "highest_grade": 3.0,
    }  # fmt: skip
    page = api.get("/labels", params={"limit": 1}).json()
    assert ([one["labels_id"] for one in page["sets"]], page["last_id"]) == (["judged"], "judged")
    page = api.get("/labels", params={"after_id": "judged"}).json()
    assert [(one["labels_id"], one["golden"]) for one in page["sets"]] == [("other", False)]
    lines = api.get("/labels/judged/export").text.splitlines()
    assert put(api, "copy", *map(json.loads, lines))["created"] == 2
    assert api.delete("/labels/judged").status_code == 204
    for gone in (api.get("/labels/judged"), api.get("/labels/judged/export")):
        assert gone.status_code == 404
        assert "judged" in gone.json()["detail"]


def test_who_may_change_what_is_golden(api: TestClient, store: Store) -> None:
    """A key that may tune marks a set, clears the mark and deletes what has it; one that brings
    feedback alone adds labels, and makes and deletes sets without the mark."""
    headers = []
    for scopes in ([Scope.INGEST], [Scope.INGEST, Scope.TUNE]):
        key, text = make_key("test", scopes, "default", START)
        store.keys.add(key)
        headers.append({"X-API-Key": text})
    ingest, tune = headers

    def ask(method: str, headers: dict[str, str], **more: Any) -> int:
        body = {"labels": [RED], **more} if method == "PUT" else None
        response = api.request(method, "/labels/must", headers=headers, json=body)
        if response.status_code == 403:
            assert "'must'" in response.json()["detail"]
            assert "scope tune" in response.json()["detail"]
        return response.status_code

    assert ask("PUT", ingest, golden=True) == 403
    assert not store.labels.sets()
    assert ask("PUT", tune, golden=True) == 200
    assert [ask("PUT", ingest, golden=golden) for golden in (False, True, None)] == [403, 403, 200]
    assert ask("DELETE", ingest) == 403
    assert store.labels.get("must").is_golden
    assert ask("PUT", tune, golden=False) == 200
    assert ask("DELETE", ingest) == 204
    assert ask("PUT", tune, golden=True) == 200
    assert ask("DELETE", tune) == 204


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({**RED, "grade": -1}, ["'red shoes'", "'shoe-7'", "grade"]),
        ({**RED, "grade": "high"}, ["'red shoes'", "'shoe-7'", "grade"]),
        ({"query": "q", "object_id": "a"}, ["'q'", "'a'", "grade"]),
        ({**RED, "query": " "}, ["'shoe-7'", "no words"]),
        ({**RED, "query": "x" * 5000}, ["'shoe-7'", "ES_MAX_QUERY_CHARS"]),
        ({**RED, "object_id": ""}, ["'red shoes'", "object_id"]),
        ({**RED, "label": 1}, ["'shoe-7'", "label"]),
        ("x", ["no JSON object"]),
    ],
)
def test_one_wrong_label_keeps_all_out(api: TestClient, wrong: Any, words: list[str]) -> None:
    """It is told by its number, its query and its item, and what is wrong with it."""
    response = api.put("/labels/judged", json={"labels": [RED, wrong]})
    assert response.status_code == 422
    detail = response.json()["detail"]
    assert all(word in detail for word in ["label 2", *words]), detail
    assert api.get("/labels").json()["sets"] == []


@pytest.mark.parametrize("grade", ["NaN", "Infinity", "1e999"])
def test_a_grade_is_a_number(api: TestClient, grade: str) -> None:
    """What JSON cannot say, or is beyond all numbers, is refused."""
    body = json.dumps({"labels": [{**RED, "grade": "?"}]}).replace('"?"', grade)
    response = api.put("/labels/x", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert api.get("/labels").json()["sets"] == []


def test_only_the_first_wrong_labels_are_told(api: TestClient) -> None:
    """An answer stays short, and does not tell of those that follow."""
    response = api.put("/labels/x", json={"labels": [{}] * 1000})
    assert response.status_code == 422
    assert "label 5" in response.json()["detail"]
    assert len(response.json()["detail"]) < 2000


def test_a_set_needs_a_name_that_can_be(api: TestClient) -> None:
    """What could not stand in an address or a name of a file is refused."""
    assert api.put("/labels/a%20b", json={"labels": [RED]}).status_code == 422
    assert api.put("/labels/a%0a", json={"labels": [RED]}).status_code == 422
