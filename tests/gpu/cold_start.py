"""How long a first answer takes from nothing, beside reading the checkpoint's files to the device and no more.

    python -m tests.gpu.cold_start CLIP CHECKPOINT [DEVICE]

CHECKPOINT is a directory, as `tests.gpu.true_shapes` writes one. Files are read once before, so that none comes from
the disk. Prints a line of JSON: seconds of whole processes, medians of three in turns.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

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


def asking_seconds(clip: str, checkpoint: str, device: str) -> float:
    """The whole command, up to one token."""
    options = ["--model", checkpoint, "--device", device, "--max-new-tokens", "1", "--no-cache", "--json"]
    command = [sys.executable, "-m", "holitom_cli", "ask", clip, "What happens in the video?", *options]
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure both in turns."""
    clip, checkpoint, device = sys.argv[1], sys.argv[2], (sys.argv[3:4] or ["cuda"])[0]
    for file in Path(checkpoint).glob("*.safetensors"):
        with file.open("rb") as opened:
            while opened.read(2**24):
                pass
    pairs = [(reading_seconds(checkpoint, device), asking_seconds(clip, checkpoint, device)) for _ in range(_REPEATS)]
    reading, asking = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(json.dumps({"reading_s": reading, "asking_s": asking, "beyond_reading_s": asking - reading}))


if __name__ == "__main__":
    main()
