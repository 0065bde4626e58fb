"""holitom cache: what is kept of clips that were looked at."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from holitom_cli.cli.console import write, write_json
from holitom_cli.cli.options import CacheOptions, command
from holitom_cli.report.text import counted, size


class Action(StrEnum):
    """What to do with it."""

    info = "info"
    clear = "clear"


@command()
def cache(
    *,
    action: Annotated[Action, typer.Argument(metavar="info|clear", help="Say what is there, or remove it.")],
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", help="As given to ask or batch.", envvar=["HOLITOM_CACHE_DIR", "XDG_CACHE_HOME"]),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """What is kept of clips that were looked at: their compressed tokens, so that asking again is quick."""
    from holitom_cli.cache import LIMIT_BYTES, Cache

    place = Cache(CacheOptions(cache_dir=cache_dir).folder)
    if action is Action.clear:
        clips, total = place.clear()
    else:
        sizes = place.sizes()
        clips, total = len(sizes), sum(sizes.values())
    if json:
        facts = {"folder": str(place.folder), "entries": clips, "bytes": total, "limit_bytes": LIMIT_BYTES}
        write_json({**facts, "removed": action is Action.clear})
        return
    what = f"{counted(clips, 'entry') if clips == 1 else f'{clips:,} entries'}, {size(total)}"
    said = f"removed {what}" if action is Action.clear else f"{what}, at most {size(LIMIT_BYTES)}"
    write(f"{place.folder}: {said}\n")
