"""Writing pictures of what was kept: the frames are read once more, at a size for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from holitom_cli.cli import inline
from holitom_cli.cli.console import Talk, wrote
from holitom_cli.cli.options import PictureOptions
from holitom_cli.errors import VideoError
from holitom_cli.report import page, pictures

if TYPE_CHECKING:
    from holitom_cli.cli.inline import Painter
    from holitom_cli.types import Answer, Frames

_LARGE_PIXELS = 1280  # longest side of pictures for slides


def write(
    options: PictureOptions,
    file: str,
    timeout_seconds: float | None,
    answers: Sequence[Answer],
    baseline: Sequence[Answer],
    paint: Painter | None,
    talk: Talk,
) -> None:
    """Write what the options ask for about a clip, and say where; show it where the terminal can `paint`.

    Raises:
        VideoError: the clip is not the one any more that the answers are about.
    """
    if not (options.files or options.overlay or paint):
        return
    large = options.overlay is not None or options.overlay_video is not None
    with talk.busy("Drawing what was kept"):
        shots = read_again(file, timeout_seconds, answers[0].frames, _LARGE_PIXELS if large else page.LONGEST_SIDE)
        if options.report is not None:
            page.write_page(answers, baseline, shots, options.report)
        if options.contact_sheet is not None:
            pictures.write_contact_sheet(answers[0], shots, options.contact_sheet)
        if options.overlay is not None:
            pictures.write_overlays(answers, shots, options.overlay)
        if options.overlay_video is not None:
            pictures.write_clip(answers[0], shots, options.overlay_video)
        strips = list(inline.shown(paint, answers[0], shots, talk.console.width)) if paint else []
    for strip in strips:
        talk.say(strip)
    for path in (*options.files, *([options.overlay] if options.overlay else [])):
        talk.say(wrote(path))


def read_again(file: str, timeout_seconds: float | None, frames: Frames, longest: int) -> Frames:
    """The same frames in their own proportions: those for the model are squeezed, and those from the cache are gone.

    Raises:
        VideoError: the clip gives others now.
    """
    from holitom_cli import video
    from holitom_cli.types import Sampling

    wish = frames.sampling or Sampling()
    shots = video.read(file, wish, timeout_seconds=timeout_seconds, shrink=pictures.shrinker(longest))
    if shots.seconds.tolist() != frames.seconds.tolist():
        raise VideoError(f"{file} gave other frames when it was read again.", "Has it been changed? Run it once more.")
    return shots
