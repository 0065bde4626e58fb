"""Several clips in one prompt: as the library takes two videos, and as the slow way merges the tokens of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from holitom_cli import pipeline
from holitom_cli.errors import ModelError, UsageError
from holitom_cli.model import kept as kept_room
from holitom_cli.model import preprocess
from holitom_cli.model.kept import Kept
from holitom_cli.model.loading import Model, load_model
from holitom_cli.model.prefill import Prefill, prefill
from holitom_cli.model.prompt import Turn
from holitom_cli.types import Added, CacheView, Frames, Generation, LayerView, Reduction
from tests.make_random_checkpoint import make_checkpoint
from tests.model.language import DEPTH, random_prompt, recompute, small_qwen2
from tests.model.test_kept import answered
from tests.model.test_prefill import APPENDED, NEAR, PLANS, account, distance, every_third, near, slow_account

LIMIT = 1e-4  # of logits, in float32

# --- inside the language model -----------------------------------------------------------------

LENGTH = 42
LAYOUTS = {
    "two": [range(4, 17), range(23, 34)],
    "three, one of them a newline token alone": [range(2, 9), range(10, 11), range(20, 37)],
    "from the start, with nothing between": [range(10), range(10, 19), range(25, 30)],
}


def places(clips: Sequence[range]) -> dict[str, Any]:
    """As `prefill` is told of clips."""
    return {
        "span": range(clips[0].start, clips[-1].stop),
        "gaps": [range(left.stop, right.start) for left, right in pairwise(clips)],
    }


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_merging_all_clips_is_what_recomputing_gives(layout: str, plan: str) -> None:
    model, embeds = small_qwen2(), random_prompt(small_qwen2(), LENGTH)
    clips = LAYOUTS[layout]
    visual = [place for clip in clips for place in clip]
    state, logits = answered(model, embeds, PLANS[plan], len(APPENDED), **places(clips))
    slow = recompute(model, embeds, visual, PLANS[plan], APPENDED)
    assert account(state) == slow_account(slow)
    assert near(state.hidden[0], slow.hidden)
    assert near(logits, slow.logits)
    # Control: text between clips is not theirs.
    if PLANS[plan] and any(len(gap) for gap in places(clips)["gaps"]):
        span = places(clips)["span"]
        wrong = recompute(model, embeds, span, PLANS[plan], APPENDED)
        assert distance(logits, wrong.logits) > 1000 * NEAR


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pruned_cache_keeps_the_text_between_clips(layout: str) -> None:
    model, embeds = small_qwen2(), random_prompt(small_qwen2(), LENGTH)
    clips = LAYOUTS[layout]
    visual = [place for clip in clips for place in clip]
    seen: list[CacheView] = []

    def look(layers: Sequence[CacheView]) -> list[Tensor]:
        seen.extend(layers)
        return every_third(layers)

    def state(plan: str, evict: Any = None) -> Prefill:
        return prefill(model.model, model.lm_head, embeds, reductions=PLANS[plan], evict=evict, **places(clips))

    for plan in ("none", "fold"):
        pruned, whole = state(plan, look), state(plan)
        for layer, view in enumerate(seen[-DEPTH:]):
            left = visual if layer < 3 or plan == "none" else [visual[row] for row in sorted(set(whole.into.tolist()))]
            before = [place for place in range(LENGTH) if place in left or place not in visual]
            gone = [place for row, place in enumerate(left) if row not in range(layer % 2, len(left), 3)]
            columns = [column for column, place in enumerate(before) if place not in gone]
            assert view.attention.shape == (LENGTH - clips[-1].stop, len(left))
            assert torch.equal(pruned.cache.keys[layer], whole.cache.keys[layer][:, :, columns])
            assert pruned.cached[layer] == len(left) - len(gone)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("at_once", [3, 512])
def test_what_is_kept_serves_more_clips_and_fewer(plan: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_room, "_AT_ONCE", at_once)
    model, first, second = small_qwen2(), range(4, 17), range(23, 34)
    long = random_prompt(small_qwen2(), 60)
    other = torch.cat((long[:28], random_prompt(model, 20, seed=1)))  # in the middle of the second clip
    told = [
        (long[:20], [first], 0),
        (long[:39], [first, second], 20),
        (long[:45], [first, second], 39),
        (long, [first, second, range(47, 50)], 45),
        (long[:58], [first, second], 34),
        (other, [first, range(23, 31)], 28),
        (long[:40], [first], 0),
        (torch.cat((long[:16], other)), [first, second], 0),
    ]
    kept, reused = Kept(DEPTH, PLANS[plan]), []
    for embeds, clips, _ in told:
        state, logits = answered(model, embeds, PLANS[plan], len(APPENDED), kept, **places(clips))
        whole, expected = answered(model, embeds, PLANS[plan], len(APPENDED), **places(clips))
        assert account(state) == account(whole)
        assert distance(logits, expected) < NEAR
        assert [keys.shape for keys in state.cache.keys] == [keys.shape for keys in whole.cache.keys]
        reused.append(kept.reused)
    assert reused == [number for _, _, number in told]


def test_a_clip_whose_reading_was_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes next may be without it, or have it after all."""
    model, long = small_qwen2(), random_prompt(small_qwen2(), 40)
    one, both = places([range(4, 17)]), places([range(4, 17), range(23, 34)])
    plan = PLANS["all rows, most of any head"]

    def stop(*_: Any) -> Tensor:
        raise KeyboardInterrupt

    for embeds, clips, reused in ((long[:25], one, 0), (long, both, 20)):
        kept = Kept(DEPTH, plan)
        answered(model, long[:20], plan, len(APPENDED), kept, **one)
        with monkeypatch.context() as patch:
            patch.setattr("holitom_cli.model.kept.decoder_layer", stop)
            with pytest.raises(KeyboardInterrupt):
                answered(model, long, plan, 0, kept, **both)
        _, logits = answered(model, embeds, plan, len(APPENDED), kept, **clips)
        assert distance(logits, answered(model, embeds, plan, len(APPENDED), **clips)[1]) < NEAR
        assert kept.reused == reused


def test_a_reduction_is_told_of_visual_rows_alone() -> None:
    seen: list[LayerView] = []

    def look(view: LayerView) -> tuple[Tensor, Tensor]:
        seen.append(view)
        return view.hidden, torch.arange(len(view.hidden))

    model, clips = small_qwen2(), LAYOUTS["two"]
    reductions = {3: Reduction(look, rows="all")}
    prefill(model.model, model.lm_head, random_prompt(model, LENGTH), reductions=reductions, **places(clips))
    (view,) = seen
    assert view.entered == len(view.hidden) == sum(map(len, clips))
    assert view.attention.shape == (LENGTH - clips[-1].stop, view.entered)


# --- the library's own way ---------------------------------------------------------------------

TURNS = [Turn("What is shown in the video?", "a square")]
QUESTION = "And in this one?"
PLACES = {"both at first": (0, 0), "one a turn": (0, 1)}


@pytest.fixture(scope="module", params=[{"layers": 3}, {"layers": 4, "image_size": 112, "patch_size": 16}], ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = make_checkpoint(tmp_path_factory.mktemp("clips"), dtype=torch.float32, seed=5, **request.param)
    return load_model(path, device="cpu")


def clip(seed: int, frames: int = 2) -> Frames:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 60, 80, 3), dtype=np.uint8)
    return Frames(pixels=pixels, seconds=np.arange(frames, dtype=float))


def for_stock(model: Model, clips: Sequence[Frames], turns: tuple[int, int]) -> Any:
    """The same prompt for the library's model: placeholders as its processor expands them, and the pixels of all."""
    texts = model.chat.encode_around(turns, QUESTION, TURNS)
    tokens = len(clips[0]) * model.checkpoint.visual_grid**2 + 1  # every video has a newline token
    ids = torch.tensor(
        [[*texts[0], *(id_ for text in texts[1:] for id_ in [model.chat.video_token_id] * tokens + text)]]
    )
    pixels = torch.stack([preprocess.prepare(model.preprocessor, frames, model.device) for frames in clips])
    return {"input_ids": ids, "pixel_values_videos": pixels, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("turns", PLACES)
@torch.inference_mode()
def test_two_clips_are_the_librarys_two_videos(model: Model, turns: str) -> None:
    one, two, (_, turn) = clip(1), clip(2), PLACES[turns]
    first, second = (pipeline.watch(model, frames, method="full") for frames in (one, two))
    added = [Added(second, turn)]
    ours = pipeline.begin(model, first, QUESTION, Generation(8), turns=TURNS, added=added).state.logits[0]
    answer = pipeline.ask(model, first, QUESTION, max_new_tokens=8, turns=TURNS, added=added)
    same = for_stock(model, [one, two], (0, turn))
    length = same["input_ids"].shape[1]
    assert (ours - model.stock(**same, use_cache=False).logits[0, -1]).abs().max() <= LIMIT
    made = model.stock.generate(**same, max_new_tokens=8, do_sample=False)
    assert list(answer.token_ids) == made[0, length:].tolist()
    assert answer.tokens.prompt == length
    # Controls: the clips the other way round, one of them twice, and in another turn.
    for wrong in (
        for_stock(model, [two, one], (0, turn)),
        for_stock(model, [one, one], (0, turn)),
        for_stock(model, [one, two], (0, 1 - turn)),
    ):
        assert (ours - model.stock(**wrong, use_cache=False).logits[0, -1]).abs().max() > 100 * LIMIT


@pytest.mark.parametrize("turns", PLACES)
def test_the_text_around_clips_is_the_librarys(model: Model, turns: str) -> None:
    texts = [*TURNS[0], QUESTION]
    messages: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in zip(("user", "assistant", "user"), texts, strict=True)
    ]
    for place in PLACES[turns]:
        messages[2 * place]["content"].insert(0, {"type": "video"})
    directory = Path(model.info.path)
    template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    before, between, after = model.chat.encode_around(PLACES[turns], QUESTION, TURNS)
    video = [model.chat.video_token_id]
    assert before + video + between + video + after == tokenizer(text)["input_ids"]


# --- the account -------------------------------------------------------------------------------


def test_the_account_is_of_all_clips(model: Model) -> None:
    first, second = (
        pipeline.watch(model, clip(seed, frames), method="visionzip+fastv") for seed, frames in ((1, 3), (2, 2))
    )
    answer = pipeline.ask(model, first, "What?", max_new_tokens=2, added=[Added(second, 0)])
    alone = [pipeline.ask(model, watched, "What?", max_new_tokens=2) for watched in (first, second)]
    (earlier,), tokens = answer.earlier, answer.tokens
    assert (earlier.frames, answer.frames) == (first.frames, second.frames)
    assert (earlier.segments, answer.segments) == (alone[0].segments, alone[1].segments)
    assert tokens.frames == 5
    assert tokens.visual == len(first.visual) + len(second.visual) == sum(one.tokens.visual for one in alone)
    assert tokens.funnel == tuple(
        (name, left + more) for (name, left), (_, more) in zip(*(one.tokens.funnel for one in alone), strict=True)
    )
    assert tokens.prompt == tokens.visual + 2 + tokens.text
    ((layer, left),) = tokens.inside
    ((_, alone_left),) = alone[0].tokens.inside
    assert layer == 2
    assert left == round((tokens.visual + 2) / 2)
    assert alone_left < left
    # Where patches ended: in rows of all clips, each as often as inner_size says.
    ended = torch.cat([part.inner_source.flatten() for part in (earlier, answer)])
    counted = [int((ended == row).sum()) for row in range(tokens.visual + 2)]
    assert answer.inner_size.tolist() == counted
    for part, offset in ((earlier, 0), (answer, len(first.visual) + 1)):
        kept = part.inner_source[part.inner_source >= 0]
        assert torch.equal(kept, (part.visual.source + offset)[part.inner_source >= 0])  # dropped or where it was
    assert answer.flops.true > max(one.flops.true for one in alone)
    everything = [pipeline.watch(model, clip(seed), method="full") for seed in (1, 2)]
    flops = pipeline.ask(model, everything[0], "What?", max_new_tokens=1, added=[Added(everything[1], 0)]).flops
    assert (flops.paper, flops.true) == (flops.paper_full, flops.true_full)
    assert answer.timings.stages_ms["vision"] == pytest.approx(
        sum(watched.clock.milliseconds()["vision"] for watched in (first, second))
    )


def test_what_cannot_be_is_told(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (pipeline.watch(model, clip(1), method=method) for method in ("full", "uniform"))
    with pytest.raises(UsageError, match="different methods"):
        pipeline.ask(model, first, "What?", added=[Added(second, 0)])
    for turns in ([1], [1, 0], [-1]):
        with pytest.raises(ValueError, match="expected them in order"):
            pipeline.ask(model, first, "What?", turns=TURNS[: len(turns) - 1], added=[Added(first, at) for at in turns])
    twice = [Added(first, 0)]
    needed = pipeline.ask(model, first, "What?", max_new_tokens=1, added=twice).tokens.prompt + pipeline.ANSWER_ROOM
    with monkeypatch.context() as patch:
        patch.setattr(type(model.checkpoint), "max_positions", needed)
        pipeline.ask(model, first, "What?", max_new_tokens=1, added=twice)
        patch.setattr(type(model.checkpoint), "max_positions", needed - 1)
        with pytest.raises(UsageError, match="positions"):
            pipeline.ask(model, first, "What?", added=twice)
    one_place = replace(model.chat, template="<video>{{ messages[0]['content'][-1]['text'] }}")
    with pytest.raises(ModelError, match="puts 1 videos into a prompt, not 2"):
        one_place.encode_around((0, 0), "What?", ())
