"""A model's files read back from where MLflow keeps them, without MLflow, and zipped on the way."""

import asyncio
import hashlib
import io
import posixpath
import zipfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

import httpx

from embedding_studio.errors import ConfigurationError, CorruptModel, NotFound, StoreUnavailable
from embedding_studio.tasks import ModelFile, StoredModel

_CHUNK_BYTES = 256 * 1024
_TIMEOUT_SECONDS = 30.0
_CARD = "README.md"
_PROXY_ROUTE = "/api/2.0/mlflow-artifacts/artifacts"

# of their own: where MLflow hangs, downloads wait for each other, and nobody else for them
_threads = ThreadPoolExecutor(8, "download")
T = TypeVar("T")


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


class _Sink(io.RawIOBase):
    """Keeps what the ZIP writer wrote until it is taken; cannot seek, so nothing is rewritten."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def open_card(model: StoredModel, tracking_uri: str) -> ModelFolder | None:
    """Return the folder that holds the model's card, if it has one: that around its own files."""
    around = replace(model, artifact_uri=model.artifact_uri.rpartition("/")[0], files=())
    folder = open_model(around, tracking_uri)
    return folder if folder.size_bytes(_CARD) is not None else None


def zip_chunks(
    folder: ModelFolder, files: tuple[ModelFile, ...], card: ModelFolder | None = None
) -> Iterator[bytes]:
    """Yield a ZIP of the files, uncompressed, holding one chunk at a time in memory.

    card: where the card is that takes the place of one among the files.
    Raises CorruptModel, before the archive is complete, when a file is not the one that was saved.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        if card is not None:
            archive.writestr(_entry(_CARD), b"".join(card.read(_CARD)))
            files = tuple(file for file in files if file.path != _CARD)
        for file in files:
            entry = _entry(file.path)
            entry.file_size = file.size_bytes  # decides whether the entry needs ZIP64
            digest = hashlib.sha256()
            with archive.open(entry, "w") as member:
                for chunk in folder.read(file.path):
                    digest.update(chunk)
                    member.write(chunk)
                    yield sink.take()
            if digest.hexdigest() != file.sha256:
                raise CorruptModel(f"the model's file {file.path!r} is not the one that was saved")
    yield sink.take()


async def in_download_thread(call: Callable[..., T], *arguments: Any) -> T:
    """Return what a call that reads models returns."""
    return await asyncio.get_running_loop().run_in_executor(_threads, call, *arguments)


async def in_download_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the chunks, each read in such a thread."""
    while (chunk := await in_download_thread(next, chunks, None)) is not None:
        yield chunk


def _entry(path: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(path)
    entry.external_attr = 0o644 << 16
    return entry
