"""Pages on a disk that is full."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from holitom_cli.report.files import write_whole


def test_a_page_takes_the_old_ones_place(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for text in ("old", "the whole new one, ä"):
        write_whole(page, text)
        assert page.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [page]


def test_a_full_disk_leaves_the_old_page_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, real = tmp_path / "page.html", Path.write_text
    write_whole(page, "old")

    def half(self: Path, text: str, **settings: Any) -> int:
        real(self, text[:3], **settings)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        write_whole(page, "the new one")
    assert page.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [page]
