import asyncio
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.api.artifacts import zip_chunks
from embedding_studio.errors import CorruptModel, NotFound, StoreUnavailable
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.tasks import ModelFile, StoredModel
from embedding_studio.tracking.reader import open_model
from tests.api.samples import METHOD, Clock, finish_with_model, only_task, session_json, write_model

DATABASE = "sqlite:///mlflow.db"
ROUTE = "/api/2.0/mlflow-artifacts/artifacts"


@pytest.fixture
def task_url(api: TestClient) -> str:
    api.post("/clickstream/session", json=session_json())
    task = api.post("/fine-tuning/task", json={"fine_tuning_method": METHOD}).json()
    return f"/fine-tuning/task/{task['id']}"


class _ArtifactServer(BaseHTTPRequestHandler):
    """The two routes of MLflow's artifact proxy that matter, over a folder."""

    def __init__(self, root: Path, *arguments: object) -> None:
        self._root = root
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == ROUTE:
            folder = self._root / parse_qs(url.query)["path"][0]
            entries = [
                f'{{"path": "{entry.name}", "is_dir": {str(entry.is_dir()).lower()}, '
                f'"file_size": {entry.stat().st_size}}}'
                for entry in (folder.iterdir() if folder.is_dir() else ())
            ]
            content = f'{{"files": [{", ".join(entries)}]}}'.encode()
        else:
            content = (self._root / unquote(url.path.removeprefix(ROUTE + "/"))).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def artifact_server(root: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_ArtifactServer, root)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def unzipped(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        assert members.testzip() is None
        return {name: members.read(name) for name in members.namelist()}


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_model_comes_as_a_zip(
    api: TestClient, store: Store, tmp_path: Path, task_url: str, scheme: str
) -> None:
    """best_model_url gives a ZIP whose root holds the model's files, byte for byte."""
    folder = tmp_path / "a model"
    files = write_model(folder)
    uri = folder.as_uri() if scheme else str(folder)
    finish_with_model(store, uri, files)
    link = api.get(task_url).json()["best_model_url"]
    assert link == f"http://localhost/api/v1{task_url}/model"
    response = api.get(link)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/zip"
    assert only_task(store).id in response.headers["content-disposition"]
    contents = unzipped(response.content)
    assert {path: hashlib.sha256(content).hexdigest() for path, content in contents.items()} == {
        file.path: file.sha256 for file in files
    }


def test_a_model_behind_mlflows_server(store: Store, tmp_path: Path, clock: Clock) -> None:
    """Artifacts that only MLflow's server can reach are read through it."""
    files = write_model(tmp_path / "1/run 1/artifacts/model")
    with artifact_server(tmp_path) as tracking_uri:
        settings = Settings(data_folder=tmp_path, mlflow_tracking_uri=tracking_uri)
        with TestClient(
            create_app(store, settings, clock), base_url="http://localhost/api/v1"
        ) as api:
            api.post("/clickstream/session", json=session_json())
            api.post("/fine-tuning/task", json={"fine_tuning_method": METHOD})
            finish_with_model(store, "mlflow-artifacts:/1/run%201/artifacts/model", files)
            response = api.get(f"/fine-tuning/task/{only_task(store).id}/model")
        assert response.status_code == 200, response.text
        assert set(unzipped(response.content)) == {file.path for file in files}
        gone = open_model(StoredModel("r", "mlflow-artifacts:/2/model", files), tracking_uri)
        with pytest.raises(NotFound, match="is gone"):
            gone.check(files)
    unreachable = open_model(StoredModel("r", "mlflow-artifacts:/1/m", files), tracking_uri)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        unreachable.check(files)


def test_downloads_that_hang_hold_up_nobody_else(
    store: Store,
    settings: Settings,
    clock: Clock,
    task_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While MLflow answers nobody who asks for a model, however many they are, tasks are listed."""
    begun, go_on = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        begun.set()
        go_on.wait(30)
        raise StoreUnavailable("MLflow's server does not answer")

    finish_with_model(store, "/some/model", ())
    monkeypatch.setattr("embedding_studio.api.artifacts.open_model", hang)
    app = create_app(store, settings, clock)

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost/api/v1"
        ) as api:
            asked = [asyncio.create_task(api.get(f"{task_url}/model")) for _ in range(60)]
            while not begun.is_set():
                await asyncio.sleep(0.01)
            listed = await asyncio.wait_for(api.get("/fine-tuning/task"), 10)
            assert listed.status_code == 200
            assert not any(one.done() for one in asked)
            go_on.set()
            return await asyncio.gather(*asked)

    assert {answer.status_code for answer in asyncio.run(ask())} == {503}


def test_no_model_yet_is_404(api: TestClient, task_url: str) -> None:
    """A task without a model says where it stands."""
    response = api.get(f"{task_url}/model")
    assert response.status_code == 404
    assert "pending" in response.json()["detail"]


@pytest.mark.parametrize("damage", ["missing", "shorter"])
def test_a_damaged_model_is_404_before_anything_is_sent(
    api: TestClient, store: Store, tmp_path: Path, task_url: str, damage: str
) -> None:
    """A file that is gone or cut short is named, and no half archive is sent."""
    files = write_model(tmp_path / "model")
    finish_with_model(store, str(tmp_path / "model"), files)
    file = tmp_path / "model/model.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"cut")
    response = api.get(f"{task_url}/model")
    assert response.status_code == 404
    assert "model.safetensors" in response.json()["detail"]


def test_changed_bytes_break_the_download(tmp_path: Path) -> None:
    """A file of the right size and the wrong content never ends in a complete archive."""
    files = write_model(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"a": 2}')
    with pytest.raises(CorruptModel, match=r"config\.json"):
        list(zip_chunks(open_model(StoredModel("r", str(tmp_path), files), DATABASE), files))


def test_the_archive_is_made_chunk_by_chunk(tmp_path: Path) -> None:
    """No chunk is much larger than what is read at once, however large the file."""
    content = bytes(3_000_000)
    (tmp_path / "big").write_bytes(content)
    files = (ModelFile("big", len(content), hashlib.sha256(content).hexdigest()),)
    chunks = list(zip_chunks(open_model(StoredModel("r", str(tmp_path), files), DATABASE), files))
    assert max(map(len, chunks)) < 300_000
    assert unzipped(b"".join(chunks)) == {"big": content}


@pytest.mark.parametrize(
    "uri", ["s3://bucket/model", "mlflow-artifacts:/1/model", "relative/model", "file://host/m"]
)
def test_what_the_api_cannot_read_is_501(
    api: TestClient, store: Store, task_url: str, uri: str
) -> None:
    """Another kind of place is named, with what to configure."""
    finish_with_model(store, uri, (ModelFile("config.json", 1, "0"),))
    response = api.get(f"{task_url}/model")
    assert response.status_code == 501
    assert uri in response.json()["detail"]
