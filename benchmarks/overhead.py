"""What an iteration costs beside its training: `python -m benchmarks.overhead`.

The same hyperparameter sets, with the same seeds, are trained and scored twice on the demo's
icons: by the product's worker in `process:1`, on SQLite and a local MLflow database; and by a loop
in a bare script, which loads data and model for each set and knows no MLflow, no Optuna and no
other process. Both run on one core, with one thread, in turns: A B B A. The overhead is that of the
search: from the start of the first trial's run in MLflow to the end of the last one's.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.sessions import read_sessions, write_sessions
from embedding_studio.clickstream import split_by_query
from embedding_studio.methods import Parameters, Scores, TrialRun, discover_methods
from embedding_studio.settings import Settings

METHOD = "Default method long"
PLUGINS = Path(__file__).parent / "long_plugins"
TRIALS, SESSIONS, PAGE = 8, 40_000, 1000
PHASES = {
    "load": "data and model, for each trial",
    "train": "steps, and the scores of each epoch and blend",
    "evaluate": "the final scores",
    "reports": "within train: until the answer to a report",
    "save": "of what beats the best, in the trial",
    "start and end": "fork, pickles, until the end is in the ledger; a better model read back",
    "between": "proposing, opening the run, all that lies between two trials",
}
BARE = ("load", "train", "evaluate")
console = Console(width=120, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """wall: seconds of all trials, first start to last end; whole: of all that was done for them.

    seconds: by phase, over all trials; they make up `wall`. tokens: of each trial."""

    wall: float
    whole: float
    seconds: Mapping[str, float]
    tokens: Sequence[int]

    @property
    def share_within(self) -> float:
        """What a bare script would not have spent, through what it would."""
        bare = sum(self.seconds[phase] for phase in BARE)
        return self.wall / bare - 1


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--trials", type=int, default=TRIALS)
    options.add_argument("--sessions", type=int, default=SESSIONS)
    options.add_argument("--pairs", type=int, default=2)
    options.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    options.add_argument(
        "--quick", action="store_true", help="one pair of 3 trials, 2,000 sessions"
    )
    options.add_argument("--bare", type=Path, help="be the bare script, in this folder")
    args = options.parse_args()
    if args.bare:
        run_bare(args.bare)
        return
    if args.quick:
        args.pairs, args.trials, args.sessions = 1, 3, 2000
    os.sched_setaffinity(0, {args.core})
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[str, list[Outcome]] = {"iteration": [], "bare": []}
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="overhead-") as name:
        folder = Path(name)
        write_sessions(folder / "sessions.jsonl", "icons", args.sessions)
        sets: list[dict[str, Any]] = []
        for pair in range(args.pairs):
            turns = ("iteration", "bare") if pair % 2 == 0 else ("bare", "iteration")
            for turn in turns:
                place = folder / f"{turn}-{pair}"
                place.mkdir()
                if turn == "bare":
                    outcome = start_bare(place, sets)
                else:
                    outcome, again = run_iteration(place, args.trials)
                    assert again == (sets or again), "the search proposed other sets"
                    sets = again
                found[turn].append(outcome)
                loads.append(os.getloadavg()[0])
                say(turn, outcome, loads[-1])
    tokens = {tuple(outcome.tokens) for outcomes in found.values() for outcome in outcomes}
    assert len(tokens) == 1, f"not all did the same: {tokens}"
    report(found, loads)


def settings_in(folder: Path) -> Settings:
    from benchmarks.iteration import packaged_model

    return Settings(
        data_folder=folder,
        plugins_folder=PLUGINS,
        executor="process:1",
        initial_model=str(packaged_model()),
    )


# -- the product -----------------------------------------------------------------------------------


def run_iteration(folder: Path, trials: int) -> tuple[Outcome, list[dict[str, Any]]]:
    """Run one iteration; return what it cost, and the parameters and seed of each trial."""
    from benchmarks.scale import trial_runs, wait_for, worker
    from benchmarks.spans import read_spans
    from embedding_studio.store import open_store
    from embedding_studio.tasks import Budget, TaskEventKind, TaskRequest

    settings = settings_in(folder)
    store = open_store(settings.resolved_store_url)
    sessions = read_sessions(folder.parent / "sessions.jsonl")
    for start in range(0, len(sessions), PAGE):
        store.clickstream.register(sessions[start : start + PAGE], datetime.now(UTC))
    with worker(settings) as process:
        budget = Budget(trials, max_minutes=None)
        task, _ = store.tasks.add(TaskRequest(METHOD, budget=budget), datetime.now(UTC))
        wait_for(store, task.id, process)
    task = store.tasks.get(task.id)
    events = [numbered.event for numbered in store.tasks.events(task.id, 0, PAGE)]
    claimed = next(event.at for event in events if event.kind is TaskEventKind.CLAIMED)
    runs = trial_runs(settings, store, task.id)
    store.close()
    runs.sort(key=lambda run: int(run.data.tags["es.trial"]))
    wall = (max(r.info.end_time for r in runs) - min(r.info.start_time for r in runs)) / 1000
    totals = dict[str, float]()
    for run in runs:
        for name, value in run.data.metrics.items():
            if name.startswith("system/seconds."):
                phase = name.removeprefix("system/seconds.")
                totals[phase] = totals.get(phase, 0.0) + value
    waiting = sum(span.end - span.start for span in read_spans(folder / "spans.jsonl"))
    seconds = {
        "load": totals["load"],
        "train": totals["train"] - waiting,
        "evaluate": totals["evaluate"],
        "reports": waiting,
        "save": totals["save"],
        "start and end": 2 * totals["wall"] - sum(totals.values()),
        "between": wall - totals["wall"],
    }
    whole = (task.updated_at - claimed).total_seconds()
    tokens = [int(run.data.metrics["trained_tokens"]) for run in runs]
    return Outcome(wall, whole, seconds, tokens), [dict(run.data.params) for run in runs]


# -- the bare script -------------------------------------------------------------------------------


@dataclass
class Silent(TrialRun):
    seed: int
    baseline: Mapping[str, float] | None = None

    def report(self, scores: Scores, step: int) -> None:
        pass


def start_bare(folder: Path, sets: Sequence[Mapping[str, Any]]) -> Outcome:
    """Run the bare script in a process of its own."""
    (folder / "sets.json").write_text(json.dumps(sets))
    subprocess.run(
        [sys.executable, "-m", "benchmarks.overhead", "--bare", str(folder)],
        env={**os.environ, **settings_in(folder).as_environment()},
        check=True,
    )
    return Outcome(**json.loads((folder / "outcome.json").read_text()))


def run_bare(folder: Path) -> None:
    """Train and score each set, one after the other; write what it cost to a file."""
    import torch

    assert torch.get_num_threads() == 1
    method = discover_methods(PLUGINS).get(METHOD)
    sets: list[Parameters] = json.loads((folder / "sets.json").read_text())
    totals = dict[str, float]()
    tokens = []
    begun = time.perf_counter()
    sessions = read_sessions(folder.parent / "sessions.jsonl")
    usable = [session for session in sessions if not session.is_irrelevant]
    for name in ("data", "start"):
        (folder / name).mkdir()
    splits = split_by_query(usable, method.validation_share, method.test_share)
    method.prepare(splits, folder / "data")
    method.save(method.load_initial_model(), folder / "start")
    first = time.perf_counter()
    for params in sets:
        run = Silent(int(params["seed"]))
        times = [time.perf_counter()]
        data = method.load_data(folder / "data")
        model = method.load(folder / "start")
        times.append(time.perf_counter())
        model = method.train(model, typed(params), replace(data, test=None), run)
        times.append(time.perf_counter())
        method.evaluate(model, data.validation)
        times.append(time.perf_counter())
        for phase, (start, end) in zip(BARE, pairwise(times), strict=True):
            totals[phase] = totals.get(phase, 0.0) + end - start
        tokens.append(run.trained_tokens)
    now = time.perf_counter()
    assert not {"mlflow"} & set(sys.modules), "a bare script has no MLflow"
    totals["between"] = now - first - sum(totals.values())
    seconds = {phase: totals.get(phase, 0.0) for phase in PHASES}
    document = {"wall": now - first, "whole": now - begun, "seconds": seconds, "tokens": tokens}
    (folder / "outcome.json").write_text(json.dumps(document))


def typed(params: Mapping[str, str]) -> Parameters:
    """Return parameters as `suggest` gave them, from how MLflow keeps them: as text."""
    import ast

    return {name: ast.literal_eval(value) for name, value in params.items() if name != "seed"}


# -- what came out ---------------------------------------------------------------------------------


def say(turn: str, outcome: Outcome, load: float) -> None:
    console.print(
        f"{turn}: {outcome.wall:.1f} s for {len(outcome.tokens)} trials, "
        f"{outcome.whole:.1f} s with what is before and after; load {load:.1f}"
    )


def report(found: Mapping[str, Sequence[Outcome]], loads: Sequence[float]) -> None:
    table = Table(title="seconds of the search, mean of the turns")
    for column in ("phase", "iteration", "bare", "difference", "what"):
        table.add_column(column, justify="left" if column in ("phase", "what") else "right")
    for phase, meaning in PHASES.items():
        ours, bare = (
            fmean(outcome.seconds[phase] for outcome in found[side])
            for side in ("iteration", "bare")
        )
        table.add_row(phase, f"{ours:.2f}", f"{bare:.2f}", f"{ours - bare:+.2f}", meaning)
    walls = {side: fmean(outcome.wall for outcome in found[side]) for side in found}
    wholes = {side: fmean(outcome.whole for outcome in found[side]) for side in found}
    for name, of in (("search", walls), ("with before and after", wholes)):
        difference = of["iteration"] - of["bare"]
        table.add_row(name, f"{of['iteration']:.2f}", f"{of['bare']:.2f}", f"{difference:+.2f}", "")
    console.print(table)
    summary = {
        "trials": len(found["bare"][0].tokens),
        "seconds_per_trial": round(walls["bare"] / len(found["bare"][0].tokens), 1),
        "overhead_share": round(walls["iteration"] / walls["bare"] - 1, 4),
        "overhead_share_whole": round(wholes["iteration"] / wholes["bare"] - 1, 4),
        "overhead_share_within": round(median(o.share_within for o in found["iteration"]), 4),
        "trained_tokens": sum(found["bare"][0].tokens),
        "load": [round(load, 1) for load in loads],
    }
    console.print(json.dumps(summary), highlight=False, markup=False)


if __name__ == "__main__":
    main()
