"""What days of work do to the services, in minutes: `python -m benchmarks.soak`.

The API, a worker and MLflow run as `up` runs them. Clients post searches with clicks as fast as
they are answered while one task follows another. Printed: posts per second, their latency, and how
the memory of the API and the worker grew once both had warmed up.

With `--hostile` no task runs. The clients have keys, and work by turns alone and beside
`benchmarks.hostile`, which says what it does and how much of it. Printed: the latency of posts in
both, the share of p99, what the neighbour was answered and what it cost itself.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.iteration import packaged_model
from embedding_studio.clickstream import SearchResult, Session, SessionEvent
from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.errors import Conflict
from embedding_studio.keys import Scope, make_key
from embedding_studio.services import Services
from embedding_studio.settings import Settings
from embedding_studio.store import open_store
from embedding_studio.tasks import Budget, TaskStatus

METHOD = "Linear adapter"
CLIENTS, SESSIONS_PER_POST, QUERIES, ITEMS = 4, 20, 300, 500
TURN_SECONDS, HEAD_START_SECONDS = 20.0, 5.0
USUAL_FILES = 1024  # that a process may have open, sockets among them
SAMPLE_SECONDS = 5.0
WARM_UP_SHARE = 0.3
MB = 1e6


@dataclass
class Load:
    """What the clients saw. latencies: seconds, of one post each."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    tasks: dict[str, int] = field(default_factory=dict)
    is_over: threading.Event = field(default_factory=threading.Event)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--minutes", type=float, help="15, and 4 with --hostile")
    options.add_argument("--store-url", help="of a MongoDB; without it, SQLite")
    options.add_argument("--hostile", action="store_true", help="beside a hostile neighbour")
    args = options.parse_args()
    seconds = 60 * (args.minutes or (4 if args.hostile else 15))
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        settings = Settings(
            data_folder=Path(folder), initial_model=str(packaged_model()), rate_limit="",
            **({"store_url": args.store_url} if args.store_url else {}),
        )  # fmt: skip
        if args.hostile:
            report_neighbour(*soak_beside_neighbour(settings, seconds))
        else:
            report(*soak(settings, seconds))


def soak(settings: Settings, seconds: float) -> tuple[Load, dict[str, list[tuple[float, float]]]]:
    """Return what the clients saw while one task followed another, and the services' memory."""
    load = Load(seconds)
    with Services(settings, logs=settings.data_folder / "logs") as services:
        threads = [
            threading.Thread(target=post, args=(services.api_url, client, load))
            for client in range(CLIENTS)
        ]
        threads.append(threading.Thread(target=run_tasks, args=(services.api_url, load)))
        for thread in threads:
            thread.start()
        memory = watch(services, load)
        for thread in threads:
            thread.join()
    return load, memory


def soak_beside_neighbour(settings: Settings, seconds: float) -> tuple[Load, Load, dict[str, Any]]:
    """Return what the clients saw alone and, by turns, beside the neighbour; and what it got."""
    admin, read, slow, *own = make_keys(settings)
    settings = settings.replaced(api_key=admin, rate_limit=Settings().rate_limit)
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL_FILES, most_files))  # the services' too
    turns = max(1, round(seconds / 2 / TURN_SECONDS))
    alone, beside = Load(turns * TURN_SECONDS), Load(turns * TURN_SECONDS)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    with Services(settings, logs=settings.data_folder / "logs") as services:
        lasts = str(TURN_SECONDS + HEAD_START_SECONDS)
        command = [sys.executable, "-m", "benchmarks.hostile", services.api_url, lasts]
        keys = {"HOSTILE_INGEST_KEY": slow, "HOSTILE_READ_KEY": read}
        for turn in range(turns):
            take_turn(services, own, 2 * turn, alone)
            with subprocess.Popen(
                command, env={**os.environ, **keys}, stdout=subprocess.PIPE
            ) as neighbour:
                time.sleep(HEAD_START_SECONDS)  # until it has its connections
                take_turn(services, own, 2 * turn + 1, beside)
                output = neighbour.communicate()[0]
            for kind, found in json.loads(output).items():
                answers[kind].update(found)
        about = {
            "answers": answers,
            "api_mb": round(resident_mb(services.pid("API"))),
            "api_log_bytes": (settings.data_folder / "logs" / "api.log").stat().st_size,
        }
    return alone, beside, about


def make_keys(settings: Settings) -> list[str]:
    """Return new keys: of an admin, a reader and a poster of the neighbour's, and the clients'."""
    kinds = [
        ("default", Scope.ADMIN), ("neighbour", Scope.READ), ("neighbour", Scope.INGEST),
        *[("default", Scope.INGEST)] * CLIENTS,
    ]  # fmt: skip
    shown = []
    with closing(open_store(settings.resolved_store_url)) as store:
        for project, scope in kinds:
            key, secret = make_key("soak", [scope], project, datetime.now(UTC))
            store.keys.add(key)
            shown.append(secret)
    return shown


def take_turn(services: Services, keys: Sequence[str], turn: int, load: Load) -> None:
    """Let the clients post for a turn, each with sessions that it has not posted before."""
    load.is_over.clear()
    threads = [
        threading.Thread(target=post, args=(services.api_url, CLIENTS * turn + client, load, key))
        for client, key in enumerate(keys)
    ]
    for thread in threads:
        thread.start()
    time.sleep(TURN_SECONDS)
    load.is_over.set()
    for thread in threads:
        thread.join()
    services.check()


def post(api_url: str, client_number: int, load: Load, key: str | None = None) -> None:
    """Post searches until the time is over; repeat some, as clients that lost an answer do."""
    random = np.random.default_rng(client_number)
    number = 0
    with EmbeddingStudioClient(api_url, key) as client:
        while not load.is_over.is_set():
            sessions = [
                make_session(f"{client_number}-{number + place}", random)
                for place in range(SESSIONS_PER_POST)
            ]
            begin = time.perf_counter()
            try:
                client.post_sessions(sessions)
            except Exception as error:  # noqa: BLE001 - counted and printed
                load.failures.append(repr(error))
            load.latencies.append(time.perf_counter() - begin)
            number += SESSIONS_PER_POST if random.random() < 0.95 else 0


def make_session(session_id: str, random: np.random.Generator) -> Session:
    now = datetime.now(UTC)
    query = int(random.integers(QUERIES))
    shown = random.choice(ITEMS, size=10, replace=False)
    shown[random.integers(10)] = query  # what is meant
    clicked = [item for item in dict.fromkeys(shown.tolist()) if item == query]
    return Session(
        session_id=session_id,
        search_query=f"query number {query}",
        search_results=tuple(
            SearchResult(str(item), meta={"text": f"item {item} of {item % 7}"})
            for item in dict.fromkeys(shown.tolist())
        ),
        created_at=now,
        events=tuple(SessionEvent(f"e-{item}", str(item), now) for item in clicked),
    )


def run_tasks(api_url: str, load: Load) -> None:
    """Run one task after another until the time is over."""
    with EmbeddingStudioClient(api_url) as client:
        while not load.is_over.wait(5.0):
            try:
                task = client.create_task(METHOD, budget=Budget(max_trials=2))
            except Conflict:
                continue  # no batch is collecting yet
            while not load.is_over.wait(1.0):
                status = client.get_task(task.id).status
                if status not in (TaskStatus.PENDING, TaskStatus.PROCESSING):
                    load.tasks[status] = load.tasks.get(status, 0) + 1
                    break


def watch(services: Services, load: Load) -> dict[str, list[tuple[float, float]]]:
    """Return (seconds, megabytes) of the API's and the worker's resident memory until the end."""
    memory: dict[str, list[tuple[float, float]]] = {"API": [], "worker": []}
    begin = time.monotonic()
    while (elapsed := time.monotonic() - begin) < load.seconds:
        services.check()
        for name, samples in memory.items():
            samples.append((elapsed, resident_mb(services.pid(name))))
        time.sleep(SAMPLE_SECONDS)
    load.is_over.set()
    return memory


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MB


def growth(samples: list[tuple[float, float]]) -> float:
    """Return megabytes per minute after warming up: the slope through the medians of the first and
    the last third of what follows, which a single peak does not move."""
    warm = samples[int(WARM_UP_SHARE * len(samples)) :]
    third = max(1, len(warm) // 3)
    (t0, m0), (t1, m1) = (np.median(part, axis=0) for part in (warm[:third], warm[-third:]))
    return float(60 * (m1 - m0) / max(t1 - t0, 1e-9))


def report(load: Load, memory: dict[str, list[tuple[float, float]]]) -> None:
    console = Console()
    p50, p99 = (1000 * float(np.percentile(load.latencies, share)) for share in (50, 99))
    summary = {
        "minutes": round(load.seconds / 60, 1),
        "posts_per_s": round(len(load.latencies) / load.seconds, 1),
        "sessions_per_s": round(SESSIONS_PER_POST * len(load.latencies) / load.seconds, 1),
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
        "failures": len(load.failures),
        "tasks": load.tasks,
        "api_growth_mb_per_min": round(growth(memory["API"]), 3),
        "worker_growth_mb_per_min": round(growth(memory["worker"]), 3),
    }
    table = Table("minute", *(f"{name}, MB" for name in memory))
    for place in np.linspace(0, len(memory["API"]) - 1, 10).astype(int):
        values = (f"{samples[place][1]:.0f}" for samples in memory.values())
        table.add_row(f"{memory['API'][place][0] / 60:.1f}", *values)
    console.print(table)
    for failure in load.failures[:3]:
        console.print(failure)
    console.print(json.dumps(summary), soft_wrap=True, highlight=False, markup=False)


def report_neighbour(alone: Load, beside: Load, about: dict[str, Any]) -> None:
    console = Console()
    p50, p99 = (
        [1000 * float(np.percentile(load.latencies, share)) for load in (alone, beside)]
        for share in (50, 99)
    )
    table = Table("posts", "number", "failed", "median, ms", "99th percentile, ms")
    for place, (name, load) in enumerate((("alone", alone), ("beside", beside))):
        figures = f"{p50[place]:.1f}", f"{p99[place]:.1f}"
        table.add_row(name, str(len(load.latencies)), str(len(load.failures)), *figures)
    console.print(table)
    for failure in beside.failures[:3]:
        console.print(failure)
    summary = {
        "minutes": round((alone.seconds + beside.seconds) / 60, 1),
        "p50_ms": [round(value, 1) for value in p50],
        "p99_ms": [round(value, 1) for value in p99],
        "p99_ratio": round(p99[1] / p99[0], 2),
        "posts": [len(alone.latencies), len(beside.latencies)],
        "failures": [len(alone.failures), len(beside.failures)],
        **about,
    }
    console.print(json.dumps(summary), soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()
