"""Servers that tests start themselves, once per session, and stop at its end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pymongo
import pytest
from pymongo.errors import ConnectionFailure

from tests.waiting import wait_until

START_SECONDS = 30.0
STOP_SECONDS = 5.0


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Secantus:
    """A server that speaks MongoDB's protocol; its port and its data outlive its process."""

    def __init__(self, folder: Path) -> None:
        program = Path(sys.executable).with_name("secantusd-py")
        if not program.exists():
            pytest.skip("secantusd-py is not installed: pip install 'embedding-studio[test]'")
        self.port = free_port()
        self.url = f"mongodb://127.0.0.1:{self.port}"
        self._log = folder / "server.log"
        self._command = [
            *(str(program), "--standalone", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--storage-path", str(folder / "data")),
        ]
        self.process = self._spawn()

    def restart(self) -> None:
        """Start again what was killed."""
        self.process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as output:
            process = subprocess.Popen(self._command, stdout=output, stderr=output)
        _wait_for_answer(process, self.port, self._log)
        return process

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.thaw()
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


@pytest.fixture(scope="session")
def secantus_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL, without a database, of a server that speaks MongoDB's protocol."""
    server = Secantus(tmp_path_factory.mktemp("secantus"))
    yield server.url
    server.close()


@pytest.fixture
def secantus(tmp_path: Path) -> Iterator[Secantus]:
    """A server of the test's own, to be killed and frozen."""
    server = Secantus(tmp_path)
    yield server
    server.close()


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


class MlflowServer:
    """`mlflow server` on a database and artifacts in a folder, as a deployment runs it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / "mlflow.log"
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--serve-artifacts"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ]
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                self._command, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # the server and its worker
        self.process.wait(START_SECONDS)
