"""docs/methods.md says of every method what it is, as its class does."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest

from holitom_cli import methods
from holitom_cli.methods import Method
from tests.test_docs import ADDING, ROOT, shell_commands, table, wrong_words

DOCUMENT = ROOT / "docs" / "methods.md"


def documented() -> list[str]:
    """Methods that the document has to know: all but those that only a clone has, which say nothing of a status."""
    listed = {row[0].strip("`") for row in table(DOCUMENT, "method")}
    return [name for name in methods.available() if name in listed or methods.find(name).status != Method.status]


def test_every_method_is_listed_with_its_status() -> None:
    listed = {row[0].strip("`"): row[3] for row in table(DOCUMENT, "method")}
    assert listed == {name: methods.find(name).status for name in documented()}


def test_a_method_of_ones_own_need_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from holitom_cli.methods.random import Random\n\nclass Own(Random):\n    status = {}\n"
    (tmp_path / "mine.py").write_text(code.format("Random.__base__.status"), encoding="utf-8")
    (tmp_path / "taken.py").write_text(code.format("'from the paper'"), encoding="utf-8")
    before = documented()
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    try:
        assert {"mine", "taken"} <= set(methods.available())
        assert set(documented()) - set(before) == {"taken"}  # control: one that is named after a paper has to be
    finally:
        for name in ("mine", "taken"):
            sys.modules.pop(f"holitom_cli.methods.{name}", None)
            vars(methods).pop(name, None)


def test_every_source_is_in_the_methods_own_text() -> None:
    for name, _, source, _ in table(DOCUMENT, "method"):
        for paper in re.findall(r"\d{4}\.\d{5}", source):
            assert paper in (methods.find(name.strip("`")).__doc__ or ""), name


def test_every_method_with_a_share_says_what_a_budget_is() -> None:
    named = {name for row in table(DOCUMENT, "methods") for name in re.findall(r"`([\w-]+)`", row[0])}
    shared = {
        name
        for name in documented()
        if "retain_ratio" in {field.name for field in methods.settings_of(methods.find(name))}
    }
    assert named == shared


def test_who_looks_at_what() -> None:
    rows = {row[0]: set(re.findall(r"`([\w-]+)`", row[1])) for row in table(DOCUMENT, "what")}
    every = [(name, methods.find(name)) for name in documented()]
    attention, keys, last, text, cache = rows.values()
    assert attention == {name for name, cls in every if cls.needs_attention}
    assert keys == {name for name, cls in every if cls.needs_keys}
    assert cache == {name for name, cls in every if cls.prunes_cache}
    inside = {name: [one.rows for one in methods.get(name).reductions(28).values()] for name, _ in every}
    assert text == {name for name, seen in inside.items() if "all" in seen}
    assert last == {name for name, seen in inside.items() if "last" in seen} - {"todre-like"}  # it looks at nothing


def test_shell_examples_name_what_exists() -> None:
    commands = list(shell_commands(DOCUMENT.read_text(encoding="utf-8")))
    assert len(commands) >= 2
    assert [wrong for words in commands for wrong in wrong_words(words, set())] == []


def wrong_signatures(document: Path) -> list[str]:
    """Functions in the guide's table that are called otherwise, or that there are not."""
    wrong = []
    for row in table(document, "function"):
        name, given = re.findall(r"`(\w+)\((.*?)\)`", row[0])[0]
        module = import_module(row[1].strip("`"))
        parameters = list(inspect.signature(getattr(module, name)).parameters) if hasattr(module, name) else []
        if not parameters or given.split(", ") != parameters[: given.count(",") + 1]:
            wrong.append(name)
    return wrong


def test_the_guide_names_functions_that_exist(tmp_path: Path) -> None:
    assert len(table(ADDING, "function")) >= 15
    assert wrong_signatures(ADDING) == []
    text = ADDING.read_text(encoding="utf-8")
    broken = text.replace("`keep(video, places, stage)`", "`keep(places, video, stage)`").replace("`fold(", "`gold(")
    (tmp_path / "broken.md").write_text(broken, encoding="utf-8")
    assert sorted(wrong_signatures(tmp_path / "broken.md")) == ["gold", "keep"]  # control
