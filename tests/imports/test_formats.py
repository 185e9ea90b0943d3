"""What rows mean: sessions, or tables of impressions that become sessions."""

import csv
import io
import json
import random
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from embedding_studio.errors import InvalidInput
from embedding_studio.imports import impressions
from embedding_studio.imports.formats import found_in
from embedding_studio.imports.impressions import Found
from embedding_studio.imports.readers import read_rows
from embedding_studio.items import Item
from embedding_studio.settings import Settings
from embedding_studio.wire.imports import ImportFormat, RowNote

SETTINGS = Settings(max_results_per_session=3, max_query_chars=20)


def read(text: str | list[Any], **given: Any) -> tuple[ImportFormat, list[Any]]:
    if not isinstance(text, str):
        text = "\n".join(map(json.dumps, text))
    rows = read_rows(io.BytesIO(text.encode()).read, SETTINGS)
    format_, found = found_in(rows, "imp", SETTINGS, **given)
    return format_, list(found)


def sessions_in(text: str | list[Any], **given: Any) -> list[Any]:
    """Return the sessions of a table, in which nothing is refused."""
    format_, found = read(text, **given)
    assert format_ is ImportFormat.IMPRESSIONS
    assert not [one for one in found if isinstance(one, RowNote)]
    return [one.posted for one in found if isinstance(one, Found)]


def shown_in(session: Any) -> list[str]:
    return [one["object_id"] for one in session["search_results"]]


def test_rows_of_one_search_are_gathered() -> None:
    """Results by their positions, clicks as events, the first time as the session's, whatever the
    order of the rows and the names of the columns."""
    table = """Search-ID,Search Term,product_id,Rank,is_click,timestamp,User Id,title,price
s1,shoes,9,2,1,2026-01-31T13:00:10+01:00,u1,Trail,7
s2,coat,7,1,0,1769860800000,u2,Parka,
s1,shoes,8,1,0,1769860805,u1,Runner,8
s2,coat,9,2,2,2026-01-31 12:00:09 UTC,u2,,
"""
    [first, second] = sessions_in(table)
    assert first == {
        "session_id": "s1",
        "search_query": "shoes",
        "search_results": [
            {"object_id": "8", "rank": None, "meta": {"text": "Runner"}},
            {"object_id": "9", "rank": None, "meta": {"text": "Trail"}},
        ],
        "user_id": "u1",
        "created_at": 1769860805.0,
        "events": [
            {
                "event_id": "imp-2",
                "object_id": "9",
                "event_type": "click",
                "created_at": 1769860810.0,
            }
        ],
    }
    assert second["created_at"] == 1769860800.0
    assert [event["created_at"] for event in second["events"]] == [1769860809.0]
    assert [event["event_id"] for event in second["events"]] == ["imp-5"]


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_rows_does_not_matter(seed: int) -> None:
    """However the rows of searches are mixed, and in either form, the same sessions come out."""
    chance = random.Random(seed)
    rows = [
        {"search_id": f"s{n}", "query": f"q{n % 3}", "item": f"i{item}", "position": place}
        | {"clicked": int(chance.random() < 0.3)}
        for n in range(chance.randint(1, 9))
        for place, item in enumerate(chance.sample(range(9), chance.randint(1, 3)))
    ]

    def told(sessions: list[Any]) -> Any:
        return sorted(
            (
                one["session_id"],
                one["search_query"],
                shown_in(one),
                sorted(event["object_id"] for event in one["events"]),
            )
            for one in sessions
        )

    expected = told(sessions_in(rows))
    chance.shuffle(rows)
    assert told(sessions_in(rows)) == expected
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    assert told(sessions_in(table.getvalue())) == expected
    clicked = [row for row in rows if row["clicked"]]
    assert sum(len(clicks) for *_, clicks in expected) == len(clicked)


def test_columns_may_be_named() -> None:
    """Those that are given come before those that would be recognised."""
    rows = [{"query": "id-7", "words": "shoes", "sku": 7, "hit": True}]
    given = {"query": "words", "item": "sku", "session": "query", "clicked": "hit"}
    [session] = sessions_in(rows, columns=given)
    assert (session["session_id"], session["search_query"]) == ("id-7", "shoes")
    assert session["events"][0]["object_id"] == "7"


def test_events_in_rows_of_their_own() -> None:
    """A row for each thing that happened: what only says that an item was shown is no event."""
    row = {"session": "s", "query": "q"}
    happened = [("a", "impression"), ("b", "impression"), ("b", "click"), ("b", "Purchase")]
    [session] = sessions_in([{**row, "item": item, "event": what} for item, what in happened])
    assert shown_in(session) == ["a", "b"]
    types = [(one["object_id"], one["event_type"]) for one in session["events"]]
    assert types == [("b", "click"), ("b", "Purchase")]


def test_tables_without_sessions() -> None:
    """The rows of one query of one user, up to the next search, which a position that does not rise
    begins, an item that was there, or half an hour; the first row names it."""
    rows = [
        {"q": "x", "user": "u", "item": "a", "position": 1, "time": 1e9},
        {"q": "x", "user": "v", "item": "a", "position": 1, "time": 1e9},
        {"q": "x", "user": "u", "item": "b", "position": 2, "time": 1e9},
        {"q": "x", "user": "u", "item": "b", "event": "click", "time": 1e9},
        {"q": "x", "user": "u", "item": "c", "position": 1, "time": 1e9},
        {"q": "x", "user": "u", "item": "c", "position": 2, "time": 1e9},
        {"q": "x", "user": "u", "item": "d", "position": 3, "time": 1e9 + 1801},
    ]
    sessions = sessions_in(rows)
    shown = {one["session_id"]: shown_in(one) for one in sessions}
    assert shown == {
        "imp-1": ["a", "b"],
        "imp-2": ["a"],
        "imp-5": ["c"],
        "imp-6": ["c"],
        "imp-7": ["d"],
    }


def test_a_visit_with_two_queries_is_two_sessions() -> None:
    """Each has an id of its own, the same whenever the file is read."""
    rows = [{"session": "s", "query": query, "item": "a"} for query in ("x", "y", "x")]
    second, first = sessions_in(rows)
    assert (first["session_id"], first["search_query"]) == ("s", "x")
    assert second["session_id"].startswith("s-")
    assert sessions_in(rows) == [second, first]


def test_what_is_gathered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the bound, the session that waited longest for a row is taken as it is."""
    monkeypatch.setattr(impressions, "MAX_OPEN_ROWS", 3)
    rows = [{"session": name, "query": "q", "item": f"i{n}"} for n, name in enumerate("abacbd")]
    assert [one["session_id"] for one in sessions_in(rows)] == ["b", "a", "c", "b", "d"]
    monkeypatch.setattr(impressions, "MAX_OPEN_CHARS", 300)
    assert len(sessions_in([{**row, "text": "x" * 200} for row in rows])) == 6


@pytest.mark.parametrize(
    ("wrong", "column", "reason"),
    [
        ({"query": "x" * 21}, "query", "ES_MAX_QUERY_CHARS"),
        ({"query": None}, "query", "required"),
        ({"sku": ""}, "sku", "at least 1"),
        ({"sku": "a\x1bb"}, "sku", "control character"),
        ({"position": float("nan")}, "position", "finite"),
        ({"position": "first"}, "position", "number"),
        ({"clicked": "maybe"}, "clicked", "boolean"),
        ({"time": "2026-01-31T12:00:00"}, "time", "no time zone"),
        ({"time": "yesterday"}, "time", "ISO 8601"),
        ({"time": float("inf")}, "time", "finite"),
        ({"title": "x" * 40_000}, "title", "ES_MAX_META_BYTES"),
        ({"Query": "y"}, None, "twice"),
        ({"sku": "d"}, None, "ES_MAX_RESULTS_PER_SESSION"),
    ],
)
def test_a_wrong_row_is_told_with_its_column(wrong: Any, column: str | None, reason: str) -> None:
    """As the table names it; the other rows of its session are taken."""
    right = [{"session": "s", "query": "q", "sku": item} for item in "abc"]
    _, [note, session] = read([*right, {**right[0], **wrong}], columns={"item": "sku"})
    assert isinstance(note, RowNote)
    assert isinstance(session, Found)
    assert (note.row, note.column) == (4, column)
    assert reason in note.reason
    assert session.rows == 3


QUERY = {
    "query_id": "q-1",
    "client_id": "c-1",
    "timestamp": 1769860800000,
    "user_query": "coat",
    "query_response_object_ids": ["b", "a"],
}
CLICK = {
    "query_id": "q-1",
    "timestamp": "2026-01-31T12:00:09Z",
    "action_name": "click",
    "event_attributes": {"object": {"object_id": "a"}, "position": {"ordinal": 2}},
}


def test_searches_and_events_of_ubi() -> None:
    """Results come from the search, events join it by its id, in OpenSearch's own words; those of a
    search that is not there are told apart."""
    [session] = sessions_in([{"_source": QUERY}, {**CLICK, "action_name": "impression"}, CLICK])
    assert session["session_id"] == "q-1"
    assert session["user_id"] == "c-1"
    assert shown_in(session) == ["b", "a"]
    [event] = session["events"]
    assert (event["object_id"], event["event_type"]) == ("a", "click")
    assert event["created_at"] == 1769860809.0
    empty = {**QUERY, "query_response_object_ids": []}
    _, [wrong, alone] = read([empty, {**CLICK, "query_id": "q-2"}])
    assert isinstance(wrong, RowNote)
    assert (alone.row, alone.session_id, alone.posted["event_id"]) == (2, "q-2", "imp-2")


def ga4(name: str, words: str | None, *shown: str, user: str = "u") -> Any:
    return {
        "event_name": name,
        "event_timestamp": 1769860800000000,
        "user_pseudo_id": user,
        "event_params": [
            {"key": "ga_session_id", "value": {"string_value": None, "int_value": 17}},
            {"key": "search_term", "value": {"string_value": words, "int_value": None}},
        ],
        "items": [
            {"item_id": one, "item_name": f"{one}!", "item_list_index": place}
            for place, one in enumerate(shown, 3)
        ],
    }


def test_an_export_of_ga4() -> None:
    """Each row lists its items, which become a search's results; rows without words are left
    out, and a search that comes again is another. Its parquet says the same."""
    rows = [
        ga4("page_view", None),
        ga4("view_item_list", "coat", "b", "a"),
        ga4("select_item", "coat", "a"),
        ga4("view_item_list", "coat", "b", "a"),
    ]
    format_, [refused, first, second] = read(rows)
    assert format_ is ImportFormat.IMPRESSIONS
    assert (refused.row, refused.reason) == (1, "Field required")
    assert shown_in(first.posted) == shown_in(second.posted) == ["b", "a"]
    assert first.posted["search_results"][0]["meta"] == {"text": "b!"}
    assert [one["event_type"] for one in first.posted["events"]] == ["select_item"]
    assert second.posted["events"] == []
    table = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    _, made = found_in(read_rows(io.BytesIO(table.getvalue()).read, SETTINGS), "imp", SETTINGS)
    assert [*made] == [refused, first, second]


def test_a_row_is_taken_whole_or_not() -> None:
    """What lists more than a session may show is refused once, and leaves nothing."""
    many = {**QUERY, "query_response_object_ids": ["a", "b", "c", "d"]}
    _, [refused, right] = read([many, QUERY])
    assert (refused.row, right.rows) == (1, 1)
    assert "ES_MAX_RESULTS_PER_SESSION" in refused.reason
    _, [wrong] = read([{**QUERY, "query_response_object_ids": ["a", ""]}])
    assert (wrong.row, wrong.column) == (1, "item")


def test_a_null_gives_way_to_another_name() -> None:
    """Exports have columns that are always null beside the one that is meant."""
    row = {"q": "x", "query": None, "item": "a", "user_id": None, "user_pseudo_id": "u"}
    nested = {**ga4("select_item", "x", "a"), "user_id": None}
    for one in (row, nested):
        [session] = sessions_in([one])
        assert (session["search_query"], session["user_id"]) == ("x", "u")


def test_nested_columns_have_names_with_dots() -> None:
    """They are recognised and named as others are."""
    rows = [{"query": "x", "product": {"id": 7, "name": {"en": "Coat"}}}]
    [session] = sessions_in(rows, columns={"text": "product.name.en"})
    assert session["search_results"] == [{"object_id": "7", "rank": None, "meta": {"text": "Coat"}}]


def test_items() -> None:
    """A text, or what is read one after the other; the rest is meta; numbers are ids and texts."""
    rows = [
        {"ID": 7, "title": 501, "price": 3.5, "brand": None},
        {"ID": 8, "text": "coat", "image_url": "s3://b/8.jpg", "meta": {"size": "M"}},
        {"ID": 9, "fields": {"a": "b"}, "name": "Parka"},
        {"ID": 1},
        {"title": "x"},
        {"ID": 2, "text": ["x"]},
        {"ID": 2, "fields": "x", "price": float("nan")},
        {"ID": 2, "x": float("nan")},
    ]
    format_, made = read(rows)
    assert format_ is ImportFormat.ITEMS
    assert [told.items[0] for told in made[:3]] == [
        Item("7", fields={"title": "501"}, meta={"price": 3.5}),
        Item("8", "coat", image="s3://b/8.jpg", meta={"size": "M"}),
        Item("9", fields={"a": "b", "name": "Parka"}),
    ]
    assert [(one.row, one.column) for one in made[3:]] == [
        (4, None), (5, "object_id"), (6, "text"), (7, "fields"), (8, "meta"),
    ]  # fmt: skip
    table = "sku;words;picture\n7;Coat;x.jpg\n"
    _, [told] = read(table, wanted=ImportFormat.ITEMS, columns={"text": "words"})
    assert told.items == (Item("7", "Coat", image="x.jpg"),)


def test_formats_are_recognised() -> None:
    """By the first row that can be read; a file of neither is refused with the columns it has."""
    session = {"session_id": "s", "search_query": "q", "search_results": []}
    format_, [found] = read([session])
    assert format_ is ImportFormat.SESSIONS
    assert found == Found(1, 1, json.dumps(session).encode())
    assert read('{"q": }\n{"q": "x", "item": "a"}')[0] is ImportFormat.IMPRESSIONS
    for text, word in (
        ('{"a": 1, "b": 2}', "'a', 'b'"),
        ("a\n1\n", "'a'"),
        (" \n", "no rows"),
        ("{}\n", "they have nothing"),
        ('{"q": }\n' * 20, "row 10: is no JSON"),
        ('{"q": }', "row 1: is no JSON"),
    ):
        with pytest.raises(InvalidInput, match=word):
            read(text)
    with pytest.raises(InvalidInput, match="none of messages, file"):
        read([session], columns={"words": "q"})
