"""Ask what beats HoliTom: variants of methods at equal budgets, paired by question, on sets of generated clips.

    python -m tests.beyond --model demo --seeds 101,102 --limit 600 --budgets 15,10 runs holitom:tau=0.95

A maintainer's script: it prints the tables of docs/methods.md, "Beyond HoliTom". Each clip is painted and encoded once
for all variants. Seed 0 is the test set: look at it with what was chosen on others. Differences are against `holitom`
as its paper sets it, or what --against names, at the same budget; their standard errors are drawn over clips.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from holitom_cli import load_model
from holitom_cli.errors import HolitomError
from holitom_cli.methods.tools.variants import Variant, variants
from holitom_cli.quality import evaluate
from holitom_cli.quality.items import Item
from holitom_cli.quality.shapes import shapes
from holitom_cli.quality.statistics import DRAWS, mean, standard_error
from tests.quality_curve import accuracy

BASE = "holitom"
_LONGEST = 8  # tokens of an answer: a trained model ends it after two


class Asked(NamedTuple):
    """What came of one question."""

    correct: bool
    tokens: int  # visual ones that entered the language model
    flops: float  # the paper's count


Answers = Mapping[Item, Asked]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", help="as of holitom eval: name:setting=value, outer+inner")
    parser.add_argument("--against", default=BASE, help="what differences are against, named as the methods are")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", default="101", help="of the sets, separated by commas")
    parser.add_argument("--limit", type=int, help="first questions of each set only")
    parser.add_argument("--budgets", default="15,10")
    parser.add_argument("--without", default="", help="kinds of questions to leave out, separated by commas")
    options = parser.parse_args(arguments)
    rivals = variants(",".join([options.against, *options.methods]), options.budgets, 0)
    without = options.without.split(",")
    items = [
        item
        for seed in options.seeds.split(",")
        for item in shapes(int(seed), options.limit)
        if item.kind not in without
    ]
    answers = ask(options.model, options.device, items, rivals)
    print("\n".join(table(rivals, answers, options.against)))


def ask(model: str, device: str, items: Sequence[Item], rivals: Sequence[Variant]) -> dict[Variant, dict[Item, Asked]]:
    """Put all questions with all variants."""
    plan = evaluate.Plan(rivals, "text", 32, _LONGEST)
    found: dict[Variant, dict[Item, Asked]] = defaultdict(dict)
    for _, outcomes in evaluate.run(load_model(model, device=device), items, plan, {}):
        for outcome in outcomes:
            if isinstance(outcome.row, HolitomError):
                raise outcome.row
            row = outcome.row
            found[outcome.variant][outcome.item] = Asked(row["correct"], row["tokens"], row["paper_flops"])
    return found


def table(rivals: Sequence[Variant], answers: Mapping[Variant, Answers], label: str) -> Iterator[str]:
    """Rows of Markdown: accuracy, and the difference from the variant of that label at the same budget."""
    base = {variant.budget: answers[variant] for variant in rivals if variant.label == label}
    yield "| method | budget | tokens | paper FLOPs | accuracy | difference, points |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for variant in rivals:
        mine = answers[variant]
        tokens, flops = (np.mean([one[field] for one in mine.values()]) for field in (1, 2))
        correct = [one.correct for one in mine.values()]
        against = base.get(variant.budget)
        apart = difference(mine, against) if against and variant.label != label else ""
        figures = f"{tokens:,.0f} | {flops / 1e6:,.0f} MFLOP | {accuracy(mean(correct), standard_error(correct))}"
        yield f"| `{variant.label}` | {variant.budget}% | {figures} | {apart} |"


def difference(mine: Answers, base: Answers) -> str:
    """In points, with its standard error over clips."""
    changes = [(item.clip.name, mine[item].correct - base[item].correct) for item in mine]
    mean, error = paired(changes)
    return f"{100 * mean:+.1f} ± {100 * error:.1f}"


def paired(changes: Iterable[tuple[str, int]]) -> tuple[float, float]:
    """Mean change and its standard error, from drawing as many clips as there are, with replacement.

    Args:
        changes: for each question its clip, and -1, 0 or 1.
    """
    clips, values = zip(*changes, strict=True)
    _, clip = np.unique(np.asarray(clips), return_inverse=True)
    count, change = np.bincount(clip), np.bincount(clip, weights=np.asarray(values, dtype=float))
    drawn = np.random.default_rng(0).integers(len(count), size=(DRAWS, len(count)))
    means = change[drawn].sum(1) / count[drawn].sum(1)
    return float(change.sum() / count.sum()), float(means.std())


if __name__ == "__main__":
    main()
