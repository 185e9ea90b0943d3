"""Servers that answer as nobody should."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

OK = b"HTTP/1.1 200 OK\r\n"

Answer = Callable[[socket.socket], None]


class Server:
    """A server that answers each connection's first request as it was told to."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.got: list[bytes] = []
        self.answer: Answer = lambda connection: None
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        self.ended = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self.got.append(connection.recv(65536))
            self.answer(connection)
            connection.shutdown(socket.SHUT_RDWR)
        self.ended.set()

    def close(self) -> None:
        self._socket.close()


def endless(head: bytes, piece: bytes, pause: float = 0.0) -> Answer:
    """Send the head, then pieces until nobody takes them any more."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            if pause:
                threading.Event().wait(pause)

    return answer


def once(answer: bytes) -> Answer:
    return lambda connection: connection.sendall(answer)
