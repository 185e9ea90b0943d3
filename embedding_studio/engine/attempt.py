"""One attempt at a task: what its steps share, and how they reach the store and the executor."""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from embedding_studio.clock import Clock
from embedding_studio.engine.failures import during
from embedding_studio.engine.jobs import MethodRef, Score
from embedding_studio.engine.lease import Lease
from embedding_studio.errors import MethodError, Stopped, StoreUnavailable
from embedding_studio.executors.base import Executor, Job, Resources, Verdict
from embedding_studio.methods import AnyMethod, Scores
from embedding_studio.settings import Settings
from embedding_studio.store.base import Store
from embedding_studio.tasks import FineTuningTask, TaskEvent, TaskEventKind
from embedding_studio.tracking import Tracking

Result = TypeVar("Result")

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class House:
    """What an iteration works with; made once per worker."""

    store: Store
    tracking: Tracking
    executor: Executor
    settings: Settings
    clock: Clock


class Attempt:
    """One worker's try at a task: what its steps share.

    has_model: whether a model of
    this iteration was uploaded, be it not yet read back. outputs: a folder with what jobs printed,
    trials apart, a file each, numbered.
    """

    def __init__(self, house: House, task: FineTuningTask, lease: Lease, method: AnyMethod) -> None:
        self.store = house.store.in_project(task.project)
        self.tracking = house.tracking
        self.executor = house.executor
        self.settings = house.settings
        self.clock = house.clock
        self.task = task
        self.lease = lease
        self.method = method
        self.ref = MethodRef.to(method, house.settings.plugins_folder)
        self.budget = task.budget.or_else(method.budget)
        self.needs = Resources(method.num_cpus, method.num_gpus)
        self.work = house.settings.work_folder / f"{task.id}-{task.attempt}"
        self.start_folder = self.work / "start"
        self.data_folder = self.work / "data"
        self.best_folder = self.work / "best"
        self.outputs = self.work / "output"
        self._numbers = itertools.count(1)
        self._submitted: dict[Future[Any], tuple[str, Path]] = {}
        self.has_model = task.best_model is not None

    # -- jobs --------------------------------------------------------------------------------------

    def run(self, job: Job[Result], meanwhile: Callable[[], None] = lambda: None) -> Result:
        """Run one job on the executor; meanwhile: as `first_done` has it. Raises as `result_of`."""
        self.check()
        return self.result_of(self.submit(job), meanwhile)

    def submit(self, job: Job[Result]) -> "Future[Result]":
        """Start a job whose reports, if it makes any, change nothing."""
        output = self.outputs / f"{next(self._numbers)}-{job.doing.replace(' ', '-')}.txt"
        go_on = Verdict.CONTINUE
        future = self.executor.submit(job, lambda _: go_on, self.needs, output)
        self._submitted[future] = (job.doing, output)
        return future

    def result_of(
        self, future: "Future[Result]", meanwhile: Callable[[], None] = lambda: None
    ) -> Result:
        """Return what a job gives or raise what it raised, ending it when the attempt must end.

        Raises MethodError when the job takes longer than ES_MAX_JOB_MINUTES."""
        doing, output = self._submitted.pop(future)
        with during(doing, output):
            try:
                self.first_done([future], self._ending(meanwhile, self.check))
            except BaseException:
                self.executor.kill(future)
                wait([future])
                raise
            return future.result()

    def call(
        self, doing: str, function: Callable[[], Result], meanwhile: Callable[[], None]
    ) -> Result:
        """Return what a function of the plugin gives in this process, in a thread that is left to
        itself when it hangs. Raises as `result_of`."""
        future: Future[Result] = Future()

        def work() -> None:
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it becomes the future's exception
                future.set_exception(error)

        threading.Thread(target=copy_context().run, args=(work,), daemon=True).start()
        with during(doing):
            self.first_done([future], self._ending(meanwhile))
            return future.result()

    def _ending(self, *meanwhile: Callable[[], None]) -> Callable[[], None]:
        """Return what is called again and again while a step goes on, to end it when it is due."""
        minutes = self.settings.max_job_minutes
        deadline = time.monotonic() + minutes * 60

        def end_if_due() -> None:
            for look in meanwhile:
                look()
            if time.monotonic() >= deadline:
                raise MethodError(
                    f"still going on after {minutes:g} minutes, it was ended: does the method wait "
                    "for something? If it needs longer, raise ES_MAX_JOB_MINUTES"
                )

        return end_if_due

    def first_done(
        self, running: Collection[Future[Any]], meanwhile: Callable[[], None]
    ) -> set[Future[Any]]:
        """Wait for the first of some jobs, asking the lease and calling `meanwhile` again and
        again."""
        while True:
            done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            self.lease.check()
            if done:
                return done
            meanwhile()

    def check(self) -> None:
        """Raise LeaseLost or Draining if the attempt must end, and Stopped if the task is to stop
        and has no model yet, for there will be nothing to keep."""
        self.lease.check()
        if self.lease.is_stopping and not self.has_model:
            raise Stopped("stopped before any hyperparameter set had given a model")

    def score(
        self, model_folder: Path, split: str, meanwhile: Callable[[], None] = lambda: None
    ) -> Scores:
        """Score a saved model on a split of the prepared data."""
        return self.run(Score(self.ref, model_folder, self.data_folder, split), meanwhile)

    def kept_run_ids(self) -> Collection[str]:
        """Return the runs whose models are those of registered versions, not to be deleted."""
        find = partial(self.store.models.find, self.task.fine_tuning_method)
        model = self.patiently(find)
        return model.kept_run_ids if model else ()

    # -- the task ----------------------------------------------------------------------------------

    def record(
        self, kind: TaskEventKind, detail: str, data: Mapping[str, Any], **fields: Any
    ) -> None:
        """Set fields of the task and add an event to its history, in one fenced write."""
        if fields:  # they name what is in MLflow
            self.tracking.settle()
        now = self.clock()
        event = TaskEvent(kind, now, detail, data)
        self.patiently(
            partial(self.store.tasks.record, self.lease.claim, now, event=event, **fields)
        )

    def warn(self, what: str, run_id: str | None = None) -> None:
        """Tell of what is no failure, in the log, the task's history and the run's note."""
        log.warning("%s", what)
        if run_id is not None:
            self.tracking.warn(run_id, what)
        self.record(TaskEventKind.WARNING, what, {})

    def patiently(self, call: Callable[[], Result]) -> Result:
        """Ask the store until it answers, for as long as the lease holds."""
        while True:
            try:
                return call()
            except StoreUnavailable as error:
                log.warning("the store does not answer: %s", error)
                self.lease.check()
                time.sleep(POLL_SECONDS)
