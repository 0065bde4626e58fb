"""The small model's architecture, tokenizer and files, in the layout of a published LLaVA-OneVision checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlavaOnevisionConfig, PreTrainedTokenizerFast, Qwen2Config, SiglipVisionConfig

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + ' ' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] | selectattr('type', 'in', ['image', 'video']) -%}
{{- '<' + part['type'] + '>\\n' -}}
{%- endfor -%}
{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}
{{- part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths and depths of the small model: 7.5 million parameters, 15 MB in bfloat16."""

    image: int = 112
    patch: int = 8
    tower_width: int = 192
    tower_layers: int = 5
    tower_heads: int = 6
    width: int = 256
    layers: int = 7
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 640


def build_tokenizer(words: Iterable[str], first: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each word is one token, with the space before it; any text can be encoded.

    Words of `first` are one token without a space too, as they are at the beginning of an answer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,  # never reached: merging ends when every word is whole
        min_frequency=1,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([*(f" {word}" for word in words), *first], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )


def build_config(shape: Shape, words: PreTrainedTokenizerFast) -> LlavaOnevisionConfig:
    """The configuration of a small model; its word embeddings serve as output matrix too."""
    vision = SiglipVisionConfig(
        hidden_size=shape.tower_width,
        intermediate_size=4 * shape.tower_width,
        num_hidden_layers=shape.tower_layers,
        num_attention_heads=shape.tower_heads,
        image_size=shape.image,
        patch_size=shape.patch,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(words),
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.vocab["<image>"],
        video_token_index=words.vocab["<video>"],
        tie_word_embeddings=True,
    )


def write_text_files(directory: Path, words: PreTrainedTokenizerFast, image_size: int) -> None:
    """Everything but the weights and their configuration: tokenizer, template, end token, preprocessors."""
    write_settings(directory, words, image_size)
    words.save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_settings(directory: Path, words: PreTrainedTokenizerFast, image_size: int) -> None:
    """The end token, and the still and the video preprocessor, which differ in their class and type only."""
    ends = {"do_sample": False, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    write_json(directory / "generation_config.json", ends)
    common = {
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
        "processor_class": "LlavaOnevisionProcessor",
    }
    still = {"image_processor_type": "LlavaOnevisionImageProcessor"}
    video = {"video_processor_type": "LlavaOnevisionVideoProcessor", "do_sample_frames": False}
    write_json(directory / "preprocessor_config.json", common | still)
    write_json(directory / "video_preprocessor_config.json", common | video)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """An object as a checkpoint's files hold it."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
