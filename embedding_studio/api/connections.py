"""Connections: how many there may be, and for how long each may keep the server waiting."""

import asyncio
import logging
import resource
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from embedding_studio.settings import Settings

BACKLOG = 512
"""Connections that wait to be accepted; as many may be accepted at once."""
OTHER_FILES = 128
"""What the process has open besides connections: the database, the log, model files."""
UNREAD_BYTES = 256 * 1024 * 1024
"""What answers that their clients have not taken yet may take of memory, altogether."""
STREAMED_PATH = "/api/v1/imports"
"""Whose bodies are read while they come, and may be of any size."""
STREAMED_BYTES = 64 * 1024
"""What comes of such a body, at least, in the time that another has to come as a whole."""
_READ_BYTES = 16 * 1024
_MAX_CHUNKS = 100_000

_logger = logging.getLogger(__name__)


class Room:
    """The open connections of a server, at most so many."""

    def __init__(self, most: int, seconds: float) -> None:
        self.most = most
        self.seconds = seconds
        self.open: set[Connection] = set()
        #: for their client, be it for a request or for him to read an answer; the longest first
        self.waiting: dict[Connection, None] = {}

    @classmethod
    def within(cls, settings: Settings) -> "Room":
        """Return the room that the settings and the limit of open files leave, which is raised as
        far as needed and allowed."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = hard if hard != resource.RLIM_INFINITY else 2**20
        files = min(allowed, max(soft, settings.max_connections + BACKLOG + OTHER_FILES))
        if files > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        most = max(1, min(settings.max_connections, files - BACKLOG - OTHER_FILES))
        if most < settings.max_connections:
            _logger.warning(
                "at most %d connections are taken, for this process may open %d files only "
                "(ulimit -n); ES_MAX_CONNECTIONS is %d",
                *(most, files, settings.max_connections),
            )
        return cls(most, settings.request_seconds)

    def protocol(self) -> type[asyncio.Protocol]:
        """Return what uvicorn makes a connection of this room by."""
        return cast(type[asyncio.Protocol], partial(Connection, self))

    def enter(self, connection: "Connection") -> bool:
        """Make place for a connection that waits for its first request, if need be by closing the
        one that waits longest. Return False where all others are at work."""
        self.open.add(connection)
        if len(self.open) <= self.most:
            return True
        longest = next(iter(self.waiting))
        _logger.warning(
            "all %d connections are taken (ES_MAX_CONNECTIONS): the one that waits longest for its "
            "client is closed for a new one",
            self.most,
        )
        self.leave(longest)
        if longest is not connection:
            longest.transport.abort()
        return longest is not connection

    def limit_unread(self) -> None:
        """Close the connections with the most that waits to be read, as long as all together have
        too much."""
        unread = {one: one.transport.get_write_buffer_size() for one in self.waiting}
        total = sum(unread.values())
        while total > UNREAD_BYTES:
            largest = max(unread, key=unread.__getitem__)
            total -= unread.pop(largest)
            _logger.warning(
                "answers of more than %d bytes wait for their clients to read them: the connection "
                "with the most is closed",
                UNREAD_BYTES,
            )
            self.leave(largest)
            largest.transport.abort()

    def leave(self, connection: "Connection") -> None:
        self.open.discard(connection)
        self.waiting.pop(connection, None)


class _StrictReader(h11.Connection):
    """Reads requests, and none of which another reader could find another end: where a proxy in
    front does, one client's bytes would become another's request."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER)
        self._chunks = 0

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE:
            _refuse_folded(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = 0
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (
                b"content-length" in names or event.http_version < b"1.1"
            ):
                raise h11.RemoteProtocolError("two lengths of one body")
        elif isinstance(event, h11.Data) and event.chunk_start:
            self._chunks += 1  # each costs the same, however few bytes it has
            if self._chunks > _MAX_CHUNKS:
                raise h11.RemoteProtocolError("too many chunks")
        return event


def _refuse_folded(received: bytes) -> None:
    head = received.partition(b"\r\n\r\n")[0]
    if b"\n " in head or b"\n\t" in head:
        raise h11.RemoteProtocolError("a header on several lines")


class Connection(H11Protocol):
    """A connection that is closed when its client keeps it waiting.

    A request, body included, has `Room.seconds` to come; so has a client to take what is in the
    buffer of an answer. An answer that is given before the request's body has come is the last
    one: what still comes is not parsed.
    """

    def __init__(
        self,
        room: Room,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = _StrictReader()
        self._room = room
        self._deadline: asyncio.TimerHandle | None = None
        self._is_over = False
        #: of a body that is read while it comes, since its client's time began
        self._streamed_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # so that what one connection sends at once holds up the others for a moment only
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        self._watch()
        if not self._room.enter(self):
            self._refuse(503, f"all {self._room.most} connections are at work (ES_MAX_CONNECTIONS)")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._room.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._stop_waiting()  # a request's time begins with its first byte
        super().data_received(data)
        if self._is_streamed:
            self._streamed_bytes += len(data)
            if self._streamed_bytes >= STREAMED_BYTES:
                self._streamed_bytes = 0
                self._stop_waiting()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            # not closed at once: a client that still sends would lose the answer
            self._is_over = True
            self._unset_keepalive_if_required()
            with suppress(OSError):  # the client is gone
                self.transport.write_eof()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()
        self._room.limit_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def _watch(self) -> None:
        """Begin or end to wait for the client, as things stand."""
        if not (
            self.transport.is_closing()
            or self.flow.write_paused
            or self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
        ):
            self._stop_waiting()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self._room.seconds, self._give_up)
            self._room.waiting[self] = None

    def _stop_waiting(self) -> None:
        self._room.waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    @property
    def _is_streamed(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY and self.scope["path"] == STREAMED_PATH

    def _give_up(self) -> None:
        self._stop_waiting()
        if self._is_streamed and self.flow.read_paused:  # it is the client who waits
            self._watch()
        elif self.conn.states == {h11.CLIENT: h11.SEND_BODY, h11.SERVER: h11.SEND_RESPONSE}:
            self._refuse(
                408, f"the body did not come within {self._room.seconds:g} s (ES_REQUEST_SECONDS)"
            )
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        self._end_cycle()
        if self.conn.our_state is h11.SEND_BODY:  # another answer has begun
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def _end_cycle(self) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True  # the application has nothing to answer any more
            self.cycle.message_event.set()

    def _refuse(self, status: int, why: str) -> None:
        self._end_cycle()
        body = b'{"detail": "%s"}' % why.encode()
        head = [("content-type", "application/json"), ("content-length", str(len(body)))]
        head += [("connection", "close"), ("retry-after", "2")]
        for event in (
            h11.Response(status_code=status, headers=head, reason=HTTPStatus(status).phrase),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._watch()
