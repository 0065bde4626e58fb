"""How long a first answer takes from nothing, beside reading the checkpoint's files to the device and no more.

    python -m tests.gpu.cold_start CLIP CHECKPOINT [DEVICE]

CHECKPOINT is a directory, as `tests.gpu.true_shapes` writes one. Files are read once before, so that none comes from
the disk. Prints a line of JSON: seconds until the first words of the answer, and for whole processes; until torch is
imported, which every process waits for; and for reading the files with safetensors' own function. Medians of three in
turns. Then the weights that were read in the tool's own way are compared with those, and the exit code is 1 where one
differs, or where a changed one does not.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from holitom_cli.model.weights import network_name, reading

_REPEATS = 3
_READ = """
import sys, time, torch
from pathlib import Path
from safetensors.torch import load_file
torch.zeros(1, device=sys.argv[2])
began = time.perf_counter()
kept = [load_file(file, device=sys.argv[2]) for file in sorted(Path(sys.argv[1]).glob("*.safetensors"))]
if sys.argv[2].startswith("cuda"):
    torch.cuda.synchronize()
else:
    kept = [tensor.clone() for part in kept for tensor in part.values()]
print(time.perf_counter() - began)
"""


def reading_seconds(checkpoint: str, device: str) -> float:
    """Reading the files alone, libraries imported and the device awake."""
    command = [sys.executable, "-c", _READ, checkpoint, device]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def importing_seconds() -> float:
    """A process that imports torch and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def asking_seconds(clip: str, checkpoint: str, device: str) -> tuple[float, float]:
    """The whole command: up to the first words, and to its end."""
    options = ["--model", checkpoint, "--device", device, "--max-new-tokens", "4", "--no-cache", "--quiet"]
    command = [sys.executable, "-m", "holitom_cli", "ask", clip, "What happens in the video?", *options]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        said = process.stdout.read(1)
        first = time.perf_counter() - began
        process.stdout.read()
    if not said or process.returncode:
        raise RuntimeError(f"there was no answer, and the exit code was {process.returncode}")
    return first, time.perf_counter() - began


def differing(checkpoint: Path, device: torch.device, dtype: torch.dtype, changed: str = "") -> list[str]:
    """Names of weights that are read otherwise than safetensors does; `changed` is changed on purpose."""
    files = sorted(checkpoint.glob("*.safetensors"))
    with reading(files, device, dtype) as coming:
        found = {name: future.result() for name, future in coming.items()}
    wrong: list[str] = []
    for file in files:
        stored: Mapping[str, torch.Tensor] = load_file(file, device=str(device))
        for name, tensor in ((network_name(name), tensor.to(dtype)) for name, tensor in stored.items()):
            expected = tensor.roll(1) if name == changed else tensor
            wrong += [] if torch.equal(found[name], expected) else [name]  # type: ignore[arg-type]
    return wrong


def main() -> int:
    """Measure in turns, then compare."""
    clip, checkpoint, device = sys.argv[1], sys.argv[2], (sys.argv[3:4] or ["cuda"])[0]
    for file in Path(checkpoint).glob("*.safetensors"):
        with file.open("rb") as opened:
            while opened.read(2**24):
                pass
    rounds = [
        (reading_seconds(checkpoint, device), importing_seconds(), *asking_seconds(clip, checkpoint, device))
        for _ in range(_REPEATS)
    ]
    reading_s, importing, first, whole = (statistics.median(times) for times in zip(*rounds, strict=True))
    told = {"reading_s": reading_s, "import_torch_s": importing, "first_words_s": first, "whole_s": whole}
    where, name = torch.device(device), "model.image_newline"
    wrong = [differing(Path(checkpoint), where, dtype) for dtype in (torch.bfloat16, torch.float16)]
    control = differing(Path(checkpoint), where, torch.bfloat16, changed=name)
    passed = not any(wrong) and control == [name]
    print(json.dumps(told | {"beyond_reading_s": first - reading_s, "weights_equal": passed}))
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
