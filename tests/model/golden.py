"""Reference arrays: which there are, and how to read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch


class Golden(NamedTuple):
    """One case of the reference."""

    meta: dict[str, Any]
    arrays: dict[str, Any]  # numpy arrays by name

    def tensor(self, name: str) -> torch.Tensor:
        """An array as a tensor; float16 is stored exactly and read as float32."""
        array = torch.from_numpy(np.ascontiguousarray(self.arrays[name]))
        return array.float() if array.dtype == torch.float16 else array


def read_golden(path: Path) -> Golden:
    with np.load(path) as stored:
        arrays = dict(stored)
    return Golden(json.loads(str(arrays.pop("meta_json"))), arrays)


def golden_paths(config: pytest.Config, pattern: str) -> list[Path]:
    """Cases below --golden; that there is none is an error, not a reason to skip."""
    root: Path = config.getoption("--golden")
    found = sorted(root.resolve().glob(pattern))
    if not found:
        raise pytest.UsageError(f"{root} holds no {pattern}")
    return found


def differs(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Whether a comparison with this tolerance would fail."""
    return actual.shape != expected.shape or float((actual - expected).abs().max()) > tolerance
