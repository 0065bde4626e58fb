"""Several methods on one question, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from holitom_cli.report import text
from holitom_cli.report.shapes import Encodable
from holitom_cli.report.terminal import methods_table, short, warning_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from holitom_cli.types import Answer


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """What one method answered at one budget."""

    method: str  # as it was asked for
    budget: float | str  # percent of the visual tokens, or a number of them: "940t"
    answer: Answer


def full_of(rows: Sequence[Compared]) -> Answer | None:
    """The answer with every token kept, where it is among them."""
    return next((row.answer for row in rows if row.method == "full"), None)


def comparison_table(rows: Sequence[Compared]) -> RenderableType:
    """Return a table with a row for each method and budget; two or more about the same clip and question."""
    first = rows[0].answer
    heading = Text.assemble((text.visible(first.question), "bold"), "  ", (text.visible(short(first.model)), "dim"))
    warnings = dict.fromkeys(warning for row in rows for warning in row.answer.warnings)
    table = methods_table(shown_rows(rows))
    return Encodable(Group(*map(warning_line, warnings), heading, table))


def comparison_rows(rows: Sequence[Compared]) -> list[dict[str, Any]]:
    """The same as plain values with their units in their names, for a spreadsheet."""
    full = full_of(rows)
    return [
        {
            "method": row.method,
            "budget": row.budget,
            "answer": row.answer.text,
            "agrees_with_full": None if full is None else row.answer.agrees(full),
            "tokens": row.answer.tokens.visual,
            "retained_ratio": row.answer.tokens.retained,
            "mean_tokens_by_layer": mean_by_layer(row.answer),
            "true_flops": row.answer.flops.true,
            "ttft_ms": row.answer.timings.ttft_ms,
            "device_peak_bytes": row.answer.memory.device_peak_bytes,
        }
        for row in rows
    ]


def shown_rows(rows: Sequence[Compared]) -> list[dict[str, str]]:
    """The cells of the table, by heading."""
    full = full_of(rows)
    return [_shown(row, full) for row in rows]


def agreement(answer: Answer, full: Answer) -> float:
    """How much of what is said with every token kept is said with fewer, as a share of 1.

    Of a generated answer, the tokens before the first other one, and 1 only where both end alike. Of probabilities of
    choices, what both have in common: 1 less the total variation distance.
    """
    if full.choices:
        whole = {choice.text: choice.probability for choice in full.choices}
        return sum(min(choice.probability, whole[choice.text]) for choice in answer.choices)
    longer = max(len(answer.token_ids), len(full.token_ids))
    pairs = enumerate(zip_longest(answer.token_ids, full.token_ids))
    return next((place / longer for place, (ours, theirs) in pairs if ours != theirs), 1.0)


def mean_by_layer(answer: Answer) -> float:
    """Visual tokens that a layer of the language model works on, newline not included, mean over the layers."""
    depth, counts = answer.model.shape.layers, [answer.tokens.visual] * answer.model.shape.layers
    for layer, rows in answer.tokens.inside:
        counts[layer:] = [rows - 1] * (depth - layer)
    return sum(counts) / depth


def _shown(row: Compared, full: Answer | None) -> dict[str, str]:
    answer, memory = row.answer, row.answer.memory.device_peak_bytes
    odds = max((choice.probability for choice in answer.choices), default=None)
    said = answer.text if odds is None else f"{answer.text} ({text.percent(odds)})"
    cells = {
        "method": row.method,
        "budget": text.budget(row.budget),
        "answer": said,
        "as full": "" if full is None else "yes" if answer.agrees(full) else "no",
        "tokens": text.count(answer.tokens.visual),
        "by layer": text.count(round(mean_by_layer(answer))),
        "true FLOPs": text.flop(answer.flops.true),
        "TTFT": text.milliseconds(answer.timings.ttft_ms),
        "GPU memory": text.size(memory) if memory is not None else "",
    }
    return cells if memory is not None else {name: cell for name, cell in cells.items() if name != "GPU memory"}
