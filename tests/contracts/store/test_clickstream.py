"""The contract of every store: sessions, their events, and the batches they are in."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from threading import Barrier
from typing import Any, TypeVar

import pytest

from embedding_studio.clickstream import (
    BatchCount,
    BatchStatus,
    EarlyFeedback,
    NumberedSession,
    SearchResult,
    Session,
    SessionEvent,
)
from embedding_studio.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    StoreUnavailable,
)
from embedding_studio.store import Store
from embedding_studio.store.clickstream import Registered
from embedding_studio.store.usage import PAGE_BYTES
from embedding_studio.tasks import (
    FineTuningTask,
    TaskRequest,
)
from tests.contracts.store_backends import Backend, Moment
from tests.contracts.store_processes import (
    NOW,
    assert_gapless,
    batch_of,
    make_session,
    number_of,
    read_all,
)

Result = TypeVar("Result")
ODD_JSON = {
    "dotted.key": 1,
    "$dollar": {"$nested.key": [1, 2.5, None, True, {"": "empty key"}]},
    "ключ": "значение ☕ \U0001f600",
    "large": 2**62,
}
NO_IDS = ["", "no id", "0" * 23, "0" * 24, "ж" * 12, "s:1"]


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def click(event_id: str) -> SessionEvent:
    return SessionEvent(event_id, "item-1", NOW)


def post(store: Store, *session_ids: str) -> None:
    store.clickstream.register([make_session(session_id) for session_id in session_ids], NOW)


def register(store: Store, sessions: Sequence[Session]) -> list[Registered]:
    """Post sessions, each of which must be kept."""
    answers = store.clickstream.register(sessions, NOW)
    kept = [answer for answer in answers if isinstance(answer, Registered)]
    assert len(kept) == len(answers), answers
    return kept


def registered(store: Store, sessions: Sequence[Session]) -> list[tuple[bool, int]]:
    """Post sessions; return of each whether it was new, and how many of its events were."""
    return [(answer.is_new, answer.new_events) for answer in register(store, sessions)]


def add(store: Store, seconds: float = 0, method: str = "m") -> FineTuningTask:
    return store.tasks.add(TaskRequest(method), later(seconds))[0]


def event_ids(store: Store, session_id: str) -> list[str]:
    return [event.event_id for event in store.clickstream.get(session_id).events]


def ids_of(sessions: Sequence[NumberedSession]) -> list[str]:
    return [numbered.session.session_id for numbered in sessions]


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
    assert store.clickstream.get("s-1") == posted
    batch_id = batch_of(store, "s-1")
    assert read_all(store, batch_id) == [NumberedSession(posted, batch_id, 1)]


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
        is_kept = store.clickstream.get("s") == session
        assert is_kept


@pytest.mark.parametrize("session_id", ["half a pair \ud800", "a\0b", "\0"])
def test_an_id_that_cannot_be_stored_is_refused_or_kept(store: Store, session_id: str) -> None:
    """An odd id is answered by InvalidInput, or is found again, also when it is posted again."""
    session = make_session(session_id)
    answers = [store.clickstream.register([session], NOW)[0] for _ in range(2)]
    if any(isinstance(answer, InvalidInput) for answer in answers):
        assert store.clickstream.collecting_batch() is None
    else:
        assert store.clickstream.get(session_id) == session
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
                assert len(after.events) == len(before.events) + len(more)
        elif isinstance(answer, InvalidInput):
            assert session.session_id not in ("first", "middle", "last")
            assert repr(session.session_id) in str(answer)
            assert session.session_id == "twice" or session.session_id not in names
        else:
            assert answer.stored.search_query == session.search_query
            assert session.session_id in names
    assert "twice" in names


def test_places_beyond_64_bits_are_refused_or_empty(store: Store) -> None:
    """Asking for a page after 2**70 raises InvalidInput or gives an empty page."""
    post(store, "s")
    batch_id = store.clickstream.append_events("s", []).batch_id
    with suppress(InvalidInput):
        assert store.clickstream.read(batch_id, 2**70, 10) == []


def test_a_session_grown_too_large_is_refused(store: Store) -> None:
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
    assert kept == 2


def test_times_come_back_aware_and_to_the_millisecond(store: Store) -> None:
    """A time posted with any offset comes back aware, at most a millisecond off."""
    moment = datetime(2024, 5, 1, 14, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    session = replace(
        make_session("s"), created_at=moment, events=(replace(click("e"), created_at=moment),)
    )
    store.clickstream.register([session], moment)
    stored = store.clickstream.get("s")
    times = [
        stored.created_at,
        stored.events[0].created_at,
        *(batch.created_at for batch in [store.clickstream.collecting_batch()] if batch),
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
    assert [number_of(store, id_) for id_ in ("known", "new-1", "new-2")] == [1, 2, 3]


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
    assert {event.object_id for event in store.clickstream.get("s").events} == {"item-1"}


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
    batch_id = store.clickstream.append_events("s-0", []).batch_id
    assert ids_of(read_all(store, batch_id)) == [f"s-{number}" for number in range(5)]
    assert len(assert_gapless(store, [batch_id])) == 5


def test_a_large_post_is_numbered_in_its_order(store: Store) -> None:
    """A thousand sessions of one call get the numbers 1 to 1000 in the order given."""
    names = [f"s-{number}" for number in range(1000)]
    post(store, *names)
    batch_id = store.clickstream.append_events("s-0", []).batch_id
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
    assert store.clickstream.get("s").is_irrelevant


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
    assert store.clickstream.get("s").is_irrelevant
    assert not store.clickstream.get("t").is_irrelevant
    assert store.clickstream.count_early(NOW) == 1
    assert registered(store, [make_session("s")]) == [(False, 0)]
    batch_id = store.clickstream.append_events("s", []).batch_id
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
    assert store.clickstream.get("s").is_irrelevant
    assert store.clickstream.count_early(NOW) == 0


def test_what_waits_is_of_one_project(store: Store) -> None:
    """Feedback of one project neither joins another's session of that id nor takes its room."""
    other = store.in_project("other")
    assert keep(store, "s", "e", most=1)
    assert other.clickstream.count_early(NOW) == 0
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
    with closing(backend.open()) as first, closing(backend.open()) as second:
        while has_happened:
            nth += 1
            store, other = (one.in_project(f"p-{nth}") for one in (first, second))
            with backend.interrupted(nth, partial(meanwhile, other)) as interruption:
                call(store)
            has_happened = interruption.happened
            if not has_happened:
                meanwhile(other)
            assert sorted(event_ids(store, "s")) == ["e-1", "e-2"]
            assert store.clickstream.get("s").is_irrelevant
            assert store.clickstream.count_early(NOW) == 0
    assert nth > 1


@pytest.mark.parametrize("moment", ["before", "halfway", "after"])
def test_feedback_broken_off_is_completed_by_posting_again(
    backend: Backend, moment: Moment
) -> None:
    """Whichever write of one or the other fails, both posted again leave each event there once."""
    has_failed, nth = True, 0
    with closing(backend.open()) as opened:
        while has_failed:
            nth += 1
            store = opened.in_project(f"p-{nth}")
            with suppress(StoreUnavailable), backend.failing(nth, moment) as failure:
                keep_and_post(store, "e-1", "e-2")
            has_failed = failure.happened
            keep_and_post(store, "e-1", "e-2")
            assert sorted(event_ids(store, "s")) == ["e-1", "e-2"]
            assert store.clickstream.get("s").is_irrelevant
            assert store.clickstream.count_early(NOW) == 0
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
    assert {store.clickstream.append_events(f"s-{n}", []).batch_id for n in (1, 2, 3)} == {
        batch.batch_id
    }


def test_a_release_closes_the_batch(store: Store) -> None:
    """A released batch says when, by which release and with how many sessions."""
    post(store, "s-1", "s-2")
    released = store.clickstream.release("r", later(9))
    assert released.status == BatchStatus.RELEASED
    assert (released.created_at, released.released_at) == (NOW, later(9))
    assert (released.release_id, released.session_count) == ("r", 2)
    assert store.clickstream.get_batch(released.batch_id) == released
    assert released.batch_id == batch_of(store, "s-1")


def test_nothing_joins_a_released_batch(store: Store) -> None:
    """Sessions after a release go to a new batch, numbered from 1; known ones stay in theirs."""
    post(store, "s-1", "s-2")
    released = store.clickstream.release("r", NOW)
    members = read_all(store, released.batch_id)
    post(store, "s-2", "s-3")
    store.clickstream.append_events("s-1", [click("e")])
    assert ids_of(read_all(store, released.batch_id)) == ids_of(members)
    assert store.clickstream.get_batch(released.batch_id) == released
    third = next(iter(read_all(store, store.clickstream.append_events("s-3", []).batch_id)))
    assert third.batch_id != released.batch_id
    assert third.number == 1
    assert store.clickstream.append_events("s-2", []).batch_id == released.batch_id


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
        assert replace(answer.stored, events=()) == replace(first, events=())
    for answer in (new, again, later_events):
        shown = answer.stored.search_results
        assert [result.object_id for result in shown] == ["item-1", "item-2"]
        assert answer.batch_id == store.clickstream.append_events("s", []).batch_id
        assert not answer.is_late
    assert store.clickstream.get("s") == first


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
    batch_id = store.clickstream.append_events("s-0", []).batch_id
    assert ids_of(store.clickstream.read(batch_id, 0, 10)) == ["s-0"]
    assert ids_of(store.clickstream.read(batch_id, 1, 10)) == ["s-1"]
    assert ids_of(store.clickstream.read(batch_id, 2, 10)) == ["s-2", "s-3", "s-4"]


def test_read_batch_carries_the_first_events(backend: Backend, store: Store) -> None:
    """events_limit cuts each session's events after so many; None gives all."""
    store.clickstream.register([make_session("s", ["c", "a", "b"]), make_session("t", ["d"])], NOW)
    batch_id = store.clickstream.append_events("s", []).batch_id

    def events_read(limit: int | None) -> list[list[str]]:
        page = store.clickstream.read(batch_id, 0, 10, limit)
        return [[event.event_id for event in member.session.events] for member in page]

    assert events_read(None) == [["c", "a", "b"], ["d"]]
    assert events_read(2) == [["c", "a"], ["d"]]
    assert events_read(0) == [[], []]


def test_read_batch_takes_a_fixed_number_of_queries(backend: Backend) -> None:
    """A page of 500 sessions costs as many queries as a page of one, once they are numbered."""
    with backend.counted() as (store, queries):
        store.clickstream.register([make_session(f"s-{n}", ["a", "b"]) for n in range(600)], NOW)
        batch_id = store.clickstream.append_events("s-0", []).batch_id
        store.clickstream.read(batch_id, 0, 1)
        costs = []
        for limit in (1, 500):
            queries.clear()
            assert len(store.clickstream.read(batch_id, 0, limit, events_limit=1)) == limit
            costs.append(len(queries))
    assert costs[0] == costs[1] > 0


# -- calls broken off, and other writers in between ---------------------------------------------

Snapshot = tuple[list[Any], ...]


def snapshot(store: Store) -> Snapshot:
    """Return what the store holds, but for the ids that it chose itself."""
    sessions, batches = [], []
    for session_id in ("old-1", "old-2", "new-1", "new-2", "new-3"):
        try:
            stored = store.clickstream.get(session_id)
        except NotFound:
            continue
        batch_id = batch_of(store, session_id)
        sessions.append((stored, number_of(store, session_id)))
        batches.append(replace(store.clickstream.get_batch(batch_id), batch_id=""))
        assert_gapless(store, [batch_id])
    return sessions, batches


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
}


def fail_once(
    store: Store, backend: Backend, nth: int, moment: Moment, call: Callable[[Store], Any]
) -> bool:
    """Let the nth write of the call to an empty store fail; return whether there are so many."""
    prepare(store)
    with backend.failing(nth, moment) as failure:
        try:
            call(store)
        except StoreUnavailable:
            assert failure.happened
        else:
            assert not failure.happened
    return failure.happened


@pytest.mark.slow
@pytest.mark.parametrize("operation", REPEATABLE)
@pytest.mark.parametrize("moment", ["before", "halfway", "after"])
def test_a_call_that_failed_is_completed_by_repeating_it(
    backend: Backend, operation: str, moment: Moment
) -> None:
    """Whichever write of a call fails, its repetition leaves what one call would have left."""
    call = REPEATABLE[operation]
    has_failed, nth = True, 0
    with closing(backend.open()) as opened:
        prepare(opened)
        call(opened)
        expected = snapshot(opened)
        while has_failed:
            nth += 1
            store = opened.in_project(f"p-{nth}")
            has_failed = fail_once(store, backend, nth, moment, call)
            call(store)
            assert snapshot(store) == expected
    assert nth > 1


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_release_broken_off_is_completed_by_anyone(
    store: Store, backend: Backend, nth: int, moment: Moment
) -> None:
    """After a crash in mid-release sessions go on, and the release finds its one batch."""
    fail_once(store, backend, nth, moment, lambda store: store.clickstream.release("r", NOW))
    post(store, "late", "old-2")
    old, late = batch_of(store, "old-1"), batch_of(store, "late")
    assert (number_of(store, "late") == 1) == (late != old)
    released = store.clickstream.release("r", later(5))
    assert released.batch_id == old
    assert released == store.clickstream.get_batch(old) == store.clickstream.release("r", later(9))
    names = assert_gapless(store, sorted({old, late}))
    assert sorted(names) == ["late", "old-1", "old-2"]


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
            batch_ids.add(batch_of(store, name))
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
    with closing(backend.open()) as first, closing(backend.open()) as second:
        while has_happened:
            nth += 1
            store, other = (one.in_project(f"p-{nth}") for one in (first, second))
            answers: Answers = {}
            if call != "first post":
                do_post(store, answers, "old-1", "old-2")

            def interrupt(other: Store = other, answers: Answers = answers) -> None:
                broken_write = 2 if meanwhile == BROKEN_OFF else 0
                with suppress(StoreUnavailable), backend.failing(broken_write, "before"):
                    for action in MEANWHILE[meanwhile]:
                        action(other, answers)

            with backend.interrupted(nth, interrupt) as interruption:
                CALLS[call](store, answers)
            assert_batches_hold_together(store, answers)
            has_happened = interruption.happened


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
    assert len(assert_gapless(store, [batch_of(store, "same")])) == 9
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
    assert released == {batch_of(store, "s")}
    batch_ids = {batch_of(store, f"s-{number}") for number in (1, 3, 5, 7)} | released
    assert len(assert_gapless(store, sorted(batch_ids))) == 5
    store.close()
