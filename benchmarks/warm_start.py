"""What a search gains from the iteration before: `python -m benchmarks.warm_start`.

Two iterations of a bundled method one after the other, on different searches of the same people.
The second one knows nothing of the first's trials, tries their best sets first, lets the sampler
learn from all of them, or both. Told is how good its best set so far is, trial by trial, as the
share of the way from its starting model to the best set that any of the four found.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.clicks import CORPORA, Arena
from benchmarks.iteration import packaged_model
from embedding_studio.demo.searchers import Behaviour
from embedding_studio.engine.worker import Worker, open_worker
from embedding_studio.settings import Settings
from embedding_studio.tasks import Budget, Pruner, SearchOptions, TaskRequest, TaskStatus
from embedding_studio.training.encoder import load_encoder

PLUGINS = Path(__file__).parents[1] / "plugins"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "nothing": {"warm_start_trials": 0, "learn_from_previous": False},
    "best sets first": {"warm_start_trials": 2, "learn_from_previous": False},
    "sampler learns": {"warm_start_trials": 0, "learn_from_previous": True},
    "both": {"warm_start_trials": 2, "learn_from_previous": True},
}

console = Console(soft_wrap=True)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--method", default="Linear adapter")
    options.add_argument("--corpus", choices=list(CORPORA), default="catalogue")
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--sessions", type=int, default=3000)
    options.add_argument("--first-trials", type=int, default=16)
    options.add_argument("--trials", type=int, default=8, help="of the second iteration")
    options.add_argument("--executor", default="inline")
    args = options.parse_args()
    arena = Arena(args.corpus, load_encoder(str(packaged_model())))
    shares: dict[str, list[list[float]]] = {name: [] for name in VARIANTS}
    for seed in range(args.seeds):
        found = {name: second_search(arena, seed, args, VARIANTS[name]) for name in VARIANTS}
        start = found["nothing"][0]
        best = max(max(values) for values in found.values())
        for name, values in found.items():
            so_far = np.maximum.accumulate(values[1:])
            shares[name].append([(value - start) / (best - start) for value in so_far])
        console.print(
            f"seed {seed}: from {start:.4f}; best {best:.4f}; "
            + ", ".join(f"{name} {max(values):.4f}" for name, values in found.items())
        )
    means = {
        name: [fmean(column) for column in zip(*rows, strict=True)] for name, rows in shares.items()
    }
    table = Table(title="Share of the way to the best set, after so many trials")
    for column in ("what it knows", *map(str, range(1, args.trials + 1))):
        table.add_column(column)
    for name, row in means.items():
        table.add_row(name, *(f"{share:.3f}" for share in row))
    console.print(table)
    summary = {
        "share_after": {name: [round(share, 3) for share in row] for name, row in means.items()},
        "method": args.method,
        "corpus": args.corpus,
        "seeds": args.seeds,
        "sessions": args.sessions,
    }
    console.print(json.dumps(summary), highlight=False, markup=False)


def second_search(
    arena: Arena, seed: int, args: Any, knowing: Mapping[str, Any]
) -> Sequence[float]:
    """Run two iterations in a new house; return the score that the second one starts from, then
    those of its trials in order, all on validation."""
    with tempfile.TemporaryDirectory(prefix="warm-start-") as folder:
        settings = Settings(
            data_folder=Path(folder),
            plugins_folder=PLUGINS,
            executor=args.executor,
            initial_model=str(packaged_model()),
            seed=seed,
        )
        os.environ.update(settings.as_environment())
        worker = open_worker(settings)
        run(worker, arena, 2 * seed, args, args.first_trials)
        worker._house = replace(worker._house, settings=settings.replaced(**knowing))
        experiment_id = run(worker, arena, 2 * seed + 1, args, args.trials)
        tracking = worker._house.tracking
        baseline = tracking.runs.finished_baseline(experiment_id)
        assert baseline is not None
        trials = tracking.runs.finished_trials(experiment_id)
        worker._house.executor.close()
        worker._house.store.close()
        return [baseline[1]["ndcg_at_10"], *(float(trial.value or 0.0) for trial in trials)]


def run(worker: Worker, arena: Arena, seed: int, args: Any, trials: int) -> str:
    store, now = worker._house.store, datetime.now(UTC)
    store.clickstream.register(arena.sessions(args.sessions, seed, Behaviour()), now)
    request = TaskRequest(
        args.method, budget=Budget(trials), search=SearchOptions(pruner=Pruner.NONE)
    )
    task, _ = store.tasks.add(request, now)
    worker.work_once()
    ended = store.tasks.get(task.id)
    assert ended.status is TaskStatus.DONE, ended.error
    return str(ended.experiment_id)


if __name__ == "__main__":
    main()
