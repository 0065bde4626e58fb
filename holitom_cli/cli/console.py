"""stdout is for data, stderr for talk."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from holitom_cli.report.text import visible

if TYPE_CHECKING:
    from rich.console import RenderableType


class Talk:
    """What goes to stderr; says nothing when quiet, but errors and warnings always."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.quiet = quiet

    def say(self, renderable: RenderableType) -> None:
        """Print unless quiet."""
        if not self.quiet:
            self.console.print(renderable)

    def insist(self, renderable: RenderableType) -> None:
        """Print, quiet or not."""
        self.console.print(renderable)

    @contextmanager
    def busy(self, what: str) -> Iterator[Callable[[], None]]:
        """Show what is going on until the block ends or calls what it is given.

        A spinner on a terminal, a plain line elsewhere.
        """
        if self.quiet:
            yield lambda: None
        elif self.console.is_terminal:
            with self.console.status(Text(what)) as status:
                yield status.stop
        else:
            self.console.print(Text(what))
            yield lambda: None

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """The same for work with a number; to be told how much is done, and of how much."""
        if self.console.is_terminal and not self.quiet:
            with self.console.status(Text(what)) as status:
                yield lambda done, total: status.update(Text(f"{what}: {done} of {total}") if total else Text(what))
        else:
            self.say(Text(what))
            yield lambda *_: None


def write(text: str) -> None:
    """Data for whoever reads stdout. Control characters that a model makes up do not act on a terminal."""
    if sys.stdout.isatty():
        text = "\n".join(map(visible, text.expandtabs(4).split("\n")))
    encoding = sys.stdout.encoding
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def wrote(file: Path) -> Text:
    """Where something was written."""
    return Text(f"Wrote {visible(str(file))}.")


def print_data(renderable: RenderableType) -> None:
    """A table that was asked for, on stdout."""
    Console(highlight=False).print(renderable)


def write_json(document: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """One JSON document; in plain ASCII where stdout is not UTF-8, which is what JSON has to be."""
    plain = codecs.lookup(sys.stdout.encoding).name != "utf-8"
    sys.stdout.write(json.dumps(document, indent=indent, ensure_ascii=plain, allow_nan=False) + "\n")
    sys.stdout.flush()
