"""MLflow's client: asked again while a server is out of order, and guarded against late writes.

Things are found by tags, never by name. Network faults (time-outs, 5xx) are retried by MLflow's own
client; MLFLOW_HTTP_REQUEST_MAX_RETRIES and its siblings tune that."""

import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Self, TypeVar

import mlflow
import requests
import stamina
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from embedding_studio.tracking.local import speed_up

Result = TypeVar("Result")

_ATTEMPTS = 4  # of a call of many requests, each of which MLflow's client repeats by itself
_PAGE = 1000
_UI_VIEW = {"mlflow.experimentKind": "custom_model_development"}  # runs and metrics, no LLM traces


class Client:
    """One MLflow server or local database.

    artifacts_folder: where model files go when MLflow is a local database; a server decides
    for itself."""

    def __init__(self, tracking_uri: str, artifacts_folder: Path) -> None:
        mlflow.set_tracking_uri(tracking_uri)  # the artifact repositories read the global one
        #: the guard; for writes that do not go through `writing`, as those of files
        self.check: Callable[[], None] = lambda: None
        #: MLflow's client for calls that change nothing
        self.reading = MlflowClient(tracking_uri)
        #: waits until what was written to a local database is on the disk
        self.settle = speed_up(tracking_uri, artifacts_folder)
        self._is_server = tracking_uri.startswith("http")
        self._artifacts_folder = None if self._is_server else artifacts_folder
        self._artifact_uris: dict[str, str] = {}  # by run

    def guarded(self, check: Callable[[], None]) -> Self:
        """Return the same place, asking `check` before every write: what it raises prevents it."""
        guarded = copy(self)
        guarded.check = check
        return guarded

    @property
    def writing(self) -> MlflowClient:
        """MLflow's client for one call that changes something, if the guard lets it."""
        self.check()
        return self.reading

    def is_outage(self, error: BaseException) -> bool:
        """Return whether an error says that the MLflow server is out of order, not that a call is
        wrong. A local database is so only while another process, a frozen one say, holds its lock:
        its other errors are the machine's."""
        if not self._is_server:
            return isinstance(error, MlflowException) and "database is locked" in str(error)
        if isinstance(error, MlflowException):
            status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
            return status >= 500
        if isinstance(error, requests.HTTPError) and error.response is not None:
            return int(error.response.status_code) >= 500
        return isinstance(error, requests.RequestException)

    def ping(self) -> None:
        """Return if MLflow answers, else raise what `is_outage` knows."""
        self.reading.search_experiments(max_results=1)

    def patiently(self, call: Callable[[], Result]) -> Result:
        """Make a call that may be repeated, again and again while the server is out of order.

        MLflow's client repeats single requests; this is for calls of many, such as an upload."""
        caller = stamina.RetryingCaller(attempts=_ATTEMPTS, wait_initial=0.5, wait_max=10.0)
        return caller(self.is_outage, call)

    # -- experiments and runs ------------------------------------------------------------------

    def experiments(
        self,
        tags: Mapping[str, str],
        order_by: Sequence[str] = (),
        page_size: int = _PAGE,
        view_type: int = ViewType.ACTIVE_ONLY,
        since: int = 0,
    ) -> Iterator[Experiment]:
        """Yield the experiments with these tags, fetched as far as they are asked for.

        since: when they were made or removed at the earliest, in ms since the epoch."""
        wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        found = pages(
            self.reading.search_experiments,
            view_type=view_type,
            filter_string=" AND ".join([*wanted, f"last_update_time >= {since}"]),
            order_by=list(order_by),
            max_results=page_size,
        )
        # MLflow reads tags by a second query: those of what was removed between the two are missing
        return (experiment for experiment in found if tags.items() <= experiment.tags.items())

    def create_experiment(self, name: str, tags: Mapping[str, str]) -> str:
        """Create an experiment under a name like `name`: those of deleted ones stay taken."""
        location = None
        if self._artifacts_folder is not None:
            slug = re.sub(r"\W+", "-", name).strip("-").lower()
            location = str(self._artifacts_folder / f"{slug}-{uuid.uuid4().hex[:8]}")
        suffix = 1
        while True:
            given = name if suffix == 1 else f"{name} / {suffix}"
            try:
                created: str = self.writing.create_experiment(given, location, {**tags, **_UI_VIEW})
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                    raise
                there = self.reading.get_experiment_by_name(given)
                if (  # made, but the answer was lost
                    there is not None
                    and there.lifecycle_stage == "active"
                    and tags.items() <= there.tags.items()
                ):
                    return str(there.experiment_id)
                suffix += 1
            else:
                return created

    def runs(self, experiment_id: str) -> Iterator[Run]:
        """Yield the runs of an experiment that are not deleted, the latest first."""
        return pages(self.reading.search_runs, [experiment_id], max_results=_PAGE)

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
        """Open a run and return its id."""
        run = self.writing.create_run(experiment_id, run_name=name, tags=dict(tags))
        run_id: str = run.info.run_id
        self._artifact_uris[run_id] = run.info.artifact_uri
        return run_id

    def artifact_uri(self, run_id: str) -> str:
        """Return where the files of a run lie."""
        if run_id not in self._artifact_uris:  # a run's never changes
            self._artifact_uris[run_id] = self.reading.get_run(run_id).info.artifact_uri
        return self._artifact_uris[run_id]


def pages(search: Callable[..., Any], *args: Any, **options: Any) -> Iterator[Any]:
    """Yield what a search of MLflow's client finds, page after page."""
    token = None
    while True:
        page = search(*args, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def unless_gone() -> Iterator[None]:
    """Around what is about a removal: what is gone already, another worker removed meanwhile."""
    try:
        yield
    except MlflowException as error:
        is_deleted = "must be in the 'active' state" in str(error)  # a run or an experiment
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST) and not is_deleted:
            raise


def repository(artifact_uri: str) -> Any:
    return get_artifact_repository(artifact_uri)  # untyped in mlflow


def local_folder(artifact_uri: str) -> Path | None:
    """Return the folder behind an artifact URI if it is one of this machine."""
    found = repository(artifact_uri)
    is_local = isinstance(found, LocalArtifactRepository)
    return Path(found.artifact_dir) if is_local else None
