"""The command line: option parsing, printing and exit codes."""

from __future__ import annotations


def main() -> None:
    """Run `holitom`."""
    from holitom_cli.cli.guard import INTERRUPTED, open_missing_streams, watch_for_interrupts

    watch_for_interrupts()
    try:
        open_missing_streams()
        from holitom_cli.cli.app import run

        run()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
