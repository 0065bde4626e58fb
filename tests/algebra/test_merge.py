"""Merging against plain loops in float64, written from the specification."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from holitom_cli.algebra import merge
from holitom_cli.algebra.host import moved
from holitom_cli.algebra.merge import (
    Merged,
    Wanted,
    density_peaks,
    fold,
    member_means,
    merge_by_peaks,
    top_mask,
)

Rows = list[list[float]]


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def distance(a: list[float], b: list[float]) -> float:
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))


def slow_peaks(rows: Rows, centres: int, neighbours: int) -> tuple[list[int], list[int]]:
    """Centres, and for each row the centre that it belongs to (nothing where there is no centre)."""
    every = range(len(rows))
    apart = [[distance(rows[i], rows[j]) for j in every] for i in every]
    k = min(neighbours, centres)
    if k == 0:
        return [], []
    # The logarithm of the density; the specification's exp underflows for far points.
    density = [-sum(d**2 for d in sorted(apart[i])[:k]) / k for i in every]
    farthest = max(max(row) for row in apart)
    delta = [min((apart[i][j] for j in every if density[j] > density[i]), default=farthest) for i in every]
    score = [math.log(d) + rho if d > 0 else -math.inf for d, rho in zip(delta, density, strict=True)]
    ranked = sorted(every, key=lambda i: -score[i])  # stable: equal scores in order of position
    chosen = sorted(ranked[:centres])
    member_of = [i if i in chosen else min(chosen, key=lambda c: apart[i][c]) for i in every]
    return chosen, member_of


def slow_blend(rows: Rows, centre: int, member_of: list[int], own_weight: float) -> list[float]:
    members = [i for i, c in enumerate(member_of) if c == centre and i != centre]
    if not members:
        return rows[centre]
    return [
        own_weight * rows[centre][d] + (1 - own_weight) * sum(rows[i][d] for i in members) / len(members)
        for d in range(len(rows[centre]))
    ]


def merged(tokens: Tensor, valid: Tensor, counts: list[int], neighbours: int = 7, beta: float = 0.6) -> Merged:
    """Groups in rows that follow one another."""
    centres = np.array(counts)
    first, rows = centres.cumsum() - centres, int(centres.sum())
    planned = Wanted.arrays(valid.numpy(), centres, first, rows, neighbours, beta, each=1 + np.arange(len(counts)))
    return merge_by_peaks(tokens, Wanted(*moved(planned, tokens.device)))


def assert_like_the_loops(tokens: Tensor, valid: Tensor, counts: list[int], neighbours: int, beta: float) -> None:
    clusters = density_peaks(tokens, valid, torch.tensor(counts), neighbours)
    busy = [g for g, count in enumerate(counts) if count]
    found = merged(tokens[busy], valid[busy], [counts[g] for g in busy], neighbours, beta)
    row = 0
    for g, count in enumerate(counts):
        columns = valid[g].nonzero()[:, 0].tolist()
        rows = tokens[g, columns].double().tolist()
        chosen, member_of = slow_peaks(rows, count, neighbours)
        places = [columns[c] for c in chosen]
        assert clusters.centre[g].nonzero()[:, 0].tolist() == places
        if not count:
            continue
        at = busy.index(g)
        assert clusters.member_of[g, columns].tolist() == [columns[c] for c in member_of]
        assert found.cell[at, :count].tolist() == places
        assert found.goes_to[at, columns].tolist() == [row + chosen.index(c) for c in member_of]
        assert found.account[1][at, :count].tolist() == [(at + 1) * member_of.count(c) for c in chosen]
        expected = torch.tensor([slow_blend(rows, c, member_of, beta) for c in chosen])
        torch.testing.assert_close(found.blended[at, :count], expected, atol=2e-6, rtol=2e-6)
        row += count


@pytest.mark.parametrize("scale", [0.3, 1.0, 12.0])  # at 12 the densities underflow in float32
@pytest.mark.parametrize("neighbours", [1, 2, 7])
@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
def test_groups_of_all_sizes(scale: float, neighbours: int, beta: float) -> None:
    tokens = noise(5, 16, 5, seed=1, scale=scale)
    valid = torch.zeros(5, 16, dtype=torch.bool)
    sizes = [0, 1, 5, 15, 16]
    for g, size in enumerate(sizes):
        valid[g, torch.randperm(16, generator=torch.Generator().manual_seed(g))[:size]] = True
    for counts in ([0, 1, 2, 4, 9], [0, 1, 5, 15, 16], [0, 0, 1, 0, 1]):
        assert_like_the_loops(tokens, valid, counts, neighbours, beta)


def test_one_centre_is_the_first_of_equals() -> None:
    clusters = density_peaks(noise(1, 9, 4), torch.ones(1, 9, dtype=torch.bool), torch.tensor([1]), 7)
    assert clusters.centre.nonzero().tolist() == [[0, 0]]  # k = 1 makes every density and every delta equal
    assert clusters.member_of.tolist() == [[0] * 9]


def test_equal_tokens_go_to_the_lower_index() -> None:
    corner = torch.tensor([[0.0, 0.0], [0.0, 3.0], [3.0, 0.0], [3.0, 3.0]]).repeat(2, 1)[None]
    valid = torch.ones(1, 8, dtype=torch.bool)
    assert_like_the_loops(corner, valid, [4], 7, 0.6)
    same = density_peaks(torch.ones(1, 6, 3), valid[:, :6], torch.tensor([2]), 7)
    assert same.centre.nonzero()[:, 1].tolist() == [0, 1]
    assert same.member_of.tolist() == [[0, 1, 0, 0, 0, 0]]


def test_a_shifted_cloud_gives_the_same_clusters() -> None:
    """Distances survive a mean far from zero, where the difference of squares would lose its digits."""
    tokens = noise(1, 30, 8)
    valid = torch.ones(1, 30, dtype=torch.bool)
    here = density_peaks(tokens, valid, torch.tensor([6]), 7)
    there = density_peaks(tokens + 512, valid, torch.tensor([6]), 7)
    assert torch.equal(here.centre, there.centre)
    assert torch.equal(here.member_of, there.member_of)
    naive = torch.cdist(tokens + 512, tokens + 512, compute_mode="use_mm_for_euclid_dist")
    assert (naive - torch.cdist(tokens, tokens)).abs().max() > 0.1  # control: what is avoided


def test_tokens_left_out_change_nothing() -> None:
    tokens, valid = noise(1, 20, 4), torch.ones(1, 20, dtype=torch.bool)
    valid[0, ::3] = False
    before = density_peaks(tokens, valid, torch.tensor([4]), 7)
    moved = torch.where(valid[:, :, None], tokens, 1e6)
    after = density_peaks(moved, valid, torch.tensor([4]), 7)
    assert torch.equal(before.centre, after.centre)
    assert not (before.centre & ~valid).any()
    torch.testing.assert_close(merged(tokens, valid, [4]), merged(moved, valid, [4]))


def test_control_another_weight_and_other_neighbours_are_seen() -> None:
    tokens, valid = noise(1, 30, 5), torch.ones(1, 30, dtype=torch.bool)
    seven, two = (density_peaks(tokens, valid, torch.tensor([9]), k) for k in (7, 2))
    assert not torch.equal(seven.centre, two.centre)
    heavy, light = (merged(tokens, valid, [9], beta=beta).blended for beta in (0.6, 0.5))
    assert (heavy - light).abs().max() > 1e-2


def test_a_centre_without_members_is_unchanged() -> None:
    tokens = noise(1, 6, 4)
    found = merged(tokens, torch.ones(1, 6, dtype=torch.bool), [4])
    alone = found.account[1][0] == 1
    assert 0 < alone.sum() < 4
    assert torch.equal(found.blended[0, alone], tokens[0, found.cell[0, alone]])
    assert not torch.isclose(found.blended[0, ~alone], tokens[0, found.cell[0, ~alone]]).any()


@pytest.mark.parametrize("columns", [1, 2, 50])
def test_top_mask_prefers_the_lower_column(columns: int) -> None:
    scores = torch.randint(3, (columns + 1, columns), generator=torch.Generator().manual_seed(0)).float()
    mask = top_mask(scores, torch.arange(columns + 1))
    for count in range(columns + 1):
        ranked = sorted(range(columns), key=lambda c: (-float(scores[count, c]), c))
        assert mask[count].nonzero()[:, 0].tolist() == sorted(ranked[:count])


def slow_fold(states: Tensor, kept: list[int]) -> tuple[Tensor, list[int]]:
    """Halve one after another, in float64; similarities are taken before."""
    exact = states.double()
    similarity = torch.nn.functional.cosine_similarity(exact[:, None], exact[None], dim=-1)
    folded = exact.clone()
    into = list(range(len(states)))
    for row in range(len(states)):
        if row not in kept:
            into[row] = max(kept, key=lambda k, row=row: float(similarity[row, k]))  # type: ignore[misc]
            folded[into[row]] = (folded[into[row]] + exact[row]) / 2
    return folded[kept], into


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "keep"), [(1, 1), (2, 1), (9, 1), (40, 13), (40, 40), (200, 3)])
@pytest.mark.parametrize("at_once", [2048, 7])
def test_fold_is_halving_one_after_another(
    rows: int, keep: int, dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "_FOLDED_AT_ONCE", at_once)
    for seed in range(3):
        states = (noise(rows, 8, seed=seed) + 0.2).to(dtype)
        kept = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))[:keep].sort().values
        folded, into = fold(states, kept)
        expected, expected_into = slow_fold(states, kept.tolist())
        assert into.tolist() == expected_into
        assert folded.dtype == dtype
        near = 1e-6 if dtype == torch.float32 else 2**-8  # half a unit in the last place of bfloat16
        torch.testing.assert_close(folded.double(), expected, atol=1e-5, rtol=near)


def test_fold_sends_equals_to_the_lower_row() -> None:
    states = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 2.0], [1.0, 0.0]])
    folded, into = fold(states, torch.tensor([1, 2]))
    assert into.tolist() == [1, 1, 2, 1, 1]
    assert folded.tolist() == [[0.625, 0.625], [0.0, 1.0]]


def test_kept_rows_that_are_equal_stay_apart_also_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    states = noise(3, 6).repeat(7, 1)
    kept = torch.arange(0, 21, 2)
    whole = fold(states, kept)
    monkeypatch.setattr(merge, "_FOLDED_AT_ONCE", 4)
    folded, into = fold(states, kept)
    expected, expected_into = slow_fold(states, kept.tolist())
    torch.testing.assert_close(folded.double(), expected, atol=1e-5, rtol=1e-6)
    assert into[kept].tolist() == kept.tolist()
    assert into.tolist() == whole[1].tolist() == expected_into


def test_control_the_mean_of_a_group_is_not_a_fold() -> None:
    states = noise(12, 6)
    folded, into = fold(states, torch.tensor([0, 5]))
    mean = torch.stack([states[into == row].mean(0) for row in (0, 5)])
    assert (folded - mean).abs().max() > 0.05


def test_nothing_is_left_to_chance() -> None:
    tokens, valid = noise(3, 40, 6), torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) < 0.8
    runs = [density_peaks(tokens, valid, torch.tensor([5, 6, 7]), 7) for _ in range(3)]
    assert all(torch.equal(run.centre, runs[0].centre) for run in runs)
    assert all(torch.equal(run.member_of, runs[0].member_of) for run in runs)


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (7, 3), (200, 40), (3, 9)])
def test_member_means_are_means(tokens: int, rows: int) -> None:
    states = noise(tokens, 5, seed=tokens)
    row = torch.randint(-1, rows, (tokens,), generator=torch.Generator().manual_seed(tokens))
    means = member_means(states, row, rows)
    assert means.dtype == torch.float32
    for number in range(rows):
        members = [states[i].double() for i in range(tokens) if row[i] == number]
        expected = sum(members, torch.zeros(5, dtype=torch.float64)) / max(1, len(members))
        torch.testing.assert_close(means[number].double(), expected, atol=1e-6, rtol=1e-6)
    assert not torch.equal(means, member_means(states, torch.full_like(row, -1), rows)) or bool((row < 0).all())


def test_the_mean_of_one_is_itself() -> None:
    states = noise(50, 9).bfloat16()
    assert torch.equal(member_means(states, torch.arange(50).flip(0), 50).bfloat16(), states.flip(0))
