"""API keys and projects at the HTTP edge: every route, with keys of two projects."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.api.keys import KEY_AGE
from embedding_studio.api.server import check_may_serve
from embedding_studio.clickstream import SearchResult, Session
from embedding_studio.errors import ConfigurationError, StoreUnavailable
from embedding_studio.items import Item
from embedding_studio.keys import ApiKey, Scope, make_key
from embedding_studio.labels import Label
from embedding_studio.models import ChampionMove, ModelVersion, MoveKind, Training, Wish
from embedding_studio.schedules import Schedule
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.store.tasks import Tasks
from embedding_studio.tasks import (
    Claim,
    Comparison,
    FineTuningTask,
    ModelFacts,
    QueryChange,
    StoredModel,
    TaskRequest,
    TaskStatus,
)
from embedding_studio.wire.imports import ImportReport
from tests.api.samples import (
    METHOD,
    START,
    Clock,
    claim,
    event_json,
    finish_with_model,
    record_worker,
    session_json,
    write_model,
)
from tests.api.test_models import CHANGE, VERDICT, register

SECRET = "red shoes"


@dataclass
class Ids:
    """Of what the project `a` holds."""

    batch_id: str
    task_id: str
    schedule_id: str


LABEL = {"query": "blue hats", "object_id": "hat-1", "grade": 2}
Call = Callable[[TestClient, Ids], Any]


MODEL = f"/models/{METHOD}"


@dataclass
class Route:
    """call: with ids of project a. scope: what it takes; None where anyone may ask. status: what
    the project b hears."""

    call: Call
    scope: Scope | None
    status: int


def session_of_b() -> dict[str, Any]:
    return session_json("s", search_query="blue hats")


ROUTES: dict[str, Route] = {
    "POST /clickstream/session": Route(
        lambda api, ids: api.post("/clickstream/session", json=session_of_b()), Scope.INGEST, 200
    ),
    "POST /clickstream/sessions": Route(
        lambda api, ids: api.post("/clickstream/sessions", json={"sessions": [session_of_b()]}),
        Scope.INGEST,
        200,
    ),
    "GET /clickstream/session": Route(
        lambda api, ids: api.get("/clickstream/session", params={"session_id": "s"}),
        Scope.READ,
        404,
    ),
    "POST /clickstream/session/events": Route(
        lambda api, ids: api.post(
            "/clickstream/session/events", json={"session_id": "s", "events": [event_json("b")]}
        ),
        Scope.INGEST,
        200,  # it waits for b's own session of that id
    ),
    "POST /clickstream/session/irrelevant": Route(
        lambda api, ids: api.post("/clickstream/session/irrelevant", json={"session_id": "s"}),
        Scope.INGEST,
        200,  # as above
    ),
    "PUT /items": Route(
        lambda api, ids: api.put("/items", json={"items": [{"object_id": "i", "text": "b's"}]}),
        Scope.INGEST,
        200,
    ),
    "GET /items": Route(
        lambda api, ids: api.get("/items", params={"object_id": "of-a"}), Scope.READ, 404
    ),
    "POST /imports": Route(
        lambda api, ids: api.post("/imports", params={"import_id": "i"}, json=session_of_b()),
        Scope.INGEST,
        200,
    ),
    "GET /imports": Route(
        lambda api, ids: api.get("/imports", params={"import_id": "of-a"}), Scope.INGEST, 404
    ),
    "DELETE /items": Route(
        lambda api, ids: api.delete("/items", params={"object_id": "of-a"}), Scope.INGEST, 200
    ),
    "GET /labels": Route(lambda api, ids: api.get("/labels"), Scope.READ, 200),
    "PUT /labels/{labels_id}": Route(
        lambda api, ids: api.put("/labels/of-a", json={"labels": [LABEL]}), Scope.INGEST, 200
    ),
    "GET /labels/{labels_id}": Route(lambda api, ids: api.get("/labels/of-a"), Scope.READ, 404),
    "GET /labels/{labels_id}/export": Route(
        lambda api, ids: api.get("/labels/of-a/export"), Scope.READ, 404
    ),
    "DELETE /labels/{labels_id}": Route(
        lambda api, ids: api.delete("/labels/of-a"), Scope.INGEST, 404
    ),
    "DELETE /users": Route(
        lambda api, ids: api.delete("/users", params={"user_id": "u"}), Scope.ADMIN, 200
    ),
    "POST /clickstream/internal/batch/release": Route(
        lambda api, ids: api.post("/clickstream/internal/batch/release", json={"release_id": "r"}),
        Scope.TUNE,
        404,
    ),
    "GET /clickstream/internal/batch": Route(
        lambda api, ids: api.get("/clickstream/internal/batch", params={"batch_id": ids.batch_id}),
        Scope.READ,
        404,
    ),
    "GET /clickstream/internal/batch/sessions": Route(
        lambda api, ids: api.get(
            "/clickstream/internal/batch/sessions", params={"batch_id": ids.batch_id}
        ),
        Scope.READ,
        404,
    ),
    "GET /clickstream/batches": Route(
        lambda api, ids: api.get("/clickstream/batches"), Scope.READ, 200
    ),
    "GET /clickstream/batch/{batch_id}/report": Route(
        lambda api, ids: api.get(f"/clickstream/batch/{ids.batch_id}/report"), Scope.READ, 404
    ),
    "GET /clickstream/batch/{batch_id}/export": Route(
        lambda api, ids: api.get(f"/clickstream/batch/{ids.batch_id}/export"), Scope.READ, 404
    ),
    "POST /fine-tuning/task": Route(
        lambda api, ids: api.post(
            "/fine-tuning/task",
            json={
                "fine_tuning_method": METHOD,
                "batch_id": ids.batch_id,
                "idempotency_key": "key",
            },
        ),
        Scope.TUNE,
        404,
    ),
    "GET /fine-tuning/task": Route(lambda api, ids: api.get("/fine-tuning/task"), Scope.READ, 200),
    "GET /fine-tuning/task/{task_id}": Route(
        lambda api, ids: api.get(f"/fine-tuning/task/{ids.task_id}"), Scope.READ, 404
    ),
    "PUT /fine-tuning/task/{task_id}/restart": Route(
        lambda api, ids: api.put(f"/fine-tuning/task/{ids.task_id}/restart"), Scope.TUNE, 404
    ),
    "PUT /fine-tuning/task/{task_id}/stop": Route(
        lambda api, ids: api.put(f"/fine-tuning/task/{ids.task_id}/stop"), Scope.TUNE, 404
    ),
    "PUT /fine-tuning/task/{task_id}/cancel": Route(
        lambda api, ids: api.put(f"/fine-tuning/task/{ids.task_id}/cancel"), Scope.TUNE, 404
    ),
    "GET /fine-tuning/task/{task_id}/model": Route(
        lambda api, ids: api.get(f"/fine-tuning/task/{ids.task_id}/model"), Scope.READ, 404
    ),
    "GET /fine-tuning/task/{task_id}/study": Route(
        lambda api, ids: api.get(f"/fine-tuning/task/{ids.task_id}/study"), Scope.READ, 404
    ),
    "GET /fine-tuning/task/{task_id}/events": Route(
        lambda api, ids: api.get(f"/fine-tuning/task/{ids.task_id}/events"), Scope.READ, 404
    ),
    "GET /models": Route(lambda api, ids: api.get("/models"), Scope.READ, 200),
    "GET /models/{name}": Route(lambda api, ids: api.get(MODEL), Scope.READ, 404),
    "GET /models/{name}/versions/{version}": Route(
        lambda api, ids: api.get(f"{MODEL}/versions/1"), Scope.READ, 404
    ),
    "GET /models/{name}/versions/{version}/download": Route(
        lambda api, ids: api.get(f"{MODEL}/versions/champion/download"), Scope.READ, 404
    ),
    "POST /models/{name}/promote": Route(
        lambda api, ids: api.post(f"{MODEL}/promote", json={"version": 1}), Scope.TUNE, 404
    ),
    "POST /models/{name}/webhook": Route(
        lambda api, ids: api.post(f"{MODEL}/webhook", json={"url": None}), Scope.TUNE, 404
    ),
    "POST /models/{name}/rollback": Route(
        lambda api, ids: api.post(f"{MODEL}/rollback", json={}), Scope.TUNE, 404
    ),
    "DELETE /models/{name}/versions/{version}": Route(
        lambda api, ids: api.delete(f"{MODEL}/versions/1"), Scope.TUNE, 404
    ),
    "PUT /models/{name}/shares/{project}": Route(
        lambda api, ids: api.put(f"{MODEL}/shares/c"), Scope.TUNE, 404
    ),
    "DELETE /models/{name}/shares/{project}": Route(
        lambda api, ids: api.delete(f"{MODEL}/shares/c"), Scope.TUNE, 404
    ),
    "GET /fine-tuning/methods": Route(
        lambda api, ids: api.get("/fine-tuning/methods"), Scope.READ, 200
    ),
    "POST /fine-tuning/schedule": Route(
        lambda api, ids: api.post(
            "/fine-tuning/schedule",
            json={"fine_tuning_method": METHOD, "cron": "30 3 * * 1", "idempotency_key": "key"},
        ),
        Scope.TUNE,
        200,
    ),
    "GET /fine-tuning/schedule": Route(
        lambda api, ids: api.get("/fine-tuning/schedule"), Scope.READ, 200
    ),
    "GET /fine-tuning/schedule/{schedule_id}": Route(
        lambda api, ids: api.get(f"/fine-tuning/schedule/{ids.schedule_id}"), Scope.READ, 404
    ),
    "PUT /fine-tuning/schedule/{schedule_id}/pause": Route(
        lambda api, ids: api.put(f"/fine-tuning/schedule/{ids.schedule_id}/pause"), Scope.TUNE, 404
    ),
    "PUT /fine-tuning/schedule/{schedule_id}/resume": Route(
        lambda api, ids: api.put(f"/fine-tuning/schedule/{ids.schedule_id}/resume"), Scope.TUNE, 404
    ),
    "DELETE /fine-tuning/schedule/{schedule_id}": Route(
        lambda api, ids: api.delete(f"/fine-tuning/schedule/{ids.schedule_id}"), Scope.TUNE, 404
    ),
    "GET /ping": Route(lambda api, ids: api.get("/ping"), None, 200),
    "GET /health": Route(lambda api, ids: api.get("/health"), None, 503),
}
CLOSED = [name for name, route in ROUTES.items() if route.scope is not None]


@pytest.fixture
def app(store: Store, settings: Settings, clock: Clock) -> FastAPI:
    return create_app(store, settings, clock)


@pytest.fixture
def connect(app: FastAPI) -> Iterator[Callable[..., TestClient]]:
    """Gives a client that sends a key, or none."""
    with TestClient(app) as opened:

        def client(key: str | None = None) -> TestClient:
            headers = {"Authorization": f"Bearer {key}"} if key else None
            return TestClient(app, base_url="http://localhost/api/v1", headers=headers)

        assert opened
        under_way = SimpleNamespace(project="a", import_id="of-a", report=ImportReport(created=7))
        with app.state.imports.with_one(under_way):
            yield client


def add_key(
    store: Store, *scopes: Scope, project: str = "default", **more: Any
) -> tuple[ApiKey, str]:
    key, text = make_key("test", scopes or [Scope.ADMIN], project, START, **more)
    store.keys.add(key)
    return key, text


@pytest.fixture
def ids(store: Store, tmp_path: Path) -> Ids:
    """Project a: a released batch, sessions collecting, a task that was stopped with a model."""
    a = store.in_project("a")
    session = Session("old", SECRET, (SearchResult("shoe-1"),), START)
    a.clickstream.register([session], START)
    batch_id = a.clickstream.release("r", START).batch_id
    a.clickstream.register([replace(session, session_id="s")], START)
    task, _ = a.tasks.add(TaskRequest(METHOD, batch_id, idempotency_key="key"), START)
    finish_with_model(a, str(tmp_path / "model"), write_model(tmp_path / "model"))
    store.tasks.finish(Claim(task.id, 1, "worker-1"), START, TaskStatus.ERROR, SECRET)
    schedule = Schedule(
        "5c", "a", METHOD, START, START, interval_seconds=60.0, metadata={"what": SECRET}
    )
    store.schedules.add(schedule)
    register(a, tmp_path)
    a.items.put([Item("of-a", SECRET)])
    a.labels.put("of-a", [Label(SECRET, "shoe-1", 1.0)], START)
    return Ids(batch_id, task.id, schedule.id)


def everything(store: Store, ids: Ids) -> list[Any]:
    """Return all that project a holds."""
    a = store.in_project("a")
    return [
        a.clickstream.get("s"),
        a.clickstream.read(ids.batch_id, 0, 10),
        a.clickstream.collecting_batch(),
        a.tasks.page(),
        a.tasks.events(ids.task_id),
        a.schedules.all(),
        a.models.find(METHOD),
        a.items.page("", 10),
        [*a.labels.read("of-a")],
    ]


def test_every_route_has_its_case(app: FastAPI) -> None:
    """A route without an entry above, or an entry without a route, fails here."""
    routes = {
        f"{verb.upper()} {path.removeprefix('/api/v1')}"
        for path, verbs in app.openapi()["paths"].items()
        for verb in verbs
    }
    assert routes == set(ROUTES)


@pytest.mark.parametrize("name", ROUTES)
def test_another_projects_ids_are_not_found(
    store: Store, connect: Callable[..., TestClient], ids: Ids, name: str
) -> None:
    """With a key of project b and ids of project a, each route answers as if a did not exist, tells
    nothing of it and changes nothing in it."""
    before = everything(store, ids)
    _, text = add_key(store, project="b")
    record_worker(store)
    response = ROUTES[name].call(connect(text), ids)
    assert response.status_code == ROUTES[name].status, response.text
    assert SECRET not in response.text
    assert everything(store, ids) == before
    if name in ("GET /fine-tuning/task", "GET /fine-tuning/schedule"):
        assert response.json() == []


@pytest.mark.parametrize("name", ROUTES)
def test_the_owner_of_the_ids_is_served(
    store: Store, connect: Callable[..., TestClient], ids: Ids, name: str
) -> None:
    """With a key of project a, no route answers 401, 403 or 404: what is hidden from b is there."""
    _, text = add_key(store, project="a")
    record_worker(store)
    response = ROUTES[name].call(connect(text), ids)
    assert response.status_code not in (401, 403, 404), response.text


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("scope", Scope)
def test_a_scope_opens_its_routes_and_no_others(
    store: Store, connect: Callable[..., TestClient], ids: Ids, name: str, scope: Scope
) -> None:
    """A key of one scope is refused by 403, which names the missing scope, wherever another one is
    needed; admin is refused nowhere."""
    _, text = add_key(store, scope, project="a")
    record_worker(store)
    response = ROUTES[name].call(connect(text), ids)
    needed = ROUTES[name].scope
    if needed is None or scope in (needed, Scope.ADMIN):
        assert response.status_code not in (401, 403)
    else:
        assert response.status_code == 403
        assert f"scope {needed};" in response.json()["detail"]


REFUSED: dict[str, Callable[[Store, Clock, str], str | None]] = {
    "no key": lambda store, clock, text: None,
    "no key at all": lambda store, clock, text: "hello",
    "unknown id": lambda store, clock, text: f"es_{'0' * 12}_{text.split('_', 2)[2]}",
    "wrong secret": lambda store, clock, text: text[:-1] + ("A" if text[-1] != "A" else "B"),
    "revoked": lambda store, clock, text: revoked(store, text),
    "expired": lambda store, clock, text: expired(store, clock, text),
}


def revoked(store: Store, text: str) -> str:
    store.keys.end(text.split("_")[1], revoked_at=START)
    return text


def expired(store: Store, clock: Clock, text: str) -> str:
    store.keys.end(text.split("_")[1], expires_at=START + timedelta(seconds=1))
    clock.now += timedelta(seconds=1)
    return text


@pytest.mark.parametrize("how", REFUSED)
@pytest.mark.parametrize("name", CLOSED)
def test_no_valid_key_is_401(
    store: Store, connect: Callable[..., TestClient], clock: Clock, how: str, name: str
) -> None:
    """Without a valid key each closed route gives the same 401, whatever is wrong with the key."""
    _, text = add_key(store)
    response = ROUTES[name].call(connect(REFUSED[how](store, clock, text)), Ids("b", "t", "s"))
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"].startswith("Bearer")
    expected = connect(None).get("/fine-tuning/task")
    assert response.json() == expected.json()
    assert dict(response.headers) == dict(expected.headers)


def test_a_body_is_not_read_before_the_key_is(
    store: Store, connect: Callable[..., TestClient]
) -> None:
    """Who has no key hears 401, not what is wrong with the body; so too at an unknown path."""
    add_key(store)
    broken = connect(None).post("/clickstream/session", content=b"{no json")
    assert broken.status_code == 401
    assert connect(None).get("/unknown").status_code == 401


def test_both_headers_are_read(store: Store, connect: Callable[..., TestClient]) -> None:
    """X-API-Key does what Authorization does; the word Bearer may be written in any case."""
    _, text = add_key(store)
    for headers in ({"X-API-Key": text}, {"Authorization": f"bearer {text}"}):
        assert connect(None).get("/fine-tuning/task", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_the_manual_is_open(store: Store, connect: Callable[..., TestClient], path: str) -> None:
    """It tells nothing of any project."""
    add_key(store)
    assert connect(None).get(f"http://localhost{path}").status_code == 200


def test_health_tells_names_to_admins_only(
    store: Store, connect: Callable[..., TestClient], tmp_path: Path
) -> None:
    """Without a key with the scope admin, health says what is there, and no names or places: they
    are of all projects, and of the machines."""
    record_worker(store)
    admin = add_key(store, Scope.ADMIN)[1]
    others = add_key(store, *(scope for scope in Scope if scope is not Scope.ADMIN))[1]
    for key in (None, others, "es_wrong"):
        health = connect(key).get("/health")
        assert health.json()["worker"]["status"] == "ok"
        assert health.json()["mlflow"]["status"] == "unavailable"
        for word in (METHOD, "worker-1", str(tmp_path)):
            assert word not in health.text
    health = connect(admin).get("/health")
    assert health.json()["worker"]["methods"] == [METHOD]
    assert str(tmp_path) in health.text


def test_without_keys_anyone_may_do_everything(connect: Callable[..., TestClient]) -> None:
    """On loopback, an installation without keys is open, to requests with some key too."""
    assert connect(None).get("/fine-tuning/task").status_code == 200
    assert connect("es_some_key").post("/clickstream/session", json=session_json()).is_success


def test_the_first_key_closes_the_api_within_five_seconds(
    store: Store, connect: Callable[..., TestClient], clock: Clock
) -> None:
    """Once there is a key, requests need one; revoking it does not open the API again."""
    assert connect(None).get("/fine-tuning/task").status_code == 200
    key, _ = add_key(store)
    clock.now += timedelta(seconds=5)
    assert connect(None).get("/fine-tuning/task").status_code == 401
    store.keys.end(key.id, revoked_at=START)
    clock.now += timedelta(minutes=1)
    assert connect(None).get("/fine-tuning/task").status_code == 401


def test_a_revocation_takes_effect_within_five_seconds(
    store: Store, connect: Callable[..., TestClient], clock: Clock
) -> None:
    """A key that is in use is refused five seconds after it was revoked, and others are not."""
    key, text = add_key(store)
    _, other = add_key(store)
    assert connect(text).get("/fine-tuning/task").status_code == 200
    store.keys.end(key.id, revoked_at=START)
    clock.now += timedelta(seconds=5)
    assert connect(text).get("/fine-tuning/task").status_code == 401
    assert connect(other).get("/fine-tuning/task").status_code == 200


def test_a_clock_that_is_set_back_keeps_no_key_alive(
    store: Store, connect: Callable[..., TestClient], clock: Clock
) -> None:
    """What was looked up in what is now the future is looked up again."""
    key, text = add_key(store)
    assert connect(text).get("/fine-tuning/task").status_code == 200
    store.keys.end(key.id, revoked_at=START)
    clock.now -= timedelta(hours=1)
    assert connect(text).get("/fine-tuning/task").status_code == 401


def test_a_known_key_is_not_asked_for_again(
    store: Store,
    connect: Callable[..., TestClient],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within five seconds a key costs no query, and a silent store is 503, not a refusal, after."""
    _, text = add_key(store)
    api = connect(text)
    assert api.get("/fine-tuning/task").status_code == 200

    def fail(*_: object) -> None:
        raise StoreUnavailable("the database went away")

    monkeypatch.setattr(store.keys, "all", fail)
    assert api.get("/fine-tuning/task").status_code == 200
    _, unknown = make_key("x", [Scope.READ], "default", START)
    clock.now += timedelta(seconds=1)
    assert connect(unknown).get("/fine-tuning/task").status_code == 503
    assert api.get("/fine-tuning/task").status_code == 200
    clock.now += timedelta(seconds=4)
    assert api.get("/fine-tuning/task").status_code == 503


def test_what_is_wrong_with_the_installation_is_for_admins(
    store: Store,
    connect: Callable[..., TestClient],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A 503 names hosts and paths to keys of scope admin; others read what to do, and the log has
    the rest."""

    def fail(*_: object) -> None:
        raise StoreUnavailable("/data/store.db is gone")

    texts = [add_key(store, scope)[1] for scope in (Scope.ADMIN, Scope.READ)]
    monkeypatch.setattr(Tasks, "page", fail)
    told, untold = (connect(text).get("/fine-tuning/task") for text in texts)
    assert told.status_code == untold.status_code == 503
    assert told.json() == {"detail": "/data/store.db is gone"}
    assert "admin" in untold.json()["detail"]
    assert "store.db" not in untold.text
    assert "answered 503: /data/store.db is gone" in caplog.text


def test_guessing_makes_the_store_work_once_a_second(
    store: Store,
    connect: Callable[..., TestClient],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many keys nobody made are tried, the keys are read once a second, and one that was
    made meanwhile counts by then."""
    _, text = add_key(store)
    looks: list[int] = []
    list_keys = store.keys.all

    def look() -> list[ApiKey]:
        looks.append(1)
        return list_keys()

    monkeypatch.setattr(store.keys, "all", look)
    for second in range(1, 4):
        guesses = [make_key("x", [Scope.READ], "default", START)[1] for _ in range(20)]
        for guess in [*guesses, text[:-1] + "?", text[:-1] + ("A" if text[-1] != "A" else "B")]:
            assert connect(guess).get("/fine-tuning/task").status_code == 401
        assert len(looks) == second
        assert connect(text).get("/fine-tuning/task").status_code == 200
        clock.now += timedelta(seconds=1)
    _, new = add_key(store)
    assert connect(new).get("/fine-tuning/task").status_code == 200


def test_a_followed_history_ends_with_the_key(
    store: Store,
    connect: Callable[..., TestClient],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream of events under way ends when its key is revoked."""
    monkeypatch.setattr("embedding_studio.api.events.POLL_SECONDS", 0.01)
    key, text = add_key(store)
    api = connect(text)
    api.post("/clickstream/session", json=session_json())
    record_worker(store)
    task = api.post("/fine-tuning/task", json={"fine_tuning_method": METHOD}).json()
    claim(store)
    asked: list[str] = []

    get = Tasks.get

    def watched_get(tasks: Tasks, task_id: str) -> FineTuningTask:
        asked.append(task_id)
        if len(asked) == 3:
            store.keys.end(key.id, revoked_at=START)
            clock.now += timedelta(seconds=5)
        return get(tasks, task_id)

    monkeypatch.setattr(Tasks, "get", watched_get)
    stream = api.get(
        f"/fine-tuning/task/{task['id']}/events", headers={"Accept": "text/event-stream"}
    )
    assert "event: claimed" in stream.text
    assert store.tasks.get(task["id"]).status is TaskStatus.PROCESSING


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "studio.example.org"])
def test_an_open_api_stays_on_loopback(store: Store, settings: Settings, host: str) -> None:
    """Without keys the API refuses another address and says which command to run; a key, or
    ES_ALLOW_OPEN, allows it."""
    reachable = settings.replaced(api_host=host)
    with pytest.raises(ConfigurationError, match="embedding-studio keys create"):
        check_may_serve(store, reachable)
    check_may_serve(store, reachable.replaced(allow_open=True))
    add_key(store)
    check_may_serve(store, reachable)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_key(store: Store, settings: Settings, host: str) -> None:
    """Nobody else can reach these."""
    check_may_serve(store, settings.replaced(api_host=host))


def test_a_shared_model_tells_nothing_of_its_owners_data(
    store: Store, connect: Callable[..., TestClient], tmp_path: Path
) -> None:
    """The other project reads figures, parameters and files; not a query, nor the name of a task, a
    batch, labels, a key or a third project. It changes nothing, and once the model is taken back it
    is as unknown as one that never was."""
    verdict = replace(
        VERDICT,
        reason="worse on the golden queries of 'secret-labels'",
        gained=(QueryChange("secret-query", 0.1, 0.9),),
        lost=(QueryChange("secret-query", 0.9, 0.1),),
        judge_labels_id="secret-labels",
        others=(Comparison("secret-labels", True, CHANGE),),
    )
    made = Training(
        "secret-parent/3", ("secret-batch",), "secret-labels", "secret-labels", "1.2", {"lr": 0.5}
    )
    files = write_model(tmp_path / "model")
    model = StoredModel(
        "run-1", str(tmp_path / "model"), files, ModelFacts("00", 1, base_model="base")
    )
    version = ModelVersion(1, model, START, "secret-task", verdict, training=made)
    move = ChampionMove(MoveKind.PROMOTED, START, None, 1, "secret-task", "secret-why")
    wish = Wish("secret-task", replace(model, run_id="run-2"), "secret-key", "secret-why", START)
    a, hook = store.in_project("a").models, "https://secret-host/"
    a.update(
        "Shoes", lambda found: replace(found.moved(move, version), wanted=wish, webhook_url=hook)
    )
    owner, other, third = (
        connect(add_key(store, project=project)[1]) for project in ("a", "b", "c")
    )
    shoes = "/models/a:Shoes"
    assert other.get(shoes).status_code == 404
    for project in ("b", "secret-project"):
        shared = owner.put(f"/models/Shoes/shares/{project}")
        assert shared.status_code == 200, shared.text
    assert shared.json()["shared_with"] == ["b", "secret-project"]
    assert [one["kind"] for one in shared.json()["moves"]] == ["shared", "shared", "promoted"]
    assert owner.get(shoes).json() == shared.json()

    told = [other.get(path) for path in ("/models", shoes, f"{shoes}/versions/champion")]
    assert [answer.status_code for answer in told] == [200] * 3
    assert all("secret" not in answer.text for answer in told)
    listed, read, one = (answer.json() for answer in told)
    assert [(found["name"], found["owner"], found["champion"]) for found in listed] == [
        ("a:Shoes", "a", 1)
    ]
    assert read["versions"] == [one]
    assert (one["promotion"]["best"], one["promotion"]["delta_ci95"]) == (0.5, [0.05, 0.15])
    assert (one["parameters"], one["base_model"], one["task_id"]) == ({"lr": 0.5}, "base", None)
    assert other.get(f"{shoes}/versions/1/download").content.startswith(b"PK")
    changes = [
        other.post(f"{shoes}/promote", json={"version": 1}),
        other.post(f"{shoes}/rollback", json={}),
        other.delete(f"{shoes}/versions/1"),
        other.put(f"{shoes}/shares/c"),
        other.delete(f"{shoes}/shares/b"),
    ]
    assert {answer.status_code for answer in changes} == {403}
    assert "which alone promotes" in changes[0].json()["detail"]
    assert third.get("/models").json() == []
    assert third.get(shoes).status_code == third.delete(f"{shoes}/versions/1").status_code == 404

    assert owner.delete("/models/Shoes/shares/b").json()["shared_with"] == ["secret-project"]
    gone = [
        other.get(shoes),
        other.get(f"{shoes}/versions/1/download"),
        other.post(f"{shoes}/rollback", json={}),
    ]
    assert [answer.status_code for answer in gone] == [404] * 3
    unknown = other.get("/models/a:Hats").json()["detail"]
    assert unknown.replace("Hats", "Shoes") == gone[0].json()["detail"]
    assert other.get("/models").json() == []


def test_what_no_model_is_shared_with_is_refused(
    store: Store, connect: Callable[..., TestClient], tmp_path: Path
) -> None:
    """Its own project, and what can be none."""
    register(store, tmp_path)
    api = connect(add_key(store)[1])
    for project, status in (("default", 422), ("No%20Slug", 422), ("b", 200), ("b", 200)):
        answer = api.put(f"{MODEL}/shares/{project}")
        assert answer.status_code == status, project
    assert [move["kind"] for move in answer.json()["moves"]].count("shared") == 1


@pytest.mark.parametrize("path", ["/fine-tuning/task", "/health", "http://localhost/"])
def test_a_foreign_name_opens_nothing(
    store: Store, settings: Settings, clock: Clock, path: str
) -> None:
    """Without keys this machine's own names are answered, and the public one. A page whose name was
    made to lead here gets nothing: neither the API, nor what health tells more of, nor the page."""
    public = settings.replaced(api_public_url="https://studio.example:8443/api/v1")
    app = create_app(store, public, clock)
    foreign = ["evil.example", "127.0.0.1.evil.example:5000", "10.0.0.1", "localhost@evil", "[", ""]
    with TestClient(app, base_url="http://localhost/api/v1") as api:

        def ask(host: str) -> Any:
            return api.get(path, headers={"Host": host})

        for host in foreign:
            refused = ask(host)
            assert refused.status_code == 421
            assert "ES_API_PUBLIC_URL" in refused.text
        for host in ("localhost:5000", "127.0.0.1", "127.1.2.3:80", "[::1]:5000", "studio.example"):
            assert ask(host).status_code != 421
        assert api.get("/ping", headers={"Host": "evil.example"}).status_code == 200
        _, text = add_key(store)
        clock.now += 2 * KEY_AGE
        known = {"Host": "any.example", "Authorization": f"Bearer {text}"}
        assert api.get("/fine-tuning/task", headers=known).status_code == 200


def test_a_proxys_names_are_its_own(store: Store, settings: Settings, clock: Clock) -> None:
    """Whoever says that a proxy knows who may call is asked by any name."""
    app = create_app(store, settings.replaced(allow_open=True), clock)
    with TestClient(app, base_url="http://anything.example/api/v1") as api:
        assert api.get("/fine-tuning/task").status_code == 200


def test_keys_that_vanish_open_nothing(store: Store, settings: Settings, clock: Clock) -> None:
    """An API that others can reach refuses all when its store has no keys, as after a restore of an
    empty database."""
    app = create_app(store, settings.replaced(api_host="0.0.0.0"), clock)
    with TestClient(app, base_url="http://localhost/api/v1") as api:
        assert api.get("/fine-tuning/task").status_code == 401
    app = create_app(store, settings.replaced(api_host="0.0.0.0", allow_open=True), clock)
    with TestClient(app, base_url="http://localhost/api/v1") as api:
        assert api.get("/fine-tuning/task").status_code == 200
