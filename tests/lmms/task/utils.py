"""What the task's YAML file refers to: a question, its clip, and whether the answer has the right words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holitom_cli.quality.scoring import normalised


def video(document: Mapping[str, Any]) -> list[str]:
    """The clip; its name is relative to the folder of the questions, which lmms-eval is started in."""
    return [str(Path(document["video"]).resolve())]


def question(document: Mapping[str, Any], _: Mapping[str, Any] | None = None) -> str:
    return str(document["question"])


def judge(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    return {"accuracy": float(normalised(results[0]) == normalised(document["answer"]))}
