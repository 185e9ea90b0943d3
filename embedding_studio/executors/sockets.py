"""The folder of multiprocessing's sockets, which a worker that is killed leaves behind."""

import fcntl
import multiprocessing.util
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from embedding_studio.deletion import remove_abandoned

_OWNER = "embedding-studio"
"""A file that its worker keeps locked for as long as it lives."""


def claim_folder() -> None:
    """Mark this process's folder as in use, and remove those whose workers are dead."""
    folder = Path(multiprocessing.util.get_temp_dir())
    if not (folder / _OWNER).exists():
        for mark in Path(tempfile.gettempdir()).glob(f"pymp-*/{_OWNER}"):
            remove_abandoned(mark.parent, mark)
        owner = os.open(folder / "new", os.O_CREAT | os.O_RDWR, 0o600)  # open until the end
        with suppress(OSError):  # a file system without locks: the folder is never tidied
            fcntl.flock(owner, fcntl.LOCK_EX)
            (folder / "new").rename(folder / _OWNER)  # only now does anyone look at the folder
