"""Whether the store, MLflow and a worker are there."""

import asyncio
import shutil
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from embedding_studio.api.looks import Look
from embedding_studio.clickstream import Usage
from embedding_studio.clock import Clock
from embedding_studio.errors import ConfigurationError, StoreUnavailable
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.store.usage import most_of
from embedding_studio.tracking import reader
from embedding_studio.wire.system import (
    HealthView,
    PartHealth,
    PartStatus,
    WorkerHealth,
    WorkerView,
)
from embedding_studio.workers import WorkerRecord, silence_allowed

AGE = timedelta(seconds=1)
"""How old what is told may be."""
LOOK_SECONDS = 3.0
NEARLY_FULL = 0.8
"""From this share on of what a project may hold, it is told of."""
LOW_DISK_BYTES = 1024**3
MAX_CLOCK_SECONDS = 5.0
"""A worker's clock that is further off than this is told of."""
_UNTOLD = "told to callers whose API key has the scope admin"

Part = TypeVar("Part", bound=PartHealth)


class Health:
    """What is there, looked at beside the requests and for all callers together: a part that hangs
    costs none of them more than the time of one look, and no thread."""

    def __init__(self, store: Store, settings: Settings, clock: Clock) -> None:
        uri = settings.resolved_tracking_uri
        self._store = Look(lambda: _store(store, settings), clock, LOOK_SECONDS)
        self._mlflow = Look(lambda: _mlflow(uri), clock, LOOK_SECONDS)
        self._worker = Look(lambda: _worker(store, settings, clock), clock, LOOK_SECONDS)

    async def view(self) -> HealthView:
        store, mlflow, worker = await asyncio.gather(
            _latest(self._store, PartHealth),
            _latest(self._mlflow, PartHealth),
            _latest(self._worker, WorkerHealth),
        )
        missing = PartStatus.UNAVAILABLE in (store.status, mlflow.status, worker.status)
        return HealthView(
            status=PartStatus.UNAVAILABLE if missing else PartStatus.OK,
            store=store,
            mlflow=mlflow,
            worker=worker,
        )


def without_details(view: HealthView) -> HealthView:
    """Return what is told to those who may not hear of hosts, paths and plugins."""
    return HealthView(
        status=view.status,
        store=PartHealth(status=view.store.status, detail=_UNTOLD),
        mlflow=PartHealth(status=view.mlflow.status, detail=_UNTOLD),
        worker=WorkerHealth(status=view.worker.status, detail=_UNTOLD),
    )


async def _latest(look: Look[Part], kind: type[Part]) -> Part:
    try:
        return await look.latest(AGE)
    except TimeoutError:
        detail = f"no answer within {LOOK_SECONDS:g} seconds"
        return kind(status=PartStatus.UNAVAILABLE, detail=detail)


def _store(store: Store, settings: Settings) -> PartHealth:
    try:
        store.ping()
        told = [*_full_projects(store, most_of(settings)), *_full_disk(settings.data_folder)]
    except StoreUnavailable as error:
        return PartHealth(status=PartStatus.UNAVAILABLE, detail=str(error))
    return PartHealth(status=PartStatus.OK, detail="; ".join(["answers", *told]))


def _full_projects(store: Store, most: Usage) -> Iterator[str]:
    for project, used in sorted(store.clickstream.usage().items()):
        for share, what in (
            (used.sessions / most.sessions, "ES_MAX_PROJECT_SESSIONS"),
            (used.bytes / most.bytes, "ES_MAX_PROJECT_MB"),
        ):
            if share >= NEARLY_FULL:
                yield f"project {project!r} holds {share:.0%} of what it may ({what})"


def _full_disk(folder: Path) -> Iterator[str]:
    if folder.exists() and (free := shutil.disk_usage(folder).free) < LOW_DISK_BYTES:
        yield f"the disk of {folder} has {free // 1024**2} MB left"


def _mlflow(uri: str) -> PartHealth:
    try:
        return PartHealth(status=PartStatus.OK, detail=reader.look(uri))
    except StoreUnavailable as error:
        return PartHealth(status=PartStatus.UNAVAILABLE, detail=str(error))
    except ConfigurationError as error:
        return PartHealth(status=PartStatus.UNCHECKED, detail=str(error))


def _worker(store: Store, settings: Settings, clock: Clock) -> WorkerHealth:
    silence = silence_allowed(settings)
    try:
        workers = store.workers.seen(clock() - silence)
    except StoreUnavailable as error:
        return WorkerHealth(status=PartStatus.UNAVAILABLE, detail=f"unknown: {error}")
    if not workers:
        return WorkerHealth(
            status=PartStatus.UNAVAILABLE,
            detail=f"no worker was seen in the last {silence.total_seconds():g} seconds; "
            "start one with `embedding-studio worker`",
        )
    return WorkerHealth(
        status=PartStatus.OK,
        detail=_describe_workers(workers),
        live=[WorkerView.model_validate(one, from_attributes=True) for one in workers],
        methods=sorted({method for one in workers for method in one.methods}),
    )


def _describe_workers(workers: Sequence[WorkerRecord]) -> str:
    failed = sorted({place for one in workers for place in one.plugin_failures})
    missing = {name: why for one in workers for name, why in one.missing_models.items()}
    told = [f"{len(workers)} live"]
    if failed:
        told.append(f"plugins that did not load: {', '.join(failed)}")
    told += [f"{name!r} has no initial model: {missing[name]}" for name in sorted(missing)]
    told += [
        f"the clock of {one.worker_id} is {one.clock_ahead_seconds:+.0f} s off the database's, by "
        "which it works: set it"
        for one in workers
        if abs(one.clock_ahead_seconds) > MAX_CLOCK_SECONDS
    ]
    return "; ".join(told)
