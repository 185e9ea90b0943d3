"""Readers of tables: a stream of bytes becomes numbered rows.

Of a file no more is held than a row; but JSON in one piece as a whole, which is bounded therefore.
What is wrong with a row is said with the row; what makes the rest of the file unreadable is raised.
"""

import codecs
import csv
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import msgspec

from embedding_studio.errors import InvalidInput
from embedding_studio.imports.stream import (
    CHUNK_BYTES,
    MAX_ROW_BYTES,
    Read,
    check_columns,
    opened,
    too_large,
)
from embedding_studio.imports.yaml import Document
from embedding_studio.settings import Settings

VALUES_PER_MB = 64 * 1024
_DELIMITERS = ",;\t|"
_OTHERS = {
    b"PK\x03\x04": "a zip archive, or a spreadsheet",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"SQLite format 3": "a database: --sql reads it",
}
"""What files begin with that are not read."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: JSON as it came, or values by columns, or a fault.

    number: of lines the line, of CSV the record, the header being the first; else from 1."""

    number: int
    content: bytes | Mapping[str, Any] = b""
    fault: str | None = None


WRAPPERS = ("sessions", "items", "labels", "pairs", "rows", "data", "examples")
"""The names under which an object may have all rows."""
_list = msgspec.json.Decoder(list[msgspec.Raw])
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_any = msgspec.json.Decoder()

# a name before any delimiter, and a colon behind it; or an entry, a comment, a document
_YAML = re.compile(rb"""("[^"]*"|'[^']*'|[^\s,;\t|"'][^,;\t|]*?):(\s|$)|-\s|---|%YAML|\#\s""")
_TREC = re.compile(rb"\S+[ \t]+\S+[ \t]+\S+[ \t]+-?[0-9.]+\s*")


def read_rows(read: Read, settings: Settings) -> Iterator[Row]:
    """Yield the rows of a file: JSON lines, JSON, YAML, CSV, parquet, or judgements of TREC, packed
    by gzip or zstd or not.

    Raises InvalidInput where it cannot be read any further, with the row."""
    file = opened(read)
    if not (head := file.peek(CHUNK_BYTES)):
        raise InvalidInput("the file is empty")
    others = [what for begin, what in _OTHERS.items() if head.startswith(begin)]
    if head[257:262] == b"ustar":
        others.append("a tar archive")
    if others:
        raise InvalidInput(f"the file is {others[0]}: send what is in it, in gzip or zstd at most")
    if head.startswith(b"PAR1"):
        yield from _parquet_rows(file, settings.max_import_mb)
        return
    if head.startswith(_UTF_16):
        raise InvalidInput("the file is UTF-16: save it as UTF-8")
    if head.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    lines_before = 0
    while (ahead := file.peek(CHUNK_BYTES)) and (blank := len(ahead) - len(ahead.lstrip())):
        lines_before += file.read(blank).count(b"\n")
    first = ahead[:1]
    if first == b"[":
        yield from _whole_json(file, b"", settings.max_body_mb)
    elif first == b"{":
        yield from _objects(file, lines_before, settings.max_body_mb)
    elif _YAML.match(line := file.peek(CHUNK_BYTES).partition(b"\n")[0]):
        yield from _yaml_rows(file, settings.max_body_mb)
    elif _TREC.fullmatch(line):
        yield from _trec_rows(file, lines_before)
    elif first:
        yield from _csv_rows(file, lines_before)


# -- JSON ------------------------------------------------------------------------------------------


def _objects(file: io.BufferedReader, lines_before: int, most_mb: int) -> Iterator[Row]:
    """Yield the rows of a file that begins with an object, which is a row or holds all of them."""
    first = file.readline(most_mb * 1024 * 1024 + 1)
    if not first.rstrip().endswith(b"}") or not file.peek(1).strip():  # it is all there is
        yield from _whole_json(file, first, most_mb, lines_before)
        return
    lines = chain([first], iter(lambda: file.readline(MAX_ROW_BYTES + 1), b""))
    for number, line in enumerate(lines, lines_before + 1):
        if len(line) > MAX_ROW_BYTES:
            while not line.endswith(b"\n") and (line := file.readline(CHUNK_BYTES)):
                pass
            yield Row(number, fault=too_large())
        elif line := line.strip():
            yield Row(number, line)


def _whole_json(
    file: io.BufferedReader, begun: bytes, most_mb: int, lines_before: int = 0
) -> Iterator[Row]:
    most = most_mb * 1024 * 1024
    text = begun + file.read(max(0, most + 1 - len(begun)))
    if len(text) > most:
        raise InvalidInput(
            f"JSON in one piece is taken up to {most_mb} MB (ES_MAX_BODY_MB): write one object a "
            "line (JSON lines), which may be as many as you like"
        )
    if text.count(b",") > most_mb * VALUES_PER_MB:  # each would take many times its size
        raise InvalidInput("JSON in one piece has too many values: write one object a line")
    try:
        rows: Iterable[Any] = _list.decode(text) if text.startswith(b"[") else _json_rows(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if text.startswith(b"{") and b"\n" not in text.strip():  # a line
            yield Row(lines_before + 1, text)
            return
        raise InvalidInput(f"the file is no JSON list, and no JSON object: {error}") from None
    for number, row in enumerate(rows, 1 if rows != [text] else lines_before + 1):
        if isinstance(row, dict):
            yield Row(number, row)
        elif len(content := bytes(row)) > MAX_ROW_BYTES:
            yield Row(number, fault=too_large())
        else:
            yield Row(number, content)


def _json_rows(text: bytes) -> Iterable[Any]:
    named = _object.decode(text)
    if not named or any(bytes(value)[:1] != b"[" for value in named.values()):
        return [text]
    if len(named) == 1 and (name := next(iter(named))) in WRAPPERS:
        return _list.decode(named[name])
    return rows_of(_any.decode(text))


def rows_of(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what an object is: all rows under one name; names of files, each with its labels; or a
    row."""
    lists = [one for one in value.values() if isinstance(one, list)]
    if not value or len(lists) < len(value):
        return [value]
    if len(value) == 1 and next(iter(value)) in WRAPPERS:
        return lists[0]
    if all(isinstance(one, str) for some in lists for one in some):
        return [{"file": name, "labels": labels} for name, labels in value.items()]
    return [value]


# -- YAML, and judgements as TREC has them ---------------------------------------------------------


def _yaml_rows(file: io.BufferedReader, most_mb: int) -> Iterator[Row]:
    left = most_mb * 1024 * 1024

    def read(size: int) -> bytes:
        nonlocal left
        part = file.read(size)
        if (left := left - len(part)) < 0:
            raise InvalidInput(
                f"YAML is taken up to {most_mb} MB (ES_MAX_BODY_MB): write JSON lines, which may "
                "be as many as you like"
            )
        return part

    number = 0
    try:
        for value, fault in Document(read).rows():
            for row in rows_of(value) if isinstance(value, dict) and not fault else [value]:
                number += 1
                wrong = fault or (None if isinstance(row, dict) else "has no names and values")
                yield Row(number, fault=wrong) if wrong else Row(number, row)
    except InvalidInput as error:
        raise InvalidInput(f"row {number + 1}: {error}") from None


def _trec_rows(file: io.BufferedReader, lines_before: int) -> Iterator[Row]:
    lines = iter(lambda: file.readline(MAX_ROW_BYTES + 1), b"")
    for number, line in enumerate(lines, lines_before + 1):
        try:
            cells = line.decode().split()
        except UnicodeDecodeError:
            yield Row(number, fault="is not UTF-8")
            continue
        if len(line) > MAX_ROW_BYTES:
            raise InvalidInput(f"row {number}: it {too_large()}")
        if len(cells) == 4:
            query, _, item, grade = cells
            yield Row(number, {"query_id": query, "item": item, "grade": grade})
        elif cells:
            yield Row(number, fault=f"has {len(cells)} words; judgements are: query 0 item grade")


# -- CSV -------------------------------------------------------------------------------------------


class _Lines:
    """The lines of a text file, of which a record may have several."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.begin_record()

    def begin_record(self) -> None:
        #: whether all of the record is UTF-8
        self.is_right = True
        self._bytes = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_ROW_BYTES + 1):
            self._bytes += len(line)
            if self._bytes > MAX_ROW_BYTES:
                raise InvalidInput(f"it {too_large()}: is a quote left open?")
            try:
                yield line.decode()
            except UnicodeDecodeError:
                self.is_right = False
                yield line.decode(errors="replace")


def _csv_rows(file: io.BufferedReader, rows_before: int) -> Iterator[Row]:
    lines = _Lines(file)
    number = rows_before
    try:
        header_line = next(iter(lines))
        if "\0" in header_line or not lines.is_right:
            raise InvalidInput("the file is neither JSON, parquet nor a CSV in UTF-8")
        outside_quotes = re.sub(r'"[^"]*"', "", header_line)
        delimiter = max(_DELIMITERS, key=outside_quotes.count)
        records = csv.reader(chain([header_line], lines), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(records)]
        check_columns(header)
        number += 1
        while True:
            lines.begin_record()
            number += 1
            try:
                cells = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                if "limit" in str(error):
                    raise InvalidInput(f"{error}: is a quote left open?") from None
                yield Row(number, fault=f"is no CSV: {error}")
                continue
            if cells:
                yield _csv_row(number, header, cells, lines.is_right)
    except (InvalidInput, csv.Error) as error:
        raise InvalidInput(f"row {max(1, number)}: {error}") from None


def _csv_row(number: int, header: Sequence[str], cells: Sequence[str], is_right: bool) -> Row:
    if not is_right:
        return Row(number, fault="is not UTF-8")
    if len(cells) != len(header):
        return Row(number, fault=f"has {len(cells)} cells, and the header {len(header)}")
    pairs = zip(header, cells, strict=True)
    return Row(number, {name: cell for name, cell in pairs if name and cell})


# -- parquet ---------------------------------------------------------------------------------------


def _parquet_rows(file: io.BufferedReader, most_mb: int) -> Iterator[Row]:
    with tempfile.TemporaryFile() as spooled:  # its end says where its rows are
        size = 0
        while part := file.read(CHUNK_BYTES):
            size += len(part)
            if size > most_mb * 1024 * 1024:
                raise InvalidInput(
                    f"a parquet file is taken up to {most_mb} MB (ES_MAX_IMPORT_MB): send parts"
                )
            spooled.write(part)
        spooled.seek(0)
        command = [sys.executable, "-m", "embedding_studio.imports.parquet"]
        with Popen(command, stdin=spooled, stdout=PIPE, stderr=DEVNULL) as process:
            try:
                yield from _written_by(process)
            finally:
                process.kill()


def _written_by(process: Popen[bytes]) -> Iterator[Row]:
    """Yield the rows that `imports.parquet` writes. Raises InvalidInput with what it says."""
    assert process.stdout is not None
    number = 0
    for number, line in enumerate(process.stdout, 1):
        if line == b"null\n":
            yield Row(number, fault=too_large())
        elif line.startswith(b"{") and line.endswith(b"\n"):
            yield Row(number, line)
        elif line.startswith(b'"'):
            raise InvalidInput(f"row {number}: {json.loads(line)}")
    if process.wait() != 0:
        raise InvalidInput(f"row {number + 1}: the parquet file is broken, or takes much memory")
