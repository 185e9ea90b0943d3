"""A program that writes the rows of the parquet file at its standard input as JSON lines.

It is a process of its own because Arrow ends the process that gives it some broken files, and
because its memory can be bounded thus. Each line is a row, null for one that is too large, or, as
the last one, a string that says what is wrong with the file.
"""

import datetime
import decimal
import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

from embedding_studio.errors import InvalidInput
from embedding_studio.imports.stream import CHUNK_BYTES, MAX_ROW_BYTES, check_columns, check_ratio

MEMORY_BYTES = 1024 * 1024 * 1024
_BATCH_ROWS = 64


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        for line in _lines():
            sys.stdout.write(line if len(line) <= MAX_ROW_BYTES else "null")
            sys.stdout.write("\n")
    except InvalidInput as error:
        sys.stdout.write(json.dumps(str(error)))
    except BrokenPipeError:  # nobody reads on
        os._exit(1)


def _lines() -> Iterator[str]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(sys.stdin.buffer, buffer_size=CHUNK_BYTES, pre_buffer=False)
        check_columns(file.schema_arrow.names)
        groups = [file.metadata.row_group(place) for place in range(file.num_row_groups)]
        size = os.fstat(sys.stdin.fileno()).st_size
        check_ratio(size, sum(max(one.total_byte_size, one.num_rows) for one in groups))
        for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
            for values in batch.to_pylist(maps_as_pydicts="strict"):
                yield json.dumps(as_json(values))
    except MemoryError:
        most_mb = MEMORY_BYTES // 1024 // 1024
        raise InvalidInput(
            f"to read it takes more than {most_mb} MB of memory: write smaller row groups"
        ) from None
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"the parquet file is broken: {error}"[:500]) from None


def as_json(value: Any) -> Any:
    """Return a value as JSON has it, without what is missing."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {str(name): as_json(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [as_json(one) for one in value]
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return str(value)


if __name__ == "__main__":
    main()
