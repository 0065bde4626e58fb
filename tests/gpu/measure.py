"""One run on a GPU: `full` against stock transformers at the true shapes, and what compression gains.

    python -m tests.gpu.measure CLIP OUT_DIRECTORY [SHAPE ...]

Writes random checkpoints at the true 0.5B and 7B shapes to a temporary directory, compares, then answers with
`ask --baseline --json` as a user would. Prints a table, and JSON on the last line.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from holitom_cli import ask, load_model, video, watch
from holitom_cli.check import as_record, compare_with_stock, stock_inputs
from holitom_cli.model import Model
from holitom_cli.model.decode import DecodeStep
from holitom_cli.model.prefill import prefill
from holitom_cli.model.preprocess import prepare
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.types import Frames
from tests.gpu.true_shapes import write_true_shape

_QUESTION = "What happens in the video?"
_REPEATS = 5
_STAGES = ("preprocess", "vision", "compress", "prefill", "sample")


def measure(shape: str, clip: Path, out: Path) -> dict[str, Any]:
    """All figures of one shape."""
    started = time.perf_counter()
    checkpoint = write_true_shape(shape, Path(f"random-{shape}"))
    torch.cuda.empty_cache()
    written = time.perf_counter()
    model = load_model(checkpoint, device="cuda")
    loaded = time.perf_counter()
    frames = video.read(clip, 32)
    check = as_record(compare_with_stock(model, frames, _QUESTION, max_new_tokens=32))
    times = {"stock": stock_times(model, frames)} | {
        name: own_times(model, frames, name) for name in ("full", "holitom")
    }
    del model
    torch.cuda.empty_cache()
    graph = {name: compare_graph(load_model(checkpoint, dtype=name), frames) for name in ("float32", "bfloat16")}
    torch.cuda.empty_cache()
    command = [sys.executable, "-m", "holitom_cli", "ask", str(clip), _QUESTION, "--model", str(checkpoint)]
    options = ["--baseline", "--max-new-tokens", "64"]
    document = _run([*command, *options, "--json"])
    (out / f"ask-{shape}.json").write_text(document.stdout)
    (out / f"ask-{shape}.err").write_text(document.stderr)
    report = _run([*command, *options])
    (out / f"ask-{shape}.txt").write_text(report.stderr)
    return {
        "shape": shape,
        "write_s": written - started,
        "load_s": loaded - written,
        "check": check,
        "times": times,
        "graph": graph,
        "exit_codes": [document.returncode, report.returncode],
        "results": [_figures(result) for result in json.loads(document.stdout).get("results", [])],
    }


@torch.inference_mode()
def stock_times(model: Model, frames: Frames) -> dict[str, float]:
    """TTFT of the library's `generate` from processed pixels on the device, and its time per token; medians."""
    inputs = stock_inputs(model, prepare(model.preprocessor, frames, model.device), _QUESTION)

    def seconds(tokens: int) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        model.network.generate(**inputs, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    first = statistics.median([seconds(1) for _ in range(_REPEATS + 1)][1:])
    later = statistics.median([seconds(33) for _ in range(_REPEATS)])
    return {"ttft_ms": first * 1000, "tpot_ms": (later - first) * 1000 / 32}


def own_times(model: Model, frames: Frames, method: str) -> dict[str, float]:
    """The same of our pipeline, by the report's own figures; the first run does not count."""
    answers = [
        ask(model, watch(model, frames, method=method), _QUESTION, max_new_tokens=64) for _ in range(_REPEATS + 1)
    ]
    timings = [answer.timings for answer in answers[1:]]
    stages = {name: statistics.median(timing.stages_ms[name] for timing in timings) for name in _STAGES}
    return {
        "ttft_ms": statistics.median(timing.ttft_ms for timing in timings),
        "tpot_ms": statistics.median(timing.tpot_ms or 0 for timing in timings),
        "visual_tokens": answers[0].tokens.visual,
        **stages,
    }


@torch.inference_mode()
def compare_graph(model: Model, frames: Frames, steps: int = 32) -> dict[str, float]:
    """Decoding from the CUDA graph against the plain steps, behind a merge inside; one control must differ."""
    watched = watch(model, frames)
    before, after = model.chat.encode(_QUESTION)
    embeds, span = prompt_embeds(model, before, watched.visual, after)
    parts = (model.language_model, model.lm_head)
    reductions = watched.method.reductions(model.checkpoint.depth)
    tokens = torch.randint(100, 800, (steps, 1), generator=torch.Generator().manual_seed(0)).to(model.device)

    def logits(eager_steps: int, shift: int = 0) -> tuple[torch.Tensor, float]:
        state = prefill(*parts, embeds, span, reductions, room=steps)
        state.next_position.add_(shift)
        step = DecodeStep(*parts, state.cache, state.next_position.clone())
        step.EAGER_STEPS = eager_steps
        rows = [step(token).float().clone() for token in tokens[: steps // 2]]
        torch.cuda.synchronize()
        started = time.perf_counter()
        rows += [step(token).float().clone() for token in tokens[steps // 2 :]]
        torch.cuda.synchronize()
        return torch.cat(rows), (time.perf_counter() - started) * 1000 / (steps - steps // 2)

    plain, plain_ms = logits(steps)
    graphed, graphed_ms = logits(3)
    shifted, _ = logits(3, shift=1)
    return {
        "max_difference": float((graphed - plain).abs().max()),
        "control_shifted_positions": float((shifted - plain).abs().max()),
        "plain_ms": plain_ms,
        "graphed_ms": graphed_ms,
    }


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _figures(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": result["method"],
        "visual": result["tokens"]["visual"],
        **{name: result["timings"][name] for name in ("ttft_ms", "tpot_ms", "stages_ms")},
        "device_peak_bytes": result["memory"]["device_peak_bytes"],
    }


def main() -> None:
    """Measure the shapes that are named, both by default."""
    clip, out = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(clip, scratch)
        with contextlib.chdir(scratch):  # so that the records name files as a user would
            rows = [measure(shape, Path(clip.name), out) for shape in sys.argv[3:] or ("0.5b", "7b")]
    for row in rows:
        check = row["check"]
        print(f"{row['shape']}: relative error of full to stock {check['logits_relative_error']:.2e}, ", end="")
        print(f"stock eager to stock SDPA {check['stock_relative_error']:.2e}, ", end="")
        print(f"greedy tokens alike {check['tokens_equal']} of {check['tokens_compared']}, ", end="")
        print(f"preprocessing {check['preprocessing_mean_difference']}")
        for name, graph in row["graph"].items():
            print(
                f"  step in {name}: {graph['graphed_ms']:.2f} ms from a graph, {graph['plain_ms']:.2f} plain, ", end=""
            )
            print(f"logits differ by {graph['max_difference']:.1e} (control {graph['control_shifted_positions']:.1e})")
        for name, times in row["times"].items():
            figures = ", ".join(f"{stage.removesuffix('_ms')} {value:.1f}" for stage, value in times.items())
            print(f"  {name:8} {figures}")
    device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(json.dumps(device | {"rows": rows}))


if __name__ == "__main__":
    main()
