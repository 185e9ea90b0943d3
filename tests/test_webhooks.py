"""What is told about ended tasks, to whom, and to whom not."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from embedding_studio.api.app import create_app
from embedding_studio.errors import ConfigurationError, DeliveryFailed
from embedding_studio.webhooks import MAX_ATTEMPTS, Message, deliver, parse_secret, pause_after
from embedding_studio.worker import open_worker, utc_now
from tests.iterations import Bench

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


def test_a_message_is_signed_over_id_timestamp_and_body(receiver: Receiver) -> None:
    """The receiver recomputes the HMAC from what it got; the id is the message's own."""
    deliver(Message("msg_1", f"{receiver.url}/hook", b'{"a": 1}'), SECRET, NOW, allow_private=True)
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
        deliver(Message("msg_1", receiver.url, b"{}"), SECRET, NOW, allow_private=True)
    assert len(receiver.got) == 1


def test_a_private_address_is_refused_after_resolution(receiver: Receiver) -> None:
    """A name counts for where it leads: nothing is sent into a private network unless allowed."""
    for url in (receiver.url, receiver.url.replace("127.0.0.1", "localhost")):
        with pytest.raises(DeliveryFailed, match="private network"):
            deliver(Message("msg_1", url, b"{}"), SECRET, NOW, allow_private=False)
    assert receiver.got == []


def test_nobody_there_is_a_failure_that_says_where(receiver: Receiver) -> None:
    """A connection refused names the URL."""
    receiver.server.shutdown()
    receiver.server.server_close()
    with pytest.raises(DeliveryFailed, match=receiver.url):
        deliver(Message("msg_1", receiver.url, b"{}"), SECRET, NOW, allow_private=True)


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
    bench.worker._house = replace(bench.house, settings=settings, clock=lambda: now)
    bench.post_sessions()
    task = bench.post_task(trials=1, webhook_url=f"{receiver.url}/hook")
    bench.worker.run_errands()
    assert receiver.got == []
    assert bench.worker.work_once()
    receiver.status = 503
    bench.worker.run_errands()
    bench.worker.run_errands()
    assert len(receiver.got) == 1
    failed = bench.house.store.get_task(task.id).delivery
    assert failed is not None
    assert failed.error is not None
    assert "503" in failed.error
    receiver.status = 200
    now += timedelta(seconds=6)
    bench.worker.run_errands()
    now += timedelta(days=2)
    bench.worker.run_errands()
    (first, _), (second, body) = receiver.got
    assert first["webhook-id"] == second["webhook-id"] == failed.id
    told = json.loads(body)
    assert told["type"] == "fine_tuning_task.done"
    assert (told["data"]["id"], told["data"]["status"]) == (task.id, "done")
    assert told["data"]["best_model_url"] == (
        f"https://es.example/api/v1/fine-tuning/task/{task.id}/model"
    )
    heard = bench.house.store.get_task(task.id).delivery
    assert heard is not None
    assert heard.delivered_at is not None


def test_without_a_secret_nothing_is_sent(bench: Bench, receiver: Receiver) -> None:
    """The failure says which setting is missing, and the end stays due."""
    bench.post_sessions()
    task = bench.post_task("Failing", trials=1, webhook_url=receiver.url)
    bench.worker.work_once()
    bench.worker.run_errands()
    waiting = bench.house.store.get_task(task.id)
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
