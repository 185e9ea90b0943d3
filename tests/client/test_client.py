import gzip
import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy
import stamina
import uvicorn
from typer.testing import CliRunner, Result

from embedding_studio.api.app import create_app
from embedding_studio.api.server import listen
from embedding_studio.cli.app import app
from embedding_studio.clickstream import BatchCount, SearchResult, Session, SessionEvent
from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.errors import (
    ConfigurationError,
    Conflict,
    CorruptModel,
    EmbeddingStudioError,
    Forbidden,
    InvalidInput,
    NotFound,
    StoreUnavailable,
    TooManyRequests,
    Unauthorized,
)
from embedding_studio.items import Item, PutStatus
from embedding_studio.labels import Label
from embedding_studio.reports import Enough
from embedding_studio.settings import Settings
from embedding_studio.snapshot import Snapshot
from embedding_studio.store import Store, open_store
from embedding_studio.tasks import Budget, Claim, TaskStatus
from embedding_studio.wire.clickstream import PostStatus
from embedding_studio.wire.imports import ImportReport
from embedding_studio.wire.tasks import TaskView
from tests.api.samples import METHOD, claim, finish_with_model, record_worker, write_model
from tests.api.test_models import end_task, register
from tests.waiting import wait_until

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(f"sqlite:///{tmp_path / 'store.db'}")) as store:
        yield store


@pytest.fixture
def client(store: Store, tmp_path: Path) -> Iterator[EmbeddingStudioClient]:
    """A client of the real application, served on a free port of this machine."""
    listener = listen("127.0.0.1", 0)
    served = create_app(store, Settings(data_folder=tmp_path, allowed_roots=str(tmp_path)))
    server = uvicorn.Server(uvicorn.Config(served, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with EmbeddingStudioClient(url, retry_seconds=5) as client:
        client.ping()
        yield client
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture
def no_pauses() -> Iterator[None]:
    """Retries follow each other at once, four tries at most."""
    with stamina.set_testing(True, attempts=4):
        yield


def session(session_id: str, events: int = 0) -> Session:
    return Session(
        session_id=session_id,
        search_query="red shoes",
        search_results=(SearchResult("shoe-1", 0.9, {"text": "Runner"}), SearchResult("shoe-2")),
        created_at=NOW,
        search_meta={"page": 1},
        user_id="u-1",
        events=tuple(SessionEvent(f"e-{i}", "shoe-1", NOW) for i in range(events)),
    )


def test_sessions_make_the_round_trip(client: EmbeddingStudioClient) -> None:
    """What was posted, one by one or in bulk, is read back equal, page after page."""
    posted = [session(f"s-{i}", events=i % 3) for i in range(7)]
    assert client.post_session(posted[0]).status is PostStatus.CREATED
    outcomes = client.post_sessions(iter(posted))
    assert [one.status for one in outcomes] == [PostStatus.EXISTING] + [PostStatus.CREATED] * 6
    assert client.post_events("s-0", [SessionEvent("e-9", "shoe-2", NOW, "buy", {"n": 1})]) == 1
    client.mark_irrelevant("s-1")
    collecting = client.get_batch()
    assert collecting.counts[BatchCount.RESULTS_WITHOUT_CONTENT] == len(posted)
    release = client.release_batch("r-1")
    assert client.release_batch("r-1") == release
    assert client.get_batch(release.batch_id).session_count == collecting.session_count == 7
    read = list(client.read_batch(release.batch_id, page_size=3))
    assert [one.number for one in read] == [1, 2, 3, 4, 5, 6, 7]
    assert {one.batch_id for one in read} == {release.batch_id}
    expected = [
        replace(posted[0], events=(SessionEvent("e-9", "shoe-2", NOW, "buy", {"n": 1}),)),
        replace(posted[1], is_irrelevant=True),
        *posted[2:],
    ]
    assert [one.session for one in read] == expected


def test_labels_make_the_round_trip(client: EmbeddingStudioClient, tmp_path: Path) -> None:
    """By calls, more than one request takes, and by commands; a wrong line keeps all out."""
    labels = [Label(f"query {n % 100}", f"i-{n}", n % 4) for n in range(501)]
    assert client.put_labels("judged", labels, golden=True).created == 501
    assert client.put_labels("judged", labels).unchanged == 501
    assert (client.get_labels("judged").queries, client.get_labels("judged").golden) == (100, True)
    file, url = tmp_path / "labels.ndjson", str(client._http.base_url).removesuffix("/api/v1/")

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, ["labels", *words, "--url", url])

    assert run("export", "judged", str(file)).exit_code == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(one["query"], one["object_id"], one["grade"]) for one in lines} == {
        (one.query, one.object_id, one.grade) for one in labels
    }
    assert "501 new" in run("put", "copy", str(file), "--golden").stdout
    assert re.search(r"^copy +golden", run("list").stdout, re.M)
    assert re.search(r"^highest grade +3", run("show", "judged").stdout, re.M)
    assert run("delete", "judged").exit_code == 0
    assert [one.labels_id for one in client.list_labels()] == ["copy"]
    file.write_text('{"query": "q", "object_id": "a", "grade": NaN}\n')
    assert "line 1" in str(run("put", "other", str(file)).exception)
    with pytest.raises(NotFound, match="other"):
        client.get_labels("other")


def test_batches_are_listed_and_exported(client: EmbeddingStudioClient, tmp_path: Path) -> None:
    """By calls and by commands; a file is as complete as what it takes the place of."""
    client.post_sessions(session(f"s-{i}", events=i) for i in range(3))
    batch_id = client.release_batch().batch_id
    assert [batch.batch_id for batch in client.list_batches()] == [batch_id]
    url = str(client._http.base_url).removesuffix("/api/v1/")

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, ["batch", *words, "--url", url])

    assert re.search(rf"^{batch_id} +released .* 3 +0 *$", run("list").stdout, re.M)
    assert client.list_batches(skip=1) == []
    shown = run("show", batch_id).stdout
    assert re.search(r"^sessions +3 *$", shown, re.M)
    assert re.search(r"^late sessions +0 *$", shown, re.M)
    file = tmp_path / "batch.ndjson"
    assert client.report_on_batch(batch_id).sessions > 0
    told = run("report", batch_id).output
    assert "clicked sessions" in told
    assert "are needed as a rule" in " ".join(told.split())
    assert run("report", batch_id, "--html", str(tmp_path / "report.html")).exit_code == 0
    assert f"<title>Batch {batch_id}</title>" in (tmp_path / "report.html").read_text()
    client.export_batch(batch_id, file)
    sessions = [json.loads(line) for line in file.read_text().splitlines()]
    assert [len(one["events"]) for one in sessions] == [0, 1, 2]
    assert isinstance(run("export", "nowhere", str(file)).exception, NotFound)
    assert len(file.read_text().splitlines()) == 3
    assert run("export", batch_id, str(tmp_path / "again")).exit_code == 0
    assert (tmp_path / "again").read_text() == file.read_text()
    assert {one.name for one in tmp_path.iterdir()} >= {"again", "batch.ndjson"}
    assert not list(tmp_path.glob(".*.part"))


def test_a_batch_is_exported_as_tables(client: EmbeddingStudioClient, tmp_path: Path) -> None:
    """For whatever reads parquet: sessions, and what they showed, with the content of the items."""
    client.post_sessions(session(f"s-{i}", events=i) for i in range(3))
    batch_id = client.release_batch().batch_id
    url = str(client._http.base_url).removesuffix("/api/v1/")

    def export(batch: str) -> Result:
        words = ["batch", "export", batch, str(tmp_path / "tables"), "--parquet", "--url", url]
        return CliRunner().invoke(app, words)

    assert isinstance(export("nowhere").exception, NotFound)
    assert not [*tmp_path.glob("*tables*")]
    assert export(batch_id).exit_code == 0
    found = [*Snapshot(tmp_path / "tables", {}).usable()]
    assert [one.session_id for one in found] == ["s-0", "s-1", "s-2"]
    assert [len(one.events) for one in found] == [0, 1, 2]
    assert "exists" in str(export(batch_id).exception)


def test_time_ranges_are_passed_on(client: EmbeddingStudioClient) -> None:
    """To tasks and schedules, whatever the zone of a time; one that is none is refused."""
    client.post_session(session("s-1"))
    since, until = NOW - timedelta(days=2), NOW + timedelta(days=1)
    zone = timezone(timedelta(hours=2))
    task = client.create_task(METHOD, since=since.astimezone(zone), until=until)
    assert (task.last, task.since, task.until) == (None, since, until)
    last = client.create_task(METHOD, last="2d")
    assert last.since is not None
    assert (last.last, last.since) == ("2d", last.created_at - timedelta(days=2))
    made = client.create_schedule(METHOD, interval_seconds=60, since=since)
    assert (made.since, made.last) == (since, None)
    assert client.create_schedule(METHOD, interval_seconds=60, last="2d").last == "2d"
    with pytest.raises(InvalidInput, match="before until"):
        client.create_task(METHOD, since=until, until=since)


def test_a_task_is_planned(client: EmbeddingStudioClient) -> None:
    """What it would take is told, and nothing is taken; it is refused as the task would be."""
    client.post_session(session("s-1", events=1))
    told = client.plan_task(METHOD, last="2d", budget=Budget(max_trials=3), folds=1)
    assert (told.releases, told.trainings) == (client.get_batch().batch_id, 3)
    assert told.report is not None
    assert (told.report.clicked_queries, told.enough) == (1, Enough.NO)
    assert client.list_tasks() == []
    batch_id = client.release_batch().batch_id
    assert client.plan_task(METHOD, batch_ids=[batch_id]).releases is None
    assert client.create_task(METHOD, batch_ids=[batch_id]).batch_ids == [batch_id]
    with pytest.raises(NotFound, match="unknown"):
        client.plan_task(METHOD, batch_id="unknown")


def test_the_commands_for_items(client: EmbeddingStudioClient) -> None:
    """They are listed with the beginning of their texts, shown as they can be put, and deleted."""
    client.put_items([Item("a", "blue\nshoe " * 20), Item("b", image="http://x/b.png")])
    url = str(client._http.base_url).removesuffix("/api/v1/")

    def run(*words: str) -> str:
        return CliRunner().invoke(app, ["items", *words, "--url", url]).stdout

    listed = run("list")
    assert "blue shoe blue shoe" in listed
    assert "http://x/b.png" in listed
    assert "b.png" not in run("list", "--limit", "1")
    assert json.loads(run("get", "b")) == {"object_id": "b", "image": "http://x/b.png"}
    assert "1 of 2 items" in run("delete", "a", "z")
    assert [item.object_id for item in client.read_items()] == ["b"]


def test_items_make_the_round_trip(client: EmbeddingStudioClient) -> None:
    """Put, by more than one request takes, read, listed by pages and deleted."""
    items = [Item(f"i-{n:04}", fields={"title": "é" * n}, meta={"n": n}) for n in range(501)]
    assert {outcome.status for outcome in client.put_items(items)} == {PutStatus.CREATED}
    assert client.get_item("i-0007") == items[7]
    assert list(client.read_items(page_size=50)) == items
    assert client.delete_items([f"i-{n:04}" for n in range(1, 501)]) == 500
    with pytest.raises(NotFound, match="i-0007"):
        client.get_item("i-0007")
    assert client.put_items([Item("i")])[0].error


def test_a_person_is_erased(client: EmbeddingStudioClient) -> None:
    """With all sessions that no unfinished task learns from, of which there is one."""
    client.post_sessions([session("s-1"), replace(session("s-2"), user_id="u/2")])
    task = client.create_task(METHOD, batch_id=client.release_batch().batch_id)
    client.post_session(replace(session("s-3"), user_id="u/2"))
    told = client.erase_user("u/2")
    assert (told.sessions, told.kept_sessions, told.held_by) == (1, 1, [task.id])
    client.cancel_task(task.id)
    assert client.erase_user("u/2").sessions == 1
    assert client.erase_user("u/2").sessions == 0


def test_early_events_wait(client: EmbeddingStudioClient) -> None:
    """Events and marks that come before their session are taken, and are with it once it comes."""
    assert client.post_events("s-1", [SessionEvent("e-1", "shoe-1", NOW)]) == 0
    client.mark_irrelevant("s-1")
    outcome = client.post_session(session("s-1"))
    assert (outcome.new_events, outcome.early_events) == (0, 1)
    (read,) = client.read_batch(client.get_batch().batch_id)
    assert [event.event_id for event in read.session.events] == ["e-1"]
    assert read.session.is_irrelevant


def test_bulk_posts_are_split(client: EmbeddingStudioClient) -> None:
    """More sessions than one request may carry are posted in several; a bad one is told."""
    sessions = [session(f"s-{i}") for i in range(1200)]
    sessions[700] = replace(sessions[700], created_at=NOW - timedelta(days=2))
    outcomes = client.post_sessions(sessions)
    assert [one.session_id for one in outcomes] == [one.session_id for one in sessions]
    assert [i for i, one in enumerate(outcomes) if one.status is PostStatus.INVALID] == [700]
    assert "s-700" in (outcomes[700].error or "")


def test_a_task_from_post_to_model(
    client: EmbeddingStudioClient, store: Store, tmp_path: Path
) -> None:
    """A task is created, followed to its end, and its model downloaded into a folder."""
    client.post_session(session("s-1"))
    record_worker(store, seen_at=datetime.now(UTC))
    task = client.create_task(
        METHOD, metadata={"n": 1}, budget=Budget(max_trials=2), event_weights={"buy": 4}
    )
    assert task.event_weights == {"buy": 4.0}
    assert (task.status, task.budget.max_trials) == (TaskStatus.PENDING, 2)
    assert client.get_task(task.id) == task
    assert client.list_tasks(TaskStatus.PENDING) == [task]
    assert client.list_tasks(skip=1) == []

    files = write_model(tmp_path / "artifacts")
    seen: list[TaskView] = []

    def work(view: TaskView) -> None:
        seen.append(view)
        if view.status is TaskStatus.PENDING:
            finish_with_model(store, str(tmp_path / "artifacts"), files)
        elif view.status is TaskStatus.PROCESSING:
            owner = claim(store, datetime.now(UTC) + timedelta(days=1))
            store.tasks.finish(owner, datetime.now(UTC), TaskStatus.DONE)

    done = client.wait_for_task(task.id, work, poll_seconds=0)
    assert [view.status for view in seen] == ["pending", "processing", "done"]
    assert done.best_model_url is not None
    folder = tmp_path / "new/model"
    client.download_model(task.id, folder)
    for file in files:
        assert hashlib.sha256((folder / file.path).read_bytes()).hexdigest() == file.sha256
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    with pytest.raises(InvalidInput, match="not an empty folder"):
        client.download_model(task.id, folder)


def test_stopping_and_reading_the_history(client: EmbeddingStudioClient, store: Store) -> None:
    """A stop gives the task as it then is; its events are read across pages."""
    client.post_session(session("s-1"))
    task = client.create_task(METHOD)
    claim(store, datetime.now(UTC))
    assert client.stop_task(task.id).status is TaskStatus.STOPPING
    for _ in range(60):
        client.cancel_task(task.id)
        store.tasks.release_canceled(Claim(task.id, 1, "worker-1"))
        client.restart_task(task.id, fresh=True)
    events = list(client.task_events(task.id))
    assert [event.number for event in events] == list(range(1, 124))
    assert [event.kind for event in events[:3]] == ["created", "claimed", "stop_requested"]
    assert store.tasks.get(task.id).fresh_starts == 60


def test_rolling_back(client: EmbeddingStudioClient, store: Store, tmp_path: Path) -> None:
    """A rollback whose answer was lost goes back once; one that leads nowhere is refused."""
    with pytest.raises(NotFound, match=METHOD):
        client.get_model(METHOD)
    register(store, tmp_path)
    assert [one.version for one in client.get_model(METHOD).versions] == [3, 2, 1]
    sent = client._http.request
    lost: list[str] = []

    def lose_the_first_answer(method: str, path: str, **content: object) -> httpx.Response:
        answer = sent(method, path, **content)  # type: ignore[arg-type]
        if method == "POST" and not lost:
            lost.append(path)
            raise httpx.ReadTimeout("lost")
        return answer

    with pytest.MonkeyPatch.context() as losing:
        losing.setattr(client._http, "request", lose_the_first_answer)
        found = client.roll_back(METHOD, reason="worse")
    assert lost
    assert (found.champion, [move.why for move in found.moves].count("worse")) == (2, 1)
    assert client.roll_back(METHOD, version=1).champion == 1
    with pytest.raises(Conflict, match="no previous version"):
        client.roll_back(METHOD)


def test_rolling_back_by_command(
    client: EmbeddingStudioClient, store: Store, tmp_path: Path
) -> None:
    """`models show` tells versions and moves, `models rollback` makes one champion."""
    register(store, tmp_path)
    url = str(client._http.base_url).removesuffix("/api/v1/")

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, ["models", *words, "--url", url])

    told = run("rollback", f"{METHOD}/1", "--reason", "fewer orders").stdout
    assert told == f"version 1 is champion: models:/{METHOD}@champion\n"
    listed = run("show", METHOD).stdout
    assert re.search(r"^1 +champion", listed, re.M)
    assert re.search(r"^3 .* task-3 +0.4000 -> 0.5000 +better", listed, re.M)
    assert re.search(r"3 +1 +rolled_back +somebody without a key +fewer orders", listed)
    assert isinstance(run("show", "Nobody's").exception, NotFound)


def test_promoting_by_hand(client: EmbeddingStudioClient, store: Store, tmp_path: Path) -> None:
    """By a call or a command; a rollback that names no version ends the wait."""
    register(store, tmp_path)
    task_id = end_task(store, tmp_path, "run-4")
    found = client.promote(METHOD, task_id=task_id, reason="reads better")
    assert found.wanted is not None
    assert (found.wanted.task_id, found.wanted.why) == (task_id, "reads better")
    assert client.roll_back(METHOD).wanted is None
    url = str(client._http.base_url).removesuffix("/api/v1/")

    def run(*words: str) -> str:
        return CliRunner().invoke(app, ["models", *words, "--url", url]).stdout

    wanted = f"the model of task {task_id} becomes champion once a worker has registered it"
    assert run("promote", METHOD, "--task", task_id, "--reason", "still").startswith(wanted)
    assert wanted in run("show", METHOD)
    former = end_task(store, tmp_path, "run-2")
    assert (
        run("promote", METHOD, "--task", former)
        == f"version 2 is champion: models:/{METHOD}@champion\n"
    )
    with pytest.raises(NotFound, match="unknown"):
        client.promote(METHOD, task_id="unknown")


def test_canceling_and_restarting(client: EmbeddingStudioClient) -> None:
    """Both give the task as it then is."""
    client.post_session(session("s-1"))
    task = client.create_task(METHOD, idempotency_key="k")
    assert client.create_task(METHOD, idempotency_key="k") == task
    assert client.cancel_task(task.id).status is TaskStatus.CANCELED
    assert client.wait_for_task(task.id).status is TaskStatus.CANCELED
    assert client.restart_task(task.id).status is TaskStatus.PENDING


def test_refusals_are_the_errors_of_this_package(client: EmbeddingStudioClient) -> None:
    """Each refusal raises its error, in the server's words."""
    with pytest.raises(NotFound, match="no-task"):
        client.get_task("no-task")
    with pytest.raises(NotFound, match="nobody"):
        client.post_events("nobody", [])
    with pytest.raises(Conflict, match="collecting"):
        client.create_task(METHOD)
    with pytest.raises(NotFound, match="nothing to release"):
        client.release_batch()
    with pytest.raises(InvalidInput, match="more than 43200 seconds ago"):
        client.post_session(replace(session("s-1"), created_at=NOW - timedelta(days=1)))
    with pytest.raises(InvalidInput, match=r"body\.fine_tuning_method: "):
        client.create_task("")


def test_health_is_told_not_raised(client: EmbeddingStudioClient) -> None:
    """A missing worker is an answer, not an error."""
    health = client.health()
    assert health.status == "unavailable"
    assert health.store.status == "ok"
    assert "no worker" in health.worker.detail


# -- retries, on a transport that answers what the test says --------------------------------------

Answer = httpx.Response | Exception
PONG = httpx.Response(200, json={"time": "2026-01-31T12:00:00Z"})


class Scripted:
    """Answers one after the other, and keeps what was asked."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = iter(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self) -> EmbeddingStudioClient:
        return EmbeddingStudioClient("http://studio", transport=httpx.MockTransport(self))


TRANSIENT: list[Callable[[], Answer]] = [
    lambda: httpx.ConnectTimeout("slow"),
    lambda: httpx.ReadTimeout("slow"),
    lambda: httpx.ConnectError("refused"),
    lambda: httpx.RemoteProtocolError("cut off"),
    lambda: httpx.Response(500),
    lambda: httpx.Response(502, text="<html>"),
    lambda: httpx.Response(503, json={"detail": "the database went away"}),
]


def test_a_file_is_imported(client: EmbeddingStudioClient, tmp_path: Path) -> None:
    """It is sent from the disk; the same file again adds nothing, whatever it is called."""
    file = tmp_path / "log.csv.gz"
    file.write_bytes(gzip.compress(b"words,sku,hit\n" + b"shoes,a,1\nshoes,b,0\ncoat,,1\n"))
    columns = {"query": "words", "item": "sku", "clicked": "hit"}
    assert client.import_file(file, columns=columns, dry_run=True).sessions == 1
    sent: list[int] = []
    report = client.import_file(file, columns=columns, on_sent=sent.append)
    assert sent == [file.stat().st_size]
    assert (report.rows, report.created, report.new_events, report.refused) == (3, 1, 1, 1)
    other = file.rename(tmp_path / "other")
    assert client.import_file(other, columns=columns, format="impressions").existing == 1
    with pytest.raises(InvalidInput, match="neither sessions"):
        client.import_file(other)


def test_a_file_elsewhere_is_imported_by_the_api(client: EmbeddingStudioClient) -> None:
    """The client names it, and the API judges whether it may be read."""
    with pytest.raises(InvalidInput, match="not below one of ES_ALLOWED_ROOTS"):
        client.import_url("s3://logs/march.csv", columns={"query": "words"})
    url = str(client._http.base_url).removesuffix("/api/v1/")
    words = ["batch", "import", "s3://logs/march.csv", "--url", url]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, InvalidInput)
    assert CliRunner().invoke(app, [*words, "--refused", "x"]).exit_code == 2
    assert CliRunner().invoke(app, ["batch", "import", "nothing"]).exit_code == 2


def test_an_import_is_followed(client: EmbeddingStudioClient) -> None:
    """What came so far is told while it is under way, of its own id alone, and not afterwards."""

    def rows() -> Iterator[dict[str, Any]]:
        yield {"title": "it has no id"}
        for n in range(600):
            yield {"id": n, "title": "x" * 1000}
        wait_until(lambda: client.get_import("a/b").created == 500)
        so_far = client.get_import("a/b")
        assert (so_far.items, so_far.refused, so_far.refusals) == (500, 1, [])
        with pytest.raises(NotFound, match="'a' is under way"):
            client.get_import("a")

    report = client.import_rows(rows, "a/b", format="items")
    assert (report.rows, report.created, len(report.refusals)) == (601, 600, 1)
    with pytest.raises(NotFound):
        client.get_import("a/b")


def test_the_command_follows_an_import_elsewhere(
    client: EmbeddingStudioClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a terminal it shows what the API has read so far."""
    (tmp_path / "items.csv").write_text("id,title\na,Parka\n")
    import_url = EmbeddingStudioClient.import_url
    asked: list[str] = []

    def slowly(self: EmbeddingStudioClient, url: str, **options: Any) -> Any:
        wait_until(lambda: len(asked) > 1)
        return import_url(self, url, **options)

    def so_far(self: EmbeddingStudioClient, import_id: str) -> ImportReport:
        asked.append(import_id)
        return ImportReport(rows=12_345, refused=67)

    monkeypatch.setattr(EmbeddingStudioClient, "import_url", slowly)
    monkeypatch.setattr(EmbeddingStudioClient, "get_import", so_far)
    monkeypatch.setattr("embedding_studio.cli.imports._LOOK_SECONDS", 0.2)
    monkeypatch.setenv("FORCE_COLOR", "1")
    told = imported(client, f"file://{tmp_path}/items.csv", "--import-id", "march")
    assert "12345 rows, 67 refused" in told.stderr
    assert "1 rows (items) make 1 items: 1 new" in told.stdout
    assert set(asked) == {"march"}


def test_the_command_that_imports(client: EmbeddingStudioClient, tmp_path: Path) -> None:
    """It says what came of the rows, and writes the refused ones to a file of their own."""
    file, refused = tmp_path / "log.jsonl", tmp_path / "refused.jsonl"
    rows = [{"query": "shoes", "item": item, "position": "x"} for item in range(7)]
    rows[0]["position"] = 1
    file.write_text("\n".join(map(json.dumps, rows)))
    url = str(client._http.base_url).removesuffix("/api/v1/")

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, ["batch", "import", str(file), *words, "--url", url])

    assert "nothing is kept" in run("--dry-run").stdout
    told = run("--refused", str(refused)).stdout
    assert "7 rows (impressions) make 1 sessions: 1 new, 0 known, 0 new events" in told
    assert "6 rows are refused:\n  row 2, position: " in told
    assert "  and 1 more" in told
    told_rows = [json.loads(line) for line in refused.read_text().splitlines()]
    assert [(one["row"], one["column"]) for one in told_rows] == [
        (number, "position") for number in range(2, 8)
    ]
    assert json.loads(told_rows[0]["content"]) == rows[1]
    assert "number" in told_rows[0]["reason"]
    assert "0 new, 1 known" in run("--columns", "query=query").stdout
    nothing = run("--columns", "query=item,item=position", "--format", "sessions")
    assert nothing.exit_code == 1


def imported(client: EmbeddingStudioClient, *words: str) -> Result:
    url = str(client._http.base_url).removesuffix("/api/v1/")
    return CliRunner().invoke(app, ["batch", "import", *words, "--url", url])


def labels_in(client: EmbeddingStudioClient, labels_id: str, file: Path) -> set[Any]:
    client.export_labels(labels_id, file)
    told = map(json.loads, file.read_text().splitlines())
    return {(one["query"], one["object_id"][:4], one["grade"]) for one in told}


def test_rows_of_a_database_are_imported(client: EmbeddingStudioClient, tmp_path: Path) -> None:
    """What a statement selects is sent as it comes; what it deletes is still there."""
    database = f"sqlite:///{tmp_path / 'faq.db'}"
    engine = sqlalchemy.create_engine(database)
    with engine.begin() as opened:
        opened.exec_driver_sql("create table faq (q text, a text, asked timestamp)")
        opened.exec_driver_sql(
            "insert into faq values ('where %', 'here', '2026-01-31'), ('why', '', null)"
        )
    engine.dispose()
    select = "select q as prompt, a as completion from faq where q like '%w%'"
    told = imported(client, database, "--sql", select, "--labels-id", "faq")
    assert "2 rows (pairs) make 1 labels, 1 items: 1 new" in told.stdout
    assert "row 2, completion.0: has no words" in told.stdout
    assert labels_in(client, "faq", tmp_path / "out") == {("where %", "text", 1.0)}
    refused = imported(client, database, "--sql", "delete from faq", "--labels-id", "faq")
    assert "selects no rows" in str(refused.exception)
    twice = imported(client, database, "--sql", "select q, q from faq", "--labels-id", "faq")
    assert "'q' is there twice" in str(twice.exception)
    again = imported(client, database, "--sql", select, "--labels-id", "faq")
    assert "0 new, 1 known" in again.stdout


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite://", "no such table"),
        ("mysql+pymysql://me:se%40cret@127.0.0.1:1/shop", "me:***@127.0.0.1"),
        ("nothing://me:se%40cret@host/shop", "me:***@host"),
        ("se@cret", "not one that SQLAlchemy reads"),
    ],
)
def test_a_database_that_does_not_answer(
    client: EmbeddingStudioClient, url: str, words: str
) -> None:
    """It is said which, and why, without the password."""
    refused = imported(client, url, "--sql", "select 1 from missing", "--labels-id", "faq")
    assert isinstance(refused.exception, InvalidInput)
    assert words in str(refused.exception)
    assert "cret" not in str(refused.exception)


@pytest.mark.parametrize(
    "queries", ["qid,text\n1,coat\n", "1\tcoat\n7\tshoes\n", '{"_id": "1", "text": "coat"}']
)
def test_judgements_with_their_queries(
    client: EmbeddingStudioClient, tmp_path: Path, queries: str
) -> None:
    """The texts come from a file of their own; rows keep their numbers."""
    judged, named, refused = tmp_path / "qrels", tmp_path / "queries", tmp_path / "refused"
    judged.write_text("1 0 a 2\n\n2 0 a 1\n1 0 b\n1 0 c -1\n1 0 d x\n")
    named.write_text(queries.replace("_id", "qid"))
    words = ["--queries", str(named), "--labels-id", "trec", "--refused", str(refused)]
    told = imported(client, str(judged), *words).stdout
    assert "5 rows (qrels) make 2 labels: 2 new" in told
    kept = labels_in(client, "trec", tmp_path / "out")
    assert kept == {("coat", "a", 2.0), ("coat", "c", 0.0)}
    rows = [json.loads(line) for line in refused.read_text().splitlines()]
    assert [(one["row"], one["column"]) for one in rows] == [(3, None), (4, None), (6, "grade")]
    assert "'2', which is not among the queries" in rows[0]["reason"]


def test_labelled_texts_are_read(client: EmbeddingStudioClient, tmp_path: Path) -> None:
    """From the folder, which nothing leads out of; other files are named by their places."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a coat")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "texts" / "link.txt").symlink_to(tmp_path / "secret.txt")
    file = tmp_path / "labels.json"
    (tmp_path / "texts" / "b.jpg").touch()
    names = ["a.txt", "b.jpg", "../secret.txt", "link.txt", "c.txt", "d.jpg"]
    file.write_text(json.dumps({name: ["coat"] for name in names}))
    words = ["--labels-id", "tags", "--files", str(tmp_path / "texts")]
    told = imported(client, str(file), *words).stdout
    assert "6 rows (labels) make 2 labels, 2 items" in told
    assert "row 3: leads out" in told
    assert "row 4: 'link.txt' is a link that leads out" in told
    assert "row 5: 'c.txt' is no file in the folder" in told
    assert "row 6: 'd.jpg' is no file in the folder" in told
    assert client.get_item("a.txt").text == "a coat"
    assert client.get_item("b.jpg").image == str(tmp_path / "texts" / "b.jpg")


def test_labelled_files_of_an_archive(client: EmbeddingStudioClient, tmp_path: Path) -> None:
    """It is unpacked beside itself; one with the labels is all that is needed, and names are of the
    folder that these are in. A dry run leaves nothing of it."""
    labels = json.dumps({name: ["coat"] for name in ("a.txt", "b.jpg", "none.jpg")})
    (tmp_path / "labels.json").write_text(labels)
    for name, folder, more in (("both", "march/", {"march/labels.json": labels}), ("one", "", {})):
        with zipfile.ZipFile(archive := tmp_path / f"{name}.zip", "w") as packed:
            for member, text in {f"{folder}a.txt": "a coat", f"{folder}b.jpg": "", **more}.items():
                packed.writestr(member, text)
        words = [str(archive)] if more else [str(tmp_path / "labels.json"), "--files", str(archive)]
        words += ["--labels-id", name, "--refused", str(tmp_path / "refused")]
        assert "2 items: nothing is kept" in imported(client, *words, "--dry-run").stdout
        assert not (tmp_path / name).exists()
        told = imported(client, *words).stdout
        assert "3 rows (labels) make 2 labels, 2 items" in told
        assert "row 3: 'none.jpg' is no file in the folder" in told
        assert "none.jpg" in (tmp_path / "refused").read_text()
        place = tmp_path / name / folder / "b.jpg"
        assert client.get_item("b.jpg").image == str(place)
        assert place.is_file()
        assert isinstance(imported(client, *words).exception, InvalidInput)  # it is there already


def test_rows_are_sent_while_they_come(client: EmbeddingStudioClient) -> None:
    """It is told how many are sent, and how many bytes; values are written as JSON has them."""
    sent: list[tuple[int, int]] = []
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    rows = [{"query": "q", "item": n, "position": n, "time": moment} for n in range(5000)]
    report = client.import_rows(
        lambda: rows[:900], "rows", on_sent=lambda rows, size: sent.append((rows, size))
    )
    assert (report.rows, report.sessions) == (900, 1)
    assert sent[-1][0] == 900
    client.import_rows(lambda: rows, "more", dry_run=True, on_sent=lambda *told: sent.append(told))
    assert sent[-1][0] == 5000
    assert 0 < sent[1][1] < sent[-1][1]


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("failure", TRANSIENT)
def test_transient_failures_are_retried(failure: Callable[[], Answer]) -> None:
    """Timeouts, lost connections and 5xx are tried again until the answer comes."""
    script = Scripted(failure(), failure(), PONG)
    with script.client() as client:
        assert client.ping() == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert len(script.requests) == 3


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidInput),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (413, InvalidInput),
        (422, InvalidInput),
        (418, EmbeddingStudioError),
        (501, ConfigurationError),
    ],
)
def test_refusals_are_never_retried(status: int, error: type[EmbeddingStudioError]) -> None:
    """A 4xx but 429 is asked once, and raises its error with the server's words."""
    script = Scripted(httpx.Response(status, json={"detail": "because of k-1"}))
    with script.client() as client, pytest.raises(error, match="because of k-1") as raised:
        client.ping()
    assert raised.type is error
    assert len(script.requests) == 1


def too_many(wait: str) -> httpx.Response:
    return httpx.Response(429, json={"detail": "slow down"}, headers={"Retry-After": wait})


def test_a_rate_limit_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 429 is tried again after exactly the seconds that the server names."""
    pauses: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)
    script = Scripted(too_many("7"), too_many("3"), PONG)
    with script.client() as client:
        client.ping()
    assert pauses == [7, 3]


@pytest.mark.parametrize("wait", ["61", "86400"])
def test_a_wait_beyond_the_retries_is_an_error(wait: str) -> None:
    """A pause longer than retry_seconds is not slept through: TooManyRequests at once."""
    script = Scripted(too_many(wait))
    with script.client() as client, pytest.raises(TooManyRequests, match="slow down"):
        client.ping()


def test_the_key_is_sent() -> None:
    """The API key goes with each request as a bearer token; without one, no header does."""
    for key, expected in (("es_1_2", "Bearer es_1_2"), (None, None)):
        script = Scripted(PONG)
        with EmbeddingStudioClient(
            "http://studio", key, transport=httpx.MockTransport(script)
        ) as client:
            client.ping()
        assert script.requests[0].headers.get("Authorization") == expected


@pytest.mark.usefixtures("no_pauses")
def test_a_file_is_sent_anew_as_a_whole(tmp_path: Path) -> None:
    """An import that breaks off is repeated, under the same id, from the file's beginning."""
    bodies: list[tuple[str, bytes]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append((request.url.params["import_id"], request.read()))
        return httpx.Response(200, json={"rows": 1}) if len(bodies) > 2 else httpx.Response(503)

    file = tmp_path / "rows"
    file.write_bytes(b"x" * 600_000)
    transport = httpx.MockTransport(answer)
    with EmbeddingStudioClient("http://studio", transport=transport) as client:
        assert client.import_file(file).rows == 1
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert bodies == [(digest[:32], file.read_bytes())] * 3


def test_large_sessions_are_posted_in_several_requests(client: EmbeddingStudioClient) -> None:
    """Sessions that together are larger than the API takes at once all arrive, in order."""
    text = "x" * 30_000
    shown = tuple(SearchResult(f"item-{i}", 0.5, {"text": text}) for i in range(10))
    sessions = [replace(session(f"s-{i}"), search_results=shown) for i in range(80)]
    outcomes = client.post_sessions(sessions)
    assert [one.session_id for one in outcomes] == [one.session_id for one in sessions]
    assert {one.status for one in outcomes} == {PostStatus.CREATED}


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (lambda: httpx.ConnectError("refused"), "http://studio does not answer: refused"),
        (lambda: httpx.Response(503, json={"detail": "went away"}), "went away"),
        (lambda: httpx.Response(502, text="<html>"), "answered 502"),
    ],
)
def test_giving_up_raises_store_unavailable(failure: Callable[[], Answer], words: str) -> None:
    """When no try succeeds, the error says who did not answer."""
    script = Scripted(*(failure() for _ in range(4)))
    with script.client() as client, pytest.raises(StoreUnavailable, match=words):
        client.ping()
    assert len(script.requests) == 4


@pytest.mark.usefixtures("no_pauses")
def test_a_retried_post_adds_one_task() -> None:
    """Without a key of the caller's, the answer being lost does not make a second task."""
    script = Scripted(httpx.ReadTimeout("lost"), httpx.Response(409, json={"detail": "stop here"}))
    with script.client() as client, pytest.raises(Conflict):
        client.create_task(METHOD)
    keys = {json.loads(request.content)["idempotency_key"] for request in script.requests}
    assert len(script.requests) == 2
    assert len(keys) == 1
    assert keys != {None}


@pytest.mark.usefixtures("no_pauses")
def test_two_calls_are_two_releases() -> None:
    """Each release without an id of the caller's has one of its own."""
    release = {"release_id": "r", "batch_id": "b", "released_at": 1}
    script = Scripted(*(httpx.Response(200, json=release) for _ in range(2)))
    with script.client() as client:
        client.release_batch()
        client.release_batch()
    first, second = (json.loads(request.content)["release_id"] for request in script.requests)
    assert first != second


def zip_of(contents: dict[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        for name, content in contents.items():
            members.writestr(name, content)
    return archive.getvalue()


class _CutOff(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield zip_of({"a": b"a" * 1000})[:500]
        raise httpx.RemoteProtocolError("cut off")


@pytest.mark.usefixtures("no_pauses")
def test_a_download_that_breaks_starts_anew(tmp_path: Path) -> None:
    """A connection lost in mid-download is retried from the beginning."""
    whole = httpx.Response(200, content=zip_of({"a": b"a" * 1000}))
    script = Scripted(httpx.Response(200, stream=_CutOff()), whole)
    with script.client() as client:
        client.download_model("t-1", tmp_path / "model")
    assert (tmp_path / "model/a").read_bytes() == b"a" * 1000


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(
    "archive",
    [
        b"no zip at all",
        zip_of({"a": b"a" * 100}).replace(b"a" * 100, b"b" * 100),
        zip_of({"../outside": b"x"}),
        zip_of({"/outside": b"x"}),
    ],
)
def test_a_bad_archive_leaves_nothing(tmp_path: Path, archive: bytes) -> None:
    """Damaged bytes and paths that lead out raise, and no folder appears, nor anything beside."""
    script = Scripted(httpx.Response(200, content=archive))
    with script.client() as client, pytest.raises(CorruptModel):
        client.download_model("t-1", tmp_path / "in/model")
    assert list(tmp_path.rglob("*")) == [tmp_path / "in"]


@pytest.mark.usefixtures("no_pauses")
def test_a_refused_download_is_an_error(tmp_path: Path) -> None:
    """The server's words arrive although the answer is streamed."""
    script = Scripted(httpx.Response(404, json={"detail": "task 't-1' has no model"}))
    with script.client() as client, pytest.raises(NotFound, match="has no model"):
        client.download_model("t-1", tmp_path / "model")


def test_models_by_command(client: EmbeddingStudioClient, store: Store, tmp_path: Path) -> None:
    """They are listed, one version is shown with what is known of it, promoted, downloaded and
    deleted; JSON is what the API answers."""
    register(store, tmp_path)
    url = str(client._http.base_url).removesuffix("/api/v1/")

    def run(*words: str) -> Result:
        return CliRunner().invoke(app, ["models", *words, "--url", url])

    assert re.search(rf"^{METHOD} +3 +3 ", run("list").stdout, re.M)
    assert json.loads(run("list", "--json").stdout)[0]["champion"] == 3
    shown = run("show", f"{METHOD}@champion").stdout
    assert re.search(rf"^model +{METHOD}/3$", shown, re.M)
    assert re.search(r"^ndcg10 +0.4000 +0.5000 +\+0.1000", shown, re.M)
    assert json.loads(run("show", f"{METHOD}/2", "--json").stdout)["state"] == "former"
    assert run("promote", f"{METHOD}/2").stdout.startswith("version 2 is champion")
    assert run("promote", METHOD).exit_code == 2
    assert run("download", METHOD, str(tmp_path / "copy")).exit_code == 0
    assert (tmp_path / "copy" / "config.json").read_bytes() == b'{"a": 1}'
    assert isinstance(run("delete", f"{METHOD}/2").exception, Conflict)
    assert run("delete", f"{METHOD}/3").exit_code == 0
    assert client.get_version(METHOD, 3).state == "removed"
    client.delete_version(METHOD, 3)


def test_a_misspelt_option_of_a_task_is_not_lost(client: EmbeddingStudioClient) -> None:
    """What a task cannot be asked for with is a TypeError, not left out."""
    with pytest.raises(TypeError, match="labls_id"):
        client.create_task(METHOD, labls_id="faq")  # type: ignore[call-arg]
