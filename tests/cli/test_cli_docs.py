"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

import re

import pytest

from tests import make_cli_docs
from tests.program import Invoke

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
STANDARD = {"--help"}  # every command has it


def test_the_file_is_current() -> None:
    assert make_cli_docs.TARGET.read_text(encoding="utf-8") == make_cli_docs.text(), "run: make docs"


def test_control_a_changed_help_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from holitom_cli.cli.app import app

    before = make_cli_docs.text()
    monkeypatch.setattr(app.registered_commands[0], "help", "Something else.")
    assert make_cli_docs.text() != before


def test_the_file_depends_on_nobodys_terminal_or_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_cli_docs.text()
    for name, value in {"COLUMNS": "40", "NO_COLOR": "1", "HOLITOM_TAU": "0.5", "LANG": "de_DE"}.items():
        monkeypatch.setenv(name, value)
    assert make_cli_docs.text() == before


@pytest.mark.parametrize("command", ["ask", "batch", "eval", "bench", "methods", "doctor", "pull"])
def test_the_file_names_the_options_that_help_shows(invoke: Invoke, command: str) -> None:
    (section,) = re.findall(rf"^## holitom {command}\n(.*?)(?=^## |\Z)", make_cli_docs.text(), re.DOTALL | re.MULTILINE)
    named = set(OPTION.findall("\n".join(line.split("|")[1] for line in section.splitlines() if "| `" in line)))
    shown = set(re.findall(r"│ (--[a-z-]+)", invoke(command, "--help").out))
    assert named | STANDARD == shown
