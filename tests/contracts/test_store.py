"""The contract of every store: each sentence of `embedding_studio/store/base.py`."""

import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import pytest

from embedding_studio.clickstream import (
    BatchCount,
    BatchStatus,
    NumberedSession,
    SearchResult,
    Session,
    SessionEvent,
)
from embedding_studio.clock import MAX_LEASE_SECONDS
from embedding_studio.errors import (
    ConfigurationError,
    Conflict,
    InvalidInput,
    LeaseLost,
    NotFound,
    StoreUnavailable,
)
from embedding_studio.store import Store, open_store
from embedding_studio.store.base import PAGE_BYTES, EarlyFeedback, Registered
from embedding_studio.store.sqlite import SqliteStore
from embedding_studio.tasks import (
    Budget,
    Claim,
    FineTuningTask,
    ModelFile,
    Promotion,
    Pruner,
    Sampler,
    SearchOptions,
    StoredModel,
    TaskEvent,
    TaskEventKind,
    TaskProgress,
    TaskRequest,
    TaskStatus,
)
from embedding_studio.workers import WorkerRecord
from tests.contracts import store_processes
from tests.contracts.store_backends import BACKENDS, MONGO_VARIABLE, Backend, Moment
from tests.contracts.store_processes import NOW, make_session, register

Result = TypeVar("Result")
ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 60.0
ODD_JSON = {
    "dotted.key": 1,
    "$dollar": {"$nested.key": [1, 2.5, None, True, {"": "empty key"}]},
    "ключ": "значение ☕ \U0001f600",
    "large": 2**62,
}
NO_IDS = ["", "no id", "0" * 23, "0" * 24, "ж" * 12, "s:1"]
MODEL = StoredModel("run-1", "mlflow-artifacts:/1/model", (ModelFile("a/b.bin", 3, "ab" * 32),))
PROMOTION = Promotion(True, "better", "mrr", 0.5, 0.75, 0.25, (0.125, 0.5), 40)
PROGRESS = TaskProgress(
    "search", "mrr", trial=2, max_trials=5, step=7, main_metric=0.5, trained_tokens=2**40
)

OWNER_WRITES: dict[str, Callable[[Store, Claim], object]] = {
    "renew_lease": lambda store, claim: store.tasks.renew(claim, later(2), 60, PROGRESS),
    "record": lambda store, claim: store.tasks.record(claim, later(2), experiment_id="stale"),
    "finish_task": lambda store, claim: store.tasks.finish(claim, later(2), TaskStatus.DONE),
    "release_task": lambda store, claim: store.tasks.give_back(claim, later(2)),
}


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def click(event_id: str) -> SessionEvent:
    return SessionEvent(event_id, "item-1", NOW)


def post(store: Store, *session_ids: str) -> None:
    store.clickstream.register([make_session(session_id) for session_id in session_ids], NOW)


def registered(store: Store, sessions: Sequence[Session]) -> list[tuple[bool, int]]:
    """Post sessions; return of each whether it was new, and how many of its events were."""
    return [(answer.is_new, answer.new_events) for answer in register(store, sessions)]


def add(store: Store, seconds: float = 0, method: str = "m") -> FineTuningTask:
    return store.tasks.add(TaskRequest(method), later(seconds))[0]


def take(store: Store, seconds: float = 0, worker_id: str = "w") -> tuple[FineTuningTask, Claim]:
    task = store.tasks.claim(worker_id, later(seconds), LEASE_SECONDS)
    assert task is not None
    return task, Claim(task.id, task.attempt, worker_id)


def event_ids(store: Store, session_id: str) -> list[str]:
    return [event.event_id for event in store.clickstream.get(session_id).session.events]


def read_all(store: Store, batch_id: str) -> list[NumberedSession]:
    found: list[NumberedSession] = []
    while page := store.clickstream.read(batch_id, found[-1].number if found else 0, 10_000):
        found += page
    return found


def ids_of(sessions: Sequence[NumberedSession]) -> list[str]:
    return [numbered.session.session_id for numbered in sessions]


def assert_gapless(store: Store, batch_ids: Sequence[str]) -> list[str]:
    """Return the ids of all sessions in those batches, each of which numbers them 1..n."""
    session_ids: list[str] = []
    for batch_id in batch_ids:
        members = read_all(store, batch_id)
        assert [member.number for member in members] == list(range(1, len(members) + 1))
        assert store.clickstream.get_batch(batch_id).session_count == len(members)
        session_ids += ids_of(members)
    assert max(Counter(session_ids).values()) == 1
    return session_ids


def in_threads(count: int, work: Callable[[int], Result]) -> list[Result]:
    """Do the work in so many threads that begin together; return what each returned."""
    barrier = Barrier(count)

    def begin(number: int) -> Result:
        barrier.wait(30)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


# -- sessions and events -----------------------------------------------------------------------


def test_a_session_comes_back_as_it_was_posted(store: Store) -> None:
    """Every field of a session, free-form JSON included, is read back equal."""
    posted = Session(
        session_id="s-1",
        search_query="blue\nshoes \U0001f45f",
        search_results=(SearchResult("a", 0.25, ODD_JSON), SearchResult("b"), SearchResult("a")),
        created_at=NOW,
        search_meta=ODD_JSON,
        user_id="u-1",
        events=(SessionEvent("e-1", "b", later(1), "like", ODD_JSON), click("e-2")),
        is_irrelevant=True,
    )
    assert registered(store, [posted]) == [(True, 2)]
    stored = store.clickstream.get("s-1")
    assert stored.session == posted
    assert stored.number == 1
    assert read_all(store, stored.batch_id) == [stored]


@pytest.mark.parametrize(
    "odd",
    [{"n": 2**70}, {"zero\0byte": 1}, {"half a pair": "\ud800"}, {"large": "x" * 17_000_000}],
    ids=["large number", "zero byte", "half a pair", "17 MB"],
)
def test_free_form_json_is_kept_or_refused(store: Store, odd: dict[str, Any]) -> None:
    """What not every database can hold comes back equal or raises InvalidInput, adding nothing."""
    session = replace(make_session("s"), search_meta=odd)
    (answer,) = store.clickstream.register([session], NOW)
    if isinstance(answer, InvalidInput):
        assert store.clickstream.collecting_batch() is None
    else:
        is_kept = store.clickstream.get("s").session == session
        assert is_kept
    try:
        task, _ = store.tasks.add(TaskRequest("m", metadata=odd), NOW)
    except InvalidInput:
        assert store.tasks.page() == []
    else:
        is_kept = store.tasks.get(task.id).metadata == odd
        assert is_kept


@pytest.mark.parametrize("session_id", ["half a pair \ud800", "a\0b", "\0"])
def test_an_id_that_cannot_be_stored_is_refused_or_kept(store: Store, session_id: str) -> None:
    """An odd id is answered by InvalidInput, or is found again, also when it is posted again."""
    session = make_session(session_id)
    answers = [store.clickstream.register([session], NOW)[0] for _ in range(2)]
    if any(isinstance(answer, InvalidInput) for answer in answers):
        assert store.clickstream.collecting_batch() is None
    else:
        assert store.clickstream.get(session_id).session == session
        assert [answer.is_new for answer in answers if isinstance(answer, Registered)] == [
            True,
            False,
        ]


def test_one_that_cannot_be_kept_costs_only_itself(store: Store) -> None:
    """Of many sessions each is kept whole or refused whole, in order; numbers have no gaps."""
    large = {"text": "x" * 6_000_000}
    store.clickstream.register([make_session("full", ["e-0"])], NOW)
    for number in (1, 2):
        with suppress(InvalidInput):
            store.clickstream.append_events("full", [replace(click(f"e-{number}"), meta=large)])
    before = store.clickstream.get("full")
    more = (click("e-3"), replace(click("e-4"), meta=large), click("e-5"))
    posted = [
        make_session("first", ["e"]),
        replace(make_session("large"), search_meta={"large": "x" * 17_000_000}),
        replace(make_session("many"), search_meta={"n": 2**70}),
        make_session("middle"),
        replace(make_session("full"), events=more),
        replace(make_session("twice"), search_meta={"half": "\ud800"}),
        make_session("twice"),
        make_session("odd event", ["\ud800"]),
        make_session("last"),
    ]
    answers = store.clickstream.register(posted, NOW)
    batch = store.clickstream.collecting_batch()
    assert batch is not None
    names = assert_gapless(store, [batch.batch_id])
    for session, answer in zip(posted, answers, strict=True):
        if session.session_id == "full":
            after = store.clickstream.get("full")
            if isinstance(answer, InvalidInput):
                is_unchanged = after == before
                assert is_unchanged
            else:
                assert answer.new_events == len(more)
                assert len(after.session.events) == len(before.session.events) + len(more)
        elif isinstance(answer, InvalidInput):
            assert session.session_id not in ("first", "middle", "last")
            assert repr(session.session_id) in str(answer)
            assert session.session_id == "twice" or session.session_id not in names
        else:
            assert answer.stored.session.search_query == session.search_query
            assert session.session_id in names
    assert "twice" in names


def test_places_beyond_64_bits_are_refused_or_empty(store: Store) -> None:
    """Asking for a page after 2**70 raises InvalidInput or gives an empty page."""
    post(store, "s")
    add(store)
    batch_id = store.clickstream.get("s").batch_id
    with suppress(InvalidInput):
        assert store.clickstream.read(batch_id, 2**70, 10) == []
    with suppress(InvalidInput):
        assert store.tasks.page(skip=2**70) == []


def test_a_session_grown_too_large_is_refused(backend: Backend, store: Store) -> None:
    """Events beyond EVENTS_BYTES of one session raise InvalidInput; the session stays readable."""
    post(store, "s")
    large = {"text": "x" * 6_000_000}
    kept = 0
    for number in range(3):
        with suppress(InvalidInput):
            added = store.clickstream.append_events(
                "s", [replace(click(f"e-{number}"), meta=large)]
            )
            kept += added.new_events
    assert len(event_ids(store, "s")) == kept
    # mongomock takes documents of any size
    assert kept == 2 or not backend.is_bounded


def test_times_come_back_aware_and_to_the_millisecond(store: Store) -> None:
    """A time posted with any offset comes back aware, at most a millisecond off."""
    moment = datetime(2024, 5, 1, 14, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    session = replace(
        make_session("s"), created_at=moment, events=(replace(click("e"), created_at=moment),)
    )
    store.clickstream.register([session], moment)
    task, _ = store.tasks.add(TaskRequest("m"), moment)
    stored = store.clickstream.get("s")
    times = [
        stored.session.created_at,
        stored.session.events[0].created_at,
        store.clickstream.get_batch(stored.batch_id).created_at,
        store.tasks.get(task.id).created_at,
    ]
    for time in times:
        assert time.utcoffset() is not None
        assert timedelta(0) <= moment - time < timedelta(milliseconds=1)


def test_answers_come_in_the_order_given(store: Store) -> None:
    """New, known and repeated sessions of one call are each answered at their own place."""
    store.clickstream.register([make_session("known", ["e-1"])], NOW)
    answers = registered(
        store,
        [
            make_session("new-1", ["e-1"]),
            make_session("known", ["e-1", "e-2", "e-3"]),
            make_session("new-2"),
            make_session("new-1", ["e-1", "e-2"]),
            make_session("known"),
        ],
    )
    assert answers == [
        (True, 1),
        (False, 2),
        (True, 0),
        (False, 1),
        (False, 0),
    ]
    assert event_ids(store, "new-1") == ["e-1", "e-2"]
    assert [store.clickstream.get(id_).number for id_ in ("known", "new-1", "new-2")] == [1, 2, 3]


def test_registering_nothing_does_nothing(store: Store) -> None:
    """An empty list is answered by an empty list and opens no batch."""
    assert store.clickstream.register([], NOW) == []
    assert store.clickstream.collecting_batch() is None


def test_a_known_session_keeps_what_is_stored(store: Store) -> None:
    """A second post of a session_id changes neither query, results, mark, time nor number."""
    store.clickstream.register([make_session("s", ["e-1"]), make_session("other")], NOW)
    before = store.clickstream.get("s")
    again = Session("s", "another query", (), later(5), {"a": 1}, "u", (), is_irrelevant=True)
    assert registered(store, [again]) == [(False, 0)]
    assert store.clickstream.get("s") == before


def test_only_unknown_events_of_a_known_session_are_added(store: Store) -> None:
    """A re-post adds the events it brings anew, after those that are there."""
    store.clickstream.register([make_session("s", ["e-2", "e-1"])], NOW)
    changed = replace(click("e-1"), object_id="item-2")
    again = replace(make_session("s"), events=(click("e-3"), changed, click("e-0")))
    assert registered(store, [again]) == [(False, 2)]
    assert event_ids(store, "s") == ["e-2", "e-1", "e-3", "e-0"]
    assert {event.object_id for event in store.clickstream.get("s").session.events} == {"item-1"}


def test_an_event_id_repeated_in_one_post_counts_once(store: Store) -> None:
    """Events of the same id in one call are one event, the first of them."""
    assert registered(store, [make_session("s", ["e", "e"])]) == [(True, 1)]
    assert (
        store.clickstream.append_events("s", [click("f"), click("f"), click("e")]).new_events == 1
    )
    assert event_ids(store, "s") == ["e", "f"]


def test_sessions_may_share_event_ids(store: Store) -> None:
    """An event_id is known to its own session only."""
    answers = registered(store, [make_session("s", ["e"]), make_session("t", ["e"])])
    assert answers == [(True, 1), (True, 1)]


def test_reposts_burn_no_numbers(store: Store) -> None:
    """Numbers run 1, 2, 3, ... however often known sessions are posted in between."""
    for number in range(1, 6):
        post(store, *(f"s-{known}" for known in range(number)))
    batch_id = store.clickstream.get("s-0").batch_id
    assert ids_of(read_all(store, batch_id)) == [f"s-{number}" for number in range(5)]
    assert len(assert_gapless(store, [batch_id])) == 5


def test_a_large_post_is_numbered_in_its_order(store: Store) -> None:
    """A thousand sessions of one call get the numbers 1 to 1000 in the order given."""
    names = [f"s-{number}" for number in range(1000)]
    post(store, *names)
    batch_id = store.clickstream.get("s-0").batch_id
    assert assert_gapless(store, [batch_id]) == names


def test_append_events_answers_how_many_were_new(store: Store) -> None:
    """Appending adds the unknown events in order of arrival and counts them."""
    post(store, "s")
    assert store.clickstream.append_events("s", [click("e-2"), click("e-1")]).new_events == 2
    assert store.clickstream.append_events("s", [click("e-1"), click("e-3")]).new_events == 1
    assert store.clickstream.append_events("s", []).new_events == 0
    assert event_ids(store, "s") == ["e-2", "e-1", "e-3"]


def test_an_irrelevant_mark_is_for_good(store: Store) -> None:
    """The mark survives marking again, a re-post, an event and a release."""
    post(store, "s", "other")
    store.clickstream.mark_irrelevant("s")
    store.clickstream.mark_irrelevant("s")
    post(store, "s")
    store.clickstream.append_events("s", [click("e")])
    batch = store.clickstream.release("r", NOW)
    marks = [member.session.is_irrelevant for member in read_all(store, batch.batch_id)]
    assert marks == [True, False]
    assert store.clickstream.get("s").session.is_irrelevant


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.clickstream.get("unknown"),
        lambda store: store.clickstream.append_events("unknown", [click("e")]),
        lambda store: store.clickstream.append_events("unknown", []),
        lambda store: store.clickstream.mark_irrelevant("unknown"),
    ],
)
def test_an_unknown_session_is_not_found(store: Store, ask: Callable[[Store], Any]) -> None:
    """Reading or changing a session that was never registered raises NotFound and adds nothing."""
    post(store, "s")
    with pytest.raises(NotFound, match="unknown"):
        ask(store)
    with pytest.raises(NotFound):
        store.clickstream.get("unknown")


def keep(
    store: Store, session_id: str, *event_ids: str, is_irrelevant: bool = False, most: int = 9
) -> bool:
    """Post feedback of a session that has not come, which waits for an hour."""
    feedback = EarlyFeedback(session_id, tuple(map(click, event_ids)), is_irrelevant)
    return store.clickstream.keep_early(feedback, NOW, later(3600), most)


def test_what_comes_before_its_session_joins_it(store: Store) -> None:
    """Events and the mark wait, once each, and join the session after what it brings itself."""
    assert keep(store, "s", "e-2", "e-1")
    assert keep(store, "s", "e-2", "e-3", is_irrelevant=True)
    assert keep(store, "t", "e-1")
    assert keep(store, "nobody", "e-1")
    assert store.clickstream.count_early(NOW) == 6
    with pytest.raises(NotFound):
        store.clickstream.get("s")
    posted = [make_session("s", ["e-1", "e-0"]), make_session("s"), make_session("t")]
    first, again, other = register(store, posted)
    assert [first.early_events, again.early_events, other.early_events] == [2, 0, 1]
    assert [first.new_events, first.is_new, again.is_new] == [2, True, False]
    assert event_ids(store, "s") == ["e-1", "e-0", "e-2", "e-3"]
    assert store.clickstream.get("s").session.is_irrelevant
    assert not store.clickstream.get("t").session.is_irrelevant
    assert store.clickstream.count_early(NOW) == 1
    assert registered(store, [make_session("s")]) == [(False, 0)]
    batch_id = store.clickstream.get("s").batch_id
    assert store.clickstream.count_clicked(batch_id) == 1  # "t", for "s" is marked


def test_what_expired_joins_no_more(store: Store) -> None:
    """Feedback waits until its time is over, then it is gone and makes room."""
    assert keep(store, "s", "e", most=1)
    assert store.clickstream.count_early(later(3599)) == 1
    assert store.clickstream.count_early(later(3600)) == 0
    (answer,) = register(store, [replace(make_session("t"))])
    feedback = EarlyFeedback("u", (click("e"),))
    assert store.clickstream.keep_early(feedback, later(3600), later(7200), 1)
    (late,) = store.clickstream.register([make_session("s")], later(3600))
    assert isinstance(late, Registered)
    assert (answer.early_events, late.early_events, event_ids(store, "s")) == (0, 0, [])
    assert store.clickstream.count_early(later(3600)) == 1


def test_only_so_much_waits(store: Store) -> None:
    """What would be too much is refused whole; what waits already may be posted again."""
    assert keep(store, "s", "e-1", "e-2", most=3)
    assert not keep(store, "t", "e-1", "e-2", most=3)
    assert not keep(store, "t", "e-1", is_irrelevant=True, most=3)
    assert keep(store, "s", "e-2", "e-1", most=2)
    assert keep(store, "t", "e-1", most=3)
    assert store.clickstream.count_early(NOW) == 3


def test_feedback_whose_session_came_meanwhile_joins_at_once(store: Store) -> None:
    """Nothing waits for a session that is there, whatever its batch."""
    post(store, "s")
    store.clickstream.release("r", NOW)
    assert keep(store, "s", "e", is_irrelevant=True)
    assert event_ids(store, "s") == ["e"]
    assert store.clickstream.get("s").session.is_irrelevant
    assert store.clickstream.count_early(NOW) == 0


def test_what_waits_is_of_one_project(store: Store) -> None:
    """Feedback of one project neither joins another's session of that id nor takes its room."""
    other = store.in_project("other")
    assert keep(store, "s", "e", most=1)
    assert other.count_early(NOW) == 0
    (answer,) = register(other, [make_session("s")])
    assert answer.early_events == 0
    assert keep(other, "t", "e", most=1)
    assert register(store, [make_session("s")])[0].early_events == 1


def keep_and_post(store: Store, *event_ids: str) -> None:
    keep(store, "s", *event_ids, is_irrelevant=True)
    post(store, "s")


EARLY_RACES: dict[str, tuple[Callable[[Store], Any], Callable[[Store], Any]]] = {
    "a session comes": (
        lambda store: keep(store, "s", "e-1", "e-2", is_irrelevant=True),
        lambda store: post(store, "s"),
    ),
    "feedback comes": (
        lambda store: post(store, "s"),
        lambda store: keep(store, "s", "e-1", "e-2", is_irrelevant=True),
    ),
    "the same comes": (
        lambda store: keep_and_post(store, "e-1", "e-2"),
        lambda store: keep_and_post(store, "e-2", "e-1"),
    ),
}


@pytest.mark.parametrize("race", EARLY_RACES)
def test_feedback_and_its_session_find_each_other(backend: Backend, race: str) -> None:
    """Before whichever step of one the other comes, each event is there once and nothing waits."""
    call, meanwhile = EARLY_RACES[race]
    has_happened, nth = True, 0
    while has_happened:
        nth += 1
        fresh = backend.another()
        store, other = fresh.open(), fresh.open()
        with fresh.interrupted(nth, partial(meanwhile, other)) as interruption:
            call(store)
        has_happened = interruption.happened
        if not has_happened:
            meanwhile(other)
        assert sorted(event_ids(store, "s")) == ["e-1", "e-2"]
        assert store.clickstream.get("s").session.is_irrelevant
        assert store.clickstream.count_early(NOW) == 0
        store.close()
        other.close()
        fresh.drop()
    assert nth > 1


@pytest.mark.parametrize("moment", ["before", "halfway", "after"])
def test_feedback_broken_off_is_completed_by_posting_again(
    backend: Backend, moment: Moment
) -> None:
    """Whichever write of one or the other fails, both posted again leave each event there once."""
    has_failed, nth = True, 0
    while has_failed:
        nth += 1
        fresh = backend.another()
        store = fresh.open()
        with suppress(StoreUnavailable), fresh.failing(nth, moment) as failure:
            keep_and_post(store, "e-1", "e-2")
        has_failed = failure.happened
        keep_and_post(store, "e-1", "e-2")
        assert sorted(event_ids(store, "s")) == ["e-1", "e-2"]
        assert store.clickstream.get("s").session.is_irrelevant
        assert store.clickstream.count_early(NOW) == 0
        store.close()
        fresh.drop()
    assert nth > 1


# -- batches -----------------------------------------------------------------------------------


def test_the_first_new_session_opens_a_batch(store: Store) -> None:
    """Sessions join one collecting batch, whose count grows with them."""
    post(store, "s-1")
    post(store, "s-2", "s-3")
    batch = store.clickstream.collecting_batch()
    assert batch is not None
    assert batch.status == BatchStatus.COLLECTING
    assert (batch.created_at, batch.session_count) == (NOW, 3)
    assert (batch.release_id, batch.released_at) == (None, None)
    assert store.clickstream.get_batch(batch.batch_id) == batch
    assert {store.clickstream.get(f"s-{n}").batch_id for n in (1, 2, 3)} == {batch.batch_id}


def test_a_release_closes_the_batch(store: Store) -> None:
    """A released batch says when, by which release and with how many sessions."""
    post(store, "s-1", "s-2")
    released = store.clickstream.release("r", later(9))
    assert released.status == BatchStatus.RELEASED
    assert (released.created_at, released.released_at) == (NOW, later(9))
    assert (released.release_id, released.session_count) == ("r", 2)
    assert store.clickstream.get_batch(released.batch_id) == released
    assert released.batch_id == store.clickstream.get("s-1").batch_id


def test_nothing_joins_a_released_batch(store: Store) -> None:
    """Sessions after a release go to a new batch, numbered from 1; known ones stay in theirs."""
    post(store, "s-1", "s-2")
    released = store.clickstream.release("r", NOW)
    members = read_all(store, released.batch_id)
    post(store, "s-2", "s-3")
    store.clickstream.append_events("s-1", [click("e")])
    assert ids_of(read_all(store, released.batch_id)) == ids_of(members)
    assert store.clickstream.get_batch(released.batch_id) == released
    third = store.clickstream.get("s-3")
    assert third.batch_id != released.batch_id
    assert third.number == 1
    assert store.clickstream.get("s-2").batch_id == released.batch_id


def test_a_released_session_still_takes_events(store: Store) -> None:
    """A late click reaches its session, whose batch is released already."""
    post(store, "s")
    batch = store.clickstream.release("r", NOW)
    assert store.clickstream.append_events("s", [click("late")]).new_events == 1
    assert len(read_all(store, batch.batch_id)[0].session.events) == 1


def test_an_answer_tells_what_is_stored(store: Store) -> None:
    """A new session is answered with its place, a known one as it was first posted; events alone
    with what was shown."""
    results = (SearchResult("item-1", 0.5, ODD_JSON), SearchResult("item-2"))
    first = replace(make_session("s", ["e"], "first"), search_results=results, search_meta=ODD_JSON)
    (new,) = register(store, [first])
    (again,) = register(store, [make_session("s", query="second")])
    later_events = store.clickstream.append_events("s", [])
    for answer in (new, again):
        assert replace(answer.stored.session, events=()) == replace(first, events=())
    for answer in (new, again, later_events):
        shown = answer.stored.session.search_results
        assert [result.object_id for result in shown] == ["item-1", "item-2"]
        assert answer.stored.number == 1
        assert answer.stored.batch_id == store.clickstream.get("s").batch_id
        assert not answer.is_late
    assert store.clickstream.get("s").session == first


def test_what_comes_after_a_release_is_late(store: Store) -> None:
    """Late are events of a session whose batch is released, and a session made before that."""
    post(store, "s")
    batch = store.clickstream.release("r", later(9))
    assert store.clickstream.append_events("s", [click("e")]).is_late
    sessions = [replace(make_session(str(n)), created_at=later(n)) for n in (8, 9, 10)]
    answers = register(store, [make_session("s"), *sessions])
    assert [answer.is_late for answer in answers] == [True, True, False, False]
    assert not store.clickstream.append_events("8", [click("e")]).is_late
    collecting = store.clickstream.collecting_batch()
    assert collecting is not None
    assert (batch.since, collecting.since) == (None, later(9))


def test_counts_of_a_batch_add_up(store: Store) -> None:
    """What is counted of one batch is added to it alone, collecting or released."""
    post(store, "s")
    first = store.clickstream.release("r", NOW)
    post(store, "t")
    second = store.clickstream.collecting_batch()
    assert second is not None
    store.clickstream.add_counts(first.batch_id, {BatchCount.LATE_EVENTS: 2})
    store.clickstream.add_counts(
        second.batch_id, {BatchCount.EVENTS_NOT_SHOWN: 1, BatchCount.LATE_EVENTS: 3}
    )
    store.clickstream.add_counts(second.batch_id, {BatchCount.EVENTS_NOT_SHOWN: 4})
    assert store.clickstream.get_batch(first.batch_id).counts == {"late_events": 2}
    expected = {"events_not_shown": 5, "late_events": 3}
    assert store.clickstream.get_batch(second.batch_id).counts == expected
    assert store.clickstream.release("r-2", NOW).counts == expected
    with pytest.raises(NotFound):
        store.clickstream.add_counts("0" * 24, {BatchCount.LATE_EVENTS: 1})


def test_the_same_release_id_gives_the_same_batch(store: Store) -> None:
    """A release repeated later, with other sessions collecting, releases nothing more."""
    post(store, "s-1")
    first = store.clickstream.release("r-1", NOW)
    assert store.clickstream.release("r-1", later(5)) == first
    post(store, "s-2")
    assert store.clickstream.release("r-1", later(5)) == first
    second = store.clickstream.release("r-2", later(6))
    assert second.batch_id != first.batch_id
    assert store.clickstream.release("r-1", later(7)) == first


def test_a_release_of_nothing_finds_nothing(store: Store) -> None:
    """Without a session since the last release, also after a mere re-post, release refuses."""
    with pytest.raises(NotFound, match="nothing to release"):
        store.clickstream.release("r-1", NOW)
    post(store, "s")
    store.clickstream.release("r-2", NOW)
    post(store, "s")
    with pytest.raises(NotFound, match="nothing to release"):
        store.clickstream.release("r-3", NOW)


def test_only_the_batch_that_is_named_is_released(store: Store) -> None:
    """One that another release took is refused with that release's id, and the batch that collects
    now goes on collecting; the release that took it gives it again."""
    post(store, "s-1")
    batch = store.clickstream.collecting_batch()
    assert batch is not None
    released = store.clickstream.release("r-1", NOW, batch.batch_id)
    assert released.batch_id == batch.batch_id
    with pytest.raises(Conflict, match=rf"{batch.batch_id}.*'r-1'"):
        store.clickstream.release("r-2", NOW, batch.batch_id)
    post(store, "s-2")
    with pytest.raises(Conflict, match=rf"{batch.batch_id}.*'r-1'"):
        store.clickstream.release("r-2", NOW, batch.batch_id)
    assert store.clickstream.collecting_batch() is not None
    assert store.clickstream.release("r-1", later(5), batch.batch_id) == released


def test_a_release_is_found_by_its_id(store: Store) -> None:
    """It is the batch as released; an id under which nothing was released gives None."""
    post(store, "s")
    assert store.clickstream.find_release("r") is None
    released = store.clickstream.release("r", NOW)
    post(store, "s-2")
    assert store.clickstream.find_release("r") == released
    assert store.clickstream.find_release("another") is None


def test_collecting_batch_is_what_a_release_would_take(store: Store) -> None:
    """It is None exactly where release_batch refuses, else the batch that it then releases."""
    assert store.clickstream.collecting_batch() is None
    post(store, "s")
    collecting = store.clickstream.collecting_batch()
    assert collecting is not None
    assert store.clickstream.release("r", NOW).batch_id == collecting.batch_id
    assert store.clickstream.collecting_batch() is None


@pytest.mark.parametrize("no_id", NO_IDS)
def test_an_unknown_batch_is_not_found(store: Store, no_id: str) -> None:
    """Reading a batch that does not exist raises NotFound, also for an id that is no id."""
    with pytest.raises(NotFound):
        store.clickstream.get_batch(no_id)
    with pytest.raises(NotFound):
        store.clickstream.read(no_id, 0, 10)


def test_read_batch_pages_in_order(store: Store) -> None:
    """Pages of two, each begun after the last number of the former, give every session once."""
    post(store, *(f"s-{number}" for number in range(5)))
    batch_id = store.clickstream.release("r", NOW).batch_id
    post(store, "next batch")
    assert ids_of(store.clickstream.read(batch_id, 0, 2)) == ["s-0", "s-1"]
    assert ids_of(store.clickstream.read(batch_id, 2, 2)) == ["s-2", "s-3"]
    assert ids_of(store.clickstream.read(batch_id, 4, 2)) == ["s-4"]
    assert store.clickstream.read(batch_id, 5, 2) == []
    assert store.clickstream.read(batch_id, 0, 0) == []


def test_a_page_of_large_sessions_is_a_short_one(store: Store) -> None:
    """A page ends where its sessions, or their events, would come to more than PAGE_BYTES, but has
    one of any size; the next one begins after it."""
    large = {"text": "x" * (PAGE_BYTES // 2)}
    sessions = [replace(make_session(name), search_meta=large) for name in ("s-0", "s-1", "s-2")]
    clicked = replace(click("e"), meta=large)
    sessions[1] = replace(sessions[1], events=(clicked, replace(clicked, event_id="f")))
    store.clickstream.register([*sessions, make_session("s-3"), make_session("s-4")], NOW)
    batch_id = store.clickstream.get("s-0").batch_id
    assert ids_of(store.clickstream.read(batch_id, 0, 10)) == ["s-0"]
    assert ids_of(store.clickstream.read(batch_id, 1, 10)) == ["s-1"]
    assert ids_of(store.clickstream.read(batch_id, 2, 10)) == ["s-2", "s-3", "s-4"]


def test_read_batch_carries_the_first_events(backend: Backend, store: Store) -> None:
    """events_limit cuts each session's events after so many; None gives all."""
    if not backend.can_slice:
        pytest.skip("mongomock's $slice leaves out the other fields")
    store.clickstream.register([make_session("s", ["c", "a", "b"]), make_session("t", ["d"])], NOW)
    batch_id = store.clickstream.get("s").batch_id

    def events_read(limit: int | None) -> list[list[str]]:
        page = store.clickstream.read(batch_id, 0, 10, limit)
        return [[event.event_id for event in member.session.events] for member in page]

    assert events_read(None) == [["c", "a", "b"], ["d"]]
    assert events_read(2) == [["c", "a"], ["d"]]
    assert events_read(0) == [[], []]


def test_read_batch_takes_a_fixed_number_of_queries(backend: Backend) -> None:
    """A page of 500 sessions costs as many queries as a page of one."""
    with backend.counted() as (store, queries):
        store.clickstream.register([make_session(f"s-{n}", ["a", "b"]) for n in range(600)], NOW)
        batch_id = store.clickstream.get("s-0").batch_id
        costs = []
        for limit in (1, 500):
            queries.clear()
            assert len(store.clickstream.read(batch_id, 0, limit, events_limit=1)) == limit
            costs.append(len(queries))
    assert costs[0] == costs[1] > 0


@pytest.mark.parametrize("is_whole", [False, True])
def test_an_iteration_that_went_is_forgotten_once(store: Store, is_whole: bool) -> None:
    """What is gone is no longer named, and the history says why; a task at work keeps its own, and
    so does one that went on in another experiment."""
    task = add(store)
    _, claim = take(store)
    store.tasks.record(claim, later(1), best_model=MODEL, experiment_id="7")
    store.tasks.forget_iteration(task.id, "7", later(2), "too early", is_whole)
    store.tasks.finish(claim, later(3), TaskStatus.DONE)
    store.tasks.forget_iteration(task.id, "6", later(4), "another", is_whole)
    now = store.tasks.get(task.id)
    assert (now.best_model, now.experiment_id) == (MODEL, "7")
    for _ in range(2):
        store.tasks.forget_iteration(task.id, "7", later(4), "a newer one is there", is_whole)
    now = store.tasks.get(task.id)
    assert (now.best_model, now.experiment_id) == (None, None if is_whole else "7")
    last = [one.event for one in store.tasks.events(task.id, 0, 100)][-2:]
    gone = "iteration_removed" if is_whole else "model_removed"
    assert [event.kind for event in last] == ["done", gone]
    assert last[1].detail == "a newer one is there"
    with pytest.raises(NotFound):
        store.tasks.forget_iteration("0" * 24, "7", later(5), "unknown", is_whole)


def test_the_model_is_forgotten_first_and_the_experiment_later(store: Store) -> None:
    """Where iterations outlive their models, each leaves its event."""
    task = add(store)
    _, claim = take(store)
    store.tasks.record(claim, later(1), best_model=MODEL, experiment_id="7")
    store.tasks.finish(claim, later(2), TaskStatus.DONE)
    for is_whole in (False, False, True, True):
        store.tasks.forget_iteration(task.id, "7", later(3), "why", is_whole)
    last = [one.event.kind for one in store.tasks.events(task.id, 0, 100)][-3:]
    assert last == ["done", "model_removed", "iteration_removed"]


# -- tasks, as their clients see them ----------------------------------------------------------


def test_a_task_comes_back_as_it_was_requested(store: Store) -> None:
    """A new task is pending, carries every field of its request and is read back equal."""
    request = TaskRequest(
        "m", "batch-1", ODD_JSON, "key", Budget(7, 2.5, 10**12, 0.5),
        SearchOptions(Sampler.GP, Pruner.NONE), {"add to cart": 2.5, "a.$b": 0},
    )  # fmt: skip
    task, is_new = store.tasks.add(request, NOW)
    assert is_new
    assert task == FineTuningTask(
        id=task.id,
        fine_tuning_method="m",
        status=TaskStatus.PENDING,
        created_at=NOW,
        updated_at=NOW,
        batch_id="batch-1",
        metadata=ODD_JSON,
        idempotency_key="key",
        budget=Budget(7, 2.5, 10**12, 0.5),
        search=SearchOptions(Sampler.GP, Pruner.NONE),
        event_weights={"add to cart": 2.5, "a.$b": 0},
    )
    assert store.tasks.get(task.id) == task
    assert len(task.id) == 24
    assert int(task.id, 16) >= 0


def test_the_same_key_and_request_give_the_same_task(store: Store) -> None:
    """A repeated request with its key adds nothing, whatever became of the task meanwhile."""
    request = TaskRequest("m", None, {"b": [1], "a": 2}, "key", Budget(max_minutes=5))
    task, _ = store.tasks.add(request, NOW)
    same = TaskRequest("m", None, {"a": 2, "b": [1]}, "key", Budget(max_minutes=5.0))
    assert store.tasks.add(same, later(1)) == (task, False)
    _, claim = take(store)
    store.tasks.record(claim, NOW, batch_id="released-for-it")
    again, is_new = store.tasks.add(request, later(2))
    assert (again.id, is_new) == (task.id, False)
    assert again.batch_id == "released-for-it"
    assert len(store.tasks.page()) == 1


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (TaskRequest("n", "b", {"a": 1}, "key-1"), "fine_tuning_method"),
        (TaskRequest("m", None, {"a": 1}, "key-1"), "batch_id"),
        (TaskRequest("m", "b", {"a": 2}, "key-1"), "metadata"),
        (TaskRequest("m", "b", None, "key-1"), "metadata"),
        (TaskRequest("m", "b", {"a": 1}, "key-1", Budget(3)), "budget"),
        (TaskRequest("m", "b", {"a": 1}, "key-1", search=SearchOptions(Sampler.GP)), "search"),
        (TaskRequest("m", "b", {"a": 1}, "key-1", event_weights={"buy": 2}), "event_weights"),
    ],
)
def test_the_same_key_with_another_request_is_a_conflict(
    store: Store, other: TaskRequest, difference: str
) -> None:
    """The conflict names the key, the task that has it and what differs, and adds nothing."""
    task, _ = store.tasks.add(TaskRequest("m", "b", {"a": 1}, "key-1"), NOW)
    with pytest.raises(Conflict, match=rf"'key-1'.*{task.id}.*differs in {difference}:"):
        store.tasks.add(other, NOW)
    assert store.tasks.page() == [task]


def test_requests_without_a_key_are_tasks_of_their_own(store: Store) -> None:
    """The same request twice without an idempotency_key makes two tasks."""
    assert add(store).id != add(store).id
    assert len(store.tasks.page()) == 2


def test_a_task_is_found_by_its_key(store: Store) -> None:
    """find_task gives the task added with the key, None for another key."""
    add(store)
    task, _ = store.tasks.add(TaskRequest("m", idempotency_key="key"), NOW)
    assert store.tasks.find("key") == task
    assert store.tasks.find("other") is None


@pytest.mark.parametrize("no_id", NO_IDS)
@pytest.mark.parametrize("method", ["get_task", "cancel_task", "restart_task"])
def test_an_unknown_task_is_not_found(store: Store, method: str, no_id: str) -> None:
    """Asking for a task that does not exist raises NotFound, also for an id that is no id."""
    times = [] if method == "get_task" else [NOW]
    with pytest.raises(NotFound):
        getattr(store, method)(no_id, *times)


def test_tasks_are_listed_newest_first(store: Store) -> None:
    """The order is by creation, the same at every call and across pages also among equals."""
    tasks = [add(store, seconds) for seconds in (5, 1, 9)] + [add(store, 7) for _ in range(6)]
    listed = store.tasks.page()
    assert listed == store.tasks.page()
    assert sorted(listed, key=lambda task: task.created_at, reverse=True) == listed
    assert {task.id for task in listed} == {task.id for task in tasks}
    pages = [store.tasks.page(skip=skip, limit=2) for skip in range(0, 10, 2)]
    assert [task for page in pages for task in page] == listed
    assert store.tasks.page(limit=0) == []


def test_tasks_are_listed_by_status(store: Store) -> None:
    """A status given leaves only the tasks that have it."""
    first, second = add(store, 0), add(store, 1)
    store.tasks.cancel(first.id, NOW)
    assert [task.id for task in store.tasks.page(TaskStatus.CANCELED)] == [first.id]
    assert store.tasks.page(TaskStatus.PENDING) == [second]
    assert store.tasks.page(TaskStatus.DONE) == []


def test_a_pending_task_is_canceled_at_once(store: Store) -> None:
    """A canceled pending task is never claimed; canceling it again changes nothing."""
    task = add(store)
    canceled = store.tasks.cancel(task.id, later(1))
    assert canceled == replace(task, status=TaskStatus.CANCELED, updated_at=later(1))
    assert store.tasks.cancel(task.id, later(2)) == canceled
    assert store.tasks.get(task.id) == canceled
    assert store.tasks.claim("w", later(3), LEASE_SECONDS) is None


@pytest.mark.parametrize("write", OWNER_WRITES)
def test_a_cancellation_sticks(store: Store, write: str) -> None:
    """After a cancel the owner's next write raises LeaseLost; worker and lease stay meanwhile."""
    add(store)
    task, claim = take(store)
    canceled = store.tasks.cancel(task.id, later(1))
    assert canceled == replace(task, status=TaskStatus.CANCELED, updated_at=later(1))
    with pytest.raises(LeaseLost, match=task.id):
        OWNER_WRITES[write](store, claim)
    assert store.tasks.get(task.id) == canceled
    assert store.tasks.claim("w", later(1000), LEASE_SECONDS) is None


@pytest.mark.parametrize("end", [TaskStatus.DONE, TaskStatus.ERROR])
def test_an_ended_task_cannot_be_canceled(store: Store, end: TaskStatus) -> None:
    """Canceling a done or failed task raises Conflict and changes nothing."""
    add(store)
    task, claim = take(store)
    store.tasks.finish(claim, NOW, end)
    before = store.tasks.get(task.id)
    with pytest.raises(Conflict, match=f"{task.id}.*{end}"):
        store.tasks.cancel(task.id, later(1))
    assert store.tasks.get(task.id) == before


def test_a_task_whose_verdict_is_in_cannot_be_canceled(store: Store) -> None:
    """Once a promotion is recorded, a cancel raises Conflict: the owner is carrying it out."""
    add(store)
    task, claim = take(store)
    store.tasks.record(claim, NOW, promotion=PROMOTION)
    with pytest.raises(Conflict, match=f"{task.id}.*verdict"):
        store.tasks.cancel(task.id, later(1))
    store.tasks.finish(claim, later(2), TaskStatus.DONE)


@pytest.mark.parametrize("end", [TaskStatus.CANCELED, TaskStatus.ERROR])
def test_a_restart_clears_what_happened_and_keeps_the_batch(store: Store, end: TaskStatus) -> None:
    """A canceled or failed task is pending again as if new, but for its batch and its attempts."""
    add(store)
    take(store)
    task, claim = take(store, LEASE_SECONDS)
    assert task.expired_leases == 1
    store.tasks.renew(claim, NOW, LEASE_SECONDS, PROGRESS)
    store.tasks.record(claim, NOW, batch_id="b", best_model=MODEL)
    if end == TaskStatus.ERROR:
        store.tasks.record(claim, NOW, promotion=PROMOTION)
        store.tasks.finish(claim, NOW, end, "it failed")
    else:
        store.tasks.cancel(task.id, NOW)
        store.tasks.release_canceled(claim)
    restarted = store.tasks.restart(task.id, later(9))
    assert restarted == FineTuningTask(
        id=task.id,
        fine_tuning_method="m",
        status=TaskStatus.PENDING,
        created_at=NOW,
        updated_at=later(9),
        batch_id="b",
        attempt=2,
    )
    assert store.tasks.get(task.id) == restarted
    assert take(store, 10)[0].attempt == 3


def test_a_fresh_restart_is_counted(store: Store) -> None:
    """Each restart that asks to forget earlier trials counts one more fresh start."""
    task = add(store)
    for fresh, expected in ((True, 1), (False, 1), (True, 2)):
        store.tasks.cancel(task.id, NOW)
        assert store.tasks.restart(task.id, NOW, fresh).fresh_starts == expected
    assert store.tasks.get(task.id).fresh_starts == 2


def test_restarting_a_pending_task_changes_nothing(store: Store) -> None:
    """A pending task stays as it is."""
    task = add(store)
    assert store.tasks.restart(task.id, later(1)) == task
    assert store.tasks.get(task.id) == task


def test_a_task_at_work_or_done_cannot_be_restarted(store: Store) -> None:
    """Restarting a processing or done task raises Conflict and changes nothing."""
    add(store)
    task, claim = take(store)
    with pytest.raises(Conflict, match=f"{task.id}.*processing"):
        store.tasks.restart(task.id, later(1000))
    assert store.tasks.get(task.id) == task
    store.tasks.finish(claim, NOW, TaskStatus.DONE)
    with pytest.raises(Conflict, match=f"{task.id}.*done"):
        store.tasks.restart(task.id, NOW)


def test_a_restart_waits_for_the_canceled_owner(store: Store) -> None:
    """A canceled task restarts once its owner lets go or its lease expires, not before."""
    add(store)
    task, claim = take(store)
    store.tasks.cancel(task.id, NOW)
    with pytest.raises(Conflict, match=f"{task.id}.*worker w "):
        store.tasks.restart(task.id, later(LEASE_SECONDS - 1))
    assert store.tasks.get(task.id).status == TaskStatus.CANCELED
    assert store.tasks.restart(task.id, later(LEASE_SECONDS)).worker_id is None
    take(store, 100)
    store.tasks.cancel(task.id, later(100))
    store.tasks.release_canceled(replace(claim, attempt=2))
    assert store.tasks.restart(task.id, later(101)).status == TaskStatus.PENDING


def test_a_stopping_task_ends_as_stopped(store: Store) -> None:
    """The owner hears of the stop when it renews, may still write, and what would be done is
    stopped; stopping again changes nothing, and a stopped task can be restarted."""
    add(store)
    task, claim = take(store)
    assert store.tasks.renew(claim, NOW, LEASE_SECONDS) is TaskStatus.PROCESSING
    stopping = store.tasks.stop(task.id, later(1))
    assert stopping == replace(task, status=TaskStatus.STOPPING, updated_at=later(1))
    assert store.tasks.stop(task.id, later(2)) == stopping
    assert store.tasks.renew(claim, NOW, LEASE_SECONDS) is TaskStatus.STOPPING
    store.tasks.record(claim, NOW, best_model=MODEL, promotion=PROMOTION)
    assert store.tasks.finish(claim, later(3), TaskStatus.DONE) is TaskStatus.STOPPED
    stopped = store.tasks.get(task.id)
    assert (stopped.status, stopped.worker_id) == (TaskStatus.STOPPED, None)
    assert stopped.best_model == MODEL
    assert store.tasks.stop(task.id, later(4)) == stopped
    assert store.tasks.claim("w", later(1000), LEASE_SECONDS) is None
    assert store.tasks.restart(task.id, later(5)).status is TaskStatus.PENDING


def test_a_stopping_task_may_fail_or_be_canceled(store: Store) -> None:
    """A stop is overtaken by an error, and by a cancel, which the owner notices."""
    add(store)
    task, claim = take(store)
    store.tasks.stop(task.id, NOW)
    assert store.tasks.finish(claim, NOW, TaskStatus.ERROR, "no data") is TaskStatus.ERROR
    store.tasks.restart(task.id, NOW)
    task, claim = take(store)
    store.tasks.stop(task.id, NOW)
    assert store.tasks.cancel(task.id, NOW).status is TaskStatus.CANCELED
    with pytest.raises(LeaseLost):
        store.tasks.renew(claim, NOW, LEASE_SECONDS)


@pytest.mark.parametrize("how", ["given back", "its worker died", "stopped while given back"])
def test_a_stopping_task_without_an_owner_is_claimed_to_be_ended(store: Store, how: str) -> None:
    """Whoever claims it finds it stopping still, and ends it as stopped."""
    add(store)
    task, claim = take(store)
    if how == "stopped while given back":
        store.tasks.give_back(claim, NOW)
    store.tasks.stop(task.id, NOW)
    if how == "given back":
        store.tasks.give_back(claim, NOW)
        assert store.tasks.get(task.id).status is TaskStatus.STOPPING
    seconds = LEASE_SECONDS if how == "its worker died" else 1
    again, claim = take(store, seconds, "w-2")
    assert (again.status, again.attempt) == (TaskStatus.STOPPING, 2)
    assert again.expired_leases == (how == "its worker died")
    assert store.tasks.finish(claim, later(99), TaskStatus.STOPPED) is TaskStatus.STOPPED


@pytest.mark.parametrize("state", ["new", "done", "error", "canceled", "verdict"])
def test_a_stop_that_makes_no_sense_is_refused(store: Store, state: str) -> None:
    """A task that never began, has ended or is being ended raises Conflict and stays as it is."""
    task = add(store)
    if state != "new":
        task, claim = take(store)
        if state == "canceled":
            store.tasks.cancel(task.id, NOW)
        elif state == "verdict":
            store.tasks.record(claim, NOW, promotion=PROMOTION)
        else:
            store.tasks.finish(claim, NOW, TaskStatus(state))
    before = store.tasks.get(task.id)
    with pytest.raises(Conflict, match=f"{task.id} cannot be stopped"):
        store.tasks.stop(task.id, later(1))
    assert store.tasks.get(task.id) == before


def test_every_move_leaves_an_event(store: Store) -> None:
    """A task's history tells who did what, numbered from 1 without gaps; a refused move tells
    nothing, and neither does a write that lost its lease."""
    task = add(store)
    _, dead = take(store, 1, "w-1")
    _, claim = take(store, 100, "w-2")
    note = TaskEvent(TaskEventKind.TRIAL_FINISHED, later(101), "trial 1", {"value": 0.5})
    store.tasks.record(claim, later(101), experiment_id="7", event=note)
    with pytest.raises(LeaseLost):
        store.tasks.record(dead, later(102), event=note)
    store.tasks.give_back(claim, later(103))
    _, claim = take(store, 104, "w-3")
    store.tasks.stop(task.id, later(105))
    store.tasks.stop(task.id, later(106))
    store.tasks.finish(claim, later(107), TaskStatus.DONE)
    with pytest.raises(Conflict):
        store.tasks.cancel(task.id, later(108))
    store.tasks.restart(task.id, later(109), fresh=True)
    store.tasks.cancel(task.id, later(110))
    history = store.tasks.events(task.id)
    assert [numbered.event.kind for numbered in history] == [
        "created", "claimed", "lease_expired", "claimed", "trial_finished", "given_back",
        "claimed", "stop_requested", "stopped", "restarted", "canceled",
    ]  # fmt: skip
    assert [numbered.number for numbered in history] == list(range(1, 12))
    assert history[0].event.at == NOW
    assert history[2].event.data == {"attempt": 1, "worker_id": "w-1"}
    assert history[4].event == note


def test_an_event_that_is_recorded_again_is_there_once(store: Store) -> None:
    """A call that is repeated because its answer was lost adds nothing; a later event does."""
    add(store)
    task, claim = take(store)
    note = TaskEvent(TaskEventKind.TRIAL_FINISHED, later(1), "trial 1", {"value": 0.5, "a": [1]})
    for _ in range(2):
        store.tasks.record(claim, later(1), event=note)
    store.tasks.record(claim, later(2), event=replace(note, at=later(2)))
    noted = [numbered.event for numbered in store.tasks.events(task.id)[2:]]
    assert noted == [note, replace(note, at=later(2))]


def test_a_history_is_read_by_pages(store: Store) -> None:
    """Pages follow each other by number; behind the last there is nothing; an unknown task is not
    found."""
    task = add(store)
    for _ in range(3):
        store.tasks.cancel(task.id, NOW)
        store.tasks.restart(task.id, NOW)
    everything = store.tasks.events(task.id)
    assert len(everything) == 7
    assert store.tasks.events(task.id, 0, 3) == everything[:3]
    assert store.tasks.events(task.id, 3, 3) == everything[3:6]
    assert store.tasks.events(task.id, 6, 3) == everything[6:]
    assert store.tasks.events(task.id, 7, 3) == []
    with pytest.raises(NotFound):
        store.tasks.events("0" * 24)


# -- tasks, as their owner sees them -----------------------------------------------------------


def test_the_oldest_pending_task_is_claimed(store: Store) -> None:
    """Claims follow creation; a claim sets status, attempt, worker and lease."""
    tasks = {seconds: add(store, seconds) for seconds in (5, 1, 9)}
    for seconds in (1, 5, 9):
        claimed = store.tasks.claim("w", later(20), 30)
        assert claimed == replace(
            tasks[seconds],
            status=TaskStatus.PROCESSING,
            updated_at=later(20),
            attempt=1,
            worker_id="w",
            lease_expires_at=later(50),
        )
        assert store.tasks.get(claimed.id) == claimed
    assert store.tasks.claim("w", later(20), 30) is None


def test_tasks_of_skipped_methods_are_left_alone(store: Store) -> None:
    """A claim passes over every task of skip_methods, pending or expired."""
    expired = add(store, 0, "skipped")
    assert take(store)[0].id == expired.id
    pending, other = add(store, 1, "skipped too"), add(store, 2, "m")
    skip = frozenset({"skipped", "skipped too"})
    claimed = store.tasks.claim("v", later(1000), LEASE_SECONDS, skip)
    assert claimed is not None
    assert claimed.id == other.id
    assert store.tasks.claim("v", later(1000), LEASE_SECONDS, skip) is None
    assert store.tasks.claim("v", later(1000), LEASE_SECONDS, skip, 0) is None
    assert store.tasks.get(pending.id) == pending
    assert store.tasks.get(expired.id).status == TaskStatus.PROCESSING


def test_an_expired_lease_is_claimed_again(store: Store) -> None:
    """Once the lease is over, not before, the task is anyone's, one attempt and one death on."""
    add(store)
    first, _ = take(store, 0, "w-1")
    assert store.tasks.claim("w-2", later(LEASE_SECONDS - 0.001), LEASE_SECONDS) is None
    second, _ = take(store, LEASE_SECONDS, "w-2")
    assert (second.id, second.attempt, second.expired_leases) == (first.id, 2, 1)
    assert second.worker_id == "w-2"
    assert second.lease_expires_at == later(2 * LEASE_SECONDS)


def test_a_lease_that_ends_too_late_holds_nothing(store: Store) -> None:
    """One that a clock a day ahead wrote blocks neither the next claim nor a restart; the longest
    that is allowed does."""
    add(store)
    ahead = store.tasks.claim("w-1", later(24 * 3600), LEASE_SECONDS)
    assert ahead is not None
    task = store.tasks.claim("w-2", NOW, MAX_LEASE_SECONDS)
    assert task is not None
    assert (task.attempt, task.worker_id) == (2, "w-2")
    assert store.tasks.claim("w-3", NOW, LEASE_SECONDS) is None
    store.tasks.cancel(task.id, NOW)
    with pytest.raises(Conflict, match="w-2"):
        store.tasks.restart(task.id, NOW)
    assert store.tasks.restart(task.id, later(-61)).status is TaskStatus.PENDING


def test_an_expired_task_is_older_than_a_newer_pending_one(store: Store) -> None:
    """Pending and expired tasks stand in one queue, by creation."""
    old = add(store, 0)
    take(store)
    new = add(store, 1)
    assert take(store, LEASE_SECONDS)[0].id == old.id
    assert take(store, LEASE_SECONDS)[0].id == new.id


def test_a_task_whose_workers_keep_dying_becomes_an_error(store: Store) -> None:
    """After max_expired_leases deaths the next one ends the task, and the next is looked at."""
    deadly, other = add(store, 0), add(store, 1)
    for attempt in range(3):
        seconds = attempt * LEASE_SECONDS
        task = store.tasks.claim("w", later(seconds), LEASE_SECONDS, max_expired_leases=2)
        assert task is not None
        assert (task.id, task.attempt, task.expired_leases) == (deadly.id, attempt + 1, attempt)
    now = later(3 * LEASE_SECONDS)
    task = store.tasks.claim("w", now, LEASE_SECONDS, max_expired_leases=2)
    assert task is not None
    assert task.id == other.id
    failed = store.tasks.get(deadly.id)
    assert failed.status == TaskStatus.ERROR
    assert failed.error == "its worker died 3 times"
    assert (failed.expired_leases, failed.attempt, failed.updated_at) == (3, 3, now)
    assert (failed.worker_id, failed.lease_expires_at) == (None, None)


def test_a_released_task_counts_no_death(store: Store) -> None:
    """A task given back is pending without worker and lease, however often that happens."""
    task = add(store)
    for attempt in range(1, 6):
        _, claim = take(store)
        store.tasks.give_back(claim, later(1))
        assert store.tasks.get(task.id) == replace(task, attempt=attempt, updated_at=later(1))


def test_a_renewed_lease_lasts_longer(store: Store) -> None:
    """A renewal counts from now and replaces the progress if one is given, else keeps it."""
    add(store)
    task, claim = take(store)
    store.tasks.renew(claim, later(30), LEASE_SECONDS, PROGRESS)
    assert store.tasks.claim("w-2", later(80), LEASE_SECONDS) is None
    renewed = store.tasks.get(task.id)
    assert renewed == replace(
        task, updated_at=later(30), lease_expires_at=later(90), progress=PROGRESS
    )
    store.tasks.renew(claim, later(40), LEASE_SECONDS)
    assert store.tasks.get(task.id).progress == PROGRESS
    store.tasks.renew(claim, later(50), LEASE_SECONDS, TaskProgress("verify"))
    assert store.tasks.get(task.id).progress == TaskProgress("verify")


def test_an_expired_lease_nobody_took_is_still_the_owners(store: Store) -> None:
    """Ownership ends with another claim, not with the clock."""
    add(store)
    task, claim = take(store)
    store.tasks.renew(claim, later(1000), LEASE_SECONDS)
    assert store.tasks.get(task.id).attempt == 1
    assert store.tasks.claim("w-2", later(1000), LEASE_SECONDS) is None


def test_record_sets_the_given_fields(store: Store) -> None:
    """Each field given is set; None leaves a field alone."""
    add(store)
    task, claim = take(store)
    store.tasks.record(claim, later(1), batch_id="b", experiment_id="7")
    store.tasks.record(claim, later(2), best_model=MODEL)
    store.tasks.record(claim, later(3), promotion=PROMOTION)
    store.tasks.record(claim, later(4))
    assert store.tasks.get(task.id) == replace(
        task,
        updated_at=later(4),
        batch_id="b",
        experiment_id="7",
        best_model=MODEL,
        promotion=PROMOTION,
    )


@pytest.mark.parametrize(
    ("status", "error"), [(TaskStatus.DONE, None), (TaskStatus.ERROR, "no data")]
)
def test_a_finished_task_has_no_owner(store: Store, status: TaskStatus, error: str | None) -> None:
    """Finishing sets status and error, gives up the lease and ends the claims."""
    add(store)
    task, claim = take(store)
    store.tasks.renew(claim, NOW, LEASE_SECONDS, PROGRESS)
    store.tasks.finish(claim, later(5), status, error)
    finished = store.tasks.get(task.id)
    assert finished == replace(
        task,
        status=status,
        error=error,
        updated_at=later(5),
        worker_id=None,
        lease_expires_at=None,
        progress=PROGRESS,
    )
    assert store.tasks.claim("w", later(1000), LEASE_SECONDS) is None


@pytest.mark.parametrize("status", [TaskStatus.PENDING, TaskStatus.PROCESSING, TaskStatus.CANCELED])
def test_a_task_ends_as_done_or_error_only(store: Store, status: TaskStatus) -> None:
    """Finishing with another status is a programming error and changes nothing."""
    add(store)
    task, claim = take(store)
    with pytest.raises(ValueError, match=status):
        store.tasks.finish(claim, NOW, status)
    assert store.tasks.get(task.id) == task


@pytest.mark.parametrize("write", OWNER_WRITES)
@pytest.mark.parametrize("what", ["claimed again", "given back", "done", "restarted", "unknown"])
def test_a_stale_owner_changes_nothing(store: Store, write: str, what: str) -> None:
    """Whatever took the task from its owner, the owner's every write raises LeaseLost."""
    add(store)
    task, claim = take(store)
    if what == "claimed again":
        take(store, LEASE_SECONDS, "w")
    elif what == "given back":
        store.tasks.give_back(claim, NOW)
    elif what == "done":
        store.tasks.finish(claim, NOW, TaskStatus.DONE)
    elif what == "restarted":
        store.tasks.cancel(task.id, NOW)
        store.tasks.restart(task.id, later(LEASE_SECONDS))
    else:
        claim = replace(claim, task_id="no id")
    before = store.tasks.get(task.id)
    with pytest.raises(LeaseLost, match=claim.task_id):
        OWNER_WRITES[write](store, claim)
    assert store.tasks.get(task.id) == before


def test_letting_go_of_a_canceled_task_clears_its_owner(store: Store) -> None:
    """release_canceled clears worker, lease and model for a canceled task's last owner only."""
    add(store)
    _, stale = take(store, 0, "w-1")
    task, claim = take(store, LEASE_SECONDS, "w-2")
    store.tasks.record(claim, later(LEASE_SECONDS), best_model=MODEL)
    canceled = store.tasks.cancel(task.id, NOW)
    store.tasks.release_canceled(stale)
    store.tasks.release_canceled(replace(claim, task_id="no id"))
    assert store.tasks.get(task.id) == canceled
    store.tasks.release_canceled(claim)
    assert store.tasks.get(task.id) == replace(
        canceled, worker_id=None, lease_expires_at=None, best_model=None
    )
    store.tasks.release_canceled(claim)


def test_letting_go_of_a_task_that_is_not_canceled_does_nothing(store: Store) -> None:
    """A claim on a processing task is not given up by release_canceled."""
    add(store)
    task, claim = take(store)
    store.tasks.release_canceled(claim)
    assert store.tasks.get(task.id) == task


# -- workers -----------------------------------------------------------------------------------


def test_workers_are_listed_while_they_are_seen(store: Store) -> None:
    """A record is inserted or replaced, and listed if it was seen after the time asked for."""
    store.workers.record(WorkerRecord("w-2", ("a",), later(0)))
    store.workers.record(WorkerRecord("w-1", (), later(5)))
    again = WorkerRecord("w-2", ("a", "b"), later(9), {"c.py": "why"}, {"a": "no model"}, -7.5)
    store.workers.record(again)
    assert store.workers.seen(later(0)) == [WorkerRecord("w-1", (), later(5)), again]
    assert store.workers.seen(later(5)) == [again]
    assert store.workers.seen(later(9)) == []


def test_a_worker_is_told_the_time_by_the_databases_clock(store: Store) -> None:
    """Whatever its own clock says."""
    for hours in (0, 1):
        told = store.workers.record(WorkerRecord("w", (), later(hours * 3600)))
        assert abs(datetime.now(UTC) - told) < timedelta(seconds=30)


def test_a_worker_that_ends_is_forgotten(store: Store) -> None:
    """Removing a worker leaves the others; an unknown id is fine."""
    workers = [WorkerRecord(f"w-{number}", ("a",), NOW) for number in (1, 2)]
    for worker in workers:
        store.workers.record(worker)
    store.workers.remove("w-1")
    store.workers.remove("w-1")
    assert store.workers.seen(later(-1)) == workers[1:]


# -- life cycle and failures -------------------------------------------------------------------


@pytest.mark.skipif("mongodb" in BACKENDS, reason=f"{MONGO_VARIABLE} is set")
def test_a_mongodb_server_holds_the_contract_too() -> None:
    """Says in the report that no real MongoDB took part; with one named, every test runs on it."""
    pytest.skip(f"no MongoDB server: name one in {MONGO_VARIABLE}")


def test_an_older_file_gets_the_new_columns(tmp_path: Path) -> None:
    """A database without columns that came later is brought up to date, its tasks kept."""
    url = f"sqlite:///{tmp_path / 'store.db'}"
    with closing(SqliteStore(url)) as store:
        task = add(store)
    with closing(sqlite3.connect(tmp_path / "store.db")) as database:
        database.execute("ALTER TABLE tasks DROP COLUMN fresh_starts")
        database.execute("UPDATE tasks SET budget = json_remove(budget, '$.max_minutes_per_trial')")
        database.commit()
    with closing(SqliteStore(url)) as store:
        assert store.tasks.get(task.id) == task
        store.tasks.cancel(task.id, NOW)
        assert store.tasks.restart(task.id, NOW, fresh=True).fresh_starts == 1


def test_everything_is_there_after_reopening(backend: Backend) -> None:
    """A store opened anew on the same database finds what the former one was told."""
    first = backend.open()
    post(first, "s-1", "s-2")
    first.mark_irrelevant("s-2")
    released = first.release_batch("r", NOW)
    post(first, "s-3")
    add(first)
    task, claim = take(first)
    first.record(claim, NOW, best_model=MODEL)
    first.record_worker(WorkerRecord("w", ("m",), NOW))
    members, task = read_all(first, released.batch_id), first.get_task(task.id)
    first.close()
    second = backend.open()
    assert read_all(second, released.batch_id) == members
    assert second.release_batch("r", NOW) == released
    assert second.get_session("s-3").number == 1
    assert second.get_task(task.id) == task
    assert second.list_workers(later(-1)) == [WorkerRecord("w", ("m",), NOW)]
    second.finish_task(claim, NOW, TaskStatus.DONE)
    second.close()


def test_a_database_that_does_not_answer_is_unavailable(backend: Backend, tmp_path: Path) -> None:
    """Opening such a database raises StoreUnavailable."""
    with pytest.raises(StoreUnavailable):
        open_store(backend.unreachable_url(tmp_path))


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", "mongodb://host:notaport/db", "redis://host"],
)
def test_a_url_that_cannot_work_is_a_configuration_error(url: str) -> None:
    """A URL of another kind, without a file or malformed raises ConfigurationError."""
    with pytest.raises(ConfigurationError, match="ES_STORE_URL"):
        open_store(url)


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    """An SQLite path below a file raises ConfigurationError."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be created"):
        open_store(f"sqlite:///{tmp_path / 'file' / 'folder' / 'store.db'}")


Snapshot = tuple[list[Any], ...]


def snapshot(store: Store) -> Snapshot:
    """Return what the store holds, but for the ids that it chose itself."""
    sessions, batches = [], []
    for session_id in ("old-1", "old-2", "new-1", "new-2", "new-3"):
        try:
            stored = store.clickstream.get(session_id)
        except NotFound:
            continue
        batch = replace(store.clickstream.get_batch(stored.batch_id), batch_id="")
        sessions.append((stored.session, stored.number))
        batches.append(batch)
        assert_gapless(store, [stored.batch_id])
    tasks = [replace(task, id="") for task in store.tasks.page()]
    return sessions, batches, tasks, store.workers.seen(later(-1))


def prepare(store: Store) -> None:
    post(store, "old-1", "old-2")


REPEATABLE: dict[str, Callable[[Store], Any]] = {
    "register_sessions": lambda store: store.clickstream.register(
        [make_session(id_, ["e-1", "e-2"]) for id_ in ("new-1", "old-1", "new-2", "new-3")], NOW
    ),
    "append_events": lambda store: store.clickstream.append_events(
        "old-1", [click("e-1"), click("e-2")]
    ),
    "mark_irrelevant": lambda store: store.clickstream.mark_irrelevant("old-1"),
    "release_batch": lambda store: store.clickstream.release("r", NOW),
    "add_task": lambda store: store.tasks.add(TaskRequest("m", idempotency_key="key"), NOW),
    "record_worker": lambda store: store.workers.record(WorkerRecord("w", ("m",), NOW)),
}


def fail_once(
    backend: Backend, nth: int, moment: Moment, call: Callable[[Store], Any]
) -> tuple[Store, bool]:
    """Return a store in which the nth write of the call failed, and whether there are so many."""
    store = backend.open()
    prepare(store)
    with backend.failing(nth, moment) as failure:
        try:
            call(store)
        except StoreUnavailable:
            assert failure.happened
        else:
            assert not failure.happened
    return store, failure.happened


@pytest.mark.slow
@pytest.mark.parametrize("operation", REPEATABLE)
@pytest.mark.parametrize("moment", ["before", "halfway", "after"])
def test_a_call_that_failed_is_completed_by_repeating_it(
    backend: Backend, operation: str, moment: Moment
) -> None:
    """Whichever write of a call fails, its repetition leaves what one call would have left."""
    call = REPEATABLE[operation]
    store = backend.open()
    prepare(store)
    call(store)
    expected = snapshot(store)
    store.close()
    has_failed, nth = True, 0
    while has_failed:
        nth += 1
        broken = backend.another()
        store, has_failed = fail_once(broken, nth, moment, call)
        call(store)
        assert snapshot(store) == expected
        store.close()
        broken.drop()
    assert nth > 1


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_release_broken_off_is_completed_by_anyone(
    backend: Backend, nth: int, moment: Moment
) -> None:
    """After a crash in mid-release sessions go on, and the release finds its one batch."""
    store, _ = fail_once(backend, nth, moment, lambda store: store.clickstream.release("r", NOW))
    post(store, "late", "old-2")
    old, late = store.clickstream.get("old-1"), store.clickstream.get("late")
    assert (late.number == 1) == (late.batch_id != old.batch_id)
    released = store.clickstream.release("r", later(5))
    assert released.batch_id == old.batch_id
    assert (
        released
        == store.clickstream.get_batch(old.batch_id)
        == store.clickstream.release("r", later(9))
    )
    names = assert_gapless(store, sorted({old.batch_id, late.batch_id}))
    assert sorted(names) == ["late", "old-1", "old-2"]
    store.close()


# -- another writer in between -----------------------------------------------------------------


NAMES = ("old-1", "old-2", "new-1", "new-2", "new-3", "mid")
Answers = dict[str, list[Any]]  # by the name of the session or the release


def do_post(store: Store, answers: Answers, *names: str) -> None:
    posted = register(store, [make_session(name) for name in names])
    for name, answer in zip(names, posted, strict=True):
        answers.setdefault(name, []).append(answer.is_new)


def do_release(store: Store, answers: Answers, release_id: str) -> None:
    with suppress(NotFound):
        batch = store.clickstream.release(release_id, NOW)
        answers.setdefault(release_id, []).append(batch)


def do_count(store: Store, answers: Answers) -> None:
    batch = store.clickstream.collecting_batch()
    if batch is not None:
        assert batch.status == BatchStatus.COLLECTING
        assert 0 < batch.session_count <= len(read_all(store, batch.batch_id))


CALLS: dict[str, Callable[[Store, Answers], None]] = {
    "post": lambda store, answers: do_post(store, answers, "new-1", "new-2", "new-3"),
    "first post": lambda store, answers: do_post(store, answers, "new-1", "new-2", "new-3"),
    "release": lambda store, answers: do_release(store, answers, "r"),
    "count": do_count,
}
MEANWHILE: dict[str, list[Callable[[Store, Answers], None]]] = {
    "a post": [lambda store, answers: do_post(store, answers, "mid")],
    "the same post": [lambda store, answers: do_post(store, answers, "new-2", "new-1")],
    "the same release": [lambda store, answers: do_release(store, answers, "r")],
    "a release": [lambda store, answers: do_release(store, answers, "other")],
}
MEANWHILE["one of the posts and a release"] = [
    lambda store, answers: do_post(store, answers, "new-2"),
    *MEANWHILE["a release"],
]
MEANWHILE["a post and a release"] = MEANWHILE["a post"] + MEANWHILE["a release"]
MEANWHILE["a release and a post"] = MEANWHILE["a release"] + MEANWHILE["a post"]
BROKEN_OFF = "a release broken off"
MEANWHILE[BROKEN_OFF] = MEANWHILE["a release"]


def assert_batches_hold_together(store: Store, answers: Answers) -> None:
    """Each session is new once and in one gapless batch, each release has its own batch for good,
    and at most one batch is collecting."""
    batch_ids = set()
    for name in NAMES:
        if name in answers:
            assert answers[name].count(True) == 1
            batch_ids.add(store.clickstream.get(name).batch_id)
    for release_id in answers.keys() - set(NAMES):
        batch = store.clickstream.release(release_id, later(9))
        assert all(answer == batch for answer in answers[release_id])
        assert batch.release_id == release_id
    names = assert_gapless(store, sorted(batch_ids))
    assert sorted(names) == sorted(answers.keys() & set(NAMES))
    statuses = [store.clickstream.get_batch(batch_id).status for batch_id in batch_ids]
    assert statuses.count(BatchStatus.COLLECTING) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_batches_hold_together_whoever_comes_between(
    backend: Backend, call: str, meanwhile: str
) -> None:
    """Before whichever step of a call another one comes, no session, number or batch is lost."""
    has_happened, nth = True, 0
    while has_happened:
        nth += 1
        fresh = backend.another()
        store, other = fresh.open(), fresh.open()
        answers: Answers = {}
        if call != "first post":
            do_post(store, answers, "old-1", "old-2")

        def interrupt(
            fresh: Backend = fresh, other: Store = other, answers: Answers = answers
        ) -> None:
            broken_write = 2 if meanwhile == BROKEN_OFF else 0
            with suppress(StoreUnavailable), fresh.failing(broken_write, "before"):
                for action in MEANWHILE[meanwhile]:
                    action(other, answers)

        with fresh.interrupted(nth, interrupt) as interruption:
            CALLS[call](store, answers)
        assert_batches_hold_together(store, answers)
        has_happened = interruption.happened
        store.close()
        other.close()
        fresh.drop()


TAKEN: dict[str, Callable[[Store, Claim], Any]] = {
    "claimed": lambda store, claim: take(store, LEASE_SECONDS, "other"),
    "renewed": lambda store, claim: store.tasks.renew(claim, later(LEASE_SECONDS), LEASE_SECONDS),
    "canceled": lambda store, claim: store.tasks.cancel(claim.task_id, NOW),
    "finished": lambda store, claim: store.tasks.finish(claim, NOW, TaskStatus.DONE),
    "failed": lambda store, claim: store.tasks.finish(claim, NOW, TaskStatus.ERROR),
}


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("taken", TAKEN)
def test_an_expired_lease_goes_to_whoever_writes_first(
    backend: Backend, store: Store, taken: str, nth: int
) -> None:
    """A claimant that saw an expired lease takes nothing that was moved before it could write."""
    add(store)
    task, claim = take(store)
    states: list[FineTuningTask] = []

    def interrupt() -> None:
        TAKEN[taken](store, claim)
        states.append(store.tasks.get(task.id))

    with backend.interrupted(nth, interrupt) as interruption:
        claimed = store.tasks.claim("w", later(LEASE_SECONDS), LEASE_SECONDS)
    assert (claimed is None) == interruption.happened
    assert store.tasks.get(task.id) == (claimed or states[0])


@pytest.mark.parametrize("nth", [1, 2])
def test_a_pending_task_goes_to_whoever_writes_first(
    backend: Backend, store: Store, nth: int
) -> None:
    """A claimant that saw a pending task takes the next one when another was quicker."""
    first, second = add(store, 0), add(store, 1)
    with backend.interrupted(nth, lambda: take(store, 2, "other")) as interruption:
        take(store, 2, "w")
    owners = [store.tasks.get(task.id).worker_id for task in (first, second)]
    assert owners == (["other", "w"] if interruption.happened else ["w", None])


@pytest.mark.parametrize("nth", [1, 2])
def test_a_cancel_meets_a_finish(backend: Backend, store: Store, nth: int) -> None:
    """A task that is finished before the cancel can write stays finished."""
    add(store)
    task, claim = take(store)

    def interrupt() -> None:
        store.tasks.finish(claim, NOW, TaskStatus.DONE)

    with backend.interrupted(nth, interrupt) as interruption, suppress(Conflict):
        store.tasks.cancel(task.id, NOW)
    expected = TaskStatus.DONE if interruption.happened else TaskStatus.CANCELED
    assert store.tasks.get(task.id).status == expected


@pytest.mark.parametrize("nth", [1, 2])
def test_a_restart_meets_another_and_its_claim(backend: Backend, store: Store, nth: int) -> None:
    """A task that is restarted and claimed before a restart can write stays claimed."""
    task = add(store)
    store.tasks.cancel(task.id, NOW)

    def interrupt() -> None:
        store.tasks.restart(task.id, NOW)
        take(store)

    with backend.interrupted(nth, interrupt) as interruption, suppress(Conflict):
        store.tasks.restart(task.id, NOW)
    expected = TaskStatus.PROCESSING if interruption.happened else TaskStatus.PENDING
    assert store.tasks.get(task.id).status == expected


# -- several threads ---------------------------------------------------------------------------


def test_threads_that_post_one_key_get_one_task(shared: Backend) -> None:
    """Of 16 concurrent posts of one idempotency_key one adds the task, all are given it."""
    store = shared.open()
    request = TaskRequest("m", metadata={"a": 1}, idempotency_key="key")
    added = in_threads(16, lambda _: store.tasks.add(request, NOW))
    assert [is_new for _, is_new in added].count(True) == 1
    assert len({task.id for task, _ in added}) == 1
    assert len(store.tasks.page()) == 1
    store.close()


def test_threads_that_post_the_same_session_add_it_once(shared: Backend) -> None:
    """Of concurrent posts of one session one is new, and each event is counted by one of them."""
    store = shared.open()

    def post_both(number: int) -> list[Registered]:
        posted = [make_session("same", ["e", f"e-{number}"]), make_session(f"own-{number}")]
        return register(store, posted)

    answers = in_threads(8, post_both)
    assert [same.is_new for same, _ in answers].count(True) == 1
    assert all(own.is_new for _, own in answers)
    assert sum(same.new_events for same, _ in answers) == 9
    assert sorted(event_ids(store, "same")) == ["e", *(f"e-{number}" for number in range(8))]
    assert len(assert_gapless(store, [store.clickstream.get("same").batch_id])) == 9
    store.close()


def test_threads_that_append_one_event_add_it_once(shared: Backend) -> None:
    """Each event appended by several threads at once is new to exactly one of them."""
    store = shared.open()
    post(store, "s")
    events = [click(f"e-{number}") for number in range(5)]
    answers = in_threads(8, lambda _: store.clickstream.append_events("s", events))
    assert sum(answer.new_events for answer in answers) == 5
    assert event_ids(store, "s") == [event.event_id for event in events]
    store.close()


def test_threads_that_ask_for_one_release_get_one_batch(shared: Backend) -> None:
    """Concurrent calls with one release_id answer alike, also while sessions come in."""
    store = shared.open()
    post(store, "s")

    def release_or_post(number: int) -> str | None:
        if number % 2:
            post(store, f"s-{number}")
            return None
        return store.clickstream.release("r", NOW).batch_id

    released = {batch_id for batch_id in in_threads(8, release_or_post) if batch_id is not None}
    assert released == {store.clickstream.get("s").batch_id}
    batch_ids = {
        store.clickstream.get(f"s-{number}").batch_id for number in (1, 3, 5, 7)
    } | released
    assert len(assert_gapless(store, sorted(batch_ids))) == 5
    store.close()


def test_threads_that_cancel_and_finish_agree_on_one_end(shared: Backend) -> None:
    """Of a cancel and a finish at once one succeeds and the other says that it did not."""
    store = shared.open()
    for _ in range(5):
        add(store)
        task, claim = take(store)

        def end(number: int, task: FineTuningTask = task, claim: Claim = claim) -> bool:
            try:
                if number:
                    store.tasks.cancel(task.id, NOW)
                else:
                    store.tasks.finish(claim, NOW, TaskStatus.DONE)
            except (Conflict, LeaseLost):
                return False
            return True

        finished, canceled = in_threads(2, end)
        assert finished != canceled
        ended = TaskStatus.DONE if finished else TaskStatus.CANCELED
        assert store.tasks.get(task.id).status == ended
    store.close()


# -- several processes -------------------------------------------------------------------------


def results(futures: Sequence[Future[Result]]) -> list[Result]:
    return [future.result(store_processes.START_SECONDS) for future in futures]


def test_processes_may_open_a_new_database_at_once(
    shared: Backend, processes: ProcessPoolExecutor
) -> None:
    """Opening creates what is missing, whoever else is creating it."""
    opened = [processes.submit(store_processes.open_first, shared.url) for _ in range(3)]
    assert results(opened) == [True] * 3


def test_processes_claim_each_task_once(shared: Backend, processes: ProcessPoolExecutor) -> None:
    """Of concurrent claimants exactly one gets each task."""
    store = shared.open()
    added = {add(store, number).id for number in range(40)}
    claimed = results(
        [processes.submit(store_processes.claim_all, shared.url, f"w-{n}") for n in range(3)]
    )
    assert sorted(task_id for ids in claimed for task_id in ids) == sorted(added)
    for number, ids in enumerate(claimed):
        for task_id in ids:
            task = store.tasks.get(task_id)
            assert (task.worker_id, task.attempt) == (f"w-{number}", 1)
    store.close()


def test_processes_that_post_the_same_keys_get_the_same_tasks(
    shared: Backend, processes: ProcessPoolExecutor
) -> None:
    """Each idempotency_key makes one task, whichever process comes first."""
    keys = [f"key-{number}" for number in range(15)]
    added = results(
        [processes.submit(store_processes.add_tasks, shared.url, keys) for _ in range(3)]
    )
    for same in zip(*added, strict=True):
        assert len({task_id for task_id, _ in same}) == 1
        assert [is_new for _, is_new in same].count(True) == 1
    store = shared.open()
    assert len(store.tasks.page()) == len(keys)
    store.close()


def test_processes_post_while_others_release(
    shared: Backend, processes: ProcessPoolExecutor
) -> None:
    """Each session is new once and in one batch, gapless, and no batch grows after its release."""
    common = [f"common-{number}" for number in range(24)]
    posts = {
        letter: [name for other in common for name in (f"{letter}-{other}", other)]
        for letter in "abc"
    }
    answers = results(
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
    batch_id = store.clickstream.get(answered[0]).batch_id
    stored = assert_gapless(store, [batch_id])
    assert stored[: len(answered)] == answered
    post(store, *answered, "next")
    assert store.clickstream.get("next").number == len(stored) + 1
    assert store.clickstream.release("r", NOW).session_count == len(stored) + 1
    store.close()
