"""Erasing a person over HTTP."""

from fastapi.testclient import TestClient

from tests.api.samples import METHOD, session_json


def test_a_person_is_erased(api: TestClient) -> None:
    """Whatever is in the id; what a task learns from stays until it has ended, and reports, exports
    and pages go on without what is gone."""
    for n in range(4):
        user_id = "a/b c" if n != 2 else "another"
        api.post("/clickstream/session", json=session_json(f"s-{n}", user_id=user_id))
    batch = api.post("/clickstream/internal/batch/release", json={"release_id": "r"}).json()
    batch_id = batch["batch_id"]
    task = {"fine_tuning_method": METHOD, "batch_id": batch_id}
    task_id = api.post("/fine-tuning/task", json=task).json()["id"]
    api.post("/clickstream/session", json=session_json("s-9", user_id="a/b c"))

    answer = api.delete("/users", params={"user_id": "a/b c"})
    assert answer.status_code == 200
    assert answer.json() == {"sessions": 1, "kept_sessions": 3, "held_by": [task_id]}
    api.put(f"/fine-tuning/task/{task_id}/cancel")
    answer = api.delete("/users", params={"user_id": "a/b c"})
    assert answer.json() == {"sessions": 3, "kept_sessions": 0, "held_by": []}

    assert api.get("/clickstream/session", params={"session_id": "s-0"}).status_code == 404
    page = api.get("/clickstream/internal/batch/sessions", params={"batch_id": batch_id}).json()
    assert [one["session_number"] for one in page["sessions"]] == [3]
    assert api.get(f"/clickstream/batch/{batch_id}/report").json()["sessions"] == 1
    assert len(api.get(f"/clickstream/batch/{batch_id}/export").text.splitlines()) == 1
    (listed,) = api.get("/clickstream/batches").json()
    assert (listed["batch_id"], listed["session_count"]) == (batch_id, 1)


def test_no_one_is_nobody(api: TestClient) -> None:
    """Without an id nothing is erased."""
    api.post("/clickstream/session", json=session_json("s-1"))
    for query in ("", "?user_id="):
        assert api.delete(f"/users{query}").status_code == 422
    assert api.get("/clickstream/session", params={"session_id": "s-1"}).status_code == 200
