"""What the small model is taught about every visual token, besides answers: labels that follow from the drawing.

A thing's label stands in the cells that it covers; everywhere else it is IGNORED. B clips of F frames, K layers of
things, P cells (pooled patches, one visual token each) a frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.quality.draw import MOST_THINGS, RGB, SIDE, Sketch, coverage
from holitom_cli.quality.world import COLOURS, DIRECTIONS, FAST, FRAMES, SLOW

IGNORED = -100
SAME_COLOUR = len(COLOURS)  # what a thing that has not turned was before
CLASSES = {  # of the labels about time
    "direction": len(DIRECTIONS),
    "speed": 3,  # still, slow, fast
    "rushed": 2,  # has become faster: no, yes
    "before": len(COLOURS) + 1,  # its first colour, or SAME_COLOUR
    "seen": MOST_THINGS + 1,  # things seen in the clip so far
}
_LEAST_SHARE = 0.06  # of a cell that a thing covers to count as there
_BASELINE = 2  # frames over which motion is measured
_STILL = SLOW / 2  # side lengths a frame; below it nothing moves


class Looks(NamedTuple):
    """Labels of the cells of single frames."""

    there: Tensor  # (B, F, P) int64, 1 = a thing covers some of the cell
    shape: Tensor  # (B, F, P) int64
    colour: Tensor  # (B, F, P) int64
    offset: Tensor  # (B, F, P, 2) from the cell's centre to the thing's, in cells; 0 where there is none
    late: Tensor  # (B, F, P) how much of the clip is over, from 0 to 1


def owners(plan: Sketch, grid: int) -> Tensor:
    """The layer of the thing that covers most of each cell: (B, F, grid**2) int64, -1 = none."""
    covered = [F.adaptive_avg_pool2d(coverage(where, SIDE // 2)[:, :, 0], grid).flatten(2) for where in plan.where]
    share, owner = torch.stack(covered).max(0)
    return owner.masked_fill(share < _LEAST_SHARE, -1)


def looks(plan: Sketch, grid: int) -> Looks:
    """What is in each cell of each frame."""
    owner = owners(plan, grid)
    centre = plan.where[..., 1:3].permute(1, 2, 0, 3)  # (B, F, K, 2)
    mine = centre.gather(2, owner.clamp_min(0)[..., None].expand(-1, -1, -1, 2))
    steps = (torch.arange(grid, device=owner.device) + 0.5) / grid
    cells = torch.stack((steps.repeat(grid), steps.repeat_interleave(grid)), -1)  # (P, 2)
    offset = (mine - cells) * grid * (owner >= 0)[..., None]
    late = (plan.time / (FRAMES - 1))[..., None].expand(*owner.shape)
    return Looks((owner >= 0).long(), _at(plan.where[..., 0].long(), owner), _at(_colours(plan), owner), offset, late)


def events(plan: Sketch, grid: int) -> dict[str, Tensor]:
    """What can be known at each cell of a clip's frames from that frame and those before: (B, F, P) int64 each."""
    owner = owners(plan, grid)
    there = plan.where[..., 0] >= 0  # (K, B, F)
    direction, speed = _motion(plan, there)
    slow_before = (speed == 1).long().cummax(-1).values
    colours = _colours(plan)
    first = there.long().argmax(-1, keepdim=True)  # the first of equal values
    before = colours.gather(-1, first).expand_as(colours)
    seen = there.long().cummax(-1).values.sum(0)  # (B, F)
    facts = {
        "direction": direction,
        "speed": speed,
        "rushed": torch.where(speed == IGNORED, IGNORED, (speed == 2).long() * slow_before),
        "before": torch.where(before == colours, SAME_COLOUR, before),
        "seen": seen.expand_as(colours),
    }
    return {name: _at(fact, owner) for name, fact in facts.items()}


def _at(facts: Tensor, owner: Tensor) -> Tensor:
    """Each cell's owner's fact: (K, B, F), (B, F, P) -> (B, F, P)."""
    return facts.permute(1, 2, 0).gather(-1, owner.clamp_min(0)).masked_fill(owner < 0, IGNORED)


def _colours(plan: Sketch) -> Tensor:
    """Number of each thing's colour in each frame, (K, B, F)."""
    table = torch.tensor([RGB[name] for name in COLOURS], device=plan.colour.device)
    return (plan.colour[..., None, :] - table).abs().sum(-1).argmin(-1)


def _motion(plan: Sketch, there: Tensor) -> tuple[Tensor, Tensor]:
    """Directions and speeds over the last frames, (K, B, F) each; IGNORED until a thing has been there for some."""
    way = plan.where[..., 1:3]
    moved = (way - way.roll(_BASELINE, 2)) / _BASELINE
    known = there & there.roll(_BASELINE, 2)
    known[..., :_BASELINE] = False
    speed = moved.abs().amax(-1)
    along_x = moved[..., 0].abs() > moved[..., 1].abs()
    direction = torch.where(along_x, (moved[..., 0] > 0).long(), 2 + (moved[..., 1] > 0).long())
    direction = direction.masked_fill(speed < _STILL, list(DIRECTIONS).index("still"))
    pace = (speed > _STILL).long() + (speed > (SLOW + FAST) / 2).long()
    return direction.masked_fill(~known, IGNORED), pace.masked_fill(~known, IGNORED)
