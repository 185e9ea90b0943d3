"""The contract of every store: what a project's sessions take is counted, and kept to a limit."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import pytest

from embedding_studio.clickstream import EarlyFeedback, Session, SessionEvent, Usage
from embedding_studio.errors import StoreUnavailable, TooManyRequests
from embedding_studio.store import Store
from embedding_studio.store.sessions import content_of
from embedding_studio.store.usage import json_size, size_of_events, size_of_request
from embedding_studio.tasks import TaskRequest
from tests.contracts.store_backends import Backend, Moment
from tests.contracts.store_processes import NOW, make_session

PLENTY = 10**9
CLICK = SessionEvent("e-1", "item-1", NOW, meta={"page": "ж"})


def size(*sessions: Session) -> int:
    return sum(
        json_size(content_of(session)) + size_of_events(session.events) for session in sessions
    )


def test_sessions_and_events_are_counted_once(store: Store) -> None:
    """Sessions, their events, those that follow and those that came before are; what is posted
    again is not; other projects count for themselves."""
    session = replace(make_session("s-1"), events=(CLICK,))
    for _ in range(2):
        store.clickstream.register([session, session], NOW)
    assert store.clickstream.usage() == {"default": Usage(1, size(session))}
    later = replace(CLICK, event_id="e-2")
    for _ in range(2):
        store.clickstream.append_events("s-1", [CLICK, later])
    early = replace(CLICK, event_id="e-3")
    store.clickstream.keep_early(
        EarlyFeedback("s-2", (early,)), NOW, NOW.replace(year=9999), most=9
    )
    second = make_session("s-2")
    store.clickstream.register([second], NOW)
    store.clickstream.keep_early(
        EarlyFeedback("s-2", (early, later)), NOW, NOW.replace(year=9999), most=9
    )
    store.in_project("another").clickstream.register([second], NOW)
    whole = [replace(session, events=(CLICK, later)), replace(second, events=(early, later))]
    assert store.clickstream.usage() == {
        "default": Usage(2, size(*whole)),
        "another": Usage(1, size(second)),
    }


def test_odd_text_is_counted_too(store: Store) -> None:
    """What one database cannot hold and another can is no failure of the counting."""
    odd = replace(CLICK, event_id="e-2", meta={"half": "\ud800"})
    store.clickstream.register([make_session("s-1")], NOW)
    store.clickstream.register([replace(make_session("s-1"), events=(odd,))], NOW)
    assert store.clickstream.usage()["default"].sessions == 1


def test_deleted_batches_are_room_again(store: Store) -> None:
    """What is left is what was counted of the batches that stay, later events included."""
    for number in range(3):
        store.clickstream.register([make_session(f"s-{number}")], NOW)
        store.clickstream.release(f"r-{number}", NOW.replace(month=number + 1))
    store.clickstream.append_events("s-0", [CLICK])
    store.clickstream.append_events("s-2", [CLICK])
    assert len(store.clickstream.delete_older(1)) == 2
    left = replace(make_session("s-2"), events=(CLICK,))
    assert store.clickstream.usage() == {"default": Usage(1, size(left))}
    assert store.clickstream.delete_older(0)
    assert store.clickstream.usage() == {"default": Usage(0, 0)}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_deletion_that_is_cut_off_leaves_no_room_taken(backend: Backend, moment: Moment) -> None:
    """Wherever it ends, the next one makes room of all that is gone; tasks stay counted."""
    of_tasks = size_of_request(TaskRequest("m"))
    with closing(backend.open()) as opened:
        for nth in itertools.count(1):
            store = opened.in_project(f"p-{nth}")
            store.tasks.add(TaskRequest("m"), NOW)
            for number in range(3):
                store.clickstream.register(
                    [replace(make_session(f"s-{number}"), events=(CLICK,))], NOW
                )
                store.clickstream.release(f"r-{number}", NOW.replace(month=number + 1))
            with backend.failing(nth, moment) as failure, suppress(StoreUnavailable):
                store.clickstream.delete_older(1)
            store.clickstream.delete_older(1)
            left = replace(make_session("s-2"), events=(CLICK,))
            assert opened.clickstream.usage()[f"p-{nth}"] == Usage(1, of_tasks + size(left))
            if not failure.happened:
                return


@pytest.mark.parametrize(
    ("most", "setting"),
    [
        (Usage(2, PLENTY), "ES_MAX_PROJECT_SESSIONS"),
        (Usage(PLENTY, size(make_session("s-1"), make_session("s-2"))), "ES_MAX_PROJECT_MB"),
    ],
)
def test_a_full_project_takes_nothing_more(store: Store, most: Usage, setting: str) -> None:
    """The refusal names the project and the setting; nothing of the post is kept. What is there may
    be posted again, other projects go on, and what was deleted is room again."""
    first, second, third = (make_session(f"s-{number}") for number in (1, 2, 3))
    store.clickstream.register([first], NOW, most)
    store.clickstream.release("r", NOW)
    store.clickstream.register([second], NOW, most)
    with pytest.raises(TooManyRequests, match=rf"'default' holds.*{setting}.*ES_KEEP_BATCHES"):
        store.clickstream.register([second, third], NOW, most)
    answers: Any = store.clickstream.register([second, first], NOW, most)
    assert [answer.is_new for answer in answers] == [False, False]
    store.in_project("another").clickstream.register([third], NOW, most)
    store.clickstream.release("r-2", NOW)
    assert len(store.clickstream.delete_older(1)) == 1
    store.clickstream.register([third], NOW, most)
    batch = store.clickstream.collecting_batch()
    assert batch is not None
    assert batch.session_count == 1
    assert store.clickstream.usage()["default"].sessions == 2


def test_events_of_a_full_project_are_refused(store: Store) -> None:
    """So are those that are posted with a known session; those that are there are not."""
    session = replace(make_session("s-1"), events=(CLICK,))
    most = Usage(PLENTY, size(session))
    store.clickstream.register([session], NOW, most)
    more = replace(CLICK, event_id="e-2")
    with pytest.raises(TooManyRequests, match="ES_MAX_PROJECT_MB"):
        store.clickstream.append_events("s-1", [more], most)
    with pytest.raises(TooManyRequests, match="ES_MAX_PROJECT_MB"):
        store.clickstream.register([replace(session, events=(CLICK, more))], NOW, most)
    assert store.clickstream.append_events("s-1", [CLICK], most).new_events == 0
    assert store.clickstream.get("s-1").events == (CLICK,)


def test_writers_at_once_stay_near_the_limit(shared: Backend) -> None:
    """Each may find room for itself at the same time as the others, and no more."""
    writers, most = 4, Usage(10, PLENTY)
    with closing(shared.open()) as store:

        def post(writer: int) -> None:
            for number in range(20):
                try:
                    store.clickstream.register([make_session(f"s-{writer}-{number}")], NOW, most)
                except TooManyRequests:
                    return

        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(post, range(writers)))
        batch = store.clickstream.collecting_batch()
        assert batch is not None
        assert 10 <= batch.session_count <= 10 + writers - 1
        assert store.clickstream.usage()["default"].sessions == batch.session_count
