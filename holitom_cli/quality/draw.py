"""Draw clips: many at once, on a GPU as on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.quality.world import FRAMES, SHAPES, Clip

SIDE = 112  # pixels
MOST_THINGS = 4
_LIGHT = 0.15  # of full scale, that the light adds to red or blue at most
_STENCIL = 64  # pixels of a shape's stencil
RGB = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.72, 0.20),
    "blue": (0.12, 0.25, 0.92),
    "yellow": (0.97, 0.90, 0.10),
    "purple": (0.58, 0.15, 0.72),
    "orange": (0.98, 0.55, 0.05),
    "white": (0.98, 0.98, 0.98),
    "black": (0.04, 0.04, 0.04),
}


class Sketch(NamedTuple):
    """What to paint, as small tensors: B clips of F frames, S scenes in all, K layers of things, n moving strips."""

    time: Tensor  # (B, F) number of the frame
    coarse: Tensor  # (S, 3, 7, 7) backgrounds
    scene: Tensor  # (B, F) row of the background
    where: Tensor  # (K, B, F, 4) shape (-1 = absent), x, y, radius
    colour: Tensor  # (K, B, F, 3)
    banded: Tensor  # (n,) clips with a moving strip
    bands: Tensor  # (n, 3) its top, bottom, and speed a frame
    strips: Tensor  # (n, 3, 7, 14) what moves

    def to(self, device: torch.device | str) -> Sketch:
        """The same sketch on a device."""
        return Sketch(*(part.to(device, non_blocking=True) for part in self))

    def only(self, frames: Tensor) -> Sketch:
        """Some frames of each clip: rows (B, f) int64 to keep."""
        rows = torch.arange(len(frames), device=frames.device)[:, None]
        return self._replace(
            time=self.time[rows, frames],
            scene=self.scene[rows, frames],
            where=self.where[:, rows, frames],
            colour=self.colour[:, rows, frames],
        )


def draw(clips: Sequence[Clip], device: torch.device | str = "cpu", side: int = SIDE) -> Tensor:
    """Draw clips: (B, F, 3, side, side) float32 from 0 to 1."""
    return paint(sketch(clips).to(device), side)


def sketch(clips: Sequence[Clip]) -> Sketch:
    """Everything about clips that drawing them takes."""
    first = list(accumulate((len(clip.cuts) + 1 for clip in clips), initial=0))
    rows = [[first[row] + clip.scene_of(frame) for frame in range(FRAMES)] for row, clip in enumerate(clips)]
    generators = [torch.Generator().manual_seed(clip.seed) for clip in clips]
    coarse = [_texture(len(clip.cuts) + 1, generator) for clip, generator in zip(clips, generators, strict=True)]
    banded = [index for index, clip in enumerate(clips) if clip.band is not None]
    strips = [_texture(1, generators[index], 14) for index in banded]
    layers = [[_states(clip, layer) for clip in clips] for layer in range(MOST_THINGS)]
    states = torch.tensor(layers)  # (K, B, F, 7)
    return Sketch(
        time=torch.arange(FRAMES).expand(len(clips), -1),
        coarse=torch.cat(coarse),
        scene=torch.tensor(rows),
        where=states[..., :4],
        colour=states[..., 4:],
        banded=torch.tensor(banded, dtype=torch.int64),
        bands=torch.tensor([clips[index].band for index in banded]).view(-1, 3),
        strips=torch.cat(strips) if strips else torch.zeros(0, 3, 7, 14),
    )


def paint(plan: Sketch, side: int = SIDE) -> Tensor:
    """Paint a sketch where it is: (B, F, 3, side, side) float32 from 0 to 1."""
    scenes = F.interpolate(plan.coarse, (side, side), mode="bicubic").clamp(0, 1)
    pictures = _with_bands(scenes[plan.scene], plan)
    pictures = pictures + daylight(plan.time).to(pictures)[..., None, None]
    for where, colour in zip(plan.where, plan.colour, strict=True):
        pictures = torch.lerp(pictures, colour[..., None, None].expand_as(pictures), coverage(where, side))
    return pictures


def daylight(time: Tensor) -> Tensor:
    """What the light adds to backgrounds, from a bluish morning to a reddish evening: (B, F) -> (B, F, 3).

    As daylight, clocks and score boards do in real videos, it lets a single frame tell how late it is. HoliTom's
    tokens take consecutive positions, which no longer say so.
    """
    late = time / (FRAMES - 1) * 2 - 1
    return late[..., None] * torch.tensor([_LIGHT, 0.0, -_LIGHT], device=time.device)


def coverage(where: Tensor, side: int) -> Tensor:
    """How much of every pixel one layer's things cover: (B, F, 4) shape, x, y, radius -> (B, F, 1, side, side)."""
    shape, x, y, radius = where.flatten(0, 1).unbind(-1)
    pixels = (torch.arange(side, device=where.device) + 0.5) / side
    across = ((pixels - x[:, None]) / radius[:, None])[:, None, :].expand(-1, side, -1)
    down = ((pixels - y[:, None]) / radius[:, None])[:, :, None].expand(-1, -1, side)
    masks = stencils().to(where.device)[shape.long().clamp_min(0)]
    covered = F.grid_sample(masks, torch.stack((across, down), -1), align_corners=False)
    covered = covered * (shape >= 0)[:, None, None, None]
    return covered.view(*where.shape[:2], 1, side, side)


def to_frames(pictures: Tensor, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Pictures from 0 to 1 as a camera would store them: uint8, with sensor noise of this standard deviation."""
    if noise:
        generator = torch.Generator(pictures.device).manual_seed(seed)
        pictures = pictures + noise * torch.randn(pictures.shape, generator=generator, device=pictures.device)
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=1)
def stencils() -> Tensor:
    """How much of each pixel a shape covers: (shapes, 1, 64, 64) float32, in the order of SHAPES."""
    fine = torch.linspace(-1, 1, _STENCIL * 4)
    y, x = torch.meshgrid(fine, fine, indexing="ij")
    radius, angle = (x.square() + y.square()).sqrt(), torch.atan2(x, -y)
    reach = 0.38 + 0.6 * (((angle * 5 / (2 * torch.pi)) % 1 - 0.5).abs() * 2) ** 2
    covered = {
        "circle": radius < 0.92,
        "square": (x.abs() < 0.8) & (y.abs() < 0.8),
        "triangle": (y < 0.8) & (y > -0.9) & (x.abs() < (y + 0.9) * 0.54),
        "star": radius < reach,
        "cross": (torch.minimum(x.abs(), y.abs()) < 0.3) & (torch.maximum(x.abs(), y.abs()) < 0.92),
        "ring": (radius < 0.95) & (radius > 0.55),
    }
    return torch.stack([F.avg_pool2d(covered[shape][None].float(), 4) for shape in SHAPES])


def _texture(count: int, generator: torch.Generator, wide: int = 7) -> Tensor:
    """Coarse muted noise (count, 3, 7, wide)."""
    grey = torch.rand(count, 1, 1, 1, generator=generator) * 0.3 + 0.35
    light = (torch.rand(count, 1, 7, wide, generator=generator) - 0.5) * 0.3
    tint = (torch.rand(count, 3, 7, wide, generator=generator) - 0.5) * 0.1
    return grey + light + tint


def _with_bands(pictures: Tensor, plan: Sketch) -> Tensor:
    """Let strips of the background move sideways."""
    if not len(plan.banded):
        return pictures
    frames, side, device = pictures.shape[1], pictures.shape[-1], pictures.device
    strip = F.interpolate(plan.strips, (side, 2 * side), mode="bicubic").clamp(0, 1)
    shift = (plan.bands[:, 2:] * plan.time[plan.banded] * side).round().long()  # (n, F)
    columns = (torch.arange(side, device=device) + shift[..., None]) % (2 * side)  # (n, F, side)
    moving = strip[:, None].expand(-1, frames, -1, -1, -1)
    moving = moving.gather(-1, columns[:, :, None, None].expand(-1, -1, 3, side, -1))
    height = (torch.arange(side, device=device) + 0.5) / side
    inside = (height >= plan.bands[:, :1]) & (height < plan.bands[:, 1:2])
    replaced = torch.where(inside[:, None, None, :, None], moving, pictures[plan.banded])
    return pictures.index_copy(0, plan.banded, replaced)


def _states(clip: Clip, layer: int) -> list[tuple[float, ...]]:
    """One thing in every frame: shape (-1 = absent), x, y, radius, red, green, blue."""
    absent = (-1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    if layer >= len(clip.things):
        return [absent] * FRAMES
    thing = clip.things[layer]
    shape = float(SHAPES.index(thing.shape))
    return [
        (shape, *thing.centre(frame), thing.radius, *RGB[thing.colour_at(frame)])
        if thing.enter <= frame < thing.leave
        else absent
        for frame in range(FRAMES)
    ]
