"""A batch against loops, on a GPU: clips an hour, where the time goes, how busy the GPU is, how many answers differ.

    python -m tests.gpu.measure_batch shape:7b [--clips 64] [--seconds 20] [--tokens 64] [--part loops|gpus]

Makes clips of that length, draws random weights at the true shape, and answers one question about each clip in every
way: a loop over stock transformers with decord (some of the clips: it is as slow for each), a loop over `watch` and
`ask`, and batches with several numbers of rows. With more than one GPU, a worker on each of them as well, against one.
A directory instead of a shape is a checkpoint to take. Prints a table, and JSON on the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from shutil import which
from statistics import fmean
from typing import Any

import numpy as np
import torch

from holitom_cli import ask, load_model, methods, watch
from holitom_cli.batch.crew import Crew
from holitom_cli.batch.ledger import Claim
from holitom_cli.batch.questions import Asked, Job
from holitom_cli.batch.reader import reader_count
from holitom_cli.batch.runner import Plan, Run
from holitom_cli.check import stock_inputs
from holitom_cli.cli.tally import error_row
from holitom_cli.model import Model
from holitom_cli.model.device import choose_device
from holitom_cli.model.hub import Source
from holitom_cli.model.layers import join_language, join_tower
from holitom_cli.model.loading import Checkpoint, describe, shape_of
from holitom_cli.model.preprocess import prepare
from holitom_cli.model.shapes import PREFIX, published_config, random_network
from holitom_cli.quality.checkpoint import build_tokenizer, write_text_files
from holitom_cli.types import Answer, Frames, Generation, Sampling
from tests.clips import make
from tests.gpu.true_shapes import write_true_shape
from tests.make_random_checkpoint import WORDS

_QUESTION = "What happens in the video?"
_SIZE = (1280, 720)
_ROWS = (1, 4, 16, 32)
_RATE = 25
_BEST = "batch, 16 rows"  # what a GPU does by default
_CREW_ROWS = 16  # of each worker, when several are compared
_ROUNDS = 5  # questions about each clip for each GPU, when several are compared

Results = dict[str, dict[str, Any]]
Ids = dict[str, tuple[int, ...]]


# --- clips and weights ----------------------------------------------------------------------------


def make_clips(folder: Path, count: int, seconds: int) -> list[Path]:
    """H.264 at 720p, one key frame in 10 s: blocks that drift, others in every clip."""
    one = partial(_make_clip, folder, seconds)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        return list(pool.map(one, range(count)))


def _make_clip(folder: Path, seconds: int, number: int) -> Path:
    dice = np.random.default_rng(number)
    ground = dice.integers(0, 256, (_SIZE[1] // 8, _SIZE[0] // 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    return make(
        folder / f"{number:03}.mp4", seconds * _RATE, size=_SIZE, group=10 * _RATE, rate=_RATE,
        options={"preset": "veryfast"}, paint=lambda frame: np.roll(ground, (2 * frame, 3 * frame), (0, 1)),
    )  # fmt: skip


def build(shape: str, folder: Path) -> Model:
    """Random weights at a true shape, drawn where they are used, and the tests' own words."""
    words = build_tokenizer(WORDS)
    config = published_config(shape, (words.vocab["<image>"], words.vocab["<video>"]))
    write_text_files(folder, words, config.vision_config.image_size)
    device = choose_device("auto")
    network = random_network(config, device, torch.bfloat16, label=shape)
    join_tower(network.model.vision_tower)
    join_language(network.model.language_model)
    checkpoint = Checkpoint(Source(shape, folder, "local"), config, shape_of(config), random=True)
    return Model(network, checkpoint, describe(checkpoint, network, device, torch.bfloat16))


# --- ways of answering ----------------------------------------------------------------------------


def stock_loop(model: Model, clips: Sequence[Path], tokens: int) -> dict[str, float]:
    """Decode with decord, preprocess, generate with the library: one clip after the other."""
    import decord  # type: ignore[import-not-found,import-untyped,unused-ignore]

    spent, stock = {"decode": 0.0, "model": 0.0}, model.stock
    for clip in clips:
        began = time.perf_counter()
        reader = decord.VideoReader(str(clip))
        indices = np.linspace(0, len(reader) - 1, 32, dtype=int)
        frames = Frames(reader.get_batch(indices).asnumpy(), indices / _RATE)
        decoded = time.perf_counter()
        inputs = stock_inputs(model, prepare(model.preprocessor, frames, model.device), _QUESTION)
        with torch.inference_mode():
            stock.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        _settle()
        spent["decode"] += decoded - began
        spent["model"] += time.perf_counter() - decoded
    return spent


def ask_loop(model: Model, clips: Sequence[Path], tokens: int) -> Ids:
    """Our own way for one clip, one after the other."""
    return {clip.name: ask(model, watch(model, clip), _QUESTION, max_new_tokens=tokens).token_ids for clip in clips}


def batch(model: Model, clips: Sequence[Path], tokens: int, rows: int) -> tuple[Ids, dict[str, float]]:
    """A batch in this process."""
    run = Run(model, jobs(clips), plan(tokens, rows))
    said = {item.job.clip.name: item.outcome.token_ids for item in run if isinstance(item.outcome, Answer)}
    assert len(said) == len(clips)
    return said, dict(run.watch.seconds)


def jobs(clips: Sequence[Path], rounds: int = 1) -> list[Job]:
    """Each clip, so often, with a question of its own each time, so that no row is another's."""
    asked = [_QUESTION, *(f"{_QUESTION} ({number})" for number in range(1, rounds))]
    return [Job(clip, (Asked(text),), number=n) for n, (text, clip) in enumerate((t, c) for t in asked for c in clips)]


def plan(tokens: int, rows: int, processes: int = 1) -> Plan:
    readers = reader_count(processes)
    return Plan(methods.get("holitom"), Generation(tokens), Sampling(), rows=rows, readers=readers, processes=processes)


def crew(
    work: Sequence[Job], tokens: int, model: tuple[str, None, str], devices: Sequence[str]
) -> tuple[float, dict[str, float]]:
    """Rows a second of a worker on each device, once all are warm and as long as there is more to do.

    Returns:
        the rate, and what the seconds of the workers' model threads went into, from their start to their end.
    """
    setting = {"output": None, "retry_failed": False, "force": False, "clip_pages": None}
    several = Crew(work, devices, plan(tokens, _CREW_ROWS, len(devices)), model, setting, error_row)
    moments: list[float] = []
    last = 0
    for made in several:
        assert made.claim is not Claim.ANSWERED
        assert made.row is None or "answer" in made.row, made.row
        moments.append(time.perf_counter())
        last = len(moments) if several._todo else last
    first = 2 * _CREW_ROWS * len(devices)
    rate = (last - first) / (moments[last - 1] - moments[first - 1])
    return rate, {name: round(seconds, 2) for name, seconds in several.seconds.items()}


# --- measuring ------------------------------------------------------------------------------------


@contextmanager
def timed(results: Results, name: str, clips: int) -> Iterator[dict[str, Any]]:
    """Time a way, and ask the driver meanwhile how busy the first GPU is."""
    with _busy() as busy:
        _settle()
        began = time.perf_counter()
        results[name] = {}
        yield results[name]
        _settle()
        seconds = time.perf_counter() - began
    results[name] |= {"seconds": round(seconds, 2), "clips": clips, "clips_an_hour": round(3600 * clips / seconds)}
    results[name]["gpu_percent"] = round(fmean(busy), 1) if busy else None
    print(name, results[name], flush=True)


@contextmanager
def _busy() -> Iterator[list[float]]:
    """Percent of the time in which the first GPU had work, five times a second; nothing where there is none."""
    found: list[float] = []
    if which("nvidia-smi") is None:
        yield found
        return
    query = ["nvidia-smi", "-i", "0", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        out = process.stdout
        assert out is not None
        listener = threading.Thread(target=lambda: found.extend(float(line) for line in out if line.strip().isdigit()))
        listener.start()
        try:
            yield found
        finally:
            process.terminate()
            listener.join()


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_loops(model: Model, clips: Sequence[Path], tokens: int) -> Results:
    """All ways on one GPU."""
    results: Results = {}
    few = clips[: max(2, len(clips) // 8)]
    stock_loop(model, clips[:1], tokens)
    with timed(results, "stock loop", len(few)) as row:
        row["seconds_by_work"] = stock_loop(model, few, tokens)
    ask_loop(model, clips[:2], tokens)
    with timed(results, "ask loop", len(clips)):
        alone = ask_loop(model, clips, tokens)
    batch(model, clips[:4], tokens, 4)
    for rows in _ROWS:
        with timed(results, f"batch, {rows} rows", len(clips)) as row:
            said, row["seconds_by_work"] = batch(model, clips, tokens, rows)
        row["differ"] = sum(said[clip] != alone[clip] for clip in alone)
        row["tokens"] = fmean(map(len, said.values()))
    return results


def measure_gpus(clips: Sequence[Path], tokens: int, path: Path, dtype: str, devices: Sequence[str]) -> dict[str, Any]:
    """One worker against one on every device, each with as many rows to make."""
    found = {
        count: crew(jobs(clips, _ROUNDS * count), tokens, (str(path), None, dtype), devices[:count])
        for count in (1, len(devices))
    }
    rates = {count: rate for count, (rate, _) in found.items()}
    seconds = {count: spent for count, (_, spent) in found.items()}
    return {"rows_a_second": rates, "seconds_by_work": seconds, "ratio": rates[len(devices)] / rates[1]}


def table(results: Results) -> str:
    """The ways, one a line."""
    lines = [f"{'':16}{'clips/h':>9}{'x stock':>9}{'x ask':>7}{'GPU busy':>10}{'differ':>8}  seconds"]
    for name, row in results.items():
        rate = row["clips_an_hour"]
        shares = (rate / results[loop]["clips_an_hour"] for loop in ("stock loop", "ask loop"))
        busy = "" if row["gpu_percent"] is None else f"{row['gpu_percent']:.0f}%"
        work = ", ".join(f"{part} {spent:.1f}" for part, spent in row.get("seconds_by_work", {}).items())
        over_stock, over_ask = (f"{share:.1f}" for share in shares)
        differ = row.get("differ", "")
        lines.append(
            f"{name:16}{rate:>9,}{over_stock:>9}{over_ask:>7}{busy:>10}{differ:>8}  {row['seconds']:.1f}: {work}"
        )
    return "\n".join(lines)


def main(shape: str, count: int, seconds: int, tokens: int, part: str | None) -> None:
    """Measure everything, or a part."""
    gpus = torch.cuda.device_count()
    told: dict[str, Any] = {"model": shape, "clips": count, "seconds": seconds, "tokens": tokens, "gpus": gpus}
    told["cores"] = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        began = time.perf_counter()
        clips = make_clips(folder, count, seconds)
        print(f"{count} clips made in {time.perf_counter() - began:.1f} s", flush=True)
        if part != "gpus":
            text = folder / "text"
            text.mkdir()
            model = build(shape.removeprefix(PREFIX), text) if shape.startswith(PREFIX) else load_model(shape)
            told["device"], told["dtype"] = model.info.device_name, model.info.dtype
            results = measure_loops(model, clips, tokens)
            told["ways"] = results
            told["x_stock"] = results[_BEST]["clips_an_hour"] / results["stock loop"]["clips_an_hour"]
            told["x_ask"] = results[_BEST]["clips_an_hour"] / results["ask loop"]["clips_an_hour"]
            print(table(results), flush=True)
            del model
        if part == "gpus" or (part is None and gpus > 1):
            devices = [f"cuda:{number}" for number in range(gpus)] or ["cpu", "cpu"]
            dtype = "bfloat16" if gpus else "float32"
            path = Path(shape)
            if shape.startswith(PREFIX):  # a worker reads files
                path = write_true_shape(shape.removeprefix(PREFIX), folder / "weights")
            if gpus:
                torch.cuda.empty_cache()
            told["workers"] = measure_gpus(clips, tokens, path, dtype, devices)
            print(f"{len(devices)} workers against one: {told['workers']['ratio']:.2f} x", flush=True)
    print(json.dumps(told))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--part", choices=("loops", "gpus"))
    given = parser.parse_args()
    main(given.shape, given.clips, given.seconds, given.tokens, given.part)
