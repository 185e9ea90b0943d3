"""A file as it comes: unpacked where it is packed, and never more of it at once than asked for."""

import io
from collections import Counter
from collections.abc import Callable, Sequence

from embedding_studio.errors import InvalidInput

CHUNK_BYTES = 64 * 1024
MAX_ROW_BYTES = 4 * 1024 * 1024
MAX_RATIO = 100
"""What unpacks to more than so many times its size is refused, beyond FREE_BYTES."""
FREE_BYTES = 16 * 1024 * 1024
PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""What packed files begin with."""

Read = Callable[[int], bytes]
"""Returns at most so many bytes, none at the end."""


class _Filled(io.RawIOBase):
    """What is read, as a file that gives less than it is asked for only at its end."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # what io gives it
        filled = 0
        while filled < len(buffer) and (part := self._read(len(buffer) - filled)):
            buffer[filled : filled + len(part)] = part
            filled += len(part)
        return filled


def _buffered(read: Read) -> io.BufferedReader:
    raw: io.RawIOBase = _Filled(read)
    return io.BufferedReader(raw, CHUNK_BYTES)


def check_ratio(packed_bytes: int, unpacked_bytes: int) -> None:
    """Raise InvalidInput for a file that unpacks to far more than it is."""
    if unpacked_bytes > FREE_BYTES and unpacked_bytes > MAX_RATIO * packed_bytes:
        raise InvalidInput(
            f"the file unpacks to more than {MAX_RATIO} times its size: it is not read any further"
        )


def opened(read: Read) -> io.BufferedReader:
    """Return a file that may be packed as one that is not; what is read of it raises InvalidInput
    where it is broken."""
    taken = 0

    def read_counted(size: int) -> bytes:
        nonlocal taken
        part = read(size)
        taken += len(part)
        return part

    packed = _buffered(read_counted)
    head = packed.peek(4)
    kind = next((name for magic, name in PACKED.items() if head.startswith(magic)), None)
    if kind is None:
        return packed
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, mode="r"), kind)
    given = 0

    def read_unpacked(size: int) -> bytes:
        nonlocal given
        try:
            part: bytes = stream.read(size)
        except OSError as error:
            raise InvalidInput(f"the file is no whole {kind} file: {error}") from None
        given += len(part)
        check_ratio(taken, given)
        return part

    return _buffered(read_unpacked)


def too_large() -> str:
    """Return what is said of a row."""
    return f"is larger than {MAX_ROW_BYTES // 1024 // 1024} MB"


def check_columns(names: Sequence[str]) -> None:
    """Raise InvalidInput for a name that two columns have; an index may have none."""
    for name, count in Counter(names).items():
        if name and count > 1:
            raise InvalidInput(f"the column {name[:100]!r} is there twice")
