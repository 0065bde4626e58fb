"""Write the figures of docs/methods.md from what `holitom eval` and `holitom bench` have written: tables and plots.

    python -m tests.methods_table ANSWERS.jsonl... --bench BENCH.jsonl...

A maintainer's script; it asks and times nothing. Answers come from `holitom eval --set shapes --output ANSWERS.jsonl`,
of one run or of several that had other methods each (all with the same checkpoint, number format and settings; what
all of them have, as full, is counted once). Times come from `holitom bench --output jsonl`. Without answers, or
without times, the page says that there are none yet.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from holitom_cli import methods
from holitom_cli.batch.manifest import rows_in
from holitom_cli.errors import HolitomError
from holitom_cli.methods.tools.variants import variants
from holitom_cli.quality.statistics import Judged, against, summary
from holitom_cli.report import text
from holitom_cli.report.plot import Axis, Line, Point, plot
from tests.quality_curve import accuracy, difference, put_figures, table

BEGIN = "<!-- figures: python -m tests.methods_table -->\n"
BUDGETS = (25, 20, 15, 10, 5)  # percent of the visual tokens
MAIN = 15  # of them, what methods are sorted by and costs are shown at
FLOPS_PLOT, TTFT_PLOT = "methods-flops.svg", "methods-ttft.svg"
RIVAL = "holitom"  # that all others are paired with
NONE, CANNOT, NO_FIGURES = "–", "cannot", "no figures yet"
LEGEND = (
    f"{NONE}: not measured. *{CANNOT}*: the method cannot keep so few in a model of so many layers. Nothing: the "
    "method takes no budget."
)

CAPTION = (
    "\nOne standard error is what the band of `full` shows; a line goes through the budgets of a method. Not drawn is "
    "what costs more than half of `full`, as what prunes the cache alone."
)

Where = tuple[str, float | str]  # a method as it was asked for, and its budget
Answered = dict[tuple[str, str], Judged]  # by clip and question


@dataclass(slots=True)
class Answers:
    """What evaluations found."""

    checkpoint: str = ""
    depth: int | None = None  # layers of its language model
    judged: dict[Where, Answered] = field(default_factory=dict)
    failed: int = 0  # questions without an answer
    seed: int = 0  # of the bootstrap

    @property
    def full(self) -> Answered:
        """What every token kept answers."""
        return self.judged.get(("full", 100), {})


@dataclass(slots=True)
class Times:
    """What benchmarks found."""

    rows: dict[Where, Mapping[str, Any]] = field(default_factory=dict)
    depth: int | None = None

    @property
    def any(self) -> Mapping[str, Any]:
        """A row, for what all of them have in common."""
        return next(iter(self.rows.values()))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read everything, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", nargs="*", type=Path, help="files of holitom eval --output")
    timed = "files of holitom bench --output jsonl; of two times for the same, the later counts"
    parser.add_argument("--bench", nargs="+", action="extend", default=[], type=Path, metavar="FILE", help=timed)
    parser.add_argument("--checkpoint", help="what the page calls the checkpoint that answered; else as it was named")
    parser.add_argument("--depth", type=int, help="layers of its language model; else read from the checkpoint")
    parser.add_argument("--device", help="what the page calls the device that was timed; else as it calls itself")
    parser.add_argument("--note", action="append", default=[], help="a sentence about the runs, below the figures")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--docs", type=Path, default=Path(__file__).parent.parent / "docs")
    options = parser.parse_intermixed_args(arguments)
    try:
        answers = read_answers(options.answers, options.seed)
        times = read_times(options.bench)
        answers.depth = options.depth or depth_of(answers.checkpoint)
        times.depth = depth_of(str(times.any["model"])) if times.rows else None
    except HolitomError as error:
        raise SystemExit(f"{error.message} {error.hint}") from error
    write(options.docs, answers, times, options)


# --- reading -------------------------------------------------------------------------------------


def read_answers(files: Iterable[Path], seed: int) -> Answers:
    """Rows of `holitom eval`, each question of a method and budget once.

    Raises:
        SystemExit: there is no such file, it holds something else, or the rows are of different runs.
    """
    found, keys = Answers(seed=seed), dict[tuple[Where, tuple[str, str]], str]()
    for path in files:
        rows = _eval_rows(path)
        found.failed += sum("error" in row for row in rows)
        for row in rows:
            if "error" in row:
                continue
            where, question = (row["method"], row["budget"]), (row["video"], row["question"])
            if found.checkpoint not in ("", row["checkpoint"]):
                raise SystemExit(f"{path} is of the checkpoint {row['checkpoint']}, others of {found.checkpoint}.")
            if keys.setdefault((where, question), row["key"]) != row["key"]:
                raise SystemExit(
                    f"{path}: {where[0]} at {where[1]} was asked {question[1]!r} in another run as well, with other "
                    "weights, in another number format or with other settings. Leave one of the two out."
                )
            found.checkpoint = row["checkpoint"]
            figures = (row["tokens"], row["true_flops"], row["paper_flops"], row["ttft_ms"])
            judged = Judged(row["video"], row["type"], row["correct"], *figures)
            found.judged.setdefault(where, {}).setdefault(question, judged)
    return found


def _eval_rows(path: Path) -> list[dict[str, Any]]:
    """Answers and failures in a file."""
    if not path.is_file():
        raise SystemExit(f"There is no file {path}.")
    try:
        rows = [row for row in rows_in(path) if "correct" in row or "error" in row]
    except HolitomError:
        rows = []
    if not rows:
        raise SystemExit(f"{path} holds no rows of holitom eval --output.")
    return rows


def read_times(files: Iterable[Path]) -> Times:
    """Rows of `holitom bench`; what else a log holds is passed over.

    Raises:
        SystemExit: there is no such file, nothing in it, or the rows cannot stand beside each other.
    """
    found = Times()
    for path in files:
        if not path.is_file():
            raise SystemExit(f"There is no file {path}.")
        rows = list(filter(None, map(_bench_row, path.read_text(encoding="utf-8").splitlines())))
        if not rows:
            raise SystemExit(f"{path} holds no rows of holitom bench --output jsonl.")
        for row in rows:
            found.rows[row["rival"], row["budget"]] = row
            for name in ("model", "dtype", "quantize", "device_name", "frames"):
                if found.any[name] != row[name]:
                    raise SystemExit(f"{path}: {name} is {row[name]}, and {found.any[name]} before: one table has one.")
    return found


def _bench_row(line: str) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "rival" in row else None


def depth_of(model: str) -> int | None:
    """Layers of a checkpoint's language model, where its configuration is at hand."""
    from holitom_cli.model import shapes
    from holitom_cli.model.hub import DEMO, locate
    from holitom_cli.model.loading import read_checkpoint

    if model.startswith(shapes.PREFIX):
        return int(shapes.published_config(model.removeprefix(shapes.PREFIX)).text_config.num_hidden_layers)
    if model == DEMO or (model and Path(model).is_dir()):
        return read_checkpoint(locate(model)).depth
    return None


# --- figures ------------------------------------------------------------------------------------


@cache
def takes_budget(label: str) -> bool:
    """Whether a method as it was asked for can be had at several budgets."""
    try:
        return len(variants(label, "25,15", 0)) > 1
    except HolitomError:  # one that there is no longer: its figures stand for themselves
        return True


@cache
def cannot_keep(label: str, budget: float, depth: int | None) -> bool:
    """Whether a method refuses a budget, percent of the visual tokens, in a language model of `depth` layers."""
    if depth is None or not takes_budget(label):
        return False
    try:
        for variant in variants(label, f"{budget:g}", 0):
            variant.method.reductions(depth)
    except HolitomError:
        return True
    return False


def results(answers: Answers) -> dict[Where, dict[str, Any]]:
    """The package's own summary of each method and budget, and how it is paired with RIVAL at the same budget."""
    found: dict[Where, dict[str, Any]] = {}
    for (label, budget), judged in answers.judged.items():
        one = summary(judged, answers.full, answers.seed)
        rival = answers.judged.get((RIVAL, budget), {}) if label != RIVAL else {}
        found[label, budget] = one | {"against_rival": against(judged, rival, answers.seed)}
    return found


def ranked(found: Mapping[Where, Mapping[str, Any]], times: Times) -> list[str]:
    """Everything registered or measured: full, then by accuracy at MAIN, then what has none there, then the rest."""

    def rank(label: str) -> tuple[int, float, str]:
        reached = {budget: one["accuracy"] for (name, budget), one in found.items() if name == label}
        if label == "full":
            return 0, 0.0, label
        if MAIN in reached:
            return 1, -reached[MAIN], label
        return (2, -max(reached.values()), label) if reached else (3, 0.0, label)

    # What says nothing of where it comes from is a clone's own: it is shown where it was measured.
    known = [name for name in methods.available() if methods.find(name).status != methods.Method.status]
    return sorted({*known, *(label for label, _ in (*found, *times.rows))}, key=rank)


# --- writing ------------------------------------------------------------------------------------


def write(docs: Path, answers: Answers, times: Times, options: argparse.Namespace) -> None:
    """Put tables and plots into the documents."""
    found = results(answers)
    labels = ranked(found, times)
    named = options.checkpoint or Path(answers.checkpoint).name
    device = options.device or (times.any["device_name"] if times.rows else "")
    pictures = dict(drawn(found, times, labels, named, device))
    shown = [f"![{_alt(name)}]({name})" for name in pictures]
    budgets = [f"{budget}%" for budget in BUDGETS]
    parts = [
        _origin(answers, found, named),
        *([" ".join(options.note)] if options.note else []),
        "\n".join([*shown, *([CAPTION] if shown else [])]),
        table(["accuracy, %", "100%", *budgets, f"against `{RIVAL}` at {MAIN}%, points"],
              (_accuracies(label, found, answers.depth) for label in labels)),
        LEGEND,
        _timed(times, device),
        table([f"cost at {MAIN}%", "tokens", "prefill", "compress", "TTFT", "against full", "memory", "cache"],
              (_costs(label, times) for label in labels)),
        *_everything(found, times, labels, answers.depth),
    ]  # fmt: skip
    put_figures(docs / "methods.md", BEGIN, [part for part in parts if part])
    for name in (FLOPS_PLOT, TTFT_PLOT):
        (docs / name).unlink(missing_ok=True)
        if name in pictures:
            (docs / name).write_text(pictures[name], encoding="utf-8")
    print(f"{docs / 'methods.md'}: {len(found)} methods at budgets, {len(times.rows)} times.", file=sys.stderr)


def _origin(answers: Answers, found: Mapping[Where, Any], named: str) -> str:
    if not found:
        return "No answers yet."
    asked = {question for judged in answers.judged.values() for question in judged}
    clips = {clip for clip, _ in asked}
    sets = ", ".join(sorted({clip.rpartition("-")[0] for clip in clips}))  # shapes-0: the set and its seed
    layers = f" ({answers.depth} layers)" if answers.depth else ""
    failed = f" {text.counted(answers.failed, 'question')} failed." if answers.failed else ""
    return (
        f"Checkpoint: {named}{layers}. {text.counted(len(asked), 'question')} about {text.counted(len(clips), 'clip')} "
        f"of {sets}; ± is one standard error, the share of `full`'s accuracy follows in brackets, those of differences "
        f"are 95% intervals over clips.{failed}"
    )


def _timed(times: Times, device: str) -> str:
    if not times.rows:
        return "No times yet."
    one = times.any
    return (
        f"{one['model']} (random weights) in {one['dtype']} on {device}, {one['frames']} frames: medians; tokens that "
        f"enter the language model, FLOPs of its prefill, TTFT from processed frames to the first token, the peak of "
        f"memory beyond weights and pixels, and what of it is the cache at the end of the answer."
    )


def _accuracies(label: str, found: Mapping[Where, Mapping[str, Any]], depth: int | None) -> list[str]:
    """A row: what a method reaches at each budget."""
    cells = [
        _reached(label, found[label, budget], found) if (label, budget) in found else _missing(label, budget, depth)
        for budget in (100, *BUDGETS)
    ]
    if NONE in cells and not any(name == label for name, _ in found):
        cells[0] = NO_FIGURES
    change = found.get((label, MAIN), {}).get("against_rival")
    return [f"`{label}`", *cells, difference(change) if change else ""]


def _missing(label: str, budget: float, depth: int | None) -> str:
    if takes_budget(label) == (budget == 100):
        return ""
    return f"*{CANNOT}*" if cannot_keep(label, budget, depth) else NONE


def _reached(label: str, one: Mapping[str, Any], found: Mapping[Where, Mapping[str, Any]]) -> str:
    """Accuracy, its error and what it is of full's; how many questions it is of, where others had more."""
    shown = accuracy(one["accuracy"], one["stderr"]).replace("%", "")
    change, most = one["against_full"], max(other["questions"] for other in found.values())
    if label != "full" and change and change["kept"] is not None:
        shown += f" ({change['kept']:.0%})"
    return shown if one["questions"] == most else f"{shown} of {text.count(one['questions'])}"


def _costs(label: str, times: Times) -> list[str]:
    budget = MAIN if takes_budget(label) else 100
    row = times.rows.get((label, budget))
    if not row or "error" in row:
        refused = f"*{CANNOT}*" if cannot_keep(label, budget, times.depth) else "failed" if row else NONE
        return [f"`{label}`", refused, *[NONE] * 6]
    compress = row["stages"].get("compress", {}).get("median_ms")
    full = times.rows.get(("full", 100), {}).get("stages")
    tokens, flops, ttft, memory = _measured(row)
    return [
        f"`{label}`",
        tokens,
        flops,
        NONE if compress is None else text.milliseconds(compress),
        ttft,
        text.times(full["ttft"]["median_ms"], _ttft(row)) if full and label != "full" else "",
        memory,
        text.size(row["memory"]["cache_bytes"]),
    ]


def _measured(row: Mapping[str, Any]) -> list[str]:
    """Tokens, FLOPs of the prefill, TTFT and memory of a row of a benchmark."""
    flops, peak = _prefill_flops(row), row["memory"]["beyond_weights_bytes"]
    return [
        text.count(row["visual_tokens"]),
        text.flop(flops) if flops else NONE,
        text.milliseconds(_ttft(row)),
        text.size(peak) if peak else NONE,
    ]


def _prefill_flops(row: Mapping[str, Any]) -> float | None:
    """What the benchmark divided by the time."""
    stage = row["stages"]["prefill"]
    return 1e9 * stage["tflop_per_s"] * stage["median_ms"] if stage["tflop_per_s"] else None


def _ttft(row: Mapping[str, Any]) -> float:
    return float(row["stages"]["ttft"]["median_ms"])


def _everything(
    found: Mapping[Where, Mapping[str, Any]], times: Times, labels: Sequence[str], depth: int | None
) -> Iterator[str]:
    """One table of all methods at all budgets, folded away."""
    if not found and not times.rows:
        return
    heads = ["every figure", "budget", "questions", "accuracy", "of full", "difference, points", "gained", "lost",
             "tokens", "paper FLOPs", "true FLOPs", "tokens, timed", "prefill, timed", "TTFT", "memory"]  # fmt: skip
    yield "<details>\n<summary>Every method at every budget</summary>"
    yield table(heads, (_row(label, budget, found, times, depth) for label, budget in _wheres(found, times, labels)))
    yield (
        "Tokens and FLOPs are means of the checkpoint that answered, paper FLOPs its language model's by the paper's "
        "formula; true FLOPs count its tower as well. The last four columns are of the benchmark."
    )
    yield "</details>"


def _wheres(found: Mapping[Where, Any], times: Times, labels: Sequence[str]) -> Iterator[Where]:
    """Methods in their order, at all budgets that something is known of."""
    for label in labels:
        measured = {budget for name, budget in (*found, *times.rows) if name == label}
        yield from ((label, budget) for budget in sorted(measured, key=_descending))


def _descending(budget: float | str) -> tuple[bool, float]:
    """Shares first, then numbers of tokens."""
    return (True, -int(budget[:-1])) if isinstance(budget, str) else (False, -budget)


def _row(
    label: str, budget: float | str, found: Mapping[Where, Mapping[str, Any]], times: Times, depth: int | None
) -> list[str]:
    one, timed = found.get((label, budget)), times.rows.get((label, budget))
    share = not isinstance(budget, str)
    refused, refused_timed = (
        f"*{CANNOT}*" if share and cannot_keep(label, budget, layers) else NONE for layers in (depth, times.depth)
    )
    answered = [NONE, refused, *[NONE] * 7] if one is None else _answered(label, one)
    costs = _measured(timed) if timed and "stages" in timed else [refused_timed, *[NONE] * 3]
    return [f"`{label}`", text.budget(budget), *answered, *costs]


def _answered(label: str, one: Mapping[str, Any]) -> list[str]:
    change = one["against_full"] if label != "full" else None
    paired = [
        text.percent(change["kept"]) if change["kept"] is not None else NONE,
        difference(change), str(change["gained"]), str(change["lost"]),
    ] if change else [""] * 4  # fmt: skip
    costs = [f"{one['tokens']:,.0f}", text.flop(one["paper_flops"]), text.flop(one["flops"])]
    return [text.count(one["questions"]), accuracy(one["accuracy"], one["stderr"]), *paired, *costs]


# --- plots --------------------------------------------------------------------------------------


def drawn(
    found: Mapping[Where, Mapping[str, Any]], times: Times, labels: Sequence[str], named: str, device: str
) -> Iterator[tuple[str, str]]:
    """Name and SVG of each plot that there are figures for: accuracy against FLOPs, and against TTFT."""
    ttft = {where: _ttft(row) for where, row in times.rows.items() if "stages" in row and where in found}
    costs = {FLOPS_PLOT: {where: one["paper_flops"] / 1e9 for where, one in found.items()}, TTFT_PLOT: ttft}
    model = times.any["model"] if ttft else ""
    names = {FLOPS_PLOT: "GFLOP of the prefill, paper's formula", TTFT_PLOT: f"TTFT in ms, {model}, {device}"}
    title, up = f"Accuracy of {named} on generated clips", Axis("accuracy", lambda share: f"{share:.0%}")
    shown = {name: _worth_drawing(known) for name, known in costs.items()}
    for name, points in shown.items():
        right = Axis(names[name], lambda cost: f"{cost:.3g}")
        lines = [
            Line(label, [_point(where, found[where], points[where]) for where in points if where[0] == label])
            for label in _one_colour(labels, shown)
        ]
        level = ("full", 100)
        if lines := [line for line in lines if line.points]:
            full = _point(level, found[level], costs[name].get(level, 0.0)) if level in found else None
            yield name, plot(title, right, up, lines, full, alone=True)


def _worth_drawing(costs: Mapping[Where, float]) -> dict[Where, float]:
    """All but full and what costs more than half of it: that would press the others into a corner."""
    most = costs.get(("full", 100), float("inf")) / 2
    return {where: cost for where, cost in costs.items() if where[0] != "full" and cost <= most}


def _one_colour(labels: Iterable[str], shown: Mapping[str, Mapping[Where, float]]) -> list[str]:
    """Methods of all plots first, so that each has its colour and its marker in all of them."""
    drawn_in = [{label for label, _ in points} for points in shown.values() if points]
    return sorted(labels, key=lambda label: not all(label in methods for methods in drawn_in))


def _point(where: Where, one: Mapping[str, Any], cost: float) -> Point:
    """Without its error, for which there is no room beside so many, but for the band of full."""
    error = (one["stderr"] or 0.0) if where[0] == "full" else 0.0
    words = f"{where[0]} at {text.budget(where[1])}: {accuracy(one['accuracy'], one['stderr'])}"
    return Point(cost, one["accuracy"], error, words)


def _alt(name: str) -> str:
    return "Accuracy against FLOPs" if name == FLOPS_PLOT else "Accuracy against time to first token"


if __name__ == "__main__":
    main()
