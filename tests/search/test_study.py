"""The search: one study, seeded, rebuilt from its finished trials."""

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import Enum
from statistics import fmean
from typing import Any

import numpy as np
import optuna
import pytest

from embedding_studio.errors import InvalidInput, MethodError
from embedding_studio.methods import Parameters
from embedding_studio.search import (
    Outcome,
    Search,
    Trial,
    best_first,
    check_names,
    draw_again,
    draw_sets,
    narrow,
)
from embedding_studio.tasks import Pruner, Sampler


def suggest(trial: optuna.Trial) -> Parameters:
    return {
        "lr": trial.suggest_float("lr", 1e-4, 1.0, log=True),
        "layers": trial.suggest_int("layers", 0, 6),
        "debias": trial.suggest_categorical("debias", [True, False]),
    }


def value_of(params: Mapping[str, Any]) -> float:
    return float(params["layers"]) - float(params["lr"])


def propose(
    search: Search, suggest: Callable[[optuna.Trial], Parameters]
) -> tuple[Trial, Parameters]:
    proposed = search.ask(suggest)
    assert proposed is not None
    return proposed


def ask(search: Search, suggest: Callable[[optuna.Trial], Parameters] = suggest) -> Trial:
    return propose(search, suggest)[0]


def plan(trial: Trial) -> tuple[object, ...]:
    """What a trial is before it runs."""
    return trial.number, trial.study_number, trial.params, trial.distributions


@dataclass
class Running:
    """A trial whose reports come one by one, as those of parallel trials do."""

    search: Search
    trial: Trial
    steps: int

    def go_on(self, at: int) -> Trial | None:
        """Report once; the trial as the ledger keeps it, if that was its last report."""
        trial, step = self.trial, len(self.trial.reports)
        slope = 0.1 if trial.params["debias"] else -0.1
        value = value_of(trial.params) + slope * step
        is_pruned = self.search.report(trial, value, step)
        if not is_pruned and step + 1 < self.steps:
            return None
        outcome = Outcome.PRUNED if is_pruned else Outcome.COMPLETE
        self.search.tell(trial, outcome, None if is_pruned else value)
        trial.run_id, trial.ended = f"run {trial.number} {at}", at
        return trial


def run_trials(
    search: Search, count: int, slots: int = 1, steps: int = 1, crash_at: int | None = None
) -> tuple[list[Trial], list[Trial]]:
    """Ask and tell as an iteration does, `slots` trials at a time, which report in turn.

    Returns those that finished, in order of their ends, and those at work at tick `crash_at`.
    """
    finished: list[Trial] = []
    running: list[Running] = []
    tick = 0
    while len(finished) < count:
        while len(running) < slots and len(finished) + len(running) < count:
            running.append(Running(search, ask(search), steps))
        tick += 1
        if tick == crash_at:
            break
        if ended := running[0].go_on(tick):
            finished.append(ended)
            running.pop(0)
        else:
            running.append(running.pop(0))
    at_work = [one.trial for one in running]
    return finished, sorted(at_work, key=lambda trial: trial.number)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [
        ("tpe", "median"),
        ("tpe", "none"),
        ("tpe", "asha"),
        ("tpe", "hyperband"),
        ("random", "patient"),
        ("gp", "asha"),
    ],
)
def test_a_rebuilt_study_goes_on_like_an_uninterrupted_one(
    sampler: str, pruner: str, slots: int
) -> None:
    """After a crash, the trials that were at work come first, under their numbers, and then what
    would have come without it; one trial at a time, so do all values and prunings."""
    count, steps = 12, 6

    def search() -> Search:
        return Search("maximize", 7, Sampler(sampler), Pruner(pruner))

    uninterrupted, _ = run_trials(search(), count, slots, steps)
    if pruner != "none":
        outcomes = {trial.outcome for trial in uninterrupted}
        assert outcomes == {Outcome.COMPLETE, Outcome.PRUNED}
    for crash_at in (2, 11, 25):
        live, rebuilt = search(), search()
        before, interrupted = run_trials(live, count, slots, steps, crash_at)
        rebuilt.replay(suggest, [*before, *interrupted])
        assert [plan(ask(rebuilt)) for _ in interrupted] == [plan(trial) for trial in interrupted]
        next_sets = [plan(ask(live)) for _ in range(3)]
        assert [plan(ask(rebuilt)) for _ in range(3)] == next_sets
        if slots == 1:
            again = search()
            again.replay(suggest, [*before, *interrupted])
            rest, _ = run_trials(again, count - len(before), slots, steps)
            assert [told(t) for t in before + rest] == [told(t) for t in uninterrupted]


def told(trial: Trial) -> tuple[object, ...]:
    return plan(trial), trial.outcome, trial.value, trial.reports


def test_enqueued_sets_come_first_and_once() -> None:
    """The previous iteration's best sets are tried before any other, those already tried never."""
    previous, _ = run_trials(Search("maximize", seed=1), 4)
    search = Search("maximize", seed=2)
    search.enqueue(suggest, previous[:2])
    tried, _ = run_trials(search, 3)
    assert [t.params for t in tried[:2]] == [t.params for t in previous[:2]]
    rebuilt = Search("maximize", seed=2)
    rebuilt.replay(suggest, tried[:1])
    rebuilt.enqueue(suggest, previous[:2])
    assert [t.params for t in run_trials(rebuilt, 2)[0]] == [t.params for t in tried[1:]]


def test_the_recommended_set_comes_first_and_once() -> None:
    """It is tried before any other unless it was tried; one that cannot be drawn is left out."""
    recommended: Parameters = {"lr": 0.01, "layers": 3, "debias": True}
    search = Search("maximize", seed=2)
    assert search.recommend(suggest, recommended) == []
    tried, _ = run_trials(search, 2)
    assert tried[0].params == recommended
    rebuilt = Search("maximize", seed=2)
    rebuilt.replay(suggest, tried[:1])
    assert rebuilt.recommend(suggest, recommended) == []
    assert ask(rebuilt).params == tried[1].params

    (note,) = Search("maximize", seed=2).recommend(suggest, {**recommended, "layers": 7})
    assert note == "the recommended set is left out, `suggest` cannot draw it: 'layers' is 6, was 7"


def test_drawn_sets_depend_on_the_seed_alone() -> None:
    """The same seed draws the same sets, another seed others, and no search is needed."""
    drawn = draw_sets(suggest, 16, seed=3)
    assert len(drawn) == 16
    assert drawn == draw_sets(suggest, 16, seed=3)
    assert drawn != draw_sets(suggest, 16, seed=4)
    assert {set_["debias"] for set_ in drawn} == {True, False}


def test_values_keep_their_types() -> None:
    """A set read back from its JSON has floats, ints and booleans, not strings."""
    ((trial,), _) = run_trials(Search("maximize", seed=0), 1)
    values = json.loads(json.dumps(trial.params))
    assert [type(values[name]) for name in ("lr", "layers", "debias")] == [float, int, bool]


def test_a_hopeless_trial_is_pruned_and_a_good_one_is_not() -> None:
    """Below the median of the finished trials at the same step, a trial is hopeless."""
    search = Search("maximize", seed=0)
    for number in range(6):
        trial = ask(search)
        for step in range(3):
            search.report(trial, 0.5 + number / 100, step)
        search.tell(trial, Outcome.COMPLETE, 0.5)
    bad, good = ask(search), ask(search)
    assert not search.report(bad, 0.1, 0)  # the first step is never judged
    assert search.report(bad, 0.1, 1)
    assert not search.report(good, 0.9, 0)
    assert not search.report(good, 0.9, 1)
    search.tell(bad, Outcome.PRUNED)
    search.tell(good, Outcome.COMPLETE, 0.9)


@pytest.mark.parametrize(("direction", "best"), [("maximize", "2"), ("minimize", "0")])
def test_best_first_knows_the_direction(direction: str, best: str) -> None:
    """Complete trials come best first; failed and pruned ones not at all."""
    trials = [Trial(i, i, {}, {}, str(i), Outcome.COMPLETE, float(i)) for i in range(3)]
    trials.append(Trial(3, 3, {}, {}, "failed", Outcome.FAILED))
    ordered = best_first(trials, direction)  # type: ignore[arg-type]
    assert len(ordered) == 3
    assert ordered[0].run_id == best


def suggest_few(trial: optuna.Trial) -> Parameters:
    """Six sets: one of them has a parameter that the others lack."""
    layers = trial.suggest_int("layers", 0, 2)
    params: Parameters = {"layers": layers, "debias": trial.suggest_categorical("debias", [0, 1])}
    return {**params, "rank": trial.suggest_int("rank", 4, 4)} if layers == 2 else params


@pytest.mark.parametrize("sampler", list(Sampler))
@pytest.mark.parametrize("slots", [1, 4])
def test_each_set_of_a_finite_space_is_tried_once(sampler: Sampler, slots: int) -> None:
    """No set comes twice, be it still at work, and the search ends when there is no other."""
    search = Search("maximize", 3, sampler)
    tried, running = [], []
    while proposed := search.ask(suggest_few):
        trial, params = proposed
        tried.append(params)
        running.append(trial)
        assert trial.number == len(tried) - 1  # without gaps, whatever was drawn twice
        if len(running) == slots:
            search.tell(running.pop(0), Outcome.COMPLETE, float(len(tried)))
    assert len(tried) == 6
    assert len({json.dumps(params) for params in tried}) == 6


def test_a_rebuilt_search_of_a_finite_space_repeats_nothing() -> None:
    """Sets drawn twice leave gaps in the study, which a rebuilt one fills with nothing new."""

    def finish(search: Search, count: int) -> list[Trial]:
        found = []
        for at in range(count):
            trial = ask(search, suggest_few)
            search.tell(trial, Outcome.COMPLETE, 0.5)
            found.append(replace(trial, ended=at))
        return found

    whole = finish(Search("maximize", 5), 6)
    assert whole[-1].study_number > 5
    for crash_after in range(1, 6):
        rebuilt = Search("maximize", 5)
        rebuilt.replay(suggest_few, whole[:crash_after])
        rest = finish(rebuilt, 6 - crash_after)
        assert [plan(trial) for trial in rest] == [plan(trial) for trial in whole[crash_after:]]


def test_trials_that_count_no_more_free_their_numbers() -> None:
    """After failures were forgiven, their numbers are used again, and no other."""
    finished, _ = run_trials(Search("maximize", seed=7), 4)
    rebuilt = Search("maximize", seed=7)
    rebuilt.replay(suggest, [finished[0], finished[3]])
    rest, _ = run_trials(rebuilt, 3)
    assert [trial.number for trial in rest] == [1, 2, 4]


def test_a_search_learns_from_an_older_one() -> None:
    """With ten older trials the sampler proposes at once near the best of them, and the numbers
    begin at 0 all the same."""
    older, _ = run_trials(Search("maximize", seed=1), 30)
    informed = Search("maximize", seed=2)
    informed.learn(suggest, older, shift=0.0)
    first, _ = run_trials(informed, 5)
    assert [trial.number for trial in first] == [0, 1, 2, 3, 4]
    alone, _ = run_trials(Search("maximize", seed=2), 5)
    assert fmean(t.value or 0 for t in first) > fmean(t.value or 0 for t in alone) + 1


def test_a_float_without_step_cannot_be_enumerated() -> None:
    """The grid of a space that has no end is refused."""
    with pytest.raises(MethodError, match=r"no grid.*step"):
        Search("maximize", 0, Sampler.GRID).ask(suggest)


def first_space(trial: optuna.Trial) -> Parameters:
    return {
        "batch": trial.suggest_int("batch", 200, 512),
        "loss": trial.suggest_categorical("loss", ["a", "b"]),
        "rate": trial.suggest_float("rate", 0.1, 0.9, step=0.1),
    }


def best_of_first(count: int = 2) -> list[Trial]:
    former = Search("maximize", seed=0)
    return [ask(former, first_space) for _ in range(count)]


def test_a_number_outside_a_narrowed_range_becomes_the_nearest_inside() -> None:
    """What was tried above, below or between the steps of the present range is tried at its edge
    or its nearest step, once, and told."""

    def narrowed(trial: optuna.Trial) -> Parameters:
        return {
            "batch": trial.suggest_int("batch", 8, 64, step=8),
            "loss": trial.suggest_categorical("loss", ["b", "a"]),
            "rate": trial.suggest_float("rate", 0.95, 1.0),
        }

    search = Search("maximize", seed=1)
    notes = search.enqueue(narrowed, best_of_first())
    first = ask(search, narrowed)
    assert first.params["batch"] == 64
    assert first.params["rate"] == 0.95
    assert all(8 <= ask(search, narrowed).params["batch"] <= 64 for _ in range(4))
    assert "'batch' is 64, was" in notes[0]


def test_a_set_with_a_choice_that_went_is_left_out() -> None:
    """It would be another set. So it is where a number has become a choice."""

    def without(trial: optuna.Trial) -> Parameters:
        return {
            "batch": trial.suggest_int("batch", 200, 512),
            "loss": trial.suggest_categorical("loss", ["c"]),
        }

    def chosen(trial: optuna.Trial) -> Parameters:
        return {
            "batch": trial.suggest_categorical("batch", ["s", "l"]),
            "loss": trial.suggest_categorical("loss", ["a", "b"]),
        }

    for space in (without, chosen):
        search, alone = Search("maximize", seed=1), Search("maximize", seed=1)
        notes = search.enqueue(space, best_of_first())
        assert ask(search, space) == ask(alone, space)
        assert len(notes) == 2
        assert all("left out" in note for note in notes)


def test_new_and_gone_parameters_are_told() -> None:
    """A set is tried with a value drawn for what is new, and without what is gone."""

    def renamed(trial: optuna.Trial) -> Parameters:
        return {
            "batch": trial.suggest_int("batch", 200, 512),
            "dropout": trial.suggest_float("dropout", 0.0, 0.5),
        }

    (former,) = best_of_first(1)
    search = Search("maximize", seed=1)
    (note,) = search.enqueue(renamed, [former])
    assert ask(search, renamed).params["batch"] == former.params["batch"]
    for told in ("'loss' is gone", "'rate' is gone", "'dropout' is new"):
        assert told in note


class Mode(Enum):
    A = 1
    B = 2


def anything(trial: Any) -> Parameters:
    return {
        "dims": trial.suggest_categorical("dims", [(256, 64), (128,)]),
        "k": trial.suggest_categorical("k", np.arange(3)),
        "flag": trial.suggest_categorical("flag", [np.True_, np.False_]),
        "mode": trial.suggest_categorical("mode", list(Mode)),
        "nested": trial.suggest_categorical("nested", [{"a": [1]}, {(1, 2): int}]),
        "call": trial.suggest_categorical("call", [lambda x: x, lambda x: -x]),
        "none": trial.suggest_categorical("none", [None, float("nan"), 1, True]),
        "array": trial.suggest_categorical("array", [np.zeros(2), np.ones(3)]),
        "low": trial.suggest_int("low", np.int64(1), np.int64(9)),
    }


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "grid"])
def test_choices_may_be_anything(sampler: str) -> None:
    """Tuples, NumPy's scalars and arrays, classes, functions: the method gets its own objects, the
    ledger what JSON can hold; a rebuilt study and the next iteration know them again."""
    search = Search("maximize", 3, Sampler(sampler))
    finished = []
    for number in range(8):
        trial, params = propose(search, anything)
        assert type(params["dims"]) is tuple
        assert type(params["k"]) is np.int64
        assert isinstance(params["mode"], Mode)
        assert callable(params["call"])
        assert trial.number == number
        search.tell(trial, Outcome.COMPLETE, float(params["k"]))
        finished.append(trial)
    rebuilt = Search("maximize", 3, Sampler(sampler))
    assert rebuilt.replay(anything, finished[:5]) == []
    assert plan(ask(rebuilt, anything)) == plan(finished[5])
    later = Search("maximize", 4, Sampler(sampler))
    assert later.enqueue(anything, [finished[2]]) == []
    assert ask(later, anything).params == finished[2].params


def test_sets_of_an_older_ledger_with_tuples_are_known_again() -> None:
    """Version 0.1 kept a tuple as a list."""

    def tuples(trial: Any) -> Parameters:
        return {"dims": trial.suggest_categorical("dims", [(256, 64), (128,)])}

    search = Search("maximize", seed=1)
    search.enqueue(tuples, [Trial(0, 0, {"dims": [128]}, {})])
    assert propose(search, tuples)[1] == {"dims": (128,)}


def test_parameters_may_be_read_from_the_trial() -> None:
    """`trial.params` holds the method's own choices, too."""

    def suggest(trial: Any) -> Parameters:
        trial.suggest_categorical("dims", [(256, 64)])
        return dict(trial.params)

    assert propose(Search("maximize", seed=0), suggest)[1] == {"dims": (256, 64)}


@pytest.mark.parametrize("drawn", [None, [1], {1: 2}])
def test_what_is_no_set_is_refused(drawn: object) -> None:
    """A `suggest` without a return, say."""
    with pytest.raises(MethodError, match=r"`suggest` gave .*dictionary"):
        Search("maximize", seed=0).ask(lambda trial: drawn)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "grid"])
def test_a_space_may_change_between_a_crash_and_the_next_attempt(sampler: str) -> None:
    """The search goes on in the new space, under the numbers that are left, and learns nothing from
    sets of the former one, nor from those of the previous iteration."""

    def changed(trial: optuna.Trial) -> Parameters:
        return {
            "batch": trial.suggest_int("batch", 8, 64),
            "loss": trial.suggest_categorical("loss", ["c", "b"]),
        }

    former = Search("maximize", 0)
    older = [ask(former, first_space) for _ in range(5)]
    for number, trial in enumerate(older[:3]):
        former.tell(trial, Outcome.COMPLETE, float(number))
    search = Search("maximize", 0, Sampler(sampler))
    notes = [*search.learn(changed, older[:3], 0.0), *search.replay(changed, older)]
    trials = [ask(search, changed) for _ in range(4)]
    assert sorted(trial.number for trial in trials) == [3, 4, 5, 6]
    for trial in trials:
        assert 8 <= trial.params["batch"] <= 64
        search.tell(trial, Outcome.COMPLETE, 1.0)
    told = " ".join(notes)
    assert "from 3 of 3 trials of the previous iteration" in told
    assert "from 3 of 3 trials that are finished" in told


def test_a_suggest_that_hangs_holds_up_no_report() -> None:
    """Trials at work are answered meanwhile, so that they can be ended."""
    search = Search("maximize", seed=0)
    first = ask(search, lambda trial: {"x": trial.suggest_float("x", 0, 1)})
    is_at_it, may_go_on = threading.Event(), threading.Event()

    def hang(trial: optuna.Trial) -> Parameters:
        is_at_it.set()
        assert may_go_on.wait(60)
        return {"x": trial.suggest_float("x", 0, 1)}

    with ThreadPoolExecutor(2) as threads:
        asked = threads.submit(search.ask, hang)
        assert is_at_it.wait(60)
        try:
            assert threads.submit(search.report, first, 0.5, 0).result(60) is False
        finally:
            may_go_on.set()
        assert asked.result(60) is not None


def narrowing(trial: optuna.Trial) -> Parameters:
    kind = trial.suggest_categorical("kind", ["a", "b", None])
    drawn = {
        "rate": trial.suggest_float("rate", 1e-5, 1e-1, log=True),
        "epochs": trial.suggest_int("epochs", 2, 8, step=2),
        "kind": kind,
    }
    return {**drawn, "rank": trial.suggest_int("rank", 1, 4)} if kind == "b" else drawn


def test_a_space_is_narrowed_as_a_task_asks() -> None:
    """A value fixes a hyperparameter, two numbers narrow a range, a list keeps some choices; the
    rest is drawn as the method says, and what older sets have beyond that is cut."""
    parameters = {"rate": [1e-4, 1e-3], "epochs": 4, "kind": ["b", None]}
    sets = draw_sets(narrow(narrowing, parameters), 40, seed=0)
    assert all(1e-4 <= one["rate"] <= 1e-3 for one in sets)
    assert {one["epochs"] for one in sets} == {4}
    assert {one["kind"] for one in sets} == {"b", None}
    assert {one["rank"] for one in sets if "rank" in one} == {1, 2, 3, 4}
    search = Search("maximize", 0)
    suggest = narrow(narrowing, parameters)
    search.recommend(suggest, {"rate": 1e-2, "epochs": 8, "kind": None}, is_narrowed=True)
    proposed = search.ask(suggest)
    assert proposed is not None
    assert proposed[1] == {"rate": 1e-3, "epochs": 4, "kind": None}
    assert draw_again(suggest, proposed[0].params, 0) == proposed[1]
    check_names(narrowing, {**parameters, "rank": 2}, 0, 40)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"epoch": 3}, r"asks for no 'epoch'; it asks for 'kind', 'rate', 'epochs', 'rank'"),
        ({"rate": 1.0}, "'rate' is 1.0; the method's own range is 1e-05 to 0.1"),
        ({"rate": [1e-3, 1e-4]}, "'rate' is"),
        ({"rate": [1e-6, 1e-4]}, "own range"),
        ({"rate": "fast"}, "takes a number, or the two bounds"),
        ({"rate": [1e-4, 1e-3, 1e-2]}, "takes a number, or the two bounds"),
        ({"epochs": 3}, "own range is whole numbers 2 to 8 in steps of 2"),
        ({"epochs": True}, "takes a number"),
        ({"kind": "c"}, """'kind' may not be 'c'; choices: "a", "b", null"""),
    ],
)
def test_what_is_not_in_the_methods_space_is_refused(parameters: dict[str, Any], told: str) -> None:
    """By name, with what the method has: nothing is drawn that it does not know."""
    with pytest.raises(InvalidInput, match=told):
        check_names(narrowing, parameters, 0, 40)
