"""An answer or an error as plain JSON values, as `docs/result.schema.json` describes them.

Every document holds what `json.dumps(..., allow_nan=False)` accepts: a number that is not finite becomes
null, and half a surrogate pair (from a file name that is no valid text) is written as its escape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holitom_cli.errors import HolitomError
    from holitom_cli.types import AnswerRecord, Frames, TokenCounts, VideoInfo

SCHEMA_VERSION = 1
STAGES = ("probe", "decode", "preprocess", "vision", "compress", "prefill", "sample")


def document(answers: Sequence[AnswerRecord], baseline: Sequence[AnswerRecord] = ()) -> dict[str, Any]:
    """Return one document on all questions about one clip.

    `answers` share the clip and the checkpoint. `baseline` holds the same questions, in order, answered
    with every token kept: further results, and the reason for `agrees_with_baseline`. ValueError where
    it is shorter or longer.
    """
    results = [_result(answer) for answer in answers]
    if baseline:
        for result, answer, rival in zip(results, answers, baseline, strict=True):
            result["agrees_with_baseline"] = answer.agrees(rival)
        results += [_result(rival) for rival in baseline]
    return _common(answers[0]) | {"results": results}


def comparison(
    answers: Sequence[AnswerRecord], budgets: Sequence[float | str], full: AnswerRecord | None
) -> dict[str, Any]:
    """Return one document on one question about one clip, answered with several methods at these budgets.

    `full` is the answer with every token kept, where it is among them: what the others are compared with.
    """
    results = [_result(answer) | {"budget": budget} for answer, budget in zip(answers, budgets, strict=True)]
    if full:
        for result, answer in zip(results, answers, strict=True):
            result["agrees_with_baseline"] = answer.agrees(full)
    return _common(answers[0]) | {"results": results}


def flat_record(answer: AnswerRecord, key: str) -> dict[str, Any]:
    """Return one row about one question: the document's common keys and the result's, side by side.

    `key` is the row's own: the same clip, question, settings and checkpoint have the same.
    """
    return {"key": key} | _common(answer) | _result(answer)


def error_document(error: HolitomError) -> dict[str, Any]:
    """Return the document that stands in for a result that could not be had."""
    fault = {"stage": error.stage, "message": clean(error.message), "hint": clean(error.hint)}
    return {"schema_version": SCHEMA_VERSION, "error": fault}


def error_record(path: str, question: str, error: HolitomError, key: str) -> dict[str, Any]:
    """Return the row that stands in for the record of one clip and question."""
    asked = {"video": {"path": clean(path)}, "question": clean(question)}
    return {"key": key} | error_document(error) | asked


def _common(answer: AnswerRecord) -> dict[str, Any]:
    """What is the same for every question about a clip."""
    common = {
        "video": _video(answer.frames.video),
        "sampling": _sampling(answer.frames),
        "settings": asdict(answer.generation),
        "model": asdict(answer.model),
        "versions": answer.versions,
        **({"served_by": answer.served_by} if answer.served_by else {}),
    }
    return {"schema_version": SCHEMA_VERSION, **clean(common)}


def _video(video: VideoInfo | None) -> dict[str, Any] | None:
    if video is None:
        return None
    return {
        "path": video.path,
        "container": video.container,
        "codec": video.codec,
        "width": video.width,
        "height": video.height,
        "rotation_degrees": video.rotation,
        "duration_s": video.duration_seconds,
        "frame_count": video.frame_count,
        "frames_per_second": video.frames_per_second,
        "size_bytes": video.size_bytes,
        "mirrored": video.mirrored,
        "hdr": video.hdr,
    }


def _sampling(frames: Frames) -> dict[str, Any]:
    wish = frames.sampling
    return {
        "mode": wish.mode if wish else "given",
        "settings": {name: value for name, value in asdict(wish).items() if value} if wish else {},
        "moved_s": frames.moved_seconds,
        "cached": frames.cached,
        "frames_requested": len(frames) + frames.frames_missing,
        "frames": len(frames),
        "frames_missing": frames.frames_missing,
        "frame_indices": frames.indices,
        "frame_times_s": frames.seconds,
        "decoder": frames.decoder,
        "decoder_reason": frames.decoder_reason,
        "warnings": frames.warnings,
    }


def _result(answer: AnswerRecord) -> dict[str, Any]:
    flops = answer.flops
    result = {
        "question": answer.question,
        **({"context": answer.context} if answer.context else {}),
        "method": answer.method,
        "method_settings": answer.method_settings,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        **({"choices": [asdict(choice) for choice in answer.choices]} if answer.choices else {}),
        "tokens": _tokens(answer.tokens),
        "segments": _segments(answer),
        "timings": _timings(answer),
        "memory": asdict(answer.memory),
        "flops": {
            "paper_flops": flops.paper,
            "paper_flops_full": flops.paper_full,
            "true_flops": flops.true,
            "true_flops_full": flops.true_full,
        },
        "warnings": [warning for warning in answer.warnings if warning not in answer.frames.warnings],
    }
    cleaned: dict[str, Any] = clean(result)
    return cleaned


def _tokens(tokens: TokenCounts) -> dict[str, Any]:
    return {
        "frames": tokens.frames,
        "patches_per_frame": tokens.patches_per_frame,
        "original": tokens.original,
        "funnel": [{"stage": stage, "tokens": left} for stage, left in tokens.funnel],
        "visual": tokens.visual,
        "retained_ratio": tokens.retained,
        **({"cached_by_layer": list(tokens.cached)} if tokens.cached else {}),
        "newline": tokens.newlines,
        "text": tokens.text,
        "prompt": tokens.prompt,
        "inside": [{"layer": layer, "tokens_with_newline": left} for layer, left in tokens.inside],
        "generated": tokens.generated,
    }


def _segments(answer: AnswerRecord) -> list[dict[str, Any]]:
    return [
        {
            "start_frame": segment.start_frame,
            "stop_frame": segment.stop_frame,
            "start_s": segment.start_seconds,
            "end_s": segment.end_seconds,
            "tokens": segment.tokens,
        }
        for segment in answer.segments
    ]


def _timings(answer: AnswerRecord) -> dict[str, Any]:
    """Every stage has its key: null where it did not run, as for frames that were passed in."""
    timings = answer.timings
    return {
        "stages_ms": dict.fromkeys(STAGES) | dict(timings.stages_ms),
        "ttft_ms": timings.ttft_ms,
        "tpot_ms": timings.tpot_ms,
        "tokens_per_second": timings.tokens_per_second,
        "time_to_answer_s": timings.time_to_answer_s,
    }


def clean(value: Any) -> Any:
    """Return `value` as JSON knows it, all the way down."""
    if hasattr(value, "tolist"):  # numpy arrays and scalars, tensors
        return clean(value.tolist())
    if isinstance(value, Mapping):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value
