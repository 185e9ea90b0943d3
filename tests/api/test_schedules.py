import hashlib
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.labels import Label
from embedding_studio.schedules import Schedule
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from tests.api.samples import METHOD, START, Clock, record_worker, session_json

SCHEDULE = "/fine-tuning/schedule"
TASK = "/fine-tuning/task"


def create(api: TestClient, **body: Any) -> Any:
    response = api.post(SCHEDULE, json={"fine_tuning_method": METHOD, **body})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_schedule_from_post_to_delete(api: TestClient) -> None:
    """It is created, listed, read, paused, resumed at its next time, and deleted."""
    made = create(api, cron="30 3 * * 1", budget={"max_trials": 2}, event_weights={"buy": 5})
    assert (made["min_new_sessions"], made["event_weights"]) == (66, {"buy": 5.0})
    assert made["next_at"] == "2026-02-02T03:30:00Z"
    assert (made["is_paused"], made["last_task_id"], made["budget"]["max_trials"]) == (
        False,
        None,
        2,
    )
    assert api.get(SCHEDULE).json() == [made]
    url = f"{SCHEDULE}/{made['id']}"
    assert api.get(url).json() == made
    for _ in range(2):
        assert api.put(f"{url}/pause").json() == {**made, "is_paused": True}
    for _ in range(2):
        assert api.put(f"{url}/resume").json() == made
    assert api.delete(url).status_code == 204
    for gone in (api.get(url), api.delete(url), api.put(f"{url}/pause")):
        assert gone.status_code == 404
        assert made["id"] in gone.json()["detail"]


def test_a_schedule_may_name_a_time_range(api: TestClient) -> None:
    """As long as it stays one: `last`, or `since`, but no end that would pass."""
    made = create(api, interval_seconds=60, last="30d")
    assert (made["last"], "since" in made) == ("30d", False)
    assert create(api, interval_seconds=60, since=0)["since"] == "1970-01-01T00:00:00Z"
    for wrong in ({"until": 9}, {"last": "soon"}, {"last": "1d", "since": 0}):
        body = {"fine_tuning_method": METHOD, "interval_seconds": 60, **wrong}
        assert api.post(SCHEDULE, json=body).status_code == 422


def test_a_schedule_may_name_labels(api: TestClient, store: Store) -> None:
    """Those to learn from beside a time range, those that judge in any case."""
    store.labels.put("a", [Label("q", "i", 1)], START)
    for fields in ({"judge_labels_id": "a"}, {"labels_id": "a", "last": "30d"}):
        made = create(api, interval_seconds=60, **fields)
        assert {name: made[name] for name in fields} == fields
    for status, wrong in ((422, {"labels_id": "a"}), (404, {"judge_labels_id": "b"})):
        body = {"fine_tuning_method": METHOD, "interval_seconds": 60, **wrong}
        assert api.post(SCHEDULE, json=body).status_code == status


def test_times_that_passed_in_a_pause_are_not_made_up_for(api: TestClient, clock: Clock) -> None:
    """A resumed schedule looks at its next time from now on."""
    made = create(api, interval_seconds=3600)
    assert made["next_at"] == "2026-01-31T13:00:00Z"
    api.put(f"{SCHEDULE}/{made['id']}/pause")
    clock.now = clock.now.replace(hour=15, minute=10)
    assert api.put(f"{SCHEDULE}/{made['id']}/resume").json()["next_at"] == "2026-01-31T16:00:00Z"


def test_one_key_is_one_schedule(api: TestClient, clock: Clock) -> None:
    """The same body with the same key gives the schedule that is there, another body 409."""
    body = {"cron": "0 3 * * *", "idempotency_key": "nightly"}
    made = create(api, **body)
    clock.now = clock.now.replace(day=30)
    assert create(api, **body) == made
    refused = api.post(SCHEDULE, json={"fine_tuning_method": METHOD, **body, "cron": "0 4 * * *"})
    assert refused.status_code == 409
    assert "cron" in refused.json()["detail"]
    assert create(api, cron="0 3 * * *")["id"] != made["id"]


def test_a_uuid_is_one_schedule_however_it_is_spelt(api: TestClient, store: Store) -> None:
    """In hex or capitals it is one key, also of a schedule that an earlier version made."""
    former = hashlib.sha256(b"default:0F8FAD5BD9CB469FA16570867728950E").hexdigest()[:24]
    body: dict[str, Any] = {"cron": "0 3 * * *", "min_new_sessions": 1}
    store.schedules.add(Schedule(former, "default", METHOD, START, START, **body))
    for key in ("0f8fad5b-d9cb-469f-a165-70867728950e", "0F8FAD5BD9CB469FA16570867728950E"):
        assert create(api, **body, idempotency_key=key)["id"] == former
    keys = ("1F8FAD5BD9CB469FA16570867728950E", "1f8fad5b-d9cb-469f-a165-70867728950e")
    assert len({create(api, **body, idempotency_key=key)["id"] for key in keys}) == 1


@pytest.mark.parametrize(
    "body",
    [
        {}, {"cron": "soon"}, {"cron": "* * * * *", "interval_seconds": 60},
        {"interval_seconds": 1}, {"cron": "0 3 * * *", "min_new_sessions": 0},
        {"cron": "0 3 * * *", "fine_tuning_method": "Unknown"},
        {"cron": "0 3 * * *", "budget": {"max_trials": 10**6}},
        {"cron": "0 3 * * *", "webhook_url": "https://example.com/hook"},
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_work_is_422(
    api: TestClient, store: Store, body: dict[str, Any]
) -> None:
    """No timing or two, one that is none or too often, an unknown method, too many trials, and a
    webhook where nothing can be signed: nothing is kept."""
    record_worker(store)
    assert api.post(SCHEDULE, json={"fine_tuning_method": METHOD, **body}).status_code == 422
    assert api.get(SCHEDULE).json() == []


def test_a_project_has_so_many_schedules(store: Store, settings: Settings, clock: Clock) -> None:
    """One more is 409 with the setting's name; those that are there are given again, and one that
    is deleted makes room."""
    app = create_app(store, settings.replaced(max_schedules=2), clock)
    store.schedules.add(Schedule("s", "acme", METHOD, START, START, cron="0 3 * * *"))
    api = TestClient(app, base_url="http://localhost/api/v1")
    bodies = [{"cron": "0 3 * * *", "idempotency_key": str(number)} for number in range(3)]
    first, second = (create(api, **body) for body in bodies[:2])
    refused = api.post(SCHEDULE, json={"fine_tuning_method": METHOD, **bodies[2]})
    assert refused.status_code == 409
    assert "ES_MAX_SCHEDULES" in refused.json()["detail"]
    assert create(api, **bodies[1]) == second
    api.delete(f"{SCHEDULE}/{first['id']}")
    create(api, **bodies[2])


def test_a_task_names_its_webhook(signing: TestClient, store: Store) -> None:
    """It is kept and shown, with how telling it goes once there is something to tell."""
    signing.post("/clickstream/session", json=session_json())
    body = {"fine_tuning_method": METHOD, "webhook_url": "https://example.com/hook"}
    task = signing.post(TASK, json=body).json()
    assert task["webhook_url"] == "https://example.com/hook"
    assert "delivery" not in task
    signing.put(f"{TASK}/{task['id']}/cancel")
    claimed = store.deliveries.claim(store.tasks.get(task["id"]).updated_at, 30)
    assert claimed is not None
    shown = signing.get(f"{TASK}/{task['id']}").json()
    assert shown["delivery"]["attempts"] == 1


@pytest.mark.parametrize(
    "url",
    ["ftp://example.com", "example.com/hook", "https://", "http://user@example.com/",
     "http://127.0.0.1/", "http://169.254.169.254/latest", "http://[::1]:99/", "http://a:b/",
     "http://a..b/", "http://.a/", f"http://{'a' * 64}.example/", f"http://{'a.' * 130}b/",
     "http://a b/", "http://a%2eb/", "http://*/", "http://xn--a/", "http://☃.☃☃.\u200d/",
     "http://example.com:0/", "http://example.com:65536/", "http://127.1/", "http://0x7f.0.0.1/",
     "http://2130706433/", "http://[::1", "http:///hook", "http://a\\@b/"],
)  # fmt: skip
def test_a_webhook_that_cannot_be_told_is_422(signing: TestClient, store: Store, url: str) -> None:
    """Another protocol, no host or none that can be, a password in it, no port, and addresses of
    private networks: of a task and of a schedule."""
    signing.post("/clickstream/session", json=session_json())
    body = {"fine_tuning_method": METHOD, "webhook_url": url}
    for response in (
        signing.post(TASK, json=body),
        signing.post(SCHEDULE, json={**body, "interval_seconds": 60}),
    ):
        assert response.status_code == 422
        assert "webhook_url" in response.json()["detail"]
    assert (store.tasks.page(), store.schedules.all()) == ([], [])


@pytest.mark.parametrize(
    "url",
    ["https://hooks.example.com:8443/a b?c=d#e", "http://under_score.example./", "http://shop/",
     "https://bücher.example/", "http://93.184.215.14/", "http://[2606:2800:21f:cb07::1]:80/"],
)  # fmt: skip
def test_what_may_be_an_address_is_taken(signing: TestClient, url: str) -> None:
    """Names of other scripts, of one label, with a final dot, and public addresses."""
    signing.post("/clickstream/session", json=session_json())
    body = {"fine_tuning_method": METHOD, "webhook_url": url}
    assert signing.post(TASK, json=body).json()["webhook_url"] == url
