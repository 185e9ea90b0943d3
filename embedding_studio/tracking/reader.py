"""MLflow seen without importing it: whether it answers, the files of a model, links for people."""

import posixpath
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx

from embedding_studio.errors import ConfigurationError, NotFound, StoreUnavailable, Unreadable
from embedding_studio.outbound import Outbound
from embedding_studio.tasks import ModelFile, StoredModel

RUNS_VIEW = "iteration"
"""The view of its runs that every iteration's experiment keeps."""
TRAINING_UI = "workflowType=machine_learning"
"""In a link to MLflow's UI: the part for models that are trained, with runs and the registry."""
CARD = "README.md"
_CHUNK_BYTES = 256 * 1024
_TIMEOUT_SECONDS = 30.0
_PROXY_ROUTE = "/api/2.0/mlflow-artifacts/artifacts"
_LOOK_SECONDS = 2.0
_LOOK_BYTES = 64 * 1024


def experiment_url(public_url: str, experiment_id: str) -> str:
    """Return where people see an iteration: its runs, as its own view shows them."""
    return (
        f"{public_url.rstrip('/')}/#/experiments/{experiment_id}/runs"
        f"?{TRAINING_UI}&viewStateShareKey={RUNS_VIEW}"
    )


QUERIES_PAGE = "queries.html"
"""The file of a run that shows what was ranked first before and after."""


def run_url(public_url: str, experiment_id: str, run_id: str, artifact: str = "") -> str:
    """Return where people see a run, or a file of it."""
    place = f"{public_url.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
    return f"{place}{artifact and f'/artifacts/{artifact}'}?{TRAINING_UI}"


def look(tracking_uri: str) -> str:
    """Return how an MLflow answers. Raises StoreUnavailable when it does not, ConfigurationError
    when there is no way to ask it."""
    if tracking_uri.startswith(("http://", "https://")):
        return _look_at_server(tracking_uri)
    if tracking_uri.startswith("sqlite:///"):
        return _look_at_database(Path(tracking_uri.removeprefix("sqlite:///")))
    scheme = tracking_uri.split(":", 1)[0]
    raise ConfigurationError(f"the API has no way to check MLflow behind {scheme}:")


def _look_at_server(uri: str) -> str:
    url = httpx.URL(uri)
    place = f"{url.scheme}://{url.netloc.decode()}"  # without a user's password
    try:
        # in its time altogether, which httpx alone does not promise
        with Outbound(allow_private=True) as http:
            http.get(uri.rstrip("/") + "/health", _LOOK_SECONDS, _LOOK_BYTES)
    except httpx.HTTPStatusError as error:
        answer = f"{place}/health answers {error.response.status_code}"
        raise StoreUnavailable(answer) from error
    except (httpx.HTTPError, Unreadable) as error:
        why = f"{place} does not answer: {error or type(error).__name__}"
        raise StoreUnavailable(why) from error
    return f"{place} answers"


def _look_at_database(file: Path) -> str:
    if not file.is_file():
        raise StoreUnavailable(f"{file} does not exist yet; the first worker creates it")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
            connection.execute("select 1 from experiments limit 1")
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{file} cannot be read: {error}") from error
    return f"{file} can be read"


class ModelFolder(ABC):
    """The folder of one stored model, wherever it is."""

    @abstractmethod
    def size_bytes(self, path: str) -> int | None:
        """Return the size of a file, None if there is no such file."""

    @abstractmethod
    def read(self, path: str) -> Iterator[bytes]:
        """Yield a file's bytes in chunks."""

    def check(self, files: tuple[ModelFile, ...]) -> None:
        """Raise NotFound unless every file is there in its full size."""
        for file in files:
            if (found := self.size_bytes(file.path)) != file.size_bytes:
                state = "is gone" if found is None else f"has {found} bytes instead"
                raise NotFound(
                    f"the model's file {file.path!r} ({file.size_bytes} bytes) {state}; "
                    "the model was removed, or its artifacts are damaged"
                )


class _LocalFolder(ModelFolder):
    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def size_bytes(self, path: str) -> int | None:
        file = self._locate(path)
        return file.stat().st_size if file.is_file() else None

    def read(self, path: str) -> Iterator[bytes]:
        with self._locate(path).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def _locate(self, path: str) -> Path:
        file = (self._folder / path).resolve()
        if not file.is_relative_to(self._folder):  # through a symbolic link
            raise NotFound(f"the model's file {path!r} leads out of the model's folder")
        return file


class _ProxiedFolder(ModelFolder):
    """Artifacts that MLflow's server hands out over HTTP."""

    def __init__(self, tracking_uri: str, folder: str) -> None:
        self._base = tracking_uri.rstrip("/") + _PROXY_ROUTE
        self._folder = folder
        self._listings: dict[str, dict[str, int]] = {}

    def size_bytes(self, path: str) -> int | None:
        parent, name = posixpath.split(posixpath.join(self._folder, path))
        if parent not in self._listings:
            self._listings[parent] = self._list(parent)
        return self._listings[parent].get(name)

    def read(self, path: str) -> Iterator[bytes]:
        url = f"{self._base}/{quote(posixpath.join(self._folder, path))}"
        try:
            with httpx.stream("GET", url, timeout=_TIMEOUT_SECONDS) as response:
                _expect_ok(response, path)
                yield from response.iter_bytes(_CHUNK_BYTES)
        except httpx.HTTPError as error:
            raise StoreUnavailable(f"MLflow's server stopped sending {path!r}: {error}") from error

    def _list(self, parent: str) -> dict[str, int]:
        try:
            response = httpx.get(self._base, params={"path": parent}, timeout=_TIMEOUT_SECONDS)
        except httpx.HTTPError as error:
            raise StoreUnavailable(f"MLflow's server does not answer: {error}") from error
        if response.status_code == 404:
            return {}
        _expect_ok(response, parent)
        entries: list[dict[str, Any]] = response.json().get("files", [])
        return {
            entry["path"]: int(entry.get("file_size", 0))
            for entry in entries
            if not entry.get("is_dir")
        }


def _expect_ok(response: httpx.Response, what: str) -> None:
    if response.status_code != 200:
        raise StoreUnavailable(
            f"MLflow's server answered {response.status_code} for the artifact {what!r}; "
            "it must run with --serve-artifacts"
        )


def open_summary(experiment_id: str, tracking_uri: str) -> ModelFolder | None:
    """Return the folder of what an iteration's search found; None where there is none (yet).

    Raises StoreUnavailable, ConfigurationError."""
    is_server = tracking_uri.startswith(("http://", "https://"))
    ask = _ask_server_for_summary if is_server else _ask_database_for_summary
    found = ask(experiment_id, tracking_uri)
    return open_model(StoredModel("", found, ()), tracking_uri) if found else None


def _ask_server_for_summary(experiment_id: str, tracking_uri: str) -> str | None:
    asked = {"experiment_ids": [experiment_id], "filter": "tags.`es.kind` = 'summary'"}
    url = f"{tracking_uri.rstrip('/')}/api/2.0/mlflow/runs/search"
    try:
        response = httpx.post(url, json=asked, timeout=_TIMEOUT_SECONDS)
    except httpx.HTTPError as error:
        raise StoreUnavailable(f"MLflow's server does not answer: {error}") from error
    if response.status_code != 200:
        raise StoreUnavailable(f"MLflow's server answered {response.status_code} for its runs")
    runs: list[dict[str, Any]] = response.json().get("runs", [])
    return next((str(run["info"]["artifact_uri"]) for run in runs), None)


def _ask_database_for_summary(experiment_id: str, tracking_uri: str) -> str | None:
    file = Path(tracking_uri.removeprefix("sqlite:///"))
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as connection:
            found = connection.execute(_SUMMARY, (experiment_id,)).fetchone()
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{file} cannot be read: {error}") from error
    return str(found[0]) if found else None


_SUMMARY = (
    "select artifact_uri from runs join tags using (run_uuid) where experiment_id = ? "
    "and lifecycle_stage = 'active' and key = 'es.kind' and value = 'summary'"
)


def open_model(model: StoredModel, tracking_uri: str) -> ModelFolder:
    """Return the model's folder. Raises ConfigurationError where this process cannot read it, and
    NotFound when a path would lead out of it."""
    for file in model.files:
        parts = PurePosixPath(file.path).parts
        if not parts or ".." in parts or file.path.startswith("/") or "\\" in file.path:
            raise NotFound(f"the model's file {file.path!r} leads out of the model's folder")
    uri = urlsplit(model.artifact_uri)
    path = unquote(uri.path)
    if not uri.scheme and Path(model.artifact_uri).is_absolute():
        return _LocalFolder(Path(model.artifact_uri))
    if uri.scheme == "file" and uri.netloc in ("", "localhost"):
        return _LocalFolder(Path(path))
    if uri.scheme == "mlflow-artifacts" and not uri.netloc:
        if not tracking_uri.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"the model lies at {model.artifact_uri}, behind MLflow's server: "
                "set ES_MLFLOW_TRACKING_URI to that server's URL"
            )
        if ".." in PurePosixPath(path).parts:
            raise NotFound(f"the model's folder {model.artifact_uri!r} leads out of the artifacts")
        return _ProxiedFolder(tracking_uri, path.strip("/"))
    raise ConfigurationError(
        f"the API cannot read models at {model.artifact_uri}: run MLflow's server with "
        "--serve-artifacts and an artifact root of mlflow-artifacts:/, so that it hands them out"
    )


def open_card(model: StoredModel, tracking_uri: str) -> ModelFolder | None:
    """Return the folder that holds the model's card, if it has one: that around its own files."""
    around = replace(model, artifact_uri=model.artifact_uri.rpartition("/")[0], files=())
    folder = open_model(around, tracking_uri)
    return folder if folder.size_bytes(CARD) is not None else None
