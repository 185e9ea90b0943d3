"""Bodies: who may not send one is refused before it is read, and none costs others time."""

import asyncio
import json
import re
import threading
import time
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from embedding_studio.api import clickstream, routing
from embedding_studio.api.app import create_app
from embedding_studio.api.requests import MAX_TOLD_ERRORS
from embedding_studio.keys import Scope, make_key
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from tests.api.samples import START, Clock, session_json
from tests.api.test_keys import CLOSED, ROUTES

PATH = "/api/v1/clickstream/session"


class Asked(NamedTuple):
    """An answer, and how often the application asked for a part of the body."""

    status: int
    parts: int


async def _ask(app: FastAPI, method: str, path: str, key: str | None) -> Asked:
    """Send the headers of a request whose body never comes to an end."""
    statuses: list[int] = []
    parts = 0

    async def receive() -> dict[str, Any]:
        nonlocal parts
        parts += 1
        return {"type": "http.request", "body": b" " * 1024, "more_body": True}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"content-type", b"application/json")]
    if key:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    await app({**scope, "query_string": b"", "client": ("192.0.2.1", 1)}, receive, send)
    return Asked(statuses[0], parts)


@pytest.fixture
def app(store: Store, settings: Settings, clock: Clock) -> FastAPI:
    return create_app(store, settings, clock)


def add_key(store: Store, *scopes: Scope) -> str:
    key, text = make_key("test", scopes, "default", START)
    store.keys.add(key)
    return text


@pytest.mark.parametrize("name", CLOSED)
def test_key_and_scope_are_judged_before_the_body(store: Store, app: FastAPI, name: str) -> None:
    """Without a key it is 401, without the route's scope 403, and the body is not even asked for:
    neither how long it is nor whether it ever ends matters."""
    method, path = name.split(" ")
    path = "/api/v1" + re.sub(r"{\w+}", "some-id", path)
    lacking = [scope for scope in Scope if scope not in (ROUTES[name].scope, Scope.ADMIN)]
    key = add_key(store, *lacking)
    assert asyncio.run(_ask(app, method, path, None)) == Asked(401, 0)
    assert asyncio.run(_ask(app, method, path, key)) == Asked(403, 0)


@pytest.fixture
def api(app: FastAPI) -> TestClient:
    return TestClient(app, base_url="http://localhost/api/v1")


def post(api: TestClient, body: bytes | str, path: str = "/clickstream/session") -> Any:
    return api.post(path, content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * 600_000 + b"[]]",
        b"[" * 1_200_000,
        b'{"a":' * 1_200_000,
        b"{" + b",".join(b'"%x":1' % number for number in range(1_200_000)) + b"}",
    ],
    ids=["lists", "nested lists", "nested objects", "fields"],
)
def test_a_body_of_very_many_values_is_not_parsed(
    api: TestClient, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is 413, which says how many are taken: a parser that makes a million of objects keeps all
    other requests waiting."""
    monkeypatch.setattr(routing, "parse", None)
    answer = post(api, body)
    assert answer.status_code == 413
    assert "1048576 values" in answer.json()["detail"]
    assert "ES_MAX_BODY_MB" in answer.json()["detail"]


def test_wrong_sessions_are_judged_and_told_beside_the_event_loop(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes far longer than one that is right."""
    threads: set[str] = set()

    def watch(name: str) -> None:
        call = getattr(clickstream, name)

        def watched(*given: Any) -> Any:
            threads.add(threading.current_thread().name)
            return call(*given)

        monkeypatch.setattr(clickstream, name, watched)

    for name in ("judged", "judged_one", "_refusal"):
        watch(name)
    wrong = session_json(search_results=[{"rank": "high"}])
    assert post(api, json.dumps(wrong)).status_code == 422
    assert post(
        api, json.dumps({"sessions": [wrong, session_json()]}), "/clickstream/sessions"
    ).is_success
    assert post(api, json.dumps({"session": []}), "/clickstream/sessions").status_code == 422
    assert threads == {"AnyIO worker thread"}


def test_a_large_body_is_parsed_beside_the_event_loop(
    api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are answered meanwhile; and one is parsed at a time."""
    large = json.dumps(session_json(search_meta={"a": "x" * 100_000}))
    threads: set[str] = set()
    loads = json.loads

    def parse(body: bytes) -> Any:
        threads.add(threading.current_thread().name)
        assert api.get("/ping").status_code == 200
        return loads(body)

    monkeypatch.setattr(routing, "parse", parse)
    answer = post(api, large)
    assert "ES_MAX_META_BYTES" in answer.text
    assert threads == {"body_0"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"session_id": ', "the body is no JSON"),
        ("[" * 20_000, "error parsing the body"),
        ('{"session_id": ' + "9" * 5_000 + "}", "error parsing the body"),
        ("[]", "the body is no JSON object"),
        (json.dumps(session_json()).replace("}", ', "search_meta": {"a": NaN}}', 1), ""),
    ],
    ids=["cut off", "nested", "digits", "list", "NaN"],
)
@pytest.mark.parametrize("padding", [0, 100_000], ids=["small", "large"])
def test_what_is_wrong_with_a_body_is_said(
    api: TestClient, body: str, words: str, padding: int
) -> None:
    """The answer is the same 4xx, however large the body is."""
    answer = post(api, " " * padding + body)
    assert answer.status_code in (400, 422)
    assert words in answer.text


def test_a_long_list_is_refused_unseen(api: TestClient) -> None:
    """A list that is too long is one error, not one for each thing in it that is wrong."""
    answer = post(api, json.dumps(session_json(search_results=[[]] * 2000)))
    (problem,) = answer.json()["detail"]
    assert "has 2000 results" in problem["msg"]


@pytest.mark.parametrize(
    "path", ["/clickstream/session", "/fine-tuning/task", "/models/m/rollback"]
)
def test_very_many_wrong_fields_are_counted_only(api: TestClient, path: str) -> None:
    """They are a 422 that says how many there are: to name each would cost more than to post it."""
    wrong = {f"field_{number}": 1 for number in range(100_000)}
    began = time.monotonic()
    answer = post(api, json.dumps(wrong), path)
    assert answer.status_code == 422
    assert re.search(r"10000\d fields are wrong", answer.json()["detail"])
    assert time.monotonic() - began < 5


def test_an_item_of_very_many_wrong_fields_costs_only_itself(api: TestClient) -> None:
    """In bulk, it is invalid and the others are stored; what is told of it is short."""
    wrong = session_json("bad", **{f"field_{number}": 1 for number in range(MAX_TOLD_ERRORS + 1)})
    some = session_json("some", **{f"field_{number}": 1 for number in range(5)})
    body = {"sessions": [wrong, some, session_json("good")]}
    bad, told, good = post(api, json.dumps(body), "/clickstream/sessions").json()["sessions"]
    assert (bad["session_id"], bad["status"], good["status"]) == ("bad", "invalid", "created")
    assert "101 fields are wrong" in bad["error"]
    assert "(and 2 more)" in told["error"]


class Slow:
    """A request whose body comes when it is told to."""

    def __init__(self, app: FastAPI, key: str) -> None:
        self.parts: asyncio.Queue[bytes] = asyncio.Queue()
        self.answer: dict[str, Any] = {}
        self.is_at_work = asyncio.Event()
        headers = [(b"content-type", b"application/json"), (b"x-api-key", key.encode())]
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": PATH}
        scope |= {"headers": headers, "query_string": b"", "client": ("192.0.2.1", 1)}
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        self.is_at_work.set()
        part = await self.parts.get()
        return {"type": "http.request", "body": part, "more_body": bool(part)}

    async def _send(self, message: Any) -> None:
        self.answer |= message

    async def end(self, body: bytes = b"") -> int:
        """Send this and the end of the body, and return the answer's status."""
        if body:
            await self.parts.put(body)
        await self.parts.put(b"")
        await self.task
        return int(self.answer["status"])


def test_one_caller_does_not_take_all_connections(
    store: Store, settings: Settings, clock: Clock
) -> None:
    """A tenth of them may be at work for one caller; what is more is 429, and others are served."""
    app = create_app(store, settings.replaced(max_connections=20), clock)
    keys = [add_key(store, Scope.INGEST), add_key(store, Scope.INGEST)]

    async def ask() -> None:
        slow = [Slow(app, keys[0]), Slow(app, keys[0])]
        for one in slow:
            await one.is_at_work.wait()
        third = Slow(app, keys[0])
        await third.task
        assert third.answer["status"] == 429
        assert b"ES_MAX_CONNECTIONS" in third.answer["body"]
        assert await Slow(app, keys[1]).end() == 422
        assert [await one.end() for one in slow] == [422, 422]
        assert await Slow(app, keys[0]).end() == 422

    asyncio.run(ask())


def test_the_bodies_of_one_caller_are_bounded_together(
    store: Store, settings: Settings, clock: Clock
) -> None:
    """Four large bodies of one caller are kept at once; a fifth is 429 until one is answered. Small
    ones are taken all the same, and so are those of others."""
    app = create_app(store, settings.replaced(max_body_mb=1), clock)
    keys = [add_key(store, Scope.INGEST), add_key(store, Scope.INGEST)]
    large, small = b" " * 1024 * 1024, b" " * 1024

    async def ask() -> None:
        kept = [Slow(app, keys[0]) for _ in range(4)]
        for one in kept:
            await one.parts.put(large)
            while not one.parts.empty():
                await asyncio.sleep(0.01)
        fifth = Slow(app, keys[0])
        assert await fifth.end(large) == 429
        assert b"ES_MAX_BODY_MB" in fifth.answer["body"]
        assert await Slow(app, keys[0]).end(small) == 422
        assert await Slow(app, keys[1]).end(large) == 422
        assert await kept.pop().end() == 422
        assert await Slow(app, keys[0]).end(large) == 422
        for one in kept:
            await one.end()

    asyncio.run(ask())
