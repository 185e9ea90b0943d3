"""The folder of multiprocessing's sockets, which a worker that is killed leaves behind."""

import fcntl
import multiprocessing.util
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from embedding_studio.deletion import remove_tree

_OWNER = "embedding-studio"
"""A file that its worker holds locked for as long as it lives, however it ends."""


def claim_folder() -> None:
    """Mark this process's folder as in use, and remove those whose workers are dead."""
    folder = Path(multiprocessing.util.get_temp_dir())
    if not (folder / _OWNER).exists():
        _remove_dead()
        owner = os.open(folder / "new", os.O_CREAT | os.O_RDWR, 0o600)  # open until the end
        with suppress(OSError):  # a file system without locks: the folder is never tidied
            fcntl.flock(owner, fcntl.LOCK_EX)
            (folder / "new").rename(folder / _OWNER)  # only now does anyone look at the folder


def _remove_dead() -> None:
    for mark in Path(tempfile.gettempdir()).glob(f"pymp-*/{_OWNER}"):
        with suppress(OSError):  # another user's, or it was removed meanwhile
            descriptor = os.open(mark, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if mark.parent.stat(follow_symlinks=False).st_uid == os.getuid():
                    remove_tree(mark.parent)
            finally:
                os.close(descriptor)
