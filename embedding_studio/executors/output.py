"""What a job prints, kept within bounds: its beginning and its end."""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from embedding_studio import logs

HEAD_BYTES = TAIL_BYTES = 512 * 1024
ERROR_BYTES = 8192
ERROR_LINES = 40
"""So much of the end is told in the error of a job that died."""


class Output:
    """What was printed so far."""

    def __init__(self) -> None:
        self._head, self._tail = bytearray(), bytearray()
        self._left_out = 0

    def add(self, printed: bytes) -> None:
        room = HEAD_BYTES - len(self._head)
        self._head += printed[:room]
        self._tail += printed[room:]
        if (excess := len(self._tail) - TAIL_BYTES) > 0:
            self._left_out += excess
            del self._tail[:excess]

    @property
    def content(self) -> bytes:
        """What is kept, with a line that says how much is not."""
        return _joined(bytes(self._head), self._left_out, bytes(self._tail))


def print_into(descriptor: int) -> None:
    """Send what this process prints and logs to an open file."""
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    logs.configure(logging.WARNING, own_level=logging.INFO)


def flush_printed() -> None:
    """Write what Python still holds of it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def read_output(file: Path) -> bytes:
    """Return what was printed to a file, shortened alike."""
    with file.open("rb") as printed:
        size = os.fstat(printed.fileno()).st_size
        head = printed.read(HEAD_BYTES)
        left_out = max(0, size - len(head) - TAIL_BYTES)
        printed.seek(len(head) + left_out)
        return _joined(head, left_out, printed.read(TAIL_BYTES))


def write_output(content: bytes, file: Path | None) -> None:
    """Write an output, if there is any, to a file, if there is one to write.

    A disk without room for it is no error: the job goes on."""
    if content and file is not None:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def last_lines(content: bytes) -> str:
    """Return the end of an output, introduced, for an error's message; "" for nothing."""
    lines = content[-ERROR_BYTES:].decode(errors="replace").strip().splitlines()[-ERROR_LINES:]
    return "\nIts last output:\n" + "\n".join(lines) if lines else ""


def _joined(head: bytes, left_out: int, tail: bytes) -> bytes:
    gap = f"\n\n[{left_out:,} bytes are left out here]\n\n".encode() if left_out else b""
    return head + gap + tail
