"""One run on a GPU: `full` against stock transformers at the true shapes, and what compression gains.

    python -m tests.gpu.measure CLIP OUT_DIRECTORY [SHAPE ...]

Writes random checkpoints at the true 0.5B and 7B shapes to a temporary directory, compares, then answers with
`ask --baseline --json` as a user would. Prints a table, and JSON on the last line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from holitom_cli import load_model, video
from holitom_cli.model.check import as_record, compare_with_stock
from tests.gpu.true_shapes import write_true_shape

_QUESTION = "What happens in the video?"


def measure(shape: str, clip: Path, out: Path, scratch: Path) -> dict[str, Any]:
    """All figures of one shape."""
    started = time.perf_counter()
    checkpoint = write_true_shape(shape, scratch / shape)
    torch.cuda.empty_cache()
    written = time.perf_counter()
    model = load_model(checkpoint, device="cuda")
    loaded = time.perf_counter()
    frames = video.read(clip, 32)
    check = as_record(compare_with_stock(model, frames, _QUESTION, max_new_tokens=32))
    del model
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
        "exit_codes": [document.returncode, report.returncode],
        "results": [_figures(result) for result in json.loads(document.stdout).get("results", [])],
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
    clip, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows = [measure(shape, clip, out, Path(scratch)) for shape in sys.argv[3:] or ("0.5b", "7b")]
    for row in rows:
        check = row["check"]
        print(f"{row['shape']}: relative error of full to stock {check['logits_relative_error']:.2e}, ", end="")
        print(f"stock eager to stock SDPA {check['stock_relative_error']:.2e}, ", end="")
        print(f"greedy tokens alike {check['tokens_equal']} of {check['tokens_compared']}, ", end="")
        print(f"preprocessing {check['preprocessing_mean_difference']}")
        for result in row["results"]:
            print(f"  {result['method']:8} {result['visual']:5} tokens, TTFT {result['ttft_ms']:.1f} ms, ", end="")
            print(f"{result['tpot_ms']:.2f} ms a token, peak {result['device_peak_bytes'] / 2**30:.1f} GiB")
    device = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(json.dumps(device | {"rows": rows}))


if __name__ == "__main__":
    main()
