"""A plot of accuracy against the share of tokens kept, as an SVG that is readable on light and on dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import floor
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 48, 96  # pixels around the axes
# Told apart by people who see fewer colours, too (Okabe and Ito); the markers differ as well.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
STYLE = """\
text { font: 14px system-ui, sans-serif; fill: #1f2328 }
.page { fill: #ffffff }
.grid { stroke: #d1d9e0 }
.full { stroke: #59636e; stroke-dasharray: 6 4; stroke-width: 2 }
.band { fill: #59636e; opacity: 0.15 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .page { fill: #0d1117 }
  .grid { stroke: #3d444d }
  .full { stroke: #9198a1 }
  .band { fill: #9198a1 }
}"""


class Point(NamedTuple):
    """One method at one budget, in percent."""

    budget: float
    accuracy: float
    stderr: float


class Line(NamedTuple):
    """One method at all budgets."""

    name: str
    points: Sequence[Point]


def plot(title: str, full: Point, lines: Sequence[Line]) -> str:
    """The whole picture: accuracy with its standard error, `full` as a level with a band."""
    budgets = sorted({point.budget for line in lines for point in line.points})
    least = min(point.accuracy - point.stderr for line in lines for point in line.points)
    axes = _Axes(budgets[0], budgets[-1], max(0, 10 * floor(least / 10)))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        _text(WIDTH / 2, 28, title, "middle"),
        *_grid(axes, budgets),
        *_level(axes, full),
        *(part for number, line in enumerate(lines) for part in _curve(axes, line, number)),
        *_legend([line.name for line in lines]),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Axes(NamedTuple):
    """From percent to pixels."""

    first: float  # least budget
    last: float
    bottom: float  # least accuracy

    def x(self, budget: float) -> float:
        share = (budget - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return round(LEFT + 24 + share * (WIDTH - LEFT - RIGHT - 48), 1)

    def y(self, accuracy: float) -> float:
        share = (accuracy - self.bottom) / (100 - self.bottom)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


def _grid(axes: _Axes, budgets: Sequence[float]) -> Iterator[str]:
    for accuracy in range(int(axes.bottom), 101, 10):
        y = axes.y(accuracy)
        yield f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
        yield _text(LEFT - 8, y + 5, f"{accuracy}%", "end")
    for budget in budgets:
        yield _text(axes.x(budget), HEIGHT - BOTTOM + 22, f"{budget:g}%", "middle")
    yield _text(WIDTH / 2, HEIGHT - BOTTOM + 44, "visual tokens that enter the language model", "middle")


def _level(axes: _Axes, full: Point) -> Iterator[str]:
    high, low = axes.y(min(100, full.accuracy + full.stderr)), axes.y(full.accuracy - full.stderr)
    yield f'<rect class="band" x="{LEFT}" y="{high}" width="{WIDTH - LEFT - RIGHT}" height="{low - high:.1f}"/>'
    yield f'<path class="full" d="M{LEFT} {axes.y(full.accuracy)}H{WIDTH - RIGHT}"/>'


def _curve(axes: _Axes, line: Line, number: int) -> Iterator[str]:
    colour = COLOURS[number]
    points = sorted(line.points)
    way = "L".join(f"{axes.x(point.budget)} {axes.y(point.accuracy)}" for point in points)
    yield f'<path d="M{way}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for point in points:
        x, high, low = axes.x(point.budget), point.accuracy + point.stderr, point.accuracy - point.stderr
        yield f'<path d="M{x} {axes.y(min(100, high))}V{axes.y(low)}" stroke="{colour}"/>'
        yield _marker(x, axes.y(point.accuracy), number)


def _marker(x: float, y: float, number: int) -> str:
    corners = ("-5 -5h10v10h-10z", "-6 4l6 -10l6 10z", "-6 0l6 -6l6 6l-6 6z", "-5 -2h10v4h-10z")
    return f'<path transform="translate({x} {y})" d="M{corners[number]}" fill="{COLOURS[number]}"/>'


def _width(name: str) -> float:
    """About what an entry of the legend takes, in pixels."""
    return 22 + 8.5 * len(name)


def _legend(names: Sequence[str]) -> Iterator[str]:
    y, x = HEIGHT - 20.0, float(LEFT)
    spare = WIDTH - LEFT - RIGHT - sum(map(_width, (*names, "full")))
    for number, name in enumerate(names):
        yield _marker(x, y - 5, number)
        yield _text(x + 14, y, name, "start")
        x += _width(name) + spare / len(names)
    yield f'<path class="full" d="M{x - 8:.1f} {y - 5}h20"/>'
    yield _text(x + 18, y, "full", "start")
