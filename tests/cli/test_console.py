"""What a model makes up cannot act on a terminal, and is left alone elsewhere."""

from __future__ import annotations

import sys

import pytest

from holitom_cli.cli.console import write

TEXT = "one\ttwo\nthree \x1b[31mred\x07"


@pytest.mark.parametrize(
    ("terminal", "shown"), [(True, "one two\nthree \\x1b[31mred\\x07"), (False, TEXT)], ids=["terminal", "file"]
)
def test_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: str
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    write(TEXT)
    assert capsys.readouterr().out == shown
