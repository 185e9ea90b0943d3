"""The contract of every store: a person is erased, and nobody else."""

import itertools
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from embedding_studio.clickstream import EarlyFeedback, Session, SessionEvent, Usage
from embedding_studio.errors import NotFound, StoreUnavailable
from embedding_studio.store import Store
from embedding_studio.store.early import Early
from embedding_studio.store.sessions import content_of
from embedding_studio.store.usage import json_size, size_of_events
from embedding_studio.tasks import Claim, TaskRequest, TaskStatus, release_id_of
from embedding_studio.users import Erased
from tests.contracts.store_backends import Backend, Moment
from tests.contracts.store_processes import NOW, make_session, read_all, register

HER = "/team a/she?"


def of(session_id: str, user_id: str | None = HER) -> Session:
    return replace(make_session(session_id, ["e"]), user_id=user_id)


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def size(*session_ids: str) -> Usage:
    sessions = [of(one, "he") for one in session_ids]
    taken = sum(json_size(content_of(one)) + size_of_events(one.events) for one in sessions)
    return Usage(len(sessions), taken)


def numbered(store: Store, batch_id: str) -> dict[str, int]:
    """Return the numbers of a batch's sessions, read one by one."""
    found: dict[str, int] = {}
    while page := store.clickstream.read(batch_id, max(found.values(), default=0), 1):
        (member,) = page
        found[member.session.session_id] = member.number
    assert found == {one.session.session_id: one.number for one in read_all(store, batch_id)}
    return found


def post_three_batches(store: Store) -> list[str]:
    """Sessions of hers and his in two released batches and the one that collects."""
    ids = []
    for number in range(3):
        names = [f"hers-{number}-0", f"hers-{number}-1", f"his-{number}", f"hers-{number}-2"]
        register(store, [of(one, HER if "hers" in one else "he") for one in names])
        if number < 2:
            batch = store.clickstream.release(f"r-{number}", later(number))
        else:
            collecting = store.clickstream.collecting_batch()
            assert collecting is not None
            batch = collecting
        ids.append(batch.batch_id)
    return ids


def test_a_person_leaves_every_batch(store: Store) -> None:
    """With all events, in this project alone; others keep their numbers, batches and counts follow,
    what was taken is room again, and repeating it does nothing."""
    register(store.in_project("acme"), [of("hers-0-0")])
    batches = post_three_batches(store)
    register(store, [of("nobody's", None), of("hers-9")])
    store.clickstream.append_events("hers-0-1", [SessionEvent("later", "item-2", NOW)])
    assert store.users.erase(HER) == Erased(10, 0)
    assert store.users.erase(HER) == store.users.erase("nobody") == Erased(0, 0)
    for name in ("hers-0-0", "hers-2-2", "hers-9"):
        with pytest.raises(NotFound):
            store.clickstream.get(name)
    assert [numbered(store, one) for one in batches] == [
        {"his-0": 3},
        {"his-1": 3},
        {"his-2": 3, "nobody's": 5},
    ]
    assert [one.session_count for one in store.clickstream.page()] == [2, 1, 1]
    assert store.clickstream.last_number(batches[0]) == 4
    nobodys = of("nobody's", None)
    his = size("his-0", "his-1", "his-2")
    taken = json_size(content_of(nobodys)) + size_of_events(nobodys.events)
    assert store.clickstream.usage()["default"] == Usage(4, his.bytes + taken)
    assert store.in_project("acme").clickstream.get("hers-0-0") == of("hers-0-0")

    register(store, [of("his-3", "he"), of("hers-0-0")])
    assert numbered(store, batches[2])["his-3"] == 7
    assert numbered(store, batches[2])["hers-0-0"] == 8
    assert store.clickstream.release("r-2", later(9)).session_count == 4
    assert store.users.erase("he") == Erased(4, 0)
    assert store.clickstream.get_batch(batches[0]).session_count == 0
    assert store.clickstream.read(batches[0], 0, 10) == []


def test_long_runs_of_erased_sessions_end_no_reading(store: Store) -> None:
    """More than a step erases, and than a block of numbers has, between two others."""
    names = ["first", *(f"s-{number}" for number in range(1100)), "last"]
    sessions = [of(one, HER if one.startswith("s-") else "he") for one in names]
    for start in range(0, len(sessions), 200):
        register(store, sessions[start : start + 200])
    batch_id = store.clickstream.release("r", NOW).batch_id
    assert store.users.erase(HER) == Erased(1100, 0)
    assert numbered(store, batch_id) == {"first": 1, "last": 1102}


def test_a_collecting_batch_of_erased_sessions_is_empty(store: Store) -> None:
    """There is nothing to release; what comes goes on with its numbers."""
    register(store, [of("hers")])
    store.users.erase(HER)
    assert store.clickstream.collecting_batch() is None
    with pytest.raises(NotFound):
        store.clickstream.release("r", NOW)
    register(store, [of("his", "he")])
    batch = store.clickstream.release("r", NOW)
    assert (batch.session_count, numbered(store, batch.batch_id)) == (1, {"his": 2})


def test_what_tasks_learn_from_stays(store: Store) -> None:
    """Until they have ended: a batch that is named, or taken and not yet said to be, and those of a
    time range; the tasks are named."""
    batches = post_three_batches(store)
    several, _ = store.tasks.add(TaskRequest("m", batch_ids=(batches[1], batches[0])), NOW)
    assert several.batch_id == batches[0]
    assert store.users.erase("he") == Erased(1, 2, (several.id,))
    store.tasks.cancel(several.id, NOW)
    named, _ = store.tasks.add(TaskRequest("m", batch_id=batches[0]), NOW)
    taking, _ = store.tasks.add(TaskRequest("m"), NOW)
    assert store.users.erase(HER) == Erased(6, 3, (named.id,))  # what collects is not taken yet
    register(store, [of("hers-3"), of("his-3", "he")])
    store.clickstream.release(release_id_of(taking.id), later(5))
    assert store.users.erase(HER) == Erased(0, 4, tuple(sorted([named.id, taking.id])))
    store.tasks.cancel(named.id, NOW)
    ranged, _ = store.tasks.add(TaskRequest("m", since=later(-60)), NOW)
    held_by = tuple(sorted([taking.id, ranged.id]))
    assert store.users.erase(HER) == Erased(0, 4, held_by)
    store.tasks.cancel(ranged.id, NOW)
    assert store.users.erase(HER) == Erased(3, 1, (taking.id,))
    owner = store.tasks.claim("w", NOW, 60)
    assert owner is not None
    store.tasks.finish(Claim(owner.id, owner.attempt, "w"), NOW, TaskStatus.DONE)
    assert store.users.erase(HER) == Erased(1, 0)


def test_what_waits_for_her_sessions_goes_along(backend: Backend) -> None:
    """What had not joined yet, of the sessions that are erased alone."""
    with closing(backend.open()) as store:
        register(store, [of("hers"), of("his", "he")])
        early = Early(store.clickstream._documents, "default")
        for name in ("hers", "his", "unknown"):
            feedback = EarlyFeedback(name, (SessionEvent("early", "item-1", NOW),))
            assert early.add(feedback, NOW, later(60), most=9)
        store.users.erase(HER)
        assert store.clickstream.count_early(NOW) == 2
        assert early.find(["hers"], NOW) == {}


def assert_erased(store: Store, batches: list[str]) -> None:
    assert [numbered(store, one) for one in batches] == [
        {"his-0": 3},
        {"his-1": 3},
        {"his-2": 3},
    ]
    assert [store.clickstream.get_batch(one).session_count for one in batches] == [1, 1, 1]
    assert store.clickstream.usage()[store.project] == size("his-0", "his-1", "his-2")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_erasure_that_is_cut_off_is_completed_by_the_next(
    backend: Backend, moment: Moment
) -> None:
    """Wherever it ends, also by that of another person: all is gone, counted and freed once."""
    with closing(backend.open()) as opened:
        for nth in itertools.count(1):
            store = opened.in_project(f"p-{nth}")
            batches = post_three_batches(store)
            with backend.failing(nth, moment) as failure, suppress(StoreUnavailable):
                store.users.erase(HER)
            store.users.erase("nobody")
            store.users.erase(HER)
            assert_erased(store, batches)
            if not failure.happened:
                assert nth > 3
                return


MEANWHILE: dict[str, Callable[[Store], Any]] = {
    "the same": lambda store: store.users.erase(HER),
    "a release": lambda store: store.clickstream.release("r", later(9)),
    "a reading": lambda store: read_all(store, store.clickstream.page()[0].batch_id),
}


@pytest.mark.parametrize("action", MEANWHILE)
def test_what_happens_meanwhile_changes_nothing(backend: Backend, action: str) -> None:
    """Whatever comes between two steps of an erasure: she is gone, and freed once."""
    with closing(backend.open()) as opened:
        for nth in itertools.count(1):
            store = opened.in_project(f"p-{nth}")
            batches = post_three_batches(store)
            meanwhile: list[Any] = []

            def act(store: Store = store, answers: list[Any] = meanwhile) -> None:
                answers.append(MEANWHILE[action](store))

            with backend.interrupted(nth, act) as interruption:
                erased = store.users.erase(HER).sessions
            assert erased + sum(one.sessions for one in meanwhile if isinstance(one, Erased)) == 9
            assert_erased(store, batches)
            if not interruption.happened:
                return
