"""What `bench` times and counts, against slow versions of the same; times themselves are never asserted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holitom_cli import load_model, methods, pipeline
from holitom_cli.bench import agreement, ceilings, parts, runner, scene, work
from holitom_cli.bench.ceilings import Ceilings
from holitom_cli.bench.rivals import Ours, Prompt, Run, Stock, random_prompt
from holitom_cli.bench.work import Work
from holitom_cli.errors import DeviceError, UsageError
from holitom_cli.model import Model, preprocess, vision
from holitom_cli.model.prefill import prefill
from holitom_cli.model.prompt import prompt_embeds
from holitom_cli.types import LayerView

PLAN = runner.Plan(repeats=2, warmup=1, new_tokens=4)
FULL, HOLITOM = (Ours(name, budget, methods.get(name)) for name, budget in (("full", 100), ("holitom", 15)))


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return load_model(tiny_checkpoint, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def pixels(model: Model) -> torch.Tensor:
    return preprocess.prepare(model.preprocessor, scene.made_up(3, 384), model.device)


# --- frames and prompts ------------------------------------------------------------------------


def test_made_up_frames_have_cuts_and_no_two_are_alike() -> None:
    frames = scene.made_up(17, 112)
    assert frames.pixels.shape == (17, 112, 112, 3)
    change = np.abs(np.diff(frames.pixels.astype(int), axis=0)).mean((1, 2, 3))
    assert (change > 0).all()
    assert set(np.argsort(change)[-2:]) == {7, 15}  # between scenes of eight frames
    assert (scene.made_up(17, 112).pixels == frames.pixels).all()
    assert (scene.made_up(17, 112, seed=1).pixels != frames.pixels).any()


def test_prompts_hold_no_pictures(model: Model) -> None:
    config = model.checkpoint.config
    many = random_prompt(model, 5000, 0)
    assert len(many.after) == 5000
    assert max(many.after) < model.info.shape.vocab
    assert {config.image_token_index, config.video_token_index}.isdisjoint(many.before + many.after)
    assert random_prompt(model, 9, 0) != random_prompt(model, 9, 1)


# --- answers -----------------------------------------------------------------------------------


@torch.inference_mode()
def test_ours_and_stock_say_the_same_with_every_token(model: Model, pixels: torch.Tensor) -> None:
    prompt = random_prompt(model, 12, 0)
    ours, stock, fewer = (rival.run(model, pixels, prompt, 6) for rival in (FULL, Stock(), HOLITOM))
    assert ours.ids == stock.ids
    assert len(ours.ids) == 6
    assert ours.tokens == stock.tokens == (3 * 196 + 1 + 14 + 12,) * model.checkpoint.depth
    assert ours.visual == stock.visual == 3 * 196 > fewer.visual
    assert fewer.tokens[0] > fewer.tokens[-1]
    other = FULL.run(model, pixels, random_prompt(model, 12, 1), 6)
    assert other.ids != ours.ids  # control


@pytest.mark.parametrize("name", methods.available())
@torch.inference_mode()
def test_ours_is_what_the_program_does(model: Model, pixels: torch.Tensor, name: str) -> None:
    """The same tokens as `pipeline.ask` gives for the same words."""
    watched = pipeline.watch(model, scene.made_up(3, 384), method=name)
    answer = pipeline.ask(model, watched, "What is it?", max_new_tokens=6)
    before, after = model.chat.encode("What is it?")
    run = Ours(name, 15, watched.method).run(model, pixels, Prompt(before, after), 6)
    assert run.ids[: len(answer.token_ids)] == answer.token_ids
    assert run.visual == answer.tokens.visual
    last = answer.tokens.inside[-1][1] if answer.tokens.inside else answer.tokens.visual + 1
    assert run.tokens[-1] == last + answer.tokens.text
    assert all(seen <= read for seen, read in zip(run.cached, run.tokens, strict=True))
    assert (run.cached != run.tokens) == watched.method.prunes_cache
    stages = set(answer.timings.stages_ms) - {"preprocess", "probe", "decode"}
    assert stages == {"vision", "compress", "prefill", "sample"}
    assert stages < set(run.ms)


@torch.inference_mode()
def test_stock_is_left_as_it_was_and_its_passes_are_counted(
    model: Model, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from holitom_cli.bench import rivals

    seen: list[list[str]] = []
    original = rivals._stages

    @contextmanager
    def listened(*given: Any) -> Iterator[list[str]]:
        with original(*given) as passes:
            seen.append(passes)
            yield passes

    monkeypatch.setattr(rivals, "_stages", listened)
    run = Stock().run(model, pixels, random_prompt(model, 12, 0), 5)
    assert seen[0] == ["prefill", "decode", "decode", "decode", "decode"]
    watched = (model.vision_tower, model.projector, model.language_model)
    assert not any(module._forward_pre_hooks for module in watched)
    assert run.ms["vision"] > run.ms["projector and pool"] > 0


# --- rounds ------------------------------------------------------------------------------------


class Failing:
    """A rival that runs out of memory in its second answer."""

    label = "failing"

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, Prompt]] = []

    def run(self, model: Model, pixels: torch.Tensor, prompt: Prompt, new_tokens: int) -> Run:  # noqa: ARG002
        self.seen.append((pixels, prompt))
        if len(self.seen) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Run({"ttft": 1.0, "per token": 1.0}, (0,) * new_tokens, 1, (1,), (1,))


def test_no_two_rounds_are_alike_and_a_failure_ends_only_its_own(model: Model) -> None:
    failing, other = Failing(), Failing()
    other.seen = [(torch.empty(0), Prompt([], []))] * 2  # past its failure
    steps: list[int] = []
    frames = scene.made_up(3, 384)
    first, second = runner.rounds(model, [failing, other], frames, PLAN, lambda: steps.append(1))
    assert isinstance(first.error, DeviceError)
    assert "for failing" in first.error.message
    assert (first.error.__traceback__, first.error.__cause__) == (None, None)  # these would hold its tensors
    assert len(first.runs) == 1
    assert len(failing.seen) == 2
    assert len(second.runs) == 3
    assert len(steps) == 2 + 3
    asked = other.seen[2:]
    assert len({len(prompt.after) for _, prompt in asked}) == 3
    assert torch.equal(asked[0][0].roll(-1, 0), asked[1][0])
    assert not torch.equal(asked[0][0], asked[1][0])
    assert asked[0][1] == failing.seen[0][1]  # the same for all rivals of a round
    row = runner.row(model, first, frames, PLAN, Ceilings(1, 1))
    assert row["error"]["stage"] == "device"
    assert "stages" not in row


def test_a_prompt_that_is_too_long_is_not_tried(model: Model) -> None:
    frames = scene.made_up(2, 384)
    many = replace(frames, pixels=np.broadcast_to(frames.pixels[:1], (200, 384, 384, 3)), seconds=np.arange(200.0))
    error = runner._too_long(model, Stock(), len(many), PLAN)
    assert isinstance(error, UsageError)
    assert "200 frames" in error.message
    assert runner._too_long(model, HOLITOM, len(many), PLAN) is None


def test_rows_hold_every_stage_with_its_figures(model: Model) -> None:
    frames = scene.made_up(3, 384)
    best = Ceilings(1e9, 1e9)
    timed = runner.rounds(model, runner.line_up([HOLITOM], ("full", "stock")), frames, PLAN)
    rows = [runner.row(model, one, frames, PLAN, best) for one in timed]
    runner.compare(rows)
    assert [row["rival"] for row in rows] == ["holitom", "full", "stock"]
    assert list(rows[0]["faster_than"]) == ["full", "stock"]
    assert list(rows[2]["faster_than"]) == ["full"]
    inside = {"attention received", "merge inside"}
    common = {"vision", "projector and pool", "prefill", "ttft", "per token"}
    assert set(rows[2]["stages"]) == common
    assert set(rows[1]["stages"]) == common | {"preprocess", "compress", "sample", "step"}
    assert set(rows[0]["stages"]) == set(rows[1]["stages"]) | inside
    for row, one in zip(rows, timed, strict=True):
        for name, figures in row["stages"].items():
            times = [run.ms[name] for run in one.runs]
            assert figures["first_ms"] == times[0]
            assert figures["low_ms"] == min(times[1:]) <= figures["median_ms"] <= max(times[1:]) == figures["high_ms"]
    gain = rows[1]["stages"]["ttft"]["median_ms"] / rows[0]["stages"]["ttft"]["median_ms"]
    assert rows[0]["faster_than"]["full"]["ttft"] == gain
    floors = {name: figures["floor_ms"] for name, figures in rows[1]["stages"].items()}
    assert floors["ttft"] == pytest.approx(floors["vision"] + floors["prefill"])  # full compresses nothing
    assert floors["compress"] is None


def test_figures_of_known_times() -> None:
    found = runner.figures([9.0, 2.0, 4.0, 3.0], 1, Work(6e9, 3e9), Ceilings(6e12, 1e12))
    assert found["median_ms"] == 3.0
    assert (found["low_ms"], found["high_ms"], found["first_ms"]) == (2.0, 4.0, 9.0)
    assert found["tflop_per_s"] == pytest.approx(2.0)
    assert found["tb_per_s"] == pytest.approx(1.0)
    assert found["floor_ms"] == pytest.approx(3.0)  # the bytes' 3 ms, not the arithmetic's 1
    assert runner.figures([1.0], 0, None, Ceilings(1, 1))["floor_ms"] is None


def test_methods_that_were_asked_for_are_not_doubled() -> None:
    assert [rival.label for rival in runner.line_up([FULL], ("full", "stock"))] == ["full", "stock"]
    assert [rival.label for rival in runner.line_up([HOLITOM], ())] == ["holitom"]


# --- work --------------------------------------------------------------------------------------


def weights(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Matrices of the library's linear layers."""
    return (part.weight for part in module.modules() if isinstance(part, torch.nn.Linear))


def test_decoding_counts_every_matrix_once_and_the_cache(model: Model) -> None:
    tokens = [30, 30, 20, 20]
    shape = model.info.shape
    found = work.decode(model, tokens)
    products = sum(2 * part.numel() for part in (*weights(model.language_model.layers), model.lm_head.weight))
    scores = sum(4 * shape.heads * shape.head_dim * (n + 1) for n in tokens)
    assert found.flops == pytest.approx(products + scores)
    moved = {id(part): part.nbytes for part in (*model.language_model.layers.parameters(), model.lm_head.weight)}
    cache = sum(tokens) * shape.kv_heads * shape.head_dim * 2 * 4
    assert found.bytes == sum(moved.values()) + cache
    assert work.decode(model, [n + 1 for n in tokens]).bytes > found.bytes  # control


def test_projector_is_its_two_matrices(model: Model) -> None:
    found = work.project(model, 3)
    first, second = (2 * part.numel() for part in weights(model.projector))
    assert found.flops == 3 * (729 * first + 196 * second)
    assert found.flops < work.vision(model, 3, attention=False).flops < work.vision(model, 3, attention=True).flops


def test_bytes_are_those_of_the_tensors(model: Model, pixels: torch.Tensor) -> None:
    features = vision.encode(model, pixels, attention=False)
    assert work.token_bytes(model, 3) == features.tokens.nbytes
    assert work.preprocess(model, 3).bytes == pixels.nbytes + pixels.numel()  # a byte for each number
    embeds, span = prompt_embeds(model, [5, 6], methods.get("full").compress(features), [7])
    state = prefill(model.language_model, model.lm_head, embeds, span, {}, room=0)
    held = sum(part.nbytes for part in (*state.cache.keys, *state.cache.values))
    assert held == work.cache_bytes(model, len(embeds)) * model.checkpoint.depth


def test_ceilings_are_measured_and_make_floors() -> None:
    best = ceilings.measure(torch.device("cpu"), torch.float32)
    assert best.flops_per_second > 1e8
    assert best.bytes_per_second > 1e7
    assert ceilings.better(Ceilings(2, 3), Ceilings(1, 4)) == Ceilings(2, 4)
    assert Ceilings(2e12, 1e12).floor_ms(Work(4e9, 1e9)) == pytest.approx(2.0)
    assert Ceilings(2e12, 1e12).floor_ms(Work(4e9, 9e9)) == pytest.approx(9.0)


def test_parts_see_the_shapes_of_the_run(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    method = methods.get("holitom", inner_layer=2)
    (index,) = method.reductions(4)
    reduction = method.reductions(4)[index]

    def apply(view: LayerView) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(view.hidden))
        assert view.attention.shape == (1, len(view.hidden))
        return reduction.apply(view)

    monkeypatch.setattr(type(method), "reductions", lambda *_: {index: replace(reduction, apply=apply)})
    with torch.inference_mode():
        found = parts.timed(model, method, 9, [100, 100, 60, 60], range(14, 80))
    assert set(found) == {"projector and pool", "attention received", "merge inside"}
    assert seen == [66]


# --- agreement ---------------------------------------------------------------------------------


def test_agreement_passes_and_sees_what_is_wrong(
    model: Model, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = random_prompt(model, 12, 0)
    found = agreement.with_stock(model, pixels, prompt, 6)
    assert found["passed"]
    assert found["relative_error"] <= 1e-4 < min(found["control_shifted_positions"], found["control_one_step_late"])
    assert found["tokens_equal"] == 7
    right = agreement._ours

    def wrong(*given: Any, shift: int = 0, **more: Any) -> torch.Tensor:
        return right(*given, shift=shift + 1, **more)

    monkeypatch.setattr(agreement, "_ours", wrong)  # control: these weights do notice positions that are one too high
    assert not agreement.with_stock(model, pixels, prompt, 6)["passed"]


def test_there_is_no_graph_to_compare_on_a_cpu(model: Model, pixels: torch.Tensor) -> None:
    assert agreement.graph_with_plain(model, HOLITOM.method, pixels, random_prompt(model, 12, 0), 4) is None
