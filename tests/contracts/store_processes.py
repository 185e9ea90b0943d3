"""What the store's contract has other processes do; kept light, for each of them imports it."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count
from multiprocessing.synchronize import Barrier
from typing import TypeVar

from embedding_studio.clickstream import NumberedSession, SearchResult, Session, SessionEvent
from embedding_studio.errors import NotFound
from embedding_studio.store import Store, open_store
from embedding_studio.store.clickstream import Registered
from embedding_studio.tasks import TaskRequest

Result = TypeVar("Result")
NOW = datetime(2024, 5, 1, 12, 0, 0, tzinfo=UTC)
START_SECONDS = 60.0

start_line: Barrier


def meet_at(barrier: Barrier) -> None:
    """Set where the processes of a pool wait for one another before each race."""
    global start_line
    start_line = barrier


def make_session(session_id: str, events: Iterable[str] = (), query: str = "blue shoes") -> Session:
    return Session(
        session_id=session_id,
        search_query=query,
        search_results=(SearchResult("item-1", 0.5), SearchResult("item-2", None)),
        created_at=NOW,
        events=tuple(SessionEvent(event_id, "item-1", NOW) for event_id in events),
    )


def register(store: Store, sessions: Sequence[Session]) -> list[Registered]:
    """Post sessions, each of which must be kept."""
    kept = []
    for answer in store.clickstream.register(sessions, NOW):
        assert isinstance(answer, Registered), answer
        kept.append(answer)
    return kept


def batch_of(store: Store, session_id: str) -> str:
    return store.clickstream.append_events(session_id, []).batch_id


def read_all(store: Store, batch_id: str) -> list[NumberedSession]:
    found: list[NumberedSession] = []
    while page := store.clickstream.read(batch_id, found[-1].number if found else 0, 10_000):
        found += page
    return found


def number_of(store: Store, session_id: str) -> int:
    found = read_all(store, batch_of(store, session_id))
    return next(one.number for one in found if one.session.session_id == session_id)


def assert_gapless(store: Store, batch_ids: Sequence[str]) -> list[str]:
    """Return the ids of all sessions in those batches, each of which numbers them 1..n."""
    session_ids: list[str] = []
    for batch_id in batch_ids:
        members = read_all(store, batch_id)
        assert [member.number for member in members] == list(range(1, len(members) + 1))
        assert store.clickstream.get_batch(batch_id).session_count == len(members)
        session_ids += [member.session.session_id for member in members]
    assert max(Counter(session_ids).values()) == 1
    return session_ids


def results_of(futures: Sequence[Future[Result]]) -> list[Result]:
    return [future.result(START_SECONDS) for future in futures]


def open_first(url: str) -> bool:
    start_line.wait(START_SECONDS)
    store = open_store(url)
    store.ping()
    store.close()
    return True


def claim_all(url: str, worker_id: str) -> list[str]:
    """Claim until nothing is left; return the ids of the tasks."""
    store = open_store(url)
    claimed = []
    start_line.wait(START_SECONDS)
    while (task := store.tasks.claim(worker_id, NOW, lease_seconds=60)) is not None:
        claimed.append(task.id)
    store.close()
    return claimed


def add_tasks(url: str, keys: list[str]) -> list[tuple[str, bool]]:
    """Add one task per key; return their ids and whether they were new."""
    store = open_store(url)
    start_line.wait(START_SECONDS)
    added = [store.tasks.add(TaskRequest("m", idempotency_key=key), NOW) for key in keys]
    store.close()
    return [(task.id, is_new) for task, is_new in added]


def post_and_release(url: str, name: str, session_ids: list[str]) -> tuple[list[str], list[str]]:
    """Post sessions in threes, each three twice, and release now and then.

    Returns the ids of the sessions that were new and of the batches that were released.
    """
    store = open_store(url)
    new: list[str] = []
    released: list[str] = []
    start_line.wait(START_SECONDS)
    for place in range(0, len(session_ids), 3):
        posted = [make_session(id_, [f"{id_}-click"]) for id_ in session_ids[place : place + 3]]
        answers = register(store, posted)
        assert not any(answer.is_new for answer in register(store, posted))
        new += [s.session_id for s, answer in zip(posted, answers, strict=True) if answer.is_new]
        if place % 12 == 9:
            with suppress(NotFound):
                released.append(store.clickstream.release(f"{name}-{place}", NOW).batch_id)
    store.close()
    return new, released


def post_until_killed(url: str) -> None:
    """Post sessions in threes for ever, writing each three's ids in a line once it is answered."""
    store = open_store(url)
    for number in count():
        session_ids = [f"{number}-{place}" for place in range(3)]
        store.clickstream.register([make_session(id_, ["click"]) for id_ in session_ids], NOW)
        sys.stdout.write(" ".join(session_ids) + "\n")
        sys.stdout.flush()
