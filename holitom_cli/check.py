"""Our pipeline without compression against the stock library, on one checkpoint and the same frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from holitom_cli import methods
from holitom_cli.model import preprocess, vision
from holitom_cli.model.decode import generate
from holitom_cli.model.device import memory_advice
from holitom_cli.model.loading import Model
from holitom_cli.model.prefill import Prefill, prefill
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.types import Frames, Generation

_FLOAT32_ALLOWED = 1e-4  # absolute, in logits
_PIXELS_ALLOWED = 1 / 255
_SCATTER = 1.1


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was measured, over the logits of the Q prompt tokens after the video.

    Relative errors are norm(a - b) / norm(b).
    """

    checkpoint: str
    dtype: str
    frames: int
    prompt_tokens: int
    preprocessing_mean_difference: float | None  # in units of a pixel from 0 to 1; None without torchvision
    logits_max_difference: float  # ours against stock SDPA
    logits_relative_error: float
    stock_relative_error: float  # stock eager against stock SDPA: what the number format alone does
    tokens_equal: int  # greedy tokens alike before the first that differs
    tokens_compared: int

    @property
    def passed(self) -> bool:
        """Whether ours is as near to the stock model as the number format lets two attention kernels be.

        In bfloat16 and float16 every difference, however small, grows to the same floor within a few layers, so two
        right answers scatter around it.
        """
        pixels = self.preprocessing_mean_difference
        if pixels is not None and pixels > _PIXELS_ALLOWED:
            return False
        if self.dtype == "float32":
            return self.logits_max_difference <= _FLOAT32_ALLOWED and self.tokens_equal == self.tokens_compared
        return self.logits_relative_error <= _SCATTER * self.stock_relative_error


@memory_advice("the device", "for the comparison", "Use fewer --num-frames.")
@torch.inference_mode()
def compare_with_stock(model: Model, frames: Frames, question: str, max_new_tokens: int = 16) -> Comparison:
    """Answer one question with every token kept, by our loop and by the library's `generate`.

    The library gets our pixels; that they equal its own processor's is measured apart, where torchvision is there.
    """
    pixels = preprocess.prepare(model.preprocessor, frames, model.device)
    before, after = model.chat.encode(question)
    # 1. Ours.
    visual = methods.get("full").compress(vision.encode(model, pixels, attention=False))
    embeds, span = prompt_embeds(model, before, visual, after)
    state = prefill(model.language_model, model.lm_head, embeds, span, {}, room=max_new_tokens)
    ours = _tail_logits(model, state, len(after))
    ids = list(generate(model.language_model, model.lm_head, state, Generation(max_new_tokens), model.chat.end_ids))
    # 2. The library's.
    inputs = stock_inputs(model, pixels, question)
    stock = _stock_logits(model, inputs, len(after))
    stock_ids = _stock_greedy(model, inputs, max_new_tokens)
    with attention(model, "eager"):
        eager = _stock_logits(model, inputs, len(after))
    # 3. The difference.
    return Comparison(
        checkpoint=model.info.id,
        dtype=model.info.dtype,
        frames=len(frames),
        prompt_tokens=len(embeds),
        preprocessing_mean_difference=_preprocessing_difference(model, frames, pixels),
        logits_max_difference=float((ours - stock).abs().max()),
        logits_relative_error=relative(ours, stock),
        stock_relative_error=relative(eager, stock),
        tokens_equal=_common_start(ids, stock_ids),
        tokens_compared=max(len(ids), len(stock_ids)),
    )


def stock_inputs(model: Model, pixels: Tensor, question: str) -> dict[str, Tensor]:
    """What the library's own model takes for a question about processed frames (F, 3, H, W)."""
    before, after = model.chat.encode(question)
    places = len(pixels) * model.checkpoint.visual_grid**2 + 1  # the newline token has one too
    ids = torch.tensor([before + [model.chat.video_token_id] * places + after], device=model.device)
    video = pixels[None].to(model.dtype)
    return {"input_ids": ids, "pixel_values_videos": video, "attention_mask": torch.ones_like(ids)}


def as_record(comparison: Comparison) -> dict[str, Any]:
    """The comparison and its verdict as plain values."""
    return asdict(comparison) | {"passed": comparison.passed}


def _tail_logits(model: Model, state: Prefill, rows: int) -> Tensor:
    """Our logits of the last prompt tokens, (rows, V) float32."""
    hidden = model.language_model.norm(state.hidden[:, -rows:])
    return model.lm_head(hidden)[0].float().to(model.device)  # type: ignore[no-any-return]


def _stock_logits(model: Model, inputs: dict[str, Tensor], rows: int) -> Tensor:
    """The library's logits of the last prompt tokens, (rows, V) float32."""
    output = model.stock(**inputs, logits_to_keep=rows, use_cache=False)
    return output.logits[0].float().to(model.device)  # type: ignore[no-any-return]


def _stock_greedy(model: Model, inputs: dict[str, Tensor], max_new_tokens: int) -> list[int]:
    output = model.stock.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(model.chat.end_ids) or None,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
    )
    ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


@contextmanager
def attention(model: Model, implementation: str) -> Iterator[None]:
    """Run the library with another attention kernel for a while."""
    before = model.stock.config._attn_implementation
    model.stock.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.stock.set_attn_implementation(before)


def _preprocessing_difference(model: Model, frames: Frames, pixels: Tensor) -> float | None:
    """Mean absolute difference to the library's own processor, in pixels from 0 to 1."""
    try:
        import torchvision  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        return None
    from transformers import LlavaOnevisionVideoProcessor

    processor = LlavaOnevisionVideoProcessor.from_pretrained(model.checkpoint.source.path)
    video = torch.as_tensor(frames.pixels).permute(0, 3, 1, 2)
    theirs = processor(video, return_tensors="pt")["pixel_values_videos"][0].to(pixels.device)
    std = torch.tensor(model.preprocessor.std, device=pixels.device).view(1, 3, 1, 1)
    return float(((pixels - theirs) * std).abs().mean())


def relative(value: Tensor, reference: Tensor) -> float:
    """Relative error: norm(value - reference) / norm(reference)."""
    return float((value - reference).norm() / reference.norm())


def _common_start(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
