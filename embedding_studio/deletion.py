"""Folders deleted, be it by several workers at once."""

import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

Leftover: TypeAlias = tuple[str, Callable[[], object]]
"""What was found, as a sentence, and what removes it."""
_ATTEMPTS = 10


def remove_tree(folder: Path, ignore_errors: bool = False) -> None:
    """Delete a folder with all that is in it, where there is one.

    What others delete at the same time is gone, which is what was wanted. What cannot be deleted
    stays, and the rest goes; then the first error is raised, unless errors are to be ignored."""
    trouble = None
    for _ in range(_ATTEMPTS):
        trouble = _remove(folder)
        if trouble is None or trouble.errno != errno.ENOTEMPTY:
            break  # not empty: somebody wrote another file while it was deleted
    if trouble is not None and not ignore_errors:
        raise trouble


def remove_abandoned(folder: Path, lock: Path) -> None:
    """Delete a folder of this user's unless a process holds `lock`: the folder, or a file in it.

    Errors are ignored: it may be another user's, or be deleted by somebody else meanwhile."""
    with suppress(OSError):
        handle = os.open(lock, os.O_NOFOLLOW | (os.O_RDONLY if lock == folder else os.O_RDWR))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.stat(follow_symlinks=False).st_uid == os.getuid():
                remove_tree(folder)
        finally:
            os.close(handle)


def _remove(folder: Path) -> OSError | None:
    """Delete what can be deleted; return the first error by which something is still there."""
    troubles: list[OSError] = []

    def note(function: Callable[..., object], path: str, error: BaseException) -> None:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            troubles.append(error)

    if sys.version_info >= (3, 12):
        shutil.rmtree(folder, onexc=note)
    else:
        shutil.rmtree(folder, onerror=lambda function, path, info: note(function, path, info[1]))
    return troubles[0] if troubles else None
