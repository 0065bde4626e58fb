"""The bundled demo checkpoint: complete, small enough, and one that stock transformers can run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from holitom_cli.model.hub import DEMO, locate
from holitom_cli.model.loading import load_model
from holitom_cli.pipeline import ask, watch
from tests.bundle_demo import MOST_BYTES

FOLDER = locate(DEMO).path


def test_it_is_found_by_its_name_in_the_package() -> None:
    import holitom_cli

    model = load_model("demo", device="cpu")
    assert Path(holitom_cli.__file__).parent in FOLDER.parents
    assert (model.info.id, model.info.kind, model.info.path) == ("demo", "demo", str(FOLDER))
    assert not any(module.training for module in model.network.modules())


def test_it_travels_in_the_package() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= MOST_BYTES
    assert [file.name for file in FOLDER.glob("*.safetensors")] == ["model.safetensors"]
    assert "license: apache-2.0" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_stock_library_finds_every_tensor_and_token() -> None:
    from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

    loading: Any = LlavaOnevisionForConditionalGeneration.from_pretrained
    model, info = loading(FOLDER, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info  # no missing, unexpected or mismatched tensors
    words: Any = AutoTokenizer.from_pretrained(FOLDER)
    assert model.config.video_token_id == words.convert_tokens_to_ids("<video>")
    assert model.config.image_token_id == words.convert_tokens_to_ids("<image>")
    assert model.generation_config.eos_token_id == words.convert_tokens_to_ids("<|im_end|>")
    assert len(words) == model.config.text_config.vocab_size
    content = [{"type": "video"}, {"type": "text", "text": "How many?"}]
    prompt = words.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    assert prompt == "<|im_start|>user <video>\nHow many?<|im_end|>"


@pytest.mark.parametrize("random", [False, True])
def test_outside_its_world_a_warning_says_so(demo_clip: Path, random: bool) -> None:
    """Trained weights know one world; random ones know none, and say that instead."""
    model = load_model("demo", device="cpu")
    object.__setattr__(model.checkpoint, "random", random)
    answer = ask(model, watch(model, demo_clip, num_frames=2), "What is it?", max_new_tokens=1)
    (warning,) = answer.warnings
    assert ("generated clips of moving shapes" in warning) is not random
    assert ("noise" in warning) is random


def test_random_weights_are_marked_as_such() -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert ("random weights" in card) is (config.get("holitom_checkpoint") == "random")
