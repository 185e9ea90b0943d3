import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from embedding_studio.errors import EmbeddingStudioError
from embedding_studio.wire.errors import STATUS_BY_ERROR

HEAVY = {"torch", "mlflow", "optuna", "sentence_transformers", "numpy", "ray", "apscheduler"}


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    ).stdout


@pytest.mark.parametrize("module", ["embedding_studio.api.server", "embedding_studio.client"])
def test_importing_stays_light(module: str) -> None:
    """Neither the API nor the client loads a training or tracking library."""
    loaded = run_python(f"import sys, {module}; print(*sys.modules)").split()
    assert HEAVY.isdisjoint(loaded)
    assert "fastapi" not in loaded or module == "embedding_studio.api.server"


def test_every_route_is_documented(api: TestClient) -> None:
    """Each operation has a summary, and documents its errors with our body."""
    paths = api.get("http://localhost/openapi.json").json()["paths"]
    operations = {
        f"{method} {path}": operation
        for path, methods in paths.items()
        for method, operation in methods.items()
    }
    assert operations
    for name, operation in operations.items():
        assert operation["summary"], name
        if not name.endswith("/ping"):
            assert "503" in operation["responses"], name
        if "{task_id}" in name:
            assert "404" in operation["responses"], name


def test_examples_of_the_manual_work(api: TestClient) -> None:
    """Each example body that the manual shows is accepted as it is."""
    document = api.get("http://localhost/openapi.json").json()
    tried = 0
    for path in (
        "/api/v1/clickstream/session",
        "/api/v1/clickstream/session/events",
        "/api/v1/fine-tuning/task",
    ):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        name = content["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
        for example in document["components"]["schemas"][name]["examples"]:
            response = api.post(f"http://localhost{path}", json=example)
            assert response.status_code == 200, response.text
            tried += 1
    assert tried == 3


def test_the_manual_is_served(api: TestClient) -> None:
    """/docs answers."""
    assert api.get("http://localhost/docs").status_code == 200


def test_errors_of_this_package_alone_are_mapped() -> None:
    """The table maps each error once, and leaves programming errors to be 500."""
    assert all(issubclass(error, EmbeddingStudioError) for error in STATUS_BY_ERROR)
    assert EmbeddingStudioError not in STATUS_BY_ERROR


@contextmanager
def served(folder: Path, **environment: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start the API as a process; yield it and its URL."""
    code = (
        "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
        "from embedding_studio.api.server import serve\n"
        "from embedding_studio.settings import Settings\n"
        "serve(Settings())\n"
        "print('ended', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "ES_DATA_FOLDER": str(folder), "ES_API_PORT": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        try:
            yield process, next(word for word in line.split() if word.startswith("http")).strip(",")
        finally:
            process.kill()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_server_starts_and_ends_cleanly(tmp_path: Path, ending: signal.Signals) -> None:
    """It logs its URL, answers there, and returns normally on Ctrl-C and on SIGTERM."""
    with served(tmp_path) as (process, url):
        assert httpx.get(f"{url}/api/v1/ping").status_code == 200
        process.send_signal(ending)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert output == "ended\n"
    assert "Traceback" not in errors


@pytest.mark.slow
def test_an_api_that_all_can_reach_needs_a_key(tmp_path: Path) -> None:
    """Without a key it does not start, and says which command to run; once that was run it starts,
    and the printed key opens it."""
    command = [sys.executable, "-m", "embedding_studio"]
    environment = {
        **os.environ,
        "ES_DATA_FOLDER": str(tmp_path),
        "ES_API_HOST": "0.0.0.0",
        "ES_API_PORT": "0",
    }

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*command, *words], env=environment, capture_output=True, text=True, timeout=60
        )

    refused = run("api")
    assert refused.returncode == 1
    assert "`embedding-studio keys create --name first --scope admin`" in refused.stderr
    key = run("keys", "create", "--name", "first", "--scope", "admin").stdout.strip()
    with served(tmp_path, ES_API_HOST="0.0.0.0") as (_, url):
        tasks = f"{url.replace('0.0.0.0', '127.0.0.1')}/api/v1/fine-tuning/task"
        assert httpx.get(tasks).status_code == 401
        assert httpx.get(tasks, headers={"Authorization": f"Bearer {key}"}).status_code == 200


@pytest.mark.slow
def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    """The address that is taken and the setting to change are named."""
    with served(tmp_path) as (_, url):
        port = url.rsplit(":", 1)[1]
        code = (
            "from embedding_studio.api.server import serve\n"
            "from embedding_studio.settings import Settings\n"
            "from embedding_studio.errors import ConfigurationError\n"
            f"try: serve(Settings(api_port={port}, data_folder={str(tmp_path)!r}))\n"
            "except ConfigurationError as error: print(error)"
        )
        message = run_python(code)
    assert port in message
    assert "ES_API_PORT" in message
