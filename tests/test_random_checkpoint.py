"""The tests' random checkpoint is what its script makes, and stock transformers can run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.make_random_checkpoint import RANDOM, SEED, WORDS, make_checkpoint

QUESTION = [
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What is shown?"}]},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(RANDOM)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlavaOnevisionForConditionalGeneration

    loading: Any = LlavaOnevisionForConditionalGeneration.from_pretrained
    loaded, info = loading(RANDOM, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info  # no missing, unexpected or mismatched tensors
    return loaded


def test_the_files_are_what_the_script_makes(tmp_path: Path) -> None:
    made = make_checkpoint(tmp_path / "again", seed=SEED)
    other = load_file(make_checkpoint(tmp_path / "other", seed=SEED + 1) / "model.safetensors")
    stored, again = load_file(RANDOM / "model.safetensors"), load_file(made / "model.safetensors")
    assert stored.keys() == again.keys()
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, again[name])
        assert not torch.allclose(tensor, other[name])  # control: the seed matters
    assert sum(file.stat().st_size for file in RANDOM.iterdir()) < 1_000_000
    ids = [json.loads((place / "tokenizer.json").read_text())["model"]["vocab"] for place in (RANDOM, made)]
    assert ids[0] == ids[1]


def test_says_that_it_is_random(model: Any) -> None:
    assert model.config.holitom_checkpoint == "random"
    assert "random weights" in (RANDOM / "README.md").read_text(encoding="utf-8")


TEXTS = ["a big dog", "user", "Grüße, 日本 🎬", "e\u0301 \ufb01", "  two\n\ttabs 'don't' \x00"]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_and_specials_are_single_tokens(tokenizer: Any, model: Any) -> None:
    for piece in [*(f" {word}" for word in WORDS), "<|im_start|>", "<|im_end|>", "<image>", "<video>"]:
        assert len(tokenizer.encode(piece)) == 1, piece
    assert model.config.video_token_id == tokenizer.convert_tokens_to_ids("<video>")
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert len(tokenizer) == model.config.text_config.vocab_size


def test_chat_template_is_chatml_with_the_video_first(tokenizer: Any) -> None:
    prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user <video>\nWhat is shown?<|im_end|><|im_start|>assistant\n"
    text_only = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert text_only == "<|im_start|>user Hello<|im_end|>"


def _answer(model: Any, tokenizer: Any, pixels: torch.Tensor, question: str) -> list[int]:
    """Greedy ids of stock transformers for pixels (F, 3, 384, 384)."""
    video = "<video>" * (len(pixels) * 196 + 1)
    prompt = f"<|im_start|>user {video}\n{question}<|im_end|><|im_start|>assistant\n"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=pixels[None],
        max_new_tokens=16,
    )
    answer: list[int] = made[0, ids.shape[1] :].tolist()
    return answer


def test_answers_are_words_that_depend_on_clip_and_question(model: Any, tokenizer: Any) -> None:
    noise = torch.rand(2, 2, 3, 384, 384, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first = _answer(model, tokenizer, noise[0], "What is shown?")
    assert _answer(model, tokenizer, noise[0], "What is shown?") == first
    others = [_answer(model, tokenizer, noise[1].sign(), "What is shown?")]
    others += [_answer(model, tokenizer, noise[0], "Who is there?")]
    assert all(other != first for other in others)
    for ids in (first, *others):
        assert len(ids) > 1  # the end token does not come first
        spoken = tokenizer.decode(ids, skip_special_tokens=True).split()
        assert set(spoken) <= set(WORDS)
