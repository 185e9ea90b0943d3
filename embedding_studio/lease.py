"""A worker's hold on one task: renewed from a timer, asked at every step, lost but once."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from embedding_studio.errors import Draining, LeaseLost, StoreUnavailable
from embedding_studio.store.base import Store
from embedding_studio.tasks import Claim, FineTuningTask, TaskProgress, TaskStatus

Clock = Callable[[], datetime]


class Lease:
    """task: as claimed. `beat` is called from a timer; everything else from the iteration."""

    def __init__(
        self, store: Store, task: FineTuningTask, worker_id: str, seconds: float, clock: Clock
    ) -> None:
        self.claim = Claim(task.id, task.attempt, worker_id)
        self._store = store
        self._seconds = seconds
        self._clock = clock
        self._renewed_at = clock()
        self._lock = threading.Lock()
        self._progress = TaskProgress(phase="prepare")
        self._is_lost = False
        self._is_draining = False
        is_stopping = task.status is TaskStatus.STOPPING
        self._stop_noticed_at = time.monotonic() if is_stopping else None

    def show(self, **changes: Any) -> None:
        """Change fields of the task's progress; the next beat writes them."""
        with self._lock:
            self._progress = replace(self._progress, **changes)

    def beat(self) -> None:
        """Renew the lease and write the progress.

        A database that does not answer costs nothing until the lease has run out.
        """
        now = self._clock()
        try:
            status = self._store.renew_lease(self.claim, now, self._seconds, self._progress)
        except LeaseLost:
            self._is_lost = True
        except StoreUnavailable:
            if now - self._renewed_at > timedelta(seconds=self._seconds):
                self._is_lost = True
        else:
            self._renewed_at = now
            if status is TaskStatus.STOPPING and self._stop_noticed_at is None:
                self._stop_noticed_at = time.monotonic()

    def drain(self) -> None:
        """Ask the iteration to give the task back."""
        self._is_draining = True

    @property
    def is_stopping(self) -> bool:
        """Whether the iteration is to come to an end with what it has."""
        return self._stop_noticed_at is not None

    @property
    def seconds_since_stop(self) -> float:
        """How long ago the stop was noticed; 0 if there is none."""
        return 0.0 if self._stop_noticed_at is None else time.monotonic() - self._stop_noticed_at

    def check(self) -> None:
        """Raise LeaseLost or Draining if the iteration must end; called at every step."""
        if self._is_lost:
            raise LeaseLost(f"task {self.claim.task_id} is no longer this worker's")
        if self._is_draining:
            raise Draining(f"task {self.claim.task_id} goes back: the worker is asked to end")
