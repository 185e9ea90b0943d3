"""The contract of every store: which batches are deleted, and which sessions count as clicked."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from embedding_studio.clickstream import SessionBatch, SessionEvent, TimeRange
from embedding_studio.errors import NotFound
from embedding_studio.store import Store
from embedding_studio.tasks import TaskRequest
from tests.contracts.store_processes import NOW, make_session, number_of


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def post(store: Store, *session_ids: str, clicked: bool = True) -> None:
    click = SessionEvent("e", "item-1", NOW)
    sessions = [make_session(session_id) for session_id in session_ids]
    changed = [replace(session, events=(click,) if clicked else ()) for session in sessions]
    store.clickstream.register(changed, NOW)


def event(event_id: str, object_id: str = "item-1", event_type: str = "click") -> SessionEvent:
    return SessionEvent(event_id, object_id, NOW, event_type)


def test_older_batches_are_deleted_with_their_sessions(store: Store) -> None:
    """The latest stay, and so do one that an open task needs, the collecting one and other
    projects'; deleted session ids are free again; repeating it deletes nothing."""
    ids = []
    for number in range(4):
        post(store, f"s-{number}")
        post(store.in_project("acme"), f"s-{number}")
        ids.append(store.clickstream.release(f"r-{number}", later(number)).batch_id)
        store.in_project("acme").clickstream.release(f"r-{number}", later(number))
    post(store, "s-4")
    store.tasks.add(TaskRequest("m", batch_id=ids[1]), NOW)
    assert store.clickstream.delete_older(2) == [ids[0]]
    assert store.clickstream.delete_older(2) == []
    for gone in (lambda: store.clickstream.get_batch(ids[0]), lambda: store.clickstream.get("s-0")):
        with pytest.raises(NotFound):
            gone()
    for batch_id in ids[1:]:
        assert len(store.clickstream.read(batch_id, 0, 10)) == 1
    assert number_of(store, "s-4") == 1
    assert number_of(store.in_project("acme"), "s-0") == 1
    post(store, "s-0")
    assert number_of(store, "s-0") == 2


def test_clicked_sessions_are_counted(store: Store) -> None:
    """Those of a batch with an event of a kind that is not ignored, on an item that was shown,
    unless they are marked irrelevant; each once. An unknown batch is not found."""
    post(store, "of an earlier batch")
    store.clickstream.release("r", NOW)
    post(store, "clicked", "all wrong", "marked later")
    post(store, "nothing", "late", "late stray", clicked=False)
    posted = {
        "viewed": [event("1", event_type="view")],
        "stray": [event("1", "item-9")],
        "viewed and bought": [event("1", event_type="VIEW"), event("2", event_type="buy")],
        "twice": [event("1"), event("1"), event("2", "item-2")],
    }
    store.clickstream.register(
        [replace(make_session(id_), events=tuple(events)) for id_, events in posted.items()], NOW
    )
    store.clickstream.register([replace(make_session("marked"), is_irrelevant=True)], NOW)
    store.clickstream.append_events("marked", [event("1")])
    store.clickstream.append_events("late", [event("1")])
    store.clickstream.append_events(
        "late stray", [event("1", "item-9"), event("2", event_type="view")]
    )
    store.clickstream.register([make_session("clicked", ["1", "2"])], NOW)
    for session_id in ("all wrong", "marked later"):
        store.clickstream.mark_irrelevant(session_id)
    batch = store.clickstream.collecting_batch()
    assert batch is not None
    assert store.clickstream.count_clicked(batch.batch_id) == 4
    assert store.clickstream.count_clicked(batch.batch_id, []) == 6
    assert store.clickstream.count_clicked(batch.batch_id, ["view", "click", "unheard of"]) == 1
    with pytest.raises(NotFound):
        store.in_project("acme").clickstream.count_clicked(batch.batch_id)


def test_batches_go_by_their_release_whatever_their_ids(store: Store) -> None:
    """Ids from version 0.1 sort after all that are made now: the oldest release goes first."""
    ids = []
    for number in range(3):
        post(store, f"s-{number}")
        ids.append(store.clickstream.release(f"r-{number}", later(-number)).batch_id)
    assert sorted(ids) == ids
    assert store.clickstream.delete_older(2) == [ids[2]]
    assert store.clickstream.delete_older(1) == [ids[1]]


def test_batches_are_listed_newest_first(store: Store) -> None:
    """The collecting one if it has a session, then the others by their release, page by page; of
    this project, and none that was deleted."""
    assert store.clickstream.page() == []
    expected: list[SessionBatch] = []
    for number in range(4):
        post(store, f"s-{number}")
        post(store.in_project("acme"), f"s-{number}")
        expected.insert(0, store.clickstream.release(f"r-{number}", later(number)))
    assert store.clickstream.page() == expected
    post(store, "s-4")
    collecting = store.clickstream.collecting_batch()
    assert collecting is not None
    expected.insert(0, collecting)
    pages = [store.clickstream.page(skip, 2) for skip in range(0, 6, 2)]
    assert [batch for page in pages for batch in page] == expected
    assert store.clickstream.page(limit=0) == []
    store.clickstream.delete_older(2)
    assert store.clickstream.page() == expected[:3]


DAY = 24 * 3600


def post_made(store: Store, session_id: str, at: float) -> None:
    session = replace(make_session(session_id, ["e"]), created_at=later(at))
    store.clickstream.register([session], later(at))


def released_daily(store: Store, days: int) -> list[SessionBatch]:
    """Batches of one session each, released at the ends of the days from NOW on."""
    batches = []
    for day in range(days):
        post_made(store, f"s-{day}", day * DAY)
        batches.append(store.clickstream.release(f"r-{day}", later((day + 1) * DAY)))
    return batches


def test_a_time_range_has_the_batches_that_may_hold_its_sessions(store: Store) -> None:
    """Those released since it began, and in the day before, by their release; up to a released one
    they stay the same, whatever is released afterwards, and the one that collects is the last."""
    post(store.in_project("acme"), "s")
    store.in_project("acme").clickstream.release("r", later(9 * DAY))
    batches = released_daily(store, 6)
    ranged = store.clickstream.of_range
    assert ranged(TimeRange(None, later(DAY))) == batches
    made = TimeRange(later(3.5 * DAY), None)
    assert ranged(made) == batches[2:]
    assert ranged(made, batches[4]) == batches[2:5]
    post_made(store, "s-6", 6 * DAY)
    collecting = store.clickstream.collecting_batch()
    assert ranged(made) == batches[2:]
    assert ranged(made, collecting) == [*batches[2:], collecting]
    newest = store.clickstream.release("r-6", later(7 * DAY))
    assert ranged(made, collecting) == ranged(made) == [*batches[2:], newest]
    assert ranged(made, batches[4]) == batches[2:5]


def test_clicked_sessions_are_counted_by_when_they_were_made(store: Store) -> None:
    """In all batches up to one, those that came late among them."""
    batches = released_daily(store, 4)
    post_made(store, "new", 5 * DAY)
    post_made(store, "late", 2 * DAY)
    post_made(store, "too late", 0.5 * DAY)
    post(store, "not clicked", clicked=False)
    collecting = store.clickstream.collecting_batch()
    assert collecting is not None
    count = store.clickstream.count_clicked
    assert count(collecting.batch_id, since=later(2 * DAY)) == 4
    assert count(collecting.batch_id, since=later(2 * DAY + 0.001)) == 2
    assert count(batches[2].batch_id, since=later(DAY)) == 2
    assert count(collecting.batch_id, ["click"], later(DAY)) == 0
    store.clickstream.release("r", later(6 * DAY))
    assert count(collecting.batch_id, since=later(2 * DAY)) == 4


def test_batches_that_a_time_range_needs_stay(store: Store) -> None:
    """As long as its task has not ended; what is older goes."""
    batches = released_daily(store, 6)
    task, _ = store.tasks.add(TaskRequest("m", last="3d"), later(6 * DAY))
    assert len(store.clickstream.delete_older(1)) == 2
    assert store.clickstream.page() == batches[:1:-1]
    store.tasks.cancel(task.id, later(6 * DAY))
    gone = store.clickstream.delete_older(1)
    assert sorted(gone) == sorted(batch.batch_id for batch in batches[2:5])
    whole, _ = store.tasks.add(TaskRequest("m", until=later(DAY)), later(6 * DAY))
    post(store, "s")
    store.clickstream.release("r", later(7 * DAY))
    assert store.clickstream.delete_older(1) == []
    store.tasks.cancel(whole.id, later(7 * DAY))
    assert store.clickstream.delete_older(1) == [batches[5].batch_id]
