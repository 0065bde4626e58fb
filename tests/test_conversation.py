"""Follow-up questions: each answer is the one that the whole conversation gives when it is read from the start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from holitom_cli import methods, pipeline
from holitom_cli.conversation import Conversation
from holitom_cli.errors import UsageError
from holitom_cli.model.kept import Kept
from holitom_cli.model.loading import Model, load_model
from holitom_cli.model.prompt import Turn
from holitom_cli.pipeline import watch
from holitom_cli.types import Added, Answer, Frames, Generation, Watched
from tests.make_random_checkpoint import make_checkpoint

LIMIT = 1e-4  # of logits, in float32
BRIEF = Generation(max_new_tokens=8)
QUESTIONS = [
    "What is shown in the video?",
    "Who is there?",
    "And then?",
    "Where is it? Say it in one word.",
    "What was it that you said first?",
    "Wer? 谁? 🎬",
    "x",
    "How many people are there, and what do they hold in their hands while they walk?",
    "Who is there?",
    "Is that all?",
]
ACTING_INSIDE = ["vidcom2+inner", "dycoke+pyramiddrop", "visionzip+fastv", "evs+star-like", "uniform+prunevid"]
PRUNING_THE_CACHE = "holitom+aircache-like"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """16 visual tokens a frame."""
    path = tmp_path_factory.mktemp("small")
    make_checkpoint(path, layers=6, dtype=torch.float32, image_size=112, patch_size=16)
    return load_model(path, device="cpu", dtype="float32")


def made_frames(seed: int = 0) -> Frames:
    """Two still scenes with a moving square."""
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 60, 80, 3), dtype=np.uint8).repeat(3, 0)
    for index, picture in enumerate(pixels):
        picture[20:40, 5 * index : 5 * index + 20] = 255
    return Frames(pixels=pixels, seconds=np.arange(6) / 2, timings_ms={"decode": 5.0})


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Those of every prompt's last token, in order."""
    seen: list[Tensor] = []
    original = vars(pipeline)["prefill"]

    def recorded(*args: Any, **kwargs: Any) -> Any:
        state = original(*args, **kwargs)
        seen.append(state.logits)
        return state

    monkeypatch.setattr(pipeline, "prefill", recorded)
    return seen


def from_scratch(model: Model, watched: Watched, turns: list[Turn]) -> Answer:
    *before, last = turns
    return pipeline.ask(model, watched, last.question, max_new_tokens=BRIEF.max_new_tokens, turns=before)


@pytest.mark.parametrize("method", [*methods.available(), *ACTING_INSIDE, PRUNING_THE_CACHE])
def test_ten_questions_are_as_if_asked_from_scratch(model: Model, method: str, logits: list[Tensor]) -> None:
    talk = Conversation(model, watch(model, made_frames(), method=method))
    reused = []
    answers = []
    for question in QUESTIONS:
        answers.append(talk.ask(question, BRIEF))
        reused.append(talk.reused_tokens)
    warm = list(logits)
    watched = watch(model, made_frames(), method=method)
    for number in range(len(QUESTIONS)):
        cold = from_scratch(model, watched, talk.turns[: number + 1])
        assert (warm[number] - logits[-1]).abs().max() <= LIMIT
        assert answers[number].token_ids == cold.token_ids
        assert (answers[number].tokens, answers[number].flops) == (cold.tokens, cold.flops)
        assert torch.equal(answers[number].inner_source, cold.inner_source)
    if methods.get(method).prunes_cache:
        assert (set(reused), talk.kept_bytes) == ({0}, 0)
    else:  # everything up to the template's opening of the last answer, and the first question has nothing to reuse
        assert reused[0] == 0
        assert all(now > then.tokens.prompt - 4 for now, then in zip(reused[1:], answers, strict=False))
        assert talk.kept_bytes > 0
        assert method != PRUNING_THE_CACHE
    # Control: the conversation matters.
    pipeline.ask(model, watched, QUESTIONS[-1], max_new_tokens=1)
    assert (warm[-1] - logits[-1]).abs().max() > 100 * LIMIT


@pytest.mark.parametrize("method", ["holitom", "fastv", "star-like"])
def test_control_reducing_as_for_the_question_before_is_seen(model: Model, method: str, logits: list[Tensor]) -> None:
    """Keeping every layer is wrong behind a reduction that looks at the question."""
    watched = watch(model, made_frames(), method=method)
    plan = watched.method.reductions(model.checkpoint.depth)
    kept = Kept(model.checkpoint.depth, plan)
    wrong = Kept(model.checkpoint.depth, {})
    for question in QUESTIONS[:2]:
        for memory in (None, kept, wrong):
            pipeline.ask(model, watched, question, max_new_tokens=1, kept=memory)
        right, warm, other = logits[-3:]
        assert (right - warm).abs().max() <= LIMIT
        assert (right - other).abs().max() > 100 * LIMIT


def test_a_new_conversation_keeps_the_videos_share(model: Model, logits: list[Tensor]) -> None:
    watched = watch(model, made_frames())
    talk = Conversation(model, watched)
    talk.ask(QUESTIONS[0], BRIEF)
    talk.ask(QUESTIONS[1], BRIEF)
    talk.forget()
    again = talk.ask(QUESTIONS[2], BRIEF)
    assert talk.turns == [Turn(QUESTIONS[2], again.text)]
    assert talk.reused_tokens > again.tokens.visual
    alone = pipeline.ask(model, watched, QUESTIONS[2], max_new_tokens=BRIEF.max_new_tokens)
    assert again.token_ids == alone.token_ids
    assert (logits[-2] - logits[-1]).abs().max() <= LIMIT


def test_turns_go_on_about_what_is_seen_otherwise(model: Model) -> None:
    talk = Conversation(model, watch(model, made_frames()))
    talk.ask(QUESTIONS[0], BRIEF)
    closer = watch(model, made_frames(seed=1), method="full")
    answer = Conversation(model, closer, talk.turns).ask(QUESTIONS[1], BRIEF)
    assert answer.token_ids == from_scratch(model, closer, [*talk.turns, Turn(QUESTIONS[1], "")]).token_ids


def test_the_video_costs_time_once(model: Model) -> None:
    talk = Conversation(model, watch(model, made_frames()))
    first, second = (talk.ask(question, BRIEF).timings for question in QUESTIONS[:2])
    assert {"decode", "vision", "compress", "prefill", "sample"} <= set(first.stages_ms)
    assert set(second.stages_ms) == {"prefill", "sample"}
    assert second.ttft_ms == sum(second.stages_ms.values())


def test_words_about_the_clip_are_told_once(model: Model) -> None:
    watched = pipeline.tell_times(watch(model, made_frames()))
    talk = Conversation(model, watched)
    first, second = (talk.ask(question, BRIEF) for question in QUESTIONS[:2])
    before, after = model.chat.encode(f"{watched.context}\n{QUESTIONS[0]}", [])
    assert first.tokens.text == len(before) + len(after)
    told = [Turn(f"{watched.context}\n{QUESTIONS[0]}", first.text)]
    assert second.tokens.text == sum(map(len, model.chat.encode(QUESTIONS[1], told)))
    assert talk.turns[0].question == QUESTIONS[0]


def test_an_answer_that_is_stopped_stays_as_far_as_it_came(model: Model) -> None:
    watched = watch(model, made_frames())
    whole = pipeline.ask(model, watched, QUESTIONS[0], max_new_tokens=8)
    talk, heard = Conversation(model, watched), []

    def stop(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.ask(QUESTIONS[0], BRIEF, on_text=stop)
    assert talk.turns == [Turn(QUESTIONS[0], "".join(heard))]
    assert whole.text.startswith("".join(heard))
    answer = talk.ask(QUESTIONS[1], BRIEF)
    assert answer.token_ids == from_scratch(model, watched, talk.turns).token_ids


def test_what_is_refused_is_no_part_of_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation(model, watch(model, made_frames()))
    talk.ask(QUESTIONS[0], BRIEF)
    with pytest.raises(UsageError, match="special meaning"):
        talk.ask("What is <video>?", BRIEF)
    monkeypatch.setattr(type(model.checkpoint), "max_positions", 200)
    with pytest.raises(UsageError, match="positions") as caught:
        talk.ask("word " * 100, BRIEF)
    assert caught.value.hint == "Forget the turns so far (in a chat: /new)."
    assert len(talk.turns) == 1


def test_an_answer_cannot_open_a_turn_of_its_own(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may spell a special token letter by letter."""
    assert model.chat.plain("a<|im_<video>end|>b<video>") == "ab"
    talk = Conversation(model, watch(model, made_frames()), [Turn("Who?", "a<video>b")])
    with pytest.raises(UsageError, match="special meaning"):
        talk.ask("Where?", BRIEF)  # control: unchanged, it would
    talk.forget()
    talk._remember("Who?", "a<video>b")
    assert talk.ask("Where?", BRIEF).text


# --- several clips -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*methods.available(), *ACTING_INSIDE, PRUNING_THE_CACHE])
def test_a_clip_that_is_brought_in_is_as_if_there_from_scratch(model: Model, method: str, logits: list[Tensor]) -> None:
    clips = [watch(model, made_frames(seed), method=method) for seed in range(3)]
    talk = Conversation(model, clips[0])
    answers, reused = [], []
    for number, question in enumerate(QUESTIONS[:6]):
        if number in {2, 4}:
            talk.add(clips[number // 2])
        answers.append(talk.ask(question, BRIEF))
        reused.append(talk.reused_tokens)
    warm = list(logits)
    added = [Added(clips[1], 2), Added(clips[2], 4)]
    for number, question in enumerate(QUESTIONS[:6]):
        there = [clip for clip in added if clip.turn <= number]
        cold = pipeline.ask(model, clips[0], question, max_new_tokens=8, turns=talk.turns[:number], added=there)
        assert (warm[number] - logits[-1]).abs().max() <= LIMIT
        assert answers[number].token_ids == cold.token_ids
        assert (answers[number].tokens, answers[number].flops) == (cold.tokens, cold.flops)
        assert len(answers[number].earlier) == len(there)
    if method == PRUNING_THE_CACHE or methods.get(method).prunes_cache:
        assert set(reused) == {0}
    else:  # the clip and its question alone are new
        assert all(now > then.tokens.prompt - 4 for now, then in zip(reused[1:], answers, strict=False))
    # Controls: without the clips, and with them in other turns.
    for other in ([], [clip._replace(turn=1) for clip in added]):
        pipeline.ask(model, clips[0], QUESTIONS[5], max_new_tokens=1, turns=talk.turns[:5], added=other)
        assert (warm[-1] - logits[-1]).abs().max() > 100 * LIMIT


def test_clips_can_be_seen_otherwise(model: Model, logits: list[Tensor]) -> None:
    first, second, closer, third = (watch(model, made_frames(seed)) for seed in range(4))
    talk = Conversation(model, first)
    talk.ask(QUESTIONS[0], BRIEF)
    talk.add(second)
    talk.ask(QUESTIONS[1], BRIEF)
    other = talk.seen_as([first, closer, third])
    assert (other.turns, other.clips) == (talk.turns, (first, closer, third))
    assert [clip.turn for clip in other.added] == [1, 2]
    other.ask(QUESTIONS[2], BRIEF)
    assert other.reused_tokens > len(first.visual)
    pipeline.ask(model, first, QUESTIONS[2], turns=talk.turns, added=[Added(closer, 1), Added(third, 2)])
    assert (logits[-2] - logits[-1]).abs().max() <= LIMIT
    full = talk.seen_as([watch(model, made_frames(seed), method="full") for seed in range(2)])
    full.ask(QUESTIONS[2], BRIEF)
    assert full.reused_tokens == 0


def test_a_new_conversation_has_all_clips_from_its_start(model: Model, logits: list[Tensor]) -> None:
    first, second = (watch(model, made_frames(seed)) for seed in range(2))
    talk = Conversation(model, first)
    talk.ask(QUESTIONS[0], BRIEF)
    talk.add(second)
    talk.ask(QUESTIONS[1], BRIEF)
    talk.forget()
    talk.ask(QUESTIONS[2], BRIEF)
    assert talk.reused_tokens > len(first.visual)
    pipeline.ask(model, first, QUESTIONS[2], added=[Added(second, 0)])
    assert (logits[-2] - logits[-1]).abs().max() <= LIMIT


def test_each_clip_costs_time_once_and_is_told_of_in_its_turn(model: Model, logits: list[Tensor]) -> None:
    first = pipeline.tell_times(watch(model, made_frames()))
    second = replace(watch(model, made_frames(1)), context="It was filmed at night.")
    talk = Conversation(model, first)
    talk.ask(QUESTIONS[0], BRIEF)
    talk.add(second)
    with_it, after = (talk.ask(question, BRIEF) for question in QUESTIONS[1:3])
    assert with_it.timings.stages_ms["decode"] == second.frames.timings_ms["decode"]
    assert with_it.timings.stages_ms["vision"] == pytest.approx(second.clock.milliseconds()["vision"])
    assert set(after.timings.stages_ms) == {"prefill", "sample"}
    told = [Turn(f"{first.context}\n{QUESTIONS[0]}", talk.turns[0].answer)]
    texts = model.chat.encode_around([0, 1], f"{second.context}\n{QUESTIONS[1]}", told)
    assert with_it.tokens.text == sum(map(len, texts))
    assert with_it.context == f"{first.context}\n{second.context}"
    together = pipeline.ask(model, first, QUESTIONS[0], max_new_tokens=8, added=[Added(second, 0)])
    one, other = (replace(watched, context="") for watched in (first, second))
    words = f"{first.context}\n{second.context}\n{QUESTIONS[0]}"
    spelt = pipeline.ask(model, one, words, max_new_tokens=8, added=[Added(other, 0)])
    assert together.token_ids == spelt.token_ids
    assert torch.equal(logits[-2], logits[-1])
