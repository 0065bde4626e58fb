"""Frames with what was kept of them drawn over: single pictures, a contact sheet, a clip."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from holitom_cli.report import text
from holitom_cli.report.overlay import Fate, Overlay, borders, colour, kept, looked_at, runs

if TYPE_CHECKING:
    from PIL.Image import Image

    from holitom_cli.types import Answer, ByteArray, Frames

# Grey over what is lost and the token's colour over what was merged, as shares of 1; the page has the same.
VEIL = (74, 78, 88)  # what is lost can then be told from what is kept in dark pictures too
DIMMED = {Fate.DROPPED: 0.84, Fate.FOLDED: 0.6}
TINTED = 0.35
_SHEET_PIXELS = 320  # longest side of a picture on the contact sheet
_SHEET_COLUMNS = 8
_OUTLINED_PIXELS = 480  # from here on borders have room for a dark edge
_GAP, _LINE = 8, 22  # pixels between pictures, and of a line of text below one
_LONGEST_PAUSE_SECONDS = 1.0  # for a picture in the clip of overlays
_TICKS_PER_SECOND = 1000


def shrinker(longest: int) -> Callable[[ByteArray], ByteArray]:
    """What makes of a picture (H, W, 3) uint8 one whose sides have at most so many pixels."""

    def shrink(picture: ByteArray) -> ByteArray:
        import numpy as np
        from PIL import Image

        small = Image.fromarray(np.ascontiguousarray(picture))
        small.thumbnail((longest, longest))
        return np.asarray(small)

    return shrink


def drawn(picture: ByteArray, overlay: Overlay, frame: int) -> Image:
    """One picture (H, W, 3) with what became of its patches: dropped ones dark, merged ones tinted and outlined."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    veil = Image.fromarray(_veil(overlay, frame), "RGBA").resize(image.size, Image.Resampling.NEAREST)
    image.paste(veil, mask=veil.getchannel("A"))
    draw = ImageDraw.Draw(image)
    grid, unit = len(overlay.token[frame]), max(1, round(max(image.size) / _OUTLINED_PIXELS))
    across, down = image.width / grid, image.height / grid
    for x0, y0, x1, y1 in _lines(overlay, frame):
        line = (round(x0 * across), round(y0 * down), round(x1 * across), round(y1 * down))
        if max(image.size) >= _OUTLINED_PIXELS:
            draw.line(line, fill="black", width=3 * unit)
        draw.line(line, fill="white", width=unit)
    for y, x in zip(*overlay.stands[frame].nonzero(), strict=True):
        middle = ((x + 0.5) * across, (y + 0.5) * down)
        draw.circle(middle, 3 * unit, fill="white", outline="black", width=unit)
    return image


def _veil(overlay: Overlay, frame: int) -> ByteArray:
    """What lies over each patch: (grid, grid, 4) red, green, blue and how much it covers."""
    import numpy as np

    fates, tokens = overlay.fate[frame], overlay.token[frame]
    veil = np.zeros((*fates.shape, 4), dtype=np.uint8)
    for fate, share in DIMMED.items():
        veil[fates == fate] = (*VEIL, round(255 * share))
    for token in np.unique(tokens[tokens >= 0]).tolist():
        veil[tokens == token] = (*colour(token), round(255 * TINTED))
    return veil


def _lines(overlay: Overlay, frame: int) -> Iterator[tuple[int, int, int, int]]:
    """Borders of outlined regions as (x0, y0, x1, y1) in patches."""
    above, left = borders(overlay.outline[frame])
    for y, line in enumerate(above):
        yield from ((start, y, stop, y) for start, stop, is_border in runs(line) if is_border)
    for x, line in enumerate(left.T):
        yield from ((x, start, x, stop) for start, stop, is_border in runs(line) if is_border)


def overlays(answers: Sequence[Answer]) -> Iterator[tuple[str, Overlay]]:
    """What was kept, and what each question looked at, with the beginnings of their files' names."""
    yield "frame", kept(answers[0].visual)
    for number, answer in enumerate(answers, 1):
        seen = looked_at(answer)
        if seen is not None:
            yield f"question-{number}-frame", seen


def write_overlays(answers: Sequence[Answer], pictures: Frames, folder: Path) -> None:
    """Write a PNG a frame of what was kept, and of what each question looked at inside the model."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = len(str(len(pictures)))
    for name, overlay in overlays(answers):
        for frame, picture in enumerate(pictures.pixels):
            drawn(picture, overlay, frame).save(folder / f"{name}-{frame + 1:0{digits}}.png")


def write_contact_sheet(answer: Answer, pictures: Frames, file: Path) -> None:
    """Write one PNG of all frames with what was kept of them, their times below."""
    contact_sheet(answer, pictures).save(file, format="PNG")


def contact_sheet(answer: Answer, pictures: Frames) -> Image:
    """All frames with what was kept of them, row by row, each with its number and time."""
    from PIL import Image

    rows = list(strips(answer, pictures, _SHEET_PIXELS, min(_SHEET_COLUMNS, math.ceil(math.sqrt(len(pictures))))))
    sheet = Image.new("RGB", (rows[0].width, len(rows) * rows[0].height + _GAP), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * row.height))
    return sheet


def strips(
    answer: Answer, pictures: Frames, longest: int, columns: int, *, ground: str = "white", ink: str = "black"
) -> Iterator[Image]:
    """The rows of a contact sheet, `columns` frames each, whose sides have at most `longest` pixels."""
    from PIL import Image, ImageDraw, ImageFont

    shrink, overlay, font = shrinker(longest), kept(answer.visual), ImageFont.load_default(14)
    for first in range(0, len(pictures), columns):
        small = [
            drawn(shrink(pictures.pixels[frame]), overlay, frame)
            for frame in range(first, min(first + columns, len(pictures)))
        ]
        width, height = small[0].width + _GAP, small[0].height + _LINE + _GAP
        strip = Image.new("RGB", (columns * width + _GAP, height), ground)
        draw = ImageDraw.Draw(strip)
        for place, image in enumerate(small):
            left = _GAP + place * width
            strip.paste(image, (left, _GAP))
            label = f"{first + place + 1}   {text.moment(float(pictures.seconds[first + place]))}"
            draw.text((left, _GAP + image.height + 3), label, fill=ink, font=font)
        yield strip


def write_clip(answer: Answer, pictures: Frames, file: Path) -> None:
    """Write the sampled frames with what was kept of them as an H.264 clip.

    Each stays for as long as in the clip it came from, for a second at most.
    """
    import av
    import numpy as np

    overlay = kept(answer.visual)
    height, width = (side // 2 * 2 for side in pictures.pixels.shape[1:3])  # the codec halves them for colours
    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS_PER_SECOND)
        for number, start in enumerate(moments(pictures.seconds.tolist())):
            frame = min(number, len(pictures) - 1)  # once more at the end, or the last one would not be seen
            image = np.asarray(drawn(pictures.pixels[frame], overlay, frame))[:height, :width]
            shot = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            shot.pts, shot.time_base = round(_TICKS_PER_SECOND * start), Fraction(1, _TICKS_PER_SECOND)
            container.mux(stream.encode(shot))
        container.mux(stream.encode())


def moments(seconds: Sequence[float]) -> list[float]:
    """When each picture begins in a clip where none stays for longer than a second, and when the last one ends."""
    gaps = [min(after - before, _LONGEST_PAUSE_SECONDS) for before, after in itertools.pairwise(seconds)]
    return list(itertools.accumulate([*gaps, gaps[-1] if gaps else _LONGEST_PAUSE_SECONDS], initial=0.0))
