"""Sessions as columns on disk, and what is read of them."""

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embedding_studio import snapshot as module
from embedding_studio.clickstream import (
    SearchResult,
    Session,
    SessionEvent,
    Splits,
    merge_weights,
    split_by_query,
)
from embedding_studio.engine import report as reporting
from embedding_studio.items import Item
from embedding_studio.reports import Report
from embedding_studio.snapshot import Snapshot, SnapshotWriter, columns_of
from embedding_studio.store.sessions import SESSION
from tests.contracts.store_processes import NOW

WEIGHTS = merge_weights({"swipe": 0.5})


def event(number: int, object_id: str, kind: str = "click") -> SessionEvent:
    return SessionEvent(str(number), object_id, NOW, kind, {"n": number} if number % 2 else {})


SESSIONS = [
    Session(
        "0", "Red  shoes",
        (SearchResult("a", 0.5), SearchResult("b", None, {"text": "own"}), SearchResult("c", 0.0)),
        NOW, {"page": 1}, "ann",
        (event(0, "b"), event(1, "b", "Purchase"), event(2, "a", "view"), event(3, "gone"),
         event(4, "gone"), event(5, "c", "swipe")),
    ),
    Session("1", "none", (), NOW),
    Session("2", "red shoes", (SearchResult("b"), SearchResult("a")), NOW, events=(event(6, "a"),)),
    Session("3", "wrong", (SearchResult("a"),), NOW, events=(event(7, "a"),), is_irrelevant=True),
    Session("4", "héllo \U0001f600", (SearchResult("a"), SearchResult("a")), NOW,
            events=(event(8, "a", "click"),)),
]  # fmt: skip


@pytest.fixture(params=[1, 2, 20_000])
def snapshot(tmp_path: Path, request: pytest.FixtureRequest) -> Snapshot:
    """One that was written in row groups of a session, of two, of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_GROUP", request.param)
        items = {"a": Item("a", "text of a"), "b": Item("b", "not this")}

        def find(ids: Collection[str]) -> dict[str, Item]:
            return {its_id: item for its_id, item in items.items() if its_id in ids}

        with SnapshotWriter(tmp_path / "s", find) as writer:
            for part in (SESSIONS[:2], SESSIONS[2:]):
                writer.add([*map(SESSION.encode, part)])
    assert writer.count == len(SESSIONS)
    return Snapshot(tmp_path / "s", WEIGHTS)


def test_sessions_come_back_as_they_were(snapshot: Snapshot) -> None:
    """With the content of the items, their ranks, metas and events; marked ones are left out."""
    found = snapshot.usable()
    contents = {"a": {"text": "text of a"}, "b": {"text": "not this"}}
    expected = [
        replace(
            one,
            search_results=tuple(
                replace(shown, meta=shown.meta or contents.get(shown.object_id, {}))
                for shown in one.search_results
            ),
        ).weighed(WEIGHTS)
        for one in SESSIONS
        if not one.is_irrelevant
    ]
    assert [*found] == expected
    assert (len(found), len(snapshot)) == (4, 5)
    assert found[2] == found[-2] == expected[2]
    assert [*found[1:3]] == expected[1:3]


def test_columns_are_those_of_the_sessions(snapshot: Snapshot) -> None:
    """Read from the file or made of the objects: who asked, what was shown, what it counts."""
    read, made = columns_of(snapshot.usable()), columns_of([*snapshot.usable()])
    for columns in (read, made):
        assert [columns.queries[n] for n in columns.query] == [
            "Red  shoes", "none", "red shoes", "héllo \U0001f600",
        ]  # fmt: skip
        assert [columns.users[n] if n >= 0 else None for n in columns.user][:2] == ["ann", None]
        assert columns.offsets.tolist() == [0, 3, 3, 5, 7]
        assert columns.weight.tolist() == [0, 3, 0.5, 0, 1, 1, 1]
        results = [*columns.results]
        assert [results[n].object_id for n in columns.item] == ["a", "b", "c", "b", "a", "a", "a"]


def test_events_are_counted(snapshot: Snapshot) -> None:
    """Of usable sessions: by type as posted, and items with one that were not shown, once each."""
    assert snapshot.event_types == {"click": 5, "Purchase": 1, "view": 1, "swipe": 1}
    assert snapshot.strays == 1


def test_a_report_by_columns_is_that_of_the_sessions(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marked ones among them, whatever events are worth, and in parts of any size."""
    monkeypatch.setattr(reporting, "_PART", 2)
    report = Report(WEIGHTS)
    for group in range(len(snapshot.starts) - 1):
        for session in snapshot.group(group):
            report.count(session)
    assert reporting.report_on(snapshot, WEIGHTS) == report.told()


@pytest.mark.parametrize("fold", [0, 1, None])
def test_a_split_is_that_of_the_sessions(snapshot: Snapshot, fold: int | None) -> None:
    """By the query alone, whether objects are split or rows."""
    found = snapshot.usable().split_by_query(0.3, 0.3, 2, fold)
    expected = split_by_query([*snapshot.usable()], 0.3, 0.3, 2, fold)
    assert found.map(list) == expected


def test_a_text_is_written_once(snapshot: Snapshot, tmp_path: Path) -> None:
    """However often its item is shown; a result's own content is another one."""
    items = pq.read_table(tmp_path / "s" / "items.parquet").to_pydict()
    assert items["object_id"] == ["a", "b", "c", "b"]
    texts = ["text of a", "own", None, "not this"]
    assert items["content"] == [text and json.dumps({"text": text}) for text in texts]


def test_no_sessions_are_a_snapshot(tmp_path: Path) -> None:
    """Of no rows, which has columns and splits nevertheless."""
    with SnapshotWriter(tmp_path / "s", lambda ids: {}):
        pass
    snapshot = Snapshot(tmp_path / "s", WEIGHTS)
    assert len(columns_of(snapshot.usable())) == len(snapshot) == 0
    assert reporting.report_on(snapshot, WEIGHTS) == Report().told()
    assert snapshot.usable().split_by_query(0.2, 0.2).map(len) == Splits(0, 0, 0)
