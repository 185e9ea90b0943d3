"""A model's files zipped on their way to the caller."""

import asyncio
import hashlib
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse

from embedding_studio.errors import CorruptModel
from embedding_studio.tasks import ModelFile, StoredModel
from embedding_studio.tracking.reader import CARD, ModelFolder, open_card, open_model

# of their own: where MLflow hangs, downloads wait for each other, and nobody else for them
_threads = ThreadPoolExecutor(8, "download")
T = TypeVar("T")


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


def zip_chunks(
    folder: ModelFolder, files: tuple[ModelFile, ...], card: ModelFolder | None = None
) -> Iterator[bytes]:
    """Yield a ZIP of the files, uncompressed, holding one chunk at a time in memory.

    The card in the folder that is given for it takes the place of one among the files.
    Raises CorruptModel, before the archive is complete, when a file is not the one that was saved.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        if card is not None:
            archive.writestr(_entry(CARD), b"".join(card.read(CARD)))
            files = tuple(file for file in files if file.path != CARD)
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


ZIP: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A ZIP of the model's folder",
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}
"""How a manual tells of such an answer."""


STUDY_FILE = "study.db"
STUDY: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A file of SQLite",
        "content": {"application/vnd.sqlite3": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def study_of(folder: ModelFolder, name: str) -> StreamingResponse:
    """Return a study's file as an answer that a browser saves under a name."""
    return StreamingResponse(
        in_download_threads(folder.read(STUDY_FILE)),
        media_type="application/vnd.sqlite3",
        headers={"Content-Disposition": f'attachment; filename="{name}.db"'},
    )


def zip_of(model: StoredModel, name: str, tracking_uri: str) -> StreamingResponse:
    """Return a model's files, with its card, as an answer that a browser saves under a name.

    Raises NotFound where a file is gone, ConfigurationError where this process cannot read it."""
    folder = open_model(model, tracking_uri)
    folder.check(model.files)
    return StreamingResponse(
        in_download_threads(zip_chunks(folder, model.files, open_card(model, tracking_uri))),
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{name}.zip"'},
    )


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
