"""Files of models read without MLflow: nothing leads out of their folder."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from embedding_studio.errors import ConfigurationError, NotFound, StoreUnavailable
from embedding_studio.tasks import ModelFile, StoredModel
from embedding_studio.tracking.reader import open_model
from tests.api.samples import write_model

DATABASE = "sqlite:///mlflow.db"


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/passwd", "a\\..\\b", ""])
def test_paths_that_lead_out_are_refused(tmp_path: Path, path: str) -> None:
    """A recorded path cannot leave the model's folder."""
    with pytest.raises(NotFound, match="leads out"):
        open_model(StoredModel("r", str(tmp_path), (ModelFile(path, 1, "0"),)), DATABASE)


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    """A symbolic link in the model's folder is not followed out of it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_bytes(b"s")
    (tmp_path / "model/link").symlink_to(tmp_path / "secret")
    files = (ModelFile("link", 1, "0"),)
    with pytest.raises(NotFound, match="leads out"):
        open_model(StoredModel("r", str(tmp_path / "model"), files), DATABASE).check(files)


def test_a_proxied_folder_cannot_lead_out(tmp_path: Path) -> None:
    """The folder's own path is checked as well."""
    model = StoredModel("r", "mlflow-artifacts:/1/%2e%2e/%2e%2e/x", write_model(tmp_path))
    with pytest.raises(NotFound, match="leads out"):
        open_model(model, "http://127.0.0.1:1")


def test_a_server_without_artifacts_says_so(tmp_path: Path) -> None:
    """An MLflow server that does not hand out artifacts gives a clear error."""
    files = write_model(tmp_path)

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        model = StoredModel("r", "mlflow-artifacts:/1/model", files)
        folder = open_model(model, f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StoreUnavailable, match="serve-artifacts"):
            folder.check(files)
        thread.join()


def test_configuration_errors_are_told_apart() -> None:
    """An MLflow path without an MLflow server names the setting."""
    model = StoredModel("r", "mlflow-artifacts:/1/model", ())
    with pytest.raises(ConfigurationError, match="ES_MLFLOW_TRACKING_URI"):
        open_model(model, DATABASE)
