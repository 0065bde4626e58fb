"""Methods that merge tokens before the language model, against plain loops written from the papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from holitom_cli import methods
from holitom_cli.methods import Method
from holitom_cli.methods.prunevid import _contiguous
from holitom_cli.methods.tools.settings import spread
from holitom_cli.types import VideoFeatures, VisualTokens
from tests.algebra.test_merge import slow_blend, slow_peaks
from tests.methods.test_contract import Clip, features
from tests.methods.test_picking import cosine, even, rows_of, top

SHAPES = [
    Clip(1, 3, 8, torch.float32, 0.0),
    Clip(2, 4, 6, torch.float32, 1.0),
    Clip(7, 4, 9, torch.float32, 0.5),
    Clip(13, 5, 16, torch.bfloat16, 0.8),
    Clip(22, 6, 12, torch.float32, 0.7),
]
RATIOS = [1e-3, 0.1, 0.25, 0.5, 1.0]
Row = list[float]
Merged = tuple[list[Row], list[list[int]]]  # rows in reading order; the row that each original token went to
Slow = Callable[[VideoFeatures, float], Merged]


def mean(rows: list[Row]) -> Row:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def attention_of(video: VideoFeatures) -> list[list[float]]:
    assert video.attention is not None
    rows: list[list[float]] = video.attention.tolist()
    return rows


def slow_cut(rows: list[list[Row]], threshold: float = 0.9, least: int = 8) -> list[range]:
    means = [mean(frame) for frame in rows]
    alike = [cosine(means[f], means[f + 1]) for f in range(len(rows) - 1)]
    cuts = {f for f, value in enumerate(alike) if value < threshold}
    cuts |= set(sorted(range(len(alike)), key=lambda f: alike[f])[: least - 1])
    bounds = [0, *(f + 1 for f in sorted(cuts)), len(rows)]
    return [range(a, b) for a, b in pairwise(bounds)]


# --- VisionZip -------------------------------------------------------------------------------


def slow_visionzip(video: VideoFeatures, ratio: float) -> Merged:
    assert video.keys is not None
    rows, keys, patches = rows_of(video), video.keys.double().tolist(), video.tokens.shape[1]
    out: list[Row] = []
    source = [[-1] * patches for _ in rows]
    for f, frame in enumerate(rows):
        count = even(ratio, len(rows), patches)[f]
        dominant = top(attention_of(video)[f], round(count * 54 / 64))
        rest = [p for p in range(patches) if p not in dominant]
        contextual = count - len(dominant)
        targets = rest[:: max(1, len(rest) // contextual)][:contextual] if contextual else []
        for p in [*dominant, *targets]:
            source[f][p] = len(out)
            out.append(list(frame[p]))
        came: dict[int, list[Row]] = {}
        for p in rest:
            if targets and p not in targets:
                nearest = max(targets, key=lambda t: (cosine(keys[f][p], keys[f][t]), -t))
                source[f][p] = source[f][nearest]
                came.setdefault(source[f][p], []).append(frame[p])
        for row, some in came.items():
            out[row] = [a + b for a, b in zip(out[row], mean(some), strict=True)]
    return out, source


# --- PruneVid --------------------------------------------------------------------------------


def slow_prunevid(video: VideoFeatures, ratio: float) -> Merged:
    rows, patches = rows_of(video), video.tokens.shape[1]
    frames = len(rows)
    _, labels = slow_peaks([mean(frame) for frame in rows], max(1, int(frames * 0.25)), 7)
    labels = slow_contiguous(labels)
    bounds = [0, *(f for f in range(1, frames) if labels[f] != labels[f - 1]), frames]
    out: list[Row] = []
    source = [[-1] * patches for _ in rows]
    for start, stop in pairwise(bounds):
        static = []
        for p in range(patches):
            pairs = [(a, b) for a in range(start, stop) for b in range(start, stop) if a != b]
            if pairs and sum(cosine(rows[a][p], rows[b][p]) for a, b in pairs) / len(pairs) > 0.8:
                static.append(p)
        groups = [(static, [mean([rows[f][p] for f in range(start, stop)]) for p in static], range(start, stop))]
        for f in range(start, stop):
            moving = [p for p in range(patches) if p not in static]
            groups.append((moving, [rows[f][p] for p in moving], range(f, f + 1)))
        for cells, values, covered in groups:
            if not cells:
                continue
            chosen, member_of = slow_peaks(values, max(1, int(ratio * len(cells))), 7)
            for member, centre in enumerate(member_of):
                for f in covered:
                    source[f][cells[member]] = len(out) + chosen.index(centre)
            out += [mean([values[i] for i, c in enumerate(member_of) if c == centre]) for centre in chosen]
    return out, source


def slow_contiguous(labels: list[int]) -> list[int]:
    """Step by step: mark what has to go, then fill every gap from the longer run beside it."""
    bounds = [0, *(f for f in range(1, len(labels)) if labels[f] != labels[f - 1]), len(labels)]
    runs = [list(range(a, b)) for a, b in pairwise(bounds)]
    refined = list(labels)
    for run in runs:
        longest = max(len(other) for other in runs if labels[other[0]] == labels[run[0]])
        if len(run) < longest or longest == 1:
            for f in run:
                refined[f] = -1
    while -1 in refined:
        fill_first_gap(refined)
    return refined


def fill_first_gap(labels: list[int]) -> None:
    start = labels.index(-1)
    end = next((f for f in range(start, len(labels)) if labels[f] != -1), len(labels))
    left = right = 0
    while start - 1 - left >= 0 and labels[start - 1 - left] == labels[start - 1]:
        left += 1
    while end + right < len(labels) and labels[end + right] == labels[end]:
        right += 1
    label = labels[start - 1] if left and left >= right else labels[end] if right else 0
    labels[start:end] = [label] * (end - start)


# --- FastVID ---------------------------------------------------------------------------------


def slow_fastvid(video: VideoFeatures, ratio: float) -> Merged:
    rows, patches = rows_of(video), video.tokens.shape[1]
    counts = even(ratio, len(rows), patches)
    salient = [int(0.6 * count) for count in counts]
    goes: dict[tuple[int, int], tuple[int, int]] = {}
    joined: dict[tuple[int, int], list[Row]] = {}
    for part in slow_cut(rows):
        chosen = {f: top(attention_of(video)[f], salient[f]) for f in part}
        frames = [f for f in part if (part[-1] - f) % 4 == 0]
        left = sum(counts[f] - salient[f] for f in part)
        each = fill(left, [patches - salient[f] for f in frames])
        anchors = []
        for f, wanted in zip(frames, each, strict=True):
            free = [p for p in range(patches) if p not in chosen[f]]
            centres, _ = slow_peaks([rows[f][p] for p in free], wanted, 4)
            anchors += [(f, free[c]) for c in centres]
        for f in part:
            for p in range(patches):
                if p in chosen[f] or (f, p) in anchors:
                    goes[f, p] = (f, p)
                    joined.setdefault((f, p), [])
                elif anchors:
                    goes[f, p] = max(anchors, key=lambda a: (cosine(rows[f][p], rows[a[0]][a[1]]), -a[0], -a[1]))
                    joined.setdefault(goes[f, p], []).append(rows[f][p])
    order = sorted(joined)
    out = []
    for f, p in order:
        weight = max(1 / (len(joined[f, p]) + 1), 0.6) if joined[f, p] else 1.0
        other = mean(joined[f, p]) if joined[f, p] else rows[f][p]
        out.append([weight * a + (1 - weight) * b for a, b in zip(rows[f][p], other, strict=True)])
    return out, [[order.index(goes[f, p]) if (f, p) in goes else -1 for p in range(patches)] for f in range(len(rows))]


def fill(total: int, rooms: list[int]) -> list[int]:
    """One after another, each time to the first of those that have least, where there is room."""
    counts = [0] * len(rooms)
    for _ in range(min(total, sum(rooms))):
        counts[min((i for i in range(len(rooms)) if counts[i] < rooms[i]), key=lambda i: (counts[i], i))] += 1
    return counts


# --- FlashVID --------------------------------------------------------------------------------


def slow_flashvid(video: VideoFeatures, ratio: float) -> Merged:
    rows, patches = rows_of(video), video.tokens.shape[1]
    total = len(rows) * patches
    budgets = spread(min(max(1, round(1.25 * ratio * total)), total), len(rows))
    wanted = [math.ceil(0.7 * budget) for budget in budgets]
    goes: dict[tuple[int, int], tuple[int, int]] = {}
    groups: dict[tuple[int, int], list[Row]] = {}  # averages in each cluster
    for part in slow_cut(rows):
        taken = {f: slow_greedy(rows, attention_of(video), f, part, wanted[f]) for f in part}
        room = sum(budgets[f] - wanted[f] for f in part)
        link, roots = slow_links(rows, part, taken, room)
        for f in part:
            for p in taken[f]:
                goes[f, p], groups[f, p] = (f, p), [rows[f][p]]
        shares = slow_shares(room, [sum(root[0] == f for root in roots) for f in part])
        for f, share in zip(part, shares, strict=True):
            mine = [root for root in roots if root[0] == f]
            members = {root: [place for place in link if link[place] == root] for root in mine}
            averages = [mean([rows[a][b] for a, b in members[root]]) for root in mine]
            chosen, member_of = slow_peaks(averages, share, 7)
            for number, root in enumerate(mine):
                if chosen:
                    centre = mine[member_of[number]]
                    groups.setdefault(centre, []).append(averages[number])
                    goes.update(dict.fromkeys(members[root], centre))
    order = sorted(groups)
    source = [[order.index(goes[f, p]) if (f, p) in goes else -1 for p in range(patches)] for f in range(len(rows))]
    return [mean(groups[place]) for place in order], source


def slow_greedy(rows: list[list[Row]], attention: list[list[float]], f: int, part: range, count: int) -> list[int]:
    frame, every = rows[f], range(len(rows[f]))
    centres = [mean(rows[g]) for g in part]
    weight = [
        attention[f][p] * sum(sum(a * b for a, b in zip(frame[p], c, strict=True)) for c in centres) / len(centres)
        for p in every
    ]

    def reach(q: int, p: int) -> float:
        return 0.0 if p == q else (1 - cosine(frame[q], frame[p])) * weight[p]

    taken: list[int] = []
    for _ in range(count):
        left = [p for p in every if p not in taken]
        if taken:
            score = {p: min(reach(q, p) for q in taken) for p in left}
        else:
            score = {p: sorted(reach(q, p) for q in every)[: min(2, len(frame))][-1] for p in left}
        taken.append(max(left, key=lambda p: (score[p], -p)))
    return sorted(taken)


def slow_links(
    rows: list[list[Row]], part: range, taken: dict[int, list[int]], least: int
) -> tuple[dict[tuple[int, int], tuple[int, int]], list[tuple[int, int]]]:
    """The root of every token that was not taken, and the roots."""
    free = [(f, p) for f in part for p in range(len(rows[0])) if p not in taken[f]]
    offers = []
    for f, p in free:
        before = [q for g, q in free if g == f - 1]
        if before:
            best = max(before, key=lambda q: (cosine(rows[f][p], rows[f - 1][q]), -q))
            likeness = cosine(rows[f][p], rows[f - 1][best])
            if likeness > 0.8:
                offers.append((-likeness, (f, p), (f - 1, best)))
    step = {place: before for _, place, before in sorted(offers)[: max(0, len(free) - least)]}
    link = {}
    for place in free:
        root = place
        while root in step:
            root = step[root]
        link[place] = root
    return link, [place for place in free if place not in step]


def slow_shares(total: int, sizes: list[int]) -> list[int]:
    """In proportion to the sizes, whole numbers: rounded down, the largest remainders up."""
    total = min(total, sum(sizes))
    ideal = [total * size / max(1, sum(sizes)) for size in sizes]
    counts = [math.floor(value) for value in ideal]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - ideal[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


# --- all of them -----------------------------------------------------------------------------

SLOW: dict[str, Slow] = {
    "visionzip": slow_visionzip,
    "prunevid": slow_prunevid,
    "fastvid": slow_fastvid,
    "flashvid": slow_flashvid,
}


def assert_like_the_loops(visual: VisualTokens, video: VideoFeatures, expected: Merged) -> None:
    rows, source = expected
    assert visual.source.tolist() == source
    near = 2e-6 if video.tokens.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(
        visual.embeds.float(), torch.tensor(rows).reshape(len(rows), video.tokens.shape[2]), atol=1e-5, rtol=near
    )


def made(name: str, ratio: float) -> Method:
    settings: dict[str, Any] = {"cluster_ratio" if name == "prunevid" else "retain_ratio": ratio}
    return methods.get(name, **settings)


@pytest.mark.parametrize("name", sorted(SLOW))
@pytest.mark.parametrize("clip", SHAPES, ids=str)
def test_it_is_what_the_loops_make(name: str, clip: Clip) -> None:
    video = features(clip, seed=5)
    for ratio in RATIOS:
        method = made(name, ratio)
        visual = method.compress(video)
        assert_like_the_loops(visual, video, SLOW[name](video, ratio))
        assert len(visual) <= method.most_tokens(clip.frames, clip.grid**2)


@pytest.mark.parametrize("name", sorted(SLOW))
def test_control_the_loops_see_another_clip_and_another_share(name: str) -> None:
    video, other = features(SHAPES[4], seed=5), features(SHAPES[4], seed=6)
    visual = made(name, 0.25).compress(video)
    for wrong in (SLOW[name](other, 0.25), SLOW[name](video, 0.3)):
        with pytest.raises(AssertionError):
            assert_like_the_loops(visual, video, wrong)


@pytest.mark.parametrize(("name", "factor"), [("visionzip", 1), ("prunevid", 1), ("fastvid", 1), ("flashvid", 1.25)])
@pytest.mark.parametrize("tokens", [44, 97, 200])
def test_a_number_of_tokens_is_met_exactly(name: str, factor: float, tokens: int) -> None:
    method = methods.at_budget(name, f"{tokens}t")
    assert len(method.compress(features(SHAPES[4]))) == round(factor * tokens) == method.most_tokens(22, 36)


@pytest.mark.parametrize(
    ("labels", "refined"),
    [
        ([1, 1, 2, 1, 1, 1], [1, 1, 1, 1, 1, 1]),
        ([1, 1, 2, 2, 1, 1, 1], [2, 2, 2, 2, 1, 1, 1]),
        ([1, 2, 3], [0, 0, 0]),
        ([3, 3, 5], [3, 3, 3]),
        ([5, 3, 3], [3, 3, 3]),
        ([4], [0]),
        ([1, 1, 2, 3, 3], [1, 1, 1, 3, 3]),
    ],
)
def test_scenes_are_contiguous(labels: list[int], refined: list[int]) -> None:
    assert _contiguous(labels) == refined == slow_contiguous(labels)


def test_scenes_of_random_labels() -> None:
    stream = torch.Generator().manual_seed(0)
    for trial in range(300):
        labels = torch.randint(0, 1 + trial % 5, (1 + trial % 23,), generator=stream).tolist()
        assert _contiguous(labels) == slow_contiguous(labels)


def test_blend_is_not_what_clusters_are() -> None:
    """PruneVid's and FlashVID's clusters are plain means, HoliTom's are blends: the loops tell them apart."""
    rows = [[0.0, 1.0], [1.0, 1.0], [2.0, 4.0]]
    assert slow_blend(rows, 0, [0, 0, 0], 0.6) != mean(rows)
