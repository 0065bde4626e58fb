"""Make a tiny LLaVA-OneVision checkpoint with random weights, in the layout of a published one.

A maintainer's script: `python -m tests.make_random_checkpoint` writes tests/data/random_checkpoint/ again, byte for
byte while the libraries' versions stay the same. Tests use that one, and call `make_checkpoint` for other shapes.

The weights are noise, but chosen noise, so that everything around them can be watched at work. Neighbouring
frames of a still scene resemble each other and a cut does not. Every bias and norm weight differs from its
neutral value, so that code which forgets one is found out. The logits depend on the clip and on the question,
and the output matrix favours whole words, so that the noise can be read.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from holitom_cli.quality.checkpoint import build_tokenizer, write_settings, write_text_files

if TYPE_CHECKING:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        PreTrainedTokenizerFast,
    )

RANDOM = Path(__file__).parent / "data" / "random_checkpoint"
# Of seeds 0 to 23 the one whose answers to three real clips read best:
# 2 to 60 tokens, ten of twelve ended by themselves, none began with the end.
SEED = 14

# Each of these becomes one token together with the space before it.
WORDS = (Path(__file__).parent / "data" / "words.txt").read_text(encoding="utf-8").split()

MODEL_CARD = """\
---
library_name: transformers
pipeline_tag: video-text-to-text
license: apache-2.0
---

# Random checkpoint of holitom_cli's tests

A LLaVA-OneVision with **random weights**: its answers are noise. It has the layout of a published checkpoint
({image} x {image} pixels, {grid} x {grid} patches a frame) and next to no width, so that every stage of the
program can be tested in seconds on a machine without a GPU. Nothing was trained, so no data set was used.

| part | shape |
| --- | --- |
| vision tower | {tower_layers} layers, {tower_width} wide, {tower_heads} heads |
| language model | {layers} layers, {width} wide, {heads} heads, {kv_heads} key/value heads, {vocab} tokens |
| tokenizer | byte-level BPE of everyday words; any text survives encoding and decoding |
"""


def make_checkpoint(
    directory: Path,
    *,
    tower_width: int = 32,
    tower_layers: int = 2,
    tower_heads: int = 2,
    width: int = 64,
    layers: int = 6,
    heads: int = 4,
    kv_heads: int = 2,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    tokenizer: bool = True,
    image_size: int = 384,
    patch_size: int = 14,
    vision_feature_layer: int = -1,
) -> Path:
    """Write a random checkpoint to `directory` and return it; `tokenizer=False` leaves text files out."""
    words = build_tokenizer(WORDS)
    config = _config(
        words,
        tower=(tower_width, tower_layers, tower_heads, image_size, patch_size),
        text=(width, layers, heads, kv_heads),
        dtype=dtype,
        vision_feature_layer=vision_feature_layer,
    )
    directory.mkdir(parents=True, exist_ok=True)
    model: Any = random_model(config, words, seed)  # Any: the library's decorated `to` has lost its signature
    model.to(dtype).save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)  # saved readable by its owner alone
    if tokenizer:
        write_text_files(directory, words, image_size)
    else:
        write_settings(directory, words, image_size)
    (directory / "README.md").write_text(_model_card(config), encoding="utf-8")
    return directory


def random_model(
    config: LlavaOnevisionConfig, words: PreTrainedTokenizerFast, seed: int
) -> LlavaOnevisionForConditionalGeneration:
    """Build the float32 model and fill every parameter from one seeded stream, in name order."""
    from transformers import LlavaOnevisionForConditionalGeneration

    model: LlavaOnevisionForConditionalGeneration = LlavaOnevisionForConditionalGeneration(config).eval()
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=stream)
            parameter.copy_(_scaled(name, noise))
        model.lm_head.weight.mul_(_word_weights(words)[:, None])
    return model


def _scaled(name: str, noise: torch.Tensor) -> torch.Tensor:
    """Give standard normal noise the mean and spread that suit this parameter."""
    if "norm" in name and name.endswith("weight"):
        return noise * 0.1 + 1
    if name.endswith("bias"):
        return noise * 0.1
    if noise.ndim == 1 or "embed_tokens" in name:  # the newline token stands among the word embeddings
        return noise * 0.5
    if "position_embedding" in name:
        return noise * 0.3
    # Doubled, attention picks and chooses, and in the language model context outweighs the last word:
    # at 1 greedy answers fall into repeating one word, at 3 float32 rounding reaches 1e-4 in the logits.
    doubled = "language_model" in name or "q_proj" in name or "k_proj" in name
    return noise * ((2.0 if doubled else 1.0) / math.sqrt(noise[0].numel()))


def _word_weights(words: PreTrainedTokenizerFast) -> torch.Tensor:
    """Factor for each row of the output matrix, (vocab,): little for all but whole words and the end."""
    weights = torch.full((len(words),), 0.05)
    ids = [words.encode(f" {word}", add_special_tokens=False) for word in WORDS]
    weights[[one for (one,) in ids]] = 1.0  # fails should a word not be a single token
    weights[words.eos_token_id] = 1.5  # so that some answers end by themselves
    return weights


def _config(
    words: PreTrainedTokenizerFast,
    *,
    tower: tuple[int, int, int, int, int],
    text: tuple[int, int, int, int],
    dtype: torch.dtype,
    vision_feature_layer: int,
) -> LlavaOnevisionConfig:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    tower_width, tower_layers, tower_heads, image_size, patch_size = tower
    width, layers, heads, kv_heads = text
    vision = SiglipVisionConfig(
        hidden_size=tower_width,
        intermediate_size=2 * tower_width,
        num_hidden_layers=tower_layers,
        num_attention_heads=tower_heads,
        image_size=image_size,
        patch_size=patch_size,
        vision_use_head=False,
    )
    language = Qwen2Config(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=width * 3 // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=words.vocab["<image>"],
        video_token_index=words.vocab["<video>"],
        vision_feature_layer=vision_feature_layer,
        dtype=dtype,
    )
    config.holitom_checkpoint = "random"
    return config


def _model_card(config: LlavaOnevisionConfig) -> str:
    vision: Any = config.vision_config
    text: Any = config.text_config
    return MODEL_CARD.format(
        image=vision.image_size,
        grid=vision.image_size // vision.patch_size,
        tower_layers=vision.num_hidden_layers,
        tower_width=vision.hidden_size,
        tower_heads=vision.num_attention_heads,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        vocab=text.vocab_size,
    )


if __name__ == "__main__":
    make_checkpoint(RANDOM, seed=SEED)
