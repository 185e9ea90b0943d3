"""Trials side by side, and trial after trial: `python -m benchmarks.scale`.

First, whole iterations through the product's worker, on SQLite and a local MLflow database, whose
trials sleep 5 s and report every half second, two rounds of as many as run at a time. Efficiency is
the time that all trials sleep, through the slots, over the search's wall time: from the start of
the first trial's run to the end of the last one's, as MLflow has them. So it counts proposing,
forking, every report's answer, each trial's end in the ledger, the best models' upload and their
scores once read back; it does not count what an iteration does before and after its search. On Ray,
which is told of as many cores as trials, one round comes before, for its workers' imports.

Then one iteration of 1,000 trials that cost nothing, in the worker's own process: what is left is
the orchestrator's, by the trial's number.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.iteration import beat_until
from embedding_studio.clickstream import SearchResult, Session, SessionEvent
from embedding_studio.settings import Settings
from embedding_studio.store import Store, open_store
from embedding_studio.tasks import Budget, TaskRequest, TaskStatus

METHOD = "Synthetic"
REPOSITORY = Path(__file__).parent.parent
PLUGINS = Path(__file__).parent / "synthetic_plugins"
SESSIONS = 60
CONCURRENT = (1, 4, 16, 64)
ROUNDS = 2
TRIAL_SECONDS, REPORTS = 5.0, 10  # as the plugin has them
TASK_SECONDS = 900.0
STUDY_TRIALS, STUDY_REPORTS, BINS = 1000, 5, 10
CLUSTER = """
import sys, ray
ray.init(
    num_cpus=int(sys.argv[1]), include_dashboard=False, logging_level="ERROR",
    _node_ip_address="127.0.0.1",
)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
Process: TypeAlias = subprocess.Popen[bytes]
Seconds: TypeAlias = defaultdict[str, float]
console = Console(width=140, soft_wrap=True)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--concurrent", type=int, nargs="*", default=CONCURRENT)
    options.add_argument("--executors", nargs="*", default=["process", "ray"])
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--trials", type=int, default=STUDY_TRIALS, help="of the study that grows")
    options.add_argument("--quick", action="store_true", help="4 and 16 at a time, 200 trials")
    args = options.parse_args()
    if args.quick:
        args.concurrent, args.trials = [4, 16], 200
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    summary: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 2)}
    slept = list[Slots]()
    for kind in args.executors:
        if kind == "ray" and find_spec("ray") is None:
            console.print("Ray is not installed: pip install 'embedding-studio[ray]'")
            continue
        for count in args.concurrent:
            slots = run_side_by_side(kind, count, args.rounds)
            slept.append(slots)
            summary[f"efficiency_{kind}_{count}"] = round(slots.efficiency, 3)
    if slept:
        print_slots(slept)
    if args.trials:
        study = run_study(args.trials)
        print_study(study)
        summary[f"orchestration_seconds_{args.trials}"] = round(study.seconds, 1)
        summary["orchestration_cpu_seconds"] = round(study.cpu_seconds, 1)
        summary["models_stored"] = study.models
    summary["load_after"] = round(os.getloadavg()[0], 2)
    console.print(json.dumps(summary), highlight=False, markup=False)


# -- an iteration ----------------------------------------------------------------------------------


@contextmanager
def settings_for(executor: str) -> Iterator[Settings]:
    """Yield settings for everything in one folder."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        yield Settings(data_folder=Path(folder), plugins_folder=PLUGINS, executor=executor)


def post_task(store: Store, trials: int, first_session: int = 0) -> str:
    """Post sessions and a task; return its id."""
    store.clickstream.register(list(make_sessions(first_session)), datetime.now(UTC))
    task, _ = store.tasks.add(TaskRequest(METHOD, budget=Budget(trials)), datetime.now(UTC))
    return task.id


def make_sessions(first: int) -> Iterator[Session]:
    now = datetime.now(UTC)
    results = tuple(SearchResult(f"item-{item}", meta={"text": f"item {item}"}) for item in (0, 1))
    for number in range(first, first + SESSIONS):
        yield Session(
            session_id=f"session-{number}",
            search_query=f"query {number}",
            search_results=results,
            created_at=now,
            events=(SessionEvent(f"event-{number}", "item-0", now),),
        )


def trial_runs(settings: Settings, store: Store, task_id: str) -> list[Any]:
    """Return the MLflow runs of a task's trials, once it is done."""
    from embedding_studio.tracking import open_tracking

    task = store.tasks.get(task_id)
    if task.status is not TaskStatus.DONE or task.experiment_id is None:
        raise SystemExit(f"the task ended as {task.status}: {task.error}")
    tracking = open_tracking(settings.resolved_tracking_uri, settings.artifacts_folder)
    found = tracking.client.runs(task.experiment_id)
    return [run for run in found if run.data.tags.get("es.kind") == "trial"]


# -- side by side ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slots:
    """What became of the time of `count` slots during a search. All in seconds.

    wall: of the search; asleep: what a trial sleeps; training, whole: of each trial, within `train`
    and from its submission until the worker turned to its end and has stored a better model.
    """

    name: str
    count: int
    wall: float
    asleep: float
    training: Sequence[float]
    whole: Sequence[float]
    models: int = 0

    @property
    def ideal(self) -> float:
        return self.asleep * len(self.training) / self.count

    @property
    def efficiency(self) -> float:
        return self.ideal / self.wall

    @property
    def shares(self) -> dict[str, float]:
        """The slots' time, as shares of it: asleep, in reports, in the rest of a trial, empty."""
        trials, available = len(self.training), self.count * self.wall
        parts = {
            "asleep": trials * self.asleep,
            "reports": sum(self.training) - trials * self.asleep,
            "start and end": sum(self.whole) - sum(self.training),
            "empty": available - sum(self.whole),
        }
        return {name: seconds / available for name, seconds in parts.items()}


def run_side_by_side(kind: str, count: int, rounds: int) -> Slots:
    """Run an iteration of some rounds of trials, `count` at a time."""
    with ExitStack() as held:
        executor, environment = f"process:{count}", dict[str, str]()
        if kind == "ray":
            executor, environment = "ray:auto", dict(held.enter_context(cluster(count)))
        settings = held.enter_context(settings_for(executor))
        store = open_store(settings.resolved_store_url)
        with worker(settings, environment) as process:
            if kind == "ray":
                wait_for(store, post_task(store, count, first_session=SESSIONS), process)
            task_id = post_task(store, rounds * count)
            wait_for(store, task_id, process)
        runs = trial_runs(settings, store, task_id)
        store.close()
    start = min(run.info.start_time for run in runs)
    end = max(run.info.end_time for run in runs)
    return Slots(
        kind,
        count,
        (end - start) / 1000,
        TRIAL_SECONDS,
        [run.data.metrics["system/seconds.train"] for run in runs],
        [run.data.metrics["system/seconds.wall"] for run in runs],
        sum("es.model" in run.data.tags for run in runs),
    )


@contextmanager
def worker(
    settings: Settings, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Process]:
    """The product's own, as `up` starts it."""
    log = settings.data_folder / "worker.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "embedding_studio", "worker"],
            env={**os.environ, **settings.as_environment(), **environment},
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            yield process
        except BaseException:
            console.print(log.read_text()[-4000:], markup=False)
            raise
        finally:
            process.terminate()


def wait_for(store: Store, task_id: str, worker: Process) -> None:
    deadline = time.monotonic() + TASK_SECONDS
    while store.tasks.get(task_id).status in (TaskStatus.PENDING, TaskStatus.PROCESSING):
        if worker.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"task {task_id} is not done")
        time.sleep(0.5)


@contextmanager
def cluster(cpus: int) -> Iterator[Mapping[str, str]]:
    """A Ray node of our own with as many cores as it is told; yields what lets `ray:auto` join."""
    environment = {"PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(cpus)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        text=True,
    ) as node:
        assert node.stdout is not None
        try:
            yield {**environment, "RAY_ADDRESS": node.stdout.readline().strip()}
        finally:
            node.communicate()  # its input ends, and so does it


def print_slots(slept: Sequence[Slots]) -> None:
    seconds = f"{TRIAL_SECONDS:g} s, a report per {TRIAL_SECONDS / REPORTS:g} s"
    table = Table(title=f"trials that sleep {seconds}")
    columns = (
        "executor",
        "at a time",
        "trials",
        "ideal, s",
        "wall, s",
        "efficiency",
        "ms per report",
    )
    for column in (*columns, "reports", "start and end", "empty", "models stored"):
        table.add_column(column, justify="right")
    for slots in slept:
        shares = slots.shares
        latency = 1000 * (float(np.mean(slots.training)) - slots.asleep) / REPORTS
        table.add_row(
            slots.name,
            str(slots.count),
            str(len(slots.training)),
            f"{slots.ideal:.1f}",
            f"{slots.wall:.1f}",
            f"{slots.efficiency:.3f}",
            f"{latency:.0f}",
            *(f"{shares[name]:.1%}" for name in ("reports", "start and end", "empty")),
            str(slots.models),
        )
    console.print(table)
    console.print(
        "of the slots' time: efficiency is asleep; reports: waiting for their answers; start and "
        "end: fork, loading, until the worker turns to it and has stored a better model; empty: an "
        "end is written, the next set proposed and its run opened, or there are no more trials"
    )


# -- one after another -----------------------------------------------------------------------------

JOB = "job"
STEPS = ("score_baseline", "search", "draw", "judge", "summarize", "carry_out", "finish")
PHASES = {
    "ask": "Optuna proposes a set",
    "open run": "MLflow: the run and its parameters",
    "log reports": "MLflow: the scores of each report",
    "judge reports": "Optuna: should it be pruned?",
    "end run": "MLflow: the last scores, tags, the status",
    "tell": "Optuna learns the outcome",
    "store": "the task's history",
    "models": "upload, read back, delete, of those that beat the best",
    "rest": "progress, polling, what lies between",
}


@dataclass
class Meter:
    """A clock for one thread. trials: each one's seconds by phase; outside: what no trial's are."""

    now: Callable[[], float] = time.perf_counter
    cpu_seconds: float = 0.0
    trials: list[Seconds] = field(default_factory=list)
    outside: Seconds = field(default_factory=lambda: defaultdict(float))
    is_in_trial: bool = False
    _began: float = 0.0
    _cpu_began: float = 0.0
    _within: list[float] = field(default_factory=lambda: [0.0])

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Give a function's seconds, those of wrapped ones within it apart, to a phase."""
        function = getattr(owner, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            self._within.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = self.now() - start
                seconds = self.trials[-1] if self.is_in_trial else self.outside
                seconds[phase] += whole - self._within.pop()
                self._within[-1] += whole

        setattr(owner, name, measured)

    def begin(self) -> None:
        """End the trial before, whose seconds in no phase are "rest"; begin another."""
        self.end()
        self.trials.append(defaultdict(float))
        self.is_in_trial = True

    def end(self) -> None:
        now = self.now()
        if self.is_in_trial:
            self.trials[-1]["rest"] = now - self._began - sum(self.trials[-1].values())
            self.cpu_seconds += time.process_time() - self._cpu_began
        self._cpu_began = time.process_time()
        self._began, self.is_in_trial = now, False


@dataclass(frozen=True, slots=True)
class Study:
    """trials: seconds by phase of each, JOB among them; steps: seconds of the iteration's;
    cpu_seconds: of this process, while there were trials; models: how many were stored."""

    trials: Sequence[Seconds]
    steps: Mapping[str, float]
    cpu_seconds: float
    models: int

    @property
    def seconds(self) -> float:
        """What all trials cost, without their jobs."""
        return sum(cost(trial) for trial in self.trials)


def cost(trial: Seconds) -> float:
    """Return what a trial costs, without its job."""
    return sum(trial.values()) - trial[JOB]


def run_study(trials: int) -> Study:
    """Run one iteration of so many trials, each of which reports and returns at once."""
    from embedding_studio.engine import jobs as trial
    from embedding_studio.engine.attempt import Attempt
    from embedding_studio.engine.best import Best
    from embedding_studio.engine.trials import Trials
    from embedding_studio.engine.worker import open_worker
    from embedding_studio.search import Search
    from embedding_studio.tracking.runs import Runs

    meter = Meter()
    for owner, name, phase in (
        (trial.Train, "__call__", JOB),
        (trial.Score, "__call__", JOB),
        (Search, "ask", "ask"),
        (Search, "report", "judge reports"),
        (Search, "tell", "tell"),
        (Runs, "start_trial", "open run"),
        (Runs, "log_reports", "log reports"),
        (Runs, "finish_trial", "end run"),
        (Attempt, "record", "store"),
        (Best, "upload", "models"),
        (Best, "become", "models"),
    ):
        meter.wrap(owner, name, phase)
    call_before(Trials, "_start", meter.begin)
    call_before(Runs, "kill_unfinished", meter.end)  # what follows the last trial
    for name in STEPS:
        meter.wrap(Attempt, name, name)
    with settings_for("inline") as settings:
        opened = open_worker(settings)
        method: Any = opened._catalog.get(METHOD)
        method.reports, method.pause_seconds = STUDY_REPORTS, 0.0
        store = opened._house.store
        task_id = post_task(store, trials)
        done = threading.Event()
        beating = threading.Thread(target=beat_until, args=(opened, done))
        beating.start()
        opened.work_once()
        done.set()
        beating.join()
        runs = trial_runs(settings, store, task_id)
        store.close()
    models = sum("es.model" in run.data.tags for run in runs)
    steps = {name: meter.outside[name] for name in STEPS}
    return Study(meter.trials, steps, meter.cpu_seconds, models)


def call_before(owner: Any, name: str, hook: Callable[[], None]) -> None:
    function = getattr(owner, name)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        hook()
        return function(*args, **kwargs)

    setattr(owner, name, hooked)


def print_study(study: Study) -> None:
    table = Table(title=f"ms per trial of {STUDY_REPORTS} reports, as a study grows; their median")
    table.add_column("trials")
    for phase in PHASES:
        table.add_column(phase, justify="right")
    for column in ("all, mean", "per report"):
        table.add_column(column, justify="right")
    for part in np.array_split(np.arange(len(study.trials)), BINS):
        trials = [study.trials[number] for number in part]
        middles = (np.median([trial[phase] for trial in trials]) for phase in PHASES)
        report = np.mean([trial["log reports"] + trial["judge reports"] for trial in trials])
        table.add_row(
            f"{part[0] + 1} to {part[-1] + 1}",
            *(f"{1000 * middle:.1f}" for middle in middles),
            f"{1000 * np.mean([cost(trial) for trial in trials]):.1f}",
            f"{1000 * report / STUDY_REPORTS:.1f}",
        )
    totals = (sum(trial[phase] for trial in study.trials) for phase in PHASES)
    table.add_section()
    whole = f"{study.seconds:.1f} s"
    table.add_row("sum, s", *(f"{total:.1f}" for total in totals), whole, "")
    console.print(table)
    for phase, meaning in PHASES.items():
        console.print(f"{phase}: {meaning}")
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in study.steps.items())
    console.print(f"{study.models} models were stored. Not in the sums, trials apart: {steps}")


if __name__ == "__main__":
    main()
