"""How fast sessions are taken, beside the least an endpoint can do: `python -m benchmarks.ingest`.

Eight clients post sessions of twenty results with two clicks each to four endpoints, which take
turns, each in a process of its own on an SQLite file of its own:

    naive    FastAPI parses one session a request, and inserts it as one document
    single   the product, one session a request
    bulk     the product, a hundred sessions a request
    bound    a hundred sessions a request as in bulk, parsed and inserted without any check

Ratios are of sessions a second, the median of all rounds.
"""

import argparse
import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

CLIENTS = 8
IN_BULK = 100
RESULTS, CLICKS = 20, 2
UP_SECONDS = 60.0
PATHS = {
    "naive": "/naive",
    "single": "/api/v1/clickstream/session",
    "bulk": "/api/v1/clickstream/sessions",
    "bound": "/bound",
}
console = Console(width=120, soft_wrap=True)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=4.0, help="of each endpoint in a round")
    options.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.serve:
        serve_naively(args.serve, args.port)
        return
    rates: defaultdict[str, list[float]] = defaultdict(list)
    latencies: defaultdict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ports = {
            name: stack.enter_context(serving(Path(folder) / name, is_ours))
            for name, is_ours in (("ours", True), ("naive", False))
        }
        for number in range(args.rounds + 1):
            for name, path in PATHS.items():
                port = ports["ours" if name in ("single", "bulk") else "naive"]
                rate, took = post_for(args.seconds, port, path, f"{name}-{number}")
                if number:  # the first round warms up
                    rates[name].append(rate)
                    latencies[name] += took
                    console.print(f"round {number}: {name} {rate:,.0f} sessions/s")
    show(rates, latencies)


def show(rates: Mapping[str, list[float]], latencies: Mapping[str, list[float]]) -> None:
    table = Table("endpoint", "sessions/s", "p50 ms", "p99 ms")
    speed = {name: statistics.median(each) for name, each in rates.items()}
    p99 = {name: percentile(each, 0.99) * 1000 for name, each in latencies.items()}
    for name, each in latencies.items():
        p50 = percentile(each, 0.5) * 1000
        table.add_row(name, f"{speed[name]:,.0f}", f"{p50:.1f}", f"{p99[name]:.1f}")
    console.print(table)
    summary = {
        "bulk_ratio": round(speed["bulk"] / speed["naive"], 2),
        "single_ratio": round(speed["single"] / speed["naive"], 2),
        "single_p99_ms": round(p99["single"], 1),
        "bulk_share_of_bound": round(speed["bulk"] / speed["bound"], 3),
    }
    console.print_json(json.dumps(summary))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def session(session_id: str, now: float) -> dict[str, Any]:
    return {
        "session_id": session_id,
        "search_query": "red running shoes for rainy days",
        "created_at": int(now) - 60,
        "search_results": [
            {
                "object_id": f"item-{place}",
                "rank": 1.0 - place / 100,
                "meta": {"text": f"A shoe, the {place}th of its kind"},
            }
            for place in range(RESULTS)
        ],
        "events": [
            {"event_id": f"{session_id}-{place}", "object_id": f"item-{place}"}
            for place in range(CLICKS)
        ],
    }


def post_for(seconds: float, port: int, path: str, name: str) -> tuple[float, list[float]]:
    """Post with all clients; return the sessions a second, and how long each request took."""
    in_bulk = path in (PATHS["bulk"], PATHS["bound"])
    took: list[float] = []
    failures: list[str] = []
    # all alike but for their ids, and sent by hand: the clients' work is not what is measured
    text = json.dumps(session("the-id", time.time()))
    began = time.perf_counter()

    def post(client: int) -> None:
        number = 0
        with closing(socket.create_connection(("127.0.0.1", port), 60)) as connection:
            while time.perf_counter() - began < seconds:
                number += 1
                its_id = f"{name}-{client}-{number}"
                if in_bulk:
                    each = (text.replace("the-id", f"{its_id}-{n}") for n in range(IN_BULK))
                    body = f'{{"sessions": [{",".join(each)}]}}'
                else:
                    body = text.replace("the-id", its_id)
                sent = time.perf_counter()
                status, answer = exchange(connection, path, body.encode())
                took.append(time.perf_counter() - sent)
                if status != 200 or b'"invalid"' in answer:
                    failures.append(answer.decode())
                    return

    threads = [threading.Thread(target=post, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"{path} answered: {failures[0][:500]}")
    return len(took) * (IN_BULK if in_bulk else 1) / (time.perf_counter() - began), took


def exchange(connection: socket.socket, path: str, body: bytes) -> tuple[int, bytes]:
    """Post a JSON; return the answer's status and body, which comes with its length."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += received(connection)
    head_bytes, _, rest = answer.partition(b"\r\n\r\n")
    length = int(head_bytes.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(rest) < length:
        rest += received(connection)
    return int(head_bytes[9:12]), rest


def received(connection: socket.socket) -> bytes:
    if part := connection.recv(65_536):
        return part
    raise SystemExit("the server closed a connection")


@contextmanager
def serving(folder: Path, is_ours: bool) -> Iterator[int]:
    """Serve the product, or what it is compared to, on a free port."""
    folder.mkdir()
    port = free_port()
    if is_ours:
        command = ["-m", "embedding_studio", "api"]
    else:
        command = ["-m", "benchmarks.ingest", "--serve", str(folder), "--port", str(port)]
    settings = {
        "ES_STORE_URL": f"sqlite:///{folder / 'store.db'}",
        "ES_DATA_FOLDER": str(folder),
        "ES_API_PORT": str(port),
        "ES_RATE_LIMIT": "",  # as in what it is compared to; one client posts more than most may
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, *command], env={**os.environ, **settings}, stdout=log, stderr=log
        )
    try:
        wait_until_up(port, server, folder / "log")
        yield port
    finally:
        server.terminate()
        server.wait()


def wait_until_up(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + UP_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"the server did not come up: {log.read_text()}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def serve_naively(folder: Path, port: int) -> None:
    """Serve what somebody would write in an hour, and the bound."""
    import uvicorn
    from fastapi import FastAPI, Request
    from pydantic_core import from_json, to_json

    app = FastAPI()
    file = folder / "naive.db"
    local = threading.local()

    def connection() -> sqlite3.Connection:
        if not hasattr(local, "connection"):
            local.connection = sqlite3.connect(file, timeout=30)
            for pragma in ("journal_mode = WAL", "synchronous = FULL"):
                local.connection.execute(f"PRAGMA {pragma}").close()
        opened: sqlite3.Connection = local.connection
        return opened

    connection().execute("CREATE TABLE sessions (id TEXT PRIMARY KEY, document TEXT)")
    insert = "INSERT INTO sessions VALUES (?, ?)"

    @app.post("/naive")
    def post_one(posted: dict[str, Any]) -> dict[str, str]:
        with connection() as database:
            database.execute(insert, (posted["session_id"], json.dumps(posted)))
        return {"session_id": posted["session_id"]}

    def write(body: bytes) -> None:
        rows = [(one["session_id"], to_json(one).decode()) for one in from_json(body)["sessions"]]
        with connection() as database:
            database.executemany(insert, rows)

    @app.post("/bound")
    async def post_many(request: Request) -> dict[str, str]:
        from starlette.concurrency import run_in_threadpool

        await run_in_threadpool(write, await request.body())
        return {}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", loop="asyncio", http="h11")


if __name__ == "__main__":
    main()
