"""The commands for tasks, against the API."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from embedding_studio.cli import watch as watching
from embedding_studio.cli.watch import Watch, sparkline
from embedding_studio.client import EmbeddingStudioClient
from embedding_studio.clock import in_words
from embedding_studio.errors import Conflict, InvalidInput, NotFound, StoreUnavailable
from embedding_studio.store import Store
from embedding_studio.tasks import (
    Budget,
    Claim,
    Promote,
    Promotion,
    QueryChange,
    RunningTrial,
    Sampler,
    TaskEvent,
    TaskEventKind,
    TaskProgress,
    TaskStatus,
)
from embedding_studio.wire.tasks import TaskView
from embedding_studio.wire.told import describe, verdict_lines
from tests.api.samples import METHOD, claim, only_task, record_worker
from tests.cli.conftest import Shell
from tests.iterations import make_session

NOW = datetime.now(UTC)
VERDICT = Promotion(
    True,
    "better on 700 test queries: the whole 95 % interval is on the better side",
    "ndcg_at_10",
    0.42,
    0.47,
    0.05,
    (0.04, 0.06),
    700,
    gained=(QueryChange("winter jacket", 0.2, 0.9),),
    warnings=("recall fell",),
)


@pytest.fixture
def collecting(store: Store) -> None:
    """A worker with a method, and sessions to learn from."""
    record_worker(store, METHOD, seen_at=datetime.now(UTC))
    store.clickstream.register([make_session(number) for number in range(9)], NOW)


@pytest.fixture
def owner(shell: Shell, store: Store, collecting: None) -> Claim:
    """A worker's claim of the one task."""
    assert shell("task", "create", METHOD).exit_code == 0
    return claim(store, datetime.now(UTC))


@pytest.mark.usefixtures("collecting")
def test_a_task_is_asked_for_with_every_term(shell: Shell, store: Store) -> None:
    """Each option reaches the task as the API takes it."""
    made = shell(
        *("task", "create", METHOD, "--last", "30d", "--trials", "3", "--minutes", "7.5"),
        *("--trial-minutes", "2", "--tokens", "1000", "--sampler", "random", "--pruner", "none"),
        *("--weight", "purchase=5", "--weight", "view=0", "--promote", "never", "--folds", "1"),
        *("--metadata", '{"why": "test"}', "--idempotency-key", "monday", "--json"),
        *("--model-name", "Shoes"),
    )
    assert made.exit_code == 0, made.output
    task = only_task(store)
    assert json.loads(made.stdout)["id"] == task.id
    assert task.budget == Budget(3, 7.5, 1000, 2)
    assert (task.search.sampler, task.search.pruner) == (Sampler.RANDOM, "none")
    assert task.event_weights == {"purchase": 5, "view": 0}
    assert (task.promote, task.folds, task.model_name) == (Promote.NEVER, 1, "Shoes")
    assert (task.metadata, task.idempotency_key) == ({"why": "test"}, "monday")
    assert task.last == "30d"


@pytest.mark.usefixtures("collecting")
def test_batches_and_a_range_are_named(shell: Shell, store: Store) -> None:
    """One batch is one, several are several; dates are taken as UTC."""
    first = store.clickstream.release("r-1", NOW).batch_id
    store.clickstream.register([make_session(number) for number in range(20, 25)], NOW)
    second = store.clickstream.release("r-2", NOW).batch_id
    shell("task", "create", METHOD, "--batch", first)
    assert only_task(store).batch_id == first
    shell("task", "create", METHOD, "--batch", first, "--batch", second)
    shell("task", "create", METHOD, "--since", "2026-01-01", "--until", "2026-02-01T12:00+02:00")
    ranged, several, _ = store.tasks.page()
    assert several.batch_ids == (first, second)
    assert ranged.since == datetime(2026, 1, 1, tzinfo=UTC)
    assert ranged.until == datetime(2026, 2, 1, 10, tzinfo=UTC)


@pytest.mark.usefixtures("collecting")
def test_a_dry_run_creates_nothing(shell: Shell, store: Store) -> None:
    """It tells what the task would take and whether that is enough."""
    told = shell("task", "create", METHOD, "--trials", "2", "--folds", "3", "--dry-run")
    assert told.exit_code == 0, told.output
    assert "nothing is created" in told.stdout
    assert "9 sessions" in told.stdout
    plan = json.loads(shell("task", "create", METHOD, "--dry-run", "--json").stdout)
    assert plan["enough"] == "no"
    assert store.tasks.page() == []


@pytest.mark.parametrize(
    "words",
    [
        ("--weight", "purchase"),
        ("--weight", "=1"),
        ("--metadata", "{"),
        ("--metadata", "[1]"),
        ("--since", "yesterday"),
        ("--sampler", "luck"),
    ],
)
def test_a_wrong_option_is_a_usage_error(shell: Shell, words: tuple[str, ...]) -> None:
    """It ends with 2 before anything is sent, and names what was written."""
    done = shell("task", "create", METHOD, *words)
    assert done.exit_code == 2
    assert words[0] in done.stderr or words[1] in done.stderr


@pytest.mark.usefixtures("collecting")
def test_a_refusal_is_the_apis(shell: Shell) -> None:
    """What the API refuses is its error, with its words."""
    assert isinstance(shell("task", "create", METHOD, "--last", "soon").exception, InvalidInput)
    assert isinstance(shell("task", "show", "nobody").exception, NotFound)
    assert isinstance(shell("task", "watch", "nobody").exception, NotFound)


def test_a_task_is_listed_shown_and_ended(shell: Shell, store: Store, owner: Claim) -> None:
    """`list`, `show`, `events`, `stop`, `cancel` and `restart` tell of the task, in words and as
    the API's JSON."""
    task_id = owner.task_id
    assert task_id in shell("task", "list").stdout
    assert shell("task", "list", "--status", "done").stdout.count("\n") == 1
    (listed,) = json.loads(shell("task", "list", "--json").stdout)
    assert listed == json.loads(shell("task", "show", task_id, "--json").stdout)
    assert "processing" in shell("task", "show", task_id).stdout
    assert shell("task", "show", "last").stdout == shell("task", "show", task_id).stdout
    assert shell("task", "stop", task_id).stdout == f"task {task_id} is stopping\n"
    assert shell("task", "cancel", task_id).stdout == f"task {task_id} is canceled\n"
    assert "nothing of it is kept" in shell("task", "show", task_id).stdout
    store.tasks.release_canceled(owner)
    restarted = json.loads(shell("task", "restart", task_id, "--fresh", "--json").stdout)
    assert restarted["status"] == "pending"
    events = json.loads(shell("task", "events", task_id, "--json").stdout)
    kinds = [event["kind"] for event in events]
    assert kinds == ["created", "claimed", "stop_requested", "canceled", "restarted"]
    assert "stop_requested" in shell("task", "events", task_id).stdout
    assert isinstance(shell("task", "stop", "nobody").exception, NotFound)
    shell("task", "cancel", task_id)
    assert isinstance(shell("task", "stop", task_id).exception, Conflict)


def work(store: Store, owner: Claim) -> Iterator[TaskProgress]:
    """Show the progress of a search of two trials, step by step."""
    searching = TaskProgress("search", "ndcg", max_trials=2, baseline=0.4)
    for curve in ((0.41,), (0.41, 0.44)):
        at_work = RunningTrial(1, NOW, len(curve), curve[-1], curve)
        yield replace(
            searching, trial=1, step=len(curve), running_trials=(at_work,), seconds_left=95.0
        )
    data = {"trial": 1, "value": 0.45, "main_metrics": [0.41, 0.44, 0.45]}
    event = TaskEvent(TaskEventKind.TRIAL_FINISHED, NOW, "trial 1: ndcg 0.45", data)
    store.tasks.record(owner, NOW, event=event)
    yield replace(searching, trial=2, finished_trials=1, best_so_far=0.45)


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.01)


@pytest.mark.usefixtures("quick_looks")
def test_a_watched_task_is_told_in_plain_lines(
    shell: Shell, store: Store, owner: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pipe each change is a line without control codes, and the verdict ends it, with 0."""
    steps, sleep = work(store, owner), threading.Event().wait

    def then(seconds: float) -> None:
        if (progress := next(steps, None)) is not None:
            store.tasks.renew(owner, NOW, 60, progress)
        elif store.tasks.get(owner.task_id).status is TaskStatus.PROCESSING:
            store.tasks.record(owner, NOW, promotion=VERDICT)
            store.tasks.finish(owner, NOW, TaskStatus.DONE)
        sleep(0)

    monkeypatch.setattr("embedding_studio.cli.watch.time.sleep", then)
    done = shell("task", "watch", owner.task_id)
    assert done.exit_code == 0, done.output
    assert "trial 1, step 1: 0.4100" in done.stdout
    assert "trial 1, step 2: 0.4400" in done.stdout
    assert "about 2 min left" in done.stdout
    assert "1 of 2 trials have ended" in done.stdout
    assert "the model is champion of" in done.stdout
    assert "0.4200 before, 0.4700 after (+0.0500, with 95 % confidence +0.0400 to" in done.stdout
    assert "gained: 'winter jacket' 0.200 to 0.900" in done.stdout
    assert "! recall fell" in done.stdout
    assert "\x1b" not in done.stdout
    as_json = shell("task", "watch", owner.task_id, "--json")
    assert json.loads(as_json.stdout)["promotion"]["promoted"] is True


@pytest.mark.usefixtures("collecting")
def test_a_task_that_nobody_takes_is_told_of(
    shell: Shell, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is no worker, it is said how to start one."""
    shell("task", "create", METHOD)
    store.workers.remove("worker-1")

    def cancel(seconds: float) -> None:
        store.tasks.cancel(only_task(store).id, NOW)

    monkeypatch.setattr("embedding_studio.cli.watch.time.sleep", cancel)
    done = shell("task", "watch", only_task(store).id)
    assert done.exit_code == 1
    assert "waits for a worker" in done.stdout
    assert "start one with `embedding-studio worker`" in done.stderr


@pytest.mark.usefixtures("quick_looks")
def test_a_watched_failure_ends_with_1(shell: Shell, store: Store, owner: Claim) -> None:
    """The error is told with the command that runs the task again."""
    store.tasks.finish(owner, NOW, TaskStatus.ERROR, "no space left")
    done = shell("task", "watch", owner.task_id)
    assert done.exit_code == 1
    assert "failed: no space left" in done.stdout
    assert f"task restart {owner.task_id}" in done.stdout


def test_ctrl_c_leaves_a_task_running(
    shell: Shell, store: Store, owner: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said that the task goes on, and the command ends with 130."""

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("embedding_studio.cli.watch.time.sleep", interrupt)
    done = shell("task", "watch", owner.task_id)
    assert done.exit_code == 130
    assert f"task {owner.task_id} goes on" in done.stdout
    assert store.tasks.get(owner.task_id).status is TaskStatus.PROCESSING


@pytest.mark.usefixtures("quick_looks")
def test_a_watch_survives_the_apis_restart(
    store: Store, owner: Claim, api_url: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """While the API does not answer it is asked again; one that stays away is given up."""
    away = [StoreUnavailable("the API does not answer")] * 2
    with EmbeddingStudioClient(api_url) as client:
        get_task = client.get_task

        def sometimes(task_id: str) -> TaskView:
            if away:
                raise away.pop()
            return get_task(task_id)

        look = Watch(client, owner.task_id)
        task = client.get_task(owner.task_id)
        monkeypatch.setattr(client, "get_task", sometimes)
        looks = look._looks(task)
        assert next(looks) == task
        assert next(looks) == task
        assert "does not answer; the task goes on" in capsys.readouterr().err
        assert next(looks).id == owner.task_id
        away.append(StoreUnavailable("gone"))
        monkeypatch.setattr(watching, "MOST_SILENT_SECONDS", -1.0)
        with pytest.raises(StoreUnavailable, match="gone"):
            next(looks)


def test_trials_are_drawn_side_by_side(store: Store, owner: Claim, api_url: str) -> None:
    """On a terminal each trial is a row with its state, reports, curve, latest value, and the best
    is marked; curves share one scale; of many trials the latest are shown."""
    for progress in work(store, owner):
        store.tasks.renew(owner, NOW, 60, progress)
    with EmbeddingStudioClient(api_url) as client:
        look = Watch(client, owner.task_id)
        task = next(look._looks(client.get_task(owner.task_id)))
        running = RunningTrial(2, NOW, 1, 0.43, (0.43,))
        assert task.progress is not None
        task.progress = replace(task.progress, running_trials=(running,))
        console = Console(width=100, record=True, file=StringIO())
        console.print(look._picture(task))
        text = console.export_text()
    assert "1 of 2 trials have ended" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["1", "done", "3", "▁▆█", "0.4500", "best"] in rows
    assert ["2", "runs", "1", "▄", "0.4300"] in rows or ["2", "runs", "1", "▅", "0.4300"] in rows


def test_a_sparkline_is_on_the_common_scale() -> None:
    """The lowest value of all is the lowest bar; where all are one, so are the bars."""
    assert sparkline([1, 2, 3], [1, 2, 3]) == "▁▅█" or sparkline([1, 2, 3], [1, 2, 3]) == "▁▄█"
    assert sparkline([1, 2], [1, 8]) == "▁▂"
    assert sparkline([5, 5], [5, 5]) == "▁▁"
    assert sparkline([], []) == ""


def test_durations_are_said_as_people_say_them() -> None:
    """Seconds, minutes, hours and minutes, or whole days."""
    told = [in_words(n) for n in (5, 95, 3600, 7800, 43200, 7 * 86400)]
    assert told == ["5 s", "2 min", "60 min", "2 h 10 min", "12 h", "7 d"]


def view(**changes: Any) -> TaskView:
    nothing = dict.fromkeys(("batch_id", "metadata", "idempotency_key", "worker_id", "progress"))
    given = {"id": "t", "fine_tuning_method": METHOD, "created_at": NOW, "updated_at": NOW}
    more = {"budget": Budget(), "search": {}, "attempt": 1, "promotion": None, "error": None}
    return TaskView.model_validate({**nothing, **given, **more, "status": "done", **changes})


def test_each_end_is_told_in_words() -> None:
    """What came of a task, and what one may do."""
    assert describe(view(status="pending")) == "waits for a worker"
    refused = replace(VERDICT, promoted=False, reason="no better", sessions_needed=5000)
    told = "\n".join(verdict_lines(view(promotion=refused)))
    assert "task t is done; not promoted: no better" in told
    assert "about 5,000 sessions would tell" in told
    (line,) = verdict_lines(view(status="stopped", error="there was no trial yet"))
    assert line == "task t is stopped, without a verdict: there was no trial yet"


def test_without_a_task_there_is_no_last_one(shell: Shell) -> None:
    """That is told, and how to have one."""
    refused = shell("task", "show", "last").exception
    assert isinstance(refused, NotFound)
    assert "task create" in str(refused)


@pytest.mark.usefixtures("collecting")
def test_a_study_that_is_not_there_is_told(shell: Shell, tmp_path: Path) -> None:
    """And no file is made."""
    made = shell("task", "create", METHOD, "--json")
    task, file = json.loads(made.stdout)["id"], tmp_path / "study.db"
    refused = shell("task", "study", task, str(file))
    assert isinstance(refused.exception, NotFound)
    assert "has no study, not yet or no longer: it is pending" in str(refused.exception)
    assert not file.exists()
