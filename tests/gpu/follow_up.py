"""How long a follow-up question takes to its first token, beside the stock library's first question, in turns.

    python -m tests.gpu.follow_up [shape:7b or a checkpoint] [DEVICE] [FRAMES]

32 made-up frames, a question of 25 tokens, an answer of 32 and a question of 25 more. Prints a line of JSON for each
method: medians in ms, what is kept in MiB, and how far the follow-up's logits are from those of the whole prompt read
at once, as a share of the largest; the control is how far the first question's are.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
from torch import Tensor

from holitom_cli import methods
from holitom_cli.bench.rivals import Stock, random_prompt, random_words
from holitom_cli.bench.scene import made_up
from holitom_cli.methods import Method
from holitom_cli.model import preprocess, vision
from holitom_cli.model.kept import Kept
from holitom_cli.model.loading import Model, load_model
from holitom_cli.model.prefill import prefill
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.model.shapes import build_shape
from holitom_cli.types import VisualTokens

_METHODS = ("holitom", "full", "fastv", "star-like")
_ROUNDS = 5
_QUESTION, _ANSWER = 25, 32  # tokens


def first_token(
    model: Model, method: Method, visual: VisualTokens, before: list[int], after: list[int], kept: Kept | None
) -> tuple[float, Tensor]:
    """Milliseconds from ids to the first token on the host, and the logits (V,)."""
    began = time.perf_counter()
    with torch.inference_mode():
        embeds, span = prompt_embeds(model, before, visual, after)
        plan = method.reductions(model.checkpoint.depth)
        logits = prefill(model.language_model, model.lm_head, embeds, span, plan, room=256, kept=kept).logits[0]
        int(logits.argmax())
    return 1000 * (time.perf_counter() - began), logits.float()


def measured(model: Model, pixels: Tensor, name: str) -> dict[str, float | str]:
    """One method and the stock library, round by round; the first round is not counted."""
    method = methods.get(name)
    with torch.inference_mode():
        visual = method.compress(vision.encode(model, pixels, attention=method.needs_attention, keys=method.needs_keys))
    prompt = random_prompt(model, _QUESTION, 0)
    whole = prompt.after + random_words(model, _ANSWER + _QUESTION, 1)
    rows: dict[str, list[float]] = {}
    for _ in range(1 + _ROUNDS):
        kept = Kept(model.checkpoint.depth, method.reductions(model.checkpoint.depth))
        first, before = first_token(model, method, visual, prompt.before, prompt.after, kept)
        follow_up, warm = first_token(model, method, visual, prompt.before, whole, kept)
        scratch, cold = first_token(model, method, visual, prompt.before, whole, None)
        stock = Stock().run(model, pixels, prompt, 2).ms["ttft"]
        times = {"first_ms": first, "follow_up_ms": follow_up, "from_scratch_ms": scratch, "stock_ttft_ms": stock}
        for column, ms in times.items():
            rows.setdefault(column, []).append(ms)
    medians = {column: statistics.median(values[1:]) for column, values in rows.items()}
    largest = float(cold.abs().max())
    return {
        "method": name,
        **medians,
        "stock_over_follow_up": medians["stock_ttft_ms"] / medians["follow_up_ms"],
        "kept_mib": kept.nbytes / 2**20,
        "off": float((warm - cold).abs().max()) / largest,
        "off_control": float((before - cold).abs().max()) / largest,
    }


def main() -> None:
    """Measure every method."""
    name, device, frames = (*sys.argv[1:], *("shape:7b", "cuda", "32")[len(sys.argv) - 1 :])
    shape = name.removeprefix("shape:")
    model = build_shape(shape, device=device) if shape != name else load_model(name, device=device)
    pictures = made_up(int(frames), model.checkpoint.preprocessor.height)
    pixels = preprocess.prepare(model.preprocessor, pictures, model.device)
    for method in _METHODS:
        print(json.dumps(measured(model, pixels, method)))


if __name__ == "__main__":
    main()
