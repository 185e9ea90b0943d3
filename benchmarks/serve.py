"""What serving costs beside encoding: `python -m benchmarks.serve`.

Eight clients, each a process of its own, ask `embedding-studio serve` for the vectors of documents,
32 texts in a request, one request after the other: all-MiniLM-L6-v2, from a package, is the model,
and what icons and products of a made-up catalogue are called, some by several, are the texts. The
same texts are encoded by a bare loop: a script that calls `encode` for the same lists of 32, one
after the other, in one process with the same number of threads. Both run in turns: A B B A.

Then the clients ask on while the champion is replaced every few seconds by another version of the
same size. `throughput_share`: texts a second of the clients over those of the bare loop.
`cpu_share`: CPU seconds a text of the bare loop over those of the server, which a busy machine
moves less. `p99_swap_ratio`: the 99th percentile of the seconds of requests that were under way
between a move of the champion and the first answer of the new one (`swap_seconds`), over that of
the others, in the same run. `failed`: requests that were not answered by 200, of all.

The bare loop sorts by length within its lists, the server over those of several clients, so it pads
less; with `--even` all texts are of like length, and there is nothing to gain."""

import argparse
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.corpora import generated_corpus
from benchmarks.iteration import packaged_model
from embedding_studio.models import ChampionMove, ModelVersion, MoveKind
from embedding_studio.settings import Settings
from embedding_studio.store import Store, open_store
from embedding_studio.tasks import ModelFile, StoredModel
from embedding_studio.tracking.files import describe_files

NAME = "served"
CLIENTS, TEXTS, SECONDS, PAIRS, SWAPS = 8, 32, 30.0, 2, 6
SEED, LONGEST_SWAP = 0, 120.0
console = Console(width=120, soft_wrap=True)


@dataclass(frozen=True)
class Request:
    """One request of a client, by the clock that processes share; version: that answered, or None
    for one that failed."""

    start: float
    end: float
    version: int | None
    status: int


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--clients", type=int, default=CLIENTS)
    options.add_argument("--seconds", type=float, default=SECONDS)
    options.add_argument("--pairs", type=int, default=PAIRS)
    options.add_argument("--swaps", type=int, default=SWAPS)
    options.add_argument("--pause", type=float, default=5.0, help="seconds between two swaps")
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--format", choices=("base64", "float"), default="base64")
    options.add_argument("--even", action="store_true", help="texts of like length")
    options.add_argument("--role", choices=("bare", "client"), help=argparse.SUPPRESS)
    options.add_argument("--url", help=argparse.SUPPRESS)
    options.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.role == "bare":
        encode_bare(args.seconds, args.even)
        return
    if args.role == "client":
        ask(args.url, args.number, args)
        return
    summary: dict[str, float] = {"load_before": round(os.getloadavg()[0], 2)}
    rates: dict[str, list[float]] = {"bare": [], "served": []}
    cpus: dict[str, list[float]] = {"bare": [], "served": []}
    table = Table("turn", "texts/s", "p50, ms", "p99, ms", "failed")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    with tempfile.TemporaryDirectory(prefix="serve-") as name, serving(Path(name)) as server:
        requests: list[Request] = []
        for pair in range(args.pairs):
            for turn in ("served", "bare") if pair % 2 == 0 else ("bare", "served"):
                if turn == "bare":
                    rate, cpu = run_bare(args)
                    rates[turn].append(rate)
                    cpus[turn].append(cpu)
                    table.add_row(turn, f"{rates[turn][-1]:.0f}", "", "", "")
                else:
                    cpu = cpu_of(server.pid)
                    found = run_clients(server.url, args)
                    rates[turn].append(rate_of(found))
                    done = sum(one.version is not None for one in found) * TEXTS
                    cpus[turn].append((cpu_of(server.pid) - cpu) / done)
                    table.add_row(turn, f"{rates[turn][-1]:.0f}", *row_of(found))
                    requests += found
        swapping, spans = run_swaps(server, args)
    summary["throughput_share"] = round(float(np.mean(rates["served"]) / np.mean(rates["bare"])), 3)
    during, others = split_by_swaps(swapping, spans)
    summary["cpu_share"] = round(float(np.mean(cpus["bare"]) / np.mean(cpus["served"])), 3)
    for turn, some in (("others, of the run with swaps", others), ("while swapped", during)):
        table.add_row(turn, "", *row_of(some))
    summary["p99_swap_ratio"] = round(p99(during) / p99(others), 2)
    summary["failed"] = sum(one.version is None for one in [*requests, *swapping])
    summary["requests"] = len(requests) + len(swapping)
    summary["requests_while_swapped"] = len(during)
    summary["swap_seconds"] = round(float(np.mean([end - start for start, end in spans])), 2)
    summary["load_after"] = round(os.getloadavg()[0], 2)
    console.print(table)
    console.print(json.dumps(summary), highlight=False, markup=False)


# -- the server ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    url: str
    pid: int
    store: Store
    folder: Path


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Start `embedding-studio serve` with the packaged model as its champion."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = Settings(data_folder=folder, serve_port=port)
    with closing(open_store(settings.resolved_store_url)) as store:
        register(store, packaged_model(), describe(packaged_model()))
        process = subprocess.Popen(
            [sys.executable, "-m", "embedding_studio", "serve"],
            env={**os.environ, **settings.as_environment()},
            stderr=(folder / "serve.log").open("wb"),
        )
        server = Server(f"http://127.0.0.1:{port}", process.pid, store, folder)
        try:
            wait_for(f"{server.url}/health", process)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    while True:
        assert process.poll() is None, "the server has ended"
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)


def describe(folder: Path) -> tuple[ModelFile, ...]:
    return tuple(describe_files(folder))


def register(store: Store, folder: Path, files: tuple[ModelFile, ...]) -> int:
    """Make the model in a folder the next version, and champion."""
    found = store.models.find(NAME)
    number, champion = (len(found.versions) + 1, found.champion) if found else (1, None)
    now = datetime.now(UTC)
    move = ChampionMove(MoveKind.ADOPTED, now, champion, number, "the benchmark", "")
    model = StoredModel(f"run-{number}", str(folder), files)
    version = ModelVersion(number, model, now)
    store.models.update(NAME, lambda one: one.moved(move, version))
    return number


def another_version(server: Server, number: int) -> Path:
    """Write the packaged model, rounded a little otherwise: files of their own to fetch."""
    from safetensors.torch import load_file, save_file

    folder = server.folder / f"model-{number}"
    folder.mkdir()
    for source in packaged_model().rglob("*"):
        target = folder / source.relative_to(packaged_model())
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(source.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights = {name: one * (1 + number * 1e-4) for name, one in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# -- what is sent ----------------------------------------------------------------------------------


@cache
def item_names() -> list[str]:
    return [item.label for item in generated_corpus(seed=SEED).items]


def make_texts(seed: int, count: int, is_even: bool = False) -> list[str]:
    """Return texts of 6 to about 60 words: products by their names, one or several in a text."""
    random = np.random.default_rng(seed)
    return [
        ". ".join(random.choice(item_names(), size))
        for size in random.choice([2] if is_even else [1, 1, 2, 2, 4, 8], count)
    ]


def ask(url: str, number: int, args: Any) -> None:
    """Be a client: wait for a line, ask for so long, or until another line comes, and write what
    became of each request."""
    lists = [make_texts(1000 * number + n, TEXTS, args.even) for n in range(50)]
    found: list[tuple[float, float, int | None, int]] = []
    with httpx.Client(timeout=120) as http:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        end = time.monotonic() + args.seconds
        n = 0
        while (start := time.monotonic()) < end and not select.select([sys.stdin], [], [], 0)[0]:
            body = {"model": NAME, "input": lists[n % 50], "encoding_format": args.format}
            n += 1
            try:
                answer = http.post(f"{url}/v1/embeddings", json=body)
                status = answer.status_code
                version = int(answer.headers["X-Model-Version"]) if status == 200 else None
            except httpx.HTTPError:
                status, version = 0, None
            found.append((start, time.monotonic(), version, status))
    sys.stdout.write(json.dumps(found))


def run_clients(
    url: str, args: Any, during: Callable[[], None] | None = None, seconds: float = 0.0
) -> list[Request]:
    """Let all clients ask for so long; during: what is done meanwhile, at whose end they end."""
    program = [sys.executable, "-m", "benchmarks.serve", "--role", "client", "--url", url]
    program += ["--seconds", str(seconds or args.seconds), "--format", args.format, *even(args)]
    clients = [
        subprocess.Popen(
            [*program, "--number", str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(args.clients)
    ]
    for client in clients:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
    tell(clients, "go")
    if during is not None:
        during()
        tell(clients, "stop")
    told = [client.communicate()[0] for client in clients]
    assert not any(client.returncode for client in clients)
    return [Request(*entry) for lines in told for entry in json.loads(lines)]


def tell(clients: Sequence["subprocess.Popen[str]"], word: str) -> None:
    for client in clients:
        assert client.stdin is not None
        client.stdin.write(f"{word}\n")
        client.stdin.flush()


def even(args: Any) -> list[str]:
    return ["--even"] if args.even else []


def rate_of(requests: Sequence[Request]) -> float:
    """Return texts a second while all clients were at work."""
    first = min(one.start for one in requests)
    last = max(one.start for one in requests)
    done = [one for one in requests if one.version is not None and one.end <= last]
    return len(done) * TEXTS / (last - first)


# -- the bare loop ---------------------------------------------------------------------------------


def run_bare(args: Any) -> tuple[float, float]:
    """Return texts a second, and CPU seconds a text."""
    program = [sys.executable, "-m", "benchmarks.serve", "--role", "bare", *even(args)]
    done = subprocess.run(
        [*program, "--seconds", str(args.seconds)], stdout=subprocess.PIPE, check=True, text=True
    )
    rate, cpu = json.loads(done.stdout)
    return float(rate), float(cpu)


def encode_bare(seconds: float, is_even: bool) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(packaged_model()), device="cpu")
    lists = [make_texts(1000 * n + m, TEXTS, is_even) for m in range(10) for n in range(CLIENTS)]
    model.encode_document(lists[0], show_progress_bar=False)
    start, cpu, n = time.monotonic(), time.process_time(), 0
    while time.monotonic() - start < seconds:
        model.encode_document(lists[n % len(lists)], batch_size=TEXTS, show_progress_bar=False)
        n += 1
    texts = n * TEXTS
    told = texts / (time.monotonic() - start), (time.process_time() - cpu) / texts
    sys.stdout.write(json.dumps(told))


def cpu_of(pid: int) -> float:
    """Return the CPU seconds that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- swaps -----------------------------------------------------------------------------------------


def run_swaps(server: Server, args: Any) -> tuple[list[Request], list[tuple[float, float]]]:
    """Let clients ask while the champion moves; return the requests, and from when to when each
    move took."""
    folders = [another_version(server, number) for number in range(args.swaps)]
    spans: list[tuple[float, float]] = []

    def swap() -> None:
        for folder in folders:
            time.sleep(args.pause)
            files = describe(folder)
            moved_at = time.monotonic()
            number = register(server.store, folder, files)
            body = {"model": NAME, "input": "lamp", "input_type": "query"}
            while http.post("/v1/embeddings", json=body).headers["X-Model-Version"] != str(number):
                assert time.monotonic() - moved_at < LONGEST_SWAP, f"no answer of version {number}"
                time.sleep(0.1)
            spans.append((moved_at, time.monotonic()))
        time.sleep(args.pause)

    with httpx.Client(base_url=server.url, timeout=120) as http:
        return run_clients(server.url, args, swap, args.swaps * LONGEST_SWAP), spans


def split_by_swaps(
    requests: Sequence[Request], spans: Sequence[tuple[float, float]]
) -> tuple[list[Request], list[Request]]:
    """Return the requests that were under way during a swap, and the others."""
    during = [
        one for one in requests if any(one.start < end and one.end > start for start, end in spans)
    ]
    return during, [one for one in requests if one not in during]


def p99(requests: Sequence[Request]) -> float:
    return float(np.percentile([one.end - one.start for one in requests], 99))


def row_of(requests: Sequence[Request]) -> list[str]:
    seconds = [one.end - one.start for one in requests]
    failed = sum(one.version is None for one in requests)
    return [f"{1000 * np.percentile(seconds, share):.0f}" for share in (50, 99)] + [str(failed)]


if __name__ == "__main__":
    main()
