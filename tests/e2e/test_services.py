"""The commands a person types, as a person sees them."""

import json
import signal
import subprocess
import sys
from functools import partial
from os import environ
from pathlib import Path

import httpx
import mlflow
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.projects import RegisteredName
from embedding_studio.settings import Settings
from embedding_studio.tracking import open_tracking
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

PROGRAM = [sys.executable, "-m", "embedding_studio"]


@pytest.mark.timeout(900)
def test_the_demo_on_mongodb_leaves_one_model(tmp_path: Path, secantus_url: str) -> None:
    """`demo` with ES_STORE_URL=mongodb://... goes through pymongo and MLflow: the last line is the
    JSON summary, the iteration has one model on disk beside the initial one, and as champion it
    loads with MLflow and with sentence-transformers, to the same embeddings."""
    settings = Settings(data_folder=tmp_path, api_port=0, mlflow_port=0)
    store = {"ES_STORE_URL": f"{secantus_url.rstrip('/')}/demo"}
    done = subprocess.run(
        [*PROGRAM, "demo", "--sessions", "1000", "--trials", "1"],
        env={**environ, **settings.as_environment(), **store},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["status"] == "done"
    assert summary["trials"] == 1
    assert 0.3 < summary["baseline_ndcg10"] < 0.6
    assert "trials have ended" in done.stdout
    assert "CC BY 4.0" in done.stdout

    tracking = open_tracking(f"sqlite:///{tmp_path / 'demo' / 'mlflow.db'}", tmp_path / "unused")
    experiments = mlflow.search_experiments(filter_string="tags.`es.kind` = 'iteration'")
    assert summary["models_on_disk"] == len(experiments) + 1
    name = RegisteredName("Default Fine Tuning Method")
    if not summary["promoted"]:  # so few sessions seldom convince the gate
        (best,) = mlflow.search_runs(
            [experiments[0].experiment_id], "tags.`es.is_best` = 'true'", output_format="list"
        )
        model = tracking.models.stored(best.info.run_id)
        tracking.registry.set_champion(
            name, tracking.registry.register(name, model, "for this test")
        )
    by_mlflow = mlflow.sentence_transformers.load_model(f"models:/{name}@champion")
    downloads = sorted((tmp_path / "demo" / "downloads").iterdir())
    by_download = SentenceTransformer(str(downloads[-1]))
    words = ["winter", "magnifying glass"]
    np.testing.assert_array_equal(by_mlflow.encode(words), by_download.encode(words))

    suffixes = {path.suffix for path in (tmp_path / "demo" / "artifacts").rglob("*.*")}
    assert ".safetensors" in suffixes
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt"}


def test_up_serves_and_stops_cleanly(tmp_path: Path) -> None:
    """`up` takes free ports when its own are taken, is healthy when it says so, and on Ctrl-C
    ends with all it started, also where a script started it in the background."""
    settings = Settings(data_folder=tmp_path, api_port=0, mlflow_port=0, serve_port=0)
    services = subprocess.Popen(
        [*PROGRAM, "up"],
        env={**environ, **settings.as_environment()},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),
    )
    try:
        assert services.stdout is not None
        line = services.stdout.readline()
        api_url = line.split()[1].removesuffix("/docs")
        with EmbeddingStudioClient(api_url) as client:
            health = client.health()
        assert health.status == "ok"
        assert "Default Fine Tuning Method" in health.worker.methods
        children = _children(services.pid)
        assert len(children) == 4
        vectors_url = line.split()[-1].removesuffix("/docs")
        wait_until(lambda: httpx.get(f"{vectors_url}/health").status_code == 200)
        services.send_signal(signal.SIGINT)
        assert services.wait(60) == 0
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    finally:
        services.terminate()
        services.wait(30)
        if services.stdout is not None:
            services.stdout.close()


def _children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]
