"""The library's own network on the weights of ours: what is compared with, and what a spread model runs on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holitom_cli.model.network import Network
from holitom_cli.model.quantise import Packed
from holitom_cli.model.weights import fill


def stock_network(ours: Network, directory: Path | None = None) -> Any:
    """The library's network, which shares the parameters of ours.

    Args:
        ours: with its weights.
        directory: of the checkpoint, for what it says about generation; None where there is none.
    """
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers import GenerationConfig, LlavaOnevisionForConditionalGeneration

    with quiet():
        with init_empty_weights(include_buffers=False):
            network: Any = LlavaOnevisionForConditionalGeneration._from_config(
                ours.config.librarys(), dtype=ours.dtype, attn_implementation="sdpa"
            )
        network.tie_weights()  # accelerate replaces each parameter by one of its own
        if directory and (directory / "generation_config.json").is_file():
            network.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    device = ours.model.image_newline.device
    fill(network, lambda name, like: _same(ours, name, like, device))
    return network.to(device).eval()  # the buffers


def _same(ours: Network, name: str, like: Tensor, device: torch.device) -> Tensor | Packed:
    """Our parameter of that name; of a tower's pooling head, whose output is not used, zeros."""
    place, _, kind = name.rpartition(".")
    try:
        module: Any = ours.get_submodule(place)
    except AttributeError:
        if not name.startswith("model.vision_tower.head."):
            raise
        return torch.zeros(like.shape, dtype=like.dtype, device=device)
    held = getattr(module, "packed", None) if kind == "weight" else None
    return ours.get_parameter(name).data if held is None else held


def spread_network(directory: Path, dtype: torch.dtype, device_map: Any) -> tuple[Any, Any]:
    """The library's network spread over several devices by accelerate, and what it says of the files."""
    from transformers import LlavaOnevisionForConditionalGeneration

    with quiet():
        loaded: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(
            directory,
            dtype=dtype,
            device_map=device_map,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to be named by the caller; the library would point at its log
        )
    network, report = loaded
    return network, report


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's progress bars and warnings off the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # The newline token is a parameter, not a module, so accelerate does not find it by its name.
            warnings.filterwarnings("ignore", "The following device_map keys")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
