"""The contract of every store: what came too long ago goes, and nothing else."""

from dataclasses import replace
from datetime import timedelta

import pytest
from pydantic import ValidationError

from embedding_studio.clickstream import SessionEvent
from embedding_studio.clock import utc_now
from embedding_studio.errands.lifetimes import expire_sessions
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.store.documents import first_id_at, new_id
from embedding_studio.store.erasure import AT_ONCE
from embedding_studio.tasks import TaskRequest
from tests.contracts.store_processes import NOW, make_session, read_all, register


def names(store: Store, batch_id: str) -> dict[str, int]:
    return {one.session.session_id: one.number for one in read_all(store, batch_id)}


def test_sessions_that_came_before_a_time_go(store: Store) -> None:
    """From released batches and the one that collects, with their events, whenever they were made;
    the others keep their numbers, counts follow, and what was taken is room again."""
    register(store, [make_session("a", ["e"]), make_session("b")])
    first = store.clickstream.release("r", NOW).batch_id
    register(store, [make_session("c")])
    before = utc_now()
    young = [make_session("d", ["e"]), replace(make_session("e"), created_at=NOW - timedelta(900))]
    register(store, young)
    store.clickstream.append_events("a", [SessionEvent("later", "item-1", NOW)])
    collecting = store.clickstream.collecting_batch()
    assert collecting is not None
    used = store.clickstream.usage()["default"]
    assert store.erasure.expire(before) == 3
    assert store.erasure.expire(before) == 0
    assert names(store, first) == {}
    assert names(store, collecting.batch_id) == {"d": 2, "e": 3}
    assert [one.session_count for one in store.clickstream.page()] == [2, 0]
    left = store.clickstream.usage()["default"]
    assert (left.sessions, left.bytes < used.bytes) == (2, True)
    assert store.clickstream.release("r-2", NOW).session_count == 2


def test_what_a_task_learns_from_outlives_its_time(store: Store) -> None:
    """Until the task has ended."""
    register(store, [make_session("a")])
    held = store.clickstream.release("r", NOW).batch_id
    register(store, [make_session("b")])
    task, _ = store.tasks.add(TaskRequest("m", batch_id=held), NOW)
    assert store.erasure.expire(utc_now()) == 1
    assert names(store, held) == {"a": 1}
    store.tasks.cancel(task.id, NOW)
    assert store.erasure.expire(utc_now()) == 1


def test_an_expiry_that_is_over_is_gone_on_with_by_the_next(store: Store) -> None:
    """In bounded steps, of all projects."""
    register(store, [make_session(f"s-{number}") for number in range(AT_ONCE + 10)])
    register(store.in_project("acme"), [make_session("s")])
    answers = iter([False, True, True, True])
    lifetime = timedelta(days=1)
    tomorrow = utc_now() + lifetime
    assert expire_sessions(store, lifetime, tomorrow, lambda: next(answers)) == AT_ONCE
    assert expire_sessions(store, lifetime, tomorrow) == 11
    assert sum(one.sessions for one in store.clickstream.usage().values()) == 0


def test_ids_tell_when_they_were_made() -> None:
    """What sorts before a moment's first id was made before it."""
    second = timedelta(seconds=1)
    assert first_id_at(utc_now() - second) < new_id() < first_id_at(utc_now() + second)


@pytest.mark.parametrize("wrong", ["400", "0d", "d", "-1d"])
def test_a_lifetime_that_is_none_is_refused(wrong: str) -> None:
    """When a service starts, not when the first session goes."""
    with pytest.raises(ValidationError, match=r"no duration|no time"):
        Settings(keep_sessions=wrong)
    assert Settings(keep_sessions="2w").session_lifetime == timedelta(weeks=2)
