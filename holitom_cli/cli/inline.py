"""Pictures in the terminal itself, where it can show them: by sixels, or as kitty does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holitom_cli.errors import UsageError
from holitom_cli.report import pictures

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from holitom_cli.types import Answer, Frames

    Painter = Callable[..., RenderableType]

CANNOT = "This terminal shows no pictures (neither sixels nor kitty's), so --inline does nothing; try --report."
_PIXELS = 240  # longest side of a frame, before the terminal scales it
_FRAME_COLUMNS = 20  # of the terminal, for each frame
_MOST_FRAMES = 6  # in a row
_GROUND, _INK = "#20232a", "#e8eaf0"


def painter(console: Console) -> Painter | None:
    """What makes a renderable of a picture, None where the terminal can show none. It is asked, which takes 0.2 s.

    Raises:
        UsageError: the library for it is not installed.
    """
    streams = (sys.__stdin__, sys.__stdout__)  # where the library listens and asks
    if not (console.is_terminal and all(stream and stream.isatty() for stream in streams)):
        return None
    try:
        from textual_image.renderable import Image, SixelImage, TGPImage
    except ImportError as error:
        raise UsageError(
            "Pictures in the terminal need the library textual-image, which is not installed.",
            "Run: pip install textual-image, or use --report.",
        ) from error
    return Image if Image in (SixelImage, TGPImage) else None


def shown(paint: Painter, answer: Answer, shots: Frames, columns: int) -> Iterator[RenderableType]:
    """All frames with what was kept of them, in rows that fit so many columns of a terminal."""
    across = max(1, min(_MOST_FRAMES, columns // _FRAME_COLUMNS, len(shots)))
    for strip in pictures.strips(answer, shots, _PIXELS, across, ground=_GROUND, ink=_INK):
        yield _Strip(paint(strip, width="auto", height="auto"), across * _FRAME_COLUMNS)


@dataclass(frozen=True)
class _Strip:
    """A picture in so many columns at most, and lower than the terminal: nothing is drawn where lines scroll away."""

    picture: RenderableType
    columns: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.update(max_width=min(self.columns, options.max_width))
        room.max_height = max(1, console.height - 2)
        yield from console.render(self.picture, room)
