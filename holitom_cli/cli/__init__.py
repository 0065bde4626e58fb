"""The command line: option parsing, printing and exit codes."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress


def main() -> None:
    """Run `holitom`."""
    gc.disable()  # until a command has imported what it needs: none of that is ever garbage
    try:
        _run()
    finally:
        gc.freeze()  # the system takes everything back at once; looking through it first takes longer


def _run() -> None:
    try:
        _start_decoder()
        from holitom_cli.cli.guard import open_missing_streams, watch_for_interrupts

        watch_for_interrupts()
        open_missing_streams()
        from holitom_cli.cli.app import run

        run()
    except (KeyboardInterrupt, SystemExit) as end:
        from holitom_cli.cli.guard import INTERRUPTED, end_at_once

        if isinstance(end, KeyboardInterrupt) or end.code == INTERRUPTED:
            end_at_once()
        raise


def _start_decoder() -> None:
    """Start one for `ask`: it takes as long to import its libraries as this process to import those of its options."""
    streams = sys.stdin, sys.stdout, sys.stderr
    if sys.argv[1:2] == ["ask"] and len(sys.argv) > 3 and None not in streams:  # else its pipes would be in their place
        from holitom_cli.video.worker_link import warm_up

        with suppress(OSError):  # it is started later, or said why not
            warm_up()
