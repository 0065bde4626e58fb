"""What compression costs in accuracy, as tables and JSON values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from holitom_cli.report import text
from holitom_cli.report.record import SCHEMA_VERSION, clean
from holitom_cli.report.shapes import Encodable
from holitom_cli.report.terminal import methods_table, short

if TYPE_CHECKING:
    from rich.console import RenderableType

    from holitom_cli.types import ModelInfo

_TYPE_COLUMNS = 4  # side by side at 80 columns


def evaluation_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return one line of an evaluation's file: one question answered with one method."""
    return {"key": row["key"], "schema_version": SCHEMA_VERSION, **clean(row)}


def evaluation_document(
    model: ModelInfo, versions: Mapping[str, str], settings: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the one document of an evaluation."""
    parts = {"model": asdict(model), "versions": versions, "settings": settings, "results": results}
    return {"schema_version": SCHEMA_VERSION, **clean(parts)}


@dataclass(frozen=True, slots=True)
class Part:
    """A heading, what to know of it, and a table: rows with the same keys."""

    title: str
    note: str
    rows: Sequence[Mapping[str, str]]


def evaluation_tables(model: ModelInfo, results: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return tables of accuracy, its difference to every token kept, cost, and accuracy by type of question."""
    return Encodable(Group(*map(_table, [*figures(model, results), *_types(results)])))


def figures(model: ModelInfo, results: Sequence[Mapping[str, Any]]) -> list[Part]:
    """The tables of accuracy, difference and cost, those that have rows."""
    pairs = [_against(result) for result in results if _is_paired(result)]
    parts = [
        Part("Accuracy", f"{short(model)}, ± one standard error", [_accuracy(result) for result in results]),
        Part("Against full", "points on the same questions, 95% intervals over videos", pairs),
        Part("Cost", f"{short(model)}; FLOPs are the prefill's", [_cost(result) for result in results]),
    ]
    return [part for part in parts if part.rows]


def types_across(results: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Accuracy by type of question where there is room for all types side by side: methods down; none without types."""
    kinds = dict.fromkeys(kind for result in results for kind in result["by_type"])
    rows = [_name(result) | {kind: _cell(result, kind)[1] for kind in kinds} for result in results]
    return [Part("By type", "accuracy by type of question", rows)] if kinds else []


def _table(part: Part) -> RenderableType:
    heading = Text.assemble((part.title, "bold"), "  ", (text.visible(part.note), "dim"))
    return Group(heading, Padding(methods_table(part.rows), (0, 0, 1, 2)))


def _name(result: Mapping[str, Any]) -> dict[str, str]:
    return {"method": result["method"], "budget": text.budget(result["budget"])}


def _share(value: float | None) -> str:
    return text.UNKNOWN if value is None else text.percent(value)


def _accuracy(result: Mapping[str, Any]) -> dict[str, str]:
    stderr = result["stderr"]
    shown = _share(result["accuracy"]) + (f" ± {100 * stderr:.1f}" if stderr is not None else "")
    failed = f", {text.count(result['failed'])} failed" if result["failed"] else ""
    return {**_name(result), "accuracy": shown, "questions": text.count(result["questions"]) + failed}


def _is_paired(result: Mapping[str, Any]) -> bool:
    return result["method"] != "full" and result["against_full"] is not None


def _against(result: Mapping[str, Any]) -> dict[str, str]:
    against = result["against_full"]
    shown = f"{100 * against['difference']:+.1f}"
    if against["low"] is not None:
        shown += f" ({100 * against['low']:+.1f} to {100 * against['high']:+.1f})"
    return {
        **_name(result),
        "kept": _share(against["kept"]),
        "difference": shown,
        "gained": text.count(against["gained"]),
        "lost": text.count(against["lost"]),
    }


def _cost(result: Mapping[str, Any]) -> dict[str, str]:
    tokens, ttft = result["tokens"], result["ttft_ms"]
    flops = {"true FLOPs": result["flops"], "paper FLOPs": result["paper_flops"]}
    return {
        **_name(result),
        "tokens": text.UNKNOWN if tokens is None else f"{tokens:,.1f}",
        **{name: text.UNKNOWN if value is None else text.flop(value) for name, value in flops.items()},
        "TTFT": text.milliseconds(ttft),
    }


def _types(results: Sequence[Mapping[str, Any]]) -> Iterable[Part]:
    """Types down, methods across, a few at a time."""
    kinds = dict.fromkeys(kind for result in results for kind in result["by_type"])
    for start in range(0, len(results) if kinds else 0, _TYPE_COLUMNS):
        shown = results[start : start + _TYPE_COLUMNS]
        rows = [{"type": kind} | dict(_cell(result, kind) for result in shown) for kind in kinds]
        yield Part("By type", "", rows)


def _cell(result: Mapping[str, Any], kind: str) -> tuple[str, str]:
    heading = f"{result['method']} {text.budget(result['budget'])}"
    return heading, _share(result["by_type"].get(kind, {}).get("accuracy"))
