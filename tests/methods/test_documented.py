"""docs/methods.md says of every method what it is, as its class does."""

from __future__ import annotations

import re

from holitom_cli import methods
from tests.test_docs import ADDING, ROOT, shell_commands, table, wrong_words

DOCUMENT = ROOT / "docs" / "methods.md"


def test_every_method_is_listed_with_its_status() -> None:
    listed = {row[0].strip("`"): row[3] for row in table(DOCUMENT, "method")}
    assert listed == {name: methods.find(name).status for name in methods.available()}


def test_every_source_is_in_the_methods_own_text() -> None:
    for name, _, source, _ in table(DOCUMENT, "method"):
        for paper in re.findall(r"\d{4}\.\d{5}", source):
            assert paper in (methods.find(name.strip("`")).__doc__ or ""), name


def test_every_method_with_a_share_says_what_a_budget_is() -> None:
    named = {name for row in table(DOCUMENT, "methods") for name in re.findall(r"`([\w-]+)`", row[0])}
    shared = {
        name
        for name in methods.available()
        if "retain_ratio" in {field.name for field in methods.settings_of(methods.find(name))}
    }
    assert named == shared


def test_who_looks_at_what() -> None:
    rows = {row[0]: set(re.findall(r"`([\w-]+)`", row[1])) for row in table(DOCUMENT, "what")}
    every = [(name, methods.find(name)) for name in methods.available()]
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


def test_the_guide_names_functions_that_exist() -> None:
    from holitom_cli.algebra import merge, segments
    from holitom_cli.methods.tools import settings, tokens

    text = ADDING.read_text(encoding="utf-8")
    (algebra,) = re.findall(r"tensor functions to build on: (.*?)\.\n", text, re.DOTALL)
    for name in re.findall(r"`(\w+)`", algebra):
        assert hasattr(merge, name) or hasattr(segments, name)
    for name in ("keep", "sources", "account", "keep_rows"):
        assert f"`{name}" in text
        assert hasattr(tokens, name)
    for name in ("Share", "check_ratio", "budget", "by_frame"):
        assert f"`{name}`" in text
        assert hasattr(settings, name)
