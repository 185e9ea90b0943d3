"""Iterations: found again, named anew, removed by two at once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from safetensors.numpy import save_file

from embedding_studio.projects import RegisteredName
from embedding_studio.tracking.tracking import Tracking
from tests.iterations import TOY


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
