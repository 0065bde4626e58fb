"""What methods reach against what they cost, as a self-contained HTML page of plots and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holitom_cli.report import terminal, text
from holitom_cli.report.comparison import Compared, agreement, full_of, shown_rows
from holitom_cli.report.evaluation import Part, figures, types_across
from holitom_cli.report.files import write_whole
from holitom_cli.report.page import flat, template
from holitom_cli.report.plot import Axis, Line, Point, plot

if TYPE_CHECKING:
    from holitom_cli.types import ModelInfo

_EXACTLY = "there is one question, so there are no error bars"


@dataclass(frozen=True, slots=True)
class _Measured:
    """One method at one budget."""

    method: str
    budget: float | str
    reached: float  # a share of 1
    error: float  # standard error of it
    costs: Sequence[float | None]  # in the order of _COSTS


_COSTS = (
    Axis("visual tokens", lambda value: text.count(round(value))),
    Axis("FLOPs of the prefill", text.flop),
    Axis("TTFT", text.milliseconds),
)


def write_evaluation_page(model: ModelInfo, document: Mapping[str, Any], file: Path) -> None:
    """Write the page of `evaluation_page` to a file."""
    write_whole(file, evaluation_page(model, document))


def evaluation_page(model: ModelInfo, document: Mapping[str, Any]) -> str:
    """Return a page about an evaluation: accuracy against tokens, FLOPs and TTFT, all tables, all settings.

    Args:
        model: the checkpoint that answered.
        document: as `evaluation.evaluation_document` makes it.
    """
    results, settings = document["results"], document["settings"]
    asked = settings["set"] or settings["questions_file"]
    measured = [
        _Measured(
            result["method"],
            result["budget"],
            result["accuracy"],
            result["stderr"] or 0.0,
            (result["tokens"], result["flops"], result["ttft_ms"]),
        )
        for result in results
        if result["accuracy"] is not None
    ]
    counted = f"{text.counted(settings['questions'], 'question')} about {text.counted(settings['videos'], 'clip')}"
    return _page(
        title=f"Accuracy on {asked}",
        lead=f"{counted}, answered by {terminal.short(model)}.",
        warnings=["The weights are random, so the accuracy is chance."] if model.kind == "random" else [],
        answers=[],
        plots=_plots("accuracy", measured),
        note="Bars are one standard error to either side, the band that of full.",
        parts=[*figures(model, results), *types_across(results)],
        facts=[*terminal.model_rows(model), *_facts(settings)],
        everything=document,
    )


def _facts(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((name.replace("_", " "), str(value)) for name, value in settings.items() if value is not None)


def write_comparison_page(rows: Sequence[Compared], document: Mapping[str, Any], file: Path) -> None:
    """Write the page of `comparison_page` to a file."""
    write_whole(file, comparison_page(rows, document))


def comparison_page(rows: Sequence[Compared], document: Mapping[str, Any]) -> str:
    """Return a page about several methods on one question: agreement with full against costs, a table, all settings.

    Args:
        rows: about the same clip and question.
        document: as `record.comparison` makes it of them.
    """
    full, first = full_of(rows), rows[0].answer
    measured = [
        _Measured(row.method, row.budget, agreement(row.answer, full), 0.0, _costs(row)) for row in rows if full
    ]
    heads = ("method", "budget", "answer")
    answers = [{name: cells[name] for name in heads} for cells in shown_rows(rows)]
    rest = [{name: cell for name, cell in cells.items() if name != "answer"} for cells in shown_rows(rows)]
    return _page(
        title=first.question,
        lead=f"{terminal.title(first.frames)}, answered by {terminal.short(first.model)}.",
        warnings=list(dict.fromkeys(warning for row in rows for warning in row.answer.warnings)),
        answers=answers,
        plots=_plots("agreement with full", measured),
        note=_agreement_note(rows) if full else "Without full among the methods there is nothing to agree with.",
        parts=[Part("Figures", terminal.short(first.model), rest)],
        facts=[(label, str(value)) for label, value in terminal.header_rows(first)[:-1]],
        everything=document,
    )


def _costs(row: Compared) -> tuple[float, float, float]:
    answer = row.answer
    return float(answer.tokens.visual), answer.flops.true, answer.timings.ttft_ms


def _agreement_note(rows: Sequence[Compared]) -> str:
    what = (
        "what the probabilities of the choices have in common with full's"
        if rows[0].answer.choices
        else ("how much of the answer is the same, token by token, before the first difference to full's")
    )
    return f"Upwards: {what}; {_EXACTLY}."


def _plots(reached: str, measured: Sequence[_Measured]) -> Iterator[tuple[str, str]]:
    """A heading and a picture for each cost that is known."""
    up = Axis(reached, lambda share: f"{share:.0%}")
    for number, right in enumerate(_COSTS):
        known = [item for item in measured if item.costs[number]]
        if known:
            heading = f"{reached.capitalize()} against {right.name}"
            full = next((item for item in known if item.method == "full"), None)
            level = _point(full, number, right) if full else None
            yield heading, plot(heading, right, up, list(_lines(known, number, right)), level)


def _lines(measured: Iterable[_Measured], number: int, right: Axis) -> Iterator[Line]:
    by_method: dict[str, list[Point]] = {}
    for item in measured:
        if item.method != "full":
            by_method.setdefault(item.method, []).append(_point(item, number, right))
    return (Line(method, points) for method, points in by_method.items())


def _point(item: _Measured, number: int, right: Axis) -> Point:
    cost = item.costs[number]
    assert cost is not None
    error = f" ± {100 * item.error:.1f}" if item.error else ""
    name = item.method if item.method == "full" else f"{item.method} at {text.budget(item.budget)}"
    words = f"{name}: {text.percent(item.reached)}{error}, {right.write(cost)}"
    return Point(cost, item.reached, item.error, words)


def _page(*, parts: Iterable[Part], everything: Mapping[str, Any], **more: Any) -> str:
    return template("curves.html.jinja").render(
        parts=list(parts), everything=list(flat(everything)), **{**more, "plots": list(more["plots"])}
    )
