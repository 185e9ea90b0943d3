"""A hostile neighbour of an API, bounded and paced: `python -m benchmarks.hostile URL SECONDS`.

A process of its own with one event loop, so that it takes its part of the machine and no more. It
reads two keys from the environment: HOSTILE_INGEST_KEY, and HOSTILE_READ_KEY. Its connections come
from eight addresses, 127.0.0.2 to 127.0.0.9:

    half-open   1,100 connections that send a header's byte every 5 s, without end
    slow body     50 posts with a key that may post, a byte of the body every 5 s
    wrong key      5 callers, each 10 requests per second with another key that there is not
    health         5 callers, each 10 requests per second without a key
    big body       1 caller, once per second 16 MB of empty lists with a key that may only read

Printed: what each kind was answered, as one JSON object: per status how often, "closed" for a
connection that the server ended without an answer, "refused" for one that it did not take.
"""

import asyncio
import json
import os
import resource
import secrets
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit

ADDRESSES = cycle(f"127.0.0.{number}" for number in range(2, 10))
DRIP_SECONDS = 5.0
PACE_SECONDS = 0.1
BIG_SECONDS = 1.0
BIG_BODY = b"[" + b"[]," * (16 * 1024 * 1024 // 3 - 2) + b"[]]"
POST = "POST /api/v1/clickstream/sessions HTTP/1.1\r\nHost: localhost\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Attack = Callable[[Streams], Coroutine[Any, Any, None]]
Answers = defaultdict[str, Counter[str]]


class Neighbour:
    """answers: by kind of connection, what came back how often."""

    def __init__(self, api_url: str) -> None:
        place = urlsplit(api_url)
        self.host, self.port = place.hostname, place.port
        self.answers: Answers = defaultdict(Counter)

    async def run(self, seconds: float, ingest_key: str, read_key: str) -> None:
        """Do all of it for so long."""
        slow = f"{POST}Authorization: Bearer {ingest_key}\r\nContent-Length: 1000000\r\n\r\n["
        big = f"{POST}Authorization: Bearer {read_key}\r\nContent-Length: {len(BIG_BODY)}\r\n\r\n"
        kinds: list[tuple[str, int, float, Attack]] = [
            ("half-open", 1100, DRIP_SECONDS, partial(drip, f"{POST}X-Slow: ")),
            ("slow body", 50, DRIP_SECONDS, partial(drip, slow)),
            ("wrong key", 5, PACE_SECONDS, ask_with_wrong_key),
            ("health", 5, PACE_SECONDS, ask_for_health),
            ("big body", 1, BIG_SECONDS, partial(send, big.encode() + BIG_BODY)),
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
                for kind, callers, pause, attack in kinds:
                    for _ in range(callers):
                        group.create_task(self.repeat(kind, pause, attack))

    async def repeat(self, kind: str, pause: float, attack: Attack) -> None:
        """Attack again and again, on a new connection each time."""
        while True:
            begin = time.monotonic()
            self.answers[kind][await self.attempt(attack)] += 1
            await asyncio.sleep(max(0.0, begin + pause - time.monotonic()))

    async def attempt(self, attack: Attack) -> str:
        """Return the status that an attack was answered with, or what became of its connection."""
        try:
            async with self.connection() as streams:
                sending = asyncio.create_task(attack(streams))
                try:
                    line = await streams[0].readline()
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except ConnectionResetError:
            return "closed"
        except OSError:
            return "refused"
        return line.split()[1].decode() if line else "closed"

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Streams]:
        streams = await asyncio.open_connection(
            self.host, self.port, local_addr=(next(ADDRESSES), 0)
        )
        try:
            yield streams
        finally:
            streams[1].transport.abort()


async def send(request: bytes, streams: Streams) -> None:
    streams[1].write(request)
    await streams[1].drain()


async def drip(begin: str, streams: Streams) -> None:
    await send(begin.encode(), streams)
    while True:
        await asyncio.sleep(DRIP_SECONDS)
        await send(b"x", streams)


async def ask_with_wrong_key(streams: Streams) -> None:
    key = f"es_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
    ask = f"GET /api/v1/fine-tuning/task HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n\r\n"
    await send(ask.encode(), streams)


async def ask_for_health(streams: Streams) -> None:
    await send(b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n", streams)


def main() -> None:
    api_url, seconds = sys.argv[1:]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    neighbour = Neighbour(api_url)
    keys = os.environ["HOSTILE_INGEST_KEY"], os.environ["HOSTILE_READ_KEY"]
    asyncio.run(neighbour.run(float(seconds), *keys))
    print(json.dumps({**neighbour.answers, "CPU seconds": {"own": round(time.process_time(), 1)}}))  # noqa: T201


if __name__ == "__main__":
    main()
