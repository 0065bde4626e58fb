"""Uniform sampling and the warning about wide gaps."""

from __future__ import annotations

import numpy as np
import pytest

from holitom_cli.video.sampling import spacing_warning, uniform_indices


@pytest.mark.parametrize("total", [1, 2, 3, 31, 32, 33, 100, 1323, 86_399])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 16, 31, 32, 33, 64, 167])
def test_indices_are_linspace(total: int, count: int) -> None:
    indices = uniform_indices(total, count)
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(indices, np.linspace(0, total - 1, min(count, total), dtype=int))
    assert len(np.unique(indices)) == len(indices)
    if len(indices) > 1:
        assert indices[0] == 0
        assert indices[-1] == total - 1


def test_rounding_instead_of_flooring_would_be_noticed() -> None:
    rounded = np.linspace(0, 99, 32).round().astype(int)
    assert not np.array_equal(uniform_indices(100, 32), rounded)


def test_spacing_names_the_widest_gap() -> None:
    assert spacing_warning(np.array([0.0, 2.0, 20.8])) == (
        "Frames are 18.8 s apart, so short events may be missed; raise --num-frames."
    )


@pytest.mark.parametrize("seconds", [[], [0.0], [0.0, 10.0, 20.0]])
def test_no_spacing_warning(seconds: list[float]) -> None:
    assert spacing_warning(np.array(seconds, dtype=np.float64)) is None
