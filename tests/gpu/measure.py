"""One run on a GPU: `full` against stock transformers at the true shapes, and what compression gains.

    python -m tests.gpu.measure CLIP OUT_DIRECTORY [SHAPE ...]

Writes random checkpoints at the true 0.5B and 7B shapes to a temporary directory, compares, then answers with
`ask --baseline --json` as a user would. Prints a table, and JSON on the last line.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from holitom_cli import load_model, video, watch
from holitom_cli.check import as_record, compare_with_stock
from holitom_cli.model import Model
from holitom_cli.model.decode import DecodeStep
from holitom_cli.model.prefill import prefill
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.types import Frames
from tests.gpu.true_shapes import write_true_shape

_QUESTION = "What happens in the video?"


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
    del model
    torch.cuda.empty_cache()
    graph = {name: compare_graph(load_model(checkpoint, dtype=name), frames) for name in ("float32", "bfloat16")}
    torch.cuda.empty_cache()
    ask = [sys.executable, "-m", "holitom_cli", "ask", str(clip), _QUESTION, "--model", str(checkpoint)]
    options = ["--baseline", "--max-new-tokens", "64"]
    document = _run([*ask, *options, "--json"])
    (out / f"ask-{shape}.json").write_text(document.stdout)
    (out / f"ask-{shape}.err").write_text(document.stderr)
    report = _run([*ask, *options])
    (out / f"ask-{shape}.txt").write_text(report.stderr)
    return {
        "shape": shape,
        "write_s": written - started,
        "load_s": loaded - written,
        "check": check,
        "graph": graph,
        "exit_codes": [document.returncode, report.returncode],
        "results": [_figures(result) for result in json.loads(document.stdout).get("results", [])],
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
        step = DecodeStep(*parts, state)
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
            print(f"differing by {graph['max_difference']:.1e} (control {graph['control_shifted_positions']:.1e})")
        for result in row["results"]:
            print(f"  {result['method']:8} {result['visual']:5} tokens, TTFT {result['ttft_ms']:.1f} ms, ", end="")
            print(f"{result['tpot_ms']:.2f} ms a token, peak {result['device_peak_bytes'] / 2**30:.1f} GiB")
    device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(json.dumps(device | {"rows": rows}))


if __name__ == "__main__":
    main()
