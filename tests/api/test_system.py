import asyncio
import socket
import sqlite3
import threading
from contextlib import closing
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from embedding_studio.api import gate, health
from embedding_studio.api.app import create_app
from embedding_studio.errors import StoreUnavailable
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.tracking import reader
from embedding_studio.workers import WorkerRecord
from tests.api.samples import METHOD, START, Clock, record_worker


def create_mlflow_database(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.execute("create table experiments (id integer)")


def test_ping_tells_the_time(api: TestClient) -> None:
    """Ping answers at once with the server's time."""
    response = api.get("/ping")
    assert response.status_code == 200
    assert datetime.fromisoformat(response.json()["time"]) == START


def test_health_when_all_is_there(api: TestClient, store: Store, tmp_path: Path) -> None:
    """Store, MLflow and a live worker with its methods: 200."""
    create_mlflow_database(tmp_path)
    record_worker(store, seen_at=START - timedelta(seconds=59))
    response = api.get("/health")
    assert response.status_code == 200
    view = response.json()
    assert {view[part]["status"] for part in ("store", "mlflow", "worker")} == {"ok"}
    assert view["status"] == "ok"
    assert view["worker"]["methods"] == [METHOD]
    assert view["worker"]["live"][0]["worker_id"] == "worker-1"
    assert view["worker"]["live"][0]["plugin_failures"] == {}


def test_plugins_that_did_not_load_are_named(api: TestClient, store: Store) -> None:
    """The installation is well, for the others work, but says which file is broken and why."""
    why = {"plugins/bad.py": "ImportError: no module"}
    store.workers.record(WorkerRecord("worker-1", (METHOD,), START, why))
    worker = api.get("/health").json()["worker"]
    assert worker["status"] == "ok"
    assert worker["detail"] == "1 live; plugins that did not load: plugins/bad.py"
    assert worker["live"][0]["plugin_failures"] == why


def test_a_worker_whose_clock_is_off_is_named(api: TestClient, store: Store) -> None:
    """It works on, by the database's clock; somebody has to set its own."""
    store.workers.record(WorkerRecord("worker-1", (METHOD,), START, clock_ahead_seconds=4.0))
    store.workers.record(WorkerRecord("worker-2", (METHOD,), START, clock_ahead_seconds=-86400.0))
    worker = api.get("/health").json()["worker"]
    assert worker["status"] == "ok"
    assert worker["detail"] == (
        "2 live; the clock of worker-2 is -86400 s off the database's, by which it works: set it"
    )


def test_a_missing_initial_model_is_known_before_the_first_task(
    api: TestClient, store: Store
) -> None:
    """Health says which method could not start, and why."""
    why = {METHOD: "ES_INITIAL_MODEL names 'x'"}
    store.workers.record(WorkerRecord("worker-1", (METHOD,), START, {}, why))
    worker = api.get("/health").json()["worker"]
    assert worker["status"] == "ok"
    assert (
        worker["detail"] == f"1 live; {METHOD!r} has no initial model: ES_INITIAL_MODEL names 'x'"
    )
    assert worker["live"][0]["missing_models"] == why


def test_health_without_a_worker(api: TestClient, store: Store, tmp_path: Path) -> None:
    """A worker silent for longer than its lease counts as missing, and the answer says so."""
    create_mlflow_database(tmp_path)
    record_worker(store, seen_at=START - timedelta(seconds=61))
    response = api.get("/health")
    assert response.status_code == 503
    assert response.json()["status"] == "unavailable"
    assert "embedding-studio worker" in response.json()["worker"]["detail"]
    assert response.json()["mlflow"]["status"] == "ok"


@pytest.mark.parametrize("content", [None, b"", b"this is no database, just some text " * 10])
def test_health_without_mlflows_database(
    api: TestClient, store: Store, tmp_path: Path, content: bytes | None
) -> None:
    """A missing or unreadable database file is named, and not created by looking."""
    record_worker(store)
    file = tmp_path / "mlflow.db"
    if content is not None:
        file.write_bytes(content)
    response = api.get("/health")
    assert response.status_code == 503
    assert str(file) in response.json()["mlflow"]["detail"]
    assert file.exists() == (content is not None)


class _Healthy(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Failing(_Healthy):
    status = 500


@pytest.mark.parametrize(
    ("handler", "status", "words"),
    [(_Healthy, "ok", "answers"), (_Failing, "unavailable", "answers 500")],
)
def test_health_of_mlflows_server(
    store: Store,
    tmp_path: Path,
    clock: Clock,
    handler: type[BaseHTTPRequestHandler],
    status: str,
    words: str,
) -> None:
    """MLflow's own health route decides, and a password in its URL is not shown."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        uri = f"http://user:secret@127.0.0.1:{server.server_port}"
        settings = Settings(data_folder=tmp_path, mlflow_tracking_uri=uri)
        with TestClient(create_app(store, settings, clock), base_url="http://localhost") as api:
            thread = threading.Thread(target=server.handle_request)
            thread.start()
            part = api.get("/api/v1/health").json()["mlflow"]
            thread.join()
            server.server_close()
            clock.now += health.AGE
            gone = api.get("/api/v1/health").json()["mlflow"]
    assert part["status"] == status
    assert words in part["detail"]
    assert gone["status"] == "unavailable"
    assert "secret" not in part["detail"] + gone["detail"]


def test_health_admits_what_it_cannot_check(store: Store, tmp_path: Path, clock: Clock) -> None:
    """A tracking database that the API has no driver for is reported as unchecked, not as ok."""
    settings = Settings(data_folder=tmp_path, mlflow_tracking_uri="postgresql://u:secret@db/mlflow")
    record_worker(store)
    with TestClient(create_app(store, settings, clock), base_url="http://localhost") as api:
        view = api.get("/api/v1/health").json()
    assert view["mlflow"]["status"] == "unchecked"
    assert "secret" not in str(view)


def test_a_silent_store_is_503(
    api: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Health and every route that needs the store answer 503; the route says when to come back."""

    def fail(*_: object) -> None:
        raise StoreUnavailable("the database went away")

    for noun, call in ((store, "ping"), (store.workers, "seen"), (store.tasks, "page")):
        monkeypatch.setattr(type(noun), call, fail)
    response = api.get("/health")
    assert response.status_code == 503
    assert "went away" in response.json()["store"]["detail"]
    tasks = api.get("/fine-tuning/task")
    assert tasks.status_code == 503
    assert tasks.json() == {"detail": "the database went away"}
    assert int(tasks.headers["Retry-After"]) > 0


def test_health_of_what_hangs_costs_others_nothing(
    store: Store, settings: Settings, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a look hangs, however many ask: it is one look, all hear that there is no answer, and
    tasks are listed meanwhile, for no thread waits with those who ask."""
    go_on, looks = threading.Event(), list[int]()

    def hang(uri: str) -> None:
        looks.append(1)
        go_on.wait(30)

    monkeypatch.setattr(health, "LOOK_SECONDS", 1.0)
    monkeypatch.setattr(gate, "HEALTH_KEY_SECONDS", 30.0)
    monkeypatch.setattr(health, "_mlflow", hang)
    app = create_app(store, settings.replaced(max_connections=2000), clock)

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost/api/v1"
        ) as api:
            asked = [asyncio.create_task(api.get("/health")) for _ in range(120)]
            while not looks:
                await asyncio.sleep(0.01)
            tasks = await api.get("/fine-tuning/task")
            assert tasks.status_code == 200
            assert not any(one.done() for one in asked)
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask())
    go_on.set()
    assert looks == [1]
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.json()["store"]["status"] for answer in answers} == {"ok"}
    assert {answer.json()["mlflow"]["detail"] for answer in answers} == {
        "no answer within 1 seconds"
    }


def test_mlflow_that_drips_does_not_answer(
    settings: Settings, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends a byte now and then is given no more time than one that sends none."""
    monkeypatch.setattr(reader, "_LOOK_SECONDS", 0.3)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        over = threading.Event()

        def drip() -> None:
            with listener.accept()[0] as connection:
                for byte in b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 1000:
                    if over.wait(0.05):
                        return
                    connection.send(bytes([byte]))

        thread = threading.Thread(target=drip)
        thread.start()
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = create_app(store, settings.replaced(mlflow_tracking_uri=uri), clock)
        with TestClient(app, base_url="http://localhost/api/v1") as dripping:
            part = dripping.get("/health").json()["mlflow"]
        over.set()
        thread.join()
    assert part["status"] == "unavailable"
    assert "does not answer" in part["detail"]
