"""The ledger: what is retried, what is named how, and what of a model is kept."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow.sentence_transformers
import numpy as np
import pytest
import sqlalchemy as sa
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as LedgerStore
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW

from embedding_studio.errors import ConfigurationError, CorruptModel
from embedding_studio.executors.base import Report
from embedding_studio.projects import RegisteredName
from embedding_studio.settings import Settings
from embedding_studio.tracking import open_tracking
from embedding_studio.tracking.runs import aggregate
from embedding_studio.tracking.tracking import Tracking
from tests.iterations import TOY


@pytest.fixture
def tracking(settings: Settings) -> Tracking:
    return open_tracking(settings.resolved_tracking_uri, settings.artifacts_folder)


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


def test_the_name_of_a_deleted_experiment_gets_a_suffix(tracking: Tracking) -> None:
    """An iteration on the same batch finds a name although MLflow keeps the old one taken."""
    first = tracking.iterations.open("task-1", TOY, "batch", "start")
    assert tracking.iterations.open("task-1", TOY, "batch", "start") == first
    tracking.iterations.remove(first.experiment_id)
    tracking.iterations.remove(first.experiment_id)  # again changes nothing
    second = tracking.iterations.open("task-2", TOY, "batch", "start")
    assert second.experiment_id != first.experiment_id
    name = tracking.client.reading.get_experiment(second.experiment_id).name
    assert name == "iteration / Toy / batch / 2"


def test_two_workers_may_remove_the_same_iteration_at_once(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another worker removes between a look and a removal is no error: both have succeeded."""
    opened = tracking.iterations.open("task-1", TOY, "batch", "start")
    save_file({"array": np.ones(3)}, tmp_path / "model.safetensors")
    (folder := tmp_path / "folder").mkdir()
    (tmp_path / "model.safetensors").rename(folder / "model.safetensors")
    run_id = tracking.runs.start_baseline(opened.experiment_id)
    model = tracking.models.upload(run_id, folder)
    tracking.registry.set_champion(TOY, tracking.registry.register(TOY, model, "why"))
    tracking.iterations.open("task-2", RegisteredName("Other"), "batch", "start")
    looked = threading.Barrier(2, timeout=10)
    original = type(tracking.client.reading).get_experiment

    def look_together(client: MlflowClient, experiment_id: str) -> object:
        found = original(client, experiment_id)
        looked.wait()
        return found

    monkeypatch.setattr(type(tracking.client.reading), "get_experiment", look_together)
    with ThreadPoolExecutor(2) as workers:
        for done in [
            workers.submit(tracking.iterations.remove, opened.experiment_id) for _ in "12"
        ]:
            done.result()
    assert not tracking.iterations.of_task("task-1")


def test_trials_from_another_start_are_not_mixed_in(tracking: Tracking) -> None:
    """If the champion changed between two attempts, the task's search begins anew."""
    first = tracking.iterations.open("task-1", TOY, "batch", "start-a")
    second = tracking.iterations.open("task-1", TOY, "batch", "start-b")
    assert second.experiment_id != first.experiment_id
    assert second.generation == first.generation + 1
    old = tracking.client.reading.get_experiment(first.experiment_id)
    assert old.tags["es.state"] == "abandoned"


def save_arrays(folder: Path, seed: int = 0) -> Path:
    folder.mkdir()
    save_file({"w": np.random.default_rng(seed).random((4, 4))}, folder / "arrays.safetensors")
    return folder


def test_a_model_round_trips_and_its_bytes_go_when_it_is_deleted(
    tracking: Tracking, tmp_path: Path
) -> None:
    """What is uploaded is what is downloaded; deleted means gone from the disk, the run kept."""
    model = tracking.models.store_initial(TOY, save_arrays(tmp_path / "saved"))
    assert tracking.models.stored(model.run_id) == model
    tracking.models.download(model, tmp_path / "copy")
    assert (tmp_path / "copy" / "arrays.safetensors").read_bytes() == (
        tmp_path / "saved" / "arrays.safetensors"
    ).read_bytes()
    tracking.models.delete(model.run_id)
    tracking.models.delete(model.run_id)
    assert list((tmp_path / "artifacts").rglob("*.safetensors")) == []
    run = tracking.client.reading.get_run(model.run_id)
    assert (run.info.lifecycle_stage, run.data.tags["es.model"]) == ("active", "deleted")


def test_an_initial_model_is_uploaded_once(tracking: Tracking, tmp_path: Path) -> None:
    """The same files are the same run; other files, of another ES_INITIAL_MODEL, are another."""
    first = tracking.models.store_initial(TOY, save_arrays(tmp_path / "a"))
    other = tracking.models.store_initial(RegisteredName("Other"), save_arrays(tmp_path / "b"))
    assert tracking.models.store_initial(TOY, save_arrays(tmp_path / "c")) == first
    second = tracking.models.store_initial(TOY, save_arrays(tmp_path / "d", seed=1))
    assert second.run_id not in (first.run_id, other.run_id)
    folders = {path.parts[-5] for path in (tmp_path / "artifacts").rglob("*.safetensors")}
    assert folders == {first.run_id, second.run_id, other.run_id}


def test_a_missing_file_is_noticed(tracking: Tracking, tmp_path: Path) -> None:
    """A model without one of its files is refused with the file's name and the run's id."""
    model = tracking.models.store_initial(TOY, save_arrays(tmp_path / "saved"))
    (file,) = (tmp_path / "artifacts").rglob("*.safetensors")
    file.unlink()
    with pytest.raises(CorruptModel, match=rf"arrays.safetensors .* {model.run_id}"):
        tracking.models.download(model, tmp_path / "copy")


def test_a_local_model_takes_its_space_once(tracking: Tracking, tmp_path: Path) -> None:
    """Upload and download give the same bytes another name; deleting one leaves the others."""
    saved = save_arrays(tmp_path / "saved")
    model = tracking.models.store_initial(TOY, saved)
    tracking.models.download(model, tmp_path / "copy")
    (stored,) = (tmp_path / "artifacts").rglob("*.safetensors")
    assert stored.samefile(saved / "arrays.safetensors")
    assert stored.samefile(tmp_path / "copy" / "arrays.safetensors")
    tracking.models.delete(model.run_id)
    assert (tmp_path / "copy" / "arrays.safetensors").exists()


def test_where_files_cannot_share_bytes_they_are_copied(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across file systems, and for a link in the saved folder, the bytes themselves are stored."""
    outside = save_arrays(tmp_path / "outside") / "arrays.safetensors"
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "arrays.safetensors").symlink_to(outside)
    first = tracking.models.store_initial(RegisteredName("Linked"), linked)

    def refuse(*_: object) -> None:
        raise OSError("invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    second = tracking.models.store_initial(TOY, save_arrays(tmp_path / "saved"))
    for number, model in enumerate([first, second]):
        copy = tmp_path / f"copy-{number}"
        tracking.models.download(model, copy)
        assert (copy / "arrays.safetensors").read_bytes() == outside.read_bytes()
    for stored in (tmp_path / "artifacts").rglob("*.safetensors"):
        assert not stored.is_symlink()
        assert stored.stat().st_nlink == 1


def test_an_empty_model_is_refused(tracking: Tracking, tmp_path: Path) -> None:
    """A method that saves nothing does not get a model stored."""
    (tmp_path / "saved").mkdir()
    with pytest.raises(CorruptModel, match="saved no file"):
        tracking.models.store_initial(TOY, tmp_path / "saved")
    assert list((tmp_path / "artifacts").rglob("*.*")) == []


@pytest.mark.parametrize("name", ["weights.pkl", "pytorch_model.bin", "model.py", "noending"])
def test_files_that_may_run_code_are_refused(tracking: Tracking, tmp_path: Path, name: str) -> None:
    """A pickle or a script is no part of a model: nothing of such a one is stored."""
    saved = save_arrays(tmp_path / "saved")
    (saved / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(CorruptModel, match=f"{name}.*safetensors"):
        tracking.models.store_initial(TOY, saved)
    assert list((tmp_path / "artifacts").rglob("*.*")) == []


def test_a_list_of_files_that_was_changed_is_refused(tracking: Tracking, tmp_path: Path) -> None:
    """Who can write to the artifacts cannot put a model of their own in a champion's place."""
    model = tracking.models.store_initial(TOY, save_arrays(tmp_path / "saved"))
    (manifest,) = (tmp_path / "artifacts").rglob("files.json")
    manifest.write_text(manifest.read_text().replace(model.files[0].sha256, "0" * 64))
    with pytest.raises(CorruptModel, match=f"files.json of the model of run {model.run_id}"):
        tracking.models.stored(model.run_id)


def test_a_file_that_nobody_saved_is_not_loaded(tracking: Tracking, tmp_path: Path) -> None:
    """What lies beside a model's files stays where it is."""
    model = tracking.models.store_initial(TOY, save_arrays(tmp_path / "saved"))
    (stored,) = (tmp_path / "artifacts").rglob("*.safetensors")
    (stored.parent / "modules.json").write_text("[]")
    tracking.models.download(model, tmp_path / "copy")
    assert [file.name for file in (tmp_path / "copy").iterdir()] == ["arrays.safetensors"]


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


def test_registering_can_be_repeated(tracking: Tracking, tmp_path: Path) -> None:
    """Registering twice gives one version; the alias moves when it is told to, and only then."""
    first = tracking.models.store_initial(RegisteredName("A"), save_arrays(tmp_path / "a"))
    second = tracking.models.store_initial(RegisteredName("B"), save_arrays(tmp_path / "b"))
    assert [tracking.registry.register(TOY, first, "why") for _ in range(2)] == [1, 1]
    assert tracking.registry.register(TOY, second, "why") == 2
    registry = tracking.registry
    assert (registry.champion_version(TOY), registry.champion(TOY)) == (None, None)
    for number, model in ((1, first), (2, second), (2, second)):
        registry.set_champion(TOY, number)
        assert (registry.champion_version(TOY), registry.champion(TOY)) == (number, model)
    assert tracking.registry.champion_versions() == {"Toy": 2}
    assert len(tracking.client.reading.search_model_versions("name = 'Toy'")) == 2


def test_aggregates_are_those_of_the_reports() -> None:
    """Last, min, max, mean, and the mean of the last three."""
    reports = [Report(step, {"m": value}) for step, value in enumerate([1.0, 5.0, 3.0, 4.0])]
    assert aggregate(reports) == {
        "system/m.last": 4.0,
        "system/m.min": 1.0,
        "system/m.max": 5.0,
        "system/m.mean": 3.25,
        "system/m.sliding_mean": 4.0,
    }
    assert aggregate([]) == {}
    assert "system/m.sliding_mean" not in aggregate(reports[:1])


def register_foreign(tracking: Tracking, folder: Path, name: str = "Toy") -> None:
    """Register an MLflow model as somebody does who knows nothing of us."""
    tracking.client.reading.create_registered_model(name)
    version = tracking.client.reading.create_model_version(name, str(folder))
    tracking.client.reading.set_registered_model_alias(name, "champion", version.version)


@pytest.mark.filterwarnings("ignore:Importing from 'sentence_transformers:DeprecationWarning")
def test_a_sentence_transformers_model_of_somebody_else_may_be_champion(
    tracking: Tracking, tmp_path: Path
) -> None:
    """What MLflow's own flavor saved is found, checked and copied like a model of ours; registered
    with a run or without; the sweep leaves it alone."""
    encoder = SentenceTransformer(modules=[BoW(["a", "b", "c"])])
    flavor = mlflow.sentence_transformers
    flavor.save_model(encoder, tmp_path / "own", pip_requirements=["sentence-transformers"])
    register_foreign(tracking, tmp_path / "own")
    champion = tracking.registry.champion(TOY)
    assert champion is not None
    assert champion.run_id == "models:/Toy/1"
    tracking.models.download(champion, tmp_path / "copy")
    assert SentenceTransformer(str(tmp_path / "copy")).encode("a b").tolist() == [1, 1, 0]
    assert list(tracking.leftovers.remove([])) == []
    (tmp_path / "own/model.sentence_transformer/pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CorruptModel, match=r"version 1 of 'Toy'.*pytorch_model.bin.*roll back"):
        tracking.registry.champion(TOY)


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_a_model_has_no_links_and_devices(tracking: Tracking, tmp_path: Path, kind: str) -> None:
    """What is beside a model is no part of it, and what has no end is not read."""
    card = Model()
    card.add_flavor("sentence_transformers")
    payload = tmp_path / "own" / "model.sentence_transformer"
    payload.mkdir(parents=True)
    card.save(str(tmp_path / "own" / "MLmodel"))
    (payload / "modules.json").write_text("[]")
    register_foreign(tracking, tmp_path / "own")
    champion = tracking.registry.champion(TOY)
    assert champion is not None
    if kind == "fifo":
        os.mkfifo(payload / "a.json")
    else:
        (payload / "a.json").symlink_to("/dev/zero" if kind == "link" else payload)
    with pytest.raises(CorruptModel, match=r"a.json' is no plain file"):
        tracking.registry.champion(TOY)
    with pytest.raises(CorruptModel, match=r"a.json' is no plain file"):
        tracking.models.download(champion, tmp_path / "copy")


def test_a_champion_of_another_kind_is_refused_in_our_words(
    tracking: Tracking, tmp_path: Path
) -> None:
    """Neither ours nor of sentence-transformers: which version, of which kinds, and what to do."""
    card = Model()
    card.add_flavor("sklearn", pickled_model="model.pkl")
    (tmp_path / "own").mkdir()
    card.save(str(tmp_path / "own" / "MLmodel"))
    register_foreign(tracking, tmp_path / "own")
    with pytest.raises(CorruptModel, match=r"version 1 of 'Toy'.*\['sklearn'\].*roll back"):
        tracking.registry.champion(TOY)
    shutil.rmtree(tmp_path / "own")
    with pytest.raises(CorruptModel, match=r"version 1 of 'Toy'.*cannot be read.*roll back"):
        tracking.registry.champion(TOY)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_database_that_is_gone_is_noticed(
    tracking: Tracking, settings: Settings, is_replaced: bool
) -> None:
    """Removed or replaced under a worker, MLflow's database takes nothing that others rely on, and
    no new one is made in its place."""
    tracking.iterations.open("a task", TOY, "a batch", "start")
    tracking.settle()
    file = settings.data_folder / "mlflow.db"
    kept = Path(shutil.copy(file, settings.data_folder / "kept.db"))
    file.unlink()
    if is_replaced:
        kept.rename(file)
    with pytest.raises(ConfigurationError, match=f"{file} was removed or replaced"):
        tracking.settle()
    assert file.exists() == is_replaced


def test_only_mlflows_own_connections_are_made_quick(
    tracking: Tracking, settings: Settings
) -> None:
    """The ledger's and the registry's wait for the disk when they are told to; others always do."""
    uri = settings.resolved_tracking_uri
    synchronous = []
    for engine in (
        LedgerStore(uri, str(settings.artifacts_folder)).engine,
        RegistryStore(uri).engine,
    ):
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            synchronous.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())
    other = sa.create_engine(uri)
    with other.connect() as connection:
        synchronous.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())
    other.dispose()
    normal, full = 1, 2
    assert synchronous == [normal, normal, full]
