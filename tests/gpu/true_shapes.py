"""Write a checkpoint with random weights at the true shape of a published LLaVA-OneVision.

    python -m tests.gpu.true_shapes 7b DIRECTORY

Speed and arithmetic need the shapes, not the knowledge. The tokenizer is the tests' own; widths, depths and the
vocabulary are those that the published configurations state.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from holitom_cli.quality.checkpoint import build_tokenizer, write_text_files
from tests.make_random_checkpoint import WORDS

_TEXT: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152128,
        "tie_word_embeddings": False,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 152000,
        "tie_word_embeddings": True,
    },
}
_ROPE: Any = {"rope_type": "default", "rope_theta": 1e6}
_TOWER: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}


def write_true_shape(shape: str, directory: Path, device: str = "cuda", seed: int = 0) -> Path:
    """Write the checkpoint in bfloat16, sharded as published ones are."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    words = build_tokenizer(WORDS)
    text = Qwen2Config(**_TEXT[shape], max_position_embeddings=32768, rope_parameters=_ROPE)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**_TOWER),
        text_config=text,
        image_token_index=words.vocab["<image>"],
        video_token_index=words.vocab["<video>"],
        tie_word_embeddings=text.tie_word_embeddings,
    )
    config.holitom_checkpoint = "random"
    torch.manual_seed(seed)
    with torch.device(device):
        network: Any = LlavaOnevisionForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(directory, max_shard_size="5GB")
    write_text_files(directory, words, _TOWER["image_size"])
    return directory


if __name__ == "__main__":
    write_true_shape(sys.argv[1], Path(sys.argv[2]))
