"""Connections of a real server: how many, for how long, and what of them is logged."""

import json
import resource
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from embedding_studio.api import connections
from embedding_studio.api.connections import Room
from embedding_studio.settings import Settings
from tests.api.samples import METHOD, session_json
from tests.api.test_app import served
from tests.waiting import wait_until

PING = b"GET /api/v1/ping HTTP/1.1\r\nHost: localhost\r\n"
POST = (
    b"POST /api/v1/clickstream/session HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\n"
)
ENDED = b"\r\n"


class Server:
    """An API as a process, and where it answers."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process = process
        self.url = url
        self.address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))

    def connect(self, sent: bytes = b"") -> socket.socket:
        connection = socket.create_connection(self.address, timeout=30)
        connection.sendall(sent)
        return connection

    def ask(self, sent: bytes) -> bytes:
        """Return all that is answered to these bytes until the server closes."""
        with self.connect(sent) as connection:
            return read(connection)

    def ping(self) -> bool:
        """Return whether a new connection is answered."""
        return self.ask(PING + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")

    def log(self) -> list[str]:
        """Stop the server and return what it logged."""
        self.process.terminate()
        return self.process.communicate(timeout=20)[1].splitlines()


IMPORT = b"POST /api/v1/imports?import_id=x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


def post(server: Server, path: str, body: Any) -> Any:
    return httpx.post(f"{server.url}/api/v1/{path}", json=body).raise_for_status().json()


def read(connection: socket.socket) -> bytes:
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


def is_closed(connection: socket.socket) -> bool:
    """Return whether the server has closed the connection."""
    connection.setblocking(False)
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


@contextmanager
def serving(folder: Path, **environment: str) -> Iterator[Server]:
    with served(folder, **environment) as (process, url):
        yield Server(process, url)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("patient")) as server:
        yield server


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits for nobody, and closes no idle connection but for that."""
    with serving(tmp_path_factory.mktemp("hasty"), ES_REQUEST_SECONDS="0.3") as server:
        yield server


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: +5\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity, chunked\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"X: y\r\n\tContent-Length: 5\r\n",
        b"Content-Length: 5\r\nHost: y\r\n",
    ],
)
def test_a_request_that_could_end_in_two_places_is_answered_once(
    patient: Server, headers: bytes
) -> None:
    """It is 400, and what follows it on the connection is no request."""
    body = b"0\r\n\r\n" + PING + ENDED
    answer = patient.ask(POST + headers + ENDED + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_chunks_are_for_clients_who_know_them(patient: Server) -> None:
    """A request of HTTP/1.0 that names them is 400."""
    old = POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert patient.ask(old).startswith(b"HTTP/1.1 400 ")


def test_a_body_of_very_many_chunks_is_refused(patient: Server) -> None:
    """A chunk costs as much as a small request, however few bytes it has."""
    body = b"1\r\n \r\n" * 150_000 + b"0\r\n\r\n"
    with patient.connect(POST + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        try:
            connection.sendall(body)
        except ConnectionError:
            return
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_an_import_may_take_longer_than_a_request(hasty: Server) -> None:
    """Its time is that of each 64 KB, and not its client's while the server reads; of a client who
    sends less it is 408 as well. What came before is kept while the rest is still to come."""
    row = json.dumps(session_json(search_meta={"x": "y" * 30_000})).encode()
    rows = [row.replace(b"s-1", b"s-%d" % i) + b"\n" for i in range(600)]
    head = IMPORT + b"Content-Length: %d\r\n\r\n" % sum(map(len, rows))
    began = time.monotonic()
    with hasty.connect(head) as connection:
        for start in range(0, 600, 60):
            connection.sendall(b"".join(rows[start : start + 60]))
            time.sleep(0.1)
            if start == 540:
                batch = httpx.get(f"{hasty.url}/api/v1/clickstream/internal/batch").json()
                assert batch["session_count"] >= 100
        answer = read(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"created":600' in answer
    assert time.monotonic() - began > 1
    with hasty.connect(head + rows[0]) as connection:
        assert read(connection).startswith(b"HTTP/1.1 408 ")


def test_an_import_whose_client_is_gone_ends(patient: Server) -> None:
    """Its place is free again: a project has two."""
    row = json.dumps(session_json()).encode() + b"\n"
    for _ in range(4):
        with patient.connect(IMPORT + b"Content-Length: 9000000\r\n\r\n" + row * 500):
            time.sleep(0.05)
    whole = IMPORT + b"Content-Length: %d\r\n\r\n" % len(row) + row
    wait_until(lambda: patient.ask(whole).startswith(b"HTTP/1.1 200 "))


@pytest.mark.parametrize("sent", [b"", PING, POST + b"Content-Length: 9\r\n\r\n{"])
def test_a_request_that_does_not_come_is_not_waited_for(hasty: Server, sent: bytes) -> None:
    """A connection without a request, or with half of one, is closed; a body that is missing is
    408, which names the setting."""
    began = time.monotonic()
    answer = hasty.ask(sent)
    assert time.monotonic() - began < 5
    if sent.startswith(b"POST"):
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"ES_REQUEST_SECONDS" in answer
    else:
        assert answer == b""


def test_a_request_that_drips_gets_no_more_time(hasty: Server) -> None:
    """Its time is that of all its bytes, not of each."""
    with hasty.connect(PING + b"X: ") as connection:
        for _ in range(100):
            time.sleep(0.02)
            try:
                connection.sendall(b"x")
            except ConnectionError:
                return
    pytest.fail("the server waited for two seconds")


def test_an_idle_connection_has_the_time_of_a_new_one(hasty: Server) -> None:
    """A request on a connection that was idle has all its time."""
    with httpx.Client() as client:
        ports = set()
        for _ in range(4):
            time.sleep(0.2)
            with client.stream("GET", f"{hasty.url}/api/v1/ping") as answer:
                ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
                answer.read()
    assert len(ports) == 1


def test_a_new_connection_may_be_idle_before_its_request(hasty: Server) -> None:
    """The time of the first request begins with its first byte, too."""

    def is_answered() -> bool:
        with hasty.connect() as connection:
            time.sleep(0.2)
            connection.sendall(PING)
            time.sleep(0.15)
            with suppress(ConnectionError):
                connection.sendall(ENDED)
                return connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        return False

    wait_until(is_answered)  # this process may have slept longer


def test_an_answer_that_nobody_reads_is_not_kept(tmp_path: Path) -> None:
    """A client that asks for a long answer, and reads none of it, is not waited for."""
    with serving(tmp_path, ES_REQUEST_SECONDS="0.5") as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with connection:
            if not Path("/proc/self/fd").exists():
                pytest.skip("needs /proc")
            assert server.ping()
            before = sockets_of(server)
            connection.connect(server.address)
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
            wait_until(lambda: sockets_of(server) > before)
            wait_until(lambda: sockets_of(server) <= before, 10)


def test_answers_that_nobody_reads_take_so_much_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above it the connection with the most is closed, however short it waits."""
    monkeypatch.setattr(connections, "UNREAD_BYTES", 100)
    room = Room(9, 60)
    aborted: list[int] = []
    for unread in (50, 51, 0):
        waiting = object.__new__(connections.Connection)
        waiting.transport = mock.Mock()
        waiting.transport.get_write_buffer_size.return_value = unread
        waiting.transport.abort.side_effect = partial(aborted.append, unread)
        room.waiting[waiting] = None
    room.limit_unread()
    assert aborted == [51]
    room.limit_unread()
    assert aborted == [51]


def sockets_of(server: Server) -> int:
    found = 0
    for file in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            found += str(file.readlink()).startswith("socket:")
        except FileNotFoundError:
            continue
    return found


def test_an_early_answer_is_read_and_is_the_last(patient: Server) -> None:
    """Who is refused while he still sends can read why, and what he sends besides is no request."""
    large = b"Content-Length: 900000000\r\n\r\n"
    with patient.connect(POST + large + b" " * 1_000_000) as connection:
        connection.sendall(PING + ENDED)
        connection.shutdown(socket.SHUT_WR)
        answer = read(connection)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"ES_MAX_BODY_MB" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


def test_who_waits_longest_makes_place(tmp_path: Path) -> None:
    """When all connections are taken by half-open ones, a new one is answered at once, the one that
    waited longest is closed, and the log says so in one line."""
    with serving(tmp_path, ES_MAX_CONNECTIONS="10") as server, ExitStack() as stack:
        half_open = [stack.enter_context(server.connect(PING)) for _ in range(10)]
        assert server.ping()
        wait_until(lambda: is_closed(half_open[0]))
        assert not any(map(is_closed, half_open[2:]))
        for _ in range(20):
            assert server.ping()
        lines = [line for line in server.log() if "ES_MAX_CONNECTIONS" in line]
    assert len(lines) == 1


def test_connections_at_work_are_not_closed() -> None:
    """Where all connections are at work, a new one is 503; they go on."""
    room = Room(2, 60)
    busy: list[object] = []
    for _ in range(2):
        connection = object.__new__(connections.Connection)
        busy.append(connection)
        assert room.enter(connection)
    late = object.__new__(connections.Connection)
    room.waiting[late] = None
    assert not room.enter(late)
    assert room.open == set(busy)


def flood(server: Server, count: int) -> ExitStack:
    stack = ExitStack()
    for _ in range(count):
        stack.enter_context(server.connect(PING))
    return stack


def test_a_thousand_half_open_requests_keep_nobody_out(tmp_path: Path) -> None:
    """Others are answered as quickly as ever, and the log stays short."""
    needed = 1200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    try:
        with serving(tmp_path) as server, flood(server, 1100):
            began = time.monotonic()
            assert all(server.ping() for _ in range(5))
            assert time.monotonic() - began < 5
            assert len(server.log()) < 10
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_room_keeps_below_the_limit_of_files(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit is raised as far as needed; where that is not allowed, there are fewer connections,
    and the log says why."""
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.append(both))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 100_000))
    assert Room.within(settings.replaced(max_connections=5000)).most == 5000
    assert limits == [(5640, 100_000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert Room.within(settings).most == 384
    assert "ulimit -n" in caplog.text


def test_what_is_no_request_of_ours_is_logged_once_a_minute(tmp_path: Path) -> None:
    """However often it is sent, the log is not written full, and others are answered; a client that
    goes away is not told of at all."""
    strange = [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
        PING + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        PING + b"X: " + b"x" * 200_000,
        b"POST /docs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n",
    ]
    with serving(tmp_path) as server:
        for _ in range(20):
            for sent in strange:
                with suppress(ConnectionError), server.connect() as connection:
                    connection.sendall(sent)
                    connection.shutdown(socket.SHUT_WR)
                    read(connection)
            with server.connect(POST + b"Content-Length: 900000000\r\n\r\n{") as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        post(server, "clickstream/session", session_json())
        task = post(server, "fine-tuning/task", {"fine_tuning_method": METHOD})["id"]
        stream = b"GET /api/v1/fine-tuning/task/%s/events HTTP/1.1\r\n" % task.encode()
        chunked = (
            b"Host: localhost\r\nAccept: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with server.connect(stream + chunked) as connection:
            assert connection.recv(65536)
            connection.sendall(b"no chunk\r\n")
            with suppress(ConnectionResetError):
                read(connection)
        assert server.ping()
        log = server.log()
    assert len(log) <= 4
    assert not any("Traceback" in line for line in log), log
