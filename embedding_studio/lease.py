"""A worker's hold on one task: renewed from a timer, asked at every step, lost but once."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from embedding_studio.errors import Draining, LeaseLost, StoreUnavailable
from embedding_studio.store.base import Store
from embedding_studio.tasks import Claim, FineTuningTask, TaskProgress

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
            self._store.renew_lease(self.claim, now, self._seconds, self._progress)
        except LeaseLost:
            self._is_lost = True
        except StoreUnavailable:
            if now - self._renewed_at > timedelta(seconds=self._seconds):
                self._is_lost = True
        else:
            self._renewed_at = now

    def drain(self) -> None:
        """Ask the iteration to give the task back."""
        self._is_draining = True

    def check(self) -> None:
        """Raise LeaseLost or Draining if the iteration must end; called at every step."""
        if self._is_lost:
            raise LeaseLost(f"task {self.claim.task_id} is no longer this worker's")
        if self._is_draining:
            raise Draining(f"task {self.claim.task_id} goes back: the worker is asked to end")
