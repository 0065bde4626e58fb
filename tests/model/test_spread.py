"""A checkpoint spread over memory and disk by accelerate gives the logits of the one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from holitom_cli import methods
from holitom_cli.model.decode import decode_one_token
from holitom_cli.model.kept import Kept
from holitom_cli.model.loading import Model, load_model
from holitom_cli.model.prefill import prefill
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.model.vision import encode

STEPS = 4
SPREAD = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector": "disk",
    "model.image_newline": "cpu",
    "model.language_model.embed_tokens": "cpu",
    "model.language_model.norm": "disk",
    "model.language_model.rotary_emb": "cpu",
    "lm_head": "disk",
} | {f"model.language_model.layers.{layer}": ("cpu", "disk")[layer % 2] for layer in range(4)}


@torch.inference_mode()
def logits(model: Model, inner_layer: int | str) -> Tensor:
    """Logits (1 + STEPS, V) of a prompt and of what is decoded after it."""
    pixels = torch.randn(3, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    method = methods.get("holitom", inner_layer=inner_layer)
    before, after = model.chat.encode("What is it?")
    embeds, span = prompt_embeds(model, before, method.compress(encode(model, pixels)), after)
    state = prefill(model.language_model, model.lm_head, embeds, span, method.reductions(4), room=STEPS)
    rows, position = [state.logits], state.next_position
    for token in range(20, 20 + STEPS):
        ids = torch.tensor([token])
        rows.append(decode_one_token(model.language_model, model.lm_head, state.cache, ids, position))
        position = position + 1
    return torch.cat(rows)


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path) -> Tensor:
    return logits(load_model(tiny_checkpoint, device="cpu", dtype="float32"), 2)


def test_what_is_kept_of_a_prompt_is_spread_too(tiny_checkpoint: Path) -> None:
    whole = load_model(tiny_checkpoint, device="cpu", dtype="float32")
    spread = load_model(tiny_checkpoint, device="cpu", dtype="float32", device_map=SPREAD)
    embeds = torch.randn(40, whole.info.shape.hidden, generator=torch.Generator().manual_seed(0))
    plan = methods.get("holitom", inner_layer=2).reductions(4)

    def last(model: Model, length: int, kept: Kept | None = None) -> Tensor:
        parts = model.language_model, model.lm_head, embeds[:length], range(3, 20)
        return prefill(*parts, plan, room=STEPS, kept=kept).logits

    kept = Kept(4, plan)
    first = last(spread, 30, kept)
    assert (last(spread, 40, kept) - last(whole, 40)).abs().max() <= 1e-4
    assert kept.reused == 30
    assert (first - last(whole, 40)).abs().max() > 1e-2  # control


def offloaded(model: Model) -> list[str]:
    return [name for name, parameter in model.network.named_parameters() if parameter.is_meta]


@pytest.mark.parametrize("layer", [2, 3])  # behind a layer on disk, and behind one in memory
def test_memory_and_disk_give_the_same_logits(tiny_checkpoint: Path, layer: int) -> None:
    reference = logits(load_model(tiny_checkpoint, device="cpu", dtype="float32"), layer)
    spread = load_model(tiny_checkpoint, device="cpu", dtype="float32", device_map=SPREAD)
    assert any("layers.1" in name for name in offloaded(spread))
    assert not any("layers.0" in name for name in offloaded(spread))
    assert (logits(spread, layer) - reference).abs().max() <= 1e-6
    assert (logits(spread, "off") - reference).abs().max() > 1e-2  # control: the merge matters
    assert spread.info.parameters == sum(p.numel() for p in spread.network.parameters())


def test_auto_on_a_machine_without_a_gpu_is_all_in_memory(tiny_checkpoint: Path, whole: Tensor) -> None:
    model = load_model(tiny_checkpoint, device="cpu", dtype="float32", device_map="auto")
    assert offloaded(model) == []
    assert (logits(model, 2) - whole).abs().max() <= 1e-6


def test_auto_on_a_small_machine_takes_the_disk(
    tiny_checkpoint: Path, whole: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a folder to offload to: safetensors are read from where they are."""
    from transformers.integrations import accelerate

    monkeypatch.setattr(accelerate, "get_max_memory", lambda _=None: {"cpu": 300_000})  # bytes
    model = load_model(tiny_checkpoint, device="cpu", dtype="float32", device_map="auto")
    assert offloaded(model)
    assert (logits(model, 2) - whole).abs().max() <= 1e-6
