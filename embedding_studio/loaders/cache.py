"""A cache on disk, bounded in bytes."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from embedding_studio.deletion import remove_tree

FRESH_SECONDS = 24 * 3600.0


class Cache:
    """Files by keys. Threads and processes may share a folder: a file there is a whole one."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def get(self, key: str, make: Callable[[Path], object]) -> Path:
        """Return the file of a key, made anew where there is none, or one older than a day."""
        file = self._folder / sha256(key.encode()).hexdigest()
        with suppress(FileNotFoundError):
            made_at, now = file.stat().st_mtime, time.time()
            if now - made_at < FRESH_SECONDS:
                os.utime(file, (now, made_at))
                return file
        self._folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._folder, prefix=".new-") as scratch:
            new = Path(scratch, "new")
            make(new)
            new.replace(file)
        return file

    def shrink(self) -> None:
        """Remove what was not used for longest until the rest is no more than allowed, and what was
        never finished."""
        found = []
        for scratch in self._folder.glob(".new-*"):
            with suppress(FileNotFoundError):
                if time.time() - scratch.stat().st_mtime > FRESH_SECONDS:
                    remove_tree(scratch, ignore_errors=True)
        for file in self._folder.glob("[!.]*"):
            with suppress(FileNotFoundError):
                found.append((file.stat(), file))
        left = sum(stat.st_size for stat, _ in found)
        for stat, file in sorted(found, key=lambda one: one[0].st_atime):
            if left <= self._max_bytes:
                return
            file.unlink(missing_ok=True)
            left -= stat.st_size
