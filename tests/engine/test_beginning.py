"""What a task does before it releases its batch: what fails by then uses nothing up."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from embedding_studio.clickstream import SearchResult, SessionEvent
from embedding_studio.clock import utc_now
from embedding_studio.engine import attempt
from embedding_studio.engine import jobs as trial
from embedding_studio.engine.feedback import Feedback
from embedding_studio.errands.schedules import run_due
from embedding_studio.errors import StoreUnavailable
from embedding_studio.schedules import Schedule
from embedding_studio.settings import Settings
from embedding_studio.tasks import TaskEventKind, TaskStatus
from tests.iterations import Bench, make_session, open_bench

pytestmark = pytest.mark.slow


def test_contents_that_cannot_be_loaded_use_nothing_up(settings: Settings, tmp_path: Path) -> None:
    """Too many are an error before anything is released, which says what is missing; fewer are told
    in the task's history, and the rest is learnt from."""
    (tmp_path / "items.csv").write_text("sku,text\nitem-0,zero\n")
    bench = open_bench(settings.replaced(items_from=str(tmp_path / "items.csv")))
    results = (SearchResult("item-0", 1.0), SearchResult("item-1", 0.5))
    sessions = [make_session(number, search_results=results) for number in range(60)]
    bench.house.store.clickstream.register(sessions, utc_now())
    task = bench.run_task(count=0)
    assert task.status is TaskStatus.ERROR
    assert "NotEnoughData: 1 of 2 items" in (task.error or "")
    assert "'item-1': it is in none of the sources" in (task.error or "")
    assert (task.batch_id, collected(bench)) == (None, 60)
    bench.house.store.close()
    lenient = open_bench(bench.house.settings.replaced(max_missing_items=0.5))
    done = lenient.run_task(count=0)
    assert (done.error, done.status) == (None, TaskStatus.DONE)
    events = [numbered.event for numbered in lenient.house.store.tasks.events(done.id)]
    told = [event.detail for event in events if event.kind is TaskEventKind.WARNING]
    assert any("'item-1'" in detail for detail in told)
    lenient.house.store.close()


def collected(bench: Bench) -> int:
    """Return how many sessions the next task would learn from."""
    batch = bench.house.store.clickstream.collecting_batch()
    return 0 if batch is None else batch.session_count


def learned_from(bench: Bench, task: Any) -> float:
    """Return how many sessions were prepared for the task's trials."""
    sessions: float = bench.runs(task, "data")[0].data.metrics["data/sessions"]
    return sessions


def before(patch: pytest.MonkeyPatch, owner: Any, name: str, action: Callable[[], object]) -> None:
    """Have an action come before the first call of a function."""
    real, waiting = getattr(owner, name), [action]

    def call(*args: Any, **kwargs: Any) -> Any:
        if waiting:
            waiting.pop()()
        return real(*args, **kwargs)

    patch.setattr(owner, name, call)


def counted(job: Any, calls: list[str]) -> Callable[..., Any]:
    """Return a job's work, which adds the job's name to `calls`."""
    real = job.__call__

    def call(*args: Any) -> Any:
        calls.append(job.__name__)
        return real(*args)

    return call


def fail() -> None:
    raise OSError("broken on purpose")


def test_weeks_with_too_few_sessions_add_up(bench: Bench) -> None:
    """Three weeks of 35 sessions: two tasks fail for too little, the third has what it takes."""
    for week in range(2):
        task = bench.run_task("Choosy", start=35 * week, count=35)
        assert (task.error or "").startswith("NotEnoughData: fewer than 100 sessions")
        assert (task.batch_id, collected(bench)) == (None, 35 * (week + 1))
    done = bench.run_task("Choosy", start=70, count=35)
    assert done.status is TaskStatus.DONE
    assert (learned_from(bench, done), collected(bench)) == (105, 0)


def test_a_schedule_that_came_too_early_loses_nothing(bench: Bench) -> None:
    """Its task fails for too little data, and that of the next time learns from all there is."""
    store = bench.house.store
    start = utc_now()
    store.schedules.add(
        Schedule("s", "default", "Choosy", start, start, interval_seconds=3600, min_new_sessions=66)
    )
    bench.post_sessions(0, 70)
    for hours in (0, 1):
        run_due(store, start + timedelta(hours=hours), 100)
        assert bench.worker.work_once()
        bench.post_sessions(1000, 30)  # known from the second time on
    late, early = store.tasks.page()
    assert "NotEnoughData" in (early.error or "")
    assert (late.status, learned_from(bench, late)) == (TaskStatus.DONE, 100)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (trial.SaveInitialModel, "__call__"),
        (trial.PrepareData, "__call__"),
        (trial.ScoreBaseline, "__call__"),
        (attempt, "draw_sets"),
        (Feedback, "release"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_fails_before_the_search_uses_nothing_up(bench: Bench, owner: Any, name: str) -> None:
    """A model that does not load, data that cannot be prepared, a method that cannot score or
    suggest: the batch collects, and the next task learns from it and from what came since."""
    with pytest.MonkeyPatch.context() as patch:
        before(patch, owner, name, fail)
        failed = bench.run_task()
    assert (failed.status, failed.batch_id) == (TaskStatus.ERROR, None)
    assert "broken on purpose" in (failed.error or "")
    assert collected(bench) == 60
    done = bench.run_task(start=1000)
    assert (done.status, learned_from(bench, done)) == (TaskStatus.DONE, 120)


@pytest.mark.quick
def test_sessions_that_come_while_it_prepares_are_learned_from(bench: Bench) -> None:
    """They are in the batch that is released, so it is prepared again with them."""
    with pytest.MonkeyPatch.context() as patch:
        more = lambda: bench.post_sessions(start=500, count=15)  # noqa: E731
        before(patch, Feedback, "release", more)
        task = bench.run_task()
    assert task.status is TaskStatus.DONE
    assert task.batch_id is not None
    assert bench.house.store.clickstream.get_batch(task.batch_id).session_count == 75
    assert (learned_from(bench, task), collected(bench)) == (75, 0)
    assert len(bench.runs(task, "baseline")) == 1


def test_events_that_come_while_it_prepares_are_learned_from(bench: Bench) -> None:
    """A click on a session that was copied already is not lost: it is prepared again."""

    def view() -> None:
        event = SessionEvent("late", "item-1", utc_now(), "view")
        bench.house.store.clickstream.append_events("session-7", [event])

    with pytest.MonkeyPatch.context() as patch:
        before(patch, Feedback, "release", view)
        task = bench.run_task()
    (data,) = bench.runs(task, "data")
    assert data.data.metrics["data/ignored_events"] == 1


def test_what_is_prepared_is_not_prepared_again(bench: Bench) -> None:
    """Where nothing comes meanwhile, the data are prepared and the start is scored once."""
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for job in (trial.PrepareData, trial.ScoreBaseline):
            patch.setattr(job, "__call__", counted(job, calls))
        bench.run_task()
    assert calls == ["PrepareData", "ScoreBaseline"]


def test_a_batch_serves_one_task(bench: Bench) -> None:
    """A task whose batch another release takes meanwhile is an error that says so, and leaves what
    has come since to the next."""

    def take() -> None:
        bench.house.store.clickstream.release("another", utc_now())
        bench.post_sessions(start=500)

    with pytest.MonkeyPatch.context() as patch:
        before(patch, Feedback, "release", take)
        failed = bench.run_task()
    assert failed.status is TaskStatus.ERROR
    assert "released already, as 'another'" in (failed.error or "")
    assert (failed.batch_id, collected(bench)) == (None, 60)
    late = bench.post_task()
    assert bench.worker.work_once()
    assert learned_from(bench, bench.house.store.tasks.get(late.id)) == 60


def test_a_restart_finds_the_batch_that_was_released_for_it(bench: Bench) -> None:
    """Also when the attempt ended before it could say so, and others are collecting by now."""
    with pytest.MonkeyPatch.context() as patch:
        before(patch, Feedback, "_note_release", fail)
        failed = bench.run_task()
    assert (failed.batch_id, collected(bench)) == (None, 0)
    bench.post_sessions(start=500, count=70)
    bench.house.store.tasks.restart(failed.id, utc_now())
    assert bench.worker.work_once()
    done = bench.house.store.tasks.get(failed.id)
    assert (done.status, learned_from(bench, done)) == (TaskStatus.DONE, 60)
    assert collected(bench) == 70


def test_an_outage_of_the_database_at_the_release_is_waited_out(bench: Bench) -> None:
    """The release is asked for again, and is one release."""

    def time_out() -> None:
        raise StoreUnavailable("no answer")

    with pytest.MonkeyPatch.context() as patch:
        before(patch, bench.house.store.clickstream, "release", time_out)
        task = bench.run_task()
    assert (task.status, collected(bench)) == (TaskStatus.DONE, 0)


@pytest.mark.parametrize("end", ["stop", "cancel"])
def test_a_task_that_is_ended_while_it_prepares_uses_nothing_up(bench: Bench, end: str) -> None:
    """Stopped or canceled just before the release, it leaves the batch to the next task."""
    bench.post_sessions()
    task = bench.post_task()
    with pytest.MonkeyPatch.context() as patch:
        ask: Callable[..., object] = getattr(bench.house.store.tasks, end)
        before(patch, Feedback, "release", lambda: ask(task.id, utc_now()))
        assert bench.worker.work_once()
    ended = bench.house.store.tasks.get(task.id)
    assert ended.status in (TaskStatus.STOPPED, TaskStatus.CANCELED)
    assert (ended.batch_id, collected(bench)) == (None, 60)
    bench.house.store.tasks.restart(task.id, utc_now())
    assert bench.worker.work_once()
    assert bench.house.store.tasks.get(task.id).status is TaskStatus.DONE
