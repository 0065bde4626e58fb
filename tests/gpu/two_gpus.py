"""A checkpoint spread over two GPUs by accelerate answers as the unspread one does.

python -m tests.gpu.two_gpus
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from holitom_cli import ask, load_model, methods, watch
from holitom_cli.model.decode import decode_one_token
from holitom_cli.model.loading import Model
from holitom_cli.model.prefill import prefill
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.model.vision import encode
from holitom_cli.types import Frames
from tests.make_random_checkpoint import make_checkpoint

_STEPS = 8


@torch.inference_mode()
def logits(model: Model, inner_layer: int | str) -> torch.Tensor:
    """Logits of the prompt and of 8 decode steps (9, V), with the merge before `inner_layer`."""
    pixels = torch.randn(6, 3, 384, 384, generator=torch.Generator().manual_seed(0)).to(model.device)
    method = methods.get("holitom", inner_layer=inner_layer)
    before, after = model.chat.encode("What is it?")
    embeds, span = prompt_embeds(model, before, method.compress(encode(model, pixels)), after)
    reductions = method.reductions(model.checkpoint.depth)
    state = prefill(model.language_model, model.lm_head, embeds, span, reductions, room=_STEPS)
    rows, position = [state.logits], state.next_position
    for token in range(20, 20 + _STEPS):
        ids = torch.tensor([token], device=embeds.device)
        rows.append(decode_one_token(model.language_model, model.lm_head, state.cache, ids, position))
        position = position + 1
    return torch.cat(rows).float().cpu()


def said(model: Model) -> tuple[int, ...]:
    """The tokens of an answer that is long enough to come from a CUDA graph, on whichever GPU the model is."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3)).astype(np.uint8)
    watched = watch(model, Frames(pixels, np.arange(4.0)))
    asked = ("What is it?", "Who is there?", "Why?")
    return tuple(token for text in asked for token in ask(model, watched, text, max_new_tokens=24).token_ids)


def main() -> None:
    """Spread the language model's layers alternately, everything else on the first GPU."""
    with tempfile.TemporaryDirectory() as scratch:
        path = make_checkpoint(Path(scratch), dtype=torch.float32)
        whole = load_model(path, device="cuda:0", dtype="float32")
        spread_map: dict[str, int | str] = {
            "model.vision_tower": 1,
            "model.multi_modal_projector": 0,
            "model.image_newline": 1,
            "model.language_model.embed_tokens": 0,
            "model.language_model.norm": 0,
            "model.language_model.rotary_emb": 0,
            "lm_head": 1,
        }
        spread_map |= {f"model.language_model.layers.{index}": index % 2 for index in range(6)}
        spread = load_model(path, device="cuda:0", dtype="float32", device_map=spread_map)
        reference = logits(whole, 4)
        result = {
            "max_difference": float((logits(spread, 4) - reference).abs().max()),
            "control_without_merge": float((logits(spread, "off") - reference).abs().max()),
        }
        automatic = load_model(path, device="cuda:0", dtype="float32", device_map="auto")
        result["max_difference_auto"] = float((logits(automatic, 4) - reference).abs().max())
        result["second_gpu_says_the_same"] = float(
            said(load_model(path, device="cuda:1", dtype="float32")) == said(whole)
        )
    print(json.dumps(result))
    alike = result["max_difference"] <= 1e-4 and result["second_gpu_says_the_same"] == 1
    if not (alike and result["control_without_merge"] > 1e-4):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
