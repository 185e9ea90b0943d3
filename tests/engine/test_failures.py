"""Failures outside trials: what is told of them, and where the traceback is."""

from pathlib import Path

from embedding_studio.engine.failures import describe
from embedding_studio.settings import Settings
from embedding_studio.tasks import FineTuningTask, TaskEvent, TaskEventKind, TaskStatus
from tests.iterations import Bench, open_bench


def fail(bench: Bench, method: str) -> tuple[FineTuningTask, str, TaskEvent]:
    """Run a task to its failure; return it, its error, and the event that tells of it."""
    task = bench.run_task(method)
    assert task.status is TaskStatus.ERROR
    assert task.error is not None
    return task, task.error, last_event(bench, task)


def last_event(bench: Bench, task: FineTuningTask) -> TaskEvent:
    events = [numbered.event for numbered in bench.house.store.tasks.events(task.id)]
    assert events[-1].kind is TaskEventKind.ERROR
    return events[-1]


def test_a_failure_before_the_search_tells_the_line_of_the_plugin(settings: Settings) -> None:
    """The error says what failed while doing what and where; the history has the traceback of the
    process that it happened in, and the last of what was printed."""
    bench = open_bench(settings.replaced(executor="process:1"))
    _, error, event = fail(bench, "Failing to prepare")
    assert error.startswith(
        "ZeroDivisionError: division by zero (while preparing the data, in toys/"
    )
    assert "toys.py, line " in error
    assert error.endswith(", prepare)")
    assert "1 / len(sessions.train[:0])" in event.data["traceback"]
    assert "Reading the sessions" in event.data["traceback"]
    bench.house.executor.close()
    bench.house.store.close()


def test_a_failure_of_the_search_has_a_run_with_its_traceback(bench: Bench) -> None:
    """It stands beside the trials that finished, in the task's experiment."""
    task, error, event = fail(bench, "Failing to suggest")
    assert error.startswith("KeyError: 'learning_rate' (while proposing a hyperparameter set, in ")
    assert error.endswith(", suggest)")
    (failure,) = bench.runs(task, "failure")
    assert failure.info.status == "FAILED"
    traceback = Path(bench.mlflow.download_artifacts(failure.info.run_id, "traceback.txt"))
    assert traceback.read_text() == event.data["traceback"]
    assert "in suggest" in failure.data.tags["mlflow.note.content"]
    assert [run.info.status for run in bench.runs(task)] == ["FINISHED"]


def test_a_full_disk_is_guessed_where_numpy_does_not_say_so() -> None:
    """Of a file that was written in part it tells two numbers alone."""
    said = describe(OSError("1000 requested and 24 written"), None)
    assert said == "OSError: 1000 requested and 24 written (No space left on device?)"
    assert "space" not in describe(OSError("1000 requested"), None)


def test_a_plugin_does_not_end_the_worker(bench: Bench) -> None:
    """One that calls sys.exit in the worker itself fails its task alone."""
    _, error, _ = fail(bench, "Exiting to suggest")
    assert "called sys.exit(2)" in error
    assert "suggest)" in error


def test_a_missing_main_metric_names_the_plugin(bench: Bench) -> None:
    """Our own errors about what a plugin did name its file, where no line of it is to blame."""
    _, error, event = fail(bench, "Unmeasured")
    assert (
        "lack the main metric 'skill' (while scoring the starting model, in toys/toys.py" in error
    )
    assert "mean_metrics" in event.data["traceback"]


def test_what_says_it_all_has_no_traceback(bench: Bench) -> None:
    """A task that has nothing to learn from says so, and no more."""
    task = bench.post_task()
    assert bench.worker.work_once()
    assert last_event(bench, task).data == {}
