"""The API, a worker, vectors and the MLflow UI as child processes of one command."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import IO, Any

from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.clock import utc_now
from embedding_studio.errors import ConfigurationError, EmbeddingStudioError
from embedding_studio.settings import Settings
from embedding_studio.tracking.environment import set_environment
from embedding_studio.workers import id_beginning

log = logging.getLogger(__name__)

START_SECONDS = 180.0
STOP_SECONDS = 15.0


class Services:
    """Started on entering, ready when entered, stopped on leaving, also on Ctrl-C or SIGTERM.

    Ports that are taken are replaced by free ones. An MLflow named by ES_MLFLOW_TRACKING_URI as
    http(s) is used as it is; else MLflow's UI is served from the local database."""

    def __init__(
        self, settings: Settings, logs: Path | None = None, with_vectors: bool = False
    ) -> None:
        """Take a folder for the services' output; None lets them write to this terminal.

        with_vectors: `serve` is one of them."""
        own_mlflow = not settings.resolved_tracking_uri.startswith("http")
        changes: dict[str, Any] = {"api_port": _free_port(settings.api_host, settings.api_port)}
        if own_mlflow:
            port = _free_port(settings.api_host, settings.mlflow_port)
            changes["mlflow_port"] = port
            changes["mlflow_public_url"] = f"http://{settings.api_host}:{port}"
        if with_vectors:
            changes["serve_port"] = _free_port(settings.api_host, settings.serve_port)
        self.settings = settings.replaced(**changes)
        self._with_vectors = with_vectors
        self.api_url = self.settings.replaced(api_url=None).api_address
        self._own_mlflow = own_mlflow
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def client(self) -> EmbeddingStudioClient:
        """Return a client of this API."""
        return client_of(self.settings, self.api_url)

    def pid(self, name: str) -> int:
        """Return the process id of the "API", the "worker", "vectors" or the "MLflow UI"."""
        return self._processes[name].pid

    def describe(self) -> str:
        settings = self.settings
        vectors = f" · vectors http://{settings.api_host}:{settings.serve_port}/docs"
        return (
            f"API {self.api_url}/docs · MLflow {settings.mlflow_public_url}"
            f"{vectors if self._with_vectors else ''}"
        )

    def __enter__(self) -> "Services":
        # SIGINT too: a script's `up &` starts with it ignored
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _as_keyboard_interrupt)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> bool:
        self.stop()
        return kind is KeyboardInterrupt

    def wait(self) -> None:
        """Return when a service ends by itself, which none should: raises ConfigurationError."""
        while True:
            self.check()
            time.sleep(0.5)

    def check(self) -> None:
        """Raise ConfigurationError if a service has ended, with the tail of its log."""
        for name, process in self._processes.items():
            if (code := process.poll()) is not None:
                raise ConfigurationError(
                    f"the {name} ended with exit status {code}{self._tail(name)}"
                )

    def stop(self) -> None:
        """Ask all to end, and kill what does not within 15 seconds."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for name, process in self._processes.items():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("the %s did not end in time and was killed", name)
                process.kill()
                process.wait()

    def _start(self) -> None:
        settings = self.settings
        set_environment()  # MLflow's server inherits it
        settings.artifacts_folder.mkdir(parents=True, exist_ok=True)
        program = [sys.executable, "-m", "embedding_studio"]
        self._spawn("API", [*program, "api"])
        self._spawn("worker", [*program, "worker", "--new"])  # it may be there before the API
        if self._own_mlflow:
            # the worker creates MLflow's tables first: two creators at once would collide
            self._wait_until_ready()
            self._spawn(
                "MLflow UI",
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                    *("--backend-store-uri", settings.resolved_tracking_uri),
                    *("--default-artifact-root", str(settings.artifacts_folder)),
                    *("--host", settings.api_host, "--port", str(settings.mlflow_port)),
                ],
            )
            self._wait_until_up(settings.api_host, settings.mlflow_port, "MLflow")
        self._wait_until_ready("store", "mlflow")
        if self._with_vectors:  # which opens the store that the API made
            self._spawn("vectors", [*program, "serve"])
            self._wait_until_up(settings.api_host, settings.serve_port, "serve")

    def _spawn(self, name: str, command: list[str]) -> None:
        with self._open_log(name) as output:
            # a session of its own: Ctrl-C reaches us alone, and we stop the services in order
            self._processes[name] = subprocess.Popen(
                command,
                env={**os.environ, **self.settings.as_environment()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _open_log(self, name: str) -> IO[bytes]:
        """Without a folder for logs, this terminal's error stream: standard output is ours."""
        if self._logs is None:
            return os.fdopen(os.dup(sys.stderr.fileno()), "ab")
        self._logs.mkdir(parents=True, exist_ok=True)
        return self._log_file(name).open("ab")

    def _wait_until_ready(self, *parts: str) -> None:
        """Wait until the API finds those, and our worker has told of itself."""
        deadline = time.monotonic() + START_SECONDS
        with client_of(self.settings, self.api_url, timeout=5.0, retry_seconds=1.0) as client:
            while missing := self._missing(client, parts):
                self.check()
                if time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"not ready after {START_SECONDS:.0f} s: {', '.join(missing)}"
                        f"{self._tail('worker')}"
                    )
                time.sleep(0.2)

    def _missing(self, client: EmbeddingStudioClient, parts: Iterable[str]) -> list[str]:
        try:
            health = client.health()
        except EmbeddingStudioError:
            return ["API"]
        found = {"store": health.store, "mlflow": health.mlflow}
        missing = [part for part in parts if found[part].status == "unavailable"]
        return missing if self._has_worker() else [*missing, "worker"]

    def _has_worker(self) -> bool:
        """The API tells of any worker: one that was killed a moment ago may still count there."""
        from embedding_studio.store import open_store

        with closing(open_store(self.settings.resolved_store_url)) as store:
            seen = store.workers.seen(utc_now() - timedelta(seconds=START_SECONDS))
        return any(one.worker_id.startswith(id_beginning(self.pid("worker"))) for one in seen)

    def _wait_until_up(self, host: str, port: int, what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not _is_taken(host, port):
            self.check()
            if time.monotonic() > deadline:
                raise ConfigurationError(f"{what} is not up after {START_SECONDS:.0f} s")
            time.sleep(0.2)

    def _log_file(self, name: str) -> Path:
        assert self._logs is not None
        return self._logs / f"{name.lower().replace(' ', '-')}.log"

    def _tail(self, name: str) -> str:
        if self._logs is None:
            return ""
        lines = self._log_file(name).read_text(errors="replace").splitlines()[-15:]
        return f"; the end of {self._log_file(name)}:\n" + "\n".join(lines)


def client_of(
    settings: Settings,
    url: str | None = None,
    timeout: float = 30.0,
    retry_seconds: float = 60.0,
) -> EmbeddingStudioClient:
    """Return a client of the API at an address, by default of the one that the settings name, with
    the key that ES_API_KEY names."""
    key = settings.api_key
    return EmbeddingStudioClient(
        url or settings.api_address,
        key.get_secret_value() if key else None,
        timeout=timeout,
        retry_seconds=retry_seconds,
    )


def _as_keyboard_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _free_port(host: str, wanted: int) -> int:
    """Return `wanted` if nobody listens there, else a port that the system calls free."""
    if wanted != 0 and not _is_taken(host, wanted):
        return wanted
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _is_taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0
