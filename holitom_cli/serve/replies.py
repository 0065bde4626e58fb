"""Answers as OpenAI's clients read them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from holitom_cli.types import Answer

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """One response to a question, whole or in chunks."""

    model: str
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970

    def whole(self, answer: Answer, reused_tokens: int) -> dict[str, Any]:
        """A chat.completion."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(answer, reused_tokens)}

    def first(self) -> bytes:
        """The chunk that says who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        """A chunk of text."""
        return self._chunk({"content": text})

    def last(self, answer: Answer, reused_tokens: int) -> bytes:
        """The chunk that says why the answer ends, the usage where it was asked for, and the end of the stream."""
        ending = self._chunk({}, answer.finish_reason)
        if self.include_usage:
            told = {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(answer, reused_tokens)}
            ending += event(told)
        return ending + DONE

    def _chunk(self, delta: Mapping[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return event({**chunk, "usage": None} if self.include_usage else chunk)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(told: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(told)}\n\n".encode()


def usage(answer: Answer, reused_tokens: int) -> dict[str, Any]:
    """What an answer took, as OpenAI counts it, and in `holitom` what was kept of the clip and how long it took."""
    tokens, flops, timings = answer.tokens, answer.flops, answer.timings
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.generated,
        "total_tokens": tokens.prompt + tokens.generated,
        "prompt_tokens_details": {"cached_tokens": reused_tokens},
        "holitom": {
            "method": answer.method,
            "settings": dict(answer.method_settings),
            "frames": tokens.frames,
            "visual_tokens": {
                "original": tokens.original,
                "kept": tokens.visual,
                "inside": [{"layer": layer, "kept": kept} for layer, kept in tokens.inside],
            },
            "flops_share": flops.true / flops.true_full,
            "clip_reused": answer.frames.cached,
            "stages_ms": dict(timings.stages_ms),
            "ttft_ms": timings.ttft_ms,
            "time_to_answer_s": timings.time_to_answer_s,
            "warnings": list(answer.warnings),
        },
    }


def models(name: str, created: int) -> dict[str, Any]:
    """The list of the one model there is."""
    return {"object": "list", "data": [model(name, created)]}


def model(name: str, created: int) -> dict[str, Any]:
    """A model, loaded at so many seconds since 1970."""
    return {"id": name, "object": "model", "created": created, "owned_by": "holitom"}
