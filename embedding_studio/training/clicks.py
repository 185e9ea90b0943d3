"""What was shown to people, where, and what they clicked of it.

An event of weight w, a purchase, say, is taken for a click that says as much as w of them. That
somebody clicks at all is told by how people look at a list (see `browsing`), which is fitted to
clicks of any weight, each counted once: counted w times, they would make positions where people buy
look more looked at. What kind of click it is depends on relevance alone, w - 1 further times as a
click does:

    P(kind | click, r = 1) / P(kind | click, r = 0) = (P(click | r = 1) / P(click | r = 0))^(w - 1).

A weight below 1 is a click that says less than others; of weight 0 is what is no click."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]
Flags = NDArray[np.bool_]

_BLOCK = 1_000_000


@dataclass(frozen=True, slots=True)
class Showings:
    """Each showing of a pair: sessions one after another, each from the top down.

    session: (n_showings,) in [0, n_sessions), ascending; pair: in [0, n_pairs); position: from 0;
    weight: as how many clicks the strongest event on it counts, 0 if there was none."""

    session: Ints
    pair: Ints
    position: Ints
    weight: NDArray[np.floating[Any]]
    n_pairs: int
    n_sessions: int

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return several as one, sessions and pairs numbered on."""
        sessions = np.cumsum([0, *(part.n_sessions for part in parts)], dtype=np.int32)
        pairs = np.cumsum([0, *(part.n_pairs for part in parts)], dtype=np.int32)
        return cls(
            session=np.concatenate([p.session + n for p, n in zip(parts, sessions, strict=False)]),
            pair=np.concatenate([p.pair + n for p, n in zip(parts, pairs, strict=False)]),
            position=np.concatenate([part.position for part in parts]),
            weight=np.concatenate([part.weight for part in parts]),
            n_pairs=int(pairs[-1]),
            n_sessions=int(sessions[-1]),
        )

    def of_sessions(self, sessions: Flags) -> Self:
        """Return those of some sessions, (n_sessions,) flags, which are numbered anew."""
        if sessions.all():  # a copy is large
            return self
        number = np.cumsum(sessions, dtype=np.int32) - 1
        some = self._only(sessions[self.session])
        return replace(some, session=number[some.session], n_sessions=int(sessions.sum()))

    def of_pairs(self, pairs: Flags) -> Self:
        """Return those of some pairs, (n_pairs,) flags, which are numbered anew."""
        number = np.cumsum(pairs, dtype=np.int32) - 1
        some = self._only(pairs[self.pair])
        return replace(some, pair=number[some.pair], n_pairs=int(pairs.sum()))

    def blocks(self) -> Iterator[Self]:
        """Give them by about a million, sessions whole."""
        bounds = [0]
        while bounds[-1] < len(self.session):
            last = self.session[min(bounds[-1] + _BLOCK, len(self.session)) - 1]
            bounds.append(int(np.searchsorted(self.session, last, side="right")))
            yield self._only(slice(*bounds[-2:]))

    def _only(self, rows: Flags | slice) -> Self:
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
        best = np.full(self.n_pairs, np.iinfo(np.int32).max, np.int32)
        np.minimum.at(best, self.pair, self.position)
        return best


def sum_by(group: Ints, values: NDArray[Any], n_groups: int) -> Floats:
    """Return (n_groups,) sums of the values of each group."""
    return np.bincount(group, values, n_groups).astype(np.float64)
