"""Write a checkpoint with random weights at the true shape of a published LLaVA-OneVision.

    python -m tests.gpu.true_shapes 7b DIRECTORY [DEVICE]

For what has to come from files: loading, a cold start. `holitom bench --model shape:7b` needs none. The tokenizer is
the tests' own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from holitom_cli.model.shapes import published_config, random_network
from holitom_cli.model.stock import stock_network
from holitom_cli.quality.checkpoint import build_tokenizer, write_text_files
from tests.make_random_checkpoint import WORDS


def write_true_shape(shape: str, directory: Path, device: str = "cuda") -> Path:
    """Write the checkpoint in bfloat16, sharded as published ones are."""
    words = build_tokenizer(WORDS)
    config = published_config(shape, (words.vocab["<image>"], words.vocab["<video>"]))
    network = random_network(config, torch.device(device), torch.bfloat16, label=shape)
    stock_network(network).save_pretrained(directory, max_shard_size="5GB")
    write_text_files(directory, words, config.vision_config.image_size)
    return directory


if __name__ == "__main__":
    write_true_shape(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:4])
