"""From a released batch to the columns that trials read, at any size: `python -m benchmarks.batch`.

Sessions of 20 results and 2 events, of 200,000 users, from 100,000 items and 300,000 distinct
queries of made-up words, are posted to a store in SQLite, the items' texts once. Then two processes
go the way of an iteration: one takes the snapshot; one splits it, fits how people click, finds
near-identical queries and writes the columns. Texts are not tokenized.

Told are CPU seconds, and what a process had in memory at its peak beside what it had once its
libraries were loaded. `cpu_seconds_1m`, `peak_mb_1m`: of a million sessions; `linearity`: what a
session of the largest batch costs over one of 100,000; `bytes_per_session`: of the store's file, in
the largest batch, items with it; `speedup_100k`: what 100,000 sessions cost at the commit before
columns came, run beside, over what they cost now."""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from embedding_studio.clickstream import (
    SearchResult,
    Session,
    SessionEvent,
    merge_weights,
)
from embedding_studio.items import Item
from embedding_studio.store import Store, open_store

SIZES = (1_000, 10_000, 100_000, 300_000, 1_000_000)
COMPARED, MOST = 100_000, 1_000_000
N_ITEMS, N_QUERIES, N_USERS, N_SHOWN = 100_000, 300_000, 200_000, 20
SHARES, FOLDS = (0.15, 0.3), 3
PAGE = 1000
BEFORE = "cd87ae263abc0055325ac1ce286307a97ea41adb"
REPOSITORY = Path(__file__).parent.parent
SNAPSHOT_BEFORE = """
from embedding_studio.engine.snapshot import take_snapshot
take_snapshot(store, Patient(), [batch], folder / "snapshot")
"""
PREPARE_BEFORE = """
from embedding_studio.clickstream import merge_weights, split_by_query
from embedding_studio.engine.jobs import EventCounts
from embedding_studio.engine.snapshot import read_snapshot
from embedding_studio.training.data import prepare_clicks
weights = merge_weights()
usable = [one.weighed(weights) for one in read_snapshot(folder / "snapshot")]
EventCounts.of(usable, weights)
prepare_clicks(split_by_query(usable, *SHARES, FOLDS, 0), item_key, untokenized, data)
"""
console = Console(width=120, soft_wrap=True)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    options.add_argument("--before", default=BEFORE, help="a commit; empty: compare with none")
    options.add_argument("--step", help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.step:
        STEPS[args.step](args.folder, *args.sizes)
        return
    summary: dict[str, float] = {"load_before": round(os.getloadavg()[0], 2)}
    table = Table("sessions", "snapshot, CPU s", "columns, CPU s", "snapshot, MB", "columns, MB",
                  "bytes a session")  # fmt: skip
    cpu: dict[int, float] = {}
    for size in sorted(args.sizes):
        found = run_steps(size, REPOSITORY)
        cpu[size] = found["snapshot"]["cpu"] + found["prepare"]["cpu"]
        peak = max(found[step]["mb"] for step in ("snapshot", "prepare"))
        table.add_row(f"{size:,}", *row_of(found))
        summary["bytes_per_session"] = round(found["bytes"], 1)
        if size == MOST:
            summary |= {"cpu_seconds_1m": round(cpu[size], 1), "peak_mb_1m": round(peak)}
    if COMPARED in cpu:
        largest = max(cpu)
        summary["linearity"] = round(cpu[largest] / largest / cpu[COMPARED] * COMPARED, 3)
        if args.before:
            with working_tree(args.before) as before:
                found = run_steps(COMPARED, before)
            seconds = found["snapshot"]["cpu"] + found["prepare"]["cpu"]
            table.add_row(f"{COMPARED:,} before", *row_of(found))
            summary["speedup_100k"] = round(seconds / cpu[COMPARED], 1)
    summary["load_after"] = round(os.getloadavg()[0], 2)
    console.print(table)
    console.print(json.dumps(summary), highlight=False, markup=False)


def row_of(found: Mapping[str, Any]) -> list[str]:
    steps = "snapshot", "prepare"
    numbers = [found[step][what] for what in ("cpu", "mb") for step in steps]
    return [*(f"{number:.1f}" for number in numbers), f"{found['bytes']:.0f}"]


@contextmanager
def working_tree(commit: str) -> Iterator[Path]:
    """Check a commit out in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="before-") as folder:
        place = Path(folder) / "tree"
        add = ["git", "worktree", "add", "--detach", "--quiet", str(place), commit]
        subprocess.run(add, cwd=REPOSITORY, check=True)
        try:
            yield place
        finally:
            remove = ["git", "worktree", "remove", "--force", str(place)]
            subprocess.run(remove, cwd=REPOSITORY, check=True)


def run_steps(size: int, code: Path) -> dict[str, Any]:
    """Run each step in a process of its own, with the product of a working tree."""
    with tempfile.TemporaryDirectory(prefix="batch-") as name:
        folder = Path(name)
        paths = os.pathsep.join(map(str, [code, REPOSITORY]))
        before = "" if code == REPOSITORY else "_before"
        found: dict[str, Any] = {}
        for step in ("write", f"snapshot{before}", f"prepare{before}"):
            command = [sys.executable, "-P", __file__, "--step", step]
            done = subprocess.run(
                [*command, "--folder", str(folder), "--sizes", str(size)],
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                cwd=folder,
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            found[step.removesuffix("_before")] = json.loads(done.stdout.splitlines()[-1])
        found["bytes"] = found["write"]["bytes"] / size
    return found


# -- what is posted --------------------------------------------------------------------------------


def make_queries(random: np.random.Generator) -> list[str]:
    """Return distinct queries of one to four words, common words more often."""
    onsets = [
        "b",
        "c",
        "d",
        "f",
        "g",
        "h",
        "j",
        "k",
        "l",
        "m",
        "n",
        "p",
        "r",
        "s",
        "t",
        "v",
        "w",
        "z",
        "br",
        "ch",
        "cl",
        "dr",
        "fl",
        "gr",
        "pl",
        "pr",
        "qu",
        "sh",
        "sl",
        "st",
        "str",
        "th",
        "tr",
    ]
    vowels, codas = (
        ["a", "e", "i", "o", "u", "ai", "ea", "ee", "ie", "oa", "oo", "ou"],
        ["", "", "n", "r", "s", "t", "ck", "x"],
    )
    syllables = [onset + vowel + coda for onset in onsets for vowel in vowels for coda in codas]
    words = ["".join(random.choice(syllables, count)) for count in random.integers(1, 4, 20_000)]
    chances = 1 / (np.arange(len(words)) + 50)
    drawn = random.choice(len(words), (2 * N_QUERIES, 4), p=chances / chances.sum())
    lengths = random.choice([1, 2, 2, 3, 3, 4], len(drawn))
    rows = zip(drawn, lengths, strict=True)
    return [*dict.fromkeys(" ".join(words[n] for n in row[:k]) for row, k in rows)][:N_QUERIES]


def make_sessions(size: int) -> Iterator[list[Session]]:
    """Give sessions by pages: people search for some things more often than for others, and click
    further down ever less."""
    random = np.random.default_rng(0)
    queries = make_queries(random)
    shown = random.integers(0, N_ITEMS, (len(queries), N_SHOWN))
    attraction = random.choice([0.1, 1.0], shown.shape, p=[0.8, 0.2]) / np.arange(1, N_SHOWN + 1)
    now = datetime.now(UTC) - timedelta(days=1)
    for first in range(0, size, PAGE):
        count = min(PAGE, size - first)
        which = (len(queries) * random.random(count) ** 3).astype(int)
        users = random.integers(0, N_USERS, count)
        order = np.argsort(-attraction[which] * random.exponential(size=(count, N_SHOWN)), axis=1)
        yield [
            _session(first + n, queries[query], shown[query], clicked, f"user-{user}", now)
            for n, (query, clicked, user) in enumerate(zip(which, order[:, :2], users, strict=True))
        ]


def _session(
    number: int,
    query: str,
    shown: NDArray[np.int64],
    clicked: NDArray[np.int64],
    user: str,
    start: datetime,
) -> Session:
    at = start + timedelta(milliseconds=number)
    name = f"session-{number}"
    return Session(
        session_id=name,
        search_query=query,
        search_results=tuple(SearchResult(f"item-{item}") for item in shown),
        created_at=at,
        user_id=user,
        events=tuple(
            SessionEvent(f"{name}-{n}", f"item-{shown[place]}", at + timedelta(seconds=5 + n))
            for n, place in enumerate(clicked)
        ),
    )


# -- what is measured, each in a process of its own ------------------------------------------------


def write(folder: Path, size: int) -> None:
    store, now = _store(folder), datetime.now(UTC)
    for page in make_sessions(size):
        store.clickstream.register(page, now)
    for first in range(0, N_ITEMS, PAGE):
        store.items.put(
            [
                Item(f"item-{n}", f"What item {n} is called, and so on")
                for n in range(first, first + PAGE)
            ]
        )
    store.clickstream.release("released", now)
    store.close()
    sys.stdout.write(json.dumps({"bytes": sum(file.stat().st_size for file in folder.iterdir())}))


def snapshot(folder: Path, size: int) -> None:
    from embedding_studio.engine.snapshot import take_snapshot

    store, batch = _released(folder)
    with measured():
        lease: Any = Patient()
        take_snapshot(store, lease, [batch], folder / "snapshot", store.items.find)


def prepare(folder: Path, size: int) -> None:
    from embedding_studio.engine.jobs import EventCounts
    from embedding_studio.snapshot import Snapshot
    from embedding_studio.training.data import prepare_clicks

    (folder / "data").mkdir()
    with measured():
        weights = merge_weights()
        taken = Snapshot(folder / "snapshot", weights)
        usable = taken.usable()
        EventCounts.of(taken.event_types, weights)
        splits = usable.split_by_query(*SHARES, FOLDS, 0)
        prepare_clicks(splits, item_key, untokenized, folder / "data")


def snapshot_before(folder: Path, size: int) -> None:
    import embedding_studio.engine.snapshot  # noqa: F401 - loaded before it is measured

    store, batch = _released(folder)
    with measured():
        exec(SNAPSHOT_BEFORE, {**globals(), "store": store, "batch": batch, "folder": folder})


def prepare_before(folder: Path, size: int) -> None:
    import embedding_studio.engine.jobs
    import embedding_studio.training.data  # noqa: F401

    data = folder / "data"
    data.mkdir()
    with measured():
        exec(PREPARE_BEFORE, {**globals(), "folder": folder, "data": data})


STEPS = {
    step.__name__: step for step in (write, snapshot, prepare, snapshot_before, prepare_before)
}


def _store(folder: Path) -> Store:
    return open_store(f"sqlite:///{folder / 'store.db'}")


def _released(folder: Path) -> tuple[Store, str]:
    store = _store(folder)
    return store, store.clickstream.page()[0].batch_id


@contextmanager
def measured() -> Iterator[None]:
    """Print what was done meanwhile took: CPU seconds, and MB beside what there was at first."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize() / 2**20
    start = time.process_time()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(json.dumps({"cpu": time.process_time() - start, "mb": peak - before}))


class Patient:
    """A lease that is never lost."""

    def patiently(self, ask: Any, *args: Any, **kwargs: Any) -> Any:
        return ask(*args, **kwargs)

    def check(self) -> None:
        pass


class _Untokenized:
    def write(self, folder: Path) -> None:
        pass


def item_key(result: SearchResult) -> str | None:
    text = result.meta.get("text")
    return text if isinstance(text, str) else None


def untokenized(contents: Sequence[str], is_item: Any) -> Any:
    return _Untokenized()


if __name__ == "__main__":
    main()
