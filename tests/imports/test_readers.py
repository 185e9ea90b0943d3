"""Files become numbered rows, whatever they are packed in and however they are broken."""

import datetime
import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from embedding_studio.errors import InvalidInput
from embedding_studio.imports.columns import values_of
from embedding_studio.imports.readers import Row, read_rows
from embedding_studio.imports.stream import MAX_ROW_BYTES
from embedding_studio.settings import Settings

SETTINGS = Settings(max_body_mb=1, max_import_mb=1)
MB = 1024 * 1024


def rows_of(content: bytes, bounds: Settings = SETTINGS) -> list[Row]:
    return list(read_rows(io.BytesIO(content).read, bounds))


def values_in(content: bytes) -> list[Any]:
    """Return each row's number with its values, or with what is wrong with it."""
    told: list[Any] = []
    for row in rows_of(content):
        try:
            told.append((row.number, dict(values_of(row))))
        except ValueError as error:
            told.append((row.number, str(error)))
    return told


def parquet_of(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file, **options)
    return file.getvalue()


def zstd(content: bytes) -> bytes:
    packed: bytes = pyarrow.compress(content, codec="zstd", asbytes=True)
    return packed


def refusal_of(content: bytes, bounds: Settings = SETTINGS) -> str:
    with pytest.raises(InvalidInput) as refused:
        rows_of(content, bounds)
    return str(refused.value)


TABLE = [{"q": "red, blue", "item": "a"}, {"q": 'he said "x"', "item": "b"}]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in TABLE)


@pytest.mark.parametrize("packed", [bytes, gzip.compress, zstd])
@pytest.mark.parametrize(
    ("content", "first"),
    [
        (LINES, 1),
        (b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"), 1),
        (json.dumps(TABLE, indent=1).encode(), 1),
        (json.dumps({"sessions": TABLE}).encode(), 1),
        (json.dumps({"sessions": TABLE}, indent=1).encode(), 1),
        (b'q,item\n"red, blue",a\n"he said ""x""",b\n', 2),
        (b'\xef\xbb\xbfq;item\r\nred, blue;a\r\n"he said ""x""";b', 2),
        (b'q\titem\nred, blue\ta\n"he said ""x"""\tb\n', 2),
        (b'"q, or"|q|item\n|red, blue|a\n|"he said ""x"""|b\n', 2),
        (parquet_of({"q": [row["q"] for row in TABLE], "item": ["a", "b"]}), 1),
    ],
)
def test_one_table_in_every_form(
    content: bytes, first: int, packed: Callable[[bytes], bytes]
) -> None:
    """Each gives the same rows, numbered as a person finds them."""
    assert values_in(packed(content)) == [(first, TABLE[0]), (first + 1, TABLE[1])]


def test_rows_of_parquet_are_as_json_has_them() -> None:
    """Nested values, categories, times and what is missing."""
    moment = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
    content = parquet_of(
        {
            "results": [[{"id": "a", "meta": None}, {"id": "b", "meta": {"text": "x"}}]],
            "kind": pyarrow.array(["click"]).dictionary_encode(),
            "at": [moment],
            "naive": [moment.replace(tzinfo=None)],
            "tags": pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "raw": [b"x\xff"],
            "none": pyarrow.array([None], pyarrow.string()),
        }
    )
    [(_, values)] = values_in(content)
    assert values == {
        "results": [{"id": "a"}, {"id": "b", "meta": {"text": "x"}}],
        "kind": "click",
        "at": "2026-01-31T12:00:00+00:00",
        "naive": "2026-01-31T12:00:00",
        "tags": {"a": 1},
        "raw": "x\\xff",
    }


def test_yaml_has_the_values_of_json() -> None:
    """Ids and words stay what they are; documents and the entries of lists are rows."""
    text = b"# log\n- {q: no, id: 0012, n: -1.5e3, at: 2026-01-31, x: [1, true, ~, '7', 12:30]}\n"
    [(number, values)] = values_in(text)
    assert number == 1
    assert values == {
        "q": "no", "id": "0012", "n": -1500.0, "at": "2026-01-31",
        "x": [1, True, None, "7", "12:30"],
    }  # fmt: skip
    assert values_in(b"q: a\n---\nq: b\n---\n- q: c\n") == [
        (1, {"q": "a"}),
        (2, {"q": "b"}),
        (3, {"q": "c"}),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("!!python/object/apply:os.system [ls]", "the tag"),
        ("{a: !!binary aGVsbG8=}", "the tag"),
        ("{a: &x [1], b: *x}", "the alias *x"),
        ("{a: 1, a: 2}", "the name 'a' twice"),
        ("{[a]: 1}", "a name that is no text"),
        ("{a: " + "[" * 200 + "]" * 200 + "}", "100 levels"),
        ("{a: [" + "x, " * 2_000_000 + "]}", "4 MB"),
        ("just words", "no names and values"),
    ],
)
def test_a_bad_row_of_yaml_costs_only_itself(row: str, words: str) -> None:
    """Nothing in it is called, and no alias makes billions of values."""
    content = f"- {row}\n- q: a\n".encode()
    first, second = rows_of(content, Settings())
    assert words in (first.fault or "")
    assert second == Row(2, {"q": "a"})


def test_an_object_may_be_all_rows() -> None:
    """Under one of several names; or files with their labels; else it is a row."""
    labelled = {"a.jpg": ["red", "coat"], "b.jpg": []}
    expected = [
        (n, {"file": f"{'ab'[n - 1]}.jpg", "labels": [["red", "coat"], []][n - 1]}) for n in (1, 2)
    ]
    assert values_in(json.dumps(labelled).encode()) == expected
    assert values_in(json.dumps(labelled, indent=1).encode()) == expected
    assert values_in(b"a.jpg: [red, coat]\nb.jpg: []\n") == expected
    assert values_in(b"pairs:\n- q: x\n") == values_in(b'{"data":[{"q":"x"}]}') == [(1, {"q": "x"})]
    row = {"messages": [{"role": "user"}]}
    assert values_in(json.dumps(row, indent=1).encode()) == [(1, row)]
    assert values_in(b"{}") == [(1, {})]


def test_judgements_of_trec() -> None:
    """Four words a line, whatever is between them."""
    told = values_in(b"1 0 doc-7 2\n1\t0\tdoc-8\t0\n\n2 0 doc-9\n\xff 0 d 1\n")
    assert told[:2] == [
        (1, {"query_id": "1", "item": "doc-7", "grade": "2"}),
        (2, {"query_id": "1", "item": "doc-8", "grade": "0"}),
    ]
    assert told[2:] == [(4, "has 3 words; judgements are: query 0 item grade"), (5, "is not UTF-8")]


def test_a_bad_row_costs_only_itself() -> None:
    """It is told by its number; the rows after it are read."""
    huge = b'{"q": "' + b"x" * MAX_ROW_BYTES + b'"}'
    deep = b'{"q": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    content = b"\n".join([b'{"q": 1}', b"", b'{"q": ', huge, deep, b"[1]", b'{"q": "\xff"}', LINES])
    told = values_in(content)
    assert [number for number, _ in told] == [1, 3, 4, 5, 6, 7, 8, 9]
    assert [told[0][1], told[-2][1]] == [{"q": 1}, TABLE[0]]
    words = ["no JSON", "larger than 4 MB", "no JSON", "no JSON object", "no JSON"]
    for (_, reason), word in zip(told[1:], words, strict=False):
        assert word in reason
    told = values_in(b'q,item\na\nb,c,d\n"e"f,g\n\n\xff,h\n"two\nlines",i\nj,k')
    assert [(number, type(said)) for number, said in told] == [
        *((number, str) for number in (2, 3, 4, 6)),
        *((number, dict) for number in (7, 8)),
    ]
    assert told[-2][1] == {"q": "two\nlines", "item": "i"}


BOMB = b'{"q": "' + b"x" * 1000 + b'"}\n'
REPEATED = parquet_of(
    {"q": ["x" * 15 * MB] * 100}, compression="zstd", dictionary_pagesize_limit=100 * MB
)
NAMED_TWICE = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, ["q", "q"])


def written(table: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (gzip.compress(b""), "is empty"),
        (gzip.compress(LINES * 1000)[:-20], "no whole gzip file"),
        (gzip.compress(LINES) + b"more", "no whole gzip file"),
        (zstd(LINES * 1000)[:-3], "no whole zstd file"),
        (b"\x1f\x8b\x08", "no whole gzip file"),
        (gzip.compress(BOMB * 40_000), "100 times"),
        (zstd(BOMB * 40_000), "100 times"),
        (LINES.decode().encode("utf-16"), "UTF-16"),
        (b"[1, 2", "no JSON list"),
        (b"[" + b"1," * MB + b"1]", "up to 1 MB"),
        (b"[" + b"1," * 70_000 + b"1]", "too many values"),
        (b'{"sessions": [1' + b",1" * 70_000 + b"]}", "too many values"),
        (b'{"a":\n1}\n{"a": 2}', "no JSON list"),
        (b'{"a\x80":\n1}', "no JSON list"),
        (gzip.compress(b" " * 20 * MB + b"1"), "100 times"),
        (b"[" * 100_000, "no JSON list"),
        (b"- a: [1", "row 1: is no YAML"),
        (b"- a: 1\n- b: \x01\n", "row 1: is no YAML"),
        ("- a: é\n".encode("latin1"), "row 1: is no YAML"),
        (b"- a\n" * MB, "YAML is taken up to 1 MB"),
        (b"q,item,q\na,b,c", "row 1: the column 'q' is there twice"),
        (",".join(map(str, range(400_000))).encode() + b",7\n", "row 1: the column '7'"),
        (b"\x00\x01\x02\x03", "neither JSON"),
        (b"caf\xe9,item\na,b", "neither JSON"),
        (b"q,item\na,b\n" + b'"open' + b"x,y\n" * 50_000, "row 3: field larger"),
        (b"q,item\na,b\n" + b"x" * (MAX_ROW_BYTES + 1), "row 3: it is larger than 4 MB"),
        (b'q,item\na,"' + b'\n",x,"' * MB, "row 2: it is larger than 4 MB"),
        (b"PAR1", "broken"),
        (parquet_of({"q": ["a", "b"]})[:-30], "broken"),
        (b"PAR1" + bytes(2 * MB), "ES_MAX_IMPORT_MB"),
        (written(NAMED_TWICE), "'q' is there twice"),
        (
            parquet_of({"q": ["x" * 1000] * 100_000}, use_dictionary=False, compression="zstd"),
            "100 times",
        ),
        (parquet_of({"q": pyarrow.nulls(20 * MB)}, compression="zstd"), "100 times"),
        (REPEATED, "memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_cannot_be_read_on_is_refused(content: bytes, words: str) -> None:
    """It is said in which way it is broken, and where."""
    assert words in refusal_of(content)


def of(parts: Iterable[bytes]) -> Callable[[int], bytes]:
    """Return what reads parts one after the other."""
    left, buffer = iter(parts), b""

    def read(size: int) -> bytes:
        nonlocal buffer
        buffer = buffer or next(left, b"")
        part, buffer = buffer[:size], buffer[size:]
        return part

    return read


def test_memory_is_that_of_a_row() -> None:
    """Neither a long file nor a line without an end is held."""

    def peak_of(parts: Iterable[bytes], rows: int) -> int:
        tracemalloc.start()
        assert sum(1 for _ in read_rows(of(parts), SETTINGS)) == rows
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_of((LINES * 10 for _ in range(10_000)), 200_000) < MB
    long = [LINES, b'{"q": "', *[b"x" * 1000] * 50_000, b'"}\n', LINES]
    assert peak_of(long, 5) < 3 * MAX_ROW_BYTES


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from([b"", b"q,item\n", b'{"a": 1}\n', b"["]))
def test_any_bytes_are_rows_or_a_refusal(content: bytes, head: bytes) -> None:
    """No other error comes of them, packed or not."""
    for file in (head + content, gzip.compress(head + content)):
        try:
            for row in rows_of(file):
                assert row.number > 0
        except InvalidInput as error:
            assert str(error)  # noqa: PT017 - one of two ends


def test_any_damage_is_a_refusal_or_rows() -> None:
    """One byte of a file that is changed, or its end that is missing, raises nothing else."""
    chance = random.Random(0)
    packed = [gzip.compress(LINES * 10), zstd(LINES * 10)] * 200
    for file in [*packed, *[parquet_of({"q": ["a"] * 50, "item": [["x"]] * 50})] * 3]:
        broken = bytearray(file)
        broken[chance.randrange(len(file))] = chance.randrange(256)
        for damaged in (bytes(broken), file[: chance.randrange(len(file))]):
            try:
                rows_of(damaged)
            except InvalidInput as error:
                assert str(error)  # noqa: PT017 - one of two ends
