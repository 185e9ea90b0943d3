"""An HTTP proxy that loses, delays, damages and refuses requests when told to."""

import http.client
import random
import re
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("refuse", "lose answer", "reset", "reset after", "hang", "cut")


@dataclass
class Trouble:
    """What befalls the requests whose "METHOD /path" matches.

    kind: refuse (500, not passed on), lose answer (passed on, then 500), reset (the connection,
    before passing on, or after), hang (no answer until the client has gone), cut (half the answer).
    after: so many matching requests pass first; times: so many are then in trouble.
    share: of the matching requests, drawn at random.
    """

    kind: str
    pattern: str = ""
    after: int = 0
    times: int = 1_000_000
    share: float = 1.0
    happened: int = field(default=0, init=False)


class Proxy:
    """Stands before one server; without troubles it passes everything on."""

    def __init__(self, upstream: str, seed: int = 0) -> None:
        self._upstream = urlsplit(upstream)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._troubles: list[Trouble] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def trouble(self, trouble: Trouble) -> Trouble:
        """Let it happen from now on."""
        with self._lock:
            self._troubles.append(trouble)
        return trouble

    def heal(self) -> None:
        """Let everything pass from now on."""
        with self._lock:
            self._troubles.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def choose(self, request: str) -> str:
        with self._lock:
            for trouble in self._troubles:
                if not re.search(trouble.pattern, request):
                    continue
                if trouble.after > 0:
                    trouble.after -= 1
                elif trouble.times > 0 and self._random.random() < trouble.share:
                    trouble.times -= 1
                    trouble.happened += 1
                    return trouble.kind
        return ""

    def forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection(
            self._upstream.hostname or "", self._upstream.port, timeout=60
        )
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in ("host", "connection", "accept-encoding", "transfer-encoding")
        }
        try:
            connection.request(request.command, request.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers.get("Content-Type", "")
        finally:
            connection.close()


def _handler_of(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self._body()
            kind = proxy.choose(f"{self.command} {self.path}")
            if kind == "refuse":
                return self._answer(500, b"{}")
            if kind == "reset":
                return self._reset()
            if kind == "hang":
                return self._hang()
            try:
                status, content, content_type = proxy.forward(self, body)
            except OSError:
                return self._answer(502, b"{}")
            if kind == "lose answer":
                return self._answer(500, b"{}")
            if kind == "reset after":
                return self._reset()
            with suppress(OSError):  # the client has gone
                self._answer(status, content, content_type, cut=kind == "cut")
            return None

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _answer(
            self,
            status: int,
            content: bytes,
            content_type: str = "application/json",
            cut: bool = False,
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)

        def _reset(self) -> None:
            # with a linger of 0 s, closing sends RST
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            self.wfile = self.rfile = _Nothing()  # type: ignore[assignment]

        def _hang(self) -> None:
            with suppress(OSError):
                self.connection.recv(1)  # returns when the client hangs up

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


class _Nothing:
    closed = True

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: None
