"""A worker killed at every step: another goes on, and nothing is redone, lost or left behind."""

import pytest

from embedding_studio.tasks import ServedModel, TaskStatus
from tests.faults.harness import Yard, check_invariants, in_every_run
from tests.faults.points import Fault

pytestmark = pytest.mark.slow

ATTEMPT = "embedding_studio.engine.attempt:Attempt"
FEEDBACK = "embedding_studio.engine.feedback:Feedback"
WORKSPACE = "embedding_studio.engine.workspace:Workspace"
TRACKING = "embedding_studio.tracking.client:Client"
ITERATIONS = "embedding_studio.tracking.iterations:Iterations"
MODELS = "embedding_studio.tracking.models:Models"
REGISTRY = "embedding_studio.tracking.registry:Registry"
RUNS = "embedding_studio.tracking.runs:Runs"
CHAMPIONS = "embedding_studio.engine.champions:Champions"
TASKS = "embedding_studio.store.tasks:Tasks"
CLIENT = "mlflow:MlflowClient"

TRIALS = 4
CRASHES = [
    Fault(f"{TASKS}.claim", "after"),
    Fault(f"{TRACKING}.create_run", "after"),  # the initial model's
    Fault(f"{MODELS}.upload", "after"),
    Fault(f"{MODELS}.confirm", "after"),
    Fault(f"{MODELS}.store_initial", "after"),
    Fault(f"{FEEDBACK}.prepare", "before"),
    Fault(f"{FEEDBACK}.prepare", "after"),
    Fault(f"{FEEDBACK}.release", "before"),  # all is checked, the batch collects
    Fault(f"{TASKS}.record", "before", 2),  # the batch is released, the task does not know
    Fault(f"{FEEDBACK}.release", "after"),
    Fault(f"{TRACKING}.create_experiment", "after", 2),  # not recorded yet
    Fault(f"{ATTEMPT}.open_experiment", "after"),
    Fault(f"{RUNS}.start_baseline", "after"),
    Fault(f"{RUNS}._finish", "before"),  # the baseline's
    Fault(f"{RUNS}._finish", "after"),
    Fault(f"{RUNS}.start_trial", "after"),
    Fault(f"{RUNS}.log_reports", "after", 1),
    Fault(f"{RUNS}.log_reports", "after", 4),
    Fault(f"{MODELS}._upload", "after", 3),  # the first best model's data without its card
    Fault(f"{MODELS}.upload", "after", 2),
    Fault(f"{MODELS}.confirm", "before", 2),
    Fault(f"{MODELS}.confirm", "after", 2),
    Fault(f"{CLIENT}.log_batch", "after", 10),
    Fault(f"{MODELS}.confirm", "after", 3),  # two models of this iteration are stored
    Fault(f"{RUNS}._finish", "before", 3),
    Fault(f"{RUNS}._finish", "after", 3),
    Fault(f"{RUNS}.keep_best", "before", 2),
    Fault("embedding_studio.tracking.models:local_folder", "before", 9),
    Fault(f"{RUNS}.keep_best", "after", 2),
    Fault(f"{RUNS}._finish", "after", TRIALS + 1),  # the last trial's
    Fault(f"{ATTEMPT}.search", "after"),
    Fault(f"{RUNS}.log_test_scores", "after"),
    Fault(f"{RUNS}.log_test_scores", "after", 2),
    Fault(f"{ATTEMPT}.judge", "after"),  # the verdict is recorded
    Fault(f"{RUNS}.store_summary", "before"),
    Fault(f"{CLIENT}.log_artifacts", "after"),
    Fault(f"{RUNS}.store_summary", "after"),
    Fault(f"{CHAMPIONS}.begin_with", "before"),
    Fault(f"{CLIENT}.create_model_version", "after"),  # the initial model's
    Fault(f"{CHAMPIONS}.begin_with", "after"),
    Fault(f"{CHAMPIONS}.promote", "before"),
    Fault(f"{CLIENT}.create_model_version", "after", 2),
    Fault(f"{CHAMPIONS}.promote", "after"),
    Fault(f"{REGISTRY}.set_champion", "before", 2),  # claimed, for as long as a lease
    Fault(f"{REGISTRY}.set_champion", "after", 2),  # the alias has moved
    Fault(f"{ITERATIONS}.remove_older", "before"),
    Fault(f"{ATTEMPT}._retire", "after"),  # what goes is marked, and still there
    Fault(f"{CLIENT}.delete_model_version", "after"),
    Fault(f"{CLIENT}.delete_run", "before"),  # its files are gone
    Fault(f"{CLIENT}.delete_run", "after", 3),
    Fault(f"{CLIENT}.delete_experiment", "before"),
    Fault(f"{ITERATIONS}.remove_older", "after"),
    Fault(f"{ITERATIONS}.set_state", "after"),
    Fault(f"{TASKS}.finish", "before"),
    Fault(f"{TASKS}.finish", "after"),
    Fault(f"{WORKSPACE}.close", "before"),
]
NEED_A_FORMER_ITERATION = (
    "delete_model_version", "delete_run", "delete_exp", "_retire",
)  # fmt: skip


IN_EVERY_RUN = {
    "kill after Tasks.claim #1",
    "kill before Tasks.record #2",
    "kill after Models.confirm #1",
    "kill after Runs.log_reports #4",
    "kill after Models.confirm #3",
    "kill after Attempt.judge #1",
    "kill after Champions.begin_with #1",
    "kill after Champions.promote #1",
    "kill after Registry.set_champion #2",
    "kill after MlflowClient.delete_run #3",
    "kill after Tasks.finish #1",
}


@pytest.mark.parametrize("crash", in_every_run(CRASHES, IN_EVERY_RUN))
def test_another_worker_goes_on_after_kill_nine(yard: Yard, crash: Fault) -> None:
    """Whichever step it dies at, the task ends done, and every invariant holds."""
    if any(name in crash.function for name in NEED_A_FORMER_ITERATION):
        yard.bench.run_task()
        yard.settings = yard.settings.replaced(keep_champions=0)  # else it stays
    yard.bench.post_sessions(start=1000)
    task = yard.bench.post_task(trials=TRIALS)
    first = yard.start_worker(crash)
    first.wait_for_fault()
    assert first.wait() == -9
    yard.start_worker()
    yard.wait_for(task)
    assert yard.now(task).status is TaskStatus.DONE, (yard.now(task).error, yard.log)
    yard.drain()
    check_invariants(yard)


RECIPE = "embedding_studio.engine.recipe:Recipe"
CRASHES_AFTER_THE_SEARCH = [
    Fault(f"{RUNS}.start_training", "after"),
    Fault(f"{RUNS}.finish_training", "before", 2),
    Fault(f"{RECIPE}.folds", "after"),
    Fault(f"{RECIPE}._check", "before"),
    Fault(f"{RECIPE}.refit", "after"),  # two models of this iteration are stored
    Fault(f"{ATTEMPT}.judge", "after"),
    Fault(f"{ATTEMPT}._keep_only", "before"),
    Fault(f"{ATTEMPT}._keep_only", "after"),
]


@pytest.mark.parametrize(
    "crash",
    in_every_run(
        CRASHES_AFTER_THE_SEARCH,
        {"kill after Recipe.refit #1", "kill before Attempt._keep_only #1"},
    ),
)
def test_a_death_while_all_queries_judge_costs_no_trial(yard: Yard, crash: Fault) -> None:
    """The trials stay, the folds and the refit are trained anew until the verdict is recorded, and
    the refit's model is the only one that is left."""
    yard.bench.post_sessions(start=1000)
    task = yard.bench.post_task("Folded", trials=TRIALS)
    first = yard.start_worker(crash)
    first.wait_for_fault()
    assert first.wait() == -9
    yard.start_worker()
    yard.wait_for(task)
    done = yard.now(task)
    assert done.status is TaskStatus.DONE, (done.error, yard.log)
    assert done.promotion is not None
    assert (done.promotion.folds, done.promotion.served_model) == (3, ServedModel.REFIT)
    assert len(yard.bench.runs(done)) == TRIALS
    assert len(yard.bench.runs(done, "training")) == 3
    yard.drain()
    check_invariants(yard)


@pytest.mark.parametrize(
    "action", [pytest.param("kill_trials", marks=pytest.mark.faults), "kill_all"]
)
def test_a_killed_trial_is_a_failed_one_or_its_workers(yard: Yard, action: str) -> None:
    """kill -9 of the trial's process in mid-trial costs that trial, which counts; of trial and
    worker both it costs nothing that had finished."""
    yard.bench.post_sessions()
    task = yard.bench.post_task("Paced", trials=3)
    fault = Fault(f"{RUNS}.log_reports", "after", 2, action)  # in the second trial
    first = yard.start_worker(fault, executor="process:1", lease_seconds=3.0)
    first.wait_for_fault()
    if action == "kill_all":
        assert first.wait() == -9
        yard.start_worker()
    yard.wait_for(task)
    done = yard.now(task)
    assert done.status is TaskStatus.DONE, (done.error, yard.log)
    statuses = [run.info.status for run in yard.bench.runs(done)]
    lost = "FAILED" if action == "kill_trials" else "KILLED"
    assert (statuses.count(lost), statuses.count("FINISHED")) == (1, 2 + (action == "kill_all"))
    assert done.attempt == 1 + (action == "kill_all")
    yard.drain()
    check_invariants(yard)
