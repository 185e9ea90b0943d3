"""The contract of every store: several processes post and release, and one is killed."""

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from embedding_studio.errors import NotFound
from embedding_studio.store import Store
from tests.contracts import store_processes
from tests.contracts.store_backends import Backend
from tests.contracts.store_processes import NOW, assert_gapless, batch_of, make_session, results_of

ROOT = Path(__file__).parents[3]


def post(store: Store, *session_ids: str) -> None:
    store.clickstream.register([make_session(session_id) for session_id in session_ids], NOW)


def event_ids(store: Store, session_id: str) -> list[str]:
    return [event.event_id for event in store.clickstream.get(session_id).events]


def test_processes_post_while_others_release(
    shared: Backend, processes: ProcessPoolExecutor
) -> None:
    """Each session is new once and in one batch, gapless, and no batch grows after its release."""
    common = [f"common-{number}" for number in range(24)]
    posts = {
        letter: [name for other in common for name in (f"{letter}-{other}", other)]
        for letter in "abc"
    }
    answers = results_of(
        [
            processes.submit(store_processes.post_and_release, shared.url, letter, names)
            for letter, names in posts.items()
        ]
    )
    new = sorted(name for names, _ in answers for name in names)
    assert new == sorted({name for names in posts.values() for name in names})
    store = shared.open()
    batch_ids = [batch_id for _, released in answers for batch_id in released]
    with suppress(NotFound):
        batch_ids.append(store.clickstream.release("last", NOW).batch_id)
    assert len(set(batch_ids)) == len(batch_ids) > 1
    assert sorted(assert_gapless(store, batch_ids)) == new
    assert all(event_ids(store, name) == [f"{name}-click"] for name in common)
    store.close()


@pytest.mark.slow
def test_a_killed_process_loses_nothing_that_was_answered(shared: Backend) -> None:
    """After kill -9 in mid-posting each answered session is there once and the store goes on."""
    program = f"from tests.contracts.store_processes import *; post_until_killed({shared.url!r})"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as poster:
        assert poster.stdout is not None
        lines = [poster.stdout.readline() for _ in range(20)]
        poster.kill()
        lines += poster.stdout.readlines()
    answered = [name for line in lines if line.endswith("\n") for name in line.split()]
    store = shared.open()
    batch_id = batch_of(store, answered[0])
    stored = assert_gapless(store, [batch_id])
    assert stored[: len(answered)] == answered
    post(store, *answered, "next")
    assert assert_gapless(store, [batch_id])[-1] == "next"
    assert store.clickstream.release("r", NOW).session_count == len(stored) + 1
    store.close()
