"""The README and the pages of docs/, followed as they stand."""

import gzip
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedding_studio.clickstream import SearchResult, Session, SessionEvent
from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.clock import utc_now
from embedding_studio.services import Services
from embedding_studio.settings import Settings
from embedding_studio.tasks import TERMINAL
from embedding_studio.testing.encoders import write_text_encoder
from tests.blocks import DOCS, blocks_of, script_of

README = DOCS.parent / "README.md"
KEYS = DOCS / "keys.md"
PAGES = [README, *(page for page in sorted(DOCS.glob("*.md")) if page != KEYS), KEYS]
"""The first says what the others suppose. The last closes the API."""
PLUGIN = "default_fine_tuning_method.py"
QUICK = {
    "import Parameters,": "import Budget, Parameters,",
    "    recommended:": "    folds, promote, budget = 1, 'better', Budget(max_trials=1)\n"
    "    recommended:",
    '"learning_rate": 3e-4': '"learning_rate": 3e-3',
    "1e-4, 8e-4": "1e-4, 8e-3",
    '"frozen_layers": 2': '"frozen_layers": 0',
    '"frozen_layers", 1, 4': '"frozen_layers", 0, 1',
}
"""What makes the bundled method one for a small model that knows nothing."""
NOT_RUN = {
    ("README.md", "they take minutes"),
    ("imports.md", "they read from S3 and from PostgreSQL"),
    ("imports.md", "it names files in S3"),
    ("imports.md", "it reads from PostgreSQL"),
    ("plugins.md", "the services run already"),
    ("serving.md", "the tests have the extra"),
}
THINGS = ["jacket", "lamp", "chair", "cup", "bag", "shirt"]
COLOURS = ["red", "green", "blue", "yellow", "black", "white"]
NAMES = dict(zip(THINGS, ["velmo", "kirat", "sorbo", "plint", "druno", "facko"], strict=True))
FORMS = ["{0} {1}", "{1} in {0}", "cheap {0} {1}", "new {1}, {0}", "{0} {1} sale", "a {1} ({0})"]
ITEMS = {f"{colour} {thing}": f"{colour} {thing}" for thing in THINGS for colour in COLOURS}


def test_what_is_not_run() -> None:
    """A block of commands that no test runs is one of these, and says why; others show data."""
    languages = {one.language for page in PAGES for one in blocks_of(page)}
    assert languages <= {"sh", "python", "text", "json", "csv", "yaml", "toml", "sql"}
    marked = {(page.name, one.not_run) for page in PAGES for one in blocks_of(page) if one.not_run}
    assert marked == NOT_RUN


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_page_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command ends with 0 and each request is answered well, one page after the other, in one
    folder and with the services of one `up`; and meanwhile people search."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ES_WEBHOOK_SECRET", "whsec_" + "c2VjcmV0" * 4)
    write_files(tmp_path)
    failed = []
    with services(tmp_path) as running, running.client() as client:
        for page in filter(blocks_of, PAGES):
            client.post_sessions(searches(page.stem, 1000))
            if told := follow(page, running, tmp_path):
                failed.append(told)
            if page != KEYS:
                cancel_all(client)
    assert not failed, "\n\n".join(failed)


@contextmanager
def services(folder: Path) -> Iterator[Services]:
    """All services, on free ports, with one trial of a small model where no budget is named."""
    text = (README.parent / "plugins" / PLUGIN).read_text(encoding="utf-8")
    for said, instead in QUICK.items():
        assert said in text
        text = text.replace(said, instead)
    (folder / "plugins").mkdir()
    (folder / "plugins" / PLUGIN).write_text(text)
    settings = Settings(
        data_folder=folder / "data",
        plugins_folder=folder / "plugins",
        api_port=0,
        mlflow_port=0,
        serve_port=0,
        initial_model=str(write_text_encoder(folder / "tiny", {})),
    )
    with Services(settings, logs=folder / "logs", with_vectors=True) as running:
        yield running


def follow(page: Path, running: Services, folder: Path) -> str | None:
    """Run a page's blocks; return what failed, and what it printed last."""
    settings = running.settings
    ports = {5000: settings.api_port, 5001: settings.mlflow_port, 5002: settings.serve_port}
    script = script_of(page)
    for port, taken in ports.items():
        script = script.replace(f"127.0.0.1:{port}", f"127.0.0.1:{taken}")
    file = folder / f"{page.stem}.sh"
    file.write_text(script)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(file)],
        cwd=folder,
        env={**os.environ, **settings.as_environment(), "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return f"{page.name}: {done.stdout[-3000:]}" if done.returncode else None


def cancel_all(client: EmbeddingStudioClient) -> None:
    """No page waits for what another one began."""
    for task in client.list_tasks():
        if task.status not in TERMINAL:
            client.cancel_task(task.id)


def searches(prefix: str, count: int) -> list[Session]:
    """Return searches of people who call things by names that no model has learnt."""
    draw = random.Random(prefix)
    now = utc_now()
    made = []
    for number in range(count):
        thing, colour = draw.choice(THINGS), draw.choice(COLOURS)
        meant = f"{colour} {thing}"
        shown = draw.sample([item for item in ITEMS if item != meant], 5)
        shown.insert(draw.randrange(6), meant)
        clicks = [
            item
            for place, item in enumerate(shown, start=1)
            if draw.random() < (0.9 if item == meant else 0.05) / place
        ]
        at = now - timedelta(minutes=number % 600)
        made.append(
            Session(
                session_id=f"{prefix}-{number}",
                search_query=draw.choice(FORMS).format(colour, NAMES[thing]),
                search_results=tuple(
                    SearchResult(item, 1 / place, {"text": item})
                    for place, item in enumerate(shown, start=1)
                ),
                created_at=at,
                events=tuple(SessionEvent(f"{prefix}-{number}-{one}", one, at) for one in clicks),
            )
        )
    return made


def write_files(folder: Path) -> None:
    """Write the files that pages suppose a reader has."""
    rows = [
        {
            "session_id": one.session_id,
            "query": one.search_query,
            "item": result.object_id,
            "position": place,
            "clicked": result.object_id in one.clicked_ids(),
            "timestamp": one.created_at,
        }
        for one in searches("log", 4000)
        for place, result in enumerate(one.search_results, start=1)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "logs.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:60]), folder / "log.parquet")
    lines = [json.dumps(row, default=str) for row in rows[:60]]
    (folder / "log.jsonl").write_text("\n".join([*lines, '{"query": 7}']))
    table = [
        "words,sku,clicked",
        *(f"{place},{row['item']},1" for place, row in enumerate(rows[:9])),
    ]
    (folder / "log.csv.gz").write_bytes(gzip.compress("\n".join(table).encode()))
    items = {**ITEMS, "p-7": "down parka", "p-3": "rain coat"}
    (folder / "items.csv").write_text(
        "object_id,text\n" + "".join(f"{name},{text}\n" for name, text in items.items())
    )
    products = [{"object_id": name, "text": text} for name, text in items.items()]
    pq.write_table(pa.Table.from_pylist(products), folder / "products.parquet")
    pair = {"prompt": "where is my order", "completion": "We mail you a link as soon as it leaves."}
    (folder / "pairs.jsonl").write_text(json.dumps(pair))
    for name in ("pictures.zip", "march.zip"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("coat.jpg", b"a picture")
            archive.writestr("example_to_labels.json", '{"coat.jpg": ["coat", "red"]}')
