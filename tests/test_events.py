"""What of the clickstream counts, and how much of it there must be."""

import pytest

from embedding_studio.clickstream import (
    MIN_NEW_SESSIONS,
    SearchResult,
    Session,
    SessionEvent,
    event_kind,
    merge_weights,
    sessions_to_fill,
    split_by_query,
)
from tests.iterations import NOW, make_session


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
