"""What pruning and parallel trials save: `python -m benchmarks.search`.

Whole iterations through the product's own worker on the generated catalogue, where fine-tuning
gains much, over a space of hyperparameters as wide as one knows nothing of it, in trials of 27
epochs; by default of the linear adapter, for which the searches end within the hour:

    (a) sequential   one trial after another, on one core, to the end
    (b) pruned       the same with hopeless trials ended early, until as much was trained
    (c) parallel     (b) with a trial on each core

How many epochs were trained, and how long it took, until a finished trial had 99 % of the final
validation nDCG@10 of the best trial of (a) with the same seed. A search that never had counts with
all that it took.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.iteration import beat_until, packaged_model
from benchmarks.sessions import simulate_sessions
from embedding_studio.settings import Settings
from embedding_studio.store import open_store
from embedding_studio.tasks import Budget, Pruner, SearchOptions, TaskRequest, TaskStatus

METRIC = "ndcg_at_10"
PLUGINS = Path(__file__).parent / "searched_plugins"
NEAR_BEST = 0.99
UNBOUNDED_TRIALS = 500

console = Console(soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Finished:
    """value: final validation nDCG@10 of a complete trial; ended: seconds since the search began;
    epochs: trained by then, by all trials."""

    value: float
    ended: float
    epochs: int


@dataclass(frozen=True, slots=True)
class Found:
    """What one search found: its complete trials by their ends, and what it took in all."""

    finished: Sequence[Finished]
    trials: int
    epochs: int
    seconds: float
    trained_tokens: int

    @property
    def best(self) -> float:
        return max(trial.value for trial in self.finished)

    def first_near(self, best: float) -> Finished | None:
        """Return the first trial with 99 % of a value."""
        near = (trial for trial in self.finished if trial.value >= NEAR_BEST * best)
        return next(near, None)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--first-seed", type=int, default=0)
    options.add_argument("--method", choices=["adapter", "encoder"], default="adapter")
    options.add_argument("--trials", type=int, default=24, help="of the sequential search")
    options.add_argument("--sessions", type=int, default=40_000)
    options.add_argument("--pruner", choices=list(Pruner), default=Pruner.ASHA)
    options.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    args = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        house = Path(folder)
        store = open_store(Settings(data_folder=house).resolved_store_url)
        store.clickstream.register(simulate_sessions("catalogue", args.sessions), datetime.now(UTC))
        store.close()
        compare(args, house)


def compare(args: Any, house: Path) -> None:
    rows = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        common = {"method": args.method, "seed": seed, "house": str(house)}
        a = apart(**common, budget={"max_trials": args.trials}, cores=1)
        budget = {"max_trials": UNBOUNDED_TRIALS, "max_trained_tokens": a.trained_tokens}
        pruned = {**common, "budget": budget, "pruner": args.pruner}
        b = apart(**pruned, cores=1)
        c = apart(**pruned, cores=args.cores)
        rows.append((seed, a, b, c))
        report(seed, {"a": a, "b": b, "c": c})
    print_summary(summarize([(a, b, c) for _, a, b, c in rows], args))


def apart(**search: Any) -> Found:
    """Run one search in a process of its own: another worker, another fork server.

    Its program is no module, which each trial's process would import again."""
    program = "import sys; from benchmarks.search import search_here; search_here(sys.argv[1])"
    answer = subprocess.run(
        [sys.executable, "-c", program, json.dumps(search)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = json.loads(answer.stdout.splitlines()[-1])
    return Found(**{**found, "finished": [Finished(**trial) for trial in found["finished"]]})


def search_here(arguments: str) -> None:
    print(json.dumps(asdict(search(**json.loads(arguments)))))  # noqa: T201


def search(
    method: str,
    seed: int,
    house: str,
    budget: Mapping[str, int],
    cores: int,
    pruner: str = "none",
) -> Found:
    """Run one iteration in a copy of a house, a trial on each core; return what MLflow says."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        shutil.copytree(house, folder, dirs_exist_ok=True)
        settings = Settings(
            data_folder=Path(folder),
            plugins_folder=PLUGINS,
            executor=f"process:{cores}",
            initial_model=str(packaged_model()),
            seed=seed,
        )
        os.environ.update(settings.as_environment())
        from embedding_studio.engine.worker import open_worker

        worker = open_worker(settings)
        store, now = worker._house.store, datetime.now(UTC)
        options = SearchOptions(pruner=Pruner(pruner))
        task, _ = store.tasks.add(TaskRequest(method, budget=Budget(**budget), search=options), now)
        done = threading.Event()
        threading.Thread(target=beat_until, args=(worker, done), daemon=True).start()
        worker.work_once()
        done.set()
        ended = store.tasks.get(task.id)
        assert ended.status is TaskStatus.DONE, ended.error
        assert ended.progress is not None
        worker._house.executor.close()
        return read_runs(settings, str(ended.experiment_id), ended.progress.trained_tokens)


def read_runs(settings: Settings, experiment_id: str, trained_tokens: int) -> Found:
    from mlflow import MlflowClient

    client = MlflowClient(settings.resolved_tracking_uri)
    found = client.search_runs([experiment_id], max_results=1000)
    runs = [run for run in found if run.data.tags.get("es.kind") == "trial"]
    begun = min(run.info.start_time for run in runs)
    complete, reported = [], []
    for run in runs:
        history = client.get_metric_history(run.info.run_id, METRIC)
        is_complete = run.data.tags["es.outcome"] == "complete"
        # the last point of a complete run is its final score, not an epoch's
        epochs = sorted(history, key=lambda point: point.step)[: -1 if is_complete else None]
        reported += [point.timestamp for point in epochs]
        if is_complete:
            complete.append((run.info.end_time, float(run.data.tags["es.value"])))
    return Found(
        finished=[
            Finished(value, (end - begun) / 1000, sum(at <= end for at in reported))
            for end, value in sorted(complete)
        ],
        trials=len(runs),
        epochs=len(reported),
        seconds=(max(run.info.end_time for run in runs) - begun) / 1000,
        trained_tokens=trained_tokens,
    )


def report(seed: int, found: Mapping[str, Found]) -> None:
    for name, search in found.items():
        near = search.first_near(found["a"].best)
        when = f"{near.epochs} epochs, {near.ended:.0f} s" if near else "never"
        console.print(
            f"seed {seed} ({name}): best {search.best:.4f} of {search.trials} trials, "
            f"{search.epochs} epochs, {search.seconds:.0f} s; near the best after {when}"
        )


def summarize(rows: Sequence[tuple[Found, Found, Found]], args: Any) -> dict[str, Any]:
    epochs: list[tuple[int, int, int]] = []
    seconds: list[tuple[float, float, float]] = []
    for found in rows:
        near = [search.first_near(found[0].best) for search in found]
        e = [n.epochs if n else s.epochs for n, s in zip(near, found, strict=True)]
        t = [n.ended if n else s.seconds for n, s in zip(near, found, strict=True)]
        epochs.append((e[0], e[1], e[2]))
        seconds.append((t[0], t[1], t[2]))
    return {
        "epochs_ratio_pruned": round(
            median(b for _, b, _ in epochs) / median(a for a, _, _ in epochs), 3
        ),
        "wall_ratio_pruned": round(
            median(b for _, b, _ in seconds) / median(a for a, _, _ in seconds), 3
        ),
        "wall_ratio_parallel": round(
            median(c for _, _, c in seconds) / median(a for a, _, _ in seconds), 3
        ),
        "ndcg_loss": round(median(a.best - b.best for a, b, _ in rows), 4),
        "ndcg_loss_parallel": round(median(a.best - c.best for a, _, c in rows), 4),
        "seeds": args.seeds,
        "trials": args.trials,
        "sessions": args.sessions,
        "pruner": str(args.pruner),
        "cores": args.cores,
        "epochs": epochs,
        "seconds": [[round(t, 1) for t in row] for row in seconds],
        "best": [[round(search.best, 4) for search in found] for found in rows],
        "tried": [[search.trials for search in found] for found in rows],
    }


def print_summary(summary: Mapping[str, Any]) -> None:
    table = Table(title="Until 99 % of the best final validation nDCG@10, per seed: a, b, c")
    for column in ("epochs", "seconds", "best nDCG@10", "sets tried"):
        table.add_column(column)
    for row in zip(
        summary["epochs"], summary["seconds"], summary["best"], summary["tried"], strict=True
    ):
        table.add_row(*(", ".join(map(str, cell)) for cell in row))
    console.print(table)
    console.print(json.dumps(summary), soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()
