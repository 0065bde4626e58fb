"""Triton's kernels, in its interpreter on the CPU, against plain torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from holitom_cli import load_model, methods
from holitom_cli.model import Model, kernels, layers, vision
from holitom_cli.model.cache import RowCache
from holitom_cli.model.decode import decode_one_token
from holitom_cli.model.kept import Kept
from holitom_cli.model.layers import _turned
from holitom_cli.model.prefill import prefill

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("there is a GPU, on which `python -m tests.gpu.kernels` compares them", allow_module_level=True)


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> Iterator[None]:
    from holitom_cli.model import triton_kernels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_triton", lambda: triton_kernels)
        patch.setattr(kernels, "runs_on", lambda _: True)
        patch.setattr(vision, "runs_on", lambda _: True)
        yield


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("width", [7, 48, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_sum_and_its_norm(width: int, dtype: torch.dtype) -> None:
    states, change = drawn(2, 3, width, dtype=dtype), drawn(2, 3, width, seed=1, dtype=dtype)
    norm = nn.LayerNorm(width, eps=1e-3, dtype=dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    with torch.no_grad():
        total, normed = kernels.add_norm(states, change, norm)
        torch.testing.assert_close(total, states + change)
        torch.testing.assert_close(normed, norm(states + change), atol=2e-3, rtol=2e-3)
        assert (normed - norm(states)).abs().max() > 0.1  # control


@pytest.mark.parametrize("width", [16, 1500])
def test_a_gate(width: int) -> None:
    both = drawn(2, 3, 2 * width)
    mlp = SimpleNamespace(config=SimpleNamespace(hidden_act="silu"), act_fn=nn.functional.silu)
    gate, up = both.chunk(2, -1)
    torch.testing.assert_close(kernels.gated(both, mlp), nn.functional.silu(gate) * up)
    other = SimpleNamespace(config=SimpleNamespace(hidden_act="gelu"), act_fn=nn.functional.gelu)
    torch.testing.assert_close(kernels.gated(both, other), nn.functional.gelu(gate) * up)  # which has no kernel


HEADS, KV_HEADS, WIDTH, SLOTS = 6, 2, 16, 150


@pytest.mark.parametrize(("length", "at"), [(5, (0,)), (1, (3, 0, 149))])
def test_turning_fills_the_cache(length: int, at: tuple[int, ...]) -> None:
    batch = len(at)
    qkv = drawn(batch, length, (HEADS + 2 * KV_HEADS) * WIDTH)
    rope = drawn(batch, length, WIDTH, seed=1), drawn(batch, length, WIDTH, seed=2)
    keys, values = (torch.zeros(batch, KV_HEADS, SLOTS, WIDTH) for _ in range(2))
    query = kernels.turn(qkv, rope, keys, values, torch.tensor(at), HEADS)
    parts = qkv.unflatten(-1, (-1, WIDTH)).transpose(1, 2)
    turned = _turned(parts, rope)
    torch.testing.assert_close(query, turned[:, :HEADS])
    for row, first in enumerate(at):
        place = slice(first, first + length)
        torch.testing.assert_close(keys[row, :, place], turned[row, HEADS : HEADS + KV_HEADS])
        torch.testing.assert_close(values[row, :, place], parts[row, HEADS + KV_HEADS :])
        assert keys[row].count_nonzero() == values[row].count_nonzero() == KV_HEADS * length * WIDTH  # nothing else
    assert (query - parts[:, :HEADS]).abs().max() > 0.1  # control


def test_one_token_attends_to_what_is_stored() -> None:
    at = torch.tensor([0, 64, 97, SLOTS - 1])
    query = drawn(len(at), HEADS, 1, WIDTH)
    keys, values = (drawn(len(at), KV_HEADS, SLOTS, WIDTH, seed=seed) for seed in (1, 2))
    keys[0, :, 1:] = torch.nan  # of an answer before
    found = kernels.attend(query, keys, values, at)
    for row, last in enumerate(at.tolist()):
        known = keys[row : row + 1, :, : last + 1], values[row : row + 1, :, : last + 1]
        expected = nn.functional.scaled_dot_product_attention(query[row : row + 1], *known, enable_gqa=True)
        torch.testing.assert_close(found[row : row + 1], expected, atol=1e-5, rtol=1e-5)
    later = kernels.attend(query, keys, values, (at - 1).clamp_min(0))
    assert (later - found)[1:].abs().max() > 1e-3  # control


@pytest.mark.parametrize("width", [16, 18])
def test_attention_received(width: int) -> None:
    query, key = drawn(2, 70, 3, width), drawn(2, 70, 3, width, seed=1)
    expected = kernels.plain_received(query, key, 0.3)
    torch.testing.assert_close(kernels.received(query, key, 0.3), expected)
    assert (kernels.received(key, query, 0.3) - expected).abs().max() > 1e-3  # control
    torch.testing.assert_close(expected.sum(1), torch.ones(2))


# --- put together ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return load_model(tiny_checkpoint, device="cpu", dtype="float32")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Tensor]], Tensor]:
    """Runs something without the kernels."""

    def run(compute: Callable[[], Tensor]) -> Tensor:
        with monkeypatch.context() as patch:
            for module in (kernels, vision):
                patch.setattr(module, "runs_on", lambda _: False)
            return compute()

    return run


Plain = Callable[[Callable[[], Tensor]], Tensor]


def counted(monkeypatch: pytest.MonkeyPatch, *names: str) -> Counter[str]:
    """How often layers call the kernels named."""
    calls: Counter[str] = Counter()
    for name in names:
        kernel = getattr(layers, name)
        monkeypatch.setattr(
            layers, name, lambda *args, name=name, kernel=kernel: (calls.update([name]), kernel(*args))[1]
        )
    return calls


@torch.inference_mode()
def test_a_prompt_and_an_answer(model: Model, plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    embeds = drawn(24, model.info.shape.hidden) * 0.1
    merge = dict(methods.get("holitom", inner_layer=1).reductions(model.checkpoint.depth))

    def answer() -> Tensor:
        state = prefill(model.language_model, model.lm_head, embeds, range(3, 18), merge, room=4)
        position, said = state.next_position.clone(), [state.logits]
        for token in (5, 9, 2):
            following = decode_one_token(
                model.language_model, model.lm_head, state.cache, torch.tensor([token]), position
            )
            said.append(following)
            position += 1
        return torch.cat(said)

    expected = plain(answer)
    calls = counted(monkeypatch, "turn", "attend", "gated")
    found = answer()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found[1:] - expected[:-1]).abs().max() > 1e-2  # control
    depth = model.checkpoint.depth
    assert calls == {"turn": 4 * depth, "attend": 3 * depth, "gated": 4 * depth}


@torch.inference_mode()
def test_a_prompt_that_goes_on(model: Model, plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    embeds = drawn(40, model.info.shape.hidden) * 0.1
    merge = dict(methods.get("holitom", inner_layer=2).reductions(model.checkpoint.depth))

    def logits(length: int, kept: Kept | None = None) -> Tensor:
        return prefill(
            model.language_model, model.lm_head, embeds[:length], range(3, 18), merge, room=4, kept=kept
        ).logits

    kept = Kept(model.checkpoint.depth, merge)
    first = logits(24, kept)
    calls = counted(monkeypatch, "turn", "attend")
    for length, runs in ((40, 0), (40, 2)):  # with one new token, the two kept layers attend as they do in an answer
        torch.testing.assert_close(logits(length, kept), plain(partial(logits, length)), atol=1e-4, rtol=1e-4)
        assert calls == {"turn": model.checkpoint.depth * (1 + (runs > 0))} | ({"attend": runs} if runs else {})
    assert (logits(40, kept) - first).abs().max() > 1e-2  # control


@torch.inference_mode()
def test_rows_of_different_lengths(model: Model, plain: Plain) -> None:
    def step() -> Tensor:
        cache = RowCache(model.checkpoint.depth, 3)
        position = torch.zeros(3, dtype=torch.int64)
        for row, length in enumerate((9, 24)):
            prompt = drawn(length, model.info.shape.hidden, seed=row) * 0.1
            state = prefill(model.language_model, model.lm_head, prompt, range(1, 4), {}, room=4)
            cache.enter(row, state.cache)
            position[row] = state.next_position[0]
        tokens = torch.tensor([4, 7, 0])
        return decode_one_token(model.language_model, model.lm_head, cache, tokens, position)[:2]

    found, expected = step(), plain(step)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found.flip(0) - expected).abs().max() > 1e-2  # control


@torch.inference_mode()
def test_a_tower(model: Model, plain: Plain) -> None:
    side = model.checkpoint.preprocessor.height

    def watched(seed: int = 0) -> Tensor:
        features = vision.encode(model, drawn(1, 3, side, side, seed=seed))
        assert features.attention is not None
        return torch.cat((features.tokens.flatten(1), 100 * features.attention), 1)

    found, expected = watched(), plain(watched)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - plain(lambda: watched(1))).abs().max() > 1e-2  # control


# --- the compiler ----------------------------------------------------------------------------------

COMPILED = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from holitom_cli.model import triton_kernels as kernels

def built(kernel, types, **constants):
    names = kernel.arg_names
    signature = dict(zip(names, [*types, *["constexpr"] * len(constants)]))
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    for capability in (75, 80, 90):
        made = compile(source, target=GPUTarget("cuda", capability, 32))
        assert len(made.asm["cubin"]) > 1000
        assert made.metadata.shared <= 64 * 1024  # what the oldest of them has

half, single, slots = "*fp16", "*fp32", "*i64"
built(kernels.add_norm, [half] * 6 + ["i32", "fp32"], BLOCK=2048)
built(kernels.gated, [half, half, "i32"], BLOCK=1024)
built(kernels.turn, [half] * 6 + [slots, "i32", "i32", "i32"], HEADS=28, KV_HEADS=4, HALF=64)
shape = {"GROUP": 7, "ROWS": 16, "WIDTH": 128}
kept = [single] * 3
built(kernels.attend_part, [half] * 3 + [slots, *kept, "i32", "i32", "i32", "fp32"], **shape, KV_HEADS=4, BLOCK=64)
built(kernels.attend_whole, [*kept, half, "i32"], **shape, BLOCK=128)
sizes = {"TOKENS": 729, "ROWS": 64, "BLOCK": 64, "WIDTH": 128}
built(kernels.received, [half, half, single, "i32", "i32", "i32", "i32", "fp32"], **sizes)
"""


def test_kernels_compile_for_old_and_new_cards(tmp_path: Path) -> None:
    """No GPU is needed for it. The interpreter lets pass what the compiler does not, as annotations."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
