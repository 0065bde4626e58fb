"""Weights on their way from files to a network: nothing is held twice, and a failure ends the reading."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from holitom_cli import load_model
from holitom_cli.model import weights
from holitom_cli.model.quantise import Packed

CPU = torch.device("cpu")


def test_tensors_come_as_they_are_stored_in_the_format_asked_for(tmp_path: Path) -> None:
    stored = {"image_newline": torch.randn(5), "language_model.lm_head.weight": torch.randn(3, 4)}
    save_file(stored, tmp_path / "one.safetensors")
    with weights.reading([tmp_path / "one.safetensors"], CPU, torch.bfloat16) as coming:
        found: dict[str, Any] = {name: future.result() for name, future in coming.items()}
    assert set(found) == {"model.image_newline", "lm_head.weight"}
    assert torch.equal(found["lm_head.weight"], stored["language_model.lm_head.weight"].bfloat16())
    assert torch.equal(found["model.image_newline"], stored["image_newline"].bfloat16())


def test_a_failure_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({f"t{index}": torch.zeros(1) for index in range(50)}, tmp_path / "many.safetensors")
    begun, gate = [], threading.Event()
    read = weights._read

    def slow(file: Any, name: str, *more: Any) -> Tensor | Packed:
        begun.append(name)
        gate.wait(30)
        return read(file, name, *more)

    monkeypatch.setattr(weights, "_read", slow)
    kept: dict[str, Any] = {}

    def fail() -> None:
        with weights.reading([tmp_path / "many.safetensors"], CPU, torch.float32) as coming:
            kept.update(coming)
            threading.Timer(0.2, gate.set).start()
            raise ValueError("elsewhere")

    with pytest.raises(ValueError, match="elsewhere"):
        fail()
    assert len(begun) < 50
    assert any(future.cancelled() for future in kept.values())
    with pytest.raises(CancelledError):
        next(future for future in kept.values() if future.cancelled()).result()


def test_filled_networks_share_what_they_shared() -> None:
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = one.weight
    network = nn.Sequential(one, other, nn.Linear(3, 2))
    asked: list[str] = []

    def make(name: str, like: Tensor) -> Tensor:
        asked.append(name)
        return torch.full(like.shape, float(len(asked)))

    weights.fill(network, make)
    assert one.weight is other.weight
    assert sorted(asked) == ["0.bias", "0.weight", "1.bias", "2.bias", "2.weight"]
    assert {float(part.max()) for part in network.parameters()} == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_a_loaded_model_holds_no_weight_twice(tiny_checkpoint: Path) -> None:
    def floats() -> int:
        gc.collect()
        tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor) and item.is_floating_point()]
        return sum({item.untyped_storage().data_ptr(): item.untyped_storage().nbytes() for item in tensors}.values())

    before = floats()
    model = load_model(tiny_checkpoint, device="cpu", dtype="bfloat16")  # stored in float32: every tensor is new
    own = sum(part.nbytes for part in model.network.parameters())
    assert own <= floats() - before <= 1.05 * own  # rotary frequencies and positions are no parameters
    twice = load_file(tiny_checkpoint / "model.safetensors")  # control
    assert floats() - before > 1.5 * own
    assert twice


def test_projections_are_read_to_where_they_are_joined(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []
    cat = torch.cat

    def counted(parts: Any, *more: Any) -> Tensor:
        copies.append(len(parts))
        return cat(parts, *more)

    monkeypatch.setattr(torch, "cat", counted)
    model = load_model(tiny_checkpoint, device="cpu", dtype="float32")
    assert copies == []
    attention, mlp = model.language_model.layers[0].self_attn, model.language_model.layers[0].mlp
    tower = model.vision_tower.encoder.layers[1].self_attn
    for joined, parts in (
        (attention.qkv, (attention.q_proj, attention.k_proj, attention.v_proj)),
        (mlp.gate_up, (mlp.gate_proj, mlp.up_proj)),
        (tower.qkv, (tower.q_proj, tower.k_proj, tower.v_proj)),
    ):
        assert torch.equal(joined.weight, cat([part.weight for part in parts]))
        assert joined.weight.data_ptr() == parts[0].weight.data_ptr()
    assert torch.equal(
        attention.qkv.bias, cat([part.bias for part in (attention.q_proj, attention.k_proj, attention.v_proj)])
    )
    stored = load_file(tiny_checkpoint / "model.safetensors")
    name = next(name for name in stored if name.endswith("language_model.model.layers.0.self_attn.k_proj.weight"))
    assert torch.equal(attention.k_proj.weight, stored[name])
    monkeypatch.setattr(weights, "TOGETHER", ())
    apart = load_model(tiny_checkpoint, device="cpu", dtype="float32")  # control
    assert copies.count(3) >= 2
    assert torch.equal(apart.language_model.layers[0].self_attn.qkv.weight, attention.qkv.weight)
