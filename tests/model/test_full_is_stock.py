"""`full` against the library's own model: the same checkpoint, the same pixels, and its own `generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from holitom_cli import methods
from holitom_cli.check import as_record, compare_with_stock
from holitom_cli.model import preprocess, vision
from holitom_cli.model.decode import generate
from holitom_cli.model.loading import Model, load_model
from holitom_cli.model.prefill import prefill
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.types import Frames, Generation
from tests.make_random_checkpoint import make_checkpoint

NEAR = 1e-4  # in logits, float32
QUESTION = "What is shown in the video?"


class Shape(NamedTuple):
    """What differs between two random checkpoints."""

    options: dict[str, Any]
    tied: bool = False  # the output matrix is the embedding's, as in the 0.5B checkpoint


SHAPES = {
    "published geometry": Shape({"layers": 3}),
    "tied": Shape({"layers": 2, "image_size": 112, "patch_size": 8, "width": 48, "heads": 3, "kv_heads": 1}, tied=True),
    "second to last tower layer": Shape({"vision_feature_layer": -2, "tower_layers": 4, "image_size": 98}),
    "first tower layer": Shape({"vision_feature_layer": 1, "tower_layers": 3, "image_size": 112, "patch_size": 16}),
    "wide": Shape({"width": 96, "heads": 6, "kv_heads": 6, "tower_width": 48, "tower_heads": 4, "image_size": 126}),
}


def tie(directory: Path) -> None:
    """Let the output matrix be the embedding's, as published small checkpoints do: it is then not stored."""
    weights = {name: t for name, t in load_file(directory / "model.safetensors").items() if "lm_head" not in name}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    shape = SHAPES[request.param]
    path = make_checkpoint(tmp_path_factory.mktemp("shape"), dtype=torch.float32, seed=5, **shape.options)
    if shape.tied:
        tie(path)
    return load_model(path, device="cpu")


def some_frames(count: int = 2) -> Frames:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 60, 80, 3), dtype=np.uint8)
    return Frames(pixels=pixels, seconds=np.arange(count, dtype=float))


class Both(NamedTuple):
    """Logits (V,) of the last prompt token and greedy ids, ours and the library's."""

    ours: Tensor
    stock: Tensor
    our_ids: list[int]
    stock_ids: list[int]


@torch.inference_mode()
def run_both(model: Model, *, newline: bool = True, pixels_for_stock: Tensor | None = None, steps: int = 8) -> Both:
    """The same prompt through our loop and through the library, placeholders expanded by us."""
    pixels = preprocess.prepare(model.preprocessor, some_frames(), model.device)
    before, after = model.chat.encode(QUESTION)
    visual = methods.get("full").compress(vision.encode(model, pixels, attention=False))
    embeds, span = prompt_embeds(model, before, visual, after)
    if not newline:
        embeds = torch.cat((embeds[: span.stop - 1], embeds[span.stop :]))
    state = prefill(model.language_model, model.lm_head, embeds, span, {}, room=steps)
    our_ids = list(generate(model.language_model, model.lm_head, state, Generation(steps), model.chat.end_ids))
    ids = torch.tensor([before + [model.chat.video_token_id] * len(span) + after])
    given = pixels if pixels_for_stock is None else pixels_for_stock
    inputs = {"input_ids": ids, "pixel_values_videos": given[None], "attention_mask": torch.ones_like(ids)}
    stock = model.stock(**inputs, use_cache=False).logits[0, -1]
    made = model.stock.generate(**inputs, max_new_tokens=steps, do_sample=False)
    return Both(state.logits[0], stock, our_ids, made[0, ids.shape[1] :].tolist())


def test_logits_and_greedy_tokens_are_the_librarys(model: Model) -> None:
    both = run_both(model)
    assert (both.ours - both.stock).abs().max() <= NEAR
    assert both.stock.std() > 0.1  # the logits say something
    assert both.our_ids == both.stock_ids
    assert len(both.our_ids) > 1


def test_control_without_the_newline_token_the_logits_differ(model: Model) -> None:
    both = run_both(model, newline=False)
    assert (both.ours - both.stock).abs().max() > 100 * NEAR


def test_control_with_another_mean_and_std_the_logits_differ(model: Model) -> None:
    pixels = preprocess.prepare(model.preprocessor, some_frames(), model.device)
    clip = (torch.tensor([0.4815, 0.4578, 0.4082]), torch.tensor([0.2686, 0.2613, 0.2758]))
    mean, std = (part.view(1, 3, 1, 1) for part in clip)
    both = run_both(model, pixels_for_stock=((pixels * 0.5 + 0.5) - mean) / std)
    assert (both.ours - both.stock).abs().max() > 10 * NEAR


def test_the_check_that_users_run_passes(model: Model) -> None:
    comparison = compare_with_stock(model, some_frames(), QUESTION, max_new_tokens=8)
    record = as_record(comparison)
    assert record["passed"], record
    assert comparison.logits_max_difference <= NEAR
    assert comparison.tokens_equal == comparison.tokens_compared > 0
    assert 0 < comparison.stock_relative_error < 1e-4  # eager and SDPA are two kernels
    assert comparison.prompt_tokens == 2 * model.checkpoint.visual_grid**2 + 1 + sum(
        map(len, model.chat.encode(QUESTION))
    )
    assert model.stock.config._attn_implementation == "sdpa"  # put back


def test_control_the_check_fails_on_a_wrong_model(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "newline", property(lambda self: torch.zeros(self.info.shape.hidden)))
    comparison = compare_with_stock(model, some_frames(), QUESTION, max_new_tokens=8)
    assert not comparison.passed
    assert comparison.logits_relative_error > 10 * comparison.stock_relative_error


@torch.inference_mode()
def test_features_are_the_librarys(model: Model) -> None:
    pixels = preprocess.prepare(model.preprocessor, some_frames(), model.device)
    ours = vision.encode(model, pixels)
    stock = model.stock.model.get_video_features(pixels[None]).pooler_output[0]
    tokens = ours.tokens.flatten(0, 1)
    torch.testing.assert_close(tokens, stock[: len(tokens)], atol=1e-5, rtol=1e-5)
    after = stock[len(tokens) :]  # the newline token, in versions of the library that put it there
    assert torch.equal(after, model.newline.expand_as(after))


@torch.inference_mode()
def test_attention_received_is_that_of_eager_attention(model: Model) -> None:
    pixels = preprocess.prepare(model.preprocessor, some_frames(), model.device)
    ours = vision.encode(model, pixels).attention
    weights: list[Tensor] = []
    tower = model.stock.model.vision_tower
    layer = tower.encoder.layers[model.info.shape.vision_layers - 1]
    hook = layer.self_attn.register_forward_hook(lambda _module, _args, out: weights.append(out[1]))
    model.stock.set_attn_implementation("eager")
    try:
        tower(pixels)
    finally:
        model.stock.set_attn_implementation("sdpa")
        hook.remove()
    received = weights[0].mean(1).mean(1)  # over heads, then over queries
    grid, half = model.patch_grid, model.checkpoint.visual_grid
    maps = received.view(len(pixels), 1, grid, grid)
    pooled = torch.nn.functional.interpolate(maps, size=(half, half), mode="bilinear").flatten(1)
    assert ours is not None
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, pooled, atol=1e-7, rtol=1e-5)
    assert (ours.std(1) > 0).all()  # control: not everywhere the same


@torch.inference_mode()
def test_frames_are_encoded_one_by_one(model: Model) -> None:
    """More frames than a chunk holds: each is what it is alone, and in its place."""
    pixels = torch.randn(10, 3, *(2 * [model.checkpoint.config.vision_config.image_size]))
    together = vision.encode(model, pixels)
    alone = vision.encode(model, pixels[8:9])
    torch.testing.assert_close(together.tokens[8:9], alone.tokens, atol=1e-5, rtol=1e-5)
    assert (together.tokens[7:8] - alone.tokens).abs().max() > 1e-2
