"""What a server and `ask` of the same user tell each other: messages of JSON, each with bytes behind it.

It is read before an answer can be there, so nothing that takes long to import is.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

from holitom_cli import __version__
from holitom_cli.types import (
    AnswerRecord,
    Choice,
    Flops,
    Frames,
    Generation,
    Memory,
    ModelInfo,
    ModelShape,
    Sampling,
    Segment,
    Timings,
    TokenCounts,
    VideoInfo,
)

PROTOCOL = 1
HEAD = struct.Struct(">IQ")  # bytes of JSON, and of what is behind it
MOST_JSON_BYTES = 64 * 1024**2
BEAT_SECONDS = 1.0  # between signs of life of a server that has nothing to tell

Message = dict[str, Any]


def packed(message: Mapping[str, Any], behind: int = 0) -> bytes:
    """A message, but for so many bytes that follow it."""
    text = json.dumps(message).encode()
    return HEAD.pack(len(text), behind) + text


def program() -> list[str]:
    """What has to be the same for the same answers: the protocol, the version, and where it and its libraries are."""
    return [str(PROTOCOL), __version__, str(Path(__file__).parent.parent), sys.prefix]


# --- answers ---------------------------------------------------------------------------------------


def record_as_json(answer: AnswerRecord) -> Message:
    """An answer without its tensors and pixels."""
    names = [field.name for field in fields(AnswerRecord) if field.name not in ("frames", "served_by")]
    plain = {name: _plain(getattr(answer, name)) for name in names}
    return {**plain, "frames": frames_as_json(answer.frames)}


def record(message: Mapping[str, Any]) -> AnswerRecord:
    """The answer of a message."""
    told = dict(message)
    tokens, timings, model = told["tokens"], told["timings"], told["model"]
    told |= {
        "generation": Generation(**told["generation"]),
        "tokens": TokenCounts(
            **tokens
            | {
                "funnel": _pairs(tokens["funnel"]),
                "inside": _pairs(tokens["inside"]),
                "cached": tuple(tokens["cached"]),
            }
        ),
        "segments": tuple(Segment(**part) for part in told["segments"]),
        "timings": Timings(**timings),
        "memory": Memory(**told["memory"]),
        "flops": Flops(**told["flops"]),
        "model": ModelInfo(**model | {"shape": ModelShape(**model["shape"])}),
        "frames": _frames(told["frames"]),
        "token_ids": tuple(told["token_ids"]),
        "warnings": tuple(told["warnings"]),
        "choices": tuple(Choice(**choice) for choice in told["choices"]),
    }
    return AnswerRecord(**told)


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else [*map(_plain, value)] if _many(value) else value


def _many(value: Any) -> bool:
    return isinstance(value, tuple) and any(hasattr(item, "__dataclass_fields__") for item in value)


def _pairs(pairs: Any) -> tuple[Any, ...]:
    return tuple(tuple(pair) for pair in pairs)


# --- frames ----------------------------------------------------------------------------------------


def frames_as_json(frames: Frames) -> Message:
    """Frames without their pixels."""
    names = {field.name for field in fields(Frames)} - {"pixels", "seconds", "indices", "video", "sampling"}
    return {
        **{name: _plain(getattr(frames, name)) for name in names},
        "timings_ms": dict(frames.timings_ms),
        "seconds": _listed(frames.seconds),
        "indices": None if frames.indices is None else _listed(frames.indices),
        "video": asdict(frames.video) if frames.video else None,
        "sampling": asdict(frames.sampling) if frames.sampling else None,
    }


def frames_facts(message: Mapping[str, Any]) -> Message:
    """The arguments of `Frames` but pixels; times and numbers are lists."""
    told = dict(message)
    return told | {
        "video": VideoInfo(**told["video"]) if told["video"] else None,
        "sampling": sampling(told["sampling"]) if told["sampling"] else None,
        "warnings": tuple(told["warnings"]),
    }


def sampling(message: Mapping[str, Any]) -> Sampling:
    """The sampling of a message.

    Raises:
        UsageError: it means no frames.
    """
    return Sampling(**{**message, "at_seconds": tuple(message["at_seconds"])})


class _Row(tuple[Any, ...]):
    """Numbers that are reported and not computed with: numpy, whose array they were, is not imported for them."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self),)


class _NoPixels(_Row):
    """So many frames whose pixels are elsewhere."""

    __slots__ = ()
    dtype = "uint8"

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), 0, 0, 3)


def _frames(message: Mapping[str, Any]) -> Frames:
    facts = frames_facts(message)
    indices = facts["indices"]
    facts |= {"seconds": _Row(facts["seconds"]), "indices": None if indices is None else _Row(indices)}
    return Frames(pixels=cast("Any", _NoPixels([None] * len(facts["seconds"]))), **facts)


def _listed(numbers: Any) -> list[Any]:
    return list(numbers.tolist() if hasattr(numbers, "tolist") else numbers)
