"""How fast a model is, stage by stage: tables for a terminal and for Markdown, one document, rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

# In the order in which they happen; a part is indented below the stage that contains it.
_STAGES = {
    "preprocess": "preprocess",
    "vision": "vision",
    "attention received": "- attention received",
    "projector and pool": "- projector and pool",
    "compress": "compress",
    "prefill": "prefill",
    "merge inside": "- merge inside",
    "sample": "sample",
    "ttft": "TTFT",
    "per token": "per token",
    "step": "- one step",
}
COLUMNS = (
    "model", "dtype", "quantize", "device_name", "frames", "rival", "budget", "visual_tokens", "prompt_tokens", "stage",
    "median_ms", "low_ms", "high_ms", "first_ms", "floor_ms", "tflop_per_s", "tb_per_s", "error",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """All figures of one model."""

    model: ModelInfo
    ceilings: Mapping[str, float]  # flops_per_second, bytes_per_second
    agreement: Mapping[str, Any] | None  # with stock and with plain steps, where they were compared
    rows: Sequence[Mapping[str, Any]]  # one a clip length and rival


@dataclass(frozen=True, slots=True)
class _Part:
    """A heading, what to know of it, and a table."""

    title: str
    note: str
    rows: Sequence[Mapping[str, str]]


def bench_document(
    measured: Sequence[Measured], versions: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the one document of all models."""
    models = [{"model": asdict(one.model), "ceilings": one.ceilings, "agreement": one.agreement} for one in measured]
    results = [row for one in measured for row in bench_rows(one)]
    return {
        "schema_version": SCHEMA_VERSION,
        **clean({"versions": versions, "settings": settings, "models": models, "results": results}),
    }


def bench_rows(measured: Measured) -> list[dict[str, Any]]:
    """Return a row for each clip length and rival, which names its model."""
    info = measured.model
    numbers = {"dtype": info.dtype, "quantize": info.quantize}
    named = {"model": info.id, "weights": info.kind, **numbers, "device_name": info.device_name}
    return [clean(named | dict(row)) for row in measured.rows]


def bench_cells(measured: Measured) -> Iterator[dict[str, Any]]:
    """Yield a flat row for each stage, with a value or None for each of `COLUMNS`."""
    for row in bench_rows(measured):
        fault = row.get("error", {}).get("message")
        for stage, figures in row.get("stages", {"": {}}).items():
            values = row | figures | {"stage": stage, "error": fault}
            yield {name: values.get(name) for name in COLUMNS}


def bench_tables(measured: Measured) -> RenderableType:
    """Return the tables of one model."""
    shown = []
    for part in _parts(measured):
        heading = Text.assemble((part.title, "bold"), "  ", (text.visible(part.note), "dim"))
        table = Padding(methods_table(part.rows), (0, 0, 0, 2)) if part.rows else Group()
        shown.append(Group(heading, table, Text()))
    return Encodable(Group(*shown))


def bench_markdown(measured: Measured) -> str:
    """Return the same tables as Markdown."""
    return "\n".join(line for part in _parts(measured) for line in _markdown(part))


def _markdown(part: _Part) -> Iterator[str]:
    yield f"### {part.title}\n"
    yield f"{part.note}\n"
    if part.rows:
        lines = [list(part.rows[0]), ["---"] * len(part.rows[0]), *(list(row.values()) for row in part.rows)]
        yield "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def _parts(measured: Measured) -> Iterator[_Part]:
    info, ceilings = measured.model, measured.ceilings
    best = f"{_rate(ceilings['flops_per_second'])} TFLOP/s, {_rate(ceilings['bytes_per_second'])} TB/s"
    yield _Part(short(info), f"{info.number_format} on {info.device_name}, which reaches {best}", [])
    for name, compared in (measured.agreement or {}).items():
        yield _Part(name, _agreement(compared), [])
    for frames in dict.fromkeys(row["frames"] for row in measured.rows):
        rows = [row for row in measured.rows if row["frames"] == frames]
        rivals = list(dict.fromkeys(name for row in rows for name in row["faster_than"]))
        note = short(info) + (f"; times faster than {' and '.join(rivals)}: TTFT, per token" if rivals else "")
        yield _Part(text.counted(frames, "frame"), note, [_summary(row, rivals) for row in rows])
        for row in rows:
            if "stages" in row:
                yield _Part(_title(row), _tokens(row), list(_stages(row["stages"])))


def _title(row: Mapping[str, Any]) -> str:
    kept = "" if row["budget"] == 100 else f" at {text.budget(row['budget'])}"
    return f"{row['rival']}{kept}"


def _tokens(row: Mapping[str, Any]) -> str:
    visual, original = text.count(row["visual_tokens"]), text.count(row["original_tokens"])
    return f"{visual} of {original} visual tokens, {text.count(row['prompt_tokens'])} in the prompt"


def _summary(row: Mapping[str, Any], rivals: Sequence[str]) -> dict[str, str]:
    found = {"": _title(row)}
    if "error" in row:
        return found | {"TTFT": row["error"]["message"]} | dict.fromkeys(("per token", "memory", *rivals), "")
    peak, stages = row["memory"]["beyond_weights_bytes"], row["stages"]
    return found | {
        "TTFT": text.milliseconds(stages["ttft"]["median_ms"]),
        "per token": text.milliseconds(stages["per token"]["median_ms"]),
        "memory": text.size(peak) if peak else "",
        **{name: _gain(row["faster_than"].get(name)) for name in rivals},
    }


def _gain(gain: Mapping[str, float] | None) -> str:
    return f"{gain['ttft']:.2f}x, {gain['per token']:.2f}x" if gain else ""


def _stages(stages: Mapping[str, Mapping[str, float | None]]) -> Iterator[dict[str, str]]:
    for name, label in _STAGES.items():
        if name in stages:
            value = stages[name]
            yield {
                "stage, ms": label,
                "median": _figure(value["median_ms"]),
                "spread": f"{_figure(value['low_ms'])}-{_figure(value['high_ms'])}",
                "first call": _figure(value["first_ms"]),
                "floor": _figure(value["floor_ms"]),
                "TFLOP/s": _figure(value["tflop_per_s"]),
                "TB/s": _figure(value["tb_per_s"]),
            }


def _figure(value: float | None) -> str:
    """Three figures, as a table has room for: 0.123, 12.3, 1,234."""
    if value is None:
        return ""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2 if value >= 0.9995 else 3
    return f"{value:,.{digits}f}"


def _rate(value: float) -> str:
    return _figure(value / 1e12)


def _agreement(compared: Mapping[str, Any]) -> str:
    if "error" in compared:
        return str(compared["error"]["message"])
    said = f"logits differ by {compared['relative_error']:.1e} over {compared['steps']} steps"
    if "bound" in compared:
        said += f" (at most {compared['bound']:.1e}; {'passed' if compared['passed'] else 'FAILED'})"
    wrong = compared["control_shifted_positions"]
    return f"{said}; with wrong positions by {wrong:.1e}"
