"""The study of the judge: what becomes of a pool of models."""

from pathlib import Path

import numpy as np

from benchmarks.clicking import WAYS
from benchmarks.verdict import count_refused, report, save, verdicts

QUERIES, SHOWN, OTHERS = 240, 20, 30


def fill(folder: Path) -> None:
    """Write a pool of a start, a truly better model, a harmful one, and a refused batch."""
    random = np.random.default_rng(0)
    relevant = random.random((QUERIES, SHOWN)) < 0.15
    scores = 0.4 + 0.1 * relevant + 0.1 * random.normal(size=relevant.shape)
    order = np.argsort(-scores, axis=1)
    scores = np.take_along_axis(scores, order, axis=1)
    relevant = np.take_along_axis(relevant, order, axis=1)
    others = random.normal(size=(QUERIES, OTHERS)) / 10
    save(
        folder / "toys-start.npz",
        shown=scores,
        others=others,
        relevant=relevant,
        items=np.arange(SHOWN)[None].repeat(QUERIES, axis=0),
        distractors=np.arange(100, 100 + OTHERS),
        fold=np.arange(QUERIES) % 3,
        truth=np.full(10, 0.4),
    )
    for name, change, gain in (("position-1", 0.1, 0.1), ("noise-1", -0.1, -0.1)):
        shown = scores + change * relevant
        save(folder / f"toys-{name}.npz", shown=shown, others=others, truth=np.full(10, 0.4 + gain))
    save(folder / "toys-shuffled-1.npz", is_refused=np.array(True))


def test_a_pool_is_judged_and_reported(tmp_path: Path) -> None:
    """The better model is promoted by all people, the harmful one by none; what was refused is
    counted."""
    fill(tmp_path)
    ways = ["position", "half"]
    figures = report([*verdicts(tmp_path, "toys", ways, [2000], range(1))])
    assert figures["power_2000"] == 1
    assert figures["false_promotions"] == 0
    assert figures["judged_better"] == figures["judged_no_better"] == len(ways)
    assert count_refused(tmp_path, ["toys"]) == 1


def test_people_click_as_they_are_said_to() -> None:
    """Nobody clicks more below than on top, and a cascade ends at what was found."""
    random = np.random.default_rng(0)
    relevant = np.ones((4000, SHOWN), np.bool_)
    for name in ("position", "half", "trust", "cascade", "bots"):
        clicked = WAYS[name](relevant, random)
        assert clicked[:, 0].mean() > clicked[:, -1].mean()
    assert WAYS["cascade"](relevant, random).sum(axis=1).mean() < 1.3
