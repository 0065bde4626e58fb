"""The command line: option parsing, printing and exit codes."""

from __future__ import annotations


def main() -> None:
    """Run `holitom`."""
    from holitom_cli.cli.guard import watch_for_interrupts

    watch_for_interrupts()
    from holitom_cli.cli.app import run

    run()
