"""Methods that pick tokens before the language model, against plain loops written from the papers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from holitom_cli import methods
from holitom_cli.errors import MethodError
from holitom_cli.methods import Method
from holitom_cli.methods.tools.settings import spread
from holitom_cli.types import VideoFeatures, VisualTokens
from tests.methods.test_contract import Clip, features

SHAPES = [
    Clip(1, 3, 8, torch.float32, 0.0),
    Clip(2, 4, 6, torch.float32, 1.0),
    Clip(7, 4, 9, torch.float32, 0.5),
    Clip(13, 5, 16, torch.bfloat16, 0.8),
    Clip(22, 6, 12, torch.float32, 0.7),
]
RATIOS = [1e-3, 0.1, 0.25, 0.33, 0.8, 1.0]
Rows = list[list[list[float]]]


def rows_of(video: VideoFeatures) -> Rows:
    rows: Rows = video.tokens.double().tolist()
    return rows


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def top(scores: list[float], count: int) -> list[int]:
    """The places with the highest scores, in order; equal ones from the left."""
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def picked(visual: VisualTokens) -> list[int]:
    return (visual.frame * visual.source.shape[1] + visual.cell).tolist()


def slow_evs(rows: Rows, ratio: float) -> list[int]:
    patches = len(rows[0])
    scores = [math.inf] * patches
    scores += [1 - cosine(rows[f][p], rows[f - 1][p]) for f in range(1, len(rows)) for p in range(patches)]
    return top(scores, max(patches, math.floor(ratio * len(rows) * patches)))


def slow_vidcom2(rows: Rows, ratio: float) -> list[int]:
    frames, patches, width = len(rows), len(rows[0]), len(rows[0][0])
    every = [row for frame in rows for row in frame]
    spread = []
    for channel in range(width):
        mean = sum(row[channel] for row in every) / len(every)
        spread.append(sum((row[channel] - mean) ** 2 for row in every))
    calm = sorted(range(width), key=lambda c: spread[c])[: max(1, width // 2)]

    def unit(row: list[float]) -> list[float]:
        length = math.sqrt(sum(row[c] ** 2 for c in calm))
        return [row[c] / length for c in calm]

    units = [[unit(row) for row in frame] for frame in rows]

    def centre(some: list[list[float]]) -> list[float]:
        return [sum(column) / len(some) for column in zip(*some, strict=True)]

    def near(row: list[float], to: list[float]) -> float:
        apart = sum((x - y) ** 2 for x, y in zip(row, to, strict=True))
        return sum(math.exp(-apart / (2 * 2.0**power)) for power in (-3, -2, -1, 0, 1))

    clip = centre([row for frame in units for row in frame])
    to_clip = [[near(row, clip) for row in frame] for frame in units]
    unique = [-sum(frame) / patches for frame in to_clip]
    weights = [math.exp((value - max(unique)) / 0.01) for value in unique]
    total, kept = sum(weights), []
    counts = slow_counts(
        max(1, round(ratio * frames * patches)), [1 + w / total - 1 / frames for w in weights], patches
    )
    for f in range(frames):
        score = [-(to_clip[f][p] + near(units[f][p], centre(units[f]))) for p in range(patches)]
        kept += [f * patches + p for p in top(score, counts[f])]
    return kept


def slow_counts(total: int, shares: list[float], limit: int) -> list[int]:
    """Whole numbers in proportion to the shares; what is beyond the limit goes to the others."""
    full: list[int] = []
    while True:
        others = sum(share for f, share in enumerate(shares) if f not in full)
        ideal = [limit if f in full else (total - limit * len(full)) * s / others for f, s in enumerate(shares)]
        beyond = [f for f, value in enumerate(ideal) if value > limit]
        if not beyond:
            break
        full += beyond
    counts = [math.floor(value) for value in ideal]
    for f in sorted(range(len(shares)), key=lambda f: counts[f] - ideal[f])[: total - sum(counts)]:
        counts[f] += 1
    return counts


def even(ratio: float, frames: int, patches: int) -> list[int]:
    """The clip's number, spread over the frames."""
    return spread(max(1, round(ratio * frames * patches)), frames)


def slow_dycoke(rows: Rows, keep: float) -> list[int]:
    patches, kept = len(rows[0]), []
    for f in range(len(rows)):
        place = f % 4
        if place == 0:
            cells = list(range(patches))
        else:
            other = f - 2 if place == 2 else f - 1
            cells = top([-cosine(rows[f][p], rows[other][p]) for p in range(patches)], int(keep * patches))
        kept += [f * patches + p for p in cells]
    return kept


def slow_star(video: VideoFeatures, ratio: float) -> list[int]:
    assert video.attention is not None
    frames, patches, _ = video.tokens.shape
    counts, kept = even(ratio, frames, patches), []
    for f, attention in enumerate(video.attention.tolist()):
        kept += [f * patches + p for p in top(attention, counts[f])]
    return kept


def slow_todre(rows: Rows, ratio: float) -> list[int]:
    patches, kept = len(rows[0]), []
    counts = even(ratio, len(rows), patches)
    for f, frame in enumerate(rows):
        taken: list[int] = []
        for _ in range(counts[f]):
            against = taken or range(patches)
            left = [p for p in range(patches) if p not in taken]
            taken.append(max(left, key=lambda p: (sum(1 - cosine(frame[p], frame[q]) for q in against), -p)))
        kept += [f * patches + p for p in sorted(taken)]
    return kept


def slow(name: str, video: VideoFeatures, ratio: float) -> list[int]:
    rows = rows_of(video)
    if name == "star-like":
        return slow_star(video, ratio)
    return {"evs": slow_evs, "vidcom2": slow_vidcom2, "dycoke": slow_dycoke, "todre-like": slow_todre}[name](
        rows, ratio
    )


def made(name: str, ratio: float) -> Method:
    settings: dict[str, Any] = {"keep" if name == "dycoke" else "retain_ratio": ratio}
    return methods.get(name, **settings)


NAMES = ["dycoke", "evs", "star-like", "todre-like", "vidcom2"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clip", SHAPES, ids=str)
def test_it_picks_what_the_loops_pick(name: str, clip: Clip) -> None:
    video = features(clip, seed=5)
    for ratio in RATIOS:
        method = made(name, ratio)
        visual = method.compress(video)
        assert picked(visual) == slow(name, video, ratio)
        assert len(visual) <= method.most_tokens(clip.frames, clip.grid**2)
        assert torch.equal(visual.embeds, video.tokens.flatten(0, 1)[picked(visual)])


@pytest.mark.parametrize("name", NAMES)
def test_control_the_loops_see_another_clip(name: str) -> None:
    here, other = features(SHAPES[4], seed=3), features(SHAPES[4], seed=4)
    method = made(name, 0.3)
    assert picked(method.compress(here)) == slow(name, here, 0.3) != slow(name, other, 0.3)


@pytest.mark.parametrize("name", ["evs", "star-like", "todre-like", "vidcom2", "random", "uniform"])
@pytest.mark.parametrize("tokens", [40, 97, 790])
def test_a_number_of_tokens_is_met_exactly(name: str, tokens: int) -> None:
    method = methods.at_budget(name, f"{tokens}t")
    video = features(SHAPES[4])  # 22 x 36 = 792
    assert len(method.compress(video)) == tokens == method.most_tokens(22, 36)


@pytest.mark.parametrize("budget", ["25", "33", "60", "300t"])
def test_dycoke_meets_a_budget_exactly(budget: str) -> None:
    video, method = features(SHAPES[4]), methods.at_budget("dycoke", budget)
    wanted = int(budget[:-1]) if budget.endswith("t") else round(int(budget) / 100 * 792)
    assert len(method.compress(video)) == max(wanted, 6 * 36)  # every fourth frame is whole


def test_dycoke_at_its_floor_is_every_fourth_frame() -> None:
    video = features(Clip(32, 4, 8, torch.float32, 0.6), seed=2)
    left = {
        budget: methods.at_budget("dycoke", budget).compress(video).frame.unique().tolist() for budget in ("25", "30")
    }
    assert left["25"] == list(range(0, 32, 4))
    assert left["30"] == list(range(32))  # control: a little more, and every frame has a say


def test_dycoke_refuses_fewer_tokens_than_its_whole_frames_have() -> None:
    video = features(SHAPES[4])
    assert len(methods.at_budget("dycoke", "216t").compress(video)) == 216
    with pytest.raises(MethodError, match=r"DyCoke cannot keep 24\.0%"):
        methods.at_budget("dycoke", "190t").compress(video)


def test_evs_never_keeps_less_than_a_frame() -> None:
    visual = methods.get("evs", retain_ratio=0.01).compress(features(SHAPES[2]))
    assert picked(visual) == list(range(16))
