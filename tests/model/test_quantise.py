"""Weights in few bits: products are those with the numbers that are kept, and these are near the weights."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from holitom_cli import load_model
from holitom_cli.errors import UsageError
from holitom_cli.model import quantise, shapes, weights
from holitom_cli.model.decode import decode_one_token
from holitom_cli.model.hub import locate
from holitom_cli.model.layers import Joined, JoinedPacked
from holitom_cli.model.loading import Model, load, read_checkpoint
from holitom_cli.model.prefill import prefill
from tests.model.test_shapes import TINY, TOWER

CPU = torch.device("cpu")
SHAPES = [(48, 256), (37, 3584), (20, 48)]  # 48: a group is smaller than usual
# Of the length of the logits, after seven layers. Rounding to 8 bits is 0.7% of the length of a matrix and to 4 bits
# 10%; steps that are half too long are beyond both.
NEAR = {"int8": 0.005, "int4": 0.06}


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def pack(matrix: Tensor, bits: int) -> quantise.Packed:
    packed = quantise.empty(matrix.shape, bits, CPU)
    quantise.store(packed, matrix)
    return packed


def by_hand(packed: quantise.Packed) -> Tensor:
    """The matrix in float64, number by number."""
    rows, columns = packed.shape
    if packed.bits == 8:
        return torch.stack([row.double() * float(step) for row, step in zip(packed.values, packed.steps, strict=True)])
    words = packed.values.shape[1]
    group = words // packed.steps.shape[1]
    found = torch.empty(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            plane, word = divmod(column, words)
            number = (int(packed.values[row, word]) >> 4 * plane) & 15
            step, low = map(float, packed.steps[row, word // group])
            found[row, column] = number * step + low
    return found


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_with_the_numbers_that_are_kept(shape: tuple[int, int], bits: int) -> None:
    matrix, bias = drawn(*shape) * 0.02, drawn(shape[0])
    packed = pack(matrix, bits)
    exact = by_hand(packed)
    torch.testing.assert_close(quantise.restore(packed, torch.float64), exact, rtol=1e-6, atol=1e-9)
    for rows in (1, 3, 40):
        states = drawn(rows, shape[1])
        wanted = states.double() @ exact.T + bias
        torch.testing.assert_close(quantise.multiply(states, packed, bias).double(), wanted, rtol=1e-5, atol=1e-5)
        half = quantise.multiply(states.bfloat16(), packed, bias.bfloat16())
        assert half.dtype == torch.bfloat16
        assert (half.double() - wanted).norm() < 0.02 * wanted.norm()
        unquantised = states.double() @ matrix.double().T + bias  # control
        assert (unquantised - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("bits", [8, 4])
def test_numbers_are_the_nearest_ones(bits: int) -> None:
    """Every weight is within half a step; 15 steps of bfloat16 may end up to 15 halves of its last bit too early."""
    matrix = drawn(16, 256) * torch.linspace(0.01, 3, 16)[:, None]
    packed = pack(matrix, bits)
    if bits == 8:
        steps = packed.steps[:, None].expand(matrix.shape)
    else:
        steps = packed.steps[..., 0].float()[:, None, :, None].expand(16, 8, 2, 16).reshape(matrix.shape)
    off = (quantise.restore(packed, torch.float32) - matrix).abs() / steps
    assert off.max() < (0.501 if bits == 8 else 0.501 + 15 * 2**-8)
    assert off.max() > 0.49  # control: they are not finer than they say
    assert packed.nbytes == quantise.packed_bytes(matrix.shape, bits)


def test_more_steps_where_a_row_or_a_group_is_wide() -> None:
    """One large weight costs its own row or group alone."""
    matrix = drawn(2, 256) * 0.02
    matrix[0, 5] = 10
    eight, four = (quantise.restore(pack(matrix, bits), torch.float32) - matrix for bits in (8, 4))
    assert eight[0].abs().max() > 0.01 > 100 * 0.02 / 254 * 0.01 > eight[1].abs().max() / 10
    beside = torch.zeros(256, dtype=torch.bool)
    for plane in range(8):  # 16 neighbouring words are a group
        beside[plane * 32 : plane * 32 + 16] = True
    assert four[0][beside].abs().max() > 0.1
    assert four[0][~beside].abs().max() < 0.01


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_so(bits: int, broken: float) -> None:
    matrix = drawn(3, 64)
    matrix[1, 7] = broken
    restored = quantise.restore(pack(matrix, bits), torch.float32)
    assert not restored[1].isfinite().all()
    assert restored[0].isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_that_are_nothing(bits: int) -> None:
    assert (quantise.restore(pack(torch.zeros(2, 64), bits), torch.float32) == 0).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_kernels_give_the_same(bits: int) -> None:
    """Triton's own interpreter runs them here."""
    pytest.importorskip("triton")
    from holitom_cli.model import packed_kernels

    for shape in ((9, 256), (5, 1104), (6, 48)):  # of a tile and less, and of more than one
        matrix, bias = drawn(*shape), drawn(shape[0])
        packed = pack(matrix, bits)
        for rows, product in (
            (1, packed_kernels.few_rows),
            (3, packed_kernels.few_rows),
            (18, packed_kernels.several_rows),
        ):
            states = drawn(rows, shape[1])
            for added in (bias, None):
                wanted = quantise.multiply(states, packed, added)
                torch.testing.assert_close(product(states, *packed, added), wanted, rtol=1e-5, atol=1e-4)
                other = packed._replace(values=packed.values.roll(1, 1))  # control
                assert (product(states, *other, added) - wanted).abs().max() > 0.1
        unpacked = torch.empty(shape)
        packed_kernels.unpack(*packed, unpacked)
        torch.testing.assert_close(unpacked, quantise.restore(packed, torch.float32), rtol=1e-6, atol=1e-6)


COMPILED = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from holitom_cli.model import packed_kernels

def built(kernel, types, constants):
    names = kernel.arg_names
    signature = dict(zip(names, [*types, *["constexpr"] * len(constants)]))
    source = ASTSource(kernel, signature, {(len(types) + at,): value for at, value in enumerate(constants)})
    for capability in (75, 80, 90):
        made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1})
        assert len(made.asm["cubin"]) > 1000
        assert made.metadata.shared <= 64 * 1024  # what the oldest of them has

tensors = ["*bf16", "*i8", "*fp32", "*bf16", "*bf16", "i32"]
built(packed_kernels._few_rows_8, tensors, [3584, True, packed_kernels._ROWS, packed_kernels._TILES[8]])
tensors = ["*bf16", "*i32", "*i32", "*bf16", "*bf16", "i32"]
built(packed_kernels._few_rows_4, tensors, [448, 16, False, packed_kernels._ROWS, packed_kernels._TILES[4]])
eight, four = ["*fp16", "*i8", "*fp32", "*fp16", "*fp16"], ["*fp16", "*i32", "*i32", "*fp16", "*fp16"]
for held in (16, 64):
    size = [held, packed_kernels._TOGETHER_ROWS]
    tile = packed_kernels._TOGETHER_TILES[8] // held
    built(packed_kernels._several_rows_8, [*eight, "i32", "i32"], [3584, True, *size, tile])
    tile = max(16, packed_kernels._TOGETHER_TILES[4] // held)
    built(packed_kernels._several_rows_4, [*four, "i32", "i32"], [448, 16, False, *size, tile])
built(packed_kernels._unpack_8, ["*i8", "*fp32", "*bf16", "i32"], [2048])
built(packed_kernels._unpack_4, ["*i32", "*i32", "*bf16", "i32"], [16, 512])
"""


def test_kernels_compile_for_old_and_new_cards(tmp_path: Path) -> None:
    """No GPU is needed for it. The interpreter lets pass what the compiler does not, as annotations."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def said(model: Model, ids: Tensor) -> Tensor:
    """Logits of a prompt's last token and of one token more (2, V)."""
    state = prefill(model.language_model, model.lm_head, model.embed(ids), range(5, 30), {}, room=1)
    args = model.language_model, model.lm_head, state.cache, ids[:1], state.next_position
    return torch.cat((state.logits, decode_one_token(*args))).float()


@pytest.fixture(scope="module")
def plain() -> Model:
    return load_model("demo", device="cpu")


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_quantised_model_says_nearly_the_same(plain: Model, quantize: Any) -> None:
    ids = torch.randint(5, 600, (60,), generator=torch.Generator().manual_seed(0))
    model, wanted = load_model("demo", device="cpu", quantize=quantize), said(plain, ids)
    found = said(model, ids)
    assert 0 < (found - wanted).norm() / wanted.norm() < NEAR[quantize]
    for part in model.network.modules():  # control: steps half too long
        if isinstance(part, quantise.PackedLinear):
            part.steps.data.mul_(1.5)
    assert (said(model, ids) - wanted).norm() / wanted.norm() > NEAR[quantize]


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_what_is_quantised_and_what_is_not(plain: Model, quantize: Any) -> None:
    model = load_model("demo", device="cpu", quantize=quantize)
    kinds = {type(part) for part in model.language_model.layers.modules()}
    assert nn.Linear not in kinds
    assert Joined not in kinds
    assert isinstance(model.language_model.layers[0].self_attn.qkv, JoinedPacked)
    assert model.lm_head.values is model.language_model.embed_tokens.values  # the checkpoint ties them
    assert model.lm_head.packed.bits == 8
    assert model.language_model.layers[0].mlp.down_proj.packed.bits == int(quantize[3])
    for name, part in plain.vision_tower.named_parameters():
        assert torch.equal(part, model.vision_tower.get_parameter(name))
    assert (model.info.parameters, model.info.quantize) == (plain.info.parameters, quantize)
    assert model.info.number_format == f"float32+{quantize}"
    kept = weights.weight_bytes(
        {name: tuple(part.shape) for name, part in plain.network.named_parameters()}, torch.float32, quantize
    )
    assert sum(part.nbytes for part in model.network.parameters()) == kept


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_joined_rows_lie_where_they_were_read_to(quantize: Any) -> None:
    layer = load_model("demo", device="cpu", quantize=quantize).language_model.layers[3]
    attention, mlp = layer.self_attn, layer.mlp
    for joined, parts in (
        (attention.qkv, (attention.q_proj, attention.k_proj, attention.v_proj)),
        (mlp.gate_up, (mlp.gate_proj, mlp.up_proj)),
    ):
        assert joined.packed.values.data_ptr() == parts[0].values.data_ptr()
        assert joined.packed.steps.data_ptr() == parts[0].steps.data_ptr()
        states = drawn(2, 256)
        torch.testing.assert_close(joined(states), torch.cat([part(states) for part in parts], -1))


def test_the_language_model_is_never_there_unquantised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece of a matrix at a time: what is alive in floating point after each tensor is little."""
    monkeypatch.setattr(quantise, "STORED_AT_ONCE", 2**12)
    monkeypatch.setattr(weights, "_THREADS", 1)
    alive: list[int] = []
    store, read = quantise.store, weights._read

    def look(place: quantise.Packed, piece: Tensor) -> None:
        assert piece.numel() <= 2**12
        store(place, piece)

    def read_and_look(*more: Any) -> Any:
        found = read(*more)
        if more[1].endswith("norm.weight"):
            alive.append(floating())
        return found

    monkeypatch.setattr(quantise, "store", look)
    monkeypatch.setattr(weights, "_read", read_and_look)
    before = floating()
    model = load_model("demo", device="cpu", dtype="bfloat16", quantize="int4")
    others = sum(part.nbytes for part in model.network.parameters() if part.is_floating_point())
    del model
    quantised = max(alive) - before
    alive.clear()
    kept = load_model("demo", device="cpu", dtype="float32")  # control
    language = sum(part.nbytes for name, part in kept.network.named_parameters() if "language_model" in name)
    assert len(alive) > 10
    assert quantised < others + language / 20
    assert max(alive) - before > language / 2


def floating() -> int:
    """Bytes of all tensors in floating point."""
    tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor) and item.is_floating_point()]
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in tensors}.values())


def test_shapes_are_drawn_quantised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes._TEXT, "tiny", TINY | {"vocab_size": 151700})
    monkeypatch.setattr(shapes, "_TOWER", TOWER)
    model = shapes.build_shape("tiny", device="cpu", dtype="bfloat16", quantize="int4")
    down = model.language_model.layers[1].mlp.down_proj.packed
    assert down.bits == 4
    assert float(quantise.restore(down, torch.float32).std()) == pytest.approx(0.02, rel=0.1)
    assert model.info.parameters == shapes.build_shape("tiny", device="cpu", dtype="bfloat16").info.parameters


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_several_shards_give_what_one_file_gives(tiny_checkpoint: Path, tmp_path: Path, quantize: Any) -> None:
    for file in tiny_checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    stored = load_file(tiny_checkpoint / "model.safetensors")
    places = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(stored)}
    for place in set(places.values()):
        save_file({name: stored[name] for name in stored if places[name] == place}, tmp_path / place)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    whole = load_model(tiny_checkpoint, device="cpu", quantize=quantize)
    parts = dict(load_model(tmp_path, device="cpu", quantize=quantize).network.named_parameters())
    for name, part in whole.network.named_parameters():
        assert torch.equal(part, parts[name]), name


def test_a_number_format_names_both(tiny_checkpoint: Path) -> None:
    """As worker processes are told of it."""
    checkpoint = read_checkpoint(locate(str(tiny_checkpoint)))
    told = load(checkpoint, "cpu", "bfloat16+int4").info
    assert (told.dtype, told.quantize, told.number_format) == ("bfloat16", "int4", "bfloat16+int4")
    with pytest.raises(UsageError, match="--quantize 'int5' is not known"):
        load(checkpoint, "cpu", "bfloat16+int5")


def test_unknown_formats_and_models_in_several_places(tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="--quantize 'int3' is not known"):
        load_model(tiny_checkpoint, device="cpu", quantize="int3")
    with pytest.raises(UsageError, match="cannot be used together"):
        load_model(tiny_checkpoint, device="cpu", quantize="int8", device_map="auto")
