"""A stored model as MLflow's own tools meet it: loaded, described and served."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pytest
from mlflow.models import Model
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

from embedding_studio.settings import Settings
from embedding_studio.tracking import open_tracking
from embedding_studio.tracking.tracking import Tracking
from tests.iterations import TOY
from tests.servers import free_port
from tests.training.tiny import write_tiny_model
from tests.waiting import wait_until

TEXTS = ["winter jacket", "down parka"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny = SentenceTransformer(str(write_tiny_model(folder / "tiny")))
    tiny.save(str(folder / "saved"), create_model_card=False)
    return folder / "saved"


@pytest.fixture
def tracking(settings: Settings) -> Tracking:
    return open_tracking(settings.resolved_tracking_uri, settings.artifacts_folder)


@pytest.fixture
def champion(tracking: Tracking, encoder_folder: Path) -> Path:
    """The folder of a registered champion, whose name is `Toy`, as MLflow keeps it."""
    model = tracking.models.store_initial(TOY, encoder_folder)
    tracking.registry.set_champion(TOY, tracking.registry.register(TOY, model, "a test's"))
    return Path(model.artifact_uri).parent


def test_a_model_says_what_it_takes_and_needs(champion: Path) -> None:
    """Signature, example and environment are there, and every requirement is in a registry."""
    model = Model.load(champion / "MLmodel")
    assert model.signature is not None
    assert str(model.signature.inputs) == "[string (required)]"
    example = json.loads((champion / "serving_input_example.json").read_text())
    assert example == {"inputs": TEXTS}
    assert mlflow.pyfunc.load_model(str(champion)).input_example == TEXTS
    pins = (champion / "requirements.txt").read_text().split()
    assert {"torch", "sentence-transformers"} <= {pin.partition("==")[0] for pin in pins}
    assert not [pin for pin in pins if "+" in pin]
    conda = json.loads((champion / "conda.yaml").read_text())
    assert conda["dependencies"][-1] == {"pip": pins}
    environment = json.loads((champion / "python_env.yaml").read_text())
    assert environment["dependencies"] == ["-r requirements.txt"]
    for flavor in ("conda", "virtualenv"):
        name = model.flavors["python_function"]["env"][flavor]
        assert (champion / name).exists()


@pytest.mark.usefixtures("champion")
def test_a_champion_loads_by_its_alias(encoder_folder: Path) -> None:
    """As a function and as a sentence-transformers model it gives the encoder's own vectors."""
    expected = SentenceTransformer(str(encoder_folder)).encode(TEXTS)
    native = mlflow.sentence_transformers.load_model("models:/Toy@champion")
    np.testing.assert_array_equal(native.encode(TEXTS), expected)
    function = mlflow.pyfunc.load_model("models:/Toy@champion")
    np.testing.assert_array_equal(function.predict(TEXTS), expected)
    given = {"task": "query", "prompt_name": None}
    np.testing.assert_array_equal(function.predict(TEXTS, params=given), expected)


def test_a_model_of_another_kind_is_stored_without_a_flavor(
    tracking: Tracking, tmp_path: Path
) -> None:
    """MLflow knows that it is there; its method knows how to load it."""
    (saved := tmp_path / "saved").mkdir()
    save_file({"w": np.ones(3)}, saved / "arrays.safetensors")
    folder = Path(tracking.models.store_initial(TOY, saved).artifact_uri).parent
    assert Model.load(folder / "MLmodel").flavors == {}
    assert (folder / "data" / "arrays.safetensors").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("champion")
def test_mlflow_serves_a_champion(settings: Settings, encoder_folder: Path, tmp_path: Path) -> None:
    """`mlflow models serve` as MLflow documents it answers with what `encode` gives."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/Toy@champion"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of uvicorn
    environment = {"MLFLOW_TRACKING_URI": settings.resolved_tracking_uri, "PATH": path}
    with (tmp_path / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local", "--port", str(port)],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def answers() -> bool:
        assert server.poll() is None, (tmp_path / "serve.log").read_text()
        try:
            return httpx.get(f"{url}/ping").is_success
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, seconds=120)
        answer: Any = httpx.post(f"{url}/invocations", json={"inputs": TEXTS}, timeout=60)
        assert answer.status_code == 200, answer.text
        expected = SentenceTransformer(str(encoder_folder)).encode(TEXTS)
        np.testing.assert_allclose(answer.json()["predictions"], expected, atol=1e-6)
        given = {"inputs": TEXTS, "params": {"task": "query"}}
        answer = httpx.post(f"{url}/invocations", json=given, timeout=60)
        np.testing.assert_allclose(answer.json()["predictions"], expected, atol=1e-6)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)  # the server and its worker
            server.wait()
