"""What is relevant: pairs, conversations, judgements and labelled files become items and labels."""

import io
import json
from typing import Any

import pytest

from embedding_studio.errors import InvalidInput
from embedding_studio.imports.formats import found_in
from embedding_studio.imports.judgements import item_of
from embedding_studio.imports.readers import read_rows
from embedding_studio.items import Item
from embedding_studio.labels import Label
from embedding_studio.settings import Settings
from embedding_studio.wire.imports import ImportFormat, Remark, RowNote

SETTINGS = Settings(max_query_chars=20)


def read(text: str | list[Any], **given: Any) -> tuple[str, list[Any]]:
    if not isinstance(text, str):
        text = "\n".join(map(json.dumps, text))
    rows = read_rows(io.BytesIO(text.encode()).read, SETTINGS)
    chosen, made = found_in(rows, "imp", SETTINGS, **given)
    return chosen, [one for one in made if not isinstance(one, Remark)]


def graded_in(told: Any) -> list[tuple[str, str, float]]:
    """Return the labels of a row, each with its item's text where it has one."""
    texts = {item.object_id: item.text for item in told.items}
    return [
        (one.query, texts.get(one.object_id) or one.object_id, one.grade) for one in told.labels
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"input": "q", "output": "a"}, [("q", "a", 1.0)]),
        ({"prompt": "q", "completion": "a", "score": 0.5}, [("q", "a", 0.5)]),
        ({"anchor": "q", "positive": "a", "negative": "b"}, [("q", "b", 0.0), ("q", "a", 1.0)]),
        ({"question": "q", "answer": ["a", "b"]}, [("q", "a", 1.0), ("q", "b", 1.0)]),
        ({"query": "q", "document": "a", "label": -2}, [("q", "a", 0.0)]),
        ({"Query": 7, "positive": 8, "relevance": "2"}, [("7", "8", 2.0)]),
    ],
)
def test_pairs(row: Any, expected: Any) -> None:
    """Under the names that methods have for them; negatives have grade 0, the others the score."""
    chosen, [told] = read([row])
    assert chosen is ImportFormat.PAIRS
    assert graded_in(told) == expected


def test_the_items_of_pairs() -> None:
    """A text is one item wherever it occurs; with an id of its own it has that."""
    _, [first, second] = read([{"input": x, "output": "a"} for x in "xy"])
    assert first.items == second.items == (item_of("a"),)
    assert item_of("a").object_id == "text:ca978112ca1bbdca"
    _, [named] = read([{"input": "x", "output": "a", "sku": 7}])
    assert named.items == (Item("7", "a"),)
    assert named.labels == (Label("x", "7", 1.0),)


def test_conversations() -> None:
    """What the assistant says is relevant for what the user said last before; input and output will
    do as well."""

    def said(role: str, content: Any) -> Any:
        return {"role": role, "content": content}

    parts = [{"type": "text", "text": "and then"}, {"type": "image_url", "image_url": {}}]
    talk = [
        said("system", "s"), said("user", "hi"), said("user", "where"), said("assistant", "here"),
        said("user", parts), said("assistant", None), {**said("assistant", "there"), "name": "x"},
    ]  # fmt: skip
    rows = [
        {"messages": talk},
        {"input": "a", "output": "b"},
        {"messages": [said("assistant", "x"), said("user", "y")]},
        {"messages": "x"},
    ]
    chosen, [told, pair, *wrong] = read(rows)
    assert chosen is ImportFormat.CHAT
    assert graded_in(told) == [("where", "here", 1.0), ("and then", "there", 1.0)]
    assert graded_in(pair) == [("a", "b", 1.0)]
    assert [(one.row, one.column) for one in wrong] == [(3, None), (4, "messages")]
    assert read([rows[1]], wanted=ImportFormat.CHAT)[0] is ImportFormat.CHAT


def test_judgements() -> None:
    """Tables and the lines of TREC; without the query's text a row is refused."""
    chosen, [told] = read([{"query": "q", "object_id": "a", "grade": -1, "text": "A"}])
    assert chosen is ImportFormat.QRELS
    assert graded_in(told) == [("q", "A", 0.0)]
    for file in ("1 0 a 2\n", "query-id\tcorpus-id\tscore\n1\ta\t2\n"):
        chosen, [note] = read(file)
        assert chosen is ImportFormat.QRELS
        assert "the id '1'" in note.reason
        _, [told] = read(file, columns={"query": file.split()[0] if "id" in file else "query_id"})
        assert graded_in(told) == [("1", "a", 2.0)]
    shown = {"query": "q", "item": "a", "score": 2, "position": 1}
    assert read([shown])[0] is ImportFormat.IMPRESSIONS


@pytest.mark.parametrize(
    "name", ["../x", "a/../x", "/x", "\\x", "a\\..\\x", "%2e%2e/x", "s3://b/x", "C:/x", "", "a\0b"]
)
def test_names_that_lead_elsewhere(name: str) -> None:
    """They are refused, and the other files taken."""
    rows = [{"file": name, "labels": ["x"]}, {"file": "a/b.png", "labels": "x"}]
    _, [note, told] = read(rows, files="/data/")
    assert isinstance(note, RowNote)
    assert (note.row, note.column) == (1, "file")
    assert told.items == (Item("a/b.png", image="/data/a/b.png"),)


def test_an_archive_is_no_folder() -> None:
    """Addresses in it would lead nowhere, so that it is refused."""
    with pytest.raises(InvalidInput, match="is an archive"):
        read([{"file": "a.png", "labels": "x"}], files="s3://pictures/march.zip")


def test_what_is_best_of_labelled_files() -> None:
    """From 100 files with up to 100 labels on nothing is said."""

    def remarks(files: int, labels: int) -> list[Any]:
        named = {f"{n}.jpg": [f"label {n % labels}"] for n in range(files)}
        rows = read_rows(io.BytesIO(json.dumps(named).encode()).read, SETTINGS)
        _, made = found_in(rows, "imp", SETTINGS)
        return [one.reason for one in made if isinstance(one, Remark)]

    assert remarks(100, 100) == []
    assert "99 examples" in remarks(99, 1)[0]
    assert "10,001 examples" in remarks(10_001, 1)[0]
    assert "more than 100 labels" in remarks(101, 101)[0]


@pytest.mark.parametrize(
    ("wrong", "column"),
    [
        ({"score": float("nan")}, "score"),
        ({"score": float("inf")}, "score"),
        ({"score": "high"}, "score"),
        ({"input": " "}, "input"),
        ({"input": "x" * 21}, "input"),
        ({"output": []}, "output"),
        ({"output": ["a", ""]}, "output.1"),
        ({"output": {"a": "b"}}, "output"),
        ({"output": "x" * 40_000}, "output.0"),
        ({"negatives": [None]}, "negatives.0"),
        ({"Input": "y"}, None),
        ({"output": ["a"] * 1001}, "output"),
        ({"negatives": ["a"] * 1001}, "negatives"),
    ],
)
def test_a_wrong_row_costs_only_itself(wrong: Any, column: str | None) -> None:
    """It is told by its number and column."""
    right = {"input": "q", "output": "a"}
    _, [first, note, last] = read([right, {**right, **wrong}, right])
    assert (note.row, note.column) == (2, column)
    assert first.labels == last.labels
