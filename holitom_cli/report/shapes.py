"""Renderables that rich lacks: the strip of segments, and output that any encoding can carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.segment import Segment as Run
from rich.table import Table
from rich.text import Text

from holitom_cli.report import text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from holitom_cli.types import Segment

# Upper and lower halves weigh the same, so neither kind of segment looks more important.
_MARKS = (("▀", "cyan"), ("▄", "blue"))
_STAND_INS = {"▀": "=", "▄": "-", "…": "~"} | dict.fromkeys("█▉▊▋▌▐", "#") | dict.fromkeys("▍▎▏▕", "|")


@dataclass(frozen=True, slots=True)
class Encodable:
    """A renderable whose characters are replaced, width for width, where the console lacks them."""

    body: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the body, then replace what the console's encoding cannot write."""
        for run in console.render(self.body, options):
            if run.control or not options.ascii_only:  # ascii_only: any encoding but UTF
                yield run
            else:
                yield Run("".join(_stand_in(char, options.encoding) for char in run.text), run.style)


def _stand_in(char: str, encoding: str) -> str:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return _STAND_INS.get(char, "?" * cell_len(char))
    return char


@dataclass(frozen=True, slots=True)
class Strip:
    """Segments over the sampled frames: one mark a block, with start times and tokens below."""

    segments: Sequence[Segment]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Fill the width; where segments outnumber half the columns, blocks stand for several."""
        width = max(options.max_width - len("tokens  "), 2)
        blocks, together = collapse(self.segments, width // 2)
        borders = edges(blocks, width)
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim")
        grid.add_column(no_wrap=True)
        grid.add_row("frames", _marks(borders))
        grid.add_row("start", labels(borders, _starts(blocks), width))
        grid.add_row("tokens", labels(borders, [text.count(block.tokens) for block in blocks], width))
        yield grid
        if together > 1:
            yield Text(f"each block stands for {together} segments", style="dim")


def collapse(segments: Sequence[Segment], limit: int) -> tuple[list[Segment], int]:
    """Join consecutive segments into at most `limit` blocks; also return how many go into one."""
    together = -(-len(segments) // max(limit, 1))
    groups = [segments[i : i + together] for i in range(0, len(segments), together)]
    return [_joined(group) for group in groups], together


def _joined(group: Sequence[Segment]) -> Segment:
    last = group[-1]
    total = sum(segment.tokens for segment in group)
    return replace(group[0], stop_frame=last.stop_frame, end_seconds=last.end_seconds, tokens=total)


def edges(blocks: Sequence[Segment], width: int) -> list[int]:
    """Return the first column of each block, then `width`: in proportion, but one column at least.

    There must be no more blocks than columns.
    """
    first, frames = blocks[0].start_frame, blocks[-1].stop_frame - blocks[0].start_frame
    columns = [round((block.start_frame - first) * width / frames) for block in blocks] + [width]
    for i in range(1, len(blocks)):
        columns[i] = max(columns[i], columns[i - 1] + 1)
    for i in range(len(blocks) - 1, 0, -1):
        columns[i] = min(columns[i], columns[i + 1] - 1)
    return columns


def _marks(borders: Sequence[int]) -> Text:
    spans = zip(borders[:-1], borders[1:], cycle(_MARKS), strict=False)
    return Text.assemble(*((mark * (stop - start), style) for start, stop, (mark, style) in spans))


def _starts(blocks: Sequence[Segment]) -> list[str]:
    """Start times in one form for the whole strip: tenths of a second in a short clip."""
    short = blocks[-1].end_seconds < 60
    return [f"{b.start_seconds:.1f}s" if short else text.clock(b.start_seconds) for b in blocks]


def labels(borders: Sequence[int], words: Sequence[str], width: int) -> str:
    """Write each word at its block's first column, leaving out those that have no room."""
    line = ""
    for column, word in zip(borders, words, strict=False):  # borders end with the width itself
        if column >= len(line) + bool(line) and column + len(word) <= width:
            line = line.ljust(column) + word
    return line
