"""Measure what compression costs the demo model in accuracy, and write the figures and the plot of docs/quality.md.

    python -m tests.quality_curve OUT

A maintainer's script. The answers lie in OUT as rows, and a run that finds some goes on with them. The same questions
are asked about the same clips as files. Rows of another run, on a GPU, say, are compared where they are named:
`--also "GPU, bfloat16=gpu.jsonl"`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from holitom_cli.quality.clips import write_clip
from holitom_cli.quality.shapes import ShapesClip, shapes
from holitom_cli.quality.statistics import Judged, against, mean, standard_error
from holitom_cli.report.plot import Axis, Line, Point, plot
from holitom_cli.report.text import flop, percent

# Each part is asked by a process of its own: so small a model gains less from two threads than from two processes.
PARTS = (("full", "uniform"), ("holitom", "holitom:inner_layer=off", "random"))
BUDGETS = "25,20,15,10,5"
AS_FILES = ("--methods", "full,holitom", "--budgets", "15,10")
BEGIN, END = "<!-- figures: python -m tests.quality_curve -->\n", "<!-- end of figures -->\n"
PLOT = "quality-curve.svg"
NAMES = {"holitom": "HoliTom", "holitom:inner_layer=off": "without merge inside", "uniform": "uniform"}
_LONGEST = 8  # tokens of an answer: a trained model ends it after two

Result = Mapping[str, Any]
Answered = dict[tuple[str, str, str, float], Judged]  # by clip, question, method and budget


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is not measured yet, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="directory for rows and clips")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the set")
    parser.add_argument("--limit", type=int, help="first questions only")
    parser.add_argument("--also", action="append", default=[], metavar="NAME=ROWS", help="another run to compare")
    parser.add_argument("--docs", type=Path, default=Path(__file__).parent.parent / "docs")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    common = ["--model", options.model, "--device", options.device, "--seed", str(options.seed)]
    limit = ["--limit", str(options.limit)] if options.limit else []
    tensors, files = options.out / "tensors.jsonl", options.out / "files.jsonl"
    wanted = ["--set", "shapes", "--budgets", BUDGETS, *limit, *common]
    with beside(wanted, tensors) as parts:
        questions = write_files(options.out / "clips", options.seed, options.limit)
        evaluate([str(questions), "--scoring", "text", *AS_FILES, *common], files)
    document = joined(wanted, parts, tensors)
    runs = {"files": files} | {name: Path(rows) for name, _, rows in (also.rpartition("=") for also in options.also)}
    write(options.docs, document, compared(read(tensors), runs, options.seed))


@contextmanager
def beside(arguments: Sequence[str], rows: Path) -> Iterator[list[Path]]:
    """Ask each part's methods in a process of its own while the block runs, and wait for all: files of their rows."""
    files = [rows.with_suffix(f".{number}.jsonl") for number in range(len(PARTS))]
    with ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(_command([*arguments, "--methods", ",".join(part)], file), stdout=subprocess.DEVNULL)
            )
            for part, file in zip(PARTS, files, strict=True)
        ]
        yield files
    if any(process.returncode for process in running):
        raise SystemExit("A part has failed; run it again to go on.")


def joined(arguments: Sequence[str], parts: Sequence[Path], rows: Path) -> dict[str, Any]:
    """Put the rows of all parts together: what one run of all methods prints, which finds all of it answered."""
    rows.write_bytes(b"".join(part.read_bytes() for part in parts))
    every = [method for part in PARTS for method in part]
    return evaluate([*arguments, "--methods", ",".join(every)], rows)


def evaluate(arguments: Sequence[str], rows: Path) -> dict[str, Any]:
    """Run `holitom eval`: what it prints."""
    done = subprocess.run(_command(arguments, rows), stdout=subprocess.PIPE, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _command(arguments: Sequence[str], rows: Path) -> list[str]:
    fixed = ["--max-new-tokens", str(_LONGEST), "--output", str(rows), "--json"]
    return [sys.executable, "-m", "holitom_cli", "eval", *arguments, *fixed]


def write_files(directory: Path, seed: int, limit: int | None) -> Path:
    """The set as videos with a questions file; videos that are there already are kept."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for item in shapes(seed, limit):
        video = directory / f"{item.clip.name}.mp4"
        if isinstance(item.clip, ShapesClip) and not video.exists():
            half = video.with_suffix(".part")
            write_clip(half, item.clip.world)
            half.replace(video)
        row = {"video": video.name, "question": item.question, "answer": item.answer, "type": item.kind}
        lines.append(json.dumps(row | {"choices": item.choices}) + "\n")
    (directory / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
    return directory / "questions.jsonl"


def read(path: Path) -> Answered:
    """Rows of a run; a file's clip has the name of the clip that was painted."""
    found: Answered = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "answer" not in row:
            continue
        video = row["video"].removesuffix(".mp4")
        figures = (row["tokens"], row["true_flops"], row["paper_flops"], row["ttft_ms"])
        key = (video, row["question"], row["method"], row["budget"])
        found[key] = Judged(video, row["type"], row["correct"], *figures)
    return found


def compared(ours: Answered, runs: Mapping[str, Path], seed: int) -> Iterator[list[str]]:
    """The other runs against ours, method by method, over the questions that both answered: cells of a table."""
    for name, path in runs.items():
        theirs = read(path)
        for method, budget in dict.fromkeys(key[2:] for key in theirs):
            own = {key: judged for key, judged in theirs.items() if key[2:] == (method, budget)}
            change = against(own, ours, seed)
            if change is None:
                continue
            both = [ours[key].correct for key in own if key in ours]
            reached, stderr = mean(both), standard_error(both)
            there = mean([judged.correct for key, judged in own.items() if key in ours])
            yield [
                name, f"`{method}`", f"{budget:g}%", f"{change['questions']:,}", accuracy(reached, stderr),
                accuracy(there, None), difference(change), str(change["gained"]), str(change["lost"]),
            ]  # fmt: skip


def write(docs: Path, document: Mapping[str, Any], comparisons: Iterator[list[str]]) -> None:
    """Put tables and plot into the documents."""
    results: list[Result] = document["results"]
    (docs / PLOT).write_text(picture(document), encoding="utf-8")
    heads = ["run", "method", "budget", "questions", "painted", "there", "difference, points", "gained", "lost"]
    parts = [
        origin(document),
        f"![Accuracy against the share of visual tokens kept]({PLOT})",
        table(["method", "budget", "tokens", "accuracy", "of full", "difference, points", "gained", "lost",
               "paper FLOPs", "true FLOPs"], map(_cells, results)),
        table(["type", "questions", *map(_heading, _some(results))], _types(results)),
        table(heads, comparisons),
    ]  # fmt: skip
    put_figures(docs / "quality.md", BEGIN, parts)


def put_figures(page: Path, begin: str, parts: Sequence[str]) -> None:
    """Put paragraphs between the mark `begin` and END of a page, instead of what is there."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no place for figures: {begin.strip()} {END.strip()}")
    page.write_text(before + begin + "\n" + "\n\n".join(parts) + "\n\n" + END + after, encoding="utf-8")


def origin(document: Mapping[str, Any]) -> str:
    """Which checkpoint, which questions, where."""
    model, asked, versions = document["model"], document["settings"], document["versions"]
    return (
        f"Checkpoint: {model['id']} ({model['parameters']:,} parameters), {model['dtype']} on {model['device_name']}, "
        f"holitom_cli {versions['holitom_cli']}, torch {versions['torch']}, transformers {versions['transformers']}. "
        f"{asked['questions']:,} questions about {asked['videos']:,} clips, set {asked['set']}, seed {asked['seed']}; "
        f"± is one standard error, in brackets are 95% intervals over clips."
    )


def picture(document: Mapping[str, Any]) -> str:
    """The plot of all methods that have budgets."""
    results = document["results"]
    by_method: dict[str, list[Point]] = {}
    for result in results:
        budget = 0.0 if result["method"] == "full" else result["budget"]
        point = Point(budget, result["accuracy"], result["stderr"] or 0.0)
        by_method.setdefault(result["method"], []).append(point)
    (full,) = by_method.pop("full")
    lines = [Line(NAMES.get(method, method), points) for method, points in by_method.items()]
    budgets = sorted({point.x for line in lines for point in line.points})
    right = Axis("visual tokens that enter the language model", lambda budget: f"{budget:g}%", budgets)
    title = f"Accuracy of the checkpoint {document['model']['id']} on generated clips"
    return plot(title, right, Axis("accuracy", lambda share: f"{share:.0%}"), lines, full, alone=True)


def table(heads: Sequence[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ([*heads], ["---"] * len(heads), *rows))


def _cells(result: Result) -> list[str]:
    change = result["against_full"]
    paired = [percent(change["kept"]) if change["kept"] is not None else "", difference(change)]
    flips = [str(change["gained"]), str(change["lost"])]
    return [
        f"`{result['method']}`", f"{result['budget']:g}%", f"{result['tokens']:,.0f}",
        accuracy(result["accuracy"], result["stderr"]), *([""] * 4 if result["method"] == "full" else paired + flips),
        flop(result["paper_flops"]), flop(result["flops"]),
    ]  # fmt: skip


def accuracy(share: float | None, stderr: float | None) -> str:
    """A share of 1 in percent, and its standard error in points."""
    shown = "" if share is None else f"{100 * share:.1f}%"
    return shown if stderr is None else f"{shown} ± {100 * stderr:.1f}"


def difference(change: Mapping[str, Any]) -> str:
    """Points between two methods, as `statistics.against` compares them, and their interval."""
    shown = f"{100 * change['difference']:+.1f}"
    return shown if change["low"] is None else f"{shown} ({100 * change['low']:+.1f} to {100 * change['high']:+.1f})"


def _some(results: Sequence[Result]) -> list[Result]:
    """What the types are shown for: everything kept, the method at the paper's lowest budgets, and the control."""
    wanted = {("full", 100), ("holitom", 15), ("holitom", 10), ("random", 15), ("random", 10)}
    return [result for result in results if (result["method"], result["budget"]) in wanted]


def _heading(result: Result) -> str:
    return f"`{result['method']}` {result['budget']:g}%"


def _types(results: Sequence[Result]) -> Iterator[list[str]]:
    shown = _some(results)
    for kind, figures in sorted(shown[0]["by_type"].items()):
        yield [kind, str(figures["questions"]), *(accuracy(one["by_type"][kind]["accuracy"], None) for one in shown)]


if __name__ == "__main__":
    main()
