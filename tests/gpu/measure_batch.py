"""A batch against loops, on a GPU: clips an hour, where the time goes, and how many answers differ.

    python -m tests.gpu.measure_batch SHAPE [CLIPS [SECONDS [TOKENS]]]

Makes clips of that length, writes a checkpoint with random weights at the true shape, and answers one question about
each clip in every way: a loop over stock transformers with decord, a loop over `watch` and `ask`, batches with several
numbers of rows, and, with more than one GPU, a worker on each of them. Prints JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from holitom_cli import ask, load_model, methods, watch
from holitom_cli.batch.crew import Crew
from holitom_cli.batch.questions import Asked, Job
from holitom_cli.batch.runner import Plan, Run
from holitom_cli.check import stock_inputs
from holitom_cli.cli.tally import error_row
from holitom_cli.model import Model
from holitom_cli.model.preprocess import prepare
from holitom_cli.types import Answer, Frames, Generation, ModelInfo, Sampling
from tests.clips import make
from tests.gpu.true_shapes import write_true_shape

_QUESTION = "What happens in the video?"
_SIZE = (1280, 720)
_ROWS = (1, 4, 16, 32)
_RATE = 25


def make_clips(folder: Path, count: int, seconds: int) -> list[Path]:
    """H.264 at 720p, blocks that drift over a noisy ground, another one in every clip."""

    def painter(number: int) -> Callable[[int], Any]:
        dice = np.random.default_rng(number)
        ground = dice.integers(0, 256, (_SIZE[1] // 8, _SIZE[0] // 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        return lambda frame: np.roll(ground, (2 * frame, 3 * frame), (0, 1))

    frames = seconds * _RATE
    return [
        make(folder / f"{number:03}.mp4", frames, size=_SIZE, group=250, rate=_RATE, paint=painter(number), threads=4)
        for number in range(count)
    ]


def stock_loop(network: Any, model: Model, clips: Sequence[Path], tokens: int) -> dict[str, float]:
    """Decode with decord, preprocess, generate with the library: one clip after the other."""
    import decord  # type: ignore[import-not-found,import-untyped,unused-ignore]

    spent = {"decode": 0.0, "model": 0.0}
    for clip in clips:
        began = time.perf_counter()
        reader = decord.VideoReader(str(clip))
        indices = np.linspace(0, len(reader) - 1, 32, dtype=int)
        frames = Frames(reader.get_batch(indices).asnumpy(), indices / _RATE)
        decoded = time.perf_counter()
        inputs = stock_inputs(model, prepare(model.preprocessor, frames, model.device), _QUESTION)
        with torch.inference_mode():
            network.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        torch.cuda.synchronize()
        spent["decode"] += decoded - began
        spent["model"] += time.perf_counter() - decoded
    return spent


def ask_loop(model: Model, clips: Sequence[Path], tokens: int) -> dict[str, tuple[int, ...]]:
    """Our own way for one clip, one after the other."""
    return {clip.name: ask(model, watch(model, clip), _QUESTION, max_new_tokens=tokens).token_ids for clip in clips}


def batch(model: Model, jobs: Sequence[Job], plan: Plan) -> tuple[dict[str, tuple[int, ...]], dict[str, float]]:
    """A batch in this process."""
    run = Run(model, jobs, plan)
    said = {item.job.clip.name: item.outcome.token_ids for item in run if isinstance(item.outcome, Answer)}
    assert len(said) == len(jobs)
    return said, run.watch.seconds


def crew(jobs: Sequence[Job], plan: Plan, info: ModelInfo, gpus: int) -> float:
    """Rows a second of several workers, from their first row to the last, so that loading is left out."""
    setting = {"output": None, "retry_failed": False, "force": False, "threads": None}
    moments: list[float] = []
    devices = [f"cuda:{number}" for number in range(gpus)]
    for made in Crew(jobs, devices, plan, (info.id, None, info.dtype), setting, error_row):
        assert made.row is None or "answer" in made.row
        moments.append(time.perf_counter())
    return (len(moments) - 1) / (moments[-1] - moments[0])


@contextmanager
def timed(results: dict[str, Any], name: str, clips: int) -> Iterator[None]:
    """Time a way, and ask the driver meanwhile how busy the first GPU is."""
    busy: list[float] = []
    query = ["nvidia-smi", "-i", "0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        listener = threading.Thread(target=lambda: busy.extend(map(float, process.stdout or ())))
        listener.start()
        torch.cuda.synchronize()
        began = time.perf_counter()
        yield
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        process.terminate()
        listener.join()
    results[name] = {"seconds": seconds, "clips_an_hour": 3600 * clips / seconds, "gpu_percent": fmean(busy or [0.0])}
    print(name, results[name], file=sys.stderr, flush=True)


def main(shape: str, count: int = 64, seconds: int = 20, tokens: int = 64) -> None:
    """Measure everything."""
    from transformers import LlavaOnevisionForConditionalGeneration

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        clips = make_clips(Path(scratch), count, seconds)
        path = write_true_shape(shape, Path(scratch) / shape)
        torch.cuda.empty_cache()
        model = load_model(path, device="cuda")
        few = clips[: max(4, count // 8)]  # the loop over stock transformers is slow, and as slow for each clip
        library: Any = LlavaOnevisionForConditionalGeneration
        network = library.from_pretrained(path, dtype=model.dtype).to("cuda")
        stock_loop(network, model, clips[:1], tokens)
        with timed(results, "stock loop", len(few)):
            spent = stock_loop(network, model, few, tokens)
        results["stock loop"]["seconds_by_work"] = spent
        del network
        torch.cuda.empty_cache()
        ask_loop(model, clips[:2], tokens)
        with timed(results, "ask loop", count):
            alone = ask_loop(model, clips, tokens)
        jobs = [Job(clip, (Asked(_QUESTION),), number=number) for number, clip in enumerate(clips)]
        plan = {rows: Plan(methods.get("holitom"), Generation(tokens), Sampling(), rows=rows) for rows in _ROWS}
        for rows in _ROWS:
            name = f"batch, {rows} rows"
            with timed(results, name, count):
                said, work = batch(model, jobs, plan[rows])
            results[name] |= {"seconds_by_work": work, "differ": sum(said[clip] != alone[clip] for clip in alone)}
        if (gpus := torch.cuda.device_count()) > 1:
            info = model.info
            del model
            torch.cuda.empty_cache()
            rates = {number: crew(jobs, plan[16], info, number) for number in (1, gpus)}
            results["gpus"] = {f"{number} GPUs, rows a second": rate for number, rate in rates.items()}
    print(json.dumps({"shape": shape, "clips": count, "seconds": seconds, "tokens": tokens, **results}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
