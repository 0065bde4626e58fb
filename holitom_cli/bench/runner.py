"""Rounds in which every rival answers once, and the figures of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from holitom_cli import methods, pipeline
from holitom_cli.bench import work
from holitom_cli.bench.ceilings import Ceilings
from holitom_cli.bench.rivals import Ours, Prompt, Rival, Run, Stock, cache_bytes, random_prompt
from holitom_cli.bench.work import Work
from holitom_cli.clock import Clock
from holitom_cli.errors import HolitomError
from holitom_cli.model import preprocess
from holitom_cli.model.device import memory_advice
from holitom_cli.types import Frames

if TYPE_CHECKING:
    from torch import Tensor

    from holitom_cli.model.loading import Model

_BEFORE_FIRST = ("vision", "compress", "prefill")  # stages that the first token waits for
_SHORTEST = 12  # text tokens behind the video
_SMALLER = "Use fewer --num-frames, a smaller --model, or leave rivals out with --against."


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is timed."""

    repeats: int  # rounds that count
    warmup: int  # rounds before them
    new_tokens: int  # of every answer
    seed: int = 0


@dataclass(slots=True)
class Timed:
    """A rival on one clip: every run that it came through, or why it did not."""

    rival: Rival
    runs: list[Run] = field(default_factory=list)
    error: HolitomError | None = None


def rounds(
    model: Model, rivals: Sequence[Rival], frames: Frames, plan: Plan, step: Callable[[], None] = lambda: None
) -> list[Timed]:
    """Let every rival answer once a round, all with the same pixels and prompt.

    No round repeats another one's shapes: prompts differ in length, and frames begin elsewhere, so that segments and
    kept tokens differ. A rival that runs out of memory, or whose prompt the model has no positions for, is left out of
    the rounds that follow.

    Args:
        model: answers.
        rivals: in the order in which they answer; the very first call of a process is the first one's.
        frames: of the clip.
        plan: how often.
        step: called after each answer.
    """
    results = [Timed(rival, error=_too_long(model, rival, len(frames), plan)) for rival in rivals]
    for index in range(plan.warmup + plan.repeats):
        prompt = random_prompt(model, _SHORTEST + index, plan.seed + index)
        pixels, ms = _pixels(model, _begin_at(frames, index))
        for timed in results:
            if timed.error is None:
                _answer(model, timed, pixels, prompt, plan.new_tokens, ms)
                step()
    return results


def _answer(model: Model, timed: Timed, pixels: Tensor, prompt: Prompt, new_tokens: int, ms: float) -> None:
    """One more run."""
    try:
        with torch.inference_mode(), memory_advice(model.info.device_name, f"for {timed.rival.label}", _SMALLER):
            run = timed.rival.run(model, pixels, prompt, new_tokens)
    except HolitomError as error:
        timed.error = type(error)(error.message, error.hint)  # without its traceback, which holds tensors
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
    else:
        timed.runs.append(run.with_stage("preprocess", ms) if isinstance(timed.rival, Ours) else run)


def _too_long(model: Model, rival: Rival, frames: int, plan: Plan) -> HolitomError | None:
    """Why a prompt does not fit the model's positions, if it does not."""
    method = rival.method if isinstance(rival, Ours) else methods.get("full")
    text = _SHORTEST * 3 + plan.warmup + plan.repeats + plan.new_tokens
    try:
        pipeline.check_room(model.checkpoint, method, frames, text)
    except HolitomError as error:
        return error
    return None


@torch.inference_mode()
def _pixels(model: Model, frames: Frames) -> tuple[Tensor, float]:
    """Processed frames on the device, and the milliseconds that it took."""
    clock = Clock(model.device)
    with clock.stage("preprocess"):
        pixels = preprocess.prepare(model.preprocessor, frames, model.device)
    return pixels, clock.milliseconds()["preprocess"]


def _begin_at(frames: Frames, index: int) -> Frames:
    """The same frames, beginning with another one."""
    return Frames(np.roll(frames.pixels, -index, 0), frames.seconds)


# --- figures -------------------------------------------------------------------------------------


def row(model: Model, timed: Timed, frames: Frames, plan: Plan, ceilings: Ceilings) -> dict[str, Any]:
    """Everything about one rival on one clip, as plain values; times in ms."""
    kept = timed.runs[plan.warmup :]
    common = {"frames": len(frames), **_who(timed.rival), "original_tokens": len(frames) * _patches(model)}
    if not kept or timed.error:
        error = timed.error or HolitomError("No run was timed.")
        fault = {"stage": error.stage, "message": error.message, "hint": error.hint}
        return common | {"error": fault}
    middle = sorted(kept, key=lambda run: run.visual)[len(kept) // 2]
    needs = needed(model, timed.rival, _encoded(frames), middle, plan.new_tokens)
    stages = {
        name: figures([run.ms[name] for run in timed.runs], plan.warmup, needs.get(name), ceilings)
        for name in kept[0].ms
    }
    stages["ttft"]["floor_ms"] = sum(stages[name]["floor_ms"] or 0 for name in _BEFORE_FIRST if name in stages)
    return common | {
        "visual_tokens": middle.visual,
        "prompt_tokens": middle.tokens[0],
        "stages": stages,
        "memory": {
            "beyond_weights_bytes": max(run.peak_bytes or 0 for run in kept) or None,
            "cache_bytes": cache_bytes(model, middle, plan.new_tokens),
        },
    }


def _who(rival: Rival) -> dict[str, Any]:
    if not isinstance(rival, Ours):
        return {"rival": rival.label, "budget": 100, "method_settings": {}}
    settings = asdict(rival.method)  # type: ignore[call-overload]  # every method is a dataclass
    return {"rival": rival.label, "budget": rival.budget, "method_settings": settings}


def figures(times: Sequence[float], warmup: int, needs: Work | None, ceilings: Ceilings) -> dict[str, float | None]:
    """Median and spread of the times that count, the first one of all, and what was achieved.

    Args:
        times: ms, those of the warm-up first.
        warmup: how many of them.
        needs: what had to be done, where that is known.
        ceilings: what the device can do.
    """
    counted = times[warmup:]
    middle = median(counted)
    found = {"median_ms": middle, "low_ms": min(counted), "high_ms": max(counted), "first_ms": times[0]}
    seconds = middle / 1000
    return found | {
        "tflop_per_s": needs.flops / seconds / 1e12 if needs and needs.flops and seconds else None,
        "tb_per_s": needs.bytes / seconds / 1e12 if needs and seconds else None,
        "floor_ms": ceilings.floor_ms(needs) if needs else None,
    }


def needed(model: Model, rival: Rival, encoded: int, run: Run, new_tokens: int) -> dict[str, Work]:
    """What each stage of a run had to do at least."""
    ours = isinstance(rival, Ours)
    attention = isinstance(rival, Ours) and rival.method.needs_attention
    half = [tokens + new_tokens // 2 for tokens in run.cached]  # in the middle of the answer
    step = work.decode(model, half)
    found = {
        "vision": work.vision(model, encoded, attention=attention),
        "projector and pool": work.project(model, encoded),
        "prefill": work.prefill(model, run.tokens),
        "per token": step,
    }
    if ours:
        found |= {"preprocess": work.preprocess(model, encoded), "step": step}
    if ours and run.visual < encoded * _patches(model):
        found["compress"] = work.compress(model, encoded, run.visual)
    return found


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """Add to every row how many times faster it is than the rivals that keep every token, on the same clip."""
    for one in rows:
        one["faster_than"] = {
            other["rival"]: {name: _times(other, one, name) for name in ("ttft", "per token")}
            for other in rows
            if other["rival"] in ("full", "stock") and other["rival"] != one["rival"] and "stages" in other
            if "stages" in one
        }


def _times(slower: Mapping[str, Any], faster: Mapping[str, Any], name: str) -> float:
    return float(slower["stages"][name]["median_ms"] / faster["stages"][name]["median_ms"])


def _encoded(frames: Frames) -> int:
    """Frames that differ from the one before."""
    changed = (frames.pixels[1:] != frames.pixels[:-1]).any(axis=(1, 2, 3))
    return 1 + int(changed.sum())


def _patches(model: Model) -> int:
    return model.checkpoint.visual_grid**2


def line_up(variants: Sequence[Ours], against: Sequence[str]) -> list[Rival]:
    """The variants, then those of `against` that are not among them: full and stock keep every token."""
    rivals: list[Rival] = list(variants)
    if "full" in against and all(rival.label != "full" for rival in rivals):
        rivals.append(Ours("full", 100, methods.get("full")))
    if "stock" in against:
        rivals.append(Stock())
    return rivals
