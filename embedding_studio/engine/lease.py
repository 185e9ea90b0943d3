"""A worker's hold on one task: renewed from a timer, asked at every step, lost but once."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

from embedding_studio.clock import Clock
from embedding_studio.errors import Draining, LeaseLost, Stopped, StoreUnavailable
from embedding_studio.store import Store
from embedding_studio.tasks import Claim, FineTuningTask, TaskProgress, TaskStatus

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
"""How often what waits asks its lease."""


class Lease:
    """A worker's hold on the task it has claimed.

    `beat` is called from a timer, everything else from the attempt."""

    def __init__(
        self, store: Store, task: FineTuningTask, worker_id: str, seconds: float, clock: Clock
    ) -> None:
        self.claim = Claim(task.id, task.attempt, worker_id)
        self._store = store
        self._seconds = seconds
        self._clock = clock
        self._ends_at = task.lease_expires_at or clock() + timedelta(seconds=seconds)
        self._lock = threading.Lock()
        self._progress = TaskProgress(phase="prepare")
        self._is_lost = False
        self._is_draining = False
        #: whether a model of this iteration was uploaded, be it not yet read back
        self.has_model = task.best_model is not None
        is_stopping = task.status is TaskStatus.STOPPING
        self._stop_noticed_at = time.monotonic() if is_stopping else None

    def show(self, **changes: Any) -> None:
        """Change fields of the task's progress; the next beat writes them."""
        with self._lock:
            self._progress = replace(self._progress, **changes)

    @property
    def progress(self) -> TaskProgress:
        """What was shown so far."""
        return self._progress

    def beat(self) -> None:
        """Renew the lease and write the progress.

        A database that does not answer costs nothing until the lease has run out."""
        now = self._clock()
        try:
            status = self._store.tasks.renew(self.claim, now, self._seconds, self._progress)
        except LeaseLost:
            self._is_lost = True
        except StoreUnavailable:
            if now >= self._ends_at:
                self._is_lost = True
        else:
            self._ends_at = now + timedelta(seconds=self._seconds)
            if status is TaskStatus.STOPPING and self._stop_noticed_at is None:
                self._stop_noticed_at = time.monotonic()

    def drain(self) -> None:
        """Ask the iteration to give the task back."""
        self._is_draining = True

    @property
    def gained(self) -> tuple[str, int]:
        """How far the attempt has come: its phase, and how many trials have finished."""
        return self._progress.phase, self._progress.finished_trials

    @property
    def is_stopping(self) -> bool:
        """Whether the iteration is to come to an end with what it has."""
        return self._stop_noticed_at is not None

    @property
    def seconds_since_stop(self) -> float:
        """How long ago the stop was noticed; 0 if there is none."""
        return 0.0 if self._stop_noticed_at is None else time.monotonic() - self._stop_noticed_at

    def ensure_owned(self) -> None:
        """Raise LeaseLost if the task is another's; called before every write to MLflow too, which
        cannot tell an owner from a former one."""
        if not self._is_lost and self._clock() >= self._ends_at:
            self.beat()  # asleep, or cut off, for a whole lease: is the task still ours?
        if self._is_lost:
            raise LeaseLost(f"task {self.claim.task_id} is no longer this worker's")

    def check(self) -> None:
        """Raise LeaseLost or Draining if the iteration must end; called at every step."""
        self.ensure_owned()
        if self._is_draining:
            raise Draining(f"task {self.claim.task_id} goes back: the worker is asked to end")

    def check_stop(self) -> None:
        """Raise what `check` raises, and Stopped if the task is to stop and has no model yet, for
        there will be nothing to keep."""
        self.check()
        if self.is_stopping and not self.has_model:
            raise Stopped("stopped before any hyperparameter set had given a model")

    def patiently(
        self,
        ask: Callable[Arguments, Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Ask the store until it answers, for as long as the lease holds."""
        while True:
            try:
                return ask(*args, **kwargs)
            except StoreUnavailable as error:
                log.warning("the store does not answer: %s", error)
                self.check()
                time.sleep(POLL_SECONDS)
