"""The estimator that a verdict is made of: clicks on shown lists judge another ranking of them.

A click model says how likely the clicks of a shown (query, item) pair are if it is relevant and if
not; a regression, how likely it is relevant before any click, from what the initial model's scores
say. The difference of two rankings is what the regression expects of it, after it was told, by
likelihood, how relevance goes with the candidate's changes:

    logit P(r = 1) = b . x(initial scores, position) + c . h(changes)
    difference = mean over queries of sum over shown items of w P(r = 1),

w: discount at the candidate's rank less that at the initial one's, and h holds w, so that the fit
agrees with clicks where rankings differ. Its error is that of an M-estimator, by query (sandwich).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_softmax

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

TOP = 10
_TEMPERATURES = (0.05, 0.1)
_RIDGE = 1.0
_ROUNDS = 100
_STRENGTH = 20.0
_BROWSING = {"position": 1, "last_click": 4, "found": 5}


def people(clicked: Flags, rounds: int = 30) -> Flags:
    """Return which sessions a person made: all but those of four clicks or more that are twenty
    times likelier as clicks anywhere alike than by the click rates of positions.

    clicked: (n_sessions, n_shown). A mixture of the two, by EM."""
    n, width = clicked.sum(axis=1), clicked.shape[1]
    rates = np.clip(clicked.mean(axis=0), 1e-4, 0.95)
    anywhere, share = float(np.clip(2.5 * rates.mean(), 0.15, 0.5)), 0.05
    for _ in range(rounds):
        by_rates = clicked @ np.log(rates) + ~clicked @ np.log1p(-rates)
        alike = n * np.log(anywhere) + (width - n) * np.log1p(-anywhere)
        person = expit(by_rates - alike - np.log(share / (1 - share)))
        rates = np.clip((person @ clicked + 1) / (person.sum() + 20), 1e-4, 0.95)
        others = (1 - person).sum()
        anywhere = float(
            np.clip((((1 - person) * n).sum() + 2) / (others * width + 10), 0.05, 0.95)
        )
        share = float(np.clip((others + 1) / (len(n) + 50), 1e-3, 0.5))
    kept: Flags = (n < 4) | (person >= 0.05)
    return kept


@dataclass(frozen=True)
class Cells:
    """Showings counted by pair and cell, a position and what was clicked above in the session.

    pair, cell, shown, clicked: (n_rows,). position: (n_cells,) from 0, of each cell."""

    pair: Ints
    cell: Ints
    shown: Floats
    clicked: Floats
    position: Ints
    n_pairs: int

    def only(self, pairs: Flags) -> "Cells":
        rows = pairs[self.pair]
        return replace(
            self,
            pair=self.pair[rows],
            cell=self.cell[rows],
            shown=self.shown[rows],
            clicked=self.clicked[rows],
        )

    def known(self) -> Flags:
        return np.bincount(self.pair, minlength=self.n_pairs) > 0


def count_cells(query: Ints, clicked: Flags, browsing: str, relevance: Floats | None) -> Cells:
    """query: (n_sessions,) in [0, n_queries); clicked: (n_sessions, n_shown).

    browsing: what a cell is beside the position. "last_click" (user browsing model, Dupret &
    Piwowarski 2008): how far above the last click was, none, 1, 2 to 3, more. "found" (in place of
    a dynamic Bayesian network, Chapelle & Zhang 2009): how likely the likeliest relevant one of
    those clicked above is, by relevance, (n_queries, n_shown)."""
    width, n_states = clicked.shape[1], _BROWSING[browsing]
    position = np.arange(width)
    state = np.zeros(clicked.shape, np.int64)
    if browsing == "last_click":
        last = _before(np.where(clicked, position, -1), -1)
        gap = position - last
        state = np.where(last < 0, 0, np.where(gap == 1, 1, np.where(gap <= 3, 2, 3)))
    elif browsing == "found":
        assert relevance is not None
        found = _before(np.where(clicked, relevance[query], -1.0), -1.0)
        state = np.digitize(found, [-0.5, 0.2, 0.5, 0.8])
    n_cells = width * n_states
    pair = query[:, None] * width + position
    keys, row = np.unique((pair * n_cells + position * n_states + state), return_inverse=True)
    row = row.ravel()
    return Cells(
        pair=keys // n_cells,
        cell=keys % n_cells,
        shown=np.bincount(row).astype(float),
        clicked=np.bincount(row, clicked.ravel()).astype(float),
        position=np.repeat(position, n_states),
        n_pairs=(int(query.max()) + 1) * width,
    )


def _before(values: NDArray[Any], nothing: float) -> NDArray[Any]:
    """Return the highest value above each place."""
    highest = np.maximum.accumulate(values, axis=1)
    return np.concatenate([np.full((len(values), 1), nothing), highest[:, :-1]], axis=1)


@dataclass(frozen=True)
class Clicking:
    """clicks_1, clicks_0: (n_cells,) chance of a click on a relevant, on an irrelevant result;
    weights: (n_features,) of the prior; log_likelihood: of what it was fitted to."""

    clicks_1: Floats
    clicks_0: Floats
    weights: Floats
    log_likelihood: float = 0.0

    def evidence(self, cells: Cells) -> Floats:
        """Return (n_pairs,) log-likelihood of the clicks if relevant less that if not."""
        one, zero = self.clicks_1[cells.cell], self.clicks_0[cells.cell]
        logs = cells.clicked * np.log(one / zero)
        logs += (cells.shown - cells.clicked) * (np.log1p(-one) - np.log1p(-zero))
        return np.bincount(cells.pair, logs, cells.n_pairs).astype(float)

    def likelihood(self, cells: Cells, features: Floats) -> float:
        zero = self.clicks_0[cells.cell]
        logs = cells.clicked * np.log(zero) + (cells.shown - cells.clicked) * np.log1p(-zero)
        prior = features @ self.weights
        gained = np.logaddexp(0, prior + self.evidence(cells)) - np.logaddexp(0, prior)
        return float(logs.sum() + gained[cells.known()].sum())


def fit_clicking(cells: Cells, features: Floats, trusts: bool, decay: float) -> Clicking:
    """Fit by EM: examination by cell, one attraction of the relevant, and of the irrelevant
    noise + trust / position (trust bias; Agarwal et al. 2019, Vardasbi et al. 2020)."""
    place = cells.position + 1.0
    n_cells, n_states = len(place), len(place) // (int(cells.position.max()) + 1)
    guess = place**-decay * np.where(np.arange(n_cells) % n_states == 0, 1.0, 0.8)
    theta, relevant, noise, trust = guess.copy(), 0.75, 0.1, 0.05 if trusts else 0.0
    known = cells.known()
    x = features[known]
    ridge = np.full(features.shape[1], _RIDGE)
    ridge[0] = 1e-3
    weights = np.zeros(features.shape[1])
    weights[0] = -2.0
    prior = features @ weights

    def chances() -> tuple[Floats, Floats, Floats]:
        irrelevant = np.minimum(noise + trust / place, relevant / 1.2)
        one = np.clip(theta * relevant, 1e-5, 0.99)
        return irrelevant, one, np.clip(theta * irrelevant, 1e-6, 0.98)

    irrelevant, one, zero = chances()
    for _ in range(_ROUNDS):
        before = np.concatenate([one, zero])
        found = expit(prior + Clicking(one, zero, weights).evidence(cells))
        share = found[cells.pair]
        shown_1 = np.bincount(cells.cell, cells.shown * share, n_cells)
        shown_0 = np.bincount(cells.cell, cells.shown * (1 - share), n_cells)
        clicked_1 = np.bincount(cells.cell, cells.clicked * share, n_cells)
        clicked_0 = np.bincount(cells.cell, cells.clicked * (1 - share), n_cells)
        for _ in range(8):
            seen_1 = clicked_1 + (shown_1 - clicked_1) * theta * (1 - relevant) / (
                1 - theta * relevant
            )
            seen_0 = clicked_0 + (shown_0 - clicked_0) * theta * (1 - irrelevant) / (
                1 - theta * irrelevant
            )
            relevant = (clicked_1.sum() + 6) / (seen_1.sum() + 8)
            plain = noise / (noise + trust / place)
            if trusts:
                trust = ((clicked_0 * (1 - plain)).sum() + 0.5) / ((seen_0 / place).sum() + 10)
            noise = ((clicked_0 * plain).sum() + 2) / (seen_0.sum() + 20)
            theta = (seen_1 + seen_0 + _STRENGTH * guess) / (shown_1 + shown_0 + _STRENGTH)
            top = theta[0]
            relevant, noise, trust = min(relevant * top, 0.99), noise * top, trust * top
            theta = np.clip(theta / top, 0.01, 1.0)
            noise = min(noise, relevant / 1.5)
            irrelevant, one, zero = chances()
        for _ in range(3):  # Newton steps of a logistic regression on probabilities
            expected = expit(x @ weights)
            hessian = (x * (expected * (1 - expected))[:, None]).T @ x + np.diag(ridge)
            weights = weights + np.linalg.solve(
                hessian, x.T @ (found[known] - expected) - ridge * weights
            )
        prior = features @ weights
        if np.abs(np.concatenate([one, zero]) - before).max() < 2e-4:
            break
    fitted = Clicking(one, zero, weights)
    return replace(fitted, log_likelihood=fitted.likelihood(cells, features))


@dataclass(frozen=True)
class Judge:
    """What is known of the shown items of each query: log-odds by clicks, and the features of the
    prior. evidence: (n_queries, n_shown); features: (n_queries, n_shown, n_features);
    scale: the ideal DCG of a query that was shown something relevant; kind: the model chosen."""

    evidence: Floats
    features: Floats
    scale: float
    kind: str
    likelihoods: dict[str, float]

    def difference(self, changes: Floats) -> tuple[float, float, Floats]:
        """Return the difference of two rankings, its standard error, and (n_queries,) values whose
        mean and standard error these are. changes: (n_queries, n_shown, n_changes), w first."""
        n_queries = len(changes)
        gain = changes[..., 0]
        spread = changes.std(axis=(0, 1))
        used = changes[..., spread > 0] / spread[spread > 0]
        x = np.concatenate([self.features, used], axis=2).reshape(gain.size, -1)
        ridge = np.full(x.shape[1], 1e-6)
        ridge[: self.features.shape[2]] = _RIDGE
        weights = _most_likely(x, self.evidence.ravel(), ridge)
        prior = expit(x @ weights)
        posterior = expit(x @ weights + self.evidence.ravel())
        score = (x * (posterior - prior)[:, None]).reshape(*gain.shape, -1).sum(axis=1)
        information = prior * (1 - prior) - posterior * (1 - posterior)
        hessian = ((x * information[:, None]).T @ x + np.diag(ridge)) / n_queries
        slope = (x * (gain.ravel() * prior * (1 - prior))[:, None]).sum(axis=0) / n_queries
        expected = (gain * prior.reshape(gain.shape)).sum(axis=1)
        values = (expected + score @ np.linalg.solve(hessian, slope)) / self.scale
        values += expected.mean() / self.scale - values.mean()
        return float(values.mean()), float(values.std(ddof=1) / np.sqrt(n_queries)), values


def judge(query: Ints, clicked: Flags, initial: Floats) -> Judge:
    """Choose and fit the click model, by the likelihood of one half of the queries under what was
    fitted to the other. initial: (n_queries, n_shown) the initial model's scores."""
    features = initial_features(initial)
    flat = features.reshape(-1, features.shape[2])
    fold = np.repeat(np.arange(len(initial)) % 2, initial.shape[1])
    counted = {
        browsing: count_cells(query, clicked, browsing, None)
        for browsing in ("position", "last_click")
    }
    cells = counted["last_click"]
    for _ in range(3):
        fitted = fit_clicking(cells, flat, True, 1.0)
        relevance = expit(flat @ fitted.weights + fitted.evidence(cells)).reshape(initial.shape)
        cells = count_cells(query, clicked, "found", relevance)
    counted["found"] = cells
    found: dict[tuple[str, bool], float] = {}
    for browsing, cells in counted.items():
        for trusts in (False, True):
            found[browsing, trusts] = sum(
                fit_clicking(cells.only(fold != side), flat, trusts, 1.0).likelihood(
                    cells.only(fold == side), flat
                )
                for side in (0, 1)
            )
    browsing, trusts = max(found, key=lambda key: found[key])
    cells = counted[browsing]
    fits = [fit_clicking(cells, flat, trusts, decay) for decay in (0.5, 1.0)]
    best = max(fits, key=lambda fit: fit.log_likelihood)
    evidence = best.evidence(cells)
    posterior = expit(flat @ best.weights + evidence).reshape(initial.shape)
    names = {f"{kind}{'+trust' if t else ''}": value for (kind, t), value in found.items()}
    return Judge(
        evidence.reshape(initial.shape),
        features,
        ideal_of_those_with_any(posterior),
        max(names, key=lambda name: names[name]),
        names,
    )


def initial_features(scores: Floats) -> Floats:
    """Return (n_queries, n_shown, 9): position, smoothly, and what the initial scores say."""
    position = np.arange(scores.shape[1])
    best, second = (np.sort(scores, axis=1)[:, [place]] for place in (-1, -2))
    of_scores = [
        *(log_softmax(scores / t, axis=1) for t in _TEMPERATURES),
        scores - np.where(scores == best, second, best),
        np.broadcast_to(scores.mean(axis=1, keepdims=True), scores.shape),
        scores,
    ]
    of_position = [np.ones(len(position)), np.log1p(position) - 1.5, position == 0, position == 1]
    columns = [np.broadcast_to(column, scores.shape).astype(float) for column in of_position]
    columns += [(column - column.mean()) / (column.std() + 1e-9) for column in of_scores]
    return np.stack(columns, axis=2)


def changes_of(
    initial: tuple[Floats, Floats], candidate: tuple[Floats, Floats], is_other: Flags
) -> Floats:
    """Return (n_queries, n_shown, 3): the change of discount and of the log-softmax of scores.

    initial, candidate: scores of the shown, (n_queries, n_shown), and of the distractors,
    (n_queries, n_distractors); is_other: which distractors were not shown."""
    before, after = (
        discounts(shown, np.where(is_other, others, -np.inf))
        for shown, others in (initial, candidate)
    )
    softer = [
        log_softmax(candidate[0] / t, axis=1) - log_softmax(initial[0] / t, axis=1)
        for t in _TEMPERATURES
    ]
    return np.stack([after - before, *softer], axis=2)


def discounts(shown: Floats, others: Floats) -> Floats:
    """Return what each shown item's rank among all counts in a DCG; ties count against it."""
    shown, others = np.round(shown, 6), np.round(others, 6)
    place = np.arange(shown.shape[1])
    above = shown[:, None, :] > shown[:, :, None]
    above |= (shown[:, None, :] == shown[:, :, None]) & (place < place[:, None])
    rank = above.sum(axis=2) + (others[:, None, :] >= shown[:, :, None]).sum(axis=2)
    return np.where(rank < TOP, 1 / np.log2(rank + 2.0), 0.0)


def ideal_of_those_with_any(relevance: Floats) -> float:
    """Return the expected ideal DCG of a query given that something it was shown is relevant.

    relevance: (n_queries, n_shown) independent probabilities; how many are relevant is
    Poisson-binomial."""
    n_queries, width = relevance.shape
    count = np.zeros((n_queries, width + 1))
    count[:, 0] = 1
    for column in relevance.T[..., None]:
        count[:, 1:] = count[:, 1:] * (1 - column) + count[:, :-1] * column
        count[:, :1] *= 1 - column
    best = np.cumsum(np.where(np.arange(width) < TOP, 1 / np.log2(np.arange(width) + 2.0), 0))
    ideal = count[:, 1:] @ best
    return float(ideal.mean() / (1 - count[:, 0].mean()))


def _most_likely(x: Floats, evidence: Floats, ridge: Floats) -> Floats:
    """Maximise sum log(1 - p + p exp(evidence)), logit p = x . weights, by damped Newton steps."""
    weights = np.zeros(x.shape[1])

    def value(weights: Floats) -> float:
        prior = x @ weights
        gained = np.logaddexp(0, prior + evidence) - np.logaddexp(0, prior)
        return float(gained.sum() - (ridge * weights**2).sum() / 2)

    now = value(weights)
    for _ in range(100):
        prior, posterior = expit(x @ weights), expit(x @ weights + evidence)
        complete = prior * (1 - prior)
        curvature = (x * (complete - posterior * (1 - posterior))[:, None]).T @ x + np.diag(ridge)
        try:
            np.linalg.cholesky(curvature)
        except np.linalg.LinAlgError:  # not yet near: the steps of EM go up for sure
            curvature = (x * complete[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(curvature, x.T @ (posterior - prior) - ridge * weights)
        size, then = 1.0, value(weights + step)
        while then < now and size > 1e-4:
            size /= 2
            then = value(weights + size * step)
        weights = weights + size * step
        if abs(then - now) < 1e-8 * max(1.0, abs(now)):
            break
        now = then
    return weights
