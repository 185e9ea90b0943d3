"""Files that are broken, for every format: each is refused in words, and costs nothing else."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import settings as searched
from hypothesis import strategies as st
from pyarrow import parquet

from embedding_studio.errors import InvalidInput
from embedding_studio.imports.contents import Told
from embedding_studio.imports.formats import found_in
from embedding_studio.imports.impressions import Found, Happened
from embedding_studio.imports.readers import Row, read_rows
from embedding_studio.settings import Settings
from embedding_studio.wire.imports import ImportFormat, Remark, RowNote
from tests.imports.samples import (
    FLAT,
    HOW,
    IMPRESSION,
    NASTY,
    ROWS,
    WRITERS,
    as_csv,
    as_yaml,
    jsonl,
    spoil,
    zstd,
)

SETTINGS = Settings(max_body_mb=1, max_import_mb=1, max_results_per_session=5)


def told_of(content: bytes, wanted: ImportFormat | None = None) -> tuple[int, list[int], list[int]]:
    """Return how many rows a file has, which are refused, and which are taken, as often as they
    are. Raises InvalidInput."""
    count = 0

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in read_rows(io.BytesIO(content).read, SETTINGS):
            count += 1
            yield row

    refused: list[int] = []
    taken: list[int] = []
    _, made = found_in(counted(), "imp", SETTINGS, wanted)
    for one in made:
        match one:
            case Remark():
                pass
            case RowNote():
                assert one.reason
                refused.append(one.row)
            case Told() | Happened():
                taken.append(one.row)
            case Found():
                taken += [one.row] * one.rows
    return count, refused, taken


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ROWS)
def test_every_format_in_every_file(name: str, writer: str) -> None:
    """What is right is taken, whatever it is written in."""
    if writer == "csv" and name not in FLAT:
        pytest.skip("a table has no nested values")
    count, refused, taken = told_of(WRITERS[writer]([ROWS[name]] * 2))
    assert (count, refused, len(taken)) == (2, [], 2)


@pytest.mark.parametrize("name", ROWS)
def test_a_cut_file_leaves_whole_rows(name: str) -> None:
    """What a packed file lacks is said; of what is not packed a row at most is broken."""
    content = jsonl([ROWS[name]] * 900)
    for pack, word in ((gzip.compress, "gzip"), (zstd, "zstd")):
        packed = pack(content)
        with pytest.raises(InvalidInput, match=f"no whole {word} file"):
            told_of(packed[: len(packed) * 3 // 4])
    count, refused, _ = told_of(content[:-5])
    # what JSON of a session has is judged where it is kept
    assert (count, refused) == (900, [] if name == "sessions" else [900])


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../etc/passwd", content)
    return file.getvalue()


def tarred(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        entry = tarfile.TarInfo("../../etc/passwd")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    ("made_of", "words"),
    [
        (lambda content: b"", "is empty"),
        (lambda content: gzip.compress(b""), "is empty"),
        (lambda content: b"\xef\xbb\xbf", "no rows"),
        (zipped, "zip archive"),
        (tarred, "tar archive"),
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (lambda content: b"SQLite format 3\0", "--sql"),
        (lambda content: content.decode().encode("utf-16"), "UTF-16"),
        (lambda content: content.decode().encode("utf-16-le"), "is no JSON"),
        (lambda content: content.decode().encode("utf-32"), "UTF-16"),
        (lambda content: gzip.compress(b" " * 20_000_000 + content), "100 times"),
        (lambda content: zstd(b"\n" * 20_000_000 + content), "100 times"),
        (lambda content: b"[" * 100_000, "no JSON"),
        (lambda content: b"- " * 100_000, "100 levels"),
        (lambda content: b'{"a": ' * 100_000, "no JSON"),
    ],
)
def test_files_that_are_none(made_of: Callable[[bytes], bytes], words: str) -> None:
    """Each is refused as a whole, and it is said what it is."""
    with pytest.raises(InvalidInput, match=words):
        told_of(made_of(jsonl([*ROWS.values()])))


@pytest.mark.parametrize("name", ROWS)
def test_a_column_that_is_there_twice(name: str) -> None:
    """It is refused whichever the file is, also where only its spelling differs."""
    row = ROWS[name]
    first = next(iter(row))
    if name != "sessions":  # whose fields have one spelling
        _, refused, _ = told_of(jsonl([row, {**row, first.upper(): row[first]}]))
        assert refused == [2]
    yaml = as_yaml([row, row]) + b"\n- {%s: 1, %s: 2}" % (first.encode(), first.encode())
    assert told_of(yaml)[1] == [3]
    with pytest.raises(InvalidInput, match="twice"):
        told_of(f"{first},x,{first}\n1,2,3\n".encode())
    table = pyarrow.table([["a"], ["b"]], names=[first, first])
    file = io.BytesIO()
    parquet.write_table(table, file)
    with pytest.raises(InvalidInput, match="twice"):
        told_of(file.getvalue())


def test_times_in_every_form() -> None:
    """Seconds, milli-, micro- and nanoseconds, ISO with zones: one moment."""
    moment = 1769860800
    times = [
        moment, moment * 1000, moment * 10**6, moment * 10**9, str(moment), f"{moment}.0",
        "2026-01-31T12:00:00Z", "2026-01-31T14:00:00+02:00", "2026-01-31 04:00:00-08:00",
        "2026-01-31 12:00:00 UTC", "20260131T120000Z",
    ]  # fmt: skip
    rows = [{**IMPRESSION, "search_id": f"s{n}", "time": time} for n, time in enumerate(times)]
    for content in (jsonl(rows), as_csv(rows)):
        made = [*found_in(read_rows(io.BytesIO(content).read, SETTINGS), "imp", SETTINGS)[1]]
        posted = [one.posted for one in made if isinstance(one, Found)]
        told = [one["created_at"] for one in posted if not isinstance(one, bytes)]
        assert told == [moment] * len(times)


@pytest.mark.slow
@searched(deadline=None, derandomize=True, max_examples=400)
@given(
    st.sampled_from(sorted(ROWS)),
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(HOW),
            st.integers(0, 99),
            st.sampled_from(NASTY),
        ),
        max_size=6,
    ),
    st.sampled_from(["jsonl", "json", "yaml"]),
)
def test_whatever_a_row_has_it_is_taken_or_refused(name: str, changes: Any, writer: str) -> None:
    """And once: those that are taken and those that are refused are all rows."""
    rows = [dict(ROWS[name]) for _ in range(4)]
    for change in changes:
        spoil(rows, *change)
    _check(WRITERS[writer](rows))


def _check(content: bytes) -> None:
    for wanted in (None, *ImportFormat):
        try:
            count, refused, taken = told_of(content, wanted)
        except InvalidInput as error:
            assert str(error)  # noqa: PT017 - one of two ends
            continue
        assert len(refused) == len(set(refused))
        assert not set(refused) & set(taken)
        silent = count - len(refused) - len(taken)
        # that an item of a known search was shown says nothing new
        assert silent == 0 or b"query_id" in content
        assert silent >= 0 or b"items" in content


@pytest.mark.slow
@searched(deadline=None, derandomize=True, max_examples=200)
@given(
    st.sampled_from(sorted(ROWS)),
    st.sampled_from(["jsonl", "json", "yaml", "csv"]),
    st.lists(
        st.tuples(
            st.floats(0, 1),
            st.one_of(
                st.binary(max_size=4),
                st.sampled_from(
                    [b'"', b"\n", b",", b";", b"\0", b"\xef\xbb\xbf", b"\xff", b"{", b"- "]
                ),
            ),
            st.integers(0, 40),
        ),
        max_size=4,
    ),
)
def test_whatever_bytes_are_changed(name: str, writer: str, changes: Any) -> None:
    """Nothing comes of it but rows that are taken, rows that are refused, or a refusal."""
    rows = [ROWS[name]] * 3
    if writer == "csv":
        rows = [{field: str(value) for field, value in row.items()} for row in rows]
    content = WRITERS[writer](rows)
    for where, put, cut in changes:
        place = int(where * len(content))
        content = content[:place] + put + content[place + cut :]
    _check(content)
