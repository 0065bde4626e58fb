"""Commands that inform: methods, doctor, help, version, completion."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from holitom_cli import __version__
from tests.program import FAST, Invoke, installed

COMMANDS = ("demo", "ask", "batch", "eval", "methods", "doctor", "pull")


def test_methods_are_listed_and_described(invoke: Invoke) -> None:
    from holitom_cli import methods

    listed = invoke("methods")
    assert listed.code == 0
    for name in methods.available():
        assert re.search(rf"^{name} ", listed.out, re.MULTILINE)
        described = invoke("methods", name)
        cls = methods.find(name)
        assert " ".join((cls.__doc__ or "").split()[:8]) in " ".join(described.out.split())
        for field in methods.settings_of(cls):
            assert field.name in described.out
        assert f"{name.replace('-', '_')}.py" in described.out
        assert cls.status in described.out
    assert listed.err == ""


def test_methods_as_json_tell_every_setting(invoke: Invoke) -> None:
    from holitom_cli import methods

    told = json.loads(invoke("methods", "--json").out)["methods"]
    assert list(told) == list(methods.available())
    defaults = {name: setting["default"] for name, setting in told["holitom"]["settings"].items()}
    assert defaults == {field.name: field.default for field in fields(methods.find("holitom"))}  # type: ignore[arg-type]
    assert all(setting["meaning"] for setting in told["holitom"]["settings"].values())
    assert told["holitom"]["presets"]["10"] == {"retain_ratio": 0.1, "tau": 0.65}
    assert list(json.loads(invoke("methods", "full", "--json").out)["methods"]) == ["full"]


def test_options_promise_the_defaults_that_the_method_has(invoke: Invoke) -> None:
    from holitom_cli import methods

    shown = " ".join(invoke("ask", "--help").out.replace("│", " ").split())
    for field in methods.settings_of(methods.find("holitom")):
        option = "--" + field.name.replace("_", "-")
        _, _, after = shown.partition(f"{option} ")
        assert after.partition("[default: (")[2].partition(")]")[0] == str(field.default), option


def test_doctor_reports_as_text_and_as_json(invoke: Invoke, tmp_path: Path) -> None:
    told = json.loads(invoke("doctor", "--json").out)
    assert set(told) == {"program", "device", "video", "cache"}
    assert told["program"]["holitom_cli"] == __version__
    assert str(tmp_path) in told["program"]["config_file"]
    assert {"h264", "hevc"} <= set(told["video"]["codecs"])
    assert "av" in told["video"]["decoders"]
    assert told["cache"]["free_bytes"] > 0
    shown = invoke("doctor")
    assert shown.code == 0
    for part in ("torch", "device", "decoders", "codecs", "free", "default model", "config file"):
        assert part in shown.out


def test_doctor_checks_a_checkpoint_against_the_stock_library(invoke: Invoke) -> None:
    done = invoke("doctor", "--check-model", "demo", "--device", "cpu", "--num-frames", "1", "--json")
    check = json.loads(done.out)["check"]
    assert done.code == 0
    assert check["passed"] is True
    assert check["checkpoint"] == "demo"
    assert check["logits_max_difference"] <= 1e-4
    assert check["tokens_equal"] == check["tokens_compared"] > 0
    assert "check" not in json.loads(invoke("doctor", "--json").out)


def test_doctor_fails_where_the_comparison_does(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: an engine whose numbers are off by a little."""
    from holitom_cli.model.prompt import prompt_embeds

    def wrong(*arguments: Any) -> Any:
        embeds, span = prompt_embeds(*arguments)
        return embeds * 1.01, span

    monkeypatch.setattr("holitom_cli.check.prompt_embeds", wrong)
    done = invoke("doctor", "--check-model", *FAST[1:4], "--num-frames", "1", "--json")
    assert done.code == 1
    assert json.loads(done.out)["check"]["passed"] is False


def test_doctor_with_a_checkpoint_that_is_not_there(invoke: Invoke) -> None:
    invoke("doctor", "--check-model", "nowhere/at/all").sentence(1, "There is no directory nowhere/at/all.")
    error = invoke("doctor", "--check-model", "nowhere/at/all", "--json").document()["error"]
    assert error["stage"] == "model"


def test_version(invoke: Invoke) -> None:
    assert invoke("--version").out == f"holitom {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(invoke: Invoke, command: str) -> None:
    done = invoke(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"holitom {command}" in done.out
    assert "--debug" in done.out
    assert done.out == invoke(command, "-h").out
    assert "[]" not in done.out.replace(" ", "")


def test_help_lists_every_command(invoke: Invoke) -> None:
    shown = invoke("--help").out
    for command in COMMANDS:
        assert re.search(rf"│ {command} ", shown)


@pytest.mark.parametrize(
    ("shell", "sign"),
    [("bash", "complete -o default"), ("zsh", "#compdef holitom"), ("fish", "complete --command holitom")],
)
def test_completion_for_shells(tmp_path: Path, shell: str, sign: str) -> None:
    done = installed(home=tmp_path, _HOLITOM_COMPLETE=f"source_{shell}")
    assert done.code == 0
    assert sign in done.out


@pytest.mark.parametrize(("typed", "offered"), [("holitom me", {"methods"}), ("holitom ask --bas", {"--baseline"})])
def test_completion_offers_what_fits(tmp_path: Path, typed: str, offered: set[str]) -> None:
    words = str(len(typed.split()) - 1)
    done = installed(home=tmp_path, _HOLITOM_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=words)
    assert set(done.out.split()) == offered


@pytest.mark.parametrize("option", [["--video", "clip.mp4"], ["--num-frames", "4"], ["--dtype", "float16"], ["--yes"]])
def test_doctor_refuses_options_of_a_check_that_does_not_run(invoke: Invoke, option: list[str]) -> None:
    invoke("doctor", *option).sentence(2, "This option only serves --check-model.")
