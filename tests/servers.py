"""Servers that tests start themselves, once per session, and stop at its end."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pymongo
import pytest
from pymongo.errors import ConnectionFailure

START_SECONDS = 30.0


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def secantus_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL, without a database, of a server that speaks MongoDB's protocol."""
    program = Path(sys.executable).with_name("secantusd-py")
    if not program.exists():
        pytest.skip("secantusd-py is not installed: pip install 'embedding-studio[test]'")
    folder = tmp_path_factory.mktemp("secantus")
    port = free_port()
    command = [str(program), "--standalone", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--storage-path", str(folder / "data")], stdout=output, stderr=output
        )
    try:
        _wait_for_answer(server, port, log)
        yield f"mongodb://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(START_SECONDS)


def _wait_for_answer(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    with pymongo.MongoClient[dict[str, object]](
        "127.0.0.1", port, serverSelectionTimeoutMS=500
    ) as client:
        while time.monotonic() < deadline and server.poll() is None:
            try:
                client.admin.command("ping")
            except ConnectionFailure:
                continue
            return
    pytest.fail(f"secantusd-py did not answer; its log: {log.read_text()}")
