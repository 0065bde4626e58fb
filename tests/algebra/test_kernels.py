"""Triton's kernels for sums over a clip, in its interpreter on the CPU, against plain torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from holitom_cli import methods
from holitom_cli.algebra import kernels
from holitom_cli.algebra.segments import neighbour_similarity
from holitom_cli.types import VideoFeatures

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("there is a GPU, on which `python -m tests.gpu.compress` compares them", allow_module_level=True)


@pytest.fixture
def interpreted() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "runs_on", lambda _: True)
        yield patch


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plainly(interpreted: pytest.MonkeyPatch) -> None:
    interpreted.setattr(kernels, "runs_on", lambda _: False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 1, 16), (3, 4, 1500)])
def test_similarity_is_plain_torchs(
    interpreted: pytest.MonkeyPatch, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    tokens = drawn(*shape, dtype=dtype)
    tokens = tokens + tokens.roll(1, 0)
    tokens[-1, 0] = 0  # has no direction
    found = neighbour_similarity(tokens)
    plainly(interpreted)
    torch.testing.assert_close(found, neighbour_similarity(tokens), atol=1e-6, rtol=1e-6)
    if len(tokens) > 2:
        assert (found - neighbour_similarity(tokens.flip(0))).abs().max() > 1e-3  # control


def test_means_are_plain_torchs(interpreted: pytest.MonkeyPatch) -> None:
    tokens = drawn(9, 3, 700, dtype=torch.bfloat16)
    segments = [range(2), range(3, 8), range(8, 9)]
    bounds = torch.tensor([(part.start, part.stop) for part in segments])
    found = kernels.segment_means(tokens, segments, bounds)
    other = kernels.segment_means(tokens, segments, bounds + torch.tensor([[0, 1], [0, 1], [0, 0]]))
    plainly(interpreted)
    expected = kernels.segment_means(tokens, segments, bounds)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert (other - expected)[:2].abs().max() > 0.1  # control: one frame more


def test_the_same_tokens_are_chosen(interpreted: pytest.MonkeyPatch) -> None:
    tokens = drawn(1, 16, 40) + 0.4 * drawn(7, 16, 40, seed=1)
    tokens[4:] += drawn(1, 16, 40, seed=2)
    attention = torch.rand(7, 16, generator=torch.Generator().manual_seed(3))
    video = VideoFeatures(tokens.bfloat16(), attention, 4)
    found = methods.get("holitom", retain_ratio=0.2).compress(video)
    plainly(interpreted)
    expected = methods.get("holitom", retain_ratio=0.2).compress(video)
    assert torch.equal(found.source, expected.source)
    torch.testing.assert_close(found.embeds, expected.embeds, atol=1e-2, rtol=1e-2)
    assert len(found.segments) < 7
    assert not torch.equal(found.source, methods.get("holitom", retain_ratio=0.15).compress(video).source)  # control


COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from holitom_cli.algebra import triton_kernels as kernels

for name, types, constants in (
    ("neighbour_similarity", ["*bf16", "*fp32", "i32"], [3584, 1024]),
    ("segment_means", ["*bf16", "*i64", "*fp32", "i32"], [1024]),
):
    kernel = getattr(kernels, name)
    signature = dict(zip(kernel.arg_names, [*types, *["constexpr"] * len(constants)]))
    values = {(len(types) + index,): value for index, value in enumerate(constants)}
    source = ASTSource(kernel, signature, values)
    for capability in (80, 90):
        made = compile(source, target=GPUTarget("cuda", capability, 32))
        assert len(made.asm["cubin"]) > 1000
"""


def test_kernels_compile(tmp_path: Path) -> None:
    """No GPU is needed for it. The interpreter lets pass what the compiler does not, as annotations."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
