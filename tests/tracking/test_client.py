"""MLflow's client: what is retried, and what it finds in its environment."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION
from mlflow.exceptions import MlflowException

from embedding_studio.executors.base import Report
from embedding_studio.tracking import open_tracking


class FaultyServer(ThreadingHTTPServer):
    """Answers each request with the next status of `plan` (0: hangs up), then with 200."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _FaultyHandler)
        self.plan: list[int] = []
        self.requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _FaultyHandler(BaseHTTPRequestHandler):
    server: FaultyServer

    def do_POST(self) -> None:
        self.server.requests += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.plan.pop(0) if self.server.plan else 200
        if status == 0:
            self.connection.close()
            return
        body = b'{"error_code": "SOME_ERROR", "message": "no"}' if status >= 400 else b"{}"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    opened = FaultyServer()
    thread = threading.Thread(target=opened.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield opened
    opened.shutdown()
    opened.server_close()
    thread.join()


@pytest.mark.parametrize("fault", [500, 502, 503, 504, 0])
def test_a_failing_server_is_asked_again(server: FaultyServer, fault: int, tmp_path: Path) -> None:
    """5xx answers and lost connections cost a retry, not a report."""
    server.plan = [fault, fault]
    open_tracking(server.url, tmp_path).runs.log_reports("run", [Report(0, {"metric": 0.5})])
    assert server.requests == 3


@pytest.mark.parametrize("refusal", [400, 403, 404])
def test_a_refusal_is_never_retried(server: FaultyServer, refusal: int, tmp_path: Path) -> None:
    """A 4xx answer is the answer."""
    server.plan = [refusal] * 5
    with pytest.raises(MlflowException):
        open_tracking(server.url, tmp_path).runs.log_reports("run", [Report(0, {"metric": 0.5})])
    assert server.requests == 1


@pytest.mark.slow
def test_mlflow_sends_nothing_to_its_makers(tmp_path: Path) -> None:
    """Its telemetry is off when it is loaded, on a machine that is not known for tests."""
    program = (
        "from pathlib import Path; from embedding_studio.tracking import open_tracking; "
        "open_tracking('http://127.0.0.1:1', Path('artifacts')); "
        "from mlflow.telemetry import get_telemetry_client; print(get_telemetry_client())"
    )
    here = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=here, check=True)
    assert done.stdout.split() == ["None"]
    assert not list(tmp_path.iterdir())  # where MLflow would keep who it reports on


@pytest.mark.usefixtures("tracking")
def test_mlflow_may_not_unpickle() -> None:
    """Whoever loads a model through MLflow in our processes cannot run what it brings."""
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert not MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get()  # type: ignore[no-untyped-call]
