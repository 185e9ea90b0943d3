"""A method's search space as Optuna sees it: choices as plain values, older sets fitted to it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from embedding_studio.errors import InvalidInput, MethodError
from embedding_studio.methods import Parameters
from embedding_studio.tracking.names import to_mlflow

Suggest: TypeAlias = Callable[[optuna.Trial], Parameters]
Label: TypeAlias = bool | int | float | str | None
"""A choice as Optuna and the ledger keep it."""

_UNHELD = object()


def suggest_set(suggest: Suggest, trial: optuna.Trial) -> Parameters:
    """Let a method draw one set from Optuna's trial. Raises MethodError if it returns no set, or
    names that MLflow cannot keep."""
    params: Any = suggest(_MethodTrial(trial))
    if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
        raise MethodError(
            f"`suggest` gave {str(params)[:200]}: it must give a dictionary by parameter names"
        )
    for name in params:
        to_mlflow(name)  # refuses one that could not be kept
    return dict(params)


def narrow(suggest: Suggest, parameters: Mapping[str, Any] | None) -> Suggest:
    """Return `suggest` with some hyperparameters fixed, or narrowed, within the method's own space:
    a value fixes one, two numbers narrow a range, a list of choices keeps these.

    What it returns raises InvalidInput for what lies outside of the method's space."""
    if not parameters:
        return suggest
    return lambda trial: suggest(_NarrowedTrial(trial, parameters))


class _NarrowedTrial(optuna.Trial):
    """Optuna's trial, of which a method may draw only what a task allows."""

    def __init__(self, trial: optuna.Trial, parameters: Mapping[str, Any]) -> None:
        vars(self).update(vars(trial))
        self._trial = trial
        self._wanted = parameters

    @property
    def params(self) -> dict[str, Any]:
        return self._trial.params

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name not in self._wanted:
            return self._trial.suggest_categorical(name, choices)
        wanted = self._wanted[name]
        keys = [_key(label) for label in _labels(choices)]
        kept = []
        for one in wanted if isinstance(wanted, list) else [wanted]:
            key = _key(label_of(one))
            if key not in keys:
                shown = ", ".join(keys)
                raise InvalidInput(f"parameters: {name!r} may not be {one!r}; choices: {shown}")
            kept.append(choices[keys.index(key)])
        return self._trial.suggest_categorical(name, kept)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        if name in self._wanted:
            low, high = map(int, self._range(name, IntDistribution(low, high, log, step)))
        return self._trial.suggest_int(name, low, high, step=step, log=log)

    def suggest_float(
        self,
        name: str,
        low: float,
        high: float,
        *,
        step: float | None = None,
        log: bool = False,
    ) -> float:
        if name in self._wanted:
            low, high = self._range(name, FloatDistribution(low, high, log, step))
            step = None if low == high else step
        return self._trial.suggest_float(name, low, high, step=step, log=log)

    def _range(self, name: str, own: IntDistribution | FloatDistribution) -> tuple[float, float]:
        """Return the bounds that are wanted of a range. Raises InvalidInput where it has none."""
        wanted = self._wanted[name]
        bounds = wanted if isinstance(wanted, list) else [wanted, wanted]
        numbers = [
            one for one in bounds if isinstance(one, int | float) and not isinstance(one, bool)
        ]
        if len(bounds) != 2 or len(numbers) != 2:
            raise InvalidInput(
                f"parameters: {name!r} is {wanted!r}; it takes a number, or the two bounds of a "
                "range"
            )
        low, high = numbers
        if low > high or not all(own._contains(one) for one in numbers):
            step = "" if own.step in (None, 1) else f" in steps of {own.step:g}"
            whole = "whole numbers " if isinstance(own, IntDistribution) else ""
            raise InvalidInput(
                f"parameters: {name!r} is {wanted!r}; the method's own range is {whole}"
                f"{own.low:g} to {own.high:g}{step}"
            )
        return low, high


def check_names(suggest: Suggest, parameters: Mapping[str, Any], seed: int, count: int) -> None:
    """Raise InvalidInput for a name that a method asks for in none of `count` sets drawn at random,
    and for what lies outside of its space."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    asked: dict[str, None] = {}
    for _ in range(count):
        trial = study.ask()
        suggest_set(narrow(suggest, parameters), trial)
        asked |= dict.fromkeys(trial.params)
    strangers = [name for name in parameters if name not in asked]
    if strangers:
        raise InvalidInput(
            f"parameters: the method asks for no {', '.join(map(repr, strangers))}; it asks for "
            f"{', '.join(map(repr, asked)) or 'nothing'}"
        )


class _MethodTrial(optuna.Trial):
    """Optuna's trial, whose choices may be anything: tuples, NumPy values, classes.

    Optuna is shown their labels: its samplers and the ledger hold only what JSON can."""

    def __init__(self, trial: optuna.Trial) -> None:
        vars(self).update(vars(trial))  # the same trial: what is drawn here is drawn there
        self._chosen: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        labels = _labels(choices)
        key = _key(super().suggest_categorical(name, labels))
        self._chosen[name] = choices[[_key(label) for label in labels].index(key)]
        return self._chosen[name]

    @property
    def params(self) -> dict[str, Any]:
        return {**super().params, **self._chosen}


def _labels(choices: Sequence[Any]) -> list[Label]:
    """Return a label for each choice; two objects of the same name get two labels."""
    labels: list[Label] = []
    for number, choice in enumerate(choices, start=1):
        label = label_of(choice)
        is_taken = not isinstance(choice, bool | int | float | str) and label in labels
        labels.append(f"{label} #{number}" if is_taken else label)
    return labels


def label_of(choice: Any) -> Label:
    """Return a choice itself if JSON has its kind, of NumPy's the same as Python's, else a text."""
    try:
        text = json.dumps(choice, default=_plain)
    except (TypeError, ValueError):  # keys that are no text, say
        return _plain_name(choice)
    label: Any = json.loads(text)
    return text if isinstance(label, list | dict) else label


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else _plain_name(value)


def _plain_name(value: Any) -> str:
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))  # the address is another in each process


def _key(label: Label) -> str:
    return json.dumps(label)  # True is not 1, and NaN is NaN


@dataclass(frozen=True, slots=True)
class FittedSet:
    """An older set as the present space holds it."""

    params: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    #: what of it could not be kept, in words; none where it is the same set
    losses: Sequence[str]
    #: False where a choice is gone, so that it would be another set
    is_held: bool


def fit(values: Mapping[str, Any], suggest: Suggest, seed: int) -> FittedSet:
    """Draw the set of the present space that is nearest to an older one's values.

    Numbers go to the nearest that their range holds; parameters that are new are drawn at random.
    """
    trial = optuna.create_study(sampler=Repeating(values, seed)).ask()
    suggest_set(suggest, trial)
    now = trial.params
    losses = [f"{name!r} is gone" for name in values if name not in now]
    losses += [f"{name!r} is new" for name in now if name not in values]
    is_held = True
    for name in (name for name in values if name in now):
        distribution = trial.distributions[name]
        if _nearest(values[name], distribution) is _UNHELD:
            is_held = False
            losses.append(f"{name!r} may not be {values[name]!r} any more")
        elif not isinstance(distribution, CategoricalDistribution) and values[name] != now[name]:
            losses.append(f"{name!r} is {now[name]!r}, was {values[name]!r}")
    return FittedSet(now, trial.distributions, losses, is_held)


class Repeating(optuna.samplers.RandomSampler):
    """Gives each parameter the value of an older set where it can."""

    def __init__(self, values: Mapping[str, Any], seed: int) -> None:
        super().__init__(seed)
        self._values = values

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if param_name in self._values:
            nearest = _nearest(self._values[param_name], param_distribution)
            if nearest is not _UNHELD:
                return nearest
        return super().sample_independent(study, trial, param_name, param_distribution)


def _nearest(value: Any, distribution: BaseDistribution) -> Any:
    """Return the value that a distribution holds nearest to this one; _UNHELD if there is none."""
    if isinstance(distribution, CategoricalDistribution):
        key = _key(label_of(value))
        return next((label for label in distribution.choices if _key(label) == key), _UNHELD)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return _UNHELD
    low, high, step = distribution.low, distribution.high, distribution.step
    clipped = min(max(value, low), high)
    if isinstance(distribution, IntDistribution):
        clipped = round(clipped)
    if step is not None and not distribution._contains(clipped):
        clipped = min(low + round((clipped - low) / step) * step, high)
    return clipped
