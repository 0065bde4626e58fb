"""The JSON contract: every document fits the published schema, and the schema would notice drift."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from holitom_cli.errors import HolitomError, VideoError
from holitom_cli.report.record import document, error_document, error_record, flat_record
from holitom_cli.types import Answer, Frames, Memory, Timings, TokenCounts
from tests.report.factory import (
    STAGES,
    make_answer,
    make_baseline,
    make_frames,
    make_model,
    make_segments,
    make_video,
)

Json = dict[str, Any]

SCHEMA = Path(__file__).parents[2] / "docs" / "result.schema.json"
OPEN_MAPS = ("method_settings", "versions")  # their keys belong to the method and to the installation
KEY = "0123456789abcdef"
FAULT = VideoError("clip.mp4 holds no video.", "Give a file with a video stream.")


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def on_cpu() -> Answer:
    model = make_model(id="demo", kind="demo", revision=None, device="cpu", device_name="cpu", reason="")
    return make_answer(memory=Memory(None, 1 << 30), model=model)


def with_one_token() -> Answer:
    tokens = TokenCounts(32, 196, (("frames", 6272), ("merge", 952)), (), 33, 986, 1)
    timings = Timings(STAGES, ttft_ms=96.65, tpot_ms=None, time_to_answer_s=0.58)
    return make_answer(tokens=tokens, timings=timings, finish_reason="length")


def truncated() -> Answer:
    frames = make_frames(19, frames_missing=13, warnings=("13 of 32 frames could not be read.",))
    return make_answer(frames=frames, warnings=(*frames.warnings, "The checkpoint's weights are random."))


def from_memory() -> Answer:
    frames = Frames(np.zeros((2, 4, 6, 3), np.uint8), np.array([0.0, 1.0]))
    timings = Timings({"vision": 3.0, "prefill": 4.0}, ttft_ms=7.0, tpot_ms=2.0, time_to_answer_s=0.01)
    return make_answer(frames=frames, timings=timings, segments=())


ANSWERS = [make_answer, make_baseline, on_cpu, with_one_token, truncated, from_memory]


@pytest.mark.parametrize("make", ANSWERS)
def test_every_answer_fits_the_schema(validator: Draft202012Validator, make: Any) -> None:
    answer = make()
    for value in (document([answer]), flat_record(answer, KEY), document([answer, answer], [make_baseline()] * 2)):
        validator.validate(json.loads(json.dumps(value, allow_nan=False)))


def test_errors_fit_the_schema(validator: Draft202012Validator) -> None:
    error = {"stage": "video", "message": FAULT.message, "hint": FAULT.hint}
    assert error_document(FAULT) == {"schema_version": 1, "error": error}
    row = error_record("clip.mp4", "Why?", FAULT, KEY)
    asked = {"video": {"path": "clip.mp4"}, "question": "Why?"}
    assert row == {"key": KEY, "schema_version": 1, **asked, "error": error}
    validator.validate(error_document(FAULT))
    validator.validate(row)


def test_the_schema_knows_every_stage_an_error_can_name() -> None:
    def stages(kind: type[HolitomError]) -> set[str]:
        return {kind.stage}.union(*(stages(sub) for sub in kind.__subclasses__()))

    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert stages(HolitomError) <= set(schema["$defs"]["error"]["properties"]["stage"]["enum"])


# --- controls: the schema must refuse what nobody promised ------------------------------------


def small_document() -> Json:
    """Every kind of key once, few frames: the controls change it in each place."""
    tokens = TokenCounts(2, 196, (("frames", 392), ("merge", 60)), ((18, 30),), 33, 94, 24)
    frames = make_frames(2, warnings=("sparse",))
    segments = make_segments(1, 2, 60)
    answer = make_answer(frames=frames, tokens=tokens, segments=segments, warnings=("noise",))
    return document([answer], [make_baseline(frames=frames)])


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def parent(value: Json, path: tuple[str | int, ...]) -> Any:
    inner: Any = value
    for key in path[:-1]:
        inner = inner[key]
    return inner


LATER = {
    *(("sampling", name) for name in ("mode", "settings", "moved_s", "cached")),
    *(("video", name) for name in ("mirrored", "hdr")),
}


def documents() -> list[Json]:
    answer = make_answer(frames=make_frames(2), segments=make_segments(1, 2, 60))
    return [small_document(), flat_record(answer, KEY), error_document(FAULT), error_record("a", "b", FAULT, KEY)]


@pytest.mark.parametrize("kind", range(4))
def test_a_missing_key_fails(validator: Draft202012Validator, kind: int) -> None:
    original = documents()[kind]
    for path in places(original):
        later = path[:2] in LATER  # records written before have none of it
        optional = later or path[-1] == "agrees_with_baseline" or (len(path) > 1 and path[-2] in OPEN_MAPS)
        if optional or not isinstance(path[-1], str):
            continue
        changed = copy.deepcopy(original)
        del parent(changed, path)[path[-1]]
        assert not validator.is_valid(changed), path


@pytest.mark.parametrize("kind", range(4))
def test_an_unknown_key_fails(validator: Draft202012Validator, kind: int) -> None:
    original = documents()[kind]
    for path in [("top",), *((*path, "below") for path in places(original) if path[-1] not in OPEN_MAPS)]:
        changed = copy.deepcopy(original)
        place = parent(changed, path)
        if isinstance(place, dict):
            place["surprise"] = 1
            assert not validator.is_valid(changed), path


@pytest.mark.parametrize("kind", range(4))
def test_a_wrong_type_fails(validator: Draft202012Validator, kind: int) -> None:
    original = documents()[kind]
    for path in places(original):
        changed = copy.deepcopy(original)
        place = parent(changed, path)
        place[path[-1]] = [place[path[-1]]]  # no key takes a list of what it holds
        assert not validator.is_valid(changed), path


# --- what the keys say ------------------------------------------------------------------------


def test_a_document_has_exactly_these_keys() -> None:
    value = document([make_answer()])
    common = ["schema_version", "video", "sampling", "settings", "model", "versions"]
    assert list(value) == [*common, "results"]
    (result,) = value["results"]
    assert list(flat_record(make_answer(), KEY)) == ["key", *common, *result]
    assert "agrees_with_baseline" not in result


def test_figures_arrive_unchanged() -> None:
    answer = make_answer()
    value = flat_record(answer, KEY)
    assert value["video"] == {
        "path": "clips/match.mp4",
        "container": "mov,mp4,m4a,3gp,3g2,mj2",
        "codec": "h264",
        "width": 1280,
        "height": 720,
        "rotation_degrees": 0,
        "duration_s": 300.0,
        "frame_count": 9000,
        "frames_per_second": 30.0,
        "size_bytes": 134_217_728,
        "mirrored": False,
        "hdr": "",
    }
    assert value["sampling"]["frame_indices"] == np.linspace(0, 8999, 32, dtype=int).tolist()
    assert value["sampling"]["frame_times_s"][-1] == pytest.approx(8999 / 30)
    assert value["tokens"]["funnel"][1] == {"stage": "temporal merge", "tokens": 4270}
    assert value["tokens"]["inside"] == [{"layer": 18, "tokens_with_newline": 476}]
    assert value["tokens"]["retained_ratio"] == pytest.approx(952 / 6272)
    parts = [value["tokens"][key] for key in ("visual", "newline", "text")]
    assert sum(parts) == answer.tokens.prompt
    assert value["timings"]["stages_ms"] == STAGES
    assert value["timings"]["tokens_per_second"] == pytest.approx(1000 / 9.6)
    assert value["memory"] == {"device_peak_bytes": 15_998_753_178, "host_peak_bytes": 3_328_599_654}
    assert list(value["flops"].items()) == [
        ("paper_flops", 4.3e12),
        ("paper_flops_full", 40.8e12),
        ("true_flops", 15.2e12),
        ("true_flops_full", 95.4e12),
    ]
    assert [tuple(row.values()) for row in value["segments"]] == [astuple(part) for part in answer.segments]
    assert list(value["segments"][0]) == ["start_frame", "stop_frame", "start_s", "end_s", "tokens"]
    assert value["settings"] == asdict(answer.generation)
    assert value["model"] == asdict(answer.model)


def test_frames_that_could_not_be_read_are_counted_and_their_warning_stands_once() -> None:
    value = flat_record(truncated(), KEY)
    assert (value["sampling"]["frames_requested"], value["sampling"]["frames"]) == (32, 19)
    assert value["sampling"]["frames_missing"] == 13
    assert value["sampling"]["warnings"] == ["13 of 32 frames could not be read."]
    assert value["warnings"] == ["The checkpoint's weights are random."]


def test_a_stage_that_did_not_run_is_null() -> None:
    stages = flat_record(from_memory(), KEY)["timings"]["stages_ms"]
    assert list(stages) == list(STAGES)
    assert (stages["vision"], stages["decode"]) == (3.0, None)


def test_baseline_results_follow_and_each_question_is_compared_with_its_own() -> None:
    first, second = make_answer(text="Yes."), make_answer(question="Who?", text="Nobody.")
    rivals = [make_baseline(text="Yes."), make_baseline(question="Who?", text="A man.")]
    results = document([first, second], rivals)["results"]
    assert [result["method"] for result in results] == ["holitom", "holitom", "full", "full"]
    assert [result.get("agrees_with_baseline") for result in results] == [True, False, None, None]


def test_a_baseline_for_other_questions_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        document([make_answer(), make_answer()], [make_baseline()])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null(validator: Draft202012Validator, number: float) -> None:
    frames = make_frames(video=make_video(duration_seconds=number, frames_per_second=number))
    value = flat_record(make_answer(frames=frames, method_settings={"tau": np.float32(number)}), KEY)
    assert value["video"]["duration_s"] is value["video"]["frames_per_second"] is None
    assert value["method_settings"] == {"tau": None}
    validator.validate(json.loads(json.dumps(value, allow_nan=False)))


def test_a_file_name_that_is_no_text_can_be_written() -> None:
    path = "clip\udcff.mp4"  # how Python spells a byte that is no UTF-8
    with pytest.raises(UnicodeEncodeError):
        path.encode()
    frames = make_frames(video=make_video(path=path))
    rows = [flat_record(make_answer(frames=frames), KEY), error_record(path, "Why?", FAULT, KEY)]
    for row in rows:
        assert row["video"]["path"] == "clip\\udcff.mp4"
        assert json.dumps(row, ensure_ascii=False).encode()
