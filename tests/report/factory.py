"""Synthetic answers: every figure is chosen, nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from holitom_cli.types import (
    Answer,
    Flops,
    Frames,
    Generation,
    Memory,
    ModelInfo,
    ModelShape,
    Segment,
    Timings,
    TokenCounts,
    VideoInfo,
    VisualTokens,
)

GRID = 14
SHAPE = ModelShape(28, 3584, 18944, 28, 4, 128, 152064, 26, 1152, 4304, 729, 588)
STAGES = {
    "probe": 12.0,
    "decode": 450.25,
    "preprocess": 18.5,
    "vision": 65.0,
    "compress": 8.4,
    "prefill": 23.04,
    "sample": 0.21,
}


def make_video(**changes: Any) -> VideoInfo:
    video = VideoInfo(
        path="clips/match.mp4",
        container="mov,mp4,m4a,3gp,3g2,mj2",
        codec="h264",
        width=1280,
        height=720,
        rotation=0,
        duration_seconds=300.0,
        frame_count=9000,
        frames_per_second=30.0,
        size_bytes=134_217_728,
    )
    return replace(video, **changes)


def make_frames(count: int = 32, video: VideoInfo | None = None, **changes: Any) -> Frames:
    video = video or make_video()
    indices = np.linspace(0, video.frame_count - 1, count, dtype=np.int64)
    frames = Frames(
        pixels=np.zeros((count, 4, 6, 3), np.uint8),
        seconds=indices / 30.0,
        indices=indices,
        video=video,
        decoder="decord",
        decoder_reason="it reads h264 exactly",
    )
    return replace(frames, **changes)


def make_segments(count: int = 9, frames: int = 32, tokens: int = 952) -> tuple[Segment, ...]:
    """Segments of unequal length that cover all frames and share all tokens."""
    middle = np.arange(1, count) ** 1.3 / count**1.3 * (frames - count)
    borders = [0, *(int(m) + i for i, m in enumerate(middle, 1)), frames]
    weights = 20 + (np.arange(count) * 37) % 90
    shares = [int(share) for share in weights * tokens // weights.sum()]
    shares[-1] += tokens - sum(shares)
    return tuple(
        Segment(start, stop, start * 9.7, (stop - 1) * 9.7, share)
        for start, stop, share in zip(borders[:-1], borders[1:], shares, strict=True)
    )


def make_visual(frames: int, count: int) -> VisualTokens:
    rows = np.zeros(count, np.int64)
    source = np.zeros((frames, GRID**2), np.int64)
    array = cast("Any", rows)  # stands in for a tensor: only shapes are looked at
    embeds = cast("Any", np.zeros((count, 2)))
    return VisualTokens(embeds, array, array, array, cast("Any", source), (range(frames),), ())


def make_model(**changes: Any) -> ModelInfo:
    model = ModelInfo(
        id="llava-hf/llava-onevision-qwen2-7b-ov-hf",
        kind="random",
        revision="0d50680527681998e456c7b78950205bedd8a068",
        path="checkpoints/7b",
        dtype="bfloat16",
        device="cuda:0",
        device_name="NVIDIA H100 80GB HBM3",
        parameters=8_030_348_832,
        shape=SHAPE,
        preprocessor_file="video_preprocessor_config.json",
        reason="the card has 79.6 GiB, enough for the 7B",
    )
    return replace(model, **changes)


def make_answer(**changes: Any) -> Answer:
    """A HoliTom answer; keyword arguments replace fields, also those of the values inside."""
    frames = make_frames()
    answer = Answer(
        question="What is the man in the red shirt holding?",
        text="He is holding a football.",
        finish_reason="stop",
        method="holitom",
        method_settings={
            "retain_ratio": 0.15,
            "tau": 0.8,
            "beta": 0.6,
            "inner_layer": 18,
            "inner_ratio": 0.5,
        },
        generation=Generation(),
        tokens=TokenCounts(
            32,
            196,
            (("frames", 6272), ("temporal merge", 4270), ("spatial merge", 952)),
            ((18, 476),),
            33,
            986,
            24,
        ),
        segments=make_segments(),
        timings=Timings(STAGES, ttft_ms=96.65, tpot_ms=9.6, time_to_answer_s=0.7982),
        memory=Memory(15_998_753_178, 3_328_599_654),
        flops=Flops(paper=4.3e12, paper_full=40.8e12, true=15.2e12, true_full=95.4e12),
        model=make_model(),
        frames=frames,
        visual=make_visual(32, 952),
        inner_source=cast("Any", np.zeros((32, 196), np.int64)),
        inner_size=cast("Any", np.ones(953, np.int64)),
        token_ids=tuple(range(24)),
        versions={"holitom_cli": "0.1.0", "torch": "2.13.0"},
    )
    return replace(answer, **changes)


def make_baseline(**changes: Any) -> Answer:
    """The same question with every token kept."""
    stages: Mapping[str, float] = STAGES | {"compress": 0.02, "prefill": 179.0}
    answer = make_answer(
        method="full",
        method_settings={},
        tokens=TokenCounts(32, 196, (("frames", 6272),), (), 33, 6306, 24),
        segments=(),
        timings=Timings(stages, ttft_ms=290.0, tpot_ms=21.5, time_to_answer_s=1.2652),
        memory=Memory(17_394_617_549, 3_400_000_000),
        flops=Flops(paper=40.8e12, paper_full=40.8e12, true=95.4e12, true_full=95.4e12),
    )
    return replace(answer, **changes)
