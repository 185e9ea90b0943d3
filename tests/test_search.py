"""The search: one study, seeded, rebuilt from its finished trials."""

import json

import optuna
import pytest

from embedding_studio.methods import Parameters
from embedding_studio.search import (
    FinishedTrial,
    Outcome,
    Search,
    SuggestedSet,
    best_first,
    draw_sets,
)


def suggest(trial: optuna.Trial) -> Parameters:
    return {
        "lr": trial.suggest_float("lr", 1e-4, 1.0, log=True),
        "layers": trial.suggest_int("layers", 0, 6),
        "debias": trial.suggest_categorical("debias", [True, False]),
    }


def value_of(params: Parameters) -> float:
    return float(params["layers"]) - float(params["lr"])


def run_trials(search: Search, count: int) -> list[FinishedTrial]:
    """Ask and tell, with one report per trial, as an iteration does."""
    finished = []
    for _ in range(count):
        proposal = search.ask(suggest)
        value = value_of(proposal.params)
        search.report(proposal.number, value / 2, 0)
        search.tell(proposal.number, Outcome.COMPLETE, value)
        run_id = str(proposal.number)
        finished.append(
            FinishedTrial(run_id, proposal.suggested, Outcome.COMPLETE, value, {0: value / 2})
        )
    return finished


def test_a_rebuilt_study_goes_on_like_an_uninterrupted_one() -> None:
    """After replaying n trials, the next sets are those that would have come without a crash."""
    uninterrupted = run_trials(Search("maximize", seed=7), 14)
    for crash_after in (1, 6, 11):
        rebuilt = Search("maximize", seed=7)
        rebuilt.replay(uninterrupted[:crash_after])
        rest = run_trials(rebuilt, 14 - crash_after)
        assert [t.suggested for t in rest] == [t.suggested for t in uninterrupted[crash_after:]]


def test_enqueued_sets_come_first_and_once() -> None:
    """The previous iteration's best sets are tried before any other, those already tried never."""
    previous = run_trials(Search("maximize", seed=1), 4)
    search = Search("maximize", seed=2)
    search.enqueue(trial.suggested for trial in previous[:2])
    tried = run_trials(search, 3)
    assert [t.suggested for t in tried[:2]] == [t.suggested for t in previous[:2]]
    rebuilt = Search("maximize", seed=2)
    rebuilt.replay(tried[:1])
    rebuilt.enqueue(trial.suggested for trial in previous[:2])
    assert [t.suggested for t in run_trials(rebuilt, 2)] == [t.suggested for t in tried[1:]]


def test_drawn_sets_depend_on_the_seed_alone() -> None:
    """The same seed draws the same sets, another seed others, and no search is needed."""
    drawn = draw_sets(suggest, 16, seed=3)
    assert len(drawn) == 16
    assert drawn == draw_sets(suggest, 16, seed=3)
    assert drawn != draw_sets(suggest, 16, seed=4)
    assert {set_["debias"] for set_ in drawn} == {True, False}


def test_values_keep_their_types() -> None:
    """A set read back from its JSON has floats, ints and booleans, not strings."""
    (trial,) = run_trials(Search("maximize", seed=0), 1)
    values = json.loads(trial.suggested.values)
    assert [type(values[name]) for name in ("lr", "layers", "debias")] == [float, int, bool]


def test_a_hopeless_trial_is_pruned_and_a_good_one_is_not() -> None:
    """Below the median of the finished trials at the same step, a trial is hopeless."""
    search = Search("maximize", seed=0)
    for number in range(6):
        proposal = search.ask(suggest)
        for step in range(3):
            search.report(proposal.number, 0.5 + number / 100, step)
        search.tell(proposal.number, Outcome.COMPLETE, 0.5)
    bad, good = search.ask(suggest), search.ask(suggest)
    assert not search.report(bad.number, 0.1, 0)  # the first step is never judged
    assert search.report(bad.number, 0.1, 1)
    assert not search.report(good.number, 0.9, 0)
    assert not search.report(good.number, 0.9, 1)
    search.tell(bad.number, Outcome.PRUNED)
    search.tell(good.number, Outcome.COMPLETE, 0.9)


@pytest.mark.parametrize(("direction", "best"), [("maximize", "2"), ("minimize", "0")])
def test_best_first_knows_the_direction(direction: str, best: str) -> None:
    """Complete trials come best first; failed and pruned ones not at all."""
    nothing = SuggestedSet("{}", "{}")
    trials = [FinishedTrial(str(i), nothing, Outcome.COMPLETE, float(i)) for i in range(3)]
    trials.append(FinishedTrial("failed", nothing, Outcome.FAILED))
    ordered = best_first(trials, direction)  # type: ignore[arg-type]
    assert len(ordered) == 3
    assert ordered[0].run_id == best
