"""What a batch is worth, known before it is paid for."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from embedding_studio.clickstream import (
    MIN_NEW_SESSIONS,
    SearchResult,
    Session,
    SessionEvent,
    part_of_query,
)
from embedding_studio.reports import (
    LONG_TEXT,
    BatchReport,
    Enough,
    PositionCount,
    Report,
    tell_enough,
)
from tests.contracts.store_processes import NOW

RESULTS = tuple(SearchResult(name, None, {"text": f"text of {name}"}) for name in "abcd")


def search(
    number: int = 0, clicks: Sequence[str] = (), event_type: str = "click", **more: object
) -> Session:
    events = tuple(
        SessionEvent(f"{number}-{n}", clicked, NOW + timedelta(seconds=n), event_type)
        for n, clicked in enumerate(clicks)
    )
    session = Session(f"s-{number}", f"query {number}", RESULTS, NOW, events=events)
    return replace(session, **more)  # type: ignore[arg-type]


def report_on(*sessions: Session) -> BatchReport:
    report = Report()
    for session in sessions:
        report.count(session)
    return report.told()


def test_counts_by_hand() -> None:
    """Sessions, events by type, positions, and what carries nothing."""
    bare = (SearchResult("e"), SearchResult("a", None, {"text": "x" * (LONG_TEXT + 1)}))
    found = report_on(
        search(0, ["a", "b"], user_id="u"),
        search(0, ["a", "z"], "view", user_id="u"),
        search(1, ["a"], "swipe", is_irrelevant=True),
        search(2, ["e"], search_query="Query  0", search_results=bare),
    )
    assert (found.sessions, found.clicked_sessions, found.irrelevant_sessions) == (4, 2, 1)
    assert (found.queries, found.clicked_queries) == (2, 1)
    assert (found.items, found.users) == (5, 1)
    assert (found.results, found.results_without_content, found.long_texts) == (14, 1, 1)
    assert found.events == {"click": 3, "view": 2, "swipe": 1}
    assert (found.events_not_shown, found.ignored_events, found.unknown_events) == (1, 2, 1)
    assert found.positions[:2] == (PositionCount(4, 3), PositionCount(4, 1))
    assert found.recognised_gain == (0.981, 2.598)


@pytest.mark.parametrize(
    ("queries", "enough"),
    [(0, Enough.NO), (19, Enough.NO), (20, Enough.MAYBE), (65, Enough.MAYBE), (66, Enough.YES)],
)
def test_queries_that_are_clicked_are_enough(queries: int, enough: Enough) -> None:
    """Each query counts once, and those that nobody clicked do not."""
    clicked = [search(n, ["a"]) for n in range(queries)] * 2
    report = report_on(*clicked, *(search(n + 1000) for n in range(99)))
    told, why = tell_enough(report.clicked_queries)
    assert told is enough
    assert why.startswith(f"{queries} distinct queries")


def test_labels_are_enough_too() -> None:
    """Beside clicks or alone; those that judge have to be a few."""
    assert tell_enough(None, 66)[0] is Enough.YES
    assert tell_enough(10, 9) == (
        Enough.NO,
        "10 distinct queries have a result that was clicked, and 9 distinct queries have a "
        "relevant item by its labels, and at least 20 are needed: collect more",
    )
    assert tell_enough(60, 60)[0] is Enough.MAYBE
    assert tell_enough(100, 0, 4)[0] is Enough.NO
    assert tell_enough(100, None, 5)[0] is Enough.YES


def test_queries_are_told_apart() -> None:
    """By their words whatever their order, by script, and by whether they would judge."""
    queries = ["red shoe", "Shoe red", "red shoe shoe", "red shoes", "обувь nike x", "靴を", "7"]
    found = report_on(*(search(n, ["a"], search_query=one) for n, one in enumerate(queries)))
    assert found.alike_queries == 3
    assert found.scripts == {"Latin": 0.6667, "Cyrillic": 0.1667, "Han": 0.1667}
    assert any("take gains with care" in warning for warning in found.warnings)
    assert found.text_tokens == (sum(map(len, queries)) + 4 * len("text of a")) // 4
    many = report_on(*(search(n, ["a"]) for n in range(100)), search(101))
    assert many.held_out_queries == sum(part_of_query(f"query {n}") == "test" for n in range(100))


def test_nothing_is_survived() -> None:
    """An empty batch has no gain to recognise, and too few sessions."""
    found = report_on()
    assert (found.sessions, found.positions, found.recognised_gain) == (0, (), None)
    assert len(found.warnings) == 1


def good_searches(count: int = 400) -> list[Session]:
    """Clicks that get fewer down the list, each query and user once."""
    return [
        search(n, "abcd"[n % 10 // 4 : n % 10 // 4 + 1], user_id=f"u-{n}") for n in range(count)
    ]


def test_a_good_batch_has_no_warnings() -> None:
    """Clicks fall with the position, and nobody and nothing makes the most of it."""
    found = report_on(*good_searches())
    assert found.warnings == ()
    assert found.share_of_queries == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("sessions", "words"),
    [
        (good_searches(MIN_NEW_SESSIONS - 1), f"{MIN_NEW_SESSIONS} of different queries"),
        ([search(n, "a" if n < 20 else "") for n in range(400)], "are all clicks posted"),
        ([replace(one, search_results=(SearchResult("a"), *RESULTS[1:]))
          for one in good_searches()], "PUT /api/v1/items"),
        ([search(n, "az") for n in range(400)], "did not show"),
        ([search(n, "a", "swipe") for n in range(400)], "event_weights"),
        ([search(n, "d") for n in range(400)], "in the order in which they were shown"),
        ([search(0, "a") for _ in range(400)], "a hundredth of the queries make 100%"),
        ([replace(one, user_id="robot") if n % 3 == 0 else one
          for n, one in enumerate(good_searches(1200))], "'robot'"),
        ([replace(one, search_results=(SearchResult("a", None, {"text": "x" * 3000}),))
          for one in good_searches()], "put first what people look for"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_what_to_do(sessions: list[Session], words: str) -> None:
    """Too few, no clicks, no content, other ids, unknown types, a wrong order, one query, one user,
    and long texts."""
    assert any(words in warning for warning in report_on(*sessions).warnings)
