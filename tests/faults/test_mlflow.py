"""MLflow's server fails: that costs a retry, and neither the task nor a finished trial."""

import sqlite3
from contextlib import closing

import pytest

from embedding_studio.engine.worker import MAX_OUTAGES
from embedding_studio.tasks import TaskStatus
from tests.faults.harness import RemoteYard, Yard, check_invariants
from tests.faults.proxy import Trouble
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

LOG = "POST .*/runs/log-batch"
CREATE_RUN = "POST .*/runs/create"
CREATE_EXPERIMENT = "POST .*/experiments/create"
UPLOAD = "PUT .*/mlflow-artifacts/artifacts"
DELETE = "DELETE .*/mlflow-artifacts/artifacts"
DOWNLOAD = "GET .*/mlflow-artifacts/artifacts/"
SEARCH = "POST .*/runs/search"
REGISTER = "POST .*/(registered-models|model-versions)/"

TROUBLES = [
    Trouble("refuse", LOG, after=2, times=3),
    Trouble("lose answer", CREATE_RUN, after=1, times=1),
    Trouble("lose answer", CREATE_EXPERIMENT, times=2),
    Trouble("reset after", CREATE_EXPERIMENT, times=1),
    Trouble("refuse", UPLOAD, after=3, times=3),
    Trouble("reset", UPLOAD, after=2, times=3),
    Trouble("lose answer", UPLOAD, after=2, times=3),
    Trouble("reset after", DELETE, times=3),
    Trouble("hang", SEARCH, after=2, times=2),
    Trouble("cut", DOWNLOAD, after=2, times=2),
    Trouble("lose answer", REGISTER, times=3),
]


@pytest.mark.parametrize(
    ("method", "troubles"),  # a method each: all start from an initial model, which is beaten
    [
        pytest.param("Toy", TROUBLES[:4], id="the ledger", marks=pytest.mark.faults),
        pytest.param("Heavy", TROUBLES[4:8], id="files in, files out"),
        pytest.param(
            "Paced", TROUBLES[8:], id="reading and the registry", marks=pytest.mark.faults
        ),
    ],
)
def test_failing_requests_cost_no_task(
    remote_yard: RemoteYard, method: str, troubles: list[Trouble]
) -> None:
    """Requests refused, hung, reset, or done but not answered, more often in a row than MLflow's
    own client retries: the task is done, in one attempt, with every invariant."""
    yard = remote_yard
    happening = [yard.proxy.trouble(trouble) for trouble in troubles]
    yard.post_new_sessions()
    task = yard.bench.post_task(method, trials=5)
    yard.start_worker()
    yard.wait_for(task, seconds=120)
    done = yard.now(task)
    assert (done.status, done.attempt) == (TaskStatus.DONE, 1), (done.error, yard.log)
    assert [trouble.happened > 0 for trouble in happening] == [True] * len(troubles), happening
    yard.drain()
    check_invariants(yard)


def test_an_outage_of_mlflow_is_waited_out(remote_yard: RemoteYard) -> None:
    """When MLflow is gone for longer than anyone retries, the worker keeps the task and goes on
    when MLflow is back; finished trials stay."""
    yard = remote_yard
    yard.proxy.trouble(Trouble("reset", "", after=60))
    yard.post_new_sessions()
    task = yard.bench.post_task(trials=5)
    yard.start_worker()
    wait_until(lambda: f"task {task.id}: waits for MLflow" in yard.log)
    assert yard.now(task).status is TaskStatus.PROCESSING
    yard.proxy.heal()
    yard.wait_for(task)
    done = yard.now(task)
    assert (done.status, done.attempt) == (TaskStatus.DONE, 1), (done.error, yard.log)
    yard.drain()
    check_invariants(yard)


@pytest.mark.faults
def test_a_request_that_always_fails_ends_the_task(remote_yard: RemoteYard) -> None:
    """MLflow answers, but one thing never works: the task does not loop, it says what fails."""
    yard = remote_yard
    yard.proxy.trouble(Trouble("refuse", UPLOAD))
    yard.post_new_sessions()
    task = yard.bench.post_task(trials=2)
    yard.start_worker(lease_seconds=60.0)
    yard.wait_for(task, seconds=200)
    done = yard.now(task)
    assert done.status is TaskStatus.ERROR
    assert done.error is not None
    assert "500" in done.error
    assert yard.log.count(f"task {task.id}: waits for MLflow") == MAX_OUTAGES
    yard.proxy.heal()
    yard.drain()


@pytest.mark.faults
def test_a_lock_on_the_local_database_is_waited_out(yard: Yard) -> None:
    """A process frozen in the middle of a write holds the lock for longer than MLflow waits for it:
    the task goes on once it is let go."""
    yard.bench.post_sessions()
    task = yard.bench.post_task("Paced", trials=4)
    yard.start_worker()
    wait_until(lambda: "trial_finished" in {event.kind for event in yard.events(task)})
    file = yard.settings.data_folder / "mlflow.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        waits = f"task {task.id}: waits for MLflow"
        wait_until(lambda: waits in yard.log or yard.now(task).status is TaskStatus.ERROR, 120)
        holder.execute("ROLLBACK")
    yard.wait_for(task)
    done = yard.now(task)
    assert (done.status, done.attempt) == (TaskStatus.DONE, 1), (done.error, yard.log)
    yard.drain()
    check_invariants(yard)
