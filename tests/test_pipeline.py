"""Watch once, ask often: the order of the stages, what is refused and when, and what arrives on the way."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from holitom_cli import methods, pipeline, video
from holitom_cli.errors import GenerationError, HolitomError, MethodError, ModelError, UsageError, VideoError
from holitom_cli.methods.holitom import HoliTom
from holitom_cli.model import preprocess, vision
from holitom_cli.model.loading import Model, load_model
from holitom_cli.pipeline import ANSWER_ROOM, ask, check_generation, check_room, watch
from holitom_cli.types import Frames, Generation, Sampling, VideoInfo, Watched
from tests.make_random_checkpoint import make_checkpoint

QUESTION = "What is shown in the video?"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 16 visual tokens a frame and 300 positions."""
    path = make_checkpoint(
        tmp_path_factory.mktemp("small"), layers=4, dtype=torch.float32, image_size=112, patch_size=16
    )
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 300
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def model(small: Path) -> Model:
    return load_model(small, device="cpu", dtype="float32")


def made_frames(count: int = 6) -> Frames:
    """Two still scenes with a moving square."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), dtype=np.uint8).repeat(-(-count // 2), 0)[:count]
    for index, picture in enumerate(pixels):
        picture[20:40, 5 * index : 5 * index + 20] = 255
    return Frames(pixels=pixels, seconds=np.arange(count) / 2)


@pytest.fixture(scope="module")
def watched(model: Model) -> Watched:
    return watch(model, made_frames())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which stages ran, in order."""
    made: list[str] = []

    def count(room: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(room, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(room, name, counted)

    for room, name in [
        (video, "read"),
        (preprocess, "prepare"),
        (vision, "encode"),
        (pipeline, "prefill"),
        (pipeline, "generate"),
    ]:
        count(room, name)
    return made


# --- the walk --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", methods.available())
def test_an_answer_is_whole(model: Model, method: str) -> None:
    pieces: list[str] = []
    frames = made_frames()
    answer = ask(model, watch(model, frames, method=method), QUESTION, max_new_tokens=12, on_text=pieces.append)
    assert (answer.question, answer.method) == (QUESTION, method)
    assert answer.text == "".join(pieces) == model.chat.decode(answer.token_ids)
    assert 1 <= len(answer.token_ids) == answer.tokens.generated <= 12
    assert answer.frames is frames
    assert answer.tokens.prompt == answer.tokens.visual + 1 + answer.tokens.text
    assert answer.tokens.text == sum(map(len, model.chat.encode(QUESTION)))
    assert answer.tokens.original == 6 * 16
    assert answer.model.preprocessor_file == "video_preprocessor_config.json"


def test_several_questions_encode_once(model: Model, calls: list[str], demo_clip: Path) -> None:
    watched = watch(model, demo_clip, num_frames=5)
    for question in ("What is shown?", "Where is it?", "Who is there?"):
        ask(model, watched, question, max_new_tokens=3)
    assert calls == ["read", "prepare", "encode"] + ["prefill", "generate"] * 3


def test_a_question_is_not_changed_by_those_before_it(model: Model, watched: Watched) -> None:
    first, other, again = (ask(model, watched, q, max_new_tokens=12) for q in ("Who?", QUESTION, "Who?"))
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids  # control: the question matters
    assert first.visual is again.visual


def test_a_file_is_read_as_its_frames_are(model: Model, demo_clip: Path) -> None:
    from_path = watch(model, demo_clip, num_frames=6)
    frames = from_path.frames
    assert frames.indices is not None
    assert frames.indices.tolist() == np.linspace(0, 174, 6, dtype=int).tolist()
    assert frames.video is not None
    assert {"probe", "decode"} <= set(frames.timings_ms)
    given = watch(model, Frames(pixels=frames.pixels, seconds=frames.seconds))
    assert torch.equal(from_path.visual.embeds, given.visual.embeds)
    answer = ask(model, from_path, QUESTION, max_new_tokens=4)
    assert list(answer.timings.stages_ms)[:5] == ["probe", "decode", "preprocess", "vision", "compress"]
    fewer = watch(model, Frames(pixels=frames.pixels[::-1].copy(), seconds=frames.seconds))
    assert not torch.equal(fewer.visual.embeds, given.visual.embeds)  # control: the order of the frames matters


def test_a_method_may_be_given_whole_and_changed(model: Model) -> None:
    frames = made_frames()
    by_name = watch(model, frames, method="holitom", retain_ratio=0.5, inner_layer="off")
    changed = watch(model, frames, method=HoliTom(retain_ratio=0.5), inner_layer="off")
    assert by_name.method == changed.method == HoliTom(retain_ratio=0.5, inner_layer="off")
    assert torch.equal(by_name.visual.embeds, changed.visual.embeds)
    assert ask(model, by_name, QUESTION, max_new_tokens=2).tokens.inside == ()


def test_settings_reach_the_answer(model: Model) -> None:
    watched = watch(model, made_frames(), retain_ratio="0.4", tau=0.7)
    answer = ask(model, watched, QUESTION, max_new_tokens=3, temperature=0.5, top_p=0.9, seed=3)
    assert answer.method_settings["retain_ratio"] == 0.4
    assert answer.method_settings["tau"] == 0.7
    assert answer.generation == Generation(3, 0.5, 0.9, 3)


def test_sampling_goes_by_its_seed(model: Model, watched: Watched) -> None:
    first, again, other = (
        ask(model, watched, QUESTION, max_new_tokens=12, temperature=2.0, seed=seed).token_ids for seed in (5, 5, 6)
    )
    assert first == again != other


# --- how an answer ends ----------------------------------------------------------------------


def ending_with(monkeypatch: pytest.MonkeyPatch, model: Model, ids: frozenset[int]) -> None:
    monkeypatch.setitem(vars(model.checkpoint), "chat", replace(model.chat, end_ids=ids))


def test_an_answer_ends_at_its_limit_or_by_itself(
    model: Model, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending_with(monkeypatch, model, frozenset())
    long = ask(model, watched, QUESTION, max_new_tokens=15)
    assert (long.finish_reason, len(long.token_ids)) == ("length", 15)
    end = next(token for index, token in enumerate(long.token_ids) if index > 1 and token not in long.token_ids[:index])
    stop = long.token_ids.index(end)
    ending_with(monkeypatch, model, frozenset([end]))
    short = ask(model, watched, QUESTION, max_new_tokens=15)
    assert (short.finish_reason, short.token_ids) == ("stop", long.token_ids[: stop + 1])
    exact = ask(model, watched, QUESTION, max_new_tokens=stop + 1)
    assert (exact.finish_reason, exact.token_ids) == ("stop", short.token_ids)
    cut = ask(model, watched, QUESTION, max_new_tokens=stop)
    assert (cut.finish_reason, cut.token_ids) == ("length", long.token_ids[:stop])


def test_pieces_join_to_the_answer_whatever_the_tokens(
    model: Model, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where bytes never become a character, in the middle or at the end."""
    emoji = model.chat.tokenizer.encode("🎬")
    scripts = [emoji[:-1], [*emoji[:-1], *emoji], [*emoji, *emoji[:1]], [*model.chat.tokenizer.encode(" dog"), *emoji]]
    rng = np.random.default_rng(0)
    scripts += [rng.integers(0, 300, rng.integers(1, 20)).tolist() for _ in range(30)]
    for script in scripts:
        monkeypatch.setattr(pipeline, "generate", lambda *_, script=script: iter(script))
        pieces: list[str] = []
        answer = ask(model, watched, QUESTION, on_text=pieces.append)
        assert answer.token_ids == tuple(script)
        assert "".join(pieces) == answer.text == model.chat.decode(script)


def test_logits_that_are_no_numbers_end_the_answer(small: Path, watched: Watched) -> None:
    broken = load_model(small, device="cpu", dtype="float32")
    with torch.no_grad():
        broken.lm_head.weight[7] = torch.nan
    with pytest.raises(GenerationError, match="not a number"):
        ask(broken, watched, QUESTION)


def test_the_answer_stops_at_the_models_last_position(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ending_with(monkeypatch, model, frozenset())
    watched = watch(model, made_frames(12), method="full")
    answer = ask(model, watched, QUESTION, max_new_tokens=10_000)
    assert answer.tokens.prompt + answer.tokens.generated == 300
    assert answer.finish_reason == "length"
    assert answer.generation.max_new_tokens == answer.tokens.generated >= ANSWER_ROOM


# --- what is refused, and before what --------------------------------------------------------


def test_settings_are_refused_before_the_file_is_touched(model: Model, calls: list[str]) -> None:
    for settings in (
        {"method": "holytom"},
        {"retain_ratio": 2},
        {"ratio": 0.5},
        {"inner_layer": 4},  # of four layers
        {"method": HoliTom(), "tau": 3},
    ):
        with pytest.raises(MethodError):
            watch(model, "/no/such/clip.mp4", **settings)
    assert calls == []
    with pytest.raises(VideoError, match="no file"):
        watch(model, "/no/such/clip.mp4")


@pytest.mark.parametrize("question", ["", "  \n", "What is <video>?"])
def test_questions_are_refused_before_the_model_runs(
    model: Model, watched: Watched, calls: list[str], question: str
) -> None:
    with pytest.raises(UsageError):
        ask(model, watched, question)
    assert calls == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_new_tokens", [0, -5]),
        ("temperature", [-0.1, float("nan"), float("inf")]),
        ("top_p", [0, -1, 1.01, float("nan")]),
    ],
)
def test_generation_settings_are_refused(name: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=rf"^Setting {name} is {value}, but") as caught:
            check_generation(Generation(**{name: value}))  # type: ignore[arg-type]
        assert name.replace("_", "-") in caught.value.hint
    assert check_generation(Generation(1, 0.0, 1.0)) == Generation(1, 0.0, 1.0)


def checkpoint(grid: int, positions: int) -> Any:
    return SimpleNamespace(visual_grid=grid, max_positions=positions)


def fits(place: Any, method: methods.Method, frames: int, text: int) -> bool:
    try:
        check_room(place, method, frames, text)
    except UsageError:
        return False
    return True


def test_full_fits_166_frames_into_the_published_models_positions() -> None:
    published, full = checkpoint(14, 32768), methods.get("full")
    assert fits(published, full, 166, 0)
    with pytest.raises(UsageError, match=r"^167 frames need up to 32,797 positions .* has 32,768\.") as caught:
        check_room(published, full, 167)
    assert "--num-frames 166 " in caught.value.hint


@pytest.mark.parametrize("method", [methods.get("full"), *map(HoliTom, (0.05, 0.15, 1.0))], ids=str)
@pytest.mark.parametrize(("grid", "positions"), [(14, 32768), (4, 300), (7, 2048), (1, 80)])
@pytest.mark.parametrize("text", [0, 14, 90])
def test_the_number_that_is_named_is_the_largest_that_fits(
    method: methods.Method, grid: int, positions: int, text: int
) -> None:
    place = checkpoint(grid, positions)
    with pytest.raises(UsageError) as caught:
        check_room(place, method, 100_000, text)
    named = re.search(r"--num-frames (\d+) or fewer", caught.value.hint)
    if named is None:
        assert caught.value.hint == "Shorten the question."
        assert not fits(place, method, 1, text)
        return
    largest = int(named[1])
    assert fits(place, method, largest, text)
    assert not fits(place, method, largest + 1, text)


def test_too_many_frames_are_refused_before_they_are_decoded(
    model: Model, calls: list[str], monkeypatch: pytest.MonkeyPatch, demo_clip: Path
) -> None:
    known = video.probe(demo_clip)

    def read(path: Path, sampling: Sampling, *, accept: Callable[[VideoInfo, int], None], **_: object) -> Frames:
        accept(known, video.most_frames(sampling, known))
        raise AssertionError("the clip is decoded")

    monkeypatch.setattr(video, "read", read)
    with pytest.raises(UsageError, match=r"^175 frames need") as caught:
        watch(model, demo_clip, method="full", num_frames=1000)  # the clip has 175
    largest = int(re.findall(r"--num-frames (\d+)", caught.value.hint)[0])
    with pytest.raises(AssertionError, match="decoded"):
        watch(model, demo_clip, method="full", num_frames=largest)
    assert calls == []


def test_a_refusal_is_the_same_for_a_real_file_and_for_frames(model: Model, demo_clip: Path) -> None:
    for clip in (demo_clip, made_frames(40)):
        with pytest.raises(UsageError, match="frames need up to") as caught:
            watch(model, clip, method="full", num_frames=40)
        assert "--num-frames 14 " in caught.value.hint
    watched = watch(model, made_frames(14), method="full")
    with pytest.raises(UsageError, match="14 frames need up to"):  # with this question's tokens they are too many
        ask(model, watched, "word " * 40)


def test_without_text_files_only_asking_fails(small: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(small, tmp_path / "bare"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (bare / name).unlink()
    model = load_model(bare, device="cpu")
    watched = watch(model, made_frames())
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        ask(model, watched, QUESTION)
    (bare / "video_preprocessor_config.json").unlink()
    (bare / "preprocessor_config.json").unlink()
    with pytest.raises(HolitomError, match="no preprocessor file"):
        watch(load_model(bare, device="cpu"), made_frames())


# --- edges -----------------------------------------------------------------------------------


def still_frames(count: int) -> Frames:
    return Frames(pixels=np.full((count, 50, 50, 3), 99, np.uint8), seconds=np.arange(count, dtype=float))


@pytest.mark.parametrize("method", methods.available())
@pytest.mark.parametrize("count", [1, 2])
def test_next_to_nothing_to_see(model: Model, method: str, count: int) -> None:
    answer = ask(model, watch(model, still_frames(count), method=method), QUESTION, max_new_tokens=3)
    assert answer.tokens.generated >= 1


def test_a_still_clip_of_which_nothing_is_kept(model: Model) -> None:
    """The newline token alone stands for the video, also behind the merge inside."""
    answer = ask(model, watch(model, still_frames(8), retain_ratio=1e-3), QUESTION, max_new_tokens=3)
    assert answer.tokens.visual == 0
    assert (answer.inner_source == -1).all()
    assert answer.tokens.inside[0][1] == 1


def test_frames_may_be_a_tensor(model: Model) -> None:
    frames = made_frames()
    tensor: Any = torch.from_numpy(frames.pixels)
    visual = watch(model, Frames(pixels=tensor, seconds=frames.seconds)).visual
    assert torch.equal(visual.embeds, watch(model, frames).visual.embeds)


def test_no_frames_are_no_video(model: Model) -> None:
    nothing = Frames(pixels=np.zeros((0, 8, 8, 3), np.uint8), seconds=np.zeros(0))
    with pytest.raises(VideoError, match="no frame"):
        watch(model, nothing)


def test_running_out_of_memory_has_advice(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_card(*_: Any, **__: Any) -> Iterator[None]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(vision, "encode", full_card)
    with pytest.raises(HolitomError, match="is not enough for this question") as caught:
        watch(model, made_frames())
    assert "--num-frames" in caught.value.hint


def test_an_answer_that_saw_nothing_says_so(model: Model) -> None:
    nothing = watch(model, still_frames(2), retain_ratio=0.001)
    assert len(nothing.visual) == 0
    assert any("No visual token" in warning for warning in ask(model, nothing, "Why?", max_new_tokens=1).warnings)
    something = ask(model, watch(model, still_frames(2)), "Why?", max_new_tokens=1)
    assert not any("No visual token" in warning for warning in something.warnings)


def test_a_preset_changes_a_method_that_is_given_whole(model: Model) -> None:
    changed = watch(model, still_frames(2), method=HoliTom(beta=0.5), preset="10").method
    assert changed == HoliTom(beta=0.5, retain_ratio=0.1, tau=0.65)


def test_answers_agree_when_their_tokens_do(model: Model, watched: Watched) -> None:
    answer = ask(model, watched, "Why?", max_new_tokens=3)
    assert answer.agrees(ask(model, watched, "Why?", max_new_tokens=3))
    assert not answer.agrees(replace(answer, token_ids=(0, 1, 2)))  # the same text from other tokens
