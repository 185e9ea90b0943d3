"""The contract of every store: schedules, and the tasks they create."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from threading import Barrier

import pytest

from embedding_studio.clickstream import SessionEvent
from embedding_studio.errands import schedules
from embedding_studio.errands.schedules import next_time, run_due
from embedding_studio.errors import Conflict, InvalidInput, NotFound
from embedding_studio.labels import Label
from embedding_studio.schedules import Schedule
from embedding_studio.store import Store
from embedding_studio.tasks import (
    Budget,
    Claim,
    Promote,
    Sampler,
    SearchOptions,
    TaskRequest,
    TaskStatus,
)
from tests.contracts.store_backends import Backend
from tests.contracts.store_processes import NOW, make_session

URL = "https://example.com/hook"


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def make_schedule(schedule_id: str = "s-1", **changes: object) -> Schedule:
    values = {
        "id": schedule_id, "project": "default", "fine_tuning_method": "m", "created_at": NOW,
        "next_at": later(60), "interval_seconds": 60.0, "min_new_sessions": 1,
    }  # fmt: skip
    return Schedule(**{**values, **changes})  # type: ignore[arg-type]


def post(store: Store, *session_ids: str, clicked: bool = True) -> None:
    click = SessionEvent("e", "item-1", NOW)
    sessions = [make_session(session_id) for session_id in session_ids]
    changed = [replace(session, events=(click,) if clicked else ()) for session in sessions]
    store.clickstream.register(changed, NOW)


def event(event_id: str, object_id: str = "item-1", event_type: str = "click") -> SessionEvent:
    return SessionEvent(event_id, object_id, NOW, event_type)


def test_a_schedule_comes_back_until_it_is_removed(store: Store) -> None:
    """Every field is kept, adding it again changes nothing, pausing changes two, and once it is
    removed it is not found."""
    schedule = make_schedule(
        cron="0 3 * * *", interval_seconds=None, min_new_sessions=5, budget=Budget(3, 9.5),
        search=SearchOptions(Sampler.GRID), event_weights={"a.$b": 0.5}, promote=Promote.BETTER,
        folds=2, metadata={"a.b": [1]}, webhook_url=URL, last="30d", since=later(-5),
    )  # fmt: skip
    for _ in range(2):
        store.schedules.add(schedule)
    assert store.schedules.get("s-1") == schedule
    store.schedules.add(make_schedule("s-2", created_at=later(1)))
    assert [found.id for found in store.schedules.all()] == ["s-1", "s-2"]
    paused = store.schedules.pause("s-1", True, later(99))
    assert paused == replace(schedule, is_paused=True, next_at=later(99))
    store.schedules.remove("s-1")
    for ask in (store.schedules.get, store.schedules.remove):
        with pytest.raises(NotFound, match="s-1"):
            ask("s-1")
    with pytest.raises(NotFound, match="s-1"):
        store.schedules.pause("s-1", False, NOW)


def test_schedules_of_other_projects_are_not_seen(store: Store) -> None:
    """Only workers see those of all projects."""
    store.schedules.add(make_schedule(project="acme"))
    assert store.schedules.all() == []
    with pytest.raises(NotFound):
        store.schedules.get("s-1")
    with pytest.raises(NotFound):
        store.schedules.pause("s-1", True, NOW)
    with pytest.raises(NotFound):
        store.schedules.remove("s-1")
    assert store.in_project("acme").schedules.get("s-1").id == "s-1"
    assert [schedule.id for schedule in store.schedules.due(later(60))] == ["s-1"]


def test_a_project_keeps_so_many_schedules(backend: Backend) -> None:
    """Of eight that come at once beyond the last place one is kept; those that are there may
    be added again, and other projects' do not count."""
    with closing(backend.open()) as store:
        store.schedules.add(make_schedule("other", project="acme"))
        assert store.schedules.add(make_schedule(), 2)
        barrier = Barrier(8)

        def add(number: int) -> bool:
            barrier.wait(30)
            return store.schedules.add(make_schedule(f"new-{number}"), 2)

        with ThreadPoolExecutor(8) as pool:
            kept = sum(pool.map(add, range(8)))
        assert kept == 1
        assert len(store.schedules.all()) == 1 + kept
        assert store.schedules.add(make_schedule(), 2)
        assert not store.schedules.add(make_schedule("late"), 2)


def test_due_schedules_are_advanced_once(store: Store) -> None:
    """Due is what is not paused and whose time has come; a look that comes late changes nothing."""
    store.schedules.add(make_schedule())
    store.schedules.add(make_schedule("s-2", is_paused=True))
    assert store.schedules.due(later(59)) == []
    (due,) = store.schedules.due(later(60))
    assert store.schedules.advance(due, later(120), "t-1", "created")
    assert not store.schedules.advance(due, later(180), "t-2", "created again")
    now = store.schedules.get("s-1")
    assert (now.next_at, now.last_task_id, now.last_outcome) == (later(120), "t-1", "created")
    assert store.schedules.advance(now, later(180), None, "too few")
    assert store.schedules.get("s-1").last_task_id == "t-1"
    store.schedules.pause("s-1", True, later(180))
    assert not store.schedules.advance(store.schedules.get("s-1"), later(240), None, "paused")


def test_a_schedule_creates_a_task_when_enough_clicks_are_new(store: Store) -> None:
    """Sessions without a click do not count, nor do those with what the method or the schedule
    ignores; the task carries what the schedule says; the next look is one interval on, and too few
    are told."""
    store.schedules.add(
        make_schedule(
            min_new_sessions=2, metadata={"a": 1}, budget=Budget(4), webhook_url=URL,
            event_weights={"hover": 1, "buy": 0}, promote=Promote.NEVER,
        )
    )  # fmt: skip
    post(store, "a")
    post(store, "b", "c", clicked=False)
    store.clickstream.append_events("b", [event("1", event_type="view")])
    store.clickstream.append_events(
        "c", [event("1", event_type="swipe"), event("2", event_type="buy")]
    )
    run_due(store, later(60), 100, {"m": {"Swipe": 0}, "another": {"click": 0}})
    assert store.tasks.page() == []
    assert store.schedules.get("s-1").last_outcome == "no task: 1 new sessions with clicks of 2"
    store.clickstream.append_events("b", [event("2", event_type="hover")])
    run_due(store, later(119), 100)
    assert store.tasks.page() == []
    run_due(store, later(120), 100)
    (task,) = store.tasks.page()
    assert (task.fine_tuning_method, task.metadata, task.budget) == ("m", {"a": 1}, Budget(4))
    assert (task.webhook_url, task.event_weights) == (URL, {"hover": 1, "buy": 0})
    assert task.promote is Promote.NEVER
    after = store.schedules.get("s-1")
    assert (after.last_task_id, after.next_at) == (task.id, later(180))


def test_labels_of_a_schedule_are_its_tasks(store: Store) -> None:
    """Where they are gone there is no task, and the outcome says why."""
    for name in ("a", "b"):
        store.labels.put(name, [Label("q", "i", 1)], NOW)
    store.schedules.add(
        make_schedule(last="30d", labels_id="a", judge_labels_id="b", model_name="n")
    )
    post(store, "x")
    run_due(store, later(60), 100)
    (task,) = store.tasks.page()
    assert (task.labels_id, task.judge_labels_id, task.model_name) == ("a", "b", "n")
    store.tasks.cancel(task.id, later(60))
    store.labels.delete("b")
    run_due(store, later(120), 100)
    assert "no set of labels has the id 'b'" in (store.schedules.get("s-1").last_outcome or "")


def test_a_crash_between_task_and_schedule_adds_no_second_task(store: Store) -> None:
    """The look that is repeated finds the task of that time there."""
    store.schedules.add(make_schedule())
    post(store, "a")
    (due,) = store.schedules.due(later(60))
    run_due(store, later(60), 100)
    # as it was before the crash: the task is there, the schedule was not advanced
    store.schedules.remove("s-1")
    store.schedules.add(due)
    run_due(store, later(61), 100)
    assert len(store.tasks.page()) == 1
    assert "is there already" in (store.schedules.get("s-1").last_outcome or "")


def test_one_task_waits_for_a_batch(store: Store) -> None:
    """Schedules create none while another of the project has not taken its batch: the outcome says
    which. Once it has, or has ended, the next does."""
    for number in range(30):
        store.schedules.add(make_schedule(f"s-{number}"))
    store.in_project("acme").schedules.add(make_schedule("s", project="acme"))
    post(store, "a")
    post(store.in_project("acme"), "a")
    run_due(store, later(60), 100)
    (task,) = store.tasks.page()
    assert store.tasks.waiting_for_batch() == task
    (other,) = store.in_project("acme").tasks.page()
    store.in_project("acme").tasks.cancel(other.id, later(60))
    outcomes = [schedule.last_outcome or "" for schedule in store.schedules.all()]
    assert outcomes[0] == f"task {task.id} was created"
    assert all(f"task {task.id} is pending and has not" in outcome for outcome in outcomes[1:])
    claim = store.tasks.claim("w", later(60), 60)
    assert claim is not None
    run_due(store, later(120), 100)
    assert "is processing" in (store.schedules.get("s-0").last_outcome or "")
    batch = store.clickstream.release("r", later(120))
    store.tasks.record(Claim(task.id, claim.attempt, "w"), later(120), batch_id=batch.batch_id)
    assert store.tasks.waiting_for_batch() is None
    run_due(store, later(180), 100)
    assert store.schedules.get("s-0").last_outcome == "no task: 0 new sessions with clicks of 1"
    post(store, "b")
    run_due(store, later(240), 100)
    waiting, _ = store.tasks.page()
    store.tasks.cancel(waiting.id, later(240))
    run_due(store, later(300), 100)
    assert len(store.tasks.page()) == 3


def test_a_schedule_creates_no_more_tasks_than_may_wait(store: Store) -> None:
    """The outcome names the setting; when one has gone, the next time creates its task."""
    batch_ids = []
    for name in ("a", "b"):
        post(store, name)
        batch_ids.append(store.clickstream.release(name, NOW).batch_id)
    first, _ = (store.tasks.add(TaskRequest("m", batch_id), NOW)[0] for batch_id in batch_ids)
    store.schedules.add(make_schedule())
    post(store, "c")
    run_due(store, later(60), 2)
    assert "ES_MAX_PENDING_TASKS" in (store.schedules.get("s-1").last_outcome or "")
    assert len(store.tasks.page()) == 2
    store.tasks.cancel(first.id, later(60))
    run_due(store, later(120), 2)
    assert len(store.tasks.page()) == 3


def test_so_many_tasks_of_a_project_may_wait(backend: Backend) -> None:
    """Of eight that come at once beyond the last place one is added; the same request is there
    again, and other projects' tasks do not count."""
    with closing(backend.open()) as store:
        store.in_project("acme").tasks.add(TaskRequest("m"), NOW)
        first = TaskRequest("m", idempotency_key="first")
        store.tasks.add(first, NOW, 2)
        barrier = Barrier(8)

        def add(_: int) -> bool:
            barrier.wait(30)
            try:
                return store.tasks.add(TaskRequest("m"), NOW, 2)[1]
            except Conflict:
                return False

        with ThreadPoolExecutor(8) as pool:
            added = sum(pool.map(add, range(8)))
        assert added == 1
        assert store.tasks.count(TaskStatus.PENDING) == 1 + added
        assert not store.tasks.add(first, NOW, 2)[1]
        with pytest.raises(Conflict, match="ES_MAX_PENDING_TASKS"):
            store.tasks.add(TaskRequest("m"), NOW, 2)


def test_a_schedule_that_cannot_be_run_holds_up_no_other(store: Store) -> None:
    """Neither one whose idempotency key somebody has used for a task of their own, nor one that
    fails in a way that nobody thought of."""
    store.schedules.add(make_schedule())
    store.in_project("broken").schedules.add(make_schedule("s-2", project="broken", cron="never"))
    other = store.in_project("acme")
    other.schedules.add(make_schedule("s-3", project="acme"))
    key = f"schedule s-1 at {later(60).isoformat()}"
    forged = TaskRequest("m", metadata={"mine": 1}, idempotency_key=key)
    taken, _ = store.tasks.add(forged, NOW)
    post(store, "a")
    post(other, "a")
    run_due(store, later(60), 100)
    outcome = store.schedules.get("s-1").last_outcome or ""
    assert outcome.startswith("no task: the idempotency key")
    assert taken.id in outcome
    assert len(other.tasks.page()) == 1


def test_projects_take_turns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project whose schedules take long to look at keeps the others' waiting for one of them: the
    rest stays due for the next time."""
    monkeypatch.setattr(schedules, "MOST_SECONDS", 0.0)
    for number in range(3):
        store.schedules.add(make_schedule(f"s-{number}"))
    store.in_project("acme").schedules.add(make_schedule("s", project="acme"))
    for left in (["s-1", "s-2"], ["s-2"], []):
        run_due(store, later(60), 100)
        assert [schedule.id for schedule in store.schedules.due(later(60))] == left


def test_workers_at_once_create_one_task(backend: Backend) -> None:
    """Eight that look at the same schedule at the same time make one task of it."""
    store = backend.open()
    store.schedules.add(make_schedule())
    post(store, "a")
    barrier = Barrier(8)

    def look(_: int) -> None:
        barrier.wait(30)
        run_due(store, later(60), 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(look, range(8)))
    assert len(store.tasks.page()) == 1
    store.close()


def test_times_of_schedules() -> None:
    """Cron is in UTC and strictly later; intervals count from the creation, whenever one looks."""
    assert next_time("30 3 * * 1", None, NOW, datetime.fromisoformat("2026-01-01T00:00Z")) == (
        datetime.fromisoformat("2026-01-05T03:30Z")
    )
    at = datetime.fromisoformat("2026-01-05T03:30Z")
    assert next_time("30 3 * * *", None, NOW, at) == at + timedelta(days=1)
    assert next_time(None, 3600, NOW, NOW) == later(3600)
    assert next_time(None, 3600, NOW, later(3600 * 5 + 1)) == later(3600 * 6)


@pytest.mark.parametrize(
    ("cron", "interval"),
    [(None, None), ("* * * * *", 60.0), ("soon", None), ("61 * * * *", None), (None, 1.0),
     ("0 0 30 2 *", None), ("* * * *", None)],
)  # fmt: skip
def test_a_timing_that_is_none_is_refused(cron: str | None, interval: float | None) -> None:
    """Both, neither, what cannot be read, what is too often, and a day that never comes."""
    with pytest.raises(InvalidInput):
        next_time(cron, interval, NOW, NOW)


def test_a_schedule_with_a_time_range_counts_it(store: Store) -> None:
    """Clicked sessions of the range, in whichever batch, and at least one that came since the last
    release; other methods' tasks take nothing from it, its own method's are waited for."""
    for number, method in enumerate("mn"):
        ranged = make_schedule(
            f"s-{number}", fine_tuning_method=method, last="1d", min_new_sessions=3
        )
        store.schedules.add(ranged)
    post(store, "a", "b")
    store.clickstream.release("r", NOW)
    run_due(store, later(60), 100)
    told = "no task: no session came since the last release"
    assert store.schedules.get("s-0").last_outcome == told
    post(store, "c", clicked=False)
    run_due(store, later(120), 100)
    told = "no task: 2 sessions made from 2024-04-30 12:02 UTC with clicks of 3"
    assert store.schedules.get("s-0").last_outcome == told
    store.clickstream.append_events("c", [event("1")])
    run_due(store, later(180), 100)
    tasks = store.tasks.page()
    assert {task.fine_tuning_method for task in tasks} == {"m", "n"}
    assert {(task.last, task.since) for task in tasks} == {("1d", later(180 - 86400))}
    run_due(store, later(240), 100)
    assert "is pending and has not" in (store.schedules.get("s-1").last_outcome or "")
    assert len(store.tasks.page()) == 2
