"""Whether what is timed is right: our logits against the stock library's, and a CUDA graph's against plain steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from holitom_cli import methods
from holitom_cli.bench.rivals import Prompt, prefilled, random_words, stock_inputs
from holitom_cli.check import attention, relative
from holitom_cli.model import vision
from holitom_cli.model.decode import DecodeStep
from holitom_cli.model.device import memory_advice

if TYPE_CHECKING:
    from holitom_cli.methods import Method
    from holitom_cli.model.loading import Model

_FLOAT32_ALLOWED = 1e-4  # relative
_SCATTER = 1.5  # two right answers in 16 bits lie this much apart at most, in units of what a kernel alone does


@memory_advice("the device", "for the comparison with stock transformers", "Use fewer --num-frames, or --against full.")
@torch.inference_mode()
def with_stock(model: Model, pixels: Tensor, prompt: Prompt, steps: int, seed: int = 0) -> dict[str, Any]:
    """Every token kept: the logits of a prompt's last token and of `steps` given tokens behind it.

    Ours come from prefill and one step a token, the library's from one pass over everything. Relative errors are
    norm(a - b) / norm(b) over (steps + 1, V).

    Args:
        model: the model.
        pixels: processed frames (F, 3, H, W).
        prompt: the words around them.
        steps: how many tokens are decoded, at least 2.
        seed: of these tokens.

    Returns:
        The error; what the library's other attention kernel does to its own logits; the bound, which follows from it
        in 16 bits; and two errors made on purpose: steps that come one too late, which has to be above the bound, and
        positions that are one too high from the first step on, which random weights may hardly notice.
    """
    ids = random_words(model, steps, seed)
    stock = _stock(model, pixels, prompt, ids)
    with attention(model, "eager"):
        kernel = relative(_stock(model, pixels, prompt, ids), stock)
    full = methods.get("full")
    ours = _ours(model, full, pixels, prompt, ids)
    shifted = relative(_ours(model, full, pixels, prompt, ids, shift=1), stock)
    error, late = relative(ours, stock), relative(ours.roll(1, 0), stock)
    bound = _FLOAT32_ALLOWED if model.info.dtype == "float32" else _SCATTER * kernel
    return {
        "steps": steps,
        "relative_error": error,
        "max_difference": float((ours - stock).abs().max()),
        "stock_eager_relative_error": kernel,
        "bound": bound,
        "control_shifted_positions": shifted,
        "control_one_step_late": late,
        "tokens_equal": int((ours.argmax(-1) == stock.argmax(-1)).sum()),
        "passed": error <= bound < late,
    }


@torch.inference_mode()
def graph_with_plain(model: Model, method: Method, pixels: Tensor, prompt: Prompt, steps: int) -> dict[str, Any] | None:
    """Steps from the CUDA graph against plain ones, behind a method's merges; None where there are no graphs.

    Relative errors as in `with_stock`, with a control whose positions are one too high.
    """
    if model.device.type != "cuda":
        return None
    ids = random_words(model, steps, seed=0)
    plain = _ours(model, method, pixels, prompt, ids, plain=True)
    graph = _ours(model, method, pixels, prompt, ids)
    shifted = _ours(model, method, pixels, prompt, ids, shift=1)
    return {
        "steps": steps,
        "relative_error": relative(graph, plain),
        "max_difference": float((graph - plain).abs().max()),
        "control_shifted_positions": relative(shifted, plain),
    }


def _ours(
    model: Model,
    method: Method,
    pixels: Tensor,
    prompt: Prompt,
    ids: Sequence[int],
    *,
    shift: int = 0,
    plain: bool = False,
) -> Tensor:
    """Logits (steps + 1, V) float32 from prefill and one step a token."""
    features = vision.encode(model, pixels, attention=method.needs_attention, keys=method.needs_keys)
    state = prefilled(model, method, method.compress(features), prompt, len(ids))
    step = DecodeStep(model.language_model, model.lm_head, state.cache, state.next_position + shift)
    if plain:
        step.EAGER_STEPS = len(ids)
    rows = [state.logits.float()]
    rows += [step(torch.tensor([token], device=model.device)).float().clone() for token in ids]
    return torch.cat(rows)


def _stock(model: Model, pixels: Tensor, prompt: Prompt, ids: Sequence[int]) -> Tensor:
    """The same from one pass of the library's over prompt and tokens."""
    inputs = stock_inputs(model, pixels, Prompt(prompt.before, [*prompt.after, *ids]))
    output = model.stock(**inputs, logits_to_keep=len(ids) + 1, use_cache=False)
    return output.logits[0].float()  # type: ignore[no-any-return]
