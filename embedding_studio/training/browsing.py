"""How people look at a list and click in it: six models of it, of which clicks choose one.

    P(click | relevance r, cell) = theta_cell * attraction_r,    logit P(r = 1) = x . weights

A cell is a position and what was clicked above it in the session, see `count_cells`; theta is the
chance that it is looked at (1 at the top: only ratios can be learnt), attraction_1 that what is
relevant is clicked once seen, and x what is known of a pair before any click: the positions that it
was shown at or, better, what a model's scores say of it, see `judge.starting_features`. The
attraction of what is irrelevant is noise, and in three of the six noise + trust / (k + 1): people
trust the top (Agarwal et al. 2019; Vardasbi et al. 2020). They are fitted by expectation
maximisation with a regression in it (Wang et al. 2018), and the one is chosen that explains clicks
on held-out queries best. A pair shown n_k times in cell k and clicked c_k times then has

    log-odds(r = 1) = x . weights + sum_k c_k log(attraction_1 / attraction_0)
                      + (n_k - c_k) log((1 - theta_k attraction_1) / (1 - theta_k attraction_0)).

A skip counts as far as people look: with attractions of 0.9 and 0.08 and theta_k = 1/k, one at the
top takes 2.2 off the log-odds and one at position 10 takes 0.09. A click of weight w counts as w of
them in c_k, and as one in n_k - c_k, see `clicks`.

Sources, beside: Joachims, Swaminathan & Schnabel 2017 (position bias in learning to rank); Chuklin,
Markov & de Rijke 2015 (click models).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from embedding_studio.training.clicks import Showings, sum_by
from embedding_studio.training.judge import N_POSITIONAL, most_likely

Floats = NDArray[np.float64]
Ints = NDArray[np.integer[Any]]
Flags = NDArray[np.bool_]
Kind = tuple[str, bool]
"""What people remember as they go down a list, and whether they trust the top."""

_STATES = {"position": 1, "last_click": 4, "found": 5}
KINDS: Sequence[Kind] = [(memory, trusts) for memory in _STATES for trusts in (False, True)]
_LAST_POSITION = 99  # what is further down counts as there
_RIDGE = 1.0
_STRENGTH = 20.0  # of the guess of theta, in showings
_ROUNDS = 100
_MOST_TO_CHOOSE = 200_000  # showings
_MOST_SESSIONS = 50_000
MOST_SHOWINGS = 400_000
"""From which a model of clicking is fitted."""
_TOLERANCE = 2e-4
_DECAYS = (0.25, 0.5, 1.0)
_MANY_CLICKS = 4
_LEAST_ODDS = 0.05


# -- who is no person ---------------------------------------------------------------------------


def clicks_like_a_person(showings: Showings, rounds: int = 30) -> Flags:
    """Return (n_sessions,) flags: all but those of four clicks or more that are twenty times
    likelier as clicks anywhere alike than by the click rates of positions.

    A mixture of the two, by EM, on some of the sessions where they are many."""
    some = np.random.default_rng(0).random(showings.n_sessions) * showings.n_sessions
    seen = _InSessions.of(showings.of_sessions(some < _MOST_SESSIONS))
    n_sessions, n_positions = len(seen.clicks), _LAST_POSITION + 1
    shown_at, clicked_at = np.bincount(seen.position), np.bincount(seen.position, seen.clicked)
    rates = np.full(n_positions, 1e-4)
    rates[: len(shown_at)] = np.clip(clicked_at / np.maximum(shown_at, 1), 1e-4, 0.95)
    rate = seen.clicked.sum() / max(1, len(seen.clicked))
    anywhere, share = float(np.clip(2.5 * rate, 0.15, 0.5)), 0.05
    for _ in range(rounds):
        person = seen.chance_of_person(rates, anywhere, share)
        weight = person[seen.session]
        rates = np.clip(
            (sum_by(seen.position, weight * seen.clicked, n_positions) + 1)
            / (sum_by(seen.position, weight, n_positions) + 20),
            1e-4,
            0.95,
        )
        others = 1 - person
        of_others = ((others * seen.clicks).sum() + 2) / ((others * seen.lengths).sum() + 10)
        anywhere = float(np.clip(of_others, 0.05, 0.95))
        share = float(np.clip((others.sum() + 1) / (n_sessions + 50), 1e-3, 0.5))
    likes = np.ones(showings.n_sessions, np.bool_)
    for block in showings.blocks():
        first, last = int(block.session[0]), int(block.session[-1]) + 1
        part = replace(block, session=block.session - first, n_sessions=last - first)
        seen = _InSessions.of(part)
        person = seen.chance_of_person(rates, anywhere, share)
        likes[first:last] = (seen.clicks < _MANY_CLICKS) | (person >= _LEAST_ODDS)
    return likes


@dataclass(frozen=True, slots=True)
class _InSessions:
    """Showings as sessions clicked them: (n_showings,) columns, and (n_sessions,) clicks and
    lengths."""

    session: Ints
    position: Ints
    clicked: Flags
    clicks: Floats
    lengths: Ints

    @classmethod
    def of(cls, showings: Showings) -> "_InSessions":
        clicked = showings.weight > 0
        return cls(
            showings.session,
            np.minimum(showings.position, _LAST_POSITION),
            clicked,
            sum_by(showings.session, clicked, showings.n_sessions),
            np.bincount(showings.session, minlength=showings.n_sessions),
        )

    def chance_of_person(self, rates: Floats, anywhere: float, share: float) -> Floats:
        """Return (n_sessions,) posteriors. rates: of clicks, by position; anywhere: of those who
        are none; share: of them."""
        logs = np.where(self.clicked, np.log(rates)[self.position], np.log1p(-rates)[self.position])
        alike = self.clicks * np.log(anywhere) + (self.lengths - self.clicks) * np.log1p(-anywhere)
        of_people = sum_by(self.session, logs, len(self.clicks))
        chance: Floats = expit(of_people - alike - np.log(share / (1 - share)))
        return chance


# -- what was shown, by cell --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cells:
    """Showings counted by pair and cell: a position, and what was clicked above in the session.

    pair, cell: (n_rows,); shown, clicked: how often; weight: the sum of these clicks' weights;
    position: (n_cells,) from 0, of each cell."""

    pair: Ints
    cell: Ints
    shown: Floats
    clicked: Floats
    weight: Floats
    position: Ints
    n_pairs: int

    def only(self, pairs: Flags) -> "Cells":
        """Return the rows of some pairs, (n_pairs,) flags."""
        rows = pairs[self.pair]
        return replace(
            self,
            pair=self.pair[rows],
            cell=self.cell[rows],
            shown=self.shown[rows],
            clicked=self.clicked[rows],
            weight=self.weight[rows],
        )

    def alike(self, features: Floats) -> tuple["Cells", Floats, Ints]:
        """Return one pair for all those that have the same rows and features, numbered anew, its
        features, and (n_pairs,) how many pairs it stands for; those without rows are left out.

        What has the same hash of 64 bits is the same. features: (n_pairs, n_features)."""
        starts = np.flatnonzero(np.diff(self.pair, prepend=-1))
        pairs = self.pair[starts]
        rows = _hashed([self.cell, self.shown, self.clicked, self.weight])
        of_rows = np.add.reduceat(rows, starts) if len(starts) else rows
        keys = _hashed([of_rows.view(np.float64), *features[pairs].T])
        _, first, times = np.unique(keys, return_index=True, return_counts=True)
        order = np.argsort(first)
        chosen = pairs[first[order]]
        is_chosen = np.zeros(self.n_pairs, np.bool_)
        is_chosen[chosen] = True
        some = self.only(is_chosen)
        number = np.cumsum(is_chosen) - 1
        cells = replace(some, pair=number[some.pair], n_pairs=len(chosen))
        return cells, features[chosen], times[order]


def _hashed(columns: Sequence[NDArray[Any]]) -> NDArray[np.uint64]:
    """Return a hash of each row (Steele, Lea & Flood 2014: the mixing of SplitMix)."""
    found = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        found += np.ascontiguousarray(column, np.float64).view(np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
        found ^= found >> np.uint64(31)
    return found


def count_cells(showings: Showings, memory: str, relevance: Floats | None = None) -> Cells:
    """Count showings by pair and cell, as `cells_of` tells them."""
    cell, position = cells_of(showings, memory, relevance)
    keys, row = np.unique(
        showings.pair.astype(np.int64) * len(position) + cell, return_inverse=True
    )
    return Cells(
        pair=keys // len(position),
        cell=keys % len(position),
        shown=np.bincount(row, minlength=len(keys)).astype(float),
        clicked=sum_by(row, showings.weight > 0, len(keys)),
        weight=sum_by(row, showings.weight, len(keys)),
        position=position,
        n_pairs=showings.n_pairs,
    )


def cells_of(showings: Showings, memory: str, relevance: Floats | None = None) -> tuple[Ints, Ints]:
    """Return (n_showings,) the cell of each, and (n_cells,) their positions. relevance: (n_pairs,),
    which "found" needs.

    memory: what a cell is beside the position. "position": nothing. "last_click" (user browsing
    model, Dupret & Piwowarski 2008): how far above the last click was, none, 1, 2 to 3, more.
    "found" (in place of a dynamic Bayesian network, Chapelle & Zhang 2009): how likely the surest
    of those clicked above is relevant: none clicked, below 0.2, 0.5, 0.8, and above."""
    n_states = _STATES[memory]
    position = np.minimum(showings.position, _LAST_POSITION)
    clicked = showings.weight > 0
    state = np.zeros(len(position), np.int64)
    if memory == "last_click":
        last = _highest_above(showings, np.where(clicked, showings.position, -1.0))
        state = np.digitize(showings.position - last, [1.5, 3.5]) + 1
        state[last < 0] = 0
    elif memory == "found":
        assert relevance is not None
        surest = _highest_above(showings, np.where(clicked, relevance[showings.pair], -1.0))
        state = np.digitize(surest, [-0.5, 0.2, 0.5, 0.8])
    return position * n_states + state, np.repeat(np.arange(_LAST_POSITION + 1), n_states)


def _highest_above(showings: Showings, values: Floats) -> Floats:
    """Return the highest of the values, from -1 on, that stand above each in its session; else -1.

    A running maximum over all sessions, each of which begins higher than the one before can end."""
    start = showings.session * (values.max(initial=0.0) + 2)
    highest = np.maximum.accumulate(values + start)
    above = np.concatenate([[-1.0], highest[:-1]])
    result: Floats = np.maximum(above - start, -1.0)
    return result


# -- one model ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClickChances:
    """One of the models, fitted.

    clicks_1, clicks_0: (n_cells,) chance of a click on a relevant, on an irrelevant result;
    weights: (n_features,) of the regression."""

    clicks_1: Floats
    clicks_0: Floats
    weights: Floats

    def evidence(self, cells: Cells) -> Floats:
        """Return (n_pairs,) log-likelihood of the clicks if relevant less that if not.

        A click of weight w says as much as w clicks, see `clicks`."""
        clicks, skips = self._evidences()
        logs = cells.weight * clicks[cells.cell]
        logs += (cells.shown - cells.clicked) * skips[cells.cell]
        return sum_by(cells.pair, logs, cells.n_pairs)

    def evidence_of(
        self, showings: Showings, memory: str, relevance: Floats | None = None
    ) -> Floats:
        """Return the evidence of showings in the cells that `cells_of` tells; block by block, for
        they are many."""
        clicks, skips = self._evidences()
        total = np.zeros(showings.n_pairs)
        for block in showings.blocks():
            cell, _ = cells_of(block, memory, relevance)
            logs = np.where(block.weight > 0, block.weight * clicks[cell], skips[cell])
            total += sum_by(block.pair, logs, showings.n_pairs)
        return total

    def _evidences(self) -> tuple[Floats, Floats]:
        """Return (n_cells,) the evidence of a click, and of none."""
        clicks = np.log(self.clicks_1 / self.clicks_0)
        return clicks, np.log1p(-self.clicks_1) - np.log1p(-self.clicks_0)

    def log_likelihood(self, cells: Cells, features: Floats) -> Floats:
        """Return (n_pairs,) log-probability of clicks and skips, whatever the clicks weigh."""
        zero = self.clicks_0[cells.cell]
        logs = cells.clicked * np.log(zero) + (cells.shown - cells.clicked) * np.log1p(-zero)
        prior = features @ self.weights
        evidence = self.evidence(replace(cells, weight=cells.clicked))
        if_relevant = np.logaddexp(0, prior + evidence) - np.logaddexp(0, prior)
        total: Floats = sum_by(cells.pair, logs, cells.n_pairs) + if_relevant
        return total

    def relevance(self, cells: Cells, features: Floats) -> Floats:
        """Return (n_pairs,) the probability that each is relevant."""
        posterior: Floats = expit(features @ self.weights + self.evidence(cells))
        return posterior


def fit_chances(cells: Cells, features: Floats, trusts: bool, decay: float) -> ClickChances:
    """Fit by EM from the guess that people look at position k with 1 / k^decay.

    features: (n_pairs, n_features), a constant first."""
    place = cells.position + 1.0
    n_cells, n_states = len(place), len(place) // (int(cells.position.max(initial=0)) + 1)
    guess = place**-decay * np.where(np.arange(n_cells) % n_states == 0, 1.0, 0.8)
    theta, relevant, noise, trust = guess.copy(), 0.75, 0.1, 0.05 if trusts else 0.0
    cells, x, times = cells.alike(features)
    shown, clicked = cells.shown * times[cells.pair], cells.clicked * times[cells.pair]
    ridge = np.full(features.shape[1], _RIDGE)
    ridge[0] = 1e-3
    weights = np.zeros(features.shape[1])
    weights[0] = -2.0

    def chances() -> ClickChances:
        irrelevant = np.minimum(noise + trust / place, relevant / 1.2)
        one = np.clip(theta * relevant, 1e-5, 0.99)
        return ClickChances(one, np.clip(theta * irrelevant, 1e-6, 0.98), weights)

    fitted = chances()
    for _ in range(_ROUNDS):
        found = fitted.relevance(cells, x)
        share = found[cells.pair]
        shown_1, clicked_1 = (
            sum_by(cells.cell, counts * share, n_cells) for counts in (shown, clicked)
        )
        shown_0, clicked_0 = (
            sum_by(cells.cell, counts * (1 - share), n_cells) for counts in (shown, clicked)
        )
        for _ in range(8):
            # whether one without a click was looked at is hidden, too
            chance_0 = np.minimum(noise + trust / place, relevant / 1.2)
            unseen_1, unseen_0 = 1 - theta * relevant, 1 - theta * chance_0
            seen_1 = clicked_1 + (shown_1 - clicked_1) * theta * (1 - relevant) / unseen_1
            seen_0 = clicked_0 + (shown_0 - clicked_0) * theta * (1 - chance_0) / unseen_0
            relevant = (clicked_1.sum() + 6) / (seen_1.sum() + 8)
            plain = noise / (noise + trust / place)
            if trusts:
                trust = ((clicked_0 * (1 - plain)).sum() + 0.5) / ((seen_0 / place).sum() + 10)
            noise = ((clicked_0 * plain).sum() + 2) / (seen_0.sum() + 20)
            theta = (seen_1 + seen_0 + _STRENGTH * guess) / (shown_1 + shown_0 + _STRENGTH)
            top = theta[0]  # all look at the first
            relevant, noise, trust = min(relevant * top, 0.99), noise * top, trust * top
            theta = np.clip(theta / top, 0.01, 1.0)
            noise = min(noise, relevant / 1.5)
        for _ in range(3):  # Newton steps of a logistic regression on probabilities
            expected = expit(x @ weights)
            hessian = (x * (times * expected * (1 - expected))[:, None]).T @ x + np.diag(ridge)
            slope = x.T @ (times * (found - expected)) - ridge * weights
            weights = weights + np.linalg.solve(hessian, slope)
        before, fitted = fitted, chances()
        moved = [fitted.clicks_1 - before.clicks_1, fitted.clicks_0 - before.clicks_0]
        if np.abs(moved).max() < _TOLERANCE:
            break
    return fitted


def fit_likeliest(cells: Cells, features: Floats, trusts: bool) -> ClickChances:
    """Fit from three guesses of how fast looks fall, and return the likeliest: EM finds the best
    explanation nearby."""
    fits = [fit_chances(cells, features, trusts, decay) for decay in _DECAYS]
    return max(fits, key=lambda fit: float(fit.log_likelihood(cells, features).sum()))


# -- the choice among them ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that was chosen, and what it says of each pair.

    evidence, relevance, labels: (n_pairs,); labels: relevance to learn from, by a prior half-way to
    one that knows positions alone. A model that learnt to agree with the scores which it starts
    from would learn little. log_likelihoods: by kind, per click of queries that it was not fitted
    to."""

    kind: Kind
    chances: ClickChances
    evidence: Floats
    relevance: Floats
    labels: Floats
    log_likelihoods: Mapping[Kind, float]


def choose(
    showings: Showings, features: Floats, query: NDArray[np.integer], fitted: Flags
) -> Choice:
    """Fit all six to one half of the queries and see how likely the clicks of the other half are.

    The simplest one is chosen that is within one standard error of the likeliest (Breiman et al.
    1984), and fitted to both halves. query: (n_pairs,), ascending; fitted: (n_pairs,) whether a
    pair takes part in fitting; the choice says something of the others, too. Where they are many,
    some of the queries are enough to choose."""
    seen, x, asked = showings.of_pairs(fitted), features[fitted], query[fitted]
    counted = {memory: count_cells(seen, memory) for memory in ("position", "last_click")}
    cells = counted["last_click"]
    memories = list[tuple[ClickChances, str]]()
    for memory in ("last_click", "found", "found"):
        first = fit_chances(cells, x, True, 0.5)
        memories.append((first, memory))
        cells = count_cells(seen, "found", first.relevance(cells, x))
    counted["found"] = cells
    n_queries = int(query.max(initial=-1)) + 1
    chosen_by = some_queries(np.bincount(asked[seen.pair], minlength=n_queries), _MOST_TO_CHOOSE)
    halves = [chosen_by[asked] & (asked % 2 == side) for side in (0, 1)]
    found: dict[Kind, Floats] = {}
    for memory, trusts in KINDS:
        cells = counted[memory]
        found[memory, trusts] = np.zeros(n_queries)
        for side in (0, 1):
            fit = fit_chances(cells.only(halves[1 - side]), x, trusts, 1.0)
            logs = fit.log_likelihood(cells.only(halves[side]), x)
            found[memory, trusts] += np.bincount(asked, logs, n_queries)
    kind = _simplest_of_the_best(found)
    cells = counted[kind[0]]
    best = fit_likeliest(cells, x, kind[1])
    clicks = max(1.0, float(cells.only(chosen_by[asked]).clicked.sum()))
    relevance = None
    for first, memory in memories if kind[0] == "found" else ():
        evidence = first.evidence_of(showings, memory, relevance)
        relevance = expit(features @ first.weights + evidence)
    evidence = best.evidence_of(showings, kind[0], relevance)
    positions = features[:, :N_POSITIONAL]
    ridge = np.full(N_POSITIONAL, _RIDGE)
    by_scores = features @ best.weights
    by_position = positions @ most_likely(positions[fitted], evidence[fitted], ridge)
    return Choice(
        kind,
        best,
        evidence,
        expit(by_scores + evidence),
        expit((by_scores + by_position) / 2 + evidence),
        {kind: float(logs.sum()) / clicks for kind, logs in found.items()},
    )


def some_queries(n_showings: NDArray[Any], most: int) -> Flags:
    """Return (n_queries,) flags of random queries that have about so many showings together."""
    order = np.random.default_rng(0).permutation(len(n_showings))
    chosen = np.zeros(len(n_showings), np.bool_)
    chosen[order] = np.cumsum(n_showings[order]) - n_showings[order] < most
    return chosen


def _simplest_of_the_best(found: Mapping[Kind, Floats]) -> Kind:
    """Return the first kind that is within one standard error of the likeliest.

    found: (n_queries,) log-likelihoods by kind, from the simplest on."""
    best = max(found.values(), key=lambda logs: float(logs.sum()))
    for kind in KINDS:
        behind = best - found[kind]
        if behind.sum() <= behind.std() * np.sqrt(len(behind)):
            return kind
    raise AssertionError("the best is behind itself")
