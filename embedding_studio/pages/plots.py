"""Where the lines of plots run, in the units of their drawing: what SVG needs, and no more."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil, floor, isfinite, log10
from typing import Self

from embedding_studio.models import STAYING, MoveKind
from embedding_studio.pages.trials import Trial
from embedding_studio.wire.models import ModelView

LEFT, RIGHT, TOP, BOTTOM = 86.0, 622.0, 16.0, 236.0
"""Of the part of a drawing, 640 wide and 280 high, that has the lines."""
_STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Tick:
    """A line across, and what it stands for."""

    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Places from the bottom of a plot to its top for the values between two round numbers."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    @classmethod
    def over(cls, values: Sequence[float]) -> Self:
        """Return the scale for some values, at least one."""
        low, high = min(values), max(values)
        if high - low < 1e-6 * max(abs(low), abs(high), 1e-3):
            slack = max(abs(low) / 10, 1e-3)
            low, high = low - slack, high + slack
        rough = (high - low) / 4
        unit = 10.0 ** floor(log10(rough))
        step = unit * next(one for one in _STEPS if one * unit >= rough * 0.999)
        first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
        scale = cls(first * step, last * step, ())
        decimals = max(0, -floor(log10(step) + 1e-9))
        marks = (number * step for number in range(first, last + 1))
        ticks = tuple(Tick(scale.y(mark), f"{mark:.{decimals}f}") for mark in marks)
        return cls(scale.low, scale.high, ticks)

    def y(self, value: float) -> float:
        return round(BOTTOM - (value - self.low) / (self.high - self.low) * (BOTTOM - TOP), 1)


@dataclass(frozen=True, slots=True)
class Curve:
    """What a trial reported, from left to right."""

    trial: Trial
    #: as SVG writes them
    points: str
    end: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Curves:
    """The main metric of trials over their reports."""

    curves: tuple[Curve, ...]
    ticks: tuple[Tick, ...]
    #: how many the longest has
    reports: int
    #: where the starting model's line runs
    baseline_y: float | None

    @classmethod
    def of(cls, trials: Sequence[Trial], baseline: float | None) -> Self | None:
        """Return the plot; None while nothing was reported."""
        drawn = [one for one in trials if one.curve and all(map(isfinite, one.curve))]
        if not drawn:
            return None
        values = [value for one in drawn for value in one.curve]
        scale = Scale.over(values if baseline is None else [*values, baseline])
        reports = max(len(one.curve) for one in drawn)
        curves = []
        # the best one last, above the others
        for trial in sorted(drawn, key=lambda one: one.is_best):
            places = [
                (_x(number, reports), scale.y(value)) for number, value in enumerate(trial.curve)
            ]
            points = " ".join(f"{x:g},{y:g}" for x, y in places)
            curves.append(Curve(trial, points, places[-1]))
        baseline_y = None if baseline is None else scale.y(baseline)
        return cls(tuple(curves), scale.ticks, reports, baseline_y)


@dataclass(frozen=True, slots=True)
class Move:
    """A change of the champion. gain: of its versions together, since the first."""

    version: int
    kind: MoveKind
    at: datetime
    gain: float
    x: float
    y: float
    #: the ends of the interval of the verdict that made it
    interval_y: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Gains:
    """What the champions gained, one after the other."""

    moves: tuple[Move, ...]
    metric_name: str
    ticks: tuple[Tick, ...]
    #: as SVG writes it: level between moves
    line: str

    @classmethod
    def of(cls, model: ModelView) -> Self | None:
        """Return the plot; None where no verdict tells a gain."""
        verdicts = {one.version: one.promotion for one in model.versions if one.promotion}
        moves = [one for one in reversed(model.moves) if one.kind not in STAYING]
        gains: dict[int | None, float] = {}
        told = []
        for move in moves:
            verdict, interval = verdicts.get(move.to_version), None
            before = gains.get(move.from_version, 0.0)
            if move.to_version not in gains:
                gains[move.to_version] = before + (verdict.delta if verdict else 0.0)
                if verdict and verdict.delta_ci95:
                    low, high = verdict.delta_ci95
                    interval = (before + low, before + high)
            told.append((move, gains[move.to_version], interval))
        if not verdicts or not told:
            return None
        values = [gain for _, gain, _ in told]
        scale = Scale.over([0.0, *values, *(end for *_, ends in told for end in ends or ())])
        drawn = [
            Move(
                version=move.to_version,
                kind=move.kind,
                at=move.at,
                gain=gain,
                x=_x(number, len(told)),
                y=scale.y(gain),
                interval_y=None if ends is None else (scale.y(ends[0]), scale.y(ends[1])),
            )
            for number, (move, gain, ends) in enumerate(told)
        ]
        line = f"M{drawn[0].x:g} {drawn[0].y:g}" + "".join(f"H{m.x:g}V{m.y:g}" for m in drawn[1:])
        last = max(verdicts)
        return cls(tuple(drawn), verdicts[last].metric_name, scale.ticks, f"{line}H{RIGHT:g}")


def _x(number: int, count: int) -> float:
    if count == 1:
        return (LEFT + RIGHT) / 2
    return round(LEFT + number / (count - 1) * (RIGHT - LEFT), 1)
