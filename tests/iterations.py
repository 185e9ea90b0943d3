"""A worker's whole house in a temporary folder, and a client's view of it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType

from embedding_studio.clickstream import SearchResult, Session, SessionEvent
from embedding_studio.clock import utc_now
from embedding_studio.engine.house import House
from embedding_studio.engine.jobs import DrawSearch
from embedding_studio.engine.worker import Worker
from embedding_studio.executors import open_executor
from embedding_studio.executors.base import Reporter
from embedding_studio.methods import discover_methods
from embedding_studio.projects import RegisteredName
from embedding_studio.settings import Settings
from embedding_studio.store import open_store
from embedding_studio.tasks import Budget, FineTuningTask, TaskRequest
from embedding_studio.tracking import open_tracking
from embedding_studio.tracking.runs import read_tag

TOY = RegisteredName("Toy")
TOYS = Path(__file__).parent / "toys"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make_session(number: int, query: str | None = None, **changes: Any) -> Session:
    """A session of two results, the first clicked."""
    results = tuple(SearchResult(f"item-{i}", 1.0 - i, {"text": f"item {i}"}) for i in range(2))
    event = SessionEvent(f"event-{number}", "item-0", NOW)
    values: dict[str, Any] = {
        "session_id": f"session-{number}",
        "search_query": query or f"query {number}",
        "search_results": results,
        "created_at": NOW,
        "events": (event,),
    }
    return Session(**{**values, **changes})


@dataclass
class Bench:
    """One house with one worker that works when told to."""

    house: House
    worker: Worker

    def post_sessions(self, start: int = 0, count: int = 60) -> None:
        sessions = [make_session(number) for number in range(start, start + count)]
        self.house.store.clickstream.register(sessions, utc_now())

    def post_task(self, method: str = "Toy", **changes: Any) -> FineTuningTask:
        request = TaskRequest(method, budget=Budget(changes.pop("trials", None)), **changes)
        return self.house.store.tasks.add(request, utc_now())[0]

    def run_task(
        self, method: str = "Toy", start: int = 0, count: int = 60, **changes: Any
    ) -> FineTuningTask:
        """Post sessions and a task, work until the task ends, and return it."""
        self.post_sessions(start, count)
        task = self.post_task(method, **changes)
        assert self.worker.work_once()
        return self.house.store.tasks.get(task.id)

    @property
    def mlflow(self) -> MlflowClient:
        return MlflowClient(self.house.settings.resolved_tracking_uri)

    def experiments(self) -> list[Experiment]:
        return list(self.mlflow.search_experiments(filter_string="tags.`es.kind` = 'iteration'"))

    def runs(self, task: FineTuningTask, kind: str = "trial") -> list[Run]:
        """The task's runs of a kind, by trial number."""
        assert task.experiment_id is not None
        found = self.mlflow.search_runs([task.experiment_id], run_view_type=ViewType.ACTIVE_ONLY)
        runs = [run for run in found if run.data.tags.get("es.kind") == kind]
        return sorted(runs, key=lambda run: int(run.data.tags.get("es.trial", 0)))

    def model_files(self) -> list[Path]:
        """Every model payload among the artifacts."""
        return sorted(self.house.settings.artifacts_folder.rglob("arrays.safetensors"))

    def suggested(self, run: Run) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(read_tag(run.data.tags, "es.suggested.values"))
        return values


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: it takes seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def settings(tmp_path: Path, empty_mlflow_database: Path) -> Settings:
    """Settings for everything local, in the test's own folder."""
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    return Settings(data_folder=tmp_path, plugins_folder=TOYS, executor="inline")


def open_bench(settings: Settings) -> Bench:
    house = House(
        store=open_store(settings.resolved_store_url),
        tracking=open_tracking(settings.resolved_tracking_uri, settings.artifacts_folder),
        executor=open_executor(settings.executor),
        settings=settings,
        clock=utc_now,
    )
    return Bench(house, Worker(house, discover_methods(settings.plugins_folder), "test-worker"))


def write_table(self: DrawSearch, report: Reporter) -> None:
    self.folder.mkdir()
    (self.folder / "sets.csv").write_text(f"{len(self.trials)} trials")


@pytest.fixture(autouse=True)
def draw_nothing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw a search takes longer than the rest of a toy's iteration."""
    if "draws" not in request.keywords:
        monkeypatch.setattr(DrawSearch, "__call__", write_table)


@pytest.fixture
def bench(settings: Settings) -> Iterator[Bench]:
    """A house on SQLite whose trials run in the test's process."""
    opened = open_bench(settings)
    yield opened
    opened.house.executor.close()
    opened.house.store.close()
