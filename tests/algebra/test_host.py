"""What is chosen on the host, and what is taken to a device at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from holitom_cli.algebra.host import highest, moved
from holitom_cli.algebra.merge import Wanted, density_peaks, member_means, merge_by_peaks, segment_sums, top_mask

CPU = torch.device("cpu")


@pytest.mark.parametrize("columns", [1, 4, 33])
def test_highest_is_top_mask(columns: int) -> None:
    stream = torch.Generator().manual_seed(columns)
    scores = torch.randint(-2, 3, (columns + 1, columns), generator=stream) / 2  # many are equal
    count = torch.arange(columns + 1)
    found = highest(scores.numpy(), np.ones(scores.shape, dtype=bool), count.numpy())
    assert found.tolist() == top_mask(scores, count).flatten().nonzero()[:, 0].tolist()


def test_highest_among_those_allowed() -> None:
    scores = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0]], np.float32)
    allowed = np.array([[False, True, True], [True, True, True]])
    assert highest(scores, allowed, np.array([1, 2])).tolist() == [2, 4, 5]


def test_as_many_are_highest_among_what_is_no_number() -> None:
    scores = np.array([[np.nan, 1.0, np.nan], [np.nan, np.nan, np.nan]], np.float32)
    assert highest(scores, np.ones_like(scores, dtype=bool), np.array([2, 1])).tolist() == [0, 1, 3]


def test_moved_tensors_are_what_they_were() -> None:
    assert moved([np.arange(1)[::-1]], CPU)[0].tolist() == [0]
    parts = [torch.tensor([True, False, True]), torch.arange(5), torch.randn(2, 3), torch.empty(0, 4)]
    for found, part in zip(moved([part.numpy() for part in parts], CPU), parts, strict=True):
        assert found.dtype == part.dtype
        assert torch.equal(found, part)


def test_segment_sums_are_sums() -> None:
    values = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([part.sum(0) for part in values.split([2, 4, 1])])
    torch.testing.assert_close(segment_sums(values, torch.tensor([2, 4, 1])), expected)
    assert not torch.allclose(segment_sums(values, torch.tensor([3, 3, 1])), expected)


def test_plain_means_of_clusters_and_groups_without_any() -> None:
    stream = torch.Generator().manual_seed(1)
    tokens, valid = torch.randn(3, 6, 4, generator=stream), torch.rand(3, 6, generator=stream) < 0.8
    valid[2] = False
    centres = np.array([2, 0, 0])
    wanted = Wanted.arrays(valid.numpy(), centres, np.array([0, 2, 2]), 2, 7)
    merged = merge_by_peaks(tokens, Wanted(*moved(wanted, CPU)))
    clusters = density_peaks(tokens, valid, torch.from_numpy(centres), 7)
    assert merged.cell[0].tolist() == clusters.centre[0].nonzero()[:, 0].tolist()
    number = clusters.centre[0].cumsum(0) - 1
    assert merged.goes_to[0][valid[0]].tolist() == number[clusters.member_of[0]][valid[0]].tolist()
    assert (merged.goes_to[1][valid[1]] == -1).all()
    row = torch.where(valid[0], merged.goes_to[0], -1)
    torch.testing.assert_close(merged.blended[0], member_means(tokens[0], row, 2))
    own = Wanted.arrays(valid.numpy(), centres, np.array([0, 2, 2]), 2, 7, 0.9, each=np.array([3, 1, 1]))
    weighted = merge_by_peaks(tokens, Wanted(*moved(own, CPU)))
    assert not torch.allclose(weighted.blended[0], merged.blended[0])
    assert (weighted.account[1][0] == 3 * merged.account[1][0]).all()
