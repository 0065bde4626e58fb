"""The command line: option parsing, printing and exit codes."""

from __future__ import annotations


def main() -> None:
    """Run `holitom`."""
    from holitom_cli.cli.guard import INTERRUPTED, end_at_once, open_missing_streams, watch_for_interrupts

    watch_for_interrupts()
    try:
        open_missing_streams()
        from holitom_cli.cli.app import run

        run()
    except KeyboardInterrupt:
        end_at_once()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            end_at_once()
        raise
