"""From clicks to relevance: what people clicked depends on what they saw and where they saw it.

A position-based click model with noisy clicks and a hidden relevance per (query, item) pair,

    P(click at position k | relevance r) = theta_k * attraction_r,    P(r = 1) = prior_k,

fitted by expectation maximisation. theta_k is the chance that position k is looked at (theta_1 = 1:
only ratios can be learnt), attraction_1 that a relevant item is clicked once seen, attraction_0
that an irrelevant one is. A pair shown n_k times and clicked c_k times at position k then has

    log-odds(r = 1) = logit(prior) + sum_k c_k log(attraction_1 / attraction_0)
                      + (n_k - c_k) log((1 - theta_k attraction_1) / (1 - theta_k attraction_0)).

A skip counts as far as people look: with attractions of 0.9 and 0.08 and theta_k = 1/k, one at the
top takes 2.2 off the log-odds and one at position 10 takes 0.09. That somebody who clicked further
down has looked at all above it is not assumed: counts per position cannot tell. Repeated showings
of a pair tell theta from relevance; where there are few, priors decide.

An event of weight w, a purchase, say, is taken for a click that says as much as w of them. That
somebody clicks at all is told by theta and the attractions, which are fitted to clicks of any
weight, each counted once: counted w times, they would make positions where people buy look more
looked at. What kind of click it is depends on relevance alone, w - 1 further times as a click does:

    P(kind | click, r = 1) / P(kind | click, r = 0) = (attraction_1 / attraction_0)^(w - 1),

so that c_k above becomes the sum of the weights where it is a factor of log(attraction_1 /
attraction_0), and stays the number of clicks in n_k - c_k. A weight below 1 is a click that says
less than others; of weight 0 is what is no click. Theta and the attractions are fitted as if the
ratio were fixed, and with weights of 1 it is 1.

Sources: Joachims, Swaminathan & Schnabel 2017 (position bias in learning to rank); Wang et al. 2018
(theta by EM from ordinary clicks); Chuklin, Markov & de Rijke 2015 (click models, section 3.2 on
the position-based model); Agarwal et al. 2019 (noise in clicks; their noise depends on position,
ours does not)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from embedding_studio.clickstream import Session

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

# Beta priors in pseudo-impressions: they decide while the data cannot
_THETA_STRENGTH = 20.0
_THETA_FLOOR = 0.02
_ATTRACTION_1 = (6.0, 2.0)  # clicked and not clicked, when seen and relevant
_ATTRACTION_0 = (2.0, 18.0)  # clicked and not clicked, when seen and irrelevant
_PRIOR_STRENGTH = 10.0
_PRIOR_RANGE = (1e-3, 0.9)
_ATTRACTION_CEILING = 0.99


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


@dataclass(frozen=True, slots=True)
class Impressions:
    """How often each pair was shown and clicked at each position, one row per pair and position.

    pair: (n_rows,) in [0, n_pairs), position: (n_rows,) from 0, shown and clicked: (n_rows,) >= 0;
    clicked: on how many showings some event counts. weight: (n_rows,) the sum of these events'
    weights, where a showing has that of its strongest one: as how many clicks they count."""

    pair: Ints
    position: Ints
    shown: Floats
    clicked: Floats
    weight: Floats
    n_pairs: int

    def total_clicked(self) -> Floats:
        """Return (n_pairs,) clicks at any position."""
        return sum_by(self.pair, self.clicked, self.n_pairs)

    def extra_weight(self) -> Floats:
        """Return (n_pairs,) by how much the weights are more than the clicks."""
        return sum_by(self.pair, self.weight - self.clicked, self.n_pairs)

    def first_position(self) -> Ints:
        """Return (n_pairs,) the highest place each pair was shown at."""
        best = np.full(self.n_pairs, np.iinfo(np.int64).max)
        np.minimum.at(best, self.pair, self.position)
        return best


@dataclass(frozen=True, slots=True)
class ClickModel:
    """How people look at a list of results and click in it.

    theta: (n_positions,) in (0, 1], theta[0] = 1; prior: (n_positions,) in (0, 1).

    Positions beyond the last one fitted are taken for the last one."""

    theta: Floats
    attraction_1: float
    attraction_0: float
    prior: Floats

    def relevance(self, impressions: Impressions) -> Floats:
        """Return (n_pairs,) the probability that each pair is relevant, given its clicks."""
        irrelevant, relevant = self._log_joint(impressions)
        return 1 / (1 + np.exp(np.clip(irrelevant - relevant, -50, 50)))

    def log_likelihood(self, impressions: Impressions) -> float:
        """Return the log-probability of all the clicks and skips."""
        return float(np.logaddexp(*self._log_joint(impressions)).sum())

    def _log_joint(self, impressions: Impressions) -> tuple[Floats, Floats]:
        last = len(self.theta) - 1
        theta = self.theta[np.minimum(impressions.position, last)]
        prior = self.prior[np.minimum(impressions.first_position(), last)]
        skipped = impressions.shown - impressions.clicked

        def evidence(attraction: float) -> Floats:
            click = theta * attraction
            logs = impressions.clicked * np.log(click) + skipped * np.log1p(-click)
            return sum_by(impressions.pair, logs, impressions.n_pairs)

        ratio = np.log(self.attraction_1 / self.attraction_0)
        return (
            np.log1p(-prior) + evidence(self.attraction_0),
            np.log(prior) + evidence(self.attraction_1) + impressions.extra_weight() * ratio,
        )


def fit_click_model(
    impressions: Impressions, max_rounds: int = 200, tolerance: float = 1e-5
) -> ClickModel:
    """Fit by EM from three guesses: that people look at everything, at 1/k, and at 1/k^2.

    EM finds the best explanation nearby; the likeliest of the three is returned."""
    n_positions = int(impressions.position.max(initial=0)) + 1
    fits = [
        _fit_from(np.arange(1.0, n_positions + 1) ** -decay, impressions, max_rounds, tolerance)
        for decay in (0.0, 1.0, 2.0)
    ]
    return max(fits, key=lambda fit: fit.log_likelihood(impressions))


def _fit_from(
    guess: Floats, impressions: Impressions, max_rounds: int, tolerance: float
) -> ClickModel:
    n_positions = len(guess)
    first = impressions.first_position()
    shown_first = np.bincount(first, minlength=n_positions)
    model = ClickModel(
        theta=guess,
        attraction_1=_ATTRACTION_1[0] / sum(_ATTRACTION_1),
        attraction_0=_ATTRACTION_0[0] / sum(_ATTRACTION_0),
        prior=np.full(n_positions, 0.2),
    )
    for _ in range(max_rounds):
        relevance = model.relevance(impressions)
        weight = relevance[impressions.pair]
        shown, clicked = (
            np.stack(
                [
                    sum_by(impressions.position, counts * (1 - weight), n_positions),
                    sum_by(impressions.position, counts * weight, n_positions),
                ],
                axis=1,
            )
            for counts in (impressions.shown, impressions.clicked)
        )
        before = model.theta
        model = _maximize(model, shown, clicked, guess)
        overall = relevance.sum() / max(1, len(relevance))
        relevant_first = sum_by(first, relevance, n_positions)
        # a search engine ranks no worse than at random: without this, "never looked at" and "never
        # relevant" explain an unclicked position equally well
        weights = shown_first + _PRIOR_STRENGTH
        shares = (relevant_first + _PRIOR_STRENGTH * overall) / weights
        prior = isotonic_regression(shares, weights=weights, increasing=False).x
        model = replace(model, prior=np.clip(prior, *_PRIOR_RANGE))
        if np.abs(model.theta - before).max() < tolerance:
            break
    return model


def _maximize(
    model: ClickModel, shown: Floats, clicked: Floats, guess: Floats, rounds: int = 20
) -> ClickModel:
    """Return the model with a theta and attractions that better explain (n_positions, 2) counts.

    Whether a result without a click was looked at is a second hidden variable, in closed form."""
    theta = model.theta
    attraction = np.array([model.attraction_0, model.attraction_1])
    pseudo = np.array([_ATTRACTION_0, _ATTRACTION_1])
    for _ in range(rounds):
        chance = theta[:, None] * attraction
        skipped = shown - clicked
        seen = clicked + skipped * (theta[:, None] - chance) / (1 - chance)
        attraction = (clicked.sum(axis=0) + pseudo[:, 0]) / (seen.sum(axis=0) + pseudo.sum(axis=1))
        theta = (seen.sum(axis=1) + _THETA_STRENGTH * guess) / (shown.sum(axis=1) + _THETA_STRENGTH)
        attraction = np.minimum(attraction * theta[0], _ATTRACTION_CEILING)
        theta = np.clip(theta / theta[0], _THETA_FLOOR, 1.0)
    a0, a1 = float(attraction[0]), float(attraction[1])
    # the two kinds must keep their names: relevant is what is clicked more
    a1 = max(a1, min(1.5 * a0, _ATTRACTION_CEILING))
    return ClickModel(theta, a1, min(a0, a1 / 1.5), model.prior)


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


def count_impressions(showings: Showings, counts: Flags | None = None) -> Impressions:
    """Sum showings up by pair and position. counts: (n_showings,) which of them say anything; of
    the others it is known only that they were. None: all do."""
    width = int(showings.position.max(initial=0)) + 1
    cells, row = np.unique(showings.pair * width + showings.position, return_inverse=True)
    said = np.ones(len(row)) if counts is None else counts.astype(np.float64)
    return Impressions(
        pair=cells // width,
        position=cells % width,
        shown=sum_by(row, said, len(cells)),
        clicked=sum_by(row, said * (showings.weight > 0), len(cells)),
        weight=sum_by(row, said * showings.weight, len(cells)),
        n_pairs=showings.n_pairs,
    )


def sum_by(group: Ints, values: NDArray[Any], n_groups: int) -> Floats:
    """Return (n_groups,) sums of the values of each group."""
    return np.bincount(group, values, n_groups).astype(np.float64)
