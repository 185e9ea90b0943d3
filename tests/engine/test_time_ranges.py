"""Tasks that learn from several batches, or from a time range, whichever batches it is in."""

from datetime import timedelta
from typing import Any

import pytest

from embedding_studio.clock import utc_now
from embedding_studio.engine.attempt import Attempt
from embedding_studio.engine.feedback import Feedback
from embedding_studio.tasks import FineTuningTask, TaskStatus
from tests.engine.test_beginning import before, collected, fail, learned_from
from tests.iterations import Bench, make_session

pytestmark = pytest.mark.slow


def post(bench: Bench, start: int, count: int, days_ago: float) -> None:
    """Post sessions that were made some days ago."""
    made_at = utc_now() - timedelta(days=days_ago)
    sessions = [make_session(n, created_at=made_at) for n in range(start, start + count)]
    bench.house.store.clickstream.register(sessions, utc_now())


def release(bench: Bench, release_id: str = "by hand") -> str:
    return bench.house.store.clickstream.release(release_id, utc_now()).batch_id


def run(bench: Bench, **request: Any) -> FineTuningTask:
    """Work on a task until it ends."""
    task = bench.post_task(**request)
    assert bench.worker.work_once()
    return bench.house.store.tasks.get(task.id)


@pytest.mark.quick
def test_a_month_is_learned_from(bench: Bench) -> None:
    """A second task learns from what another batch has of the range together with what is new, not
    from older sessions, be they new to us; a third, with nothing new, from the same."""
    post(bench, 0, 60, days_ago=40)
    post(bench, 100, 60, days_ago=10)
    first = run(bench)
    assert (first.status, learned_from(bench, first)) == (TaskStatus.DONE, 120)
    post(bench, 200, 20, days_ago=0)
    post(bench, 300, 10, days_ago=29)  # late
    post(bench, 400, 10, days_ago=31)
    second = run(bench, last="30d")
    assert (second.error, second.status) == (None, TaskStatus.DONE)
    assert (learned_from(bench, second), collected(bench)) == (90, 0)
    assert second.batch_id not in (None, first.batch_id)
    (experiment,) = [e for e in bench.experiments() if e.experiment_id == second.experiment_id]
    assert experiment.tags["es.made"].startswith("from 20")
    third = run(bench, last="30d")
    assert (third.status, third.batch_id) == (TaskStatus.DONE, second.batch_id)
    assert learned_from(bench, third) == 90


def test_several_batches_are_learned_from(bench: Bench) -> None:
    """As one, by their ids; what is collecting stays, and a restart sees the same."""
    ids = []
    for number, count in enumerate((60, 15, 20)):
        post(bench, 100 * number, count, days_ago=1)
        ids.append(release(bench, f"r-{number}"))
    post(bench, 400, 10, days_ago=0)
    with pytest.MonkeyPatch.context() as patch:
        before(patch, Attempt, "open_experiment", fail)
        failed = run(bench, batch_ids=(ids[0], ids[2]))
    assert (failed.status, failed.batch_id) == (TaskStatus.ERROR, ids[2])
    bench.house.store.tasks.restart(failed.id, utc_now())
    assert bench.worker.work_once()
    done = bench.house.store.tasks.get(failed.id)
    assert (done.error, done.status, done.batch_id) == (None, TaskStatus.DONE, ids[2])
    assert (learned_from(bench, done), collected(bench)) == (80, 10)


def test_a_range_that_has_ended_leaves_what_is_collecting(bench: Bench) -> None:
    """It is learnt from released batches alone."""
    post(bench, 0, 60, days_ago=10)
    batch_id = release(bench)
    post(bench, 100, 30, days_ago=6)
    task = run(bench, until=utc_now() - timedelta(days=5))
    assert (task.status, task.batch_id) == (TaskStatus.DONE, batch_id)
    assert (learned_from(bench, task), collected(bench)) == (60, 30)


def test_a_restart_sees_the_same_sessions(bench: Bench) -> None:
    """Whatever was released after the batch that the task took."""
    post(bench, 0, 60, days_ago=10)
    release(bench)
    post(bench, 100, 30, days_ago=0)
    with pytest.MonkeyPatch.context() as patch:
        before(patch, Attempt, "open_experiment", fail)
        failed = run(bench, last="30d")
    assert (failed.status, collected(bench)) == (TaskStatus.ERROR, 0)
    assert failed.batch_id is not None
    post(bench, 200, 15, days_ago=1)
    release(bench, "later")
    bench.house.store.tasks.restart(failed.id, utc_now())
    assert bench.worker.work_once()
    done = bench.house.store.tasks.get(failed.id)
    assert (done.status, learned_from(bench, done)) == (TaskStatus.DONE, 90)
    assert (done.batch_id, done.since) == (failed.batch_id, failed.since)


def test_a_release_by_another_takes_nothing_from_a_range(bench: Bench) -> None:
    """The batch that was prepared is learnt from all the same, and no later one."""
    post(bench, 0, 60, days_ago=10)
    release(bench)
    post(bench, 100, 30, days_ago=0)

    def take() -> None:
        release(bench, "another")
        post(bench, 200, 15, days_ago=0)

    with pytest.MonkeyPatch.context() as patch:
        before(patch, Feedback, "release", take)
        task = run(bench, last="30d")
    assert (task.error, task.status) == (None, TaskStatus.DONE)
    assert (learned_from(bench, task), collected(bench)) == (90, 15)


def test_too_few_sessions_of_a_range_use_nothing_up(bench: Bench) -> None:
    """None, or fewer than the method needs: the batch goes on collecting, and a restart learns from
    what came since."""
    post(bench, 0, 60, days_ago=10)
    release(bench)
    post(bench, 100, 30, days_ago=0)
    since = utc_now() - timedelta(days=9)
    none = run(bench, since=since, until=since + timedelta(days=1))
    assert "NotEnoughData: no session was made from" in (none.error or "")
    few = run(bench, method="Choosy", last="30d")
    assert "fewer than 100 sessions" in (few.error or "")
    assert (few.batch_id, collected(bench)) == (None, 30)
    post(bench, 200, 20, days_ago=0)
    bench.house.store.tasks.restart(few.id, utc_now())
    assert bench.worker.work_once()
    done = bench.house.store.tasks.get(few.id)
    assert (done.status, learned_from(bench, done)) == (TaskStatus.DONE, 110)
