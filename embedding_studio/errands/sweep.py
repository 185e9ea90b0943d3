"""What crashes leave behind, found and removed; champions and live iterations are never touched.

Everything here may be interrupted anywhere and done by several workers at once."""

import logging
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from embedding_studio.clock import is_held
from embedding_studio.deletion import Leftover, remove_tree
from embedding_studio.errors import Conflict, NotFound
from embedding_studio.models import RegisteredModel
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.tasks import TERMINAL, FineTuningTask, TaskStatus

if TYPE_CHECKING:
    from embedding_studio.tracking.iterations import Iteration
    from embedding_studio.tracking.tracking import Tracking

log = logging.getLogger(__name__)


def sweep(
    store: Store, tracking: "Tracking", settings: Settings, now: datetime, dry_run: bool = False
) -> list[str]:
    """Remove what nobody will, and return a sentence on each; dry_run: only tell.

    Iterations of ended or unknown tasks end, with their RUNNING runs; a canceled task's models go;
    so do files of runs and experiments that are gone, and work folders that no attempt owns."""
    models = [
        _retire_initial_models(store, model, settings, now, dry_run) for model in store.models.all()
    ]
    kept_run_ids = {run_id for model in models for run_id in model.kept_run_ids}
    found = []
    for what, remove in chain(
        _iterations(store, tracking, kept_run_ids, now),
        tracking.leftovers.find(models),
        _work_folders(store, settings),
    ):
        if not dry_run:
            remove()
        log.info("%s: %s", "would be swept" if dry_run else "swept", what)
        found.append(what)
    return found


def _iterations(
    store: Store, tracking: "Tracking", kept_run_ids: Collection[str], now: datetime
) -> Iterator[Leftover]:
    """Yield those that nobody ends any more."""

    def finish(iteration: "Iteration", task: FineTuningTask | None, end: TaskStatus) -> None:
        experiment_id, task_id = iteration.experiment_id, iteration.task_id
        if end is TaskStatus.CANCELED:
            why, whose = "the task was canceled", store.in_project(iteration.project)
            whose.tasks.forget_iteration(task_id, experiment_id, now, why, is_whole=False)
            kept = set(kept_run_ids)
            if task is not None:
                model = whose.models.update(
                    task.registered_as, lambda model: model.without_task(task_id, now)
                )
                kept -= {v.model.run_id for v in model.versions if v.removed_at is not None}
            tracking.iterations.discard_task(task_id, kept)
        else:
            tracking.runs.kill_unfinished(experiment_id)
            # a done one has its verdict there already
            error = None if end is TaskStatus.DONE else (task and task.error) or "its worker died"
            tracking.iterations.set_state(experiment_id, end, error)

    for iteration in tracking.iterations.with_models():
        task: FineTuningTask | None = None
        with suppress(NotFound):
            task = store.in_project(iteration.project).tasks.get(iteration.task_id)
        end = TaskStatus.ERROR if task is None else task.status
        if end not in TERMINAL or (task and is_held(task.lease_expires_at, now)):
            continue
        is_over = iteration.state != "running"
        if is_over and not tracking.runs.has_unfinished(iteration.experiment_id):
            continue
        whose = f"task {iteration.task_id}, which is {end if task else 'unknown'}"
        what = f"experiment {iteration.experiment_id} was left {iteration.state} by {whose}"
        yield what, partial(finish, iteration, task, end)


def _retire_initial_models(
    store: Store, model: RegisteredModel, settings: Settings, now: datetime, dry_run: bool
) -> RegisteredModel:
    """Return a model without what its method no longer begins with, the last champions apart."""

    def retire(model: RegisteredModel) -> RegisteredModel:
        for run_id in model.former_initial_runs():
            with suppress(Conflict):
                model = model.retired([run_id], settings.keep_champions, now)
        return model

    if dry_run:
        return retire(model)
    return store.in_project(model.project).models.update(model.name, retire)


def _work_folders(store: Store, settings: Settings) -> Iterator[Leftover]:
    """Yield those that belong to no attempt at work."""
    if not settings.work_folder.exists():
        return
    # in this order: a folder that is there was made by an attempt that is at work by now
    folders = list(settings.work_folder.iterdir())
    # also one whose lease is over: until another claims the task, its worker may wake up and go on
    owned = {f"{task.id}-{task.attempt}" for task in store.tasks.at_work()}
    for folder in folders:
        if folder.name not in owned:
            remove = partial(remove_tree, folder, ignore_errors=True)
            yield f"{folder} belongs to no attempt at work", remove
