"""The hostile neighbour knows what becomes of its connections."""

import asyncio

import pytest

from benchmarks.hostile import Neighbour, ask_for_health
from tests.servers import free_port


async def ask(answer: bytes) -> str:
    """Return what the neighbour says of a server with this answer to everything."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        return await Neighbour(f"http://127.0.0.1:{port}").attempt(ask_for_health)


@pytest.mark.parametrize(
    ("answer", "told"), [(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"), (b"", "closed")]
)
def test_answers_are_told_by_their_status(answer: bytes, told: str) -> None:
    """A connection that ends without an answer is told apart from one with a status."""
    assert asyncio.run(ask(answer)) == told


def test_where_nobody_listens_it_is_refused() -> None:
    """A connection that nobody takes is counted as refused."""
    neighbour = Neighbour(f"http://127.0.0.1:{free_port()}")
    assert asyncio.run(neighbour.attempt(ask_for_health)) == "refused"
