"""The database goes away: that costs the time it is away, and no work."""

import pytest

from embedding_studio.tasks import TaskEventKind, TaskStatus
from tests.faults.harness import Yard, all_runs, check_invariants
from tests.servers import Secantus
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

TRIALS = 4


def count_trials(yard: Yard, status: str) -> int:
    """How many trials are so by MLflow, which the outage does not touch."""
    runs = [run for run in all_runs(yard.bench) if run.data.tags.get("es.kind") == "trial"]
    return len([run for run in runs if run.info.status == status])


def is_in_second_trial(yard: Yard) -> bool:
    return count_trials(yard, "FINISHED") >= 1 and count_trials(yard, "RUNNING") == 1


@pytest.mark.parametrize("way", ["killed", pytest.param("frozen", marks=pytest.mark.faults)])
def test_an_outage_shorter_than_the_lease_costs_only_its_time(
    yard_on_secantus: Yard, secantus: Secantus, way: str
) -> None:
    """The trial at work goes on, its end is recorded when the database is back, once, by the same
    owner."""
    yard = yard_on_secantus
    yard.bench.post_sessions()
    task = yard.bench.post_task("Paced", trials=TRIALS)
    yard.start_worker(executor="process:1", lease_seconds=20.0)
    wait_until(lambda: is_in_second_trial(yard))
    secantus.kill() if way == "killed" else secantus.freeze()
    wait_until(lambda: count_trials(yard, "FINISHED") >= 2)
    wait_until(lambda: "the store does not answer" in yard.log)
    secantus.restart() if way == "killed" else secantus.thaw()
    yard.wait_for(task)
    done = yard.now(task)
    assert (done.status, done.attempt, done.expired_leases) == (TaskStatus.DONE, 1, 0), yard.log
    finished = [e for e in yard.events(task) if e.kind is TaskEventKind.TRIAL_FINISHED]
    assert [event.data["trial"] for event in finished] == [1, 2, 3, 4]
    assert [run.info.status for run in yard.bench.runs(done)] == ["FINISHED"] * TRIALS
    yard.drain()
    check_invariants(yard)


def test_a_worker_cut_off_for_a_lease_stops_working(
    yard_on_secantus: Yard, secantus: Secantus
) -> None:
    """Its trial's process ends and it lives; when the database is back, it goes on with the task,
    and finished trials stay."""
    yard = yard_on_secantus
    yard.bench.post_sessions()
    task = yard.bench.post_task("Paced", trials=TRIALS)
    worker = yard.start_worker(executor="process:1", lease_seconds=2.0)
    wait_until(lambda: is_in_second_trial(yard))
    secantus.kill()
    wait_until(lambda: worker.trials() == [])
    wait_until(lambda: f"task {task.id} is no longer" in yard.log)
    assert worker.exit_code() is None
    secantus.restart()
    yard.wait_for(task)
    done = yard.now(task)
    assert (done.status, done.expired_leases) == (TaskStatus.DONE, 1), (done.error, yard.log)
    yard.drain()
    check_invariants(yard)


def test_a_worker_started_without_its_database_says_so_and_ends(
    yard_on_secantus: Yard, secantus: Secantus
) -> None:
    """What starts it may start it again: it does not hang."""
    yard = yard_on_secantus
    secantus.kill()
    assert yard.start_worker().wait() == 1
    assert "StoreUnavailable" in yard.log
    secantus.restart()
