"""Whether the 7B shape answers in the memory of small cards, with the settings that the program itself suggests.

    python -m tests.gpu.capped [CAPS [CLIPS]]      as: python -m tests.gpu.capped 23,15,11 4
    python -m tests.gpu.capped kernels [tune]

Writes a checkpoint with random weights, and runs `holitom ask` and `holitom batch` in processes that may take so many
GiB of the GPU, which is what cards of 24, 16 and 12 GB leave: first with the settings that anybody has, then, where
that is refused, with those that the hint names. Prints a line for each run and ends with a line of JSON.

The second form times the kernels for packed weights beside plain products at the shape's sizes.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gpu.measure_batch import make_clips
from tests.gpu.true_shapes import write_true_shape

_GIB = 2**30
_QUESTION = "What happens in the video?"
_TOKENS = 64
_CHILD = """
import sys, torch
torch.cuda.set_per_process_memory_fraction(float(sys.argv.pop(1)) * 2**30 / torch.cuda.mem_get_info()[1])
from holitom_cli.cli import main
main()
"""


def suggested(hint: str) -> list[str]:
    """The options that a hint names: "Use --quantize int8 and --num-frames 16: ..."."""
    return [part for pair in re.findall(r"(--[a-z-]+) (\w+)", hint) for part in pair]


def run(cap_gib: float, *arguments: str) -> tuple[int, str, str, float]:
    """The program in a process that may take so much of the GPU: exit code, stdout, stderr, seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-c", _CHILD, str(cap_gib), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr, time.perf_counter() - began


def ask(cap_gib: float, clip: Path, model: Path, options: Sequence[str]) -> dict[str, Any]:
    """One question; figures, or the sentence and the hint."""
    given = ["--model", str(model), "--max-new-tokens", str(_TOKENS), "--no-cache", "--json", "--quiet", *options]
    code, out, err, seconds = run(cap_gib, "ask", str(clip), _QUESTION, *given)
    told: dict[str, Any] = {
        "cap_gib": cap_gib,
        "command": "ask",
        "options": list(options),
        "seconds": round(seconds, 1),
    }
    try:
        document = json.loads(out)
    except ValueError:
        return told | {"failed": f"exit code {code}: {err[-800:]}"}
    if "error" in document:
        return told | {"refused": document["error"]["message"], "hint": document["error"]["hint"]}
    result = document["results"][0]
    return told | {
        "peak_gib": round(result["memory"]["device_peak_bytes"] / _GIB, 2),
        "estimated_gib": round(_estimated(model, options, result["tokens"]["text"]) / _GIB, 2),
        "ttft_ms": round(result["timings"]["ttft_ms"], 1),
        "tpot_ms": round(result["timings"]["tpot_ms"] or 0.0, 2),
        "tokens": result["tokens"]["generated"],
    }


def _estimated(model: Path, options: Sequence[str], text_tokens: int) -> int:
    """What the program thinks that it takes."""
    from holitom_cli import methods
    from holitom_cli.model import memory
    from holitom_cli.model.hub import locate
    from holitom_cli.model.loading import read_checkpoint, weight_files
    from holitom_cli.model.weights import stored_shapes

    chosen = dict(zip(options[::2], options[1::2], strict=True))
    method, checkpoint = methods.get(chosen.get("--method", "holitom")), read_checkpoint(locate(str(model)))
    patches = checkpoint.visual_grid**2
    task = memory.Task(
        int(chosen.get("--num-frames", 32)),
        lambda frames: method.most_tokens(frames, patches) + 1 + text_tokens,
        _TOKENS,
        patches,
    )
    shapes = stored_shapes(model / name for name in weight_files(checkpoint.source))
    quantize: Any = chosen.get("--quantize")
    return memory.need(checkpoint.shape, shapes, torch.bfloat16, quantize, task).total


def batch(cap_gib: float, clips: Sequence[Path], model: Path, options: Sequence[str]) -> dict[str, Any]:
    """One question about each clip, several answers at a time."""
    given = ["--model", str(model), "--max-new-tokens", str(_TOKENS), "--no-cache", "--quiet", *options]
    code, out, err, seconds = run(cap_gib, "batch", *map(str, clips), "-q", _QUESTION, *given)
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    told = {"cap_gib": cap_gib, "command": "batch", "options": list(options), "seconds": round(seconds, 1)}
    if code or len(rows) != len(clips):
        faults = [row["error"]["message"] for row in rows if "error" in row]
        return told | {"failed": f"exit code {code}: {faults[:1]} {err[-800:]}"}
    peak = max(row["memory"]["device_peak_bytes"] for row in rows)
    return told | {"rows": len(rows), "peak_gib": round(peak / _GIB, 2)}


def measure(caps: Sequence[float], clips: Sequence[Path], model: Path) -> Iterator[dict[str, Any]]:
    """Every cap: as it is, and as the program suggests; `full`, too, which needs more."""
    for cap in caps:
        for wish in ([], ["--method", "full"]):
            first = ask(cap, clips[0], model, wish)
            yield first
            options = [*wish, *suggested(first.get("hint", ""))]
            if "refused" in first:
                yield ask(cap, clips[0], model, options)
            if not wish:
                yield batch(cap, clips, model, options)


def main(caps: str = "23,15,11", clip_count: str = "4") -> int:
    """Measure all; returns the exit code."""
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        clips = make_clips(Path(scratch), int(clip_count), 4)
        model = write_true_shape("7b", Path(scratch) / "7b")
        torch.cuda.empty_cache()
        for result in measure([float(cap) for cap in caps.split(",")], clips, model):
            print(" ".join(f"{name}={value}" for name, value in result.items()), flush=True)
            results.append(result)
    broken = [result for result in results if "failed" in result]
    unhelped = [result for result in results if "refused" in result and not suggested(result["hint"])]
    print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "runs": results}))
    return 1 if broken or unhelped else 0


# --- kernels -----------------------------------------------------------------------------------

_MATRICES = {"qkv": (4608, 3584), "o": (3584, 3584), "gate_up": (37888, 3584), "down": (3584, 18944)}
_HEAD = {"lm_head": (152128, 3584)}
_COLD_BYTES = 2**28  # copies that no cache holds


def kernels(tune: bool) -> int:
    """Times of products with packed weights, and how far they are from those with the unpacked matrix."""
    from holitom_cli.model import quantise

    device = torch.device("cuda")
    rows, worst = [], 0.0
    for bits, matrices in ((8, _MATRICES | _HEAD), (4, _MATRICES)):
        for name, shape in matrices.items():
            weights = torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02
            packed = quantise.empty(shape, bits, device)
            for start, stop in quantise.pieces(shape, quantise.STORED_AT_ONCE):
                quantise.store(packed.rows(start, stop), weights[start:stop])
            plain = quantise.restore(packed, torch.bfloat16)
            exact = quantise.restore(packed, torch.float32).double() if name != "lm_head" else None
            copies = [
                quantise.Packed(*(part.clone() for part in packed)) for _ in range(1 + _COLD_BYTES // packed.nbytes)
            ]
            others = [plain.clone() for _ in range(1 + _COLD_BYTES // plain.nbytes)]
            row: dict[str, Any] = {"bits": bits, "matrix": name, "restore_us": _microseconds(copies, _restored)}
            for count in (1, 2, 4, 8, 16, 32, 64, 1024):
                states = torch.randn(count, shape[1], device=device, dtype=torch.bfloat16)
                if exact is not None:
                    off = quantise.multiply(states, packed).double() - states.double() @ exact.T
                    worst = max(worst, float(off.norm() / (states.double() @ exact.T).norm()))
                row[f"m{count}_us"] = _microseconds(copies, partial(quantise.multiply, states))
                row[f"m{count}_plain_us"] = _microseconds(others, partial(F.linear, states))
            row["m1_tb_per_s"] = round(packed.nbytes / row["m1_us"] / 1e6, 2)
            print(row, flush=True)
            rows.append(row)
            if tune:
                rows.append({"bits": bits, "matrix": name, "tuned": list(_tuned(bits, copies, shape[1]))})
                print(rows[-1], flush=True)
    triton = quantise._kernels("cuda") is not None
    print(json.dumps({"triton": triton, "largest_relative_error": worst, "rows": rows}))
    return 0 if triton and worst < 0.01 else 1


def _restored(packed: Any) -> Tensor:
    from holitom_cli.model import quantise

    return quantise.restore(packed, torch.bfloat16)


def _tuned(bits: int, copies: Sequence[Any], width: int) -> Iterator[dict[str, float]]:
    """One row of states with other sizes of programs."""
    from holitom_cli.model import packed_kernels

    kept = packed_kernels._ROWS, packed_kernels._WARPS, dict(packed_kernels._TILES)
    states = torch.randn(1, width, device="cuda", dtype=torch.bfloat16)
    each = {8: 512, 4: 128}[bits]
    for rows, warps in ((1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (2, 4), (4, 4)):
        packed_kernels._ROWS, packed_kernels._WARPS, packed_kernels._TILES[bits] = rows, warps, each * warps
        spent = _microseconds(copies, lambda copy: packed_kernels.few_rows(states, copy.values, copy.steps, None))
        yield {"rows": rows, "warps": warps, "us": spent, "tb_per_s": round(copies[0].nbytes / spent / 1e6, 2)}
    packed_kernels._ROWS, packed_kernels._WARPS, packed_kernels._TILES = kept


def _microseconds(copies: Sequence[Any], work: Callable[[Any], Tensor]) -> float:
    """Median time of the work on one copy after another, from a CUDA graph: launching is no part of it."""
    for copy in copies[:2]:
        work(copy)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in copies:
            work(copy)
    times: list[float] = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(copies))
    return float(round(statistics.median(times), 2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["kernels"]:
        sys.exit(kernels(tune="tune" in sys.argv))
    sys.exit(main(*sys.argv[1:]))
