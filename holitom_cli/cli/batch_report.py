"""The page of `holitom batch`: its options, and writing it at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holitom_cli.cli.console import Talk, wrote
from holitom_cli.cli.options import check_place
from holitom_cli.errors import UsageError
from holitom_cli.report import summary
from holitom_cli.report.pictures import shrinker
from holitom_cli.report.terminal import warning_line
from holitom_cli.report.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from holitom_cli.batch.thumbnails import Place
    from holitom_cli.report.summary import Row


@dataclass(frozen=True)
class ReportOptions:
    """Which pages are made of a batch."""

    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="A page about all rows of --output, at the end.")
    ] = None
    clip_pages: Annotated[
        Path | None,
        typer.Option(
            "--clip-pages",
            metavar="FOLDER",
            help="A page for each clip too, as of holitom ask, that --report links to.",
            show_default=False,
        ),
    ] = None

    def check(self, output: Path | None) -> None:
        """Refuse now what could not be written at the end.

        Raises:
            UsageError: there are no rows to report on, or nothing can be written there.
        """
        if self.report is not None:
            if output is None:
                raise UsageError(
                    "--report is about the rows of --output, which is not given.", "Name a file with --output."
                )
            check_place(self.report)
        if self.clip_pages is not None and self.clip_pages.exists() and not self.clip_pages.is_dir():
            raise UsageError(
                f"--clip-pages {self.clip_pages} is a file.", "Name a folder, or one that is not there yet."
            )

    def write(self, output: Path | None, timeout_seconds: float | None, talk: Talk, *, quickly: bool) -> None:
        """Write the page about all rows; `quickly` leaves the pictures of clips out."""
        if output is None or self.report is None:
            return
        from holitom_cli.batch.ledger import last_rows

        rows = list(last_rows(output))
        thumbnails = {} if quickly else _thumbnails(rows, timeout_seconds, talk)
        summary.write_summary(rows, self.report, output.name, thumbnails)
        talk.say(wrote(self.report))


def _thumbnails(rows: Sequence[Row], timeout_seconds: float | None, talk: Talk) -> Mapping[Place, bytes]:
    """A small picture of each clip, as a file, by where in it; none of clips that are gone, and none of very many."""
    from holitom_cli.batch.thumbnails import pictures

    places = summary.places(rows)
    side = summary.thumbnail_side(len(rows))
    if not side:
        return {}
    made: dict[Place, bytes] = {}
    with talk.counting("Reading a picture of each clip") as show:
        for done, (place, file) in enumerate(pictures(places, shrinker(side), summary.thumbnail, timeout_seconds), 1):
            if file is not None:
                made[place] = file
            show(done, len(places))
    if lacking := len(places) - len(made):
        talk.say(warning_line(f"{counted(lacking, 'clip')} could not be read again, and have no picture on the page."))
    return made
