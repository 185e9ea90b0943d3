"""From nothing to a goal with commands alone, by the clock: `python -m benchmarks.stranger`.

In an empty folder, with the services of `embedding-studio up`: a month of logs in parquet and the
items' texts in CSV become a verdict; the vectors of the champion come over HTTP; it is rolled back;
a new method is written, checked and judged; the first model is exported to ONNX. The logs
are those of the demo's searchers. Commands are printed as they are typed. `seconds_<step>`: how
long each took; `lines_<step>`: how many commands."""

import argparse
import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.ingest import free_port
from embedding_studio.demo.corpus import load_corpus
from embedding_studio.demo.run import _embed, _packaged_model
from embedding_studio.demo.searchers import simulate_sessions
from embedding_studio.testing.begin import file_name

METHOD = "Default Fine Tuning Method"
OWN = "A method of mine"
PLUGINS = Path(__file__).parent.parent / "plugins"
START_SECONDS = 300
console = Console(width=120, soft_wrap=True, highlight=False)


class Stranger:
    """Somebody at a shell in a folder."""

    def __init__(self, folder: Path) -> None:
        self.ports = {name: free_port() for name in ("API", "MLFLOW", "SERVE")}
        self._folder = folder
        self._environment = {
            **os.environ,
            **{f"ES_{name}_PORT": str(port) for name, port in self.ports.items()},
            "ES_INITIAL_MODEL": str(_packaged_model()),
            "PYTHONPATH": str(PLUGINS.parent),
        }
        self.clock: dict[str, float] = {}
        self.lines: dict[str, int] = {}

    @contextmanager
    def services(self) -> Iterator[None]:
        """The services, until they are not needed any more."""
        with (self._folder / "up.log").open("wb") as log:
            up = subprocess.Popen(
                _program("up"), cwd=self._folder, env=self._environment, stdout=log, stderr=log
            )
            try:
                self._wait(up)
                yield
            finally:
                up.send_signal(signal.SIGTERM)
                up.wait()

    def _wait(self, up: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_SECONDS
        while up.poll() is None and time.monotonic() < deadline:
            try:
                for name, path in (("API", "/api/v1/health"), ("SERVE", "/health")):
                    httpx.get(f"http://127.0.0.1:{self.ports[name]}{path}").raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.2)
            else:
                return
        raise SystemExit((self._folder / "up.log").read_text())

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Around the commands of one goal."""
        console.rule(step)
        start, self.lines[step] = time.monotonic(), 0
        self._step = step
        yield
        self.clock[step] = time.monotonic() - start

    def types(self, *words: str) -> str:
        """Run a command of the shell and return what it prints."""
        self.lines[self._step] += 1
        console.print(f"$ embedding-studio {shlex.join(words)}", style="bold", markup=False)
        done = subprocess.run(
            _program(*words), cwd=self._folder, env=self._environment, text=True, stdout=-1
        )
        console.print(done.stdout.strip(), markup=False)
        if done.returncode:
            raise SystemExit(f"it ended with exit status {done.returncode}")
        return done.stdout


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--sessions", type=int, default=20_000)
    options.add_argument("--trials", type=int, default=2)
    args = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="stranger-") as name:
        folder = Path(name)
        write_a_month(folder, args.sessions)
        shutil.copytree(PLUGINS, folder / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
        stranger = Stranger(folder)
        with stranger.services():
            walk(stranger, args.trials)
    table = Table("goal", "commands", "seconds")
    for step, seconds in stranger.clock.items():
        table.add_row(step, str(stranger.lines[step]), f"{seconds:.1f}")
    console.print(table)
    summary: dict[str, float] = {}
    for step, seconds in stranger.clock.items():
        summary |= {f"seconds_{step}": round(seconds, 1), f"lines_{step}": stranger.lines[step]}
    console.print(json.dumps(summary), markup=False)


def walk(stranger: Stranger, trials: int) -> None:
    """Go from a month of logs to a champion, and on."""
    few = ("--trials", str(trials), "--watch")
    with stranger.timed("verdict"):
        stranger.types("batch", "import", "items.csv")
        stranger.types("batch", "import", "logs.parquet")
        stranger.types("task", "create", METHOD, "--last", "31d", *few)
    with stranger.timed("vectors"):
        stranger.lines["vectors"] += 1
        answer = httpx.post(
            f"http://127.0.0.1:{stranger.ports['SERVE']}/v1/embeddings",
            json={"model": METHOD, "input": ["magnifier", "trash"], "input_type": "query"},
            timeout=60,
        ).raise_for_status()
        vectors = [one["embedding"] for one in answer.json()["data"]]
        told = answer.json()["model"]
        console.print(f"{told}: {len(vectors)} vectors of {len(vectors[0])} numbers")
    with stranger.timed("rollback"):
        stranger.types("models", "rollback", METHOD, "--reason", "to see whether it works")
    with stranger.timed("method"):
        stranger.types("methods", "new", OWN)
        stranger.types("methods", "check", f"plugins/{file_name(OWN)}")
        stranger.types("task", "create", OWN, "--last", "31d", *few)
        stranger.types("models", "show", OWN)
    with stranger.timed("onnx"):
        stranger.types("models", "export", METHOD, "--format", "onnx", "--out", "exported")


def write_a_month(folder: Path, count: int) -> None:
    """Write searches as a row for each impression, a month of them, and the items' texts."""
    corpus = load_corpus()
    model = _embed(corpus, _packaged_model())
    now = datetime.now(UTC)
    sessions = list(simulate_sessions(corpus, model.queries, model.items, count, 0, now))
    start, step = now - timedelta(days=30), timedelta(days=30) / count
    rows = [
        {
            "query": session.search_query,
            "item": result.object_id,
            "position": place,
            "clicked": result.object_id in session.clicked_ids(),
            "session_id": session.session_id,
            "timestamp": start + number * step,
        }
        for number, session in enumerate(sessions)
        for place, result in enumerate(session.search_results, start=1)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "logs.parquet")
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["object_id", "text"])
        writer.writerows([item.object_id, item.label] for item in corpus.items)


def _program(*words: str) -> list[str]:
    return [sys.executable, "-m", "embedding_studio", *words]


if __name__ == "__main__":
    main()
