"""Where the time of HoliTom's compression goes, and whether a GPU chooses the tokens that plain torch on a CPU chooses.

    python -m tests.gpu.compress [--device cuda] [--model shape:7b] [--frames 32 256] [--repeats 30]

Tokens are made up, as wide as the model's. Prints a line for each clip, then what is in the projector, the pool and the
merge inside, as `holitom bench` times them. Ends with JSON; the exit code is 1 where what a GPU does is too far off, or
where something else is not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from holitom_cli import load_model, methods
from holitom_cli.algebra import kernels
from holitom_cli.algebra.segments import neighbour_similarity
from holitom_cli.bench import parts
from holitom_cli.methods import Method, holitom
from holitom_cli.model import Model
from holitom_cli.model.shapes import PREFIX, build_shape
from holitom_cli.types import VideoFeatures, VisualTokens

_KINDS = ("still", "half", "cuts", "flicker", "moving")
_FIELDS = ("frame", "cell", "size", "source")
_WARM = 5
_EQUAL = 0.999  # share of the account that has to be the same: sums differ in their last digits, and so may ties
_NEAR = 1e-2  # relative, of embeddings in bfloat16
_QUESTION = 30  # tokens of text around the visual ones


def clip(kind: str, frames: int, grid: int, width: int, device: torch.device) -> VideoFeatures:
    """A clip in which each cell has a scene's colour of its own, and its own unrest from frame to frame."""
    stream = torch.Generator().manual_seed(frames)
    patches = grid * grid

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=stream)

    scene = drawn(patches, 1) * drawn(1, width) + drawn(patches, width)
    unrest = {"still": 0.1, "half": 0.2, "cuts": 0.2, "flicker": 0.5, "moving": 3.0}[kind]
    shaky = unrest * (0.5 + torch.rand(patches, 1, generator=stream))
    if kind == "half":
        shaky[::2] = 2.0
    tokens = torch.empty(frames, patches, width, dtype=torch.bfloat16)
    for index in range(frames):
        if kind == "cuts" and index % 8 == 7:
            scene = drawn(patches, 1) * drawn(1, width) + drawn(patches, width)
        tokens[index] = scene + shaky * drawn(patches, width) * (1 + (index % 3 == 2) * (kind == "flicker"))
    return VideoFeatures(tokens.to(device), torch.rand(frames, patches, generator=stream).to(device), grid)


def method_for(kind: str, frames: int) -> Method:
    """HoliTom with its defaults; where next to nothing changes these would keep every cell, so half of them."""
    return methods.get("holitom", retain_ratio={"still": 0.5 / frames, "cuts": 0.06}.get(kind, 0.15))


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_ms(device: torch.device, run: Callable[[], object]) -> float:
    """Of one run, the device idle before and after."""
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    return 1000 * (time.perf_counter() - began)


@contextmanager
def host_ms(into: dict[str, list[float]]) -> Iterator[None]:
    """Time the plan of what is kept, its wait for a GPU included, and what of it is the host's."""

    def timed(name: str, function: Any) -> Any:
        def run(*args: Any) -> Any:
            began = time.perf_counter()
            result = function(*args)
            into.setdefault(name, []).append(1000 * (time.perf_counter() - began))
            return result

        return run

    with ExitStack() as stack:
        for name in ("_plan_here", "_plan_there", "segment", "_shares", "moved"):
            stack.enter_context(mock.patch.object(holitom, name, timed(name.strip("_"), getattr(holitom, name))))
        yield


def launches(device: torch.device, run: Callable[[], object]) -> dict[str, Any]:
    """Kernels and copies on a GPU, before and after the wait for it, and their time."""
    if device.type != "cuda":
        return {}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
        wait(device)
    work = sorted(
        (event for event in seen.events() if event.device_type.name == "CUDA"),
        key=lambda event: event.time_range.start,
    )
    back = next(index for index, event in enumerate(work) if "DtoH" in event.name)
    names = [event.name for event in work]
    busy = [event.time_range.elapsed_us() / 1000 for event in work]
    slow = sorted(zip(busy, names, strict=True), reverse=True)[:6]
    return {
        "launches": len(work),
        "launches_after_wait": len(work) - back - 1,
        "gpu_ms_before_wait": sum(busy[: back + 1]),
        "gpu_ms_after_wait": sum(busy[back + 1 :]),
        "slowest": [f"{ms:.3f} {name[:60]}" for ms, name in slow],
    }


def on_cpu(video: VideoFeatures) -> VideoFeatures:
    assert video.attention is not None
    return VideoFeatures(video.tokens.cpu(), video.attention.cpu(), video.grid)


def equal_share(one: VisualTokens, other: VisualTokens) -> float:
    """The least share of equal entries in any part of the account; 0 where there are more tokens in one."""
    if len(one) != len(other) or one.segments != other.segments:
        return 0.0
    pairs = [(getattr(one, name).cpu(), getattr(other, name).cpu()) for name in _FIELDS]
    return min(float((a == b).float().mean()) for a, b in pairs)


def checked(video: VideoFeatures, method: Method) -> dict[str, Any]:
    """Against plain torch on the CPU, and there against the cells in another order."""
    found, again = method.compress(video), method.compress(video)
    plain = on_cpu(video)
    expected = method.compress(plain)
    assert plain.attention is not None
    other = method.compress(VideoFeatures(plain.tokens.flip(1), plain.attention.roll(1, 1), plain.grid))
    share = equal_share(found, expected)
    off = 1.0
    if len(found) == len(expected):
        off = float((found.embeds.cpu().float() - expected.embeds.float()).norm() / expected.embeds.float().norm())
    same = all(torch.equal(getattr(found, name), getattr(again, name)) for name in ("embeds", *_FIELDS))
    control = equal_share(found, other)
    return {
        "tokens": len(found),
        "segments": len(found.segments),
        "equal_share": share,
        "control_share": control,
        "embeds_relative_error": off,
        "same_on_every_run": same,
        "passed": share >= _EQUAL > control and off < _NEAR and same,
    }


def timed(video: VideoFeatures, method: Method, repeats: int) -> dict[str, Any]:
    """Medians in ms, the first call beside them."""
    device = video.tokens.device

    def run() -> object:
        return method.compress(video)

    first = wall_ms(device, run)
    for _ in range(_WARM):
        run()
    walls = [wall_ms(device, run) for _ in range(repeats)]
    hosts: dict[str, list[float]] = {}
    with host_ms(hosts):
        for _ in range(repeats):
            wait(device)
            run()
    host = {f"host_{name}_ms": statistics.median(times) for name, times in hosts.items()}
    return {"wall_ms": statistics.median(walls), "low_ms": min(walls), "first_ms": first, **host} | launches(
        device, run
    )


def kernels_checked(video: VideoFeatures) -> dict[str, Any]:
    """The sums over a clip by their kernels, in bfloat16, and by plain torch, in float32."""
    tokens, exact = video.tokens, video.tokens.float()
    bounds = np.array([(start, min(start + 5, len(tokens))) for start in range(0, len(tokens), 5)])
    there = torch.from_numpy(bounds).to(tokens.device)
    similarity, plain = neighbour_similarity(tokens), neighbour_similarity(exact)
    means, plain_means = (kernels.segment_means(one, bounds, there) for one in (tokens, exact))
    found = {
        "kernels_used": kernels.runs_on(tokens),
        "similarity_error": float((similarity - plain).abs().max()),
        "similarity_control": float((similarity.roll(1, 1) - plain).abs().max()),
        "means_error": float((means - plain_means).abs().max()),
        "means_control": float((means.roll(1, 0) - plain_means).abs().max()),
    }
    passed = all(found[f"{name}_error"] < 1e-5 < found[f"{name}_control"] for name in ("similarity", "means"))
    return found | {"passed": passed}


def parts_ms(model: Model, frames: int, visual: int, repeats: int) -> dict[str, float]:
    """Projector and pool, attention received and the merge inside, medians."""
    method = methods.get("holitom")
    depth = model.checkpoint.depth
    (layer,) = method.reductions(depth)
    left = max(1, round((visual + 1) * 0.5))
    tokens = [visual + 1 + _QUESTION] * layer + [left + _QUESTION] * (depth - layer)
    runs = [parts.timed(model, method, frames, tokens, range(14, 14 + visual + 1)) for _ in range(_WARM + repeats)][
        _WARM:
    ]
    return {f"{name} ms": statistics.median(run[name] for run in runs) for name in runs[0]}


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="shape:7b")
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--repeats", type=int, default=30)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and compare."""
    asked = options(arguments)
    build = build_shape if asked.model.startswith(PREFIX) else load_model
    model = build(asked.model.removeprefix(PREFIX), device=asked.device)
    with torch.inference_mode():
        return measure(model, asked)


def measure(model: Model, asked: argparse.Namespace) -> int:
    """Everything, printed; the exit code."""
    device = model.device
    grid, width = model.checkpoint.visual_grid, model.info.shape.hidden
    rows: list[dict[str, Any]] = []
    for frames in asked.frames:
        for kind in _KINDS:
            video = clip(kind, frames, grid, width, device)
            method = method_for(kind, frames)
            found = timed(video, method, asked.repeats) | checked(video, method)
            rows.append({"clip": kind, "frames": frames} | found)
            print("  ".join(f"{name} {_short(value)}" for name, value in rows[-1].items() if name != "slowest"))
            print("\n".join(f"    {line}" for line in rows[-1].get("slowest", ())))
    sums = kernels_checked(clip("half", asked.frames[0], grid, width, device))
    inside = parts_ms(model, asked.frames[0], rows[0]["tokens"], asked.repeats)
    print(*(f"{name} {_short(value)}" for name, value in (sums | inside).items()), sep="  ")
    passed = sums["passed"] and all(row["passed"] for row in rows)
    print(json.dumps({"passed": passed, "clips": rows, "sums": sums, "parts": inside}))
    return int(not passed)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
