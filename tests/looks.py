"""Split answers about generated clips by how many of some frames show what was asked about.

    holitom eval --model demo --set shapes --methods full,dycoke,uniform --budgets 25 --output answers.jsonl
    python -m tests.looks answers.jsonl
    python -m tests.looks eight.jsonl --frames 0,4,9,13,18,22,27,31

A maintainer's script, for what docs/methods.md says of `dycoke`, whose whole frames are the default of --frames: it
tells what a method cannot know from what it overlooks. Of several things asked about, the one counts that is shown
least.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from holitom_cli.batch.manifest import rows_in
from holitom_cli.quality.shapes import ShapesClip
from holitom_cli.quality.world import Clip, Thing

WHOLE = "0,4,8,12,16,20,24,28"  # frames that DyCoke leaves whole, of 32
_BY_SHAPE = ("colour", "change", "happened", "speed")  # kinds that name a thing by its shape alone
COLUMNS = {0: "shown by none", 1: "by one", 2: "by two or more", None: "about nothing that is there"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", nargs="+", type=Path, help="files of holitom eval --set shapes --output")
    parser.add_argument("--frames", default=WHOLE, help="of the clips' 32, separated by commas")
    options = parser.parse_args(arguments)
    rows = [row for path in options.answers for row in rows_in(path)]
    print("\n".join(table(rows, [int(frame) for frame in options.frames.split(",")])))


def table(rows: Iterable[Mapping[str, Any]], frames: Sequence[int]) -> Iterator[str]:
    """Rows of Markdown: right answers of how many, in all and by how many of the frames show the thing."""
    found: dict[tuple[str, object], dict[int | None, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        _, seed, index = row["video"].split("-")
        things = asked_about(ShapesClip(int(seed), int(index)).world, row["type"], row["question"])
        found[row["method"], row["budget"]][looks(things, frames)].append(row["correct"])
    yield f"| method | budget | all | {' | '.join(COLUMNS.values())} |"
    yield "| --- " * (len(COLUMNS) + 3) + "|"
    for (method, budget), parts in found.items():
        every = [right for part in parts.values() for right in part]
        shares = [_share(every), *(_share(parts[key]) for key in COLUMNS)]
        yield f"| `{method}` | {budget} | {' | '.join(shares)} |"


def asked_about(clip: Clip, kind: str, question: str) -> list[Thing]:
    """The things that a question names, all for their number, none for one that is not there."""
    if kind == "count":
        return list(clip.things)
    return [thing for thing in clip.things if any(_says(question, name) for name in _names(thing, kind))]


def looks(things: Sequence[Thing], frames: Sequence[int]) -> int | None:
    """How many of the frames show the thing that is shown least, 2 for more; None without things."""
    return min((min(2, sum(thing.enter <= at < thing.leave for at in frames)) for thing in things), default=None)


def _names(thing: Thing, kind: str) -> list[str]:
    """What a question of this kind may call a thing."""
    colours = [thing.colour, *(thing.turn[1:] if thing.turn else ())]
    if kind in _BY_SHAPE:
        return [thing.shape]
    return [str(colour) if kind == "shape" else f"{colour} {thing.shape}" for colour in colours]


def _says(question: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", question) is not None


def _share(right: Sequence[bool]) -> str:
    return f"{100 * sum(right) / len(right):.1f}% of {len(right):,}" if right else "–"


if __name__ == "__main__":
    main()
