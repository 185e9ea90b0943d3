"""What was shown to people, and what they clicked of it."""

import numpy as np

from embedding_studio.training.clicks import Showings


def showings() -> Showings:
    """Three sessions of two pairs; one result was of neither."""
    return Showings(
        session=np.array([0, 0, 1, 1, 2, 2]),
        pair=np.array([0, 1, 0, 1, 1, 0]),
        position=np.array([0, 1, 0, 1, 0, 2]),
        weight=np.array([0, 1, 0, 3, 1, 0]),
        n_pairs=2,
        n_sessions=3,
    )


def test_pairs_know_their_clicks_and_their_best_place() -> None:
    """A click counts once a showing, whatever it weighs; nothing shown is survived."""
    found = showings()
    assert found.times_clicked().tolist() == [0, 3]
    assert found.highest_position().tolist() == [0, 0]
    nothing = found.of_sessions(np.zeros(3, np.bool_))
    assert nothing.times_clicked().tolist() == [0, 0]
    assert [*nothing.blocks()] == []


def test_some_of_them_are_numbered_anew() -> None:
    """Of sessions and of pairs, whatever is left out is gone without a gap."""
    late = showings().of_sessions(np.array([False, True, True]))
    assert (late.session.tolist(), late.n_sessions) == ([0, 0, 1, 1], 2)
    second = showings().of_pairs(np.array([False, True]))
    assert (second.pair.tolist(), second.n_pairs) == ([0, 0, 0], 1)
    assert second.session.tolist() == [0, 1, 2]


def test_joined_ones_are_numbered_on() -> None:
    """Sessions and pairs of the second follow those of the first."""
    both = Showings.joined([showings(), showings()])
    assert (both.n_sessions, both.n_pairs) == (6, 4)
    assert both.session.tolist()[6:] == [3, 3, 4, 4, 5, 5]
    assert both.times_clicked().tolist() == [0, 3, 0, 3]
