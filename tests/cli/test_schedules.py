"""The commands for schedules and methods, against the API."""

import json
from datetime import UTC, datetime

import pytest

from embedding_studio.errors import NotFound
from embedding_studio.store import Store
from embedding_studio.workers import WorkerRecord
from tests.api.samples import METHOD, record_worker
from tests.cli.conftest import Shell


def test_a_schedule_is_made_paused_resumed_and_deleted(shell: Shell, store: Store) -> None:
    """Each command does what it says and tells it, in words and as the API's JSON."""
    record_worker(store, METHOD, seen_at=datetime.now(UTC))
    words = ("schedules", "create", METHOD, "--every", "12h", "--min-new-sessions", "500")
    made = json.loads(shell(*words, "--last", "30d", "--trials", "4", "--json").stdout)
    (kept,) = store.schedules.all()
    assert made["id"] == kept.id
    assert (kept.interval_seconds, kept.min_new_sessions, kept.last) == (43200, 500, "30d")
    assert kept.budget.max_trials == 4
    by_cron = shell("schedules", "create", METHOD, "--cron", "30 3 * * 1")
    assert "creates its first task at" in by_cron.stdout
    listed = shell("schedules", "list").stdout
    assert "every 12 h" in listed
    assert "30 3 * * 1" in listed
    assert "500" in shell("schedules", "show", kept.id).stdout
    assert "is paused" in shell("schedules", "pause", kept.id).stdout
    assert json.loads(shell("schedules", "show", kept.id, "--json").stdout)["is_paused"] is True
    assert "is due at" in shell("schedules", "resume", kept.id).stdout
    assert shell("schedules", "delete", kept.id).exit_code == 0
    assert [one.cron for one in store.schedules.all()] == ["30 3 * * 1"]
    assert isinstance(shell("schedules", "show", kept.id).exception, NotFound)


@pytest.mark.parametrize("when", [(), ("--cron", "0 3 * * *", "--every", "1d")])
def test_a_schedule_has_one_clock(shell: Shell, when: tuple[str, ...]) -> None:
    """Neither cron nor an interval, or both, is a wrong command line."""
    done = shell("schedules", "create", METHOD, *when)
    assert done.exit_code == 2
    assert "--cron" in done.stderr


def test_without_a_worker_there_is_no_method(shell: Shell) -> None:
    """It is said how to start one."""
    assert "start one with `embedding-studio worker`" in shell("methods", "list").stdout


def test_methods_say_what_they_lack(shell: Shell, store: Store) -> None:
    """A method is told with its workers, what it lacks to start, and plugins that did not load."""
    now = datetime.now(UTC)
    failures, missing = {"broken.py": "SyntaxError"}, {"B": "no folder /m"}
    first = WorkerRecord("w-1", ("A", "B"), now, failures, missing, without_labels=("B",))
    store.workers.record(first)
    store.workers.record(WorkerRecord("w-2", ("A",), now))
    told = shell("methods", "list").stdout.splitlines()
    assert told[1].split() == ["A", "2", "clicks", "and", "labels"]
    assert told[2].split()[:3] == ["B", "1", "clicks"]
    assert told[2].endswith("cannot start, its initial model is not there")
    assert told[3].startswith("! broken.py did not load")
    told = json.loads(shell("methods", "list", "--json").stdout)
    assert [one["name"] for one in told["methods"]] == ["A", "B"]
