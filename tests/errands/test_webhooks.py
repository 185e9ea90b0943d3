"""What is told about ended tasks, to whom, and to whom not."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from embedding_studio.api.app import create_app
from embedding_studio.clock import utc_now
from embedding_studio.engine.worker import Worker, open_worker
from embedding_studio.errands import webhooks
from embedding_studio.errands.webhooks import (
    AT_A_TIME,
    MAX_ATTEMPTS,
    SHARE,
    Deliveries,
    Message,
    deliver,
    parse_secret,
    pause_after,
)
from embedding_studio.errors import ConfigurationError, DeliveryFailed
from embedding_studio.outbound import Outbound
from embedding_studio.settings import Settings
from embedding_studio.store import Store, open_store
from embedding_studio.tasks import TaskRequest
from tests.iterations import Bench
from tests.waiting import wait_until

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECRET = b"s" * 32


class Receiver:
    """A real server that keeps what it got and answers as told."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(outer.status)
                if outer.status == 302:
                    self.send_header("Location", f"{outer.url}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def send(message: Message, allow_private: bool = True) -> None:
    with Outbound(allow_private) as http:
        deliver(http, message, SECRET, NOW)


def test_a_message_is_signed_over_id_timestamp_and_body(receiver: Receiver) -> None:
    """The receiver recomputes the HMAC from what it got; the id is the message's own."""
    send(Message("msg_1", f"{receiver.url}/hook", b'{"a": 1}'))
    ((headers, body),) = receiver.got
    assert body == b'{"a": 1}'
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("msg_1", "1769860800")
    expected = hmac.new(SECRET, b'msg_1.1769860800.{"a": 1}', hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(expected).decode()}"


@pytest.mark.parametrize("status", [302, 404, 500])
def test_anything_but_a_2xx_is_a_failure(receiver: Receiver, status: int) -> None:
    """Errors are failures, and so is a redirect, which is not followed."""
    receiver.status = status
    with pytest.raises(DeliveryFailed, match=str(status)):
        send(Message("msg_1", receiver.url, b"{}"))
    assert len(receiver.got) == 1


def test_a_private_address_is_refused_after_resolution(receiver: Receiver) -> None:
    """A name counts for where it leads: nothing is sent into a private network unless allowed."""
    for url in (receiver.url, receiver.url.replace("127.0.0.1", "localhost")):
        with pytest.raises(DeliveryFailed, match="private network"):
            send(Message("msg_1", url, b"{}"), allow_private=False)
    assert receiver.got == []


def test_nobody_there_is_a_failure_that_says_where(receiver: Receiver) -> None:
    """A connection refused names the URL."""
    receiver.server.shutdown()
    receiver.server.server_close()
    with pytest.raises(DeliveryFailed, match=receiver.url):
        send(Message("msg_1", receiver.url, b"{}"))


def test_pauses_grow_and_end() -> None:
    """Failed attempts are repeated after growing pauses for about a day, then no more."""
    pauses = [pause_after(attempts) for attempts in range(1, MAX_ATTEMPTS)]
    known = [pause for pause in pauses if pause is not None]
    assert len(known) == len(pauses)
    assert known == sorted(known)
    assert timedelta(hours=20) < sum(known, timedelta()) < timedelta(hours=30)
    assert pause_after(MAX_ATTEMPTS) is None


def test_a_secret_is_read_or_refused() -> None:
    """whsec_ and base64 of enough bytes; anything else says how to make one."""
    text = "whsec_" + base64.b64encode(SECRET).decode()
    assert parse_secret(text) == SECRET
    for bad in ("", "secret", "whsec_", "whsec_!!!", text.removeprefix("whsec_"), text[:20]):
        with pytest.raises(ConfigurationError, match="openssl rand"):
            parse_secret(bad)


def test_the_end_of_a_task_is_told_once_it_was_heard(bench: Bench, receiver: Receiver) -> None:
    """A receiver that fails is told again, later, under the same id; then no more."""
    secret = "whsec_" + base64.b64encode(SECRET).decode()
    settings = bench.house.settings.replaced(
        webhook_secret=secret, allow_private_addresses=True, api_public_url="https://es.example/"
    )
    now = utc_now() + timedelta(minutes=1)
    house = replace(bench.house, settings=settings, clock=lambda: now)
    bench.worker = Worker(house, bench.worker._catalog)
    bench.post_sessions()
    task = bench.post_task(trials=1, webhook_url=f"{receiver.url}/hook")
    bench.worker.tell()
    assert receiver.got == []
    assert bench.worker.work_once()
    receiver.status = 503
    bench.worker.tell()
    bench.worker.tell()
    assert len(receiver.got) == 1
    failed = bench.house.store.tasks.get(task.id).delivery
    assert failed is not None
    assert failed.error is not None
    assert "503" in failed.error
    receiver.status = 200
    now += timedelta(seconds=6)
    bench.worker.tell()
    now += timedelta(days=2)
    bench.worker.tell()
    (first, _), (second, body) = receiver.got
    assert first["webhook-id"] == second["webhook-id"] == failed.id
    told = json.loads(body)
    assert told["type"] == "fine_tuning_task.done"
    assert (told["data"]["id"], told["data"]["status"]) == (task.id, "done")
    assert told["data"]["best_model_url"] == (
        f"https://es.example/api/v1/fine-tuning/task/{task.id}/model"
    )
    heard = bench.house.store.tasks.get(task.id).delivery
    assert heard is not None
    assert heard.delivered_at is not None


def test_a_change_of_the_champion_is_told_with_what_an_index_takes(
    bench: Bench, receiver: Receiver
) -> None:
    """A task's promotion and a rollback, each with the version, what came before it, where its
    files are, and whether items have other vectors."""
    secret = "whsec_" + base64.b64encode(SECRET).decode()
    settings = bench.house.settings.replaced(
        webhook_secret=secret, allow_private_addresses=True, api_public_url="https://es.example/"
    )
    store = bench.house.store
    bench.worker = Worker(replace(bench.house, settings=settings), bench.worker._catalog)
    bench.post_sessions()
    task = bench.post_task(trials=1)
    assert bench.worker.work_once()
    name = task.registered_as
    store.models.update(name, lambda model: model.telling(receiver.url, utc_now()))
    bench.worker.tell()
    store.models.update(name, lambda model: model.rolled_back(None, "me", "odd", utc_now()))
    bench.worker.tell()
    bench.worker.tell()
    first, second = (json.loads(body) for _, body in receiver.got)
    assert first["type"] == second["type"] == "champion.changed"
    assert [one["data"]["version"]["version"] for one in (first, second)] == [2, 1]
    assert (first["data"]["former_version"], second["data"]["former_version"]) == (1, 2)
    assert first["data"]["move"]["kind"] == "promoted"
    assert (second["data"]["move"]["kind"], second["data"]["move"]["why"]) == ("rolled_back", "odd")
    assert first["data"]["version"]["promotion"]["promoted"] is True
    assert first["data"]["download_url"].startswith("https://es.example/api/v1/models/")
    assert first["data"]["download_url"].endswith("/versions/2/download")
    assert first["data"]["reindex"]["needed"] is True


class Outbox:
    """Deliveries over a real store, to receivers that hang until told otherwise.

    told: hosts that were called, in the order in which they were."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.told: list[str] = []
        self.now = NOW
        self.released = threading.Event()
        secret = "whsec_" + base64.b64encode(SECRET).decode()
        self.deliveries = Deliveries(store, Settings(webhook_secret=secret), lambda: self.now)
        monkeypatch.setattr(webhooks, "deliver", self.deliver)
        self.threads: list[threading.Thread] = []

    def deliver(self, _http: Outbound, message: Message, *_: object) -> None:
        self.told.append(message.url)
        if "hangs" in message.url:
            assert self.released.wait(30)

    def end_tasks(self, *urls: str, project: str = "default") -> list[str]:
        """Add tasks that have ended, each with its webhook."""
        store = self.store.in_project(project)
        tasks = [store.tasks.add(TaskRequest("m", webhook_url=url), NOW)[0] for url in urls]
        return [store.tasks.cancel(task.id, NOW).id for task in tasks]

    def start(self) -> None:
        """Begin to tell ends beside what is under way."""
        thread = threading.Thread(target=self.deliveries.tell)
        self.threads.append(thread)
        thread.start()

    def end(self) -> None:
        self.released.set()
        for thread in self.threads:
            thread.join(30)


@pytest.fixture
def outbox(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outbox]:
    with closing(open_store(settings.resolved_store_url)) as store:
        outbox = Outbox(store, monkeypatch)
        yield outbox
        outbox.end()


def test_a_receiver_that_hangs_holds_up_its_own_project_alone(outbox: Outbox) -> None:
    """However many of a project hang, they take its share: another project's are told at once, and
    its own go on once one is over."""
    outbox.end_tasks(*["https://hangs.example/"] * (SHARE + 1), "https://own.example/")
    for _ in range(AT_A_TIME):
        outbox.start()
    wait_until(lambda: len(outbox.told) == SHARE)
    outbox.end_tasks("https://other.example/", project="acme")
    outbox.deliveries.tell()
    assert outbox.told == ["https://hangs.example/"] * SHARE + ["https://other.example/"]
    outbox.end()
    assert outbox.told[-2:] == ["https://hangs.example/", "https://own.example/"]


def test_projects_take_turns(outbox: Outbox) -> None:
    """Who has none under way comes first, though others have waited for longer."""
    outbox.end_tasks(*["https://hangs.example/"] * 2)
    outbox.start()
    wait_until(lambda: outbox.told)
    outbox.end_tasks("https://other.example/", project="acme")
    outbox.deliveries.tell(is_over=lambda: len(outbox.told) > 1)
    assert outbox.told == ["https://hangs.example/", "https://other.example/"]


def test_whatever_fails_is_a_failed_delivery(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody thought of is counted, told and repeated later, and others are told."""
    monkeypatch.setattr(webhooks, "deliver", deliver)
    urls = ["http://a..b/", "http://xn--a/", "http://127.0.0.1/"]
    tasks = outbox.end_tasks(*urls)
    outbox.deliveries.tell()
    for task_id, url in zip(tasks, urls, strict=True):
        task = outbox.store.tasks.get(task_id)
        assert task.delivery is not None
        assert task.delivery.attempts == 1
        assert url in (task.delivery.error or "")
        assert task.delivery_due_at == NOW + timedelta(seconds=5)


def test_a_delivery_that_kills_workers_is_given_up(outbox: Outbox) -> None:
    """Attempts of which nobody knows how they went count like those that failed."""
    (deadly,) = outbox.end_tasks("https://deadly.example/")
    for number in range(MAX_ATTEMPTS):
        assert outbox.store.deliveries.claim(NOW + timedelta(minutes=number), 60)
    outbox.now = NOW + timedelta(days=1)
    outbox.deliveries.tell()
    task = outbox.store.tasks.get(deadly)
    assert task.delivery is not None
    assert "given up" in (task.delivery.error or "")
    assert (outbox.told, task.delivery_due_at) == ([], None)


def test_one_waits_for_a_store_that_hangs(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others end at once, so that a worker drains in the time of one call."""
    asked: list[str] = []

    def hang(*_: object) -> None:
        asked.append("claim")
        assert outbox.released.wait(30)

    monkeypatch.setattr(webhooks, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(outbox.store.deliveries, "claim", hang)
    outbox.start()
    wait_until(lambda: asked)
    outbox.deliveries.tell()
    assert asked == ["claim"]


def test_a_worker_that_drains_begins_no_delivery(outbox: Outbox) -> None:
    """The end stays due, for another worker."""
    (waiting,) = outbox.end_tasks("https://own.example/")
    outbox.deliveries.tell(is_over=lambda: True)
    assert outbox.told == []
    assert outbox.store.tasks.get(waiting).delivery_due_at == NOW


def test_without_a_secret_nothing_is_sent(bench: Bench, receiver: Receiver) -> None:
    """The failure says which setting is missing, and the end stays due."""
    bench.post_sessions()
    task = bench.post_task("Failing", trials=1, webhook_url=receiver.url)
    bench.worker.work_once()
    bench.worker.tell()
    waiting = bench.house.store.tasks.get(task.id)
    assert waiting.delivery is not None
    assert waiting.delivery.error is not None
    assert "ES_WEBHOOK_SECRET" in waiting.delivery.error
    assert waiting.delivery_due_at is not None
    assert receiver.got == []


def test_a_secret_that_is_none_keeps_the_services_from_starting(
    bench: Bench,
) -> None:
    """API and worker say so at their start, not when the first webhook is due."""
    broken = bench.house.settings.replaced(webhook_secret="abc")
    with pytest.raises(ConfigurationError, match="ES_WEBHOOK_SECRET"):
        create_app(bench.house.store, broken)
    with pytest.raises(ConfigurationError, match="ES_WEBHOOK_SECRET"):
        open_worker(broken)
