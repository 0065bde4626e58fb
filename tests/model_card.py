"""What is said of the bundled model: its card, from its configuration and its training log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_CARD = """\
---
library_name: transformers
pipeline_tag: video-text-to-text
license: apache-2.0
---

# Demo model of holitom_cli

A small LLaVA-OneVision, trained from scratch on generated clips of moving shapes. It answers questions about their
colours, shapes, number, ways, order and changes; **outside of that world its answers are of no worth**. It is there to
try the program within seconds and without a network, and to measure what compression costs in accuracy. Such figures
compare implementations and catch mistakes; they do not rank methods on the published models.

## Layout

That of a published checkpoint (`LlavaOnevisionForConditionalGeneration`): {parameters:.1f} million parameters in
bfloat16.

| part | shape |
| --- | --- |
| pictures | {image} x {image} pixels, {grid} x {grid} patches, pooled to {pooled} x {pooled} visual tokens a frame |
| vision tower | SigLIP: {tower_layers} layers, {tower_width} wide, {tower_heads} heads |
| language model | Qwen2: {layers} layers, {width} wide, {heads} heads, {kv_heads} key/value heads, {vocab} tokens |
| tokenizer | byte-level BPE in which the world's words are whole; any text survives encoding and decoding |

## Training

```sh
{command}
```

- {minutes:.0f} minutes on {device}
- {tower_steps:,} steps of the tower on single frames, then {clip_steps:,} of the language model on clips of {frames}
  frames
- every clip was drawn for its step and seen once; no data set of anyone else was used
- every visual token was kept: the model has never seen compressed ones

`log.jsonl` is the log.{note}

## Accuracy

Greedy answers with every token kept, on {questions:,} questions about clips that training never drew, in wordings that
it never used: **{accuracy:.1%}**.

| questions about | right |
| --- | --- |
{by_kind}

{clip}

## Licence

Apache-2.0, as the project.
"""
_KINDS = {
    "change": "the colour that something turns",
    "colour": "a colour",
    "count": "how many there are",
    "direction": "the way something moves",
    "faster": "which of two is faster",
    "happened": "whether a colour changes",
    "order": "which of two comes first",
    "present": "whether something is there",
    "shape": "a shape",
    "speed": "whether something becomes faster",
    "when": "the part of the clip in which something is there",
    "where": "the corner that something is in",
}


@dataclass(frozen=True, slots=True)
class Training:
    """How a run was made, which its log does not say."""

    command: str
    device: str  # as in "one NVIDIA H200"
    note: str = ""  # what else there is to say of it


def card(
    config: Any, parameters: int, training: Training, log: Sequence[Mapping[str, Any]], frames: int, clip: str
) -> str:
    """The model card, Markdown with the hub's metadata in front.

    Args:
        config: LlavaOnevisionConfig.
        parameters: their number.
        training: the command and where it ran.
        log: the run's lines; the last line of stage "test" holds the final accuracy.
        frames: of a clip.
        clip: a paragraph on the bundled clip.

    Raises:
        ValueError: the log has no test.
    """
    tests = [line for line in log if line["stage"] == "test"]
    if not tests:
        raise ValueError("the log has no line of stage 'test'")
    final, vision, text = tests[-1], config.vision_config, config.text_config
    grid = vision.image_size // vision.patch_size
    rows = [f"| {_KINDS.get(kind, kind)} | {share:.1%} |" for kind, share in final["by_kind"].items()]
    return _CARD.format(
        parameters=parameters / 1e6,
        image=vision.image_size,
        grid=grid,
        pooled=-(-grid // 2),
        tower_layers=vision.num_hidden_layers,
        tower_width=vision.hidden_size,
        tower_heads=vision.num_attention_heads,
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        vocab=text.vocab_size,
        command=training.command,
        device=training.device,
        note=f" {training.note}" if training.note else "",
        minutes=final["seconds"] / 60,
        tower_steps=final["steps"]["tower"],
        clip_steps=final["steps"]["clips"],
        frames=frames,
        questions=final["questions"],
        accuracy=final["accuracy"],
        by_kind="\n".join(rows),
        clip=clip,
    )
