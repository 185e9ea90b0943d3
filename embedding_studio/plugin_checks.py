"""What a plugin's class must state, checked when it loads: not hours later, in another's words."""

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, get_args

from embedding_studio.clickstream import check_weights
from embedding_studio.errors import PluginError
from embedding_studio.methods import Direction, FineTuningMethod, PluginMeta
from embedding_studio.tasks import MOST_FOLDS, Budget, Promote, Pruner, Sampler
from embedding_studio.tracking.names import to_mlflow

_SHORTEST_GUESSED = 6
"""Shorter names are too near to ordinary ones to be called misspelt."""


def check_class(method_class: Any) -> None:
    """Raises PluginError for what is no complete subclass of FineTuningMethod."""
    if not (isinstance(method_class, type) and issubclass(method_class, FineTuningMethod)):
        raise PluginError(f"{method_class!r} is no subclass of FineTuningMethod")
    missing = sorted(method_class.__abstractmethods__)
    if missing:
        needed = ", ".join(sorted(FineTuningMethod.__abstractmethods__))
        lacks = f"{method_class.__name__} lacks {', '.join(missing)}: a method needs {needed}"
        raise PluginError("; ".join([lacks, *_guesses(method_class)]))
    if not isinstance(getattr(method_class, "meta", None), PluginMeta):
        wrong = (
            f'{method_class.__name__}.meta is no PluginMeta: write meta = PluginMeta(name="...")'
        )
        raise PluginError("; ".join([wrong, *_guesses(method_class)]))


def check_attributes(method: FineTuningMethod[Any]) -> None:
    """Raises PluginError that names every attribute which is not what it must be."""
    name = type(method).__name__
    wrong = [
        f"{name}.{attribute} is {getattr(method, attribute, None)!r:.100}: it must be {needed}"
        for attribute, (is_right, needed) in _ATTRIBUTES.items()
        if not is_right(getattr(method, attribute, None))
    ]
    if not wrong and method.validation_share + method.test_share >= 1:
        wrong.append(f"{name}.validation_share and test_share leave nothing to train on")
    wrong += _guesses(type(method))
    if wrong:
        raise PluginError("; ".join(wrong))


def _guesses(method_class: type) -> Iterator[str]:
    """Yield what looks like an attribute of a method, misspelt: it would do nothing."""
    own = {name for kind in method_class.__mro__ for name in vars(kind)} - set(
        vars(FineTuningMethod)
    )
    open_ = [
        name
        for name in {*vars(FineTuningMethod), "meta", "main_metric"}
        if len(name) >= _SHORTEST_GUESSED
        and getattr(method_class, name, None) is getattr(FineTuningMethod, name, None)
    ]
    for name in sorted(name for name in own if not name.startswith("_")):
        (meant, *_) = [*difflib.get_close_matches(name, open_, 1, 0.9), ""]
        could_be, _ = _ATTRIBUTES.get(meant, (callable, ""))
        if meant and could_be(getattr(method_class, name)):
            yield f"is {method_class.__name__}.{name} meant to be {meant}?"


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _is_name(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(to_mlflow(value))
    except Exception:  # noqa: BLE001 - it says why, and so do we
        return False


def _is_budget(value: Any) -> bool:
    if not isinstance(value, Budget):
        return False
    limits = [getattr(value, limit.name) for limit in fields(value)]
    return all(limit is None or (_is_number(limit) and limit >= 0) for limit in limits)


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 < value < 1


def _are_weights(value: Any) -> bool:
    try:
        check_weights(value)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def _is_set(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _one_of(choices: Any) -> tuple[Callable[[Any], bool], str]:
    names = [str(choice) for choice in choices]
    return lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}"


_ATTRIBUTES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "main_metric": (_is_name, "the name of a metric that `evaluate` returns"),
    "direction": _one_of(get_args(Direction)),
    "budget": (_is_budget, "a Budget of positive numbers"),
    "sampler": _one_of(Sampler),
    "pruner": _one_of(Pruner),
    "recommended": (
        lambda value: value is None or _is_set(value),
        "a dictionary by parameter names",
    ),
    "event_weights": (
        _are_weights,
        "a dictionary of numbers from 0 to 100, one for each event type",
    ),
    "promote": _one_of(Promote),
    "num_cpus": (lambda value: value is None or (_is_number(value) and value > 0), "above 0"),
    "num_gpus": (lambda value: _is_number(value) and value >= 0, "a number from 0 on"),
    "validation_share": (_is_share, "between 0 and 1"),
    "test_share": (_is_share, "between 0 and 1"),
    "folds": (lambda value: type(value) is int and 1 <= value <= MOST_FOLDS, f"1 to {MOST_FOLDS}"),
}
"""What each attribute of a class must be: a test, and how to say it."""
