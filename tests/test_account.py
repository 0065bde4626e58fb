"""The account of an answer: tokens, segments, times and costs, added up again by hand."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from holitom_cli import __version__, account, flops
from holitom_cli.clock import Clock
from holitom_cli.model.loading import Model, load_model
from holitom_cli.pipeline import ask, watch
from holitom_cli.types import Answer, Frames

QUESTION = "What is shown in the video?"
FRAMES = 12


def frames() -> Frames:
    """Three scenes of four frames with a square that moves: cells that stay, and cells that change."""
    pixels = np.random.default_rng(1).integers(0, 256, (3, 96, 128, 3), dtype=np.uint8).repeat(4, 0)
    for index, picture in enumerate(pixels):
        picture[30:60, 8 * index : 8 * index + 30] = 20 * index
    timings = {"probe": 11.0, "decode": 22.0}
    warnings = ("3 frames could not be read.",)
    return Frames(
        pixels=pixels, seconds=np.linspace(1, FRAMES / 2 + 0.5, FRAMES), timings_ms=timings, warnings=warnings
    )


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return load_model(tiny_checkpoint, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def answer(model: Model) -> Answer:
    return ask(model, watch(model, frames(), retain_ratio=0.2, inner_layer=2), QUESTION, max_new_tokens=9)


def test_tokens_add_up(answer: Answer, model: Model) -> None:
    tokens, visual = answer.tokens, answer.visual
    assert (tokens.frames, tokens.patches_per_frame, tokens.original) == (FRAMES, 196, FRAMES * 196)
    assert tokens.funnel[0] == ("sampled", FRAMES * 196)
    assert [count for _, count in tokens.funnel] == sorted((count for _, count in tokens.funnel), reverse=True)
    assert tokens.visual == len(visual)
    assert tokens.retained == len(visual) / (FRAMES * 196) <= 0.2 + 0.01
    assert tokens.text == sum(map(len, model.chat.encode(QUESTION)))
    assert tokens.prompt == len(visual) + 1 + tokens.text
    assert tokens.inside == ((2, round((len(visual) + 1) / 2)),)
    assert tokens.generated == len(answer.token_ids)


def test_the_scene_is_worth_an_account(answer: Answer) -> None:
    """Control: merged over time and space, dropped, and folded inside; otherwise the sums would say little."""
    assert 1 < len(answer.segments) < FRAMES
    assert (answer.visual.size > 4).any()
    assert (answer.visual.source < 0).any()
    assert len(answer.inner_source.unique()) < len(answer.visual.source.unique())


def test_every_original_token_is_followed_to_its_end(answer: Answer) -> None:
    into = torch.full((len(answer.visual) + 1,), -2)
    for frame in range(FRAMES):
        for cell in range(196):
            row, end = int(answer.visual.source[frame, cell]), int(answer.inner_source[frame, cell])
            if row < 0:
                assert end == -1
            else:
                assert int(into[row]) in (-2, end)  # all that went into a token end where it ends
                into[row] = end
    size = answer.inner_size
    assert size.shape == (len(answer.visual) + 1,)
    assert size.tolist() == [int((answer.inner_source == row).sum()) for row in range(len(size))]
    assert int(size.sum()) + int((answer.inner_source < 0).sum()) == FRAMES * 196
    assert int((size[:-1] > 0).sum()) <= answer.tokens.inside[0][1]


def test_without_a_merge_inside_the_ends_are_the_sources(model: Model) -> None:
    plain = ask(model, watch(model, frames(), inner_layer="off"), QUESTION, max_new_tokens=2)
    assert torch.equal(plain.inner_source, plain.visual.source)
    assert torch.equal(plain.inner_size[:-1], plain.visual.size)
    assert plain.inner_size[-1] == 0
    assert plain.tokens.inside == ()


def test_segments_cover_the_clip_and_share_its_tokens(answer: Answer) -> None:
    parts = answer.segments
    assert [f for part in parts for f in range(part.start_frame, part.stop_frame)] == list(range(FRAMES))
    for part in parts:
        assert part.start_seconds == part.start_frame * 0.5 + 1
        assert part.end_seconds == (part.stop_frame - 1) * 0.5 + 1
        inside = (answer.visual.frame >= part.start_frame) & (answer.visual.frame < part.stop_frame)
        assert part.tokens == int(inside.sum())
    assert sum(part.tokens for part in parts) == answer.tokens.visual


def test_times_add_up(answer: Answer) -> None:
    stages, times = answer.timings.stages_ms, answer.timings
    assert list(stages) == ["probe", "decode", "preprocess", "vision", "compress", "prefill", "sample"]
    assert (stages["probe"], stages["decode"]) == (11.0, 22.0)
    assert all(time > 0 for time in stages.values())
    assert times.ttft_ms == pytest.approx(sum(stages[name] for name in ("vision", "compress", "prefill", "sample")))
    assert times.tpot_ms is not None
    decoding_s = times.tpot_ms * (len(answer.token_ids) - 1) / 1000
    assert times.time_to_answer_s == pytest.approx(sum(stages.values()) / 1000 + decoding_s)
    assert times.tokens_per_second == pytest.approx(1000 / times.tpot_ms)


def test_a_single_token_has_no_time_per_token(model: Model) -> None:
    times = ask(model, watch(model, frames()), QUESTION, max_new_tokens=1).timings
    assert times.tpot_ms is None
    assert times.tokens_per_second is None


def test_a_second_question_does_not_pay_for_the_video_twice(model: Model) -> None:
    watched = watch(model, frames())
    first, second = (ask(model, watched, QUESTION, max_new_tokens=2).timings.stages_ms for _ in range(2))
    assert first["vision"] == second["vision"]
    assert first["prefill"] != second["prefill"]


def test_costs_are_counted_layer_by_layer(answer: Answer, model: Model) -> None:
    shape, tokens, costs = model.info.shape, answer.tokens, answer.flops
    merged = tokens.inside[0][1]
    visual = [tokens.visual] * 2 + [merged] * 2
    everything = [tokens.prompt] * 2 + [merged + tokens.text] * 2
    assert costs.paper == flops.paper_prefill(shape, visual)
    assert costs.paper_full == flops.paper_prefill(shape, [FRAMES * 196] * 4)
    assert costs.true == flops.true_prefill(shape, everything) + flops.true_vision(shape, FRAMES, attention=True)
    full = [FRAMES * 196 + 1 + tokens.text] * 4
    assert costs.true_full == flops.true_prefill(shape, full) + flops.true_vision(shape, FRAMES, attention=False)


def test_keeping_everything_costs_what_keeping_everything_costs(model: Model) -> None:
    costs = ask(model, watch(model, frames(), method="full"), QUESTION, max_new_tokens=1).flops
    assert costs.paper == costs.paper_full
    assert costs.true == costs.true_full


def test_an_answer_says_what_made_it(answer: Answer, model: Model) -> None:
    assert answer.method == "holitom"
    assert answer.method_settings == {
        "retain_ratio": 0.2,
        "tau": 0.8,
        "beta": 0.6,
        "neighbours": 7,
        "max_window": 1024,
        "inner_layer": 2,
        "inner_ratio": 0.5,
    }
    assert answer.model.id == model.info.id
    assert answer.model.preprocessor_file == "video_preprocessor_config.json"
    assert answer.versions["holitom_cli"] == __version__
    assert answer.versions["torch"] == torch.__version__
    assert answer.warnings[0] == "3 frames could not be read."
    assert "random weights: its answers are noise" in answer.warnings[1]


def test_versions_of_what_is_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "_PACKAGES", ("torch", "no-such-package"))
    assert list(account.versions()) == ["holitom_cli", "torch"]


def test_memory_is_that_of_this_process(answer: Answer) -> None:
    assert answer.memory.device_peak_bytes is None
    peak = answer.memory.host_peak_bytes
    assert peak >= 1e8  # torch alone is larger
    if (status := Path("/proc/self/status")).exists():
        known = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert known is not None
        assert peak <= int(known[1]) * 1024 <= 10 * peak  # bytes, not kilobytes


def test_the_clock_adds_up_what_runs_twice() -> None:
    clock = Clock(torch.device("cpu"))
    for name, seconds in (("a", 0.01), ("b", 0.0), ("a", 0.02)):
        with clock.stage(name):
            time.sleep(seconds)
    times = clock.milliseconds()
    assert list(times) == ["a", "b"]
    assert times["a"] >= 30 > times["b"] >= 0
