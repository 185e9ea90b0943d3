"""The search of a task, as a file."""

import json
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from optuna import load_study
from optuna.storages import RDBStorage

from embedding_studio.api.app import create_app
from embedding_studio.errors import StoreUnavailable
from embedding_studio.tracking.reader import open_summary
from tests.api.test_model_download import _ArtifactServer
from tests.iterations import Bench


@pytest.mark.draws
def test_a_study_comes_as_a_file_that_optuna_opens(bench: Bench, tmp_path: Path) -> None:
    """It has the task's trials; before there is one, the answer says so."""
    api = TestClient(
        create_app(bench.house.store, bench.house.settings), base_url="http://localhost"
    )
    waiting = bench.post_task()
    early = api.get(f"/api/v1/fine-tuning/task/{waiting.id}/study")
    assert early.status_code == 404
    assert "has no study, not yet or no longer: it is pending" in early.text
    bench.post_sessions()
    assert bench.worker.work_once()
    answer = api.get(f"/api/v1/fine-tuning/task/{waiting.id}/study")
    assert f"study-{waiting.id}.db" in answer.headers["content-disposition"]
    file = tmp_path / "study.db"
    file.write_bytes(answer.content)
    storage = RDBStorage(f"sqlite:///{file}")
    study = load_study(study_name=None, storage=storage)
    runs = bench.runs(bench.house.store.tasks.get(waiting.id))
    assert {one.user_attrs["run_id"] for one in study.trials[1:]} == {r.info.run_id for r in runs}
    storage.remove_session()
    storage.engine.dispose()


class _Tracker(_ArtifactServer):
    """MLflow's search of runs beside its artifacts; of experiment 2 there is no summary."""

    def do_POST(self) -> None:  # noqa: N802 - http.server calls it so
        assert self.path == "/api/2.0/mlflow/runs/search"
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["filter"] == "tags.`es.kind` = 'summary'"
        found = [{"info": {"artifact_uri": "mlflow-artifacts:/1/run/artifacts"}}]
        content = json.dumps({"runs": found} if asked["experiment_ids"] == ["1"] else {}).encode()
        self.send_response(500 if asked["experiment_ids"] == ["3"] else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def test_a_server_of_mlflow_is_asked(tmp_path: Path) -> None:
    """Its search of runs tells where the file is, and it hands it out; what it does not answer is
    an outage."""
    folder = tmp_path / "1" / "run" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "study.db").write_bytes(b"a study")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Tracker, tmp_path)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        found = open_summary("1", uri)
        assert found is not None
        assert b"".join(found.read("study.db")) == b"a study"
        assert open_summary("2", uri) is None
        with pytest.raises(StoreUnavailable, match="answered 500 for its runs"):
            open_summary("3", uri)
        server.shutdown()
    with pytest.raises(StoreUnavailable, match="does not answer"):
        open_summary("1", uri)
