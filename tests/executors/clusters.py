"""Ray clusters that tests start themselves: every node is a tree of processes of its own."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.faults.points import ancestors
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parent.parent.parent
START_SECONDS = 60.0


class RayNode:
    """A node with a folder for temporary files that no other node has."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.temporary_files = folder / f"tmp-{name}"
        self.temporary_files.mkdir(exist_ok=True)
        log = folder / f"{name}.log"
        log.unlink(missing_ok=True)
        command = [
            *(str(Path(sys.executable).with_name("ray")), "start", "--block"),
            *("--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"),
            *("--dashboard-agent-listen-port=0", "--object-store-memory=200000000", *arguments),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "TMPDIR": str(self.temporary_files),
            "RAY_AUTH_MODE": "disabled",
        }
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment, cwd=folder
            )
        wait_until(
            lambda: b"Ray runtime started" in log.read_bytes() or self._process.poll() is not None,
            START_SECONDS,
        )
        assert self._process.poll() is None, log.read_text()

    def kill(self) -> None:
        """End all its processes as a power cut does."""
        for pid in [self._process.pid, *self._descendants()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _descendants(self) -> list[int]:
        running = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in running if self._process.pid in ancestors(pid)]


class RayCluster:
    """A head, which outlives its processes, and further nodes."""

    def __init__(self, cpus: int, gpus: int = 0) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray's sockets lie in it
        self.nodes: list[RayNode] = []
        self._numbers = itertools.count()
        self.address = f"127.0.0.1:{_quiet_port()}"
        self.client_address = f"ray://127.0.0.1:{_quiet_port()}"
        self._head_arguments = (
            *("--head", "--include-dashboard=false", f"--temp-dir={self._folder}"),
            *("--node-ip-address=127.0.0.1",),
            *(f"--port={self.address.partition(':')[2]}", f"--num-cpus={cpus}"),
            *(f"--num-gpus={gpus}",),
            f"--ray-client-server-port={self.client_address.rpartition(':')[2]}",
        )
        self.head = self.start_head()

    def start_head(self) -> RayNode:
        """Start the head, again if it was killed."""
        self.head = RayNode(self._folder, "head", *self._head_arguments)
        return self.head

    def add_node(self, cpus: int) -> RayNode:
        node = RayNode(
            self._folder,
            f"node-{next(self._numbers)}",
            *(f"--address={self.address}", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}"),
        )
        self.nodes.append(node)
        return node

    def stop(self) -> None:
        for node in [*self.nodes, self.head]:
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


_ports = itertools.count(24_000 + os.getpid() % 8_000)


def _quiet_port() -> int:
    """Return a free port that none of Ray's own processes takes before it is asked for."""
    for port in _ports:
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("there are no more ports")


def skip_without_ray() -> None:
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'embedding-studio[ray]'")


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[RayCluster]:
    """One node with two cores and two devices that Ray takes for GPUs."""
    skip_without_ray()
    cluster = RayCluster(cpus=2, gpus=2)
    yield cluster
    cluster.stop()


@pytest.fixture
def ray_cluster(shared_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    """The shared cluster, being what `ray:auto` joins."""
    join(shared_cluster, monkeypatch)
    return shared_cluster


def join(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `ray:auto` mean this cluster."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
