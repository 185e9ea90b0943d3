"""What was shown to people, where, and what they clicked of it.

An event of weight w, a purchase, say, is taken for a click that says as much as w of them. That
somebody clicks at all is told by how people look at a list (see `browsing`), which is fitted to
clicks of any weight, each counted once: counted w times, they would make positions where people buy
look more looked at. What kind of click it is depends on relevance alone, w - 1 further times as a
click does:

    P(kind | click, r = 1) / P(kind | click, r = 0) = (P(click | r = 1) / P(click | r = 0))^(w - 1).

A weight below 1 is a click that says less than others; of weight 0 is what is no click."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_studio.clickstream import Session

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Showings:
    """Each showing of a pair: sessions one after another, each from the top down.

    session: (n_showings,) in [0, n_sessions), ascending; pair: in [0, n_pairs); position: from 0;
    weight: as how many clicks the strongest event on it counts, 0 if there was none."""

    session: Ints
    pair: Ints
    position: Ints
    weight: Floats
    n_pairs: int

    def only(self, rows: Flags) -> "Showings":
        """Return some of them."""
        return replace(
            self,
            session=self.session[rows],
            pair=self.pair[rows],
            position=self.position[rows],
            weight=self.weight[rows],
        )

    def times_clicked(self) -> Floats:
        """Return (n_pairs,) on how many showings of each some event counts."""
        return sum_by(self.pair, self.weight > 0, self.n_pairs)

    def highest_position(self) -> Ints:
        """Return (n_pairs,) the highest place that each was shown at."""
        best = np.full(self.n_pairs, np.iinfo(np.int64).max)
        np.minimum.at(best, self.pair, self.position)
        return best


def show(
    sessions: Sequence[Session], pair_of: Sequence[Sequence[int] | Ints], n_pairs: int
) -> Showings:
    """Return what sessions showed. pair_of[s][k]: the pair that session s showed at position k, -1
    to skip."""
    lengths = [len(pairs) for pairs in pair_of]
    pair = np.array([p for pairs in pair_of for p in pairs], dtype=np.int64)
    weights = [session.click_weights() for session in sessions]
    weight = np.array(
        [
            of_items.get(result.object_id, 0.0)
            for session, of_items in zip(sessions, weights, strict=True)
            for result in session.search_results
        ],
        dtype=np.float64,
    )
    starts = np.cumsum(lengths) - lengths
    everything = Showings(
        session=np.repeat(np.arange(len(sessions)), lengths),
        pair=pair,
        position=np.arange(len(pair)) - np.repeat(starts, lengths).astype(np.int64),
        weight=weight,
        n_pairs=n_pairs,
    )
    return everything.only(pair >= 0)


def sum_by(group: Ints, values: NDArray[Any], n_groups: int) -> Floats:
    """Return (n_groups,) sums of the values of each group."""
    return np.bincount(group, values, n_groups).astype(np.float64)
