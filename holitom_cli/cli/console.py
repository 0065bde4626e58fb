"""stdout is for data, stderr for talk. rich is imported when there is something to show."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holitom_cli.report.text import visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text


class Talk:
    """What goes to stderr; says nothing when quiet, but errors and warnings always."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    @cached_property
    def console(self) -> Console:
        """Where it goes."""
        from rich.console import Console

        return Console(stderr=True, highlight=False)

    def say(self, renderable: RenderableType) -> None:
        """Print unless quiet."""
        if not self.quiet:
            self.console.print(renderable)

    def words(self, text: str, style: str = "") -> None:
        """Print text as it is, unless quiet."""
        if not self.quiet:
            self.console.print(_plain(text, style))

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
            with self.console.status(_plain(what)) as status:
                yield status.stop
        else:
            self.words(what)
            yield lambda: None

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """The same for work with a number; to be told how much is done, and of how much."""
        if self.quiet:
            yield lambda *_: None
        elif self.console.is_terminal:
            with self.console.status(_plain(what)) as status:
                yield lambda done, total: status.update(_plain(f"{what}: {done} of {total}" if total else what))
        else:
            self.words(what)
            yield lambda *_: None


def _plain(text: str, style: str = "") -> Text:
    """Text that is no markup."""
    from rich.text import Text

    return Text(text, style)


def write(text: str) -> None:
    """Data for whoever reads stdout. Control characters that a model makes up do not act on a terminal."""
    if sys.stdout.isatty():
        text = "\n".join(map(visible, text.expandtabs(4).split("\n")))
    encoding = sys.stdout.encoding
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def wrote(file: Path) -> Text:
    """Where something was written."""
    return _plain(f"Wrote {visible(str(file))}.")


def print_data(renderable: RenderableType) -> None:
    """A table that was asked for, on stdout."""
    from rich.console import Console

    Console(highlight=False).print(renderable)


def write_json(document: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """One JSON document; in plain ASCII where stdout is not UTF-8, which is what JSON has to be."""
    plain = codecs.lookup(sys.stdout.encoding).name != "utf-8"
    sys.stdout.write(json.dumps(document, indent=indent, ensure_ascii=plain, allow_nan=False) + "\n")
    sys.stdout.flush()
