"""What `doctor` finds, with everything there, with nothing there, and with something broken."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedding_studio import doctor
from embedding_studio.cli.app import app
from embedding_studio.doctor import Finding, Status, examine
from embedding_studio.errors import StoreUnavailable
from embedding_studio.settings import Settings
from embedding_studio.store import open_store
from embedding_studio.tracking.probe import probe_artifacts

pytestmark = pytest.mark.slow
LOST = """
from tests.toys.toys import Toy
from embedding_studio import PluginMeta

class Lost(Toy):
    meta = PluginMeta(name="Lost")

    def check_initial_model(self):
        raise OSError("no model at /m: put one there")
"""


def found(settings: Settings) -> dict[str, list[Finding]]:
    """Return the findings by what they are about."""
    findings: dict[str, list[Finding]] = {}
    for one in examine(settings):
        findings.setdefault(one.check, []).append(one)
    return findings


def test_nothing_is_made_where_there_was_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty folder the missing store and MLflow are no failure, the missing method is; each
    says what to do, the command ends with 1, and the folder stays empty."""
    monkeypatch.setenv("ES_DATA_FOLDER", str(tmp_path / "data"))
    monkeypatch.setenv("ES_PLUGINS_FOLDER", str(tmp_path / "plugins"))
    monkeypatch.setenv("ES_API_PORT", "1")
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 1
    findings = {one["check"]: one for one in json.loads(done.stdout)}
    told = {name: one["status"] for name, one in findings.items()}
    assert told == {
        "store": "warn", "MLflow": "warn", "artifacts": "warn", "disk": told["disk"],
        "API": "warn", "executor": "ok", "plugin": "fail", "GPU": "ok",
    }  # fmt: skip
    assert all(one["mend"] for one in findings.values() if one["status"] != "ok")
    assert "ES_PLUGINS_FOLDER" in findings["plugin"]["mend"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_tried(settings: Settings) -> None:
    """The store is written, the artifacts are written, read and deleted, and a worker that is not
    there is told of; nothing is left behind."""
    open_store(settings.resolved_store_url).close()
    settings.artifacts_folder.mkdir()
    (broken := settings.data_folder / "plugins").mkdir()
    (broken / "broken.py").write_text("import nothing_of_that_name")
    findings = found(settings.replaced(plugins_folder=broken, api_port=1))
    assert [one.status for one in findings["store"]] == [Status.OK]
    assert [one.status for one in findings["MLflow"]] == [Status.OK]
    assert [one.status for one in findings["artifacts"]] == [Status.OK]
    assert [one.status for one in findings["clock"]] == [Status.OK]
    assert findings["worker"][0].status is Status.WARN
    assert "nothing_of_that_name" in findings["plugin"][0].found
    assert list(settings.artifacts_folder.iterdir()) == []


def test_a_method_without_its_model_cannot_start(settings: Settings) -> None:
    """Its plugin loads; what it would start from is missing, in the method's own words."""
    folder = settings.data_folder / "plugins"
    folder.mkdir()
    (folder / "lost.py").write_text(LOST)
    findings = found(settings.replaced(api_port=1, plugins_folder=folder))
    assert [(one.status, one.found) for one in findings["plugin"]] == [(Status.OK, "Lost loads")]
    (one,) = findings["initial model"]
    assert one.status is Status.FAIL
    assert one.found == "Lost cannot start: no model at /m: put one there"


def test_a_part_that_fails_says_how_to_mend_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that raises is a failure with its reason and what to do; the others go on."""
    wrong = settings.replaced(
        store_url="mysql://host/db", executor="cloud", api_port=1,
        mlflow_tracking_uri="http://127.0.0.1:1",
    )  # fmt: skip
    monkeypatch.setattr(doctor, "_LOOKS", doctor._LOOKS[:-1])
    findings = found(wrong)
    for check, word in (
        ("store", "ES_STORE_URL"), ("MLflow", "ES_MLFLOW_TRACKING_URI"),
        ("artifacts", "--serve-artifacts"), ("executor", "ES_EXECUTOR"),
    ):  # fmt: skip
        (one,) = findings[check]
        assert one.status is Status.FAIL
        assert word in one.mend


def test_a_clock_that_is_off_is_told_of() -> None:
    """By more than five seconds, either way."""
    assert doctor._clock("the store's", 4).status is Status.OK
    for seconds in (6, -6):
        one = doctor._clock("the store's", seconds)
        assert one.status is Status.FAIL
        assert f"{seconds:+.0f} s off the store's" in one.found


@contextmanager
def artifact_server(does_forget: bool) -> Iterator[str]:
    """Serve MLflow's route for artifacts, of which it may forget the content."""
    kept: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            kept[self.path] = b"" if does_forget else content
            self.answer(b"{}")

        def do_GET(self) -> None:
            self.answer(kept[self.path])

        def do_DELETE(self) -> None:
            del kept[self.path]
            self.answer(b"{}")

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *what: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
    assert kept == {}


def test_artifacts_behind_a_server_are_tried_through_it(tmp_path: Path) -> None:
    """A file goes there, comes back and is deleted; one that comes back changed is an error."""
    with artifact_server(does_forget=False) as url:
        assert probe_artifacts(url, tmp_path) == url
    with (
        artifact_server(does_forget=True) as url,
        pytest.raises(StoreUnavailable, match="does not give back"),
    ):
        probe_artifacts(url, tmp_path)
