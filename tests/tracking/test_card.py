"""The card of an iteration's best model, in MLflow and in the download."""

import io
import zipfile
from pathlib import Path

from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.tasks import FineTuningTask
from embedding_studio.tracking import card
from tests.iterations import Bench


def stored_card(task: FineTuningTask) -> str:
    assert task.best_model is not None
    return (Path(task.best_model.artifact_uri).parent / "README.md").read_text()


def test_a_card_tells_data_metrics_and_parameters(bench: Bench) -> None:
    """YAML, the verdict, both models' metrics with the interval, parameters, counts of the data."""
    task = bench.run_task()
    promotion = task.promotion
    assert promotion is not None
    assert promotion.delta_ci95 is not None
    text = stored_card(task)
    assert text.startswith("---\ntags:\n- embedding-studio\n---\n# Toy\n\nPromoted: ")
    (best,) = [run for run in bench.runs(task) if "es.is_best" in run.data.tags]
    low, high = promotion.delta_ci95
    change = f"{promotion.delta:+.4f} | {low:+.4f} to {high:+.4f}"
    assert f"| skill | 0.2000 | {promotion.best:.4f} | {change} |" in text
    assert "Judged by the test queries" in text
    assert f"| layers | {best.data.params['layers']} |" in text
    assert "| sessions | 60 |" in text
    assert task.id in text


def test_what_the_encoder_says_of_itself_is_kept(bench: Bench) -> None:
    """Its YAML comes first, its text after the metrics."""
    task = bench.run_task()
    (best,) = [run for run in bench.runs(task) if "es.is_best" in run.data.tags]
    encoder_card = "---\nlicense: apache-2.0\n---\n## How to load\n\nLike so.\n"
    tags = {"es.method": "Toy", "es.task_id": "t", "es.batch_id": "b"}
    assert task.promotion is not None
    text = card.write(encoder_card, task.promotion, tags, best, None)
    assert text.startswith("---\nlicense: apache-2.0\n---\n# Toy\n")
    assert text.index("## Metrics") < text.index("Like so.") < text.index("## Parameters")
    assert "## Data" not in text


def test_the_download_has_the_card(bench: Bench) -> None:
    """`README.md` lies at the ZIP's root, beside the model's files."""
    task = bench.run_task()
    app = create_app(bench.house.store, bench.house.settings)
    with TestClient(app, base_url="http://localhost") as api:
        answer = api.get(f"/api/v1/fine-tuning/task/{task.id}/model")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["README.md", "arrays.safetensors"]
        assert archive.read("README.md").decode() == stored_card(task)


def test_a_card_without_yaml_gets_some(bench: Bench) -> None:
    """A method may save a README of its own: its task does not end as an error for it."""
    task = bench.run_task()
    assert task.promotion is not None
    (best,) = [run for run in bench.runs(task) if "es.is_best" in run.data.tags]
    tags = bench.experiments()[0].tags
    text = card.write("# Mine\n\n---\nIts story.", task.promotion, tags, best, None)
    assert text.startswith("---\ntags:\n- embedding-studio\n---\n# Toy\n")
    assert "# Mine\n\n---\nIts story." in text
