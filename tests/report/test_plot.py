"""Plots: points stand where their figures say, bars are as long as their errors, and nothing lies outside."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from holitom_cli.report import plot as module
from holitom_cli.report.page import template_source
from holitom_cli.report.plot import COLOURS, MARKERS, Axis, Line, Point, plot, round_numbers

SVG = "{http://www.w3.org/2000/svg}"
RIGHT, UP = Axis("tokens", lambda value: f"{value:g}"), Axis("accuracy", lambda share: f"{share:.0%}")
GOOD = Line("good & true", [Point(25, 0.98, 0.01, "<b>25"), Point(5, 0.9, 0.01), Point(15, 0.97, 0.01)])
BAD = Line("bad", [Point(25, 0.8), Point(5, 0.41, 0.02), Point(15, 0.6, 0.01)])
FULL = Point(28, 0.99, 0.005, "full, all of it")


class Drawn:
    """An SVG as what is drawn in it."""

    def __init__(self, svg: str) -> None:
        self.root = ElementTree.fromstring(svg)
        self.width, self.height = map(float, self.root.attrib["viewBox"].split()[2:])
        self.texts = [text.text for text in self.root.iter(f"{SVG}text")]

    def having(self, kind: str, name: str = "path") -> list[ElementTree.Element]:
        return [item for item in self.root.iter(f"{SVG}{name}") if kind in str(item.get("class")).split()]

    def marks(self, number: int) -> list[tuple[float, float]]:
        """Where the markers of a line stand, its entry in the legend last."""
        places = [re.findall(r"[-\d.]+", item.attrib["transform"]) for item in self.having(f"m{number}")]
        return [(float(x), float(y)) for x, y in places]


@pytest.fixture
def drawn() -> Drawn:
    return Drawn(plot("What <it> costs", RIGHT, UP, [GOOD, BAD], FULL))


def test_points_stand_where_their_figures_say(drawn: Drawn) -> None:
    for number, line in enumerate((GOOD, BAD)):
        *places, _ = drawn.marks(number)
        points = sorted(line.points, key=lambda point: point.x)
        assert len(places) == 3
        (x0, y0), (x1, y1), (x2, y2) = places
        assert (x1 - x0) / (x2 - x0) == pytest.approx(math.log(15 / 5) / math.log(25 / 5), abs=0.01)  # 28 > 5 * 5
        share = (points[1].y - points[0].y) / (points[2].y - points[0].y)
        assert (y1 - y0) / (y2 - y0) == pytest.approx(share, abs=0.01)
        assert all(0 < x < drawn.width and 0 < y < drawn.height for x, y in places)
    assert drawn.having("way")[0].attrib["d"].count("L") == 2


def test_bars_are_as_long_as_their_errors(drawn: Drawn) -> None:
    ways = [re.findall(r"^M([\d.]+) ([\d.]+)V([\d.]+)", bar.attrib["d"])[0] for bar in drawn.having("bar")]
    assert len(ways) == 5  # one point has no error
    heights = [float(low) - float(high) for _, high, low in ways]
    assert heights[3] == pytest.approx(2 * heights[4], abs=0.2)  # 0.02 and 0.01, sorted by x
    rows = [float(net.attrib["d"].split("H")[0].split()[1]) for net in drawn.having("net") if "H" in net.attrib["d"]]
    tenth = (max(rows) - min(rows)) / (len(rows) - 1)
    assert heights[4] == pytest.approx(0.2 * tenth, abs=0.2)  # 0.01 to either side


def test_full_is_a_level_with_a_band_and_a_point_where_there_is_room(drawn: Drawn) -> None:
    band, (point, _) = drawn.having("band", "rect")[0], drawn.having("whole", "circle")
    assert float(band.attrib["y"]) < float(point.attrib["cy"]) < float(band.attrib["y"]) + float(band.attrib["height"])
    assert float(point.attrib["cx"]) > max(x for x, _ in drawn.marks(0)[:-1])
    titles = [item.text for item in drawn.root.iter(f"{SVG}title")]
    assert titles == ["full, all of it", "<b>25"]


def test_full_that_would_press_the_others_together_is_told_in_words() -> None:
    near = [Line("near", [Point(100, 0.5), Point(110, 0.6)])]
    far = Drawn(plot("t", RIGHT, UP, near, Point(400, 0.9)))
    assert "full: 400" in far.texts
    assert not far.having("whole", "circle")
    beside = Drawn(plot("t", RIGHT, UP, near, Point(112, 0.9)))
    assert "full: 112" not in beside.texts
    assert len(beside.having("whole", "circle")) == 2


def test_words_are_words(drawn: Drawn) -> None:
    assert drawn.root.attrib["aria-label"] == "What <it> costs"
    assert {"good & true", "bad", "full", "40%", "100%", "tokens (logarithmic)"} <= set(drawn.texts)


@pytest.mark.parametrize("alone", [True, False])
def test_a_file_of_its_own_has_style_and_title(alone: bool) -> None:
    shown = Drawn(plot("What it costs", RIGHT, UP, [GOOD], None, alone=alone))
    style = shown.root.find(f"{SVG}style")
    assert (style is not None) == alone
    assert style is None or "prefers-color-scheme: dark" in (style.text or "")
    assert ("What it costs" in shown.texts) == alone
    assert "full" not in shown.texts


@pytest.mark.parametrize(
    ("lines", "level"),
    [
        ([], Point(10, 1.0)),
        ([Line("one", [Point(10, 0.0)])], None),
        ([Line("one", [Point(10, 1.0, 0.1)]), Line("two", [Point(10, 0.0, 0.1)])], Point(10, 0.5)),
        ([Line("one", [Point(1e9, 0.5), Point(1e14, 0.5)])], Point(0, 0.5)),
        ([Line(f"method number {n}", [Point(1 + n, n / 40)]) for n in range(40)], Point(100, 1.0)),
    ],
    ids=["full alone", "one point", "equal costs", "five decades", "forty methods"],
)
def test_odd_figures_stay_inside(lines: list[Line], level: Point | None) -> None:
    shown = Drawn(plot("t", RIGHT, UP, lines, level))
    places = [place for number in range(COLOURS) for place in shown.marks(number)]
    assert len(places) == 2 * len(lines) + (1 if len(lines) == 1 and len(lines[0].points) == 2 else 0)
    assert all(0 < x < shown.width and 0 < y < shown.height for x, y in places)
    columns = [text for text in shown.root.iter(f"{SVG}text") if text.get("text-anchor") == "middle"]
    assert 1 <= len(columns) - 2 <= 8  # ticks to the right, without the axes' names


def test_forty_lines_are_told_apart() -> None:
    assert len({(number % COLOURS, number % len(MARKERS)) for number in range(40)}) == 40
    css = template_source("plot.css")
    for scheme in css.split("@media")[:2]:
        assert len(set(re.findall(r"--c\d: (#\w{6})", scheme))) == COLOURS


@pytest.mark.parametrize("low", [0.0, 0.3, 17.0, 3.6e4])
@pytest.mark.parametrize("length", [0.011, 1.0, 37.0, 4.2e9])
def test_round_numbers_are_round_and_fill_the_range(low: float, length: float) -> None:
    numbers = round_numbers(low, low + length, 4)
    assert 2 <= len(numbers) <= 5
    assert low - 1e-6 * length <= numbers[0] <= numbers[-1] <= low + length * 1.000001
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    assert max(steps) == pytest.approx(min(steps))
    assert float(f"{steps[0]:.0e}") == pytest.approx(steps[0])  # one digit


def test_module_names_what_its_style_has() -> None:
    assert f"range({COLOURS})" in Path(module.__file__).with_name("templates").joinpath("plot.css").read_text("utf-8")
