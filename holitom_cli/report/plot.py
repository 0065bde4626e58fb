"""What methods reach against what they cost: points with error bars as SVG, readable on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from holitom_cli.report.page import template

COLOURS = 8  # that plot.css has; the shapes of the markers go round in another number, so both together tell 40 apart
MARKERS = ("M-4 -4h8v8h-8z", "M-5 4l5 -9l5 9z", "M-5 0l5 -5l5 5l-5 5z", "M-5 -4l5 9l5 -9z", "M-5 -2h10v4h-10z")
_WIDTH, _HEIGHT = 440, 310
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 14, 50  # pixels around the axes
_TITLE, _ENTRY = 28, 22  # of the title, where it is drawn, and of a line of the legend
_WORDS = 14  # pixels that a line of words takes
_INSET = 18  # pixels between the outermost points and the ends of the axis
_LOGARITHMIC_FROM = 5  # times the least: beyond it equal factors are equal distances
_ACROSS, _UPWARDS = 4, 7  # ticks, about


@dataclass(frozen=True, slots=True)
class Point:
    """One method at one budget."""

    x: float  # what it costs, above 0
    y: float  # what it reaches, a share of 1
    error: float = 0.0  # standard error of y, which the bar shows to either side
    words: str = ""  # what whoever points at it is told


@dataclass(frozen=True, slots=True)
class Line:
    """One method at all its budgets."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Axis:
    """What is drawn to the right or upwards, and how its numbers are written."""

    name: str
    write: Callable[[float], str]
    ticks: Sequence[float] = ()  # round numbers where there are none


def plot(title: str, right: Axis, up: Axis, lines: Sequence[Line], level: Point | None, *, alone: bool = False) -> str:
    """Return a picture of all lines.

    Args:
        title: what is drawn, in words.
        right: what the points cost.
        up: what they reach.
        lines: in the order of their colours and markers; with `level`, there may be none.
        level: what is reached with every token kept, drawn across the whole width; x is 0 where it is none of `right`.
        alone: for a file of its own, with its title and style.
    """
    names = [line.name for line in lines]
    entries = list(_legend([*names, "full"] if level else names))
    top = _TOP + (_TITLE if alone else 0)
    axes = _axes(lines, level, top)
    return template("plot.svg.jinja").render(
        alone=alone,
        title=title,
        width=_WIDTH,
        height=axes.foot + _BOTTOM + _ENTRY * (1 + entries[-1][0]),
        box=(_LEFT, top, _WIDTH - _RIGHT, axes.foot),
        right=right.name + (" (logarithmic)" if axes.logarithmic else ""),
        up=up.name,
        rows=[(axes.y(tick), up.write(tick)) for tick in up.ticks or round_numbers(axes.bottom, 1.0, _UPWARDS)],
        columns=[(axes.x(tick), right.write(tick)) for tick in right.ticks or axes.ticks()],
        level=level and _level(axes, level, right),
        lines=[_drawn(axes, line, number) for number, line in enumerate(lines)],
        legend=[
            (x, axes.foot + _BOTTOM + _ENTRY * row, name, number if number < len(names) else None)
            for number, (row, x, name) in enumerate(entries)
        ],
        markers=MARKERS,
        colours=COLOURS,
    )


@dataclass(frozen=True, slots=True)
class _Axes:
    """From values to pixels."""

    least: float
    most: float
    bottom: float
    top_pixels: int

    @property
    def logarithmic(self) -> bool:
        return self.most > _LOGARITHMIC_FROM * self.least

    @property
    def foot(self) -> int:
        """The axis below."""
        return self.top_pixels + _HEIGHT - _TOP - _BOTTOM

    def x(self, cost: float) -> float:
        least, most, cost = map(math.log, (self.least, self.most, cost)) if self.logarithmic else (
            self.least, self.most, cost,
        )  # fmt: skip
        share = (cost - least) / (most - least) if most > least else 0.5
        return round(_LEFT + _INSET + share * (_WIDTH - _LEFT - _RIGHT - 2 * _INSET), 1)

    def y(self, reached: float) -> float:
        share = (max(reached, self.bottom) - self.bottom) / (1 - self.bottom)
        return round(self.foot - share * (self.foot - self.top_pixels), 1)

    def ticks(self) -> list[float]:
        """Round costs between the least and the most."""
        if self.most == self.least:
            return [self.least]
        if not self.logarithmic:
            return round_numbers(self.least, self.most, _ACROSS)
        decades = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
        steps = (1, 2, 5) if len(decades) <= _ACROSS else (1,)
        return [step * 10.0**d for d in decades for step in steps if self.least <= step * 10.0**d <= self.most]


def _axes(lines: Sequence[Line], level: Point | None, top_pixels: int) -> _Axes:
    """Axes that all points of lines lie within, and the level's own unless it would press those into less than half."""
    costs = [point.x for line in lines for point in line.points]
    bottom = _bottom(lines, level)
    if not level or not level.x:
        return _Axes(min(costs), max(costs), bottom, top_pixels)
    wide = _Axes(min([*costs, level.x]), max([*costs, level.x]), bottom, top_pixels)
    if costs and wide.x(max(costs)) - wide.x(min(costs)) < (wide.x(wide.most) - wide.x(wide.least)) / 2 > 0:
        return _Axes(min(costs), max(costs), bottom, top_pixels)
    return wide


def round_numbers(low: float, high: float, about: int) -> list[float]:
    """So many numbers, or fewer, from `low` to `high`, at equal distances of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= 0.999 * rough)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [number * step for number in range(first, last + 1)]


def _bottom(lines: Sequence[Line], level: Point | None) -> float:
    """A multiple of a tenth that lies below all error bars, or 0."""
    shown = [*(point for line in lines for point in line.points), *([level] if level else [])]
    least = min(point.y - point.error for point in shown)
    return max(0.0, min(0.9, math.floor(10 * least) / 10))


def _level(axes: _Axes, level: Point, right: Axis) -> dict[str, Any]:
    high, low = axes.y(min(1.0, level.y + level.error)), axes.y(level.y - level.error)
    inside = axes.least <= level.x <= axes.most
    return {
        "y": axes.y(level.y),
        "high": high,
        "breadth": round(low - high, 1),
        "x": axes.x(level.x) if inside else None,
        "words_y": axes.y(level.y) + (15 if high < axes.top_pixels + _WORDS else -6),  # below it where it is high up
        "beyond": "" if inside or not level.x else f"full: {right.write(level.x)}",
        "words": level.words,
    }


def _drawn(axes: _Axes, line: Line, number: int) -> dict[str, Any]:
    points = sorted(line.points, key=lambda point: point.x)
    marks = [
        {
            "x": axes.x(point.x),
            "y": axes.y(point.y),
            "bar": point.error and (axes.y(min(1.0, point.y + point.error)), axes.y(point.y - point.error)),
            "words": point.words,
        }
        for point in points
    ]
    way = "L".join(f"{mark['x']} {mark['y']}" for mark in marks)
    return {"number": number, "way": f"M{way}" if len(marks) > 1 else "", "marks": marks}


def _legend(names: Sequence[str]) -> Iterator[tuple[int, float, str]]:
    """Row, pixels from the left and words of each entry, as many in a row as there is room for."""
    row, x = 0, float(_LEFT)
    for name in names:
        width = 40 + 7 * len(name)  # about what it takes
        if x > _LEFT and x + width > _WIDTH - _RIGHT:
            row, x = row + 1, float(_LEFT)
        yield row, x, name
        x += width
