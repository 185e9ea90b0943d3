"""Routes that tell whether everything is there."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import httpx
from fastapi import APIRouter, Response

from embedding_studio.access import Scope
from embedding_studio.api.context import Context, OpenContext
from embedding_studio.api.routing import Route
from embedding_studio.api.schemas import (
    HealthView,
    PartHealth,
    PartStatus,
    Pong,
    WorkerHealth,
    WorkerView,
)
from embedding_studio.errors import StoreUnavailable
from embedding_studio.tasks import WorkerRecord

router = APIRouter(tags=["system"], route_class=Route)

_MLFLOW_TIMEOUT_SECONDS = 2.0
_UNTOLD = "told to callers whose API key has the scope read"


@router.get("/ping", summary="Is the API there")
def ping(context: OpenContext) -> Pong:
    return Pong(time=context.clock())


@router.get(
    "/health",
    summary="Are the store, MLflow and a worker there",
    responses={503: {"model": HealthView, "description": "Something is missing; `detail` says"}},
)
def health(response: Response, context: OpenContext) -> HealthView:
    """Where there are API keys, only who shows one with the scope `read` is told the details."""
    store, mlflow, worker = _store(context), _mlflow(context), _worker(context)
    missing = PartStatus.UNAVAILABLE in (store.status, mlflow.status, worker.status)
    if missing:
        response.status_code = 503
    status = PartStatus.UNAVAILABLE if missing else PartStatus.OK
    if not context.caller.allows(Scope.READ):
        store, mlflow = _without_details(store), _without_details(mlflow)
        worker = WorkerHealth(status=worker.status, detail=_UNTOLD)
    return HealthView(status=status, store=store, mlflow=mlflow, worker=worker)


def _without_details(part: PartHealth) -> PartHealth:
    return PartHealth(status=part.status, detail=_UNTOLD)


def _ok(detail: str) -> PartHealth:
    return PartHealth(status=PartStatus.OK, detail=detail)


def _unavailable(detail: str) -> PartHealth:
    return PartHealth(status=PartStatus.UNAVAILABLE, detail=detail)


def _store(context: Context) -> PartHealth:
    try:
        context.store.ping()
    except StoreUnavailable as error:
        return _unavailable(str(error))
    return _ok("answers")


def _mlflow(context: Context) -> PartHealth:
    uri = context.settings.resolved_tracking_uri
    if uri.startswith(("http://", "https://")):
        return _mlflow_server(uri)
    if uri.startswith("sqlite:///"):
        return _mlflow_database(Path(uri.removeprefix("sqlite:///")))
    scheme = uri.split(":", 1)[0]
    return PartHealth(
        status=PartStatus.UNCHECKED, detail=f"the API has no way to check MLflow behind {scheme}:"
    )


def _mlflow_server(uri: str) -> PartHealth:
    url = httpx.URL(uri)
    place = f"{url.scheme}://{url.netloc.decode()}"  # without a user's password
    try:
        response = httpx.get(uri.rstrip("/") + "/health", timeout=_MLFLOW_TIMEOUT_SECONDS)
    except httpx.HTTPError as error:
        return _unavailable(f"{place} does not answer: {error or type(error).__name__}")
    if response.status_code != 200:
        return _unavailable(f"{place}/health answers {response.status_code}")
    return _ok(f"{place} answers")


def _mlflow_database(file: Path) -> PartHealth:
    if not file.is_file():
        return _unavailable(f"{file} does not exist yet; the first worker creates it")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
            connection.execute("select 1 from experiments limit 1")
    except sqlite3.Error as error:
        return _unavailable(f"{file} cannot be read: {error}")
    return _ok(f"{file} can be read")


def _worker(context: Context) -> WorkerHealth:
    settings = context.settings
    silence_seconds = max(settings.lease_seconds, 3 * settings.poll_seconds)
    try:
        workers = context.store.list_workers(context.clock() - timedelta(seconds=silence_seconds))
    except StoreUnavailable as error:
        return WorkerHealth(status=PartStatus.UNAVAILABLE, detail=f"unknown: {error}")
    if not workers:
        return WorkerHealth(
            status=PartStatus.UNAVAILABLE,
            detail=f"no worker was seen in the last {silence_seconds:g} seconds; "
            "start one with `embedding-studio worker`",
        )
    return WorkerHealth(
        status=PartStatus.OK,
        detail=_describe_workers(workers),
        live=[
            WorkerView(
                worker_id=one.worker_id,
                methods=list(one.methods),
                seen_at=one.seen_at,
                plugin_failures=one.plugin_failures,
                missing_models=one.missing_models,
            )
            for one in workers
        ],
        methods=sorted({method for one in workers for method in one.methods}),
    )


def _describe_workers(workers: Sequence[WorkerRecord]) -> str:
    failed = sorted({place for one in workers for place in one.plugin_failures})
    missing = {name: why for one in workers for name, why in one.missing_models.items()}
    told = [f"{len(workers)} live"]
    if failed:
        told.append(f"plugins that did not load: {', '.join(failed)}")
    told += [f"{name!r} has no initial model: {missing[name]}" for name in sorted(missing)]
    return "; ".join(told)
