"""The training script: its batches, its masks against the library's own model, its stages, its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from holitom_cli.quality import train
from holitom_cli.quality.batches import Batch, Recipe, Stream, Writer
from holitom_cli.quality.checkpoint import Shape
from holitom_cli.quality.draw import SIDE
from holitom_cli.quality.questions import ANSWERS, ask_about
from holitom_cli.quality.targets import IGNORED
from holitom_cli.quality.train import (
    Trainer,
    Views,
    log_attention,
    pixels_of,
    places_of,
    settle,
    tokens_of,
    tower_states,
    views,
    waves,
)
from holitom_cli.quality.world import FRAMES, make_clip, train_seed

SMALL = Shape(
    patch=16, tower_width=32, tower_layers=2, tower_heads=2, width=32, layers=2, heads=4, kv_heads=2, intermediate=48
)
CPU = torch.device("cpu")
TINY = Recipe(minutes=1.0, tower_minutes=0.5, clips=2, questions=3, frames=4, workers=0)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A trainer whose weights are wide enough apart for differences to show."""
    one = Trainer(TINY, tmp_path_factory.mktemp("out"), CPU, SMALL)
    with torch.no_grad():
        for parameter in one.network.parameters():
            parameter.normal_(0.0, 0.2) if parameter.dim() > 1 else None
    return one


@pytest.fixture(scope="module")
def batch(trainer: Trainer) -> Batch:
    return trainer.writer.batch([0, 1])


@pytest.fixture(scope="module")
def pixels(batch: Batch) -> Tensor:
    torch.manual_seed(1)
    return pixels_of(batch.sketch)


def plain(clips: int) -> Tensor:
    """Positions of visual tokens as they are, (clips, tokens)."""
    return torch.arange(FRAMES * 16).expand(clips, -1)


@torch.no_grad()
def said(trainer: Trainer, pixels: Tensor, batch: Batch, places: Tensor | None = None) -> Views:
    states, _ = tower_states(trainer.network, pixels.flatten(0, 1))
    tokens = tokens_of(trainer.network, states).view(len(pixels), FRAMES * 16, -1)
    return views(trainer.network, tokens, plain(len(pixels)) if places is None else places, batch, trainer.before)


def logits(trainer: Trainer, pixels: Tensor, batch: Batch) -> Tensor:
    return said(trainer, pixels, batch).answers


# --- the writer of batches -------------------------------------------------------------------------


def spoken(writer: Writer, ids: Tensor) -> str:
    return str(writer.words.decode(ids))


def test_a_row_holds_every_question_as_the_chat_template_has_it(trainer: Trainer, batch: Batch) -> None:
    asked = ask_about(make_clip(train_seed(0)), TINY.questions, test=False)[: len(batch.kinds[0])]  # that had room
    assert len(asked) >= 2
    assert batch.kinds[0] == [question.kind for question in asked]
    for number, question in enumerate(asked, 1):
        mine = batch.segment[0] == number
        text = f"\n{question.text}<|im_end|><|im_start|>assistant\n{question.answer}"
        assert spoken(trainer.writer, batch.ids[0][mine]) == text
        assert batch.place[0][mine].tolist() == list(range(int(mine.sum())))


def test_targets_stand_on_answers_alone(trainer: Trainer, batch: Batch) -> None:
    for row, kinds in enumerate(batch.kinds):
        clip = make_clip(train_seed(row))
        answers = [question.answer for question in ask_about(clip, TINY.questions, test=False)][: len(kinds)]
        for number, answer in enumerate(answers, 1):
            mine = batch.target[row][batch.segment[row] == number]
            aimed = mine[mine != IGNORED]
            assert spoken(trainer.writer, aimed) == f"{answer}<|im_end|>"
            assert mine[-len(aimed) :].equal(aimed)  # they are the last ones
        assert len(answers) >= 2
    assert (batch.target[batch.segment == 0] == IGNORED).all()


def test_too_many_questions_are_left_out_whole(trainer: Trainer) -> None:
    pair = ("What colour is the circle?", "red")
    (_, segment, _, target), kept = trainer.writer._row([pair] * 40, [pair])
    assert 3 <= kept < 40
    assert max(segment) == kept
    assert target.count(trainer.writer.end) == kept


def test_only_where_it_ends_is_learnt_of_an_answer_to_nonsense() -> None:
    roomy = replace(TINY, questions=16)
    writer, numbers = Writer(roomy), list(range(6))
    batch, texts = writer.batch(numbers), set()
    for row, kinds in enumerate(batch.kinds):
        stray = batch.segment[row] == len(kinds) + 1
        if not stray.any():  # no room
            continue
        text = spoken(writer, batch.ids[row][stray])
        said = text.partition("assistant\n")[2].split()
        assert " ".join(said) in ANSWERS
        aimed = batch.target[row][stray]
        assert spoken(writer, aimed[aimed != IGNORED]) == "".join(f" {word}" for word in said[1:]) + "<|im_end|>"
        texts.add(text)
    assert len(texts) > 2
    tested = Writer(roomy, test=True).batch(numbers)  # where there is none
    assert [int(row.max()) for row in tested.segment] == list(map(len, tested.kinds))


def test_every_word_is_a_token(trainer: Trainer) -> None:
    for number in range(40):
        for question in ask_about(make_clip(number), 12, test=number % 2 == 0):
            words = question.text.replace("?", "").replace(".", "").replace(",", "").replace(":", "").split()
            assert len(trainer.writer._encode(" " + " ".join(words))) == len(words), question


def test_every_word_of_an_answer_is_a_token_and_the_first_ones_differ(trainer: Trainer) -> None:
    ids = {answer: trainer.writer._encode(answer) for answer in ANSWERS}
    assert all(len(ids[answer]) == len(answer.split()) for answer in ANSWERS)
    one_word = [first for answer, (first, *rest) in ids.items() if not rest]
    assert len(set(one_word)) == len(one_word)


# --- logits ----------------------------------------------------------------------------------------


def alone(trainer: Trainer, pixels: Tensor, tokens: list[int], tokens_a_frame: int) -> Tensor:
    """Logits behind one question's tokens by the library's own model, (t, V)."""
    video = trainer.network.config.video_token_id
    spans = [video] * (pixels.shape[0] * tokens_a_frame + 1)
    ids = torch.tensor([[*trainer.writer.before, *spans, *tokens]])
    with torch.no_grad():
        output: Any = trainer.network(input_ids=ids, pixel_values_videos=pixels[None])
    return output.logits[0, -len(tokens) :]  # type: ignore[no-any-return]


def test_each_question_has_the_logits_that_it_has_alone(trainer: Trainer, batch: Batch, pixels: Tensor) -> None:
    got = logits(trainer, pixels, batch)
    compared = 0
    for row, kinds in enumerate(batch.kinds):
        for number in range(1, len(kinds) + 1):
            mine = batch.segment[row] == number
            wanted = alone(trainer, pixels[row], batch.ids[row][mine].tolist(), 16)
            assert (got[row][mine] - wanted).abs().max() <= 1e-4
            compared += 1
    assert compared >= 4
    # control: another question's logits are far away
    assert (got[0][batch.segment[0] == 1][:4] - got[0][batch.segment[0] == 2][:4]).abs().max() > 1e-2


def changed(batch: Batch, number: int) -> Batch:
    """The batch with other words in one question of each clip."""
    return batch._replace(ids=torch.where(batch.segment == number, (batch.ids + 7) % 400, batch.ids))


def test_questions_do_not_see_each_other(trainer: Trainer, batch: Batch, pixels: Tensor) -> None:
    before, after = logits(trainer, pixels, batch), logits(trainer, pixels, changed(batch, 2))
    moved = (before - after).abs().amax(-1)
    others = (batch.segment != 2) & (batch.segment > 0)
    assert moved[others].max() <= 1e-5
    assert moved[batch.segment == 2].max() > 1e-2  # control: the change would be seen


def test_half_precision_runs_and_says_the_same(trainer: Trainer, batch: Batch, pixels: Tensor) -> None:
    """As on a GPU, where rotary positions are float32 and projections bfloat16."""
    exact = logits(trainer, pixels, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = logits(trainer, pixels, batch)
    assert rough.dtype == torch.bfloat16
    asked = batch.segment > 0
    error = (rough.float() - exact)[asked].norm() / exact[asked].norm()
    assert 0 < error < 0.05
    assert (exact.flip(0) - exact)[asked].norm() / exact[asked].norm() > 0.1  # control


def test_padding_moves_nothing(trainer: Trainer, batch: Batch, pixels: Tensor) -> None:
    before, after = logits(trainer, pixels, batch), logits(trainer, pixels, changed(batch, 0))
    assert (before - after).abs().amax(-1)[batch.segment > 0].max() <= 1e-5


def test_hints_are_what_the_earlier_layers_would_say(trainer: Trainer, batch: Batch, pixels: Tensor) -> None:
    """With as many layers as there are before the merge inside, hints are the answers; with one less they are not."""
    whole = said(trainer, pixels, batch)
    assert whole.hints.equal(whole.answers)  # two layers, both before it
    layers = trainer.network.model.language_model.layers
    trainer.network.model.language_model.layers = layers[:1]
    try:
        fewer = said(trainer, pixels, batch)
    finally:
        trainer.network.model.language_model.layers = layers
    assert (fewer.hints - whole.hints).abs().max() > 1e-2


def test_visual_states_are_those_of_the_visual_tokens(trainer: Trainer, batch: Batch, pixels: Tensor) -> None:
    """Another last frame changes the last frame's states and no earlier one's."""
    other = pixels.clone()
    other[:, -1] = pixels[:, 0].flip(-1)
    moved = (said(trainer, pixels, batch).visual - said(trainer, other, batch).visual).abs().amax((0, 2))
    assert moved.shape == (FRAMES * 16,)
    assert moved[:-16].max() <= 1e-5
    assert moved[-16:].min() > 1e-3


def test_places_move_what_is_said_by_distance_alone(trainer: Trainer, batch: Batch, pixels: Tensor) -> None:
    usual = said(trainer, pixels, batch)
    stretched = said(trainer, pixels, batch, plain(2) * 0.5)
    asked = batch.segment > 0
    assert (usual.answers - stretched.answers)[asked].abs().max() > 1e-2
    # the question follows the video's last position, so that only distances within the video differ
    started = len(trainer.before)
    where = train._positions(plain(2) * 0.5, batch.place, started)
    assert where[0, started + 10] == started + 5
    assert where[0, started + FRAMES * 16] == started + (FRAMES * 16 - 1) / 2 + 1  # the newline
    assert where[0, started + FRAMES * 16 + 1] == where[0, started + FRAMES * 16] + 1


def test_stretched_places_rise_at_many_paces() -> None:
    torch.manual_seed(0)
    places = places_of(400, FRAMES, 49, CPU)
    assert (places.diff(dim=1) >= 0).all()
    usual = (places == torch.arange(FRAMES * 49)).all(1)
    assert 0.15 < usual.float().mean() < 0.35
    paces = places[~usual, -1] / (FRAMES * 49)
    assert paces.min() < 0.1
    assert paces.max() > 0.8


def test_every_question_sees_the_video(trainer: Trainer, batch: Batch, pixels: Tensor) -> None:
    moved = (logits(trainer, pixels, batch) - logits(trainer, pixels.flip(1), batch)).abs().amax(-1)
    assert moved[batch.segment > 0].min() > 1e-5


# --- the tower -------------------------------------------------------------------------------------


def test_waves_tell_every_place_from_every_other() -> None:
    table = waves(14, 192)
    assert table.shape == (196, 192)
    apart = torch.cdist(table, table) + 100 * torch.eye(196)
    nearest = apart.argmin(1)
    rows, columns = (nearest // 14 - torch.arange(196) // 14).abs(), (nearest % 14 - torch.arange(196) % 14).abs()
    assert apart.min() > 0.1
    assert (rows + columns == 1).all()  # what is nearest in the table is next to it in the picture


def test_log_attention_is_what_compression_will_see(trainer: Trainer, pixels: Tensor) -> None:
    from holitom_cli.model.vision import attention_received

    with torch.no_grad():
        _, entering = tower_states(trainer.network, pixels[0, :3])
        layers = trainer.network.model.vision_tower.encoder.layers
        got = log_attention(layers[-1], entering).exp()
        assert (got - attention_received(layers[-1], entering)).abs().max() < 1e-6
        assert (got - attention_received(layers[0], entering)).abs().max() > 1e-4  # control


def test_settling_takes_from_tokens_what_they_share() -> None:
    """Backgrounds lie in a few directions; things add one that they share and others that tell them apart."""
    torch.manual_seed(3)
    projector = torch.nn.Module()
    projector.linear_2 = torch.nn.Linear(40, 64)
    basis, middle, common = torch.randn(train._SHARED, 40), torch.randn(40), 2 * torch.randn(40)
    ground = torch.randn(500, train._SHARED) @ basis + middle
    own = torch.randn(300, 40)
    things = ground[:300] + common + own - own.mean(0)
    with torch.no_grad():
        before, apart = projector.linear_2(ground), projector.linear_2(things)
        settle(projector, before, apart)
        after, moved = projector.linear_2(ground), projector.linear_2(things)
    assert (after - train._SIZE * train._SHRINK * before).abs().max() < 1e-4  # they lie in what is shared
    gap = train._SIZE * train._SHRINK * (apart.mean(0) - before.mean(0))
    assert (moved.mean(0) - after.mean(0) - gap).abs().max() < 1e-4  # so does what all things have in common
    alike = torch.nn.functional.cosine_similarity
    assert alike(moved, after[:300]).mean() < alike(apart, before[:300]).mean() - 0.02  # a thing stands out more
    other = moved.roll(1, 0), apart.roll(1, 0)
    assert alike(moved, other[0]).mean() < alike(apart, other[1]).mean() - 0.02  # and is less like another one
    assert torch.linalg.matrix_rank(moved - moved[0]) == torch.linalg.matrix_rank(apart - apart[0])


# --- training --------------------------------------------------------------------------------------


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which every look takes a second, so that a run's length is counted in steps."""
    seconds = iter(range(1_000_000))
    monkeypatch.setattr(train, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(train, "_LOG_STEPS", 4)
    monkeypatch.setattr(train, "_WARMUP_STEPS", 2)
    monkeypatch.setattr(Trainer, "test", lambda *_: {"questions": 0})  # tried by itself


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def steps_of(minutes: float) -> Recipe:
    """A recipe in which a step takes a second."""
    return Recipe(minutes=minutes, tower_minutes=minutes / 2, clips=2, questions=2, frames=4, workers=0, rate=3e-3)


def same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is the first one again, so that losses can be compared."""

    def again(self: Stream) -> Iterator[Batch]:
        batch = Writer(self.recipe).batch([3, 4])
        while True:
            yield batch

    monkeypatch.setattr(Stream, "__iter__", again)


@pytest.mark.usefixtures("ticking")
def test_losses_fall_in_both_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same_batches(monkeypatch)
    Trainer(steps_of(40 / 60), tmp_path, CPU, SMALL).run()
    rows = log_of(tmp_path)
    for stage, part, share in (
        ("tower", "there", 0.95),
        ("tower", "late", 0.8),
        ("clips", "answers", 0.8),
        ("clips", "hints", 0.8),
        ("clips", "before", 0.9),
    ):
        losses = [row[part] for row in rows if row["stage"] == stage]
        assert len(losses) >= 4
        assert losses[-1] < share * losses[0], (stage, part, losses)


@pytest.mark.usefixtures("ticking")
def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    Trainer(steps_of(8 / 60), tmp_path, CPU, SMALL).run()
    first = Trainer(steps_of(8 / 60), tmp_path, CPU, SMALL)
    first._resume()
    longer = Trainer(steps_of(16 / 60), tmp_path, CPU, SMALL)
    longer._resume()
    for name, value in first.network.state_dict().items():
        assert value.equal(longer.network.state_dict()[name])
    assert first.settled
    assert longer.settled
    assert longer.steps == {"tower": 5, "clips": 5}
    assert longer.seconds == {"tower": 5.0, "clips": 5.0}
    assert len(longer.optimiser.state_dict()["state"]) > 20
    longer.run()
    assert longer.steps == {"tower": 9, "clips": 9}
    assert log_of(tmp_path)[-1]["steps"] == {"tower": 9, "clips": 9}


def test_clips_of_steps_and_stages_differ(tmp_path: Path) -> None:
    trainer = Trainer(TINY, tmp_path, CPU, SMALL)
    seen: list[int] = []
    for stage in ("tower", "clips"):
        for steps in range(3):
            trainer.steps[stage] = steps
            seen.append(trainer._loader(stage).dataset.first)
    ranges = [set(range(first, first + TINY.clips)) for first in seen]
    assert len(set.union(*ranges)) == sum(len(one) for one in ranges)


def test_the_test_counts_right_answers(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = trainer.examiner

    def knowing(_: Any, tokens: Tensor, places: Tensor, batch: Batch, __: Tensor) -> Views:
        """Right about everything but the first question of every clip."""
        ids = batch.target.clamp_min(0).masked_fill(batch.segment == 1, 0)
        right = torch.nn.functional.one_hot(ids, len(writer.words)).float()
        return Views(right, right, tokens)

    monkeypatch.setattr(train, "views", knowing)
    monkeypatch.setattr(train, "pixels_of", lambda _: torch.zeros(16, 1, FRAMES * 16))
    monkeypatch.setattr(train, "tower_states", lambda _, pixels: (pixels, pixels))
    monkeypatch.setattr(train, "tokens_of", lambda _, states: states)
    result = trainer.test(1)
    asked = [kinds for numbers in [list(range(16))] for kinds in writer.batch(numbers).kinds]
    total = sum(len(kinds) for kinds in asked)
    assert result["questions"] == total
    assert result["accuracy"] == pytest.approx((total - 16) / total)


# --- the checkpoint --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint at the true size, untrained."""
    out = tmp_path_factory.mktemp("run")
    Trainer(TINY, out, CPU).export(out / "checkpoint")
    return out / "checkpoint"


def test_stock_transformers_loads_it_whole(exported: Path) -> None:
    from transformers import LlavaOnevisionForConditionalGeneration

    loading: Any = LlavaOnevisionForConditionalGeneration.from_pretrained
    _, report = loading(exported, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (exported / "model.safetensors").stat().st_size <= 16_000_000


def test_our_own_loader_answers_with_it(exported: Path) -> None:
    from holitom_cli import ask, load_model, watch
    from holitom_cli.quality.draw import draw, to_frames
    from holitom_cli.types import Frames

    model = load_model(str(exported), device="cpu")
    shown = to_frames(draw([make_clip(5)], side=SIDE))[0].permute(0, 2, 3, 1).contiguous().numpy()
    frames = Frames(pixels=shown, seconds=np.arange(len(shown)) / 16)
    answer = ask(model, watch(model, frames), "What colour is the circle?", max_new_tokens=3)
    assert answer.tokens.original == 32 * 49
    assert answer.tokens.generated <= 3
