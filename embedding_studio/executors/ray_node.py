"""What runs on a Ray cluster's nodes: jobs, and the mailbox of their reports.

Each node keeps a copy of what its jobs read, in a folder named by the content."""

import asyncio
import fcntl
import io
import os
import pickle
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import ray
from ray import exceptions as ray_errors

from embedding_studio.deletion import remove_abandoned, remove_tree
from embedding_studio.executors.base import Report, Reporter, Verdict, obey, relocated
from embedding_studio.executors.conversation import Answer, answer_of
from embedding_studio.executors.output import flush_printed, print_into, read_output

Sender: TypeAlias = tuple[int, int]
"""A job's number and which attempt at it this is."""

UNUSED_SECONDS = 6 * 3600.0
"""A node removes what no job has used for this long."""
_CACHE_FOLDER = f"embedding-studio-{os.getuid()}"


def wait_for(reference: Any) -> Any:
    """As ray.get, but a job keeps its cores meanwhile, and Ray Client no thread of its server."""
    return reference.future().result()


class Mailbox:
    """Where jobs leave reports and wait for verdicts."""

    def __init__(self) -> None:
        self._arrived = asyncio.Queue[tuple[Sender, Report]]()
        self._verdicts: dict[Sender, asyncio.Future[Verdict]] = {}
        self._places: dict[Sender, tuple[str, Path]] = {}

    async def begin(self, sender: Sender, node_id: str, output: Path) -> None:
        self._places[sender] = (node_id, output)

    async def report(self, sender: Sender, report: Report) -> Verdict:
        verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._verdicts[sender] = verdict
        self._arrived.put_nowait((sender, report))
        return await verdict

    async def take(self) -> list[tuple[Sender, Report]]:
        """Return what has arrived, once there is any."""
        taken = [await self._arrived.get()]
        while not self._arrived.empty():
            taken.append(self._arrived.get_nowait())
        return taken

    async def answer(self, sender: Sender, verdict: Verdict) -> None:
        if waiting := self._verdicts.pop(sender, None):
            waiting.set_result(verdict)

    async def place_of(self, sender: Sender) -> tuple[str, Path] | None:
        """Return a job's node, and the file there that has what it printed."""
        return self._places.get(sender)

    async def forget(self, sender: Sender) -> None:
        self._places.pop(sender, None)
        await self.answer(sender, Verdict.CANCEL)


@dataclass(frozen=True, slots=True)
class Packed:
    """A file or folder in Ray's object store."""

    name: str
    digest: str
    #: a reference to its bytes, in a list: Ray fetches no object that a node may have already
    content: list[Any]


def run_job(
    job: bytes,
    packed: Mapping[Path, Packed],
    writes: Sequence[Path],
    sender: Sender,
    mailbox: Any,
) -> tuple[Answer, Mapping[Path, bytes], bytes]:
    """Run a job here; return its answer, what it wrote, packed, and what it printed."""

    def report(report: Report) -> Verdict:
        return obey(wait_for(mailbox.report.remote(sender, report)))

    with _scratch() as scratch, ExitStack() as held:
        output = scratch / "output"
        node_id = ray.get_runtime_context().get_node_id()
        wait_for(mailbox.begin.remote(sender, node_id, output))
        written = {path: scratch / str(n) / path.name for n, path in enumerate(writes)}
        for place in written.values():
            place.parent.mkdir()
        with _printing_to(output):
            read = {path: held.enter_context(_unpacked(source)) for path, source in packed.items()}

            def run(report: Reporter) -> Any:
                return relocated(pickle.loads(job), read.__getitem__, written.__getitem__)(report)

            # without its mailbox, which is out of reach, a job has no answer
            answer = answer_of(run, report, not_its_fault=(ray_errors.RayActorError,))
        there = [path for path, place in written.items() if answer.is_result and place.exists()]
        return answer, {path: pack(written[path]) for path in there}, read_output(output)


@contextmanager
def _printing_to(file: Path) -> Iterator[None]:
    """Print into a file meanwhile; then Ray's process, which lives on, into its own logs again."""
    before = [(number, os.dup(number)) for number in (1, 2)]
    with file.open("wb") as output:
        print_into(output.fileno())
    try:
        yield
    finally:
        flush_printed()
        for number, kept in before:
            os.dup2(kept, number)
            os.close(kept)


@contextmanager
def _unpacked(source: Packed) -> Iterator[Path]:
    """The node's copy, for as long as it is in use: made by the first job that asks for it."""
    with _cache() as cache:
        folder = cache / source.digest
        if not folder.exists():
            _remove_unused(cache)
            with unpack_beside(ray.get(source.content[0]), folder) as beside:
                beside.rename(folder)
        os.utime(folder)
        handle = _hold(folder)
    try:
        yield folder / source.name
    finally:
        os.close(handle)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for what one job writes; one left by a process that died is removed as unused."""
    with _cache() as cache:
        folder = Path(tempfile.mkdtemp(dir=cache))
        handle = _hold(folder)
    try:
        yield folder
    finally:
        remove_tree(folder, ignore_errors=True)
        os.close(handle)


@contextmanager
def _cache() -> Iterator[Path]:
    """The node's folder, kept from all other processes meanwhile."""
    cache = Path(tempfile.gettempdir()) / _CACHE_FOLDER
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.stat().st_uid != os.getuid():
        raise PermissionError(f"{cache} belongs to another user")
    handle = os.open(cache, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield cache
    finally:
        os.close(handle)


def _hold(folder: Path) -> int:
    """Keep a folder from being removed until the handle is closed or its process ends."""
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def _remove_unused(cache: Path) -> None:
    for folder in cache.iterdir():
        with suppress(FileNotFoundError):  # a job that has ended removes its own meanwhile
            if time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
                remove_abandoned(folder, lock=folder)


def pack(path: Path) -> bytes:
    """Return a tar of a file or folder that depends on names and contents alone."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return None if Path(entry.name).name == "__pycache__" else entry

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(path, arcname=path.name, filter=anonymous)
    return buffer.getvalue()


@contextmanager
def unpack_beside(packed: bytes, path: Path) -> Iterator[Path]:
    """The folder that holds what was packed; to be renamed, so that it is whole or not at all."""

    def untimed(entry: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
        return tarfile.data_filter(entry, folder).replace(mtime=None)  # type: ignore[arg-type]

    beside = Path(tempfile.mkdtemp(prefix=f"{path.name}-", dir=path.parent))
    try:
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            tar.extractall(beside, filter=untimed)
        yield beside
    finally:
        remove_tree(beside, ignore_errors=True)
