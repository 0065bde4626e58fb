"""Pages that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a text beside a file and put it in its place: whoever looks finds the old one or the whole new one.

    Raises:
        OSError: it cannot be written, as on a full disk; nothing is left of it.
    """
    unfinished = file.with_name(f"{file.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
