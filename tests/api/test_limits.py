"""What one request, one project and one caller may ask for at most."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.errors import ConfigurationError
from embedding_studio.keys import Scope, make_key
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.store.clickstream import Clickstream
from embedding_studio.tasks import Claim
from tests.api.samples import METHOD, START, Clock, claim, event_json, record_worker, session_json

MB = 1024 * 1024
RESULTS = [{"object_id": f"item-{i}"} for i in range(4)]
EVENTS = [{"event_id": f"e-{i}", "object_id": "item-1"} for i in range(3)]


def open_api(store: Store, settings: Settings, **limits: Any) -> TestClient:
    app = create_app(store, settings.replaced(**limits), Clock())
    return TestClient(app, base_url="http://localhost/api/v1")


def add_key(store: Store, project: str = "default") -> str:
    key, text = make_key("test", [Scope.ADMIN], project, START)
    store.keys.add(key)
    return text


def assert_names(response: Any, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    for word in words:
        assert word in response.json()["detail"]


def in_chunks(size_bytes: int) -> Iterator[bytes]:
    for _ in range(size_bytes // 65536):
        yield b"x" * 65536


def test_a_body_that_says_it_is_too_large_is_not_read(store: Store, settings: Settings) -> None:
    """A declared length above the limit is answered by 413, which names the limit, unread."""
    with open_api(store, settings, max_body_mb=1) as api:
        response = api.post("/clickstream/session", content=b"x" * (MB + 1))
        assert_names(response, 413, "1 MB", "ES_MAX_BODY_MB")
        assert api.post("/clickstream/session", content=b"x" * MB).status_code == 422


def test_a_body_without_a_length_is_read_up_to_the_limit(store: Store, settings: Settings) -> None:
    """A body sent in chunks is cut off by 413 once it is too large, whatever it declares."""
    with open_api(store, settings, max_body_mb=1) as api:
        response = api.post("/clickstream/session", content=in_chunks(4 * MB))
        assert_names(response, 413, "1 MB", "ES_MAX_BODY_MB")
        assert api.post("/clickstream/session", content=in_chunks(MB)).status_code == 422


@pytest.mark.parametrize(
    ("setting", "most", "fits", "too_much", "words"),
    [
        ("max_results_per_session", 3, RESULTS[:3], RESULTS, "search_results: has 4 results"),
        ("max_query_chars", 5, "query", "query!", "search_query: has 6 characters"),
        ("max_id_chars", 6, "user-1", "user-10", "user_id: has 7 characters"),
        ("max_meta_bytes", 25, {"a": "ж" * 8}, {"a": "ж" * 9}, "search_meta: has 27 bytes"),
        ("max_meta_depth", 3, {"a": [[1]]}, {"a": [[[1]]]}, "search_meta: is nested"),
        ("max_events_per_session", 2, EVENTS[:2], EVENTS, "events: has 3 events"),
    ],
)
def test_bounds_of_a_session(
    store: Store, settings: Settings, setting: str, most: int, fits: Any, too_much: Any, words: str
) -> None:
    """What is one too large is 422, or the item's own answer in bulk, with field, limit and
    setting; the limit itself is taken, and read back."""
    field = words.split(":")[0]
    with open_api(store, settings, **{setting: most}) as api:
        large, small = session_json("bad", **{field: too_much}), session_json("ok", **{field: fits})
        refused = api.post("/clickstream/session", json=large)
        assert refused.status_code == 422
        (problem,) = refused.json()["detail"]
        outcomes = api.post("/clickstream/sessions", json={"sessions": [large, small]}).json()
        bad, good = outcomes["sessions"]
        assert (bad["session_id"], bad["status"], good["status"]) == ("bad", "invalid", "created")
        for message in (f"{problem['loc'][1]}: {problem['msg']}", bad["error"]):
            assert words in message
            assert f" {most} " in message
            assert f"(ES_{setting.upper()})" in message
        read = api.get("/clickstream/session?session_id=ok").json()[field]
        assert len(read) == len(fits)


def test_bounds_of_ids_and_events(store: Store, settings: Settings) -> None:
    """Every id is bounded, and so are the events that are posted on their own."""
    with open_api(store, settings, max_id_chars=300, max_events_per_session=2) as api:
        long, too_long = "x" * 300, "x" * 301
        assert api.post("/clickstream/session", json=session_json(long)).is_success
        assert api.get(f"/clickstream/session?session_id={long}").is_success
        for body in (
            {"session_id": too_long, "events": []},
            {"session_id": long, "events": [{"event_id": too_long, "object_id": "a"}]},
            {"session_id": long, "events": [{"event_id": "e", "object_id": too_long}]},
            {"session_id": long, "events": EVENTS},
        ):
            refused = api.post("/clickstream/session/events", json=body)
            assert refused.status_code == 422
            assert "(ES_MAX_" in refused.json()["detail"][0]["msg"]


def test_bounds_of_a_tasks_metadata(store: Store, settings: Settings) -> None:
    """A task's metadata is bounded by the same settings."""
    with open_api(store, settings, max_meta_depth=1) as api:
        body = {"fine_tuning_method": METHOD, "metadata": {"a": [1]}}
        refused = api.post("/fine-tuning/task", json=body)
        assert refused.status_code == 422
        assert "(ES_MAX_META_DEPTH)" in refused.json()["detail"][0]["msg"]


def test_trials_per_task(store: Store, settings: Settings) -> None:
    """A task that asks for one trial too many is 422; nothing is added."""
    with open_api(store, settings, max_trials_per_task=5) as api:
        api.post("/clickstream/session", json=session_json())
        body = {"fine_tuning_method": METHOD, "budget": {"max_trials": 6}}
        response = api.post("/fine-tuning/task", json=body)
        assert_names(response, 422, "6", "at most 5", "ES_MAX_TRIALS_PER_TASK")
        assert store.tasks.page() == []
        assert api.post("/fine-tuning/task", json={**body, "budget": {"max_trials": 5}}).is_success


def test_pending_tasks_per_project(store: Store, settings: Settings) -> None:
    """One waiting task too many is 409; its own repeat is not, nor another project's task, nor one
    more once a worker has taken one; a restart counts too."""
    record_worker(store)
    texts = [add_key(store, project) for project in ("default", "other")]
    with open_api(store, settings, max_pending_tasks=2) as api:
        api.headers["X-API-Key"] = texts[0]
        api.post("/clickstream/session", json=session_json())

        def post(key: str) -> Any:
            body = {"fine_tuning_method": METHOD, "idempotency_key": key}
            return api.post("/fine-tuning/task", json=body)

        first = post("1").json()
        assert post("2").is_success
        assert_names(post("3"), 409, "2 tasks are waiting", "ES_MAX_PENDING_TASKS")
        assert post("2").is_success
        claim(store)
        assert post("3").is_success
        api.put(f"/fine-tuning/task/{first['id']}/cancel")
        store.tasks.release_canceled(Claim(first["id"], 1, "worker-1"))
        restart = f"/fine-tuning/task/{first['id']}/restart"
        assert_names(api.put(restart), 409, "ES_MAX_PENDING_TASKS")
        waiting = post("2").json()["id"]
        assert api.put(f"/fine-tuning/task/{waiting}/restart").is_success
        for text in texts:
            api.headers["X-API-Key"] = text
            assert api.post("/clickstream/session", json=session_json()).is_success
            assert post("5").status_code == (409 if text == texts[0] else 200)


def test_the_rate_of_each_key(store: Store, settings: Settings) -> None:
    """The request above the rate is 429 with limit, setting and Retry-After; other keys are not
    held up. What anyone may ask and what has no valid key is counted by the address."""
    texts = [add_key(store), add_key(store)]
    with open_api(store, settings, rate_limit="3/hour") as api:

        def ask(text: str, path: str = "/fine-tuning/task") -> Any:
            return api.get(path, headers={"X-API-Key": text})

        assert [ask(texts[0]).status_code for _ in range(4)] == [200, 200, 200, 429]
        response = ask(texts[0])
        assert_names(response, 429, "3/hour", "ES_RATE_LIMIT")
        assert 0 < int(response.headers["Retry-After"]) <= 2 * 3600
        assert ask(texts[1]).status_code == 200
        assert [ask(texts[0], "/ping").status_code for _ in range(4)] == [200, 200, 200, 429]
        assert [ask("es_wrong").status_code for _ in range(4)] == [401, 401, 401, 429]
        assert_names(ask("es_wrong"), 429, "without a valid key", "ES_RATE_LIMIT")
        assert ask(texts[1]).status_code == 200


def test_calls_of_one_key_that_take_long_hold_up_no_other(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key whose calls would take all threads waits for its own: another one's is answered
    meanwhile, and in the end all are."""
    slow, other = ({"X-API-Key": add_key(store)} for _ in range(2))
    may_go_on, at_work = threading.Event(), threading.Semaphore(0)

    def count(*_: object) -> int:
        at_work.release()
        may_go_on.wait(60)
        return 0

    monkeypatch.setattr(Clickstream, "count_clicked", count)
    app = create_app(store, settings, Clock())

    async def ask() -> tuple[int, set[int]]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost/api/v1"
        ) as api:
            posted = await api.post("/clickstream/session", json=session_json(), headers=slow)
            assert posted.status_code == 200
            path = "/clickstream/internal/batch"
            calls = [asyncio.create_task(api.get(path, headers=slow)) for _ in range(60)]
            await asyncio.to_thread(at_work.acquire)
            try:
                answer = await asyncio.wait_for(api.get("/fine-tuning/task", headers=other), 30)
            finally:
                may_go_on.set()
            return answer.status_code, {one.status_code for one in await asyncio.gather(*calls)}

    assert asyncio.run(ask()) == (200, {200})


@pytest.mark.parametrize(
    "path", ["/ping", "/health", "http://localhost/docs", "http://localhost/no"]
)
def test_the_rate_of_what_anyone_may_ask(store: Store, settings: Settings, path: str) -> None:
    """It is counted by the address, a valid key or not."""
    with open_api(store, settings, rate_limit="3/hour") as api:
        assert [api.get(path).status_code == 429 for _ in range(4)] == [False] * 3 + [True]


def test_the_rate_of_a_network(store: Store, settings: Settings) -> None:
    """Who has a network of IPv6 addresses gains nothing by using all of them; IPv4 addresses that
    are written as such are counted each."""
    app = create_app(store, settings.replaced(rate_limit="3/hour"), Clock())

    def ping_from(address: str) -> int:
        client = TestClient(app, client=(address, 1))
        return client.get("http://localhost/api/v1/ping").status_code

    assert [ping_from(f"2001:db8:0:1::{last}%eth0") for last in range(4)] == [200, 200, 200, 429]
    assert ping_from("2001:db8:0:2::1") == 200
    assert {ping_from(f"::ffff:192.0.2.{last}") for last in range(4)} == {200}


def test_the_rate_of_an_address(store: Store, settings: Settings) -> None:
    """Without keys, requests are counted by the address they come from."""
    with open_api(store, settings, rate_limit="2/minute") as api:
        answers = [api.get("/fine-tuning/task").status_code for _ in range(3)]
    assert answers == [200, 200, 429]


def test_no_rate_limit(store: Store, settings: Settings) -> None:
    """An empty setting limits nothing."""
    with open_api(store, settings, rate_limit="") as api:
        assert {api.get("/fine-tuning/task").status_code for _ in range(50)} == {200}


@pytest.mark.parametrize("wrong", ["many", "10", "10/fortnight", "-1/minute"])
def test_a_rate_that_cannot_be_read(store: Store, settings: Settings, wrong: str) -> None:
    """It is a ConfigurationError that names the setting, when the API starts."""
    with pytest.raises(ConfigurationError, match="ES_RATE_LIMIT"):
        open_api(store, settings, rate_limit=wrong)


def test_a_full_project_is_told_before_it_is(store: Store, settings: Settings) -> None:
    """From four fifths on health names the project; above the limit posts are 429 and name the
    setting, those of known sessions are not; a batch tells its project's part."""
    full = "holds 100% of what it may (ES_MAX_PROJECT_SESSIONS)"
    with open_api(store, settings, max_project_sessions=10) as api:
        for number in range(10):
            assert api.post("/clickstream/session", json=session_json(f"s-{number}")).is_success
        assert api.post("/clickstream/session", json=session_json("s-1")).is_success
        more = {"sessions": [session_json("s-1"), session_json("s-10")]}
        for path, body in (("session", session_json("s-10")), ("sessions", more)):
            answer = api.post(f"/clickstream/{path}", json=body)
            assert_names(answer, 429, "'default' holds 10 sessions", "ES_MAX_PROJECT_SESSIONS")
        assert api.get("/clickstream/internal/batch").json()["project_sessions"] == 10
        assert f"project 'default' {full}" in api.get("/health").json()["store"]["detail"]
    with open_api(store, settings, max_project_sessions=13) as api:
        assert "holds" not in api.get("/health").json()["store"]["detail"]


def test_events_of_a_full_project_are_refused(store: Store, settings: Settings) -> None:
    """Bytes count too, of sessions and of their events."""
    with open_api(store, settings, max_project_mb=1) as api:
        large = {**session_json("s-1"), "search_meta": {"x": "y" * 30_000}}
        statuses = [
            api.post("/clickstream/session", json={**large, "session_id": f"s-{n}"}).status_code
            for n in range(40)
        ]
        assert (statuses[0], statuses[-1]) == (200, 429)
        full = statuses.index(429)
        assert set(statuses[full:]) == {429}
        usage = store.clickstream.usage()["default"]
        assert usage.sessions == full
        assert 0.95 * MB < usage.bytes <= MB
        event = {**event_json(), "meta": {"x": "y" * 32_000}}
        body = {"session_id": "s-0", "events": [event]}
        answer = api.post("/clickstream/session/events", json=body)
        assert_names(answer, 429, "'default'", "bytes", "ES_MAX_PROJECT_MB", "ES_KEEP_BATCHES")
