"""What a long past costs: `python -m benchmarks.history`.

Each call that a worker or the API makes is timed in an iteration that comes after 1, 100 and 1,000
finished ones of its method, all of which stay (ES_KEEP_ITERATIONS beyond them), and with 100 and
10,000 tasks, on SQLite and a local MLflow database. `growth` is a call's median time with the most
over that with the fewest.
"""

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from embedding_studio.errands.sweep import sweep
from embedding_studio.executors.base import Report
from embedding_studio.projects import RegisteredName
from embedding_studio.search import Outcome, Search
from embedding_studio.settings import Settings
from embedding_studio.store import Store, open_store
from embedding_studio.tasks import TaskRequest, TaskStatus
from embedding_studio.tracking import open_tracking
from embedding_studio.tracking.tracking import Tracking

METHOD, METRIC = RegisteredName("Synthetic"), "quality"
ITERATIONS, TASKS = (1, 100, 1000), (100, 10_000)
REPEATS = 15
KEEP = 1_000_000
TRIALS = 2
Calls = Mapping[str, Callable[[], Any]]
console = Console(width=120, soft_wrap=True)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--iterations", type=int, nargs="*", default=ITERATIONS)
    options.add_argument("--tasks", type=int, nargs="*", default=TASKS)
    args = options.parse_args()
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="history-") as folder:
        settings = Settings(data_folder=Path(folder))
        store = open_store(settings.resolved_store_url)
        tracking = open_tracking(settings.resolved_tracking_uri, settings.artifacts_folder)
        seconds = {
            "iterations": time_iterations(store, tracking, settings, sorted(args.iterations)),
            "tasks": time_tasks(store, sorted(args.tasks)),
        }
        store.close()
    for what, by_call in seconds.items():
        print_seconds(what, by_call)
    growth = {
        call: round(by_size[max(by_size)] / by_size[min(by_size)], 2)
        for by_call in seconds.values()
        for call, by_size in by_call.items()
    }
    summary = {"growth": growth, "max_growth": max(growth.values())}
    console.print(json.dumps(summary), highlight=False, markup=False)


def time_iterations(
    store: Store, tracking: Tracking, settings: Settings, sizes: list[int]
) -> dict[str, dict[int, float]]:
    """Return the seconds of each call to MLflow by the number of finished iterations."""
    seconds: dict[str, dict[int, float]] = {}
    names = count()
    present = ""

    def open_another() -> None:
        name = f"new {next(names)}"
        tracking.iterations.remove(
            tracking.iterations.open(name, METHOD, name, "start").experiment_id
        )

    calls: Calls = {
        "open_iteration, and its removal": open_another,
        "previous_search": lambda: tracking.iterations.previous_search(METHOD, present),
        "remove_older_iterations": lambda: tracking.iterations.remove_older(METHOD, present, KEEP),
        "iterations_with_models": tracking.iterations.with_models,
        "sweep": lambda: sweep(store, tracking, settings, datetime.now(UTC), dry_run=True),
    }
    there = 0
    for size in sizes:
        for number in range(there, size):
            add_iteration(tracking, number)
        there = size
        present = tracking.iterations.open(
            f"at {size}", METHOD, f"at {size}", "start"
        ).experiment_id
        time_calls(calls, size, seconds)
        tracking.iterations.remove(present)
    return seconds


def add_iteration(tracking: Tracking, number: int) -> None:
    """Write what a finished iteration leaves in MLflow, less its files."""
    experiment_id = tracking.iterations.open(
        f"task {number}", METHOD, f"batch {number}", "start"
    ).experiment_id
    search = Search("maximize", seed=number)
    for _ in range(TRIALS):
        proposed = search.ask(lambda trial: {"rate": trial.suggest_float("rate", 0, 1)})
        assert proposed is not None
        trial, params = proposed
        trial.run_id = tracking.runs.start_trial(experiment_id, trial, params, seed=0)
        reports = [Report(0, {METRIC: 0.5})]
        tracking.runs.log_reports(trial.run_id, reports)
        search.report(trial, 0.5, 0)
        search.tell(trial, Outcome.COMPLETE, 0.5)
        tracking.runs.finish_trial(trial, {METRIC: 0.5}, reports, ())
    tracking.iterations.set_state(experiment_id, "done")
    tracking.iterations.remove_older(METHOD, experiment_id, KEEP)


def time_tasks(store: Store, sizes: list[int]) -> dict[str, dict[int, float]]:
    """Return the seconds of each call to the store by the number of ended tasks."""
    seconds: dict[str, dict[int, float]] = {}
    calls: Calls = {
        "list_tasks": store.tasks.page,
        "list_tasks by status": lambda: store.tasks.page(TaskStatus.CANCELED),
        "count_tasks": lambda: store.tasks.count(TaskStatus.PENDING),
        "claim_task": lambda: store.tasks.claim("worker", datetime.now(UTC), 60),
        "claim_delivery": lambda: store.deliveries.claim(datetime.now(UTC), 60),
        "tasks_at_work": store.tasks.at_work,
    }
    there = 0
    for size in sizes:
        for _ in range(there, size):
            task, _ = store.tasks.add(TaskRequest(METHOD), datetime.now(UTC))
            store.tasks.cancel(task.id, datetime.now(UTC))
        there = size
        time_calls(calls, size, seconds)
    return seconds


def time_calls(calls: Calls, size: int, seconds: dict[str, dict[int, float]]) -> None:
    for name, call in calls.items():
        call()
        seconds.setdefault(name, {})[size] = median(time_once(call) for _ in range(REPEATS))


def time_once(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def print_seconds(what: str, by_call: Mapping[str, Mapping[int, float]]) -> None:
    sizes = list(next(iter(by_call.values())))
    table = Table("call", *(f"{size:,} {what}, ms" for size in sizes))
    for call, by_size in by_call.items():
        table.add_row(call, *(f"{1000 * by_size[size]:.1f}" for size in sizes))
    console.print(table)


if __name__ == "__main__":
    main()
