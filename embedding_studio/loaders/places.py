"""What lies at addresses that clients chose, read within the bounds that the operator set."""

import io
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import unquote

import fsspec
import httpx
import stamina
from fsspec.exceptions import FSTimeoutError

from embedding_studio.errors import ForbiddenAddress, Unreadable
from embedding_studio.outbound import Outbound
from embedding_studio.settings import OBJECT_STORES, Settings

HTTP = ("http", "https")
_ATTEMPTS = 3
# enough to look things up in a folder; where the system has no such thing, to list it as well
_FOLDER = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)


class Reader:
    """Reads http(s) and data: addresses, and files and objects below the allowed roots.

    allow_private: whether http(s) may lead into private networks. Threads may share a reader."""

    def __init__(self, settings: Settings, allow_private: bool) -> None:
        self._max_bytes = settings.max_item_mb * 1024 * 1024
        self._seconds = settings.max_item_seconds
        self._roots = settings.roots
        self._http = Outbound(allow_private)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.__exit__()

    def read(self, address: str) -> bytes:
        """Return the content at an address.

        Raises ForbiddenAddress where nothing may be read, be something there or not; Unreadable
        where it is too much, takes too long or is no file; and what HTTP, files and object stores
        raise."""
        try:
            content = self._read(address)
        except (httpx.TimeoutException, FSTimeoutError) as error:
            raise Unreadable(
                f"it takes longer than {self._seconds:g} s (ES_MAX_ITEM_SECONDS): {error}"
            ) from error
        if len(content) > self._max_bytes:
            raise Unreadable(f"it is larger than {self._max_bytes} bytes (ES_MAX_ITEM_MB)")
        return content

    @contextmanager
    def opened(self, address: str) -> Iterator[BinaryIO]:
        """Yield a file of any size at an address, other than data:, to be read once while it comes.

        Of http(s) each 64 KB has the time of an item. Raises what `read` does; so does the file.
        """
        protocol, place = _parts_of(address)
        if protocol in HTTP:
            with self._http.opened(address, self._seconds) as parts:
                yield io.BufferedReader(_Parts(parts))
        elif protocol in OBJECT_STORES:
            self._check_object(protocol, place)
            with fsspec.filesystem(protocol).open(place, "rb", cache_type="readahead") as file:
                yield file
        elif protocol == "file":
            with self._open_file(place) as file:
                yield file
        else:
            raise _unknown(protocol)

    def version(self, address: str) -> str:
        """Return what changes with a file or an object; nothing of what is at other addresses."""
        protocol, place = _parts_of(address)
        if protocol not in (*OBJECT_STORES, "file"):
            return ""
        return str(fsspec.filesystem(protocol).ukey(place))

    def _read(self, address: str) -> bytes:
        """Return the content, as far as it is no more than a byte larger than allowed."""
        protocol, place = _parts_of(address)
        if protocol in HTTP:
            return self._read_http(address)
        if protocol == "data":
            content: bytes = fsspec.filesystem("data").cat_file(address)
            return content
        if protocol in OBJECT_STORES:
            return self._read_object(protocol, place)
        if protocol == "file":
            with self._open_file(place) as file:
                return file.read(self._max_bytes + 1)
        raise _unknown(protocol)

    def _read_http(self, address: str) -> bytes:
        ends_at = time.monotonic() + self._seconds

        def get() -> bytes:
            return self._http.get(address, ends_at - time.monotonic(), self._max_bytes + 1)

        caller = stamina.RetryingCaller(attempts=_ATTEMPTS, timeout=self._seconds)
        return caller(_is_passing, get)

    def _check_object(self, protocol: str, path: str) -> None:
        address = f"{protocol}://{path}"
        # as a gateway before the store could understand it
        is_winding = ".." in re.split(r"[/\\]", unquote(path))
        if is_winding or not any(address.startswith(f"{root}/") for root in self._roots):
            raise _forbidden()

    def _read_object(self, protocol: str, path: str) -> bytes:
        self._check_object(protocol, path)
        content: bytes = fsspec.filesystem(protocol).cat_file(
            path, start=0, end=self._max_bytes + 1, timeout=self._seconds
        )
        return content

    def _open_file(self, path: str) -> BinaryIO:
        # by its name first: to look at some paths, those of automounters say, has effects
        place = Path(path).absolute()
        if ".." in place.parts or not self._is_allowed(place):
            raise _forbidden()
        real = Path(os.path.realpath(place))
        if not self._is_allowed(real):
            raise _forbidden()
        return open(_open(real), "rb")

    def _is_allowed(self, place: Path) -> bool:
        folders = [root for root in self._roots if "://" not in root]
        return any(
            place.is_relative_to(root) or place.is_relative_to(os.path.realpath(root))
            for root in folders
        )


class _Parts(io.RawIOBase):
    """Bytes that come in parts, as a file."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # what io gives it
        part = self._left or next(filter(None, self._parts), b"")
        taken = min(len(buffer), len(part))
        buffer[:taken], self._left = part[:taken], part[taken:]
        return taken


def _parts_of(address: str) -> tuple[str, str]:
    """Return by which protocol an address is read, and what of it is the path."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", address)
    protocol = found[1].lower() if found else "file"
    if protocol == "file":
        return protocol, _path_of(address) if found else address
    return protocol, address[len(protocol) + 1 :].removeprefix("//")


def _unknown(protocol: str) -> Unreadable:
    return Unreadable(f"nothing is read by {protocol[:40]!r}")


def _path_of(url: str) -> str:
    """Return the path in a file: URL. Raises ForbiddenAddress where it is another host's."""
    rest = url.partition(":")[2]
    if rest.startswith("//"):
        host, _, rest = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise _forbidden()
        rest = f"/{rest}"
    return unquote(rest)


def _open(place: Path) -> int:
    """Open a regular file at a path without links.

    A part of the path that has become a link since it was looked at is not followed. What is no
    regular file is not opened: that alone could wait, or have effects."""
    folder = os.open(place.anchor, _FOLDER)
    try:
        for part in place.parts[1:-1]:
            inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        _require_file(os.stat(place.name, dir_fd=folder, follow_symlinks=False))
        file = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        _require_file(os.fstat(file))
    except Unreadable:
        os.close(file)
        raise
    return file


def _require_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable("it is no regular file")


def _forbidden() -> ForbiddenAddress:
    """Return what is said of every place that may not be read, be something there or not."""
    return ForbiddenAddress("it is not below one of ES_ALLOWED_ROOTS")


def _is_passing(error: Exception) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    # its time is that of all attempts
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.TimeoutException)
