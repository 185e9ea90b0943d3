"""Which trial is the best, where their scores are noisy."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from embedding_studio.engine.best import Best
from embedding_studio.search import Trial
from tests.iterations import Bench


def best_of(*numbered: tuple[int, Any]) -> int:
    """Return the number of the trial that is the best once all have ended, in this order."""
    attempt: Any = SimpleNamespace(method=SimpleNamespace(direction="maximize"))
    best = Best(attempt, "1")
    for number, scores in numbered:
        trial = Trial(number, number, {}, {})
        if best.is_beaten_by(trial, scores):
            best.trial, best.scores = trial, scores
    assert best.trial is not None
    return best.trial.number


def test_within_the_noise_the_set_that_was_proposed_first_stays() -> None:
    """Whichever ends first; beyond one standard error the better one is best, in either order."""
    first = np.random.default_rng(0).random(50)
    noise = np.random.default_rng(1).normal(size=50)
    luckier = first + noise - noise.mean() + 0.05
    clearly = first + 0.1 * (noise - noise.mean()) + 0.05
    assert best_of((0, first), (1, luckier)) == 0
    assert best_of((1, luckier), (0, first)) == 0
    assert best_of((0, first), (1, clearly)) == 1
    assert best_of((1, clearly), (0, first)) == 1
    assert best_of((0, 0.5), (1, 0.51)) == 1


def test_the_luckiest_of_equal_sets_is_not_the_best(bench: Bench) -> None:
    """Sets that differ by nothing but noise leave the first one the best, though others score
    higher."""
    task = bench.run_task("Noisy", trials=4)
    runs = bench.runs(task)
    values = [float(run.data.tags["es.value"]) for run in runs]
    assert max(values) > values[0]
    assert task.best_model is not None
    assert task.best_model.run_id == runs[0].info.run_id
