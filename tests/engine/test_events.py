"""What of the clickstream counts, and how much of it there must be."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from embedding_studio.clickstream import (
    EVENT_WEIGHTS,
    MIN_NEW_SESSIONS,
    SearchResult,
    Session,
    SessionEvent,
    check_weights,
    event_kind,
    merge_weights,
    sessions_to_fill,
    split_by_query,
)
from embedding_studio.engine.jobs import MethodRef, Prepared, PrepareData
from embedding_studio.engine.labels import TakenLabels
from embedding_studio.executors.base import Report, Verdict
from embedding_studio.snapshot import SnapshotWriter
from embedding_studio.store.sessions import SESSION
from embedding_studio.tasks import TaskEventKind, TaskStatus
from tests.iterations import NOW, TOYS, Bench, make_session

MANUAL = Path(__file__).parents[2] / "docs" / "training.md"


def session_of(*events: tuple[str, str]) -> Session:
    """A search that showed a and b, with events of an object id and a type each."""
    return Session(
        "s",
        "query",
        (SearchResult("a"), SearchResult("b")),
        NOW,
        events=tuple(
            SessionEvent(str(number), object_id, NOW, event_type)
            for number, (object_id, event_type) in enumerate(events)
        ),
    )


@pytest.mark.parametrize("spelling", ["add_to_cart", "addToCart", "Add to cart", "ADD-TO-CART"])
def test_an_events_type_is_known_in_any_spelling(spelling: str) -> None:
    """Case, spaces, hyphens and underscores do not tell types apart."""
    assert event_kind(spelling) == "addtocart"
    assert session_of(("a", spelling)).click_weights() == {"a": 2}


def test_an_item_counts_as_its_strongest_event() -> None:
    """A click, then a purchase, is a purchase; a view is nothing, a type nobody knows a click."""
    session = session_of(
        ("a", "click"), ("a", "purchase"), ("a", "click"), ("b", "view"), ("c", "swipe")
    )
    assert session.click_weights() == {"a": 3, "c": 1}
    assert session.clicked_ids() == {"a", "c"}
    assert session.shown_kinds() == {"click", "purchase", "view"}
    assert session_of(("a", "view"), ("b", "dislike")).clicked_ids() == set()


def test_the_manual_lists_the_weights() -> None:
    """docs/training.md has every type that has a weight, in the row of that weight."""
    rows = re.findall(r"^\| ([0-3]) \| ([^|]*) \|$", MANUAL.read_text(), re.MULTILINE)
    told = {name: float(weight) for weight, names in rows for name in names.split(", ")}
    del told["and every type that is not here"]
    assert told == EVENT_WEIGHTS


def test_a_later_layer_of_weights_wins_in_any_spelling() -> None:
    weights = merge_weights({"Purchase": 5, "swipe": 0}, {"PURCHASE": 7})
    assert (weights["purchase"], weights["swipe"], weights["click"]) == (7, 0, 1)


def test_a_schedules_minimum_is_what_fills_the_splits() -> None:
    """Of 200 batches of so many queries, about one in twenty leaves a part with too few."""
    assert sessions_to_fill(0.15, 0.15) == MIN_NEW_SESSIONS == 66
    assert sessions_to_fill(0.15, 0.3) == 59
    short = 0
    for batch in range(200):
        sessions = [make_session(n, f"{batch} {n}") for n in range(MIN_NEW_SESSIONS)]
        parts = split_by_query(sessions)
        short += len(parts.train) < 10 or len(parts.validation) < 5 or len(parts.test) < 5
    assert 2 <= short <= 20


# -- in an iteration -----------------------------------------------------------------------------


def prepare(folder: Path, weights: dict[str, float], *sessions: Session) -> Prepared:
    """Prepare data for the toy method, whose default keeps the sessions as they are."""
    snapshot = folder / "snapshot"
    with SnapshotWriter(snapshot, find_items=lambda ids: {}) as writer:
        writer.add([*map(SESSION.encode, sessions)])
    labels = TakenLabels(folder / "labels")
    job = PrepareData(MethodRef("Toy", TOYS), snapshot, folder, folder / "data", weights, labels)
    return job(_no_report)


def _no_report(report: Report) -> Verdict:
    raise AssertionError("preparing reports nothing")


def test_a_method_sees_what_counts(tmp_path: Path) -> None:
    """A task's weights win over the method's: `clicked_ids`, as plugins of 0.1 call it, has the
    items of events that count, `click_weights` how much; a view is ignored, and told."""
    events = ("a", "purchase"), ("a", "click"), ("b", "view"), ("b", "swipe"), ("b", "swipe")
    sessions = [replace(session_of(*events), session_id=str(n), search_query=f"q {n}") for n in
                range(40)]  # fmt: skip
    prepared = prepare(tmp_path, {"Purchase": 4, "click": 0.5}, *sessions)
    parts = MethodRef("Toy", TOYS).load().load_data(tmp_path / "data")
    for session in (*parts.train, *parts.validation, *parts.test):
        assert session.clicked_ids() == {"a", "b"}
        assert session.click_weights() == {"a": 4, "b": 1}
    assert prepared.figures["ignored_events"] == 40
    assert prepared.figures["unknown_events"] == 80
    assert prepared.events.as_data() == {
        "events": [{"type": "purchase", "events": 40}, {"type": "click", "events": 40}],
        "ignored_events": [{"type": "view", "events": 40}],
        "unknown_events": [{"type": "swipe", "events": 80}],
    }


def test_a_task_tells_which_events_it_learned_from(bench: Bench) -> None:
    """Its history names the types that it ignores and those that nobody gave a weight; MLflow
    counts them."""
    events = [SessionEvent(str(n), "item-0", NOW, kind) for n, kind in enumerate(("view", "a.$b"))]
    sessions = [make_session(n, events=tuple(events)) for n in range(60)]
    bench.house.store.clickstream.register(sessions, NOW)
    task = bench.post_task(event_weights={"buy": 5.0})
    assert bench.worker.work_once()
    task = bench.house.store.tasks.get(task.id)
    assert (task.status, task.event_weights) == (TaskStatus.DONE, {"buy": 5.0})
    (told,) = [
        numbered.event
        for numbered in bench.house.store.tasks.events(task.id)
        if numbered.event.kind is TaskEventKind.DATA_PREPARED
    ]
    assert "60 events ignored, for their weight is 0 ('view')" in told.detail
    assert "60 events counted as clicks" in told.detail
    assert told.data["unknown_events"] == [{"type": "a.$b", "events": 60}]
    (data,) = bench.runs(task, "data")
    assert data.data.metrics["data/ignored_events"] == 60


def test_too_little_to_learn_from_names_the_events_that_were_ignored(bench: Bench) -> None:
    """So that whoever weighs them by mistake as nothing sees why."""
    task = bench.run_task("Choosy", event_weights={"click": 0})
    assert "collect more; 60 events ignored, for their weight is 0 ('click')" in (task.error or "")


@pytest.mark.parametrize("weights", [{"buy": -1}, {"buy": 101}, {"buy": 1, "BUY": 2}])
def test_weights_that_cannot_be_meant_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="'buy'"):
        check_weights(weights)
