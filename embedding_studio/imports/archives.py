"""Archives of labelled files, unpacked to a folder: ZIP, and tar that is packed by gzip or zstd or
not."""

import io
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from embedding_studio.errors import InvalidInput
from embedding_studio.imports.stream import CHUNK_BYTES, Read, check_ratio, opened
from embedding_studio.wire.imports import check_file

MOST_MEMBERS = 100_000
MOST_HEADER_BYTES = 16 * 1024 * 1024
"""What the list of a ZIP's members, or what is said of a member of a tar, has at most."""
_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst")
_TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".yaml", ".yml")
_DEFLATED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def folder_of(path: str) -> Path | None:
    """Return where an archive is unpacked, its name without the ending; None for no archive."""
    ending = max((one for one in _ENDINGS if path.lower().endswith(one)), key=len, default="")
    return Path(path[: -len(ending)]) if ending else None


@contextmanager
def unpacked(archive: Path, is_kept: bool) -> Iterator[Path]:
    """Yield the folder with an archive's files. It gets its name when all went well, where it is to
    be kept, and is gone else.

    Raises InvalidInput, and leaves nothing, for what is no archive, for members that lead out, that
    are there twice or that are neither files nor folders, and for what unpacks to far more than it
    is."""
    target = folder_of(str(archive))
    if target is None:
        raise InvalidInput(f"{archive} is no archive: one ends in {', '.join(_ENDINGS)}")
    if is_kept and target.exists():
        raise InvalidInput(
            f"{target} is there already: give that folder as the files, or remove it to unpack "
            f"{archive.name} again"
        )
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=archive.parent) as place:
        folder = Path(place, "files")
        folder.mkdir()
        try:
            _unpack(archive, folder)
        except (zipfile.BadZipFile, tarfile.TarError) as error:
            raise InvalidInput(f"{archive} is no whole archive: {error}") from None
        except (InvalidInput, OSError, ValueError) as error:
            told = error.strerror if isinstance(error, OSError) else error
            raise InvalidInput(f"{archive}: {told}") from None
        yield folder
        if is_kept:
            folder.rename(target)


def table_in(folder: Path) -> Path:
    """Return the file that says which labels the others have: the one that is highest. Raises
    InvalidInput where there is none, or more than one."""
    tables = [one for one in folder.rglob("*") if one.name.lower().endswith(_TABLES)]
    highest = min((len(one.parts) for one in tables), default=0)
    found = sorted(one for one in tables if len(one.parts) == highest)
    if len(found) != 1:
        told = ", ".join(str(one.relative_to(folder)) for one in found[:5]) or "none"
        raise InvalidInput(
            f"of {', '.join(_TABLES)} an archive has one file, which says what the others carry; "
            f"here it is {told}"
        )
    return found[0]


def _unpack(archive: Path, folder: Path) -> None:
    with archive.open("rb") as file:
        members = _zip_members if zipfile.is_zipfile(file) else _tar_members
        file.seek(0)
        size, count, written = archive.stat().st_size, 0, 0
        for name, content in members(file):
            if (count := count + 1) > MOST_MEMBERS:
                raise InvalidInput(f"it has more than {MOST_MEMBERS:,} members")
            place = folder / _checked(name)
            try:
                (place if content is None else place.parent).mkdir(parents=True, exist_ok=True)
                target = None if content is None else place.open("xb")
            except FileExistsError:
                raise InvalidInput(f"{name[:200]!r} is there twice") from None
            if content is None or target is None:
                continue
            with target, content:
                while part := content.read(CHUNK_BYTES):
                    check_ratio(size, written := written + len(part))
                    target.write(part)


def _checked(name: str) -> str:
    try:
        return check_file(name)
    except ValueError as error:
        raise InvalidInput(f"{name[:200]!r} {error}") from None


def _zip_members(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yield names and contents; no content for folders."""
    with zipfile.ZipFile(_Bounded(file)) as members:
        for one in members.infolist():
            # the type of a file, where the system that packed it has such
            kind = stat.S_IFMT(one.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _no_file(one.filename)
            if one.flag_bits & 1 or one.compress_type not in _DEFLATED:
                raise InvalidInput(f"{one.filename[:200]!r} has a password, or is not deflated")
            yield one.filename, None if one.is_dir() else members.open(one)


def _tar_members(file: IO[bytes]) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yield names and contents, as `_zip_members` does."""
    reading = _Headers(opened(file.read).read)
    with tarfile.open(fileobj=reading, mode="r|") as members:
        while (one := members.next()) is not None:
            content = members.extractfile(one) if one.isreg() else None
            if content is None and not one.isdir():
                raise _no_file(one.name)
            reading.left = one.size + MOST_HEADER_BYTES
            yield one.name, content
            members.members.clear()  # type: ignore[attr-defined] # each would be kept
            reading.left = MOST_HEADER_BYTES


def _no_file(name: str) -> InvalidInput:
    return InvalidInput(f"{name[:200]!r} is a link or a device: an archive has files and folders")


def _too_long() -> InvalidInput:
    return InvalidInput(f"what it says of its members has more than {MOST_HEADER_BYTES:,} bytes")


class _Bounded(io.BufferedReader):
    """A ZIP file, of which no more is read at once than the list of its members may have."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(io.FileIO(file.fileno(), closefd=False))

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MOST_HEADER_BYTES:
            raise _too_long()
        return super().read(size)


class _Headers(io.RawIOBase):
    """A tar as it comes, of which no more is read between contents than may be said of a member."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.left = MOST_HEADER_BYTES

    def read(self, size: int = -1, /) -> bytes:
        part = self._read(size)
        if (left := self.left - len(part)) < 0:
            raise _too_long()
        self.left = left
        return part
