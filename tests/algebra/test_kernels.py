"""Triton's kernels for sums over a clip, in its interpreter on the CPU, against plain torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from holitom_cli import methods
from holitom_cli.algebra import kernels
from holitom_cli.algebra.segments import neighbour_similarity
from holitom_cli.methods import holitom
from holitom_cli.types import VideoFeatures
from tests.algebra.test_merge import merged
from tests.methods.test_contract import Clip, broken_promises, features
from tests.methods.test_holitom import MOVING

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("there is a GPU, on which `python -m tests.gpu.compress` compares them", allow_module_level=True)


@pytest.fixture
def interpreted() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("runs_on", "clusters_on"):
            patch.setattr(kernels, name, lambda _: True)
        yield patch


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plainly(interpreted: pytest.MonkeyPatch) -> None:
    for name in ("runs_on", "clusters_on"):
        interpreted.setattr(kernels, name, lambda _: False)


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
    bounds = np.array([(0, 2), (3, 8), (8, 9)])
    there = torch.from_numpy(bounds)
    found = kernels.segment_means(tokens, bounds, there)
    other = kernels.segment_means(tokens, bounds, there + torch.tensor([[0, 1], [0, 1], [0, 0]]))
    plainly(interpreted)
    expected = kernels.segment_means(tokens, bounds, there)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert (other - expected)[:2].abs().max() > 0.1  # control: one frame more


@pytest.mark.parametrize("neighbours", [1, 3, 7])
def test_clusters_are_plain_torchs(interpreted: pytest.MonkeyPatch, neighbours: int) -> None:
    tokens, valid = drawn(4, 21, 6), drawn(4, 21, seed=1) < 0.5
    tokens[1, 3:9] = tokens[1, 3]  # equals
    tokens[2] = 1
    valid[3] = True
    counts = [1, 9, 4, 21]
    found, other = merged(tokens, valid, counts, neighbours), merged(tokens.flip(1), valid, counts, neighbours)
    plainly(interpreted)
    expected = merged(tokens, valid, counts, neighbours)
    for g, count in enumerate(counts):
        assert torch.equal(found.goes_to[g, valid[g]], expected.goes_to[g, valid[g]])
        assert torch.equal(found.cell[g, :count], expected.cell[g, :count])
        assert torch.equal(found.account[1][g, :count], expected.account[1][g, :count])
        torch.testing.assert_close(found.blended[g, :count], expected.blended[g, :count], atol=1e-6, rtol=1e-6)
    assert not torch.equal(found.blended[1, :9], other.blended[1, :9])  # control


@pytest.mark.usefixtures("interpreted")
@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_tokens_that_are_no_numbers_stay_in_their_rows() -> None:
    tokens = drawn(2, 9, 6)
    tokens[0] = torch.nan
    found = merged(tokens, torch.ones(2, 9, dtype=torch.bool), [3, 3], 3)
    assert found.goes_to.min() == 0
    assert found.goes_to.max() == 5


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


CLIPS = [*MOVING, Clip(2, 1, 4, torch.float32, 1.0)]


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("retain_ratio", [1e-4, 0.1, 0.4, 1.0])
def test_what_is_kept_is_the_hosts(interpreted: pytest.MonkeyPatch, clip: Clip, retain_ratio: float) -> None:
    interpreted.setattr(kernels, "runs_on", lambda _: False)  # sums that differ in the last digit could cross tau
    video = features(clip, seed=5)
    assert video.attention is not None
    video.attention[::2] = video.attention[0, 0]  # equals
    wishes: list[dict[str, Any]] = [
        {},
        {"tau": 0.2, "neighbours": 2},
        {"max_window": 3, "beta": 0.3},
        {"max_window": 1},
    ]
    every = [methods.get("holitom", retain_ratio=retain_ratio, **wish) for wish in wishes]
    found = [method.compress(video) for method in every]
    plainly(interpreted)
    for one, expected in zip(found, [method.compress(video) for method in every], strict=True):
        assert (one.segments, one.stages) == (expected.segments, expected.stages)
        for name in ("frame", "cell", "size", "source"):
            assert torch.equal(getattr(one, name), getattr(expected, name))
        torch.testing.assert_close(one.embeds, expected.embeds)


def test_control_another_share_is_not_what_the_host_keeps(interpreted: pytest.MonkeyPatch) -> None:
    video, method = features(CLIPS[2]), methods.get("holitom", retain_ratio=0.4)
    shares = holitom._shares
    interpreted.setattr(holitom, "_shares", lambda *of: shares(*of)._replace(each=shares(*of).each.clip(1) - 1))
    found = method.compress(video)
    plainly(interpreted)
    interpreted.setattr(holitom, "_shares", shares)
    assert not torch.equal(found.source, method.compress(video).source)


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_attention_that_is_no_number_is_as_low_as_can_be(interpreted: pytest.MonkeyPatch, clip: Clip) -> None:
    video, method = features(clip), methods.get("holitom", retain_ratio=0.3)
    assert video.attention is not None
    video.attention[1::2] = torch.nan
    video.attention[:, -1] = -torch.inf
    found = method.compress(video)
    plainly(interpreted)
    for one in (found, method.compress(video)):
        assert broken_promises(video, one) == []
        assert torch.equal(one.source, found.source)


def test_nothing_is_read_that_has_not_been_written(interpreted: pytest.MonkeyPatch) -> None:
    video, method = features(CLIPS[3]), methods.get("holitom", retain_ratio=0.2)
    found = method.compress(video)
    for owner, name in ((torch, "empty"), (Tensor, "new_empty")):
        plain = getattr(owner, name)
        interpreted.setattr(owner, name, lambda *of, plain=plain, **how: plain(*of, **how).fill_(30_000))
    again = method.compress(video)
    assert all(torch.equal(getattr(again, name), getattr(found, name)) for name in ("embeds", "source", "size"))


COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from holitom_cli.algebra import triton_kernels as kernels

single, long = "*fp32", "*i64"
allot = [single, "*i32"] + [long] * 5 + [single] * 2 + ["i32"] * 3
clusters = [single] * 3 + [long] * 4 + [single, long, single, long, "i32"]
for name, types, constants in (
    ("neighbour_similarity", ["*bf16", single, "i32"], [3584, 1024]),
    ("steadiness", [single, "fp32", "*i32", "*i16", "i32", "i32"], [196, 256]),
    ("allot", allot, [196, 7, 256, 32]),
    ("allot", allot, [729, 7, 1024, 8]),
    ("segment_means", ["*bf16", long, single, "i32"], [1024]),
    ("centre", [single, single, single, "i32", "fp32"], [196, 256, 32]),
    ("centre", [single, single, single, "i32", "fp32"], [729, 1024, 8]),
    ("densities", [single] * 6, [196, 7, 256]),
    ("clusters", clusters, [196, 256, 32]),
    ("clusters", clusters, [729, 1024, 8]),
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
