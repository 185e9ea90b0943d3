"""Two versions of a tiny encoder, registered."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from embedding_studio.models import ChampionMove, ModelVersion, MoveKind
from embedding_studio.serving.app import create_app
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.store.memory import MemoryDocuments
from embedding_studio.tasks import StoredModel
from embedding_studio.tracking.facts import facts_of
from embedding_studio.tracking.files import describe_files
from tests.training.tiny import write_tiny_model
from tests.waiting import wait_until

NAME = "Shop search"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of two encoders that differ; both have prompts."""
    root = tmp_path_factory.mktemp("encoders")
    found = write_tiny_model(root / "first", layers=1), write_tiny_model(root / "second", layers=2)
    for folder in found:
        file = folder / "config_sentence_transformers.json"
        config = json.loads(file.read_text())
        prompts = {"query": "search: ", "document": "item: "}
        file.write_text(json.dumps({**config, "prompts": prompts}))
    return found


def stored(folder: Path) -> StoredModel:
    files = tuple(describe_files(folder))
    return StoredModel(folder.name, str(folder), files, facts_of(folder, files))


def register(store: Store, folder: Path, name: str = NAME) -> int:
    """Make the model in a folder the next version, and champion; return its number."""
    found = store.models.find(name)
    number = len(found.versions) + 1 if found else 1
    kind = MoveKind.PROMOTED if found else MoveKind.INITIAL
    move = ChampionMove(kind, NOW, found.champion if found else None, number, "a test", "")
    version = ModelVersion(number, stored(folder), NOW)
    store.models.update(name, lambda model: model.moved(move, version))
    return number


@pytest.fixture
def store() -> Iterator[Store]:
    with closing(Store(MemoryDocuments())) as store:
        yield store


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_folder=tmp_path, poll_seconds=0.02)


@pytest.fixture
def serve(store: Store, settings: Settings, encoders: tuple[Path, Path]) -> Iterator[TestClient]:
    """A server that has the first encoder."""
    register(store, encoders[0])
    with TestClient(create_app(store, settings), base_url="http://localhost") as serve:
        wait_until(lambda: serve.get("/health").status_code == 200)
        yield serve
