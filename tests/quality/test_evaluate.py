"""The loop over clips, and the arithmetic behind the figures, against plain loops."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holitom_cli import methods, pipeline
from holitom_cli.errors import HolitomError, UsageError
from holitom_cli.flops import paper_prefill
from holitom_cli.methods.tools.variants import Variant, variants
from holitom_cli.model import load_model, vision
from holitom_cli.model.loading import Model
from holitom_cli.quality import evaluate, scoring, statistics
from holitom_cli.quality.clips import write_clip
from holitom_cli.quality.evaluate import Outcome, Plan
from holitom_cli.quality.items import FileClip, Item
from holitom_cli.quality.shapes import shapes
from holitom_cli.quality.statistics import Judged
from tests.make_random_checkpoint import make_checkpoint

# --- figures ---------------------------------------------------------------------------------


def judged(video: str, correct: bool, kind: str = "") -> Judged:
    return Judged(video, kind, correct, tokens=10, true_flops=1.0, paper_flops=1.0, ttft_ms=1.0)


def made(seed: int, videos: int = 9, right: float = 0.6) -> dict[int, Judged]:
    """Questions about videos that differ in how many there are and how hard they are."""
    dice = np.random.default_rng(seed)
    found: dict[int, Judged] = {}
    for video in range(videos):
        level = dice.uniform(0, 2 * right)
        for _ in range(1 + video % 4):
            found[len(found)] = judged(f"v{video}", bool(dice.random() < level), "ab"[len(found) % 2])
    return found


def slow_interval(ours: Mapping[int, Judged], full: Mapping[int, Judged], seed: int) -> tuple[float, float]:
    """Whole videos drawn one by one, all their questions put together."""
    names = sorted({item.video for item in ours.values()})
    dice = np.random.default_rng(seed)
    means = []
    for _ in range(statistics.DRAWS):
        changes = []
        for index in dice.integers(len(names), size=len(names)):
            for key, item in ours.items():
                if item.video == names[index]:
                    changes.append(item.correct - full[key].correct)
        means.append(sum(changes) / len(changes))
    means.sort()
    return tuple(float(np.quantile(means, share)) for share in (0.025, 0.975))  # type: ignore[return-value]


def test_the_interval_is_that_of_drawing_whole_videos() -> None:
    ours, full = made(1), made(2)
    result = statistics.against(ours, full, seed=5)
    assert result is not None
    assert (result["low"], result["high"]) == pytest.approx(slow_interval(ours, full, 5), abs=1e-12)
    alone = {key: replace(item, video=str(key)) for key, item in ours.items()}
    as_if_independent = statistics.against(alone, full, seed=5)
    assert as_if_independent is not None
    assert (as_if_independent["low"], as_if_independent["high"]) != (result["low"], result["high"])  # control
    assert statistics.against(ours, full, seed=6) != result  # another draw
    assert result["low"] < result["difference"] < result["high"]


def test_one_video_has_no_interval() -> None:
    ours = {1: judged("v", True), 2: judged("v", False)}
    full = {1: judged("v", False), 2: judged("v", False)}
    result = statistics.against(ours, full, 0)
    assert result is not None
    assert (result["low"], result["high"], result["difference"]) == (None, None, 0.5)


def test_differences_are_paired_by_question() -> None:
    ours = {
        1: judged("v", True),
        2: judged("v", False),
        3: judged("w", True),
        4: judged("w", True),
        5: judged("w", True),
    }
    full = {
        1: judged("v", False),
        2: judged("v", True),
        3: judged("w", True),
        4: judged("w", False),
        9: judged("w", True),
    }
    result = statistics.against(ours, full, 0)
    assert result is not None
    assert result["questions"] == 4  # 5 and 9 have no partner
    assert (result["gained"], result["lost"]) == (2, 1)
    assert result["difference"] == pytest.approx(0.25)
    assert result["kept"] == pytest.approx(3 / 2)
    itself = statistics.against(full, full, 0)
    assert itself is not None
    assert [itself[name] for name in ("difference", "low", "high", "gained", "lost", "kept")] == [0, 0, 0, 0, 0, 1]
    assert statistics.against({1: judged("v", True)}, {2: judged("v", True)}, 0) is None
    hopeless = statistics.against({1: judged("v", True)}, {1: judged("v", False)}, 0)
    assert hopeless is not None
    assert hopeless["kept"] is None


def test_figures_are_those_of_a_loop() -> None:
    answered = {
        key: replace(item, tokens=key, true_flops=2.0 * key, paper_flops=3.0 * key, ttft_ms=float(key**2))
        for key, item in made(3).items()
    }
    figures = statistics.summary(answered, None, 0)
    count = len(answered)
    right = sum(item.correct for item in answered.values())
    share = right / count
    spread = sum((item.correct - share) ** 2 for item in answered.values()) / (count - 1)
    assert figures["accuracy"] == pytest.approx(share)
    assert figures["stderr"] == pytest.approx((spread / count) ** 0.5)
    assert figures["tokens"] == pytest.approx(sum(range(count)) / count)
    assert figures["flops"] == pytest.approx(2 * figures["tokens"])
    assert figures["paper_flops"] == pytest.approx(3 * figures["tokens"])
    middle = sorted(key**2 for key in range(count))
    assert figures["ttft_ms"] == pytest.approx((middle[(count - 1) // 2] + middle[count // 2]) / 2)
    for kind in "ab":
        own = [item.correct for item in answered.values() if item.kind == kind]
        assert figures["by_type"][kind] == {"accuracy": pytest.approx(sum(own) / len(own)), "questions": len(own)}
    assert figures["against_full"] is None
    assert statistics.by_type([judged("v", True)]) == {}


def test_nothing_answered_has_no_figures() -> None:
    figures = statistics.summary({}, {}, 0)
    assert figures["questions"] == 0
    assert {figures[name] for name in ("accuracy", "stderr", "tokens", "flops", "ttft_ms", "against_full")} == {None}
    assert statistics.standard_error([True]) is None


# --- the loop --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return load_model(str(tiny_checkpoint), device="cpu")


@pytest.fixture(scope="module")
def items(demo_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Two clips of different content, whose questions alternate."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "a.mp4").symlink_to(demo_clip)
    (folder / "b.mp4").write_bytes(demo_clip.read_bytes() + bytes(8))
    questions = [
        ("Is it night?", "no", ("yes", "no"), "light"),
        ("What is shown?", "a lake", ("a city", "a lake", "a window"), "scene"),
        ("What moves?", "a boat", (), "scene"),
    ]
    return [Item(FileClip(name, folder / name), *question) for question in questions for name in ("a.mp4", "b.mp4")]


PLAN = Plan(variants("full,holitom,random", "15", 3), "letter", num_frames=2, max_new_tokens=4)


def ask(model: Model, items: list[Item], plan: Plan = PLAN, finished: Mapping[str, Any] | None = None) -> list[Outcome]:
    return [outcome for _, found in evaluate.run(model, items, plan, finished or {}) for outcome in found]


@pytest.fixture(scope="module")
def outcomes(model: Model, items: list[Item]) -> list[Outcome]:
    return ask(model, items)


def rows(outcomes: list[Outcome]) -> dict[str, dict[str, Any]]:
    """Rows by key without what differs from run to run."""
    found = {}
    for outcome in outcomes:
        assert not isinstance(outcome.row, HolitomError)
        found[outcome.key] = {name: value for name, value in outcome.row.items() if name != "ttft_ms"}
    return found


def test_every_question_is_put_with_every_method(outcomes: list[Outcome], items: list[Item]) -> None:
    asked = {(outcome.item, outcome.variant.label) for outcome in outcomes}
    assert asked == {(item, label) for item in items for label in ("full", "holitom", "random")}
    assert len({outcome.key for outcome in outcomes}) == len(outcomes) == 18
    assert all(outcome.new for outcome in outcomes)


def test_rows_are_what_watching_again_for_each_would_give(
    outcomes: list[Outcome], model: Model, items: list[Item]
) -> None:
    for outcome in outcomes:
        row, item = outcome.row, outcome.item
        assert not isinstance(row, HolitomError)
        watched = pipeline.watch(model, item.clip.frames(2, None), method=outcome.variant.method)
        how = scoring.scoring_of(item, "letter")
        answer = scoring.put(model, watched, item, how, 4)
        assert row["answer"] == scoring.meant(item, answer, how)
        assert row["correct"] is scoring.is_right(item, row["answer"], how)
        odds = [choice["probability"] for choice in row.get("choices", [])]
        assert odds == pytest.approx([choice.probability for choice in answer.choices], abs=1e-6)
        assert len(odds) == len(item.choices)
        assert (row["tokens"], row["true_flops"]) == (answer.tokens.visual, answer.flops.true)
        assert row["paper_flops"] == answer.flops.paper
        assert row["ttft_ms"] > 0
    tokens = {outcome.variant.label: rows([outcome])[outcome.key]["tokens"] for outcome in outcomes}
    assert tokens["full"] == 392
    assert tokens["random"] == 59


def test_a_clip_is_encoded_once_for_all(model: Model, items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = vision.encode

    def counted(*arguments: Any, **wanted: Any) -> Any:
        calls.append(wanted)
        return encode(*arguments, **wanted)

    monkeypatch.setattr(vision, "encode", counted)
    ask(model, items)
    common = {"keys": False, "chunk_frames": vision.CHUNK_FRAMES}
    assert calls == [{"attention": True, **common}] * 2
    calls.clear()
    ask(model, items, replace(PLAN, variants=variants("full,random", "15", 3)))
    assert calls == [{"attention": False, **common}] * 2


def test_methods_share_the_tower_but_not_their_own_times(model: Model, items: list[Item]) -> None:
    seen = pipeline.see(model, items[0].clip.frames(2, None), attention=True)
    first, second = (pipeline.compress(model, seen, methods.get(name)) for name in ("holitom", "full"))
    times = [watched.clock.milliseconds() for watched in (first, second)]
    assert [list(one) for one in times] == [["preprocess", "vision", "compress"]] * 2
    assert times[0]["vision"] == times[1]["vision"]
    assert times[0]["compress"] != times[1]["compress"]
    assert list(seen.clock.milliseconds()) == ["preprocess", "vision"]


def test_resumed_is_the_same_as_uninterrupted(
    outcomes: list[Outcome], model: Model, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {outcome.key: outcome.row for outcome in outcomes if not isinstance(outcome.row, HolitomError)}
    half = dict(list(written.items())[::2])
    asked = []
    put = scoring.put

    def counted(*arguments: Any) -> Any:
        asked.append(arguments)
        return put(*arguments)

    monkeypatch.setattr(scoring, "put", counted)
    resumed = ask(model, items, finished=half)
    assert len(asked) == 9
    assert rows(resumed) == rows(outcomes)
    assert {outcome.key for outcome in resumed if not outcome.new} == set(half)
    assert timeless(evaluate.results(resumed, PLAN, 0)) == timeless(evaluate.results(outcomes, PLAN, 0))
    monkeypatch.setattr(vision, "encode", None)  # a clip with nothing open is not even decoded
    again = ask(model, items, finished=written)
    assert evaluate.results(again, PLAN, 0) == evaluate.results(outcomes, PLAN, 0)


def timeless(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in result.items() if name != "ttft_ms"} for result in results]


CHANGES = [
    {"num_frames": 3},
    {"max_new_tokens": 3},
    {"scoring": "words"},
    {"variants": variants("holitom:tau=0.7", "15", 3)},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_control_another_plan_or_question_is_asked_again(
    outcomes: list[Outcome], model: Model, items: list[Item], change: dict[str, Any]
) -> None:
    written: dict[str, dict[str, Any]] = {outcome.key: {} for outcome in outcomes}
    plan = replace(PLAN, **change)
    assert all(outcome.new for outcome in ask(model, items[:1], plan, written))
    corrected = replace(items[0], answer="yes")
    assert all(outcome.new for outcome in ask(model, [corrected], PLAN, written))


def test_control_other_weights_in_the_same_place_are_asked_again(items: list[Item], tmp_path: Path) -> None:
    plan = replace(PLAN, variants=PLAN.variants[:1])

    def outcome(finished: Mapping[str, Any], seed: int) -> Outcome:
        model = load_model(str(make_checkpoint(tmp_path / "mine", layers=2, seed=seed)), device="cpu")
        return ask(model, items[:1], plan, finished)[0]

    finished: dict[str, Any] = {outcome({}, seed=0).key: {}}
    assert not outcome(finished, seed=0).new
    assert outcome(finished, seed=1).new


def test_results_pair_and_count(outcomes: list[Outcome]) -> None:
    full, holitom, random = evaluate.results(outcomes, PLAN, 0)
    assert [(item["method"], item["budget"]) for item in (full, holitom, random)] == [
        ("full", 100), ("holitom", 15), ("random", 15),
    ]  # fmt: skip
    for result in (full, holitom, random):
        own = [outcome.row for outcome in outcomes if outcome.variant.label == result["method"]]
        right = [row["correct"] for row in own if not isinstance(row, HolitomError)]
        assert result["accuracy"] == pytest.approx(sum(right) / 6)
        assert (result["questions"], result["failed"]) == (6, 0)
        assert set(result["by_type"]) == {"light", "scene"}
        against = result["against_full"]
        assert against["gained"] - against["lost"] == round(6 * (result["accuracy"] - full["accuracy"]))
    without = evaluate.results(outcomes, replace(PLAN, variants=PLAN.variants[1:]), 0)
    assert [result["against_full"] for result in without] == [None, None]


BUDGETS = "25,20,15,10,5"


@pytest.mark.parametrize(("depth", "layer"), [(28, 18), (24, 15), (7, 4), (4, 3)])
def test_the_merge_inside_has_its_place_in_a_model_of_any_depth(depth: int, layer: int) -> None:
    merged = {tuple(variant.method.reductions(depth)) for variant in variants("holitom", BUDGETS, 0)}
    assert merged == {(layer,)}
    without = variants("holitom:inner_layer=off", BUDGETS, 0)
    assert not any(variant.method.reductions(depth) for variant in without)


def test_the_merge_inside_is_on_at_every_budget(model: Model) -> None:
    plan = Plan(variants("holitom,holitom:inner_layer=off", BUDGETS, 0), "text", 8, 2)
    results = evaluate.results(ask(model, shapes(limit=1), plan), plan, 0)
    merged, kept = results[:5], results[5:]
    for ours, off in zip(merged, kept, strict=True):
        assert ours["tokens"] == off["tokens"]  # they differ behind the first layer only
        entering = round(ours["tokens"])
        half = round((entering + 1) / 2)  # of the span with its newline token, in the last of four layers
        shape = model.info.shape
        assert ours["paper_flops"] == pytest.approx(paper_prefill(shape, [entering] * 3 + [half]))
        assert off["paper_flops"] == pytest.approx(paper_prefill(shape, [entering] * 4))
        assert ours["flops"] < off["flops"]


def test_a_set_and_its_files_are_asked_the_same(model: Model, tmp_path: Path) -> None:
    """Pixels have been through a codec there, so answers may differ; what is asked and what it costs may not."""
    drawn = shapes(limit=5)
    files = [replace(item, clip=FileClip(item.clip.name, tmp_path / item.clip.name)) for item in drawn]
    for clip in evaluate.by_clip(drawn):
        write_clip(tmp_path / clip.name, clip.world)  # type: ignore[attr-defined]
    plan = Plan(variants("full", "100", 0), "text", 4, 2)
    ours, theirs = ask(model, drawn, plan), ask(model, files, plan)
    assert not {outcome.key for outcome in ours} & {outcome.key for outcome in theirs}
    for one, other in zip(ours, theirs, strict=True):
        assert not isinstance(one.row, HolitomError)
        assert not isinstance(other.row, HolitomError)
        for name in ("video", "question", "expected", "type", "tokens", "true_flops", "scoring"):
            assert one.row[name] == other.row[name]


def test_a_broken_clip_costs_its_own_questions_only(
    model: Model, items: list[Item], outcomes: list[Outcome], tmp_path: Path, demo_clip: Path
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video" * 99)
    broken = Item(FileClip("broken.mp4", tmp_path / "broken.mp4"), "Is it night?", "no", ("yes", "no"))
    found = ask(model, [broken, *items[:2]])
    failed = [outcome for outcome in found if isinstance(outcome.row, HolitomError)]
    assert [outcome.item for outcome in failed] == [broken] * 3
    assert all(outcome.row.stage == "video" for outcome in failed)  # type: ignore[union-attr]
    good = [outcome for outcome in found if outcome not in failed]
    assert rows(good) == {outcome.key: rows(outcomes)[outcome.key] for outcome in good}
    for result in evaluate.results(found, PLAN, 0):
        assert (result["questions"], result["failed"]) == (2, 1)
        assert result["against_full"]["questions"] == 2
    shutil.copy(demo_clip, tmp_path / "broken.mp4")  # mended
    mended = ask(model, [broken], finished={outcome.key: {} for outcome in failed})
    assert all(outcome.new and not isinstance(outcome.row, HolitomError) for outcome in mended)


def test_a_method_that_fails_costs_its_own_rows_only(model: Model, items: list[Item]) -> None:
    class Broken(type(methods.get("uniform"))):  # type: ignore[misc]
        def compress(self, video: object) -> Any:  # noqa: ARG002
            raise ValueError("no such cell")

    plan = replace(PLAN, variants=[PLAN.variants[0], Variant("broken", 15, Broken())])
    found = ask(model, items[:1], plan)
    assert [isinstance(outcome.row, HolitomError) for outcome in found] == [False, True]
    assert all(
        error.__traceback__ is None and error.__context__ is None
        for error in (outcome.row for outcome in found)
        if isinstance(error, HolitomError)
    )


def test_what_does_not_fit_the_checkpoint_is_refused_first(model: Model, items: list[Item]) -> None:
    evaluate.check(model.checkpoint, items, PLAN)
    with pytest.raises(UsageError, match="inner_layer is 40"):
        evaluate.check(model.checkpoint, items, replace(PLAN, variants=variants("holitom:inner_layer=40", "15", 0)))
    with pytest.raises(UsageError, match="special meaning"):
        evaluate.check(model.checkpoint, [replace(items[0], question="<video>?")], PLAN)
    alike = replace(items[0], choices=("yes", "<|im_end|>"))
    with pytest.raises(UsageError, match="special meaning") as caught:
        evaluate.check(model.checkpoint, [alike], replace(PLAN, scoring="words"))
    assert caught.value.hint == "Use --scoring letter or text."
