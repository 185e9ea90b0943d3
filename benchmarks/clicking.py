"""Ways of clicking on a list of results, for searchers who know what is relevant."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Clicking = Callable[[Flags, np.random.Generator], Flags]
"""From (n_sessions, n_shown), what is relevant, to the same shape, what is clicked."""


def attraction(relevant: Flags, random: np.random.Generator) -> Floats:
    """Return how likely each result is clicked once seen: 0.95, or 0.05 to 0.1."""
    return np.where(relevant, 0.95, random.uniform(0.05, 0.1, relevant.shape))


def by_position(eta: float) -> Clicking:
    """Look at position k with chance 1 / k^eta."""

    def clicks(relevant: Flags, random: np.random.Generator) -> Flags:
        seen = np.arange(1, relevant.shape[1] + 1) ** -eta
        return random.random(relevant.shape) < attraction(relevant, random) * seen

    return clicks


def cascade(relevant: Flags, random: np.random.Generator) -> Flags:
    """Look from the top down: 9 of 10 stop after a click on a relevant result, 1 of 10 after any
    other."""
    wanted = random.random(relevant.shape) < attraction(relevant, random)
    stops = random.random(relevant.shape) < np.where(wanted & relevant, 0.9, 0.1)
    stopped = np.cumsum(stops, axis=1) > stops
    clicked: Flags = wanted & ~stopped
    return clicked


def trust(relevant: Flags, random: np.random.Generator) -> Flags:
    """Look at position k with chance 1/k; an irrelevant one there is clicked with 0.65 / k, at
    least 0.065 (Agarwal et al. 2019)."""
    position = np.arange(1, relevant.shape[1] + 1)
    believed = np.where(relevant, 0.98, 0.65 / np.minimum(position, 10))
    clicked: Flags = random.random(relevant.shape) < believed / position
    return clicked


def bots(relevant: Flags, random: np.random.Generator) -> Flags:
    """By position, but a tenth of the sessions click on 3 of 10 results wherever they are."""
    is_bot = random.random((len(relevant), 1)) < 0.1
    at_random = random.random(relevant.shape) < 0.3
    clicked: Flags = np.where(is_bot, at_random, by_position(1.0)(relevant, random))
    return clicked


def shuffled(relevant: Flags, random: np.random.Generator) -> Flags:
    """By position, but each session gets the clicks of another one."""
    clicked = by_position(1.0)(relevant, random)
    return clicked[random.permutation(len(clicked))]


WAYS: dict[str, Clicking] = {
    "half": by_position(0.5),
    "position": by_position(1.0),
    "cascade": cascade,
    "trust": trust,
    "bots": bots,
    "shuffled": shuffled,
    "random": by_position(1.0),  # see `benchmarks.verdict.simulate`
}
