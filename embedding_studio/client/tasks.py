"""Calls for fine-tuning tasks and the models they made."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict, Unpack

from embedding_studio.client.connection import REPORT_SECONDS, Connection
from embedding_studio.tasks import TERMINAL, Budget, Promote, SearchOptions, TaskStatus
from embedding_studio.wire.tasks import TaskBody, TaskEventsPage, TaskEventView, TaskPlan, TaskView


class TaskTerms(TypedDict, total=False):
    """How a task, or each task of a schedule, learns; what is left out is the method's own."""

    metadata: Mapping[str, Any] | None
    budget: Budget | None
    search: SearchOptions | None
    #: as how many clicks an event counts, by its type
    event_weights: Mapping[str, float] | None
    promote: Promote | None
    folds: int | None
    webhook_url: str | None
    #: learn from the sessions that were made in this time: "30d", say, or from a moment on
    last: str | None
    since: datetime | None
    #: labels to learn from, too or alone, and labels that decide what is promoted
    labels_id: str | None
    judge_labels_id: str | None
    #: the registered model that it goes on with; the method's name when absent
    model_name: str | None
    #: the model that it starts from
    initial_model: str | None
    seed: int | None
    #: hyperparameters that are fixed, or whose range is narrowed
    parameters: Mapping[str, Any] | None


class TaskOptions(TaskTerms, total=False):
    """How one task learns, and what from; by default from what is now collecting."""

    batch_id: str | None
    batch_ids: Sequence[str] | None
    until: datetime | None


class TaskCalls(Connection):
    """What asks for fine-tunings, follows them and fetches what they made."""

    def create_task(
        self,
        fine_tuning_method: str,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> TaskView:
        """Ask for a fine-tuning. Without an idempotency_key, each call asks for another one."""
        # made up here if need be: a retry after a lost answer must not add a second task
        key = idempotency_key or str(uuid.uuid4())
        asked = {"fine_tuning_method": fine_tuning_method, "idempotency_key": key, **options}
        return self._post(TaskView, "/fine-tuning/task", TaskBody.unchecked(**asked))

    def plan_task(self, fine_tuning_method: str, **options: Unpack[TaskOptions]) -> TaskPlan:
        """Tell what a task would take, and whether that is enough; nothing is created and nothing
        released. It is refused as `create_task` would be."""
        body = TaskBody.unchecked(fine_tuning_method=fine_tuning_method, **options)
        answer = self._call(
            "POST",
            "/fine-tuning/task",
            params={"dry_run": "true"},
            json=body.model_dump(warnings=False),
            timeout=REPORT_SECONDS,
        )
        return self._read(TaskPlan, answer)

    def get_task(self, task_id: str) -> TaskView:
        return self._get(TaskView, f"/fine-tuning/task/{task_id}")

    def list_tasks(
        self, status: TaskStatus | None = None, skip: int = 0, limit: int = 100
    ) -> list[TaskView]:
        """Return tasks newest first."""
        params = {} if status is None else {"status": status}
        return self._get(list[TaskView], "/fine-tuning/task", skip=skip, limit=limit, **params)

    def cancel_task(self, task_id: str) -> TaskView:
        return self._put(TaskView, f"/fine-tuning/task/{task_id}/cancel")

    def stop_task(self, task_id: str) -> TaskView:
        """Ask for the task to end with the best model it has so far."""
        return self._put(TaskView, f"/fine-tuning/task/{task_id}/stop")

    def restart_task(
        self,
        task_id: str,
        fresh: bool = False,
        *,
        max_trials: int | None = None,
        max_minutes: float | None = None,
    ) -> TaskView:
        """Run a stopped, canceled or failed task again, if `fresh` without its finished trials; a
        done one with more trials, those that it had among them."""
        limits = {"max_trials": max_trials, "max_minutes": max_minutes}
        more = {name: limit for name, limit in limits.items() if limit is not None}
        return self._put(TaskView, f"/fine-tuning/task/{task_id}/restart", fresh=fresh, **more)

    def task_events(self, task_id: str, after_number: int = 0) -> Iterator[TaskEventView]:
        """Yield what has happened to a task so far, oldest first."""
        after: int | None = after_number
        while after is not None:
            path = f"/fine-tuning/task/{task_id}/events"
            page = self._get(TaskEventsPage, path, after_number=after)
            yield from page.events
            after = page.last_number

    def wait_for_task(
        self,
        task_id: str,
        on_update: Callable[[TaskView], None] = lambda task: None,
        poll_seconds: float = 1.0,
    ) -> TaskView:
        """Return the task once it has ended, however; each look at it is passed on."""
        while True:
            task = self.get_task(task_id)
            on_update(task)
            if task.status in TERMINAL:
                return task
            time.sleep(poll_seconds)

    def download_model(self, task_id: str, folder: Path) -> None:
        """Write a task's model to `folder`, which must not exist yet or be empty.

        The folder appears only once it is complete. Raises CorruptModel for a damaged download."""
        self._download_model(f"/fine-tuning/task/{task_id}/model", folder)

    def download_study(self, task_id: str, file: Path) -> None:
        """Write the Optuna study of a task's search to a file that Optuna opens, as its storage
        `sqlite:///FILE`. The file appears, or is replaced, only once it is complete."""
        self._export(f"/fine-tuning/task/{task_id}/study", file)
