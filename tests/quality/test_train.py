"""The training script: its batches, its masks against the library's own model, its stages, its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from holitom_cli.quality import train
from holitom_cli.quality.checkpoint import Shape
from holitom_cli.quality.draw import RGB, SIDE
from holitom_cli.quality.questions import ask_about
from holitom_cli.quality.train import (
    Batch,
    Recipe,
    Trainer,
    Writer,
    answer_logits,
    cell_labels,
    pixels_of,
    tower_states,
)
from holitom_cli.quality.world import COLOURS, SHAPES, make_clip, train_seed

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


@torch.no_grad()
def logits(trainer: Trainer, pixels: Tensor, batch: Batch) -> Tensor:
    return answer_logits(trainer.network, tower_states(trainer.network, pixels.flatten(0, 1)), batch, trainer.before)


# --- the writer of batches -------------------------------------------------------------------------


def spoken(writer: Writer, ids: Tensor) -> str:
    return str(writer.words.decode(ids))


def test_a_row_holds_every_question_as_the_chat_template_has_it(trainer: Trainer, batch: Batch) -> None:
    asked = ask_about(make_clip(train_seed(0)), TINY.questions, test=False)
    assert batch.kinds[0] == [question.kind for question in asked]
    for number, question in enumerate(asked, 1):
        mine = batch.segment[0] == number
        text = f"\n{question.text}<|im_end|><|im_start|>assistant\n {question.answer}"
        assert spoken(trainer.writer, batch.ids[0][mine]) == text
        assert batch.place[0][mine].tolist() == list(range(int(mine.sum())))


def test_targets_stand_on_answers_alone(trainer: Trainer, batch: Batch) -> None:
    for row, kinds in enumerate(batch.kinds):
        clip = make_clip(train_seed(row))
        answers = [question.answer for question in ask_about(clip, TINY.questions, test=False)]
        for number, answer in enumerate(answers, 1):
            mine = batch.target[row][batch.segment[row] == number]
            aimed = mine[mine != train._IGNORED]
            assert spoken(trainer.writer, aimed) == f" {answer}<|im_end|>"
            assert mine[-len(aimed) :].equal(aimed)  # they are the last ones
        assert len(kinds) == len(answers)
    assert (batch.target[batch.segment == 0] == train._IGNORED).all()


def test_too_many_questions_are_left_out_whole(trainer: Trainer) -> None:
    pair = ("What colour is the circle?", "red")
    (_, segment, _, target), kept = trainer.writer._row([pair] * 40)
    assert 3 <= kept < 40
    assert max(segment) == kept
    assert target.count(trainer.writer.end) == kept


def test_every_word_is_a_token(trainer: Trainer) -> None:
    for number in range(40):
        for question in ask_about(make_clip(number), 12, test=number % 2 == 0):
            words = question.text.replace("?", "").replace(".", "").replace(",", "").replace(":", "").split()
            ids = trainer.writer._encode(" " + " ".join([*words, question.answer]))
            assert len(ids) == len(words) + len(question.answer.split()), question


# --- labels ----------------------------------------------------------------------------------------


def test_labels_name_what_is_at_a_things_centre(batch: Batch) -> None:
    grid = 14
    labels = cell_labels(batch.sketch, grid)
    seen = 0
    for row in range(2):
        for thing in make_clip(train_seed(row)).things[-1:]:  # nothing passes in front of the last one
            if thing.shape == "ring":
                continue  # there is a hole at its centre
            for frame in range(thing.enter, thing.leave):
                x, y = thing.centre(frame)
                cell = int(y * grid) * grid + int(x * grid)
                wanted = 1 + SHAPES.index(thing.shape) * len(COLOURS) + COLOURS.index(thing.colour_at(frame))
                assert labels[row, frame, cell] == wanted
                seen += 1
    assert seen > 0
    assert (labels == 0).float().mean() > 0.5  # most of a picture is background
    assert set(RGB) == set(COLOURS)


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


def test_every_question_sees_the_video(trainer: Trainer, batch: Batch, pixels: Tensor) -> None:
    moved = (logits(trainer, pixels, batch) - logits(trainer, pixels.flip(1), batch)).abs().amax(-1)
    assert moved[batch.segment > 0].min() > 1e-5


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

    def again(self: train.Stream) -> Iterator[Batch]:
        batch = Writer(self.recipe).batch([3, 4])
        while True:
            yield batch

    monkeypatch.setattr(train.Stream, "__iter__", again)


@pytest.mark.usefixtures("ticking")
def test_losses_fall_in_both_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same_batches(monkeypatch)
    Trainer(steps_of(40 / 60), tmp_path, CPU, SMALL).run()
    rows = log_of(tmp_path)
    for stage, part, share in (
        ("tower", "what", 0.5),
        ("tower", "row", 0.95),
        ("clips", "what", 1),
        ("clips", "answers", 0.8),
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

    def knowing(_: Any, states: Tensor, batch: Batch, __: Tensor) -> Tensor:
        """Right about everything but the first question of every clip."""
        ids = batch.target.clamp_min(0).masked_fill(batch.segment == 1, 0)
        return torch.nn.functional.one_hot(ids, len(writer.words)).float()

    monkeypatch.setattr(train, "answer_logits", knowing)
    monkeypatch.setattr(train, "pixels_of", lambda _: torch.zeros(1, 1))
    monkeypatch.setattr(train, "tower_states", lambda _, pixels: pixels)
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
