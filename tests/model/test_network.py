"""The modules that are run have the library's names, and the library's network can be had on the same weights."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from holitom_cli import load_model
from holitom_cli.errors import ModelError
from holitom_cli.model import vision
from holitom_cli.model.network import Network
from holitom_cli.model.shapes import published_config
from tests.make_random_checkpoint import make_checkpoint

Change = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize("name", ["7b", "0.5b"])
def test_names_and_shapes_are_the_librarys(name: str) -> None:
    from transformers import LlavaOnevisionForConditionalGeneration

    config = published_config(name)
    ours = Network(config, torch.bfloat16)
    with torch.device("meta"):
        librarys: Any = LlavaOnevisionForConditionalGeneration._from_config(config.librarys(), dtype=torch.bfloat16)

    def parts(network: Any) -> dict[str, Any]:
        return {name: (part.shape, part.dtype) for name, part in network.named_parameters()}

    assert parts(ours) == parts(librarys)
    assert len(parts(ours)) > 700
    assert parts(ours) != parts(Network(published_config("0.5b" if name == "7b" else "7b"), torch.bfloat16))  # control


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_the_librarys_network_shares_our_weights(tiny_checkpoint: Path, quantize: str | None) -> None:
    model = load_model(tiny_checkpoint, device="cpu", quantize=quantize)
    ours, stock = dict(model.network.named_parameters()), dict(model.stock.named_parameters())
    assert type(model.stock).__name__ == "LlavaOnevisionForConditionalGeneration"
    shared = {name for name, part in stock.items() if part.data_ptr() == ours[name].data_ptr()}
    assert shared == set(stock)
    assert any(name.endswith(".steps") for name in stock) == bool(quantize)
    assert model.stock is model.stock
    apart = load_model(tiny_checkpoint, device="cpu", quantize=quantize).network.named_parameters()
    assert not any(part.data_ptr() == ours[name].data_ptr() for name, part in apart)  # control


def test_what_a_checkpoint_says_of_generation_reaches_the_librarys_network(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, dtype=torch.float32, seed=1)
    assert load_model(path, device="cpu").stock.generation_config.top_k != 7
    (path / "generation_config.json").write_text(json.dumps({"top_k": 7}))
    assert load_model(path, device="cpu").stock.generation_config.top_k == 7


def test_a_pooling_head_is_not_needed(tmp_path: Path) -> None:
    """Nobody looks at its output, so a checkpoint may have one, or say that it has."""
    path = make_checkpoint(tmp_path, dtype=torch.float32, seed=1)
    plain = load_model(path, device="cpu")
    change(path, lambda config: config["vision_config"].update(vision_use_head=True))
    headed = load_model(path, device="cpu")
    assert any("vision_tower.head" in name for name, _ in headed.stock.named_parameters())
    pixels = torch.randn(2, 3, 384, 384, generator=torch.Generator().manual_seed(0))
    tokens = vision.encode(headed, pixels).tokens.flatten(0, 1)
    assert torch.equal(tokens, vision.encode(plain, pixels).tokens.flatten(0, 1))
    with torch.inference_mode():
        stock = headed.stock.model.get_video_features(pixels[None]).pooler_output[0][: len(tokens)]
    torch.testing.assert_close(tokens, stock, atol=1e-5, rtol=1e-5)


def change(path: Path, how: Change) -> None:
    config = json.loads((path / "config.json").read_text())
    how(config)
    (path / "config.json").write_text(json.dumps(config))


def stretched(config: dict[str, Any]) -> None:
    config["text_config"]["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (stretched, "positions of type 'yarn' are not supported"),
        (lambda config: config["text_config"].update(hidden_act="mish"), "the activation 'mish' is not supported"),
        (lambda config: config["vision_config"].update(hidden_act="quick_gelu"), "'quick_gelu' is not supported"),
        (lambda config: config.update(projector_hidden_act="tanh"), "the activation 'tanh' is not supported"),
        (lambda config: config["vision_config"].update(num_attention_heads=5), "5 heads cannot share 32 features"),
    ],
)
def test_what_these_modules_do_not_do_is_refused(tmp_path: Path, how: Change, said: str) -> None:
    path = make_checkpoint(tmp_path, dtype=torch.float32, seed=1)
    load_model(path, device="cpu")  # control
    change(path, how)
    with pytest.raises(ModelError, match=said):
        load_model(path, device="cpu")


def test_a_missing_layer_is_told(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, dtype=torch.float32, seed=1)
    weights = load_file(path / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("layers.0.mlp.fc1.bias")))
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 tensors, .*mlp\.fc1\.bias among them"):
        load_model(path, device="cpu")


QUESTION = """
import json
import sys
from holitom_cli import load_model, pipeline
model = load_model("demo", device="cpu")
pipeline.ask(model, pipeline.watch(model, sys.argv[1], num_frames=2), "What moves?", max_new_tokens=2)
heavy = {"transformers", "torch._dynamo", "accelerate", "sympy"}
print(json.dumps(sorted(heavy & set(sys.modules))))
model.stock
print(json.dumps(sorted(heavy & set(sys.modules))))
"""


def test_an_answer_does_not_import_the_library(demo_clip: Path) -> None:
    """It and what it brings take longer than all else before a small checkpoint's first token."""
    command = [sys.executable, "-c", QUESTION, str(demo_clip)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    before, after = map(json.loads, done.stdout.splitlines())
    assert before == []
    assert len(after) == 4  # control: it does, and they bring the others
