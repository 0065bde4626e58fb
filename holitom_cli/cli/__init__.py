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
    from holitom_cli.cli.guard import INTERRUPTED, end_at_once, open_missing_streams, watch_for_interrupts

    watch_for_interrupts()
    try:
        open_missing_streams()
        _start_decoder()
        from holitom_cli.cli.app import run

        run()
    except KeyboardInterrupt:
        end_at_once()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            end_at_once()
        raise


def _start_decoder() -> None:
    """Start one for `ask`: it takes as long to import its libraries as this process to import those of its options."""
    if sys.argv[1:2] == ["ask"] and len(sys.argv) > 3:
        from holitom_cli.video.worker_link import warm_up

        with suppress(OSError):  # it is started later, or said why not
            warm_up()
