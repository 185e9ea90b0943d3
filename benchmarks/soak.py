"""What days of work do to the services, in minutes: `python -m benchmarks.soak`.

The API, a worker and MLflow run as `up` runs them. Clients post searches with clicks as fast as
they are answered while one task follows another. Printed: posts per second, their latency, and how
the memory of the API and the worker grew once both had warmed up.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.iteration import packaged_model
from embedding_studio.clickstream import SearchResult, Session, SessionEvent
from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.errors import Conflict
from embedding_studio.services import Services
from embedding_studio.settings import Settings
from embedding_studio.tasks import Budget, TaskStatus

METHOD = "Linear adapter"
CLIENTS, SESSIONS_PER_POST, QUERIES, ITEMS = 4, 20, 300, 500
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
    options.add_argument("--minutes", type=float, default=15.0)
    options.add_argument("--store-url", help="of a MongoDB; without it, SQLite")
    args = options.parse_args()
    load = Load(60 * args.minutes)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        settings = Settings(
            data_folder=Path(folder), initial_model=str(packaged_model()), rate_limit="",
            **({"store_url": args.store_url} if args.store_url else {}),
        )  # fmt: skip
        with Services(settings, logs=Path(folder, "logs")) as services:
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
    report(load, memory)


def post(api_url: str, client_number: int, load: Load) -> None:
    """Post searches until the time is over; repeat some, as clients that lost an answer do."""
    random = np.random.default_rng(client_number)
    number = 0
    with EmbeddingStudioClient(api_url) as client:
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


if __name__ == "__main__":
    main()
