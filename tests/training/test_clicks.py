"""What was shown to people, and what they clicked of it."""

from dataclasses import replace

from embedding_studio.clickstream import SessionEvent
from embedding_studio.training.clicks import show
from tests.training.tiny import NOW, session


def test_showings_are_those_of_the_pairs_that_are_named() -> None:
    """Lists of different lengths, a repeated search and a skipped result."""
    sessions = [
        session(0, "q", ["a", "b"], [1]),
        session(1, "q", ["a", "b"], [1]),
        session(2, "q", ["b", "c", "a"], [0]),
    ]
    found = show(sessions, [[0, 1], [0, 1], [1, -1, 0]], 2)
    rows = zip(found.session, found.pair, found.position, found.weight, strict=True)
    assert list(rows) == [
        (0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 0, 0), (1, 1, 1, 1), (2, 1, 0, 1), (2, 0, 2, 0),
    ]  # fmt: skip
    assert found.times_clicked().tolist() == [0, 3]
    assert found.highest_position().tolist() == [0, 0]


def test_nothing_shown_is_survived() -> None:
    """No sessions are no showings."""
    assert show([], [], 0).times_clicked().shape == (0,)


def test_an_item_is_clicked_once_a_showing_with_its_strongest_weight() -> None:
    """A click and a purchase on one item are one click of the purchase's weight; a view is none."""
    events = [("a", "click"), ("a", "purchase"), ("b", "view")]
    shown = replace(
        session(0, "q", ["a", "b"], []),
        events=tuple(
            SessionEvent(str(n), object_id, NOW, kind) for n, (object_id, kind) in enumerate(events)
        ),
    )
    found = show([shown, session(1, "q", ["a", "b"], [0])], [[0, 1], [0, 1]], 2)
    assert found.times_clicked().tolist() == [2, 0]
    assert found.weight.tolist() == [3, 0, 1, 0]
