"""Where settings come from: option before environment before the user's config file before the default."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.program import FAST, Done, Invoke, installed


@pytest.fixture
def write_config(tmp_path: Path, invoke: Invoke) -> Any:
    """Write config.toml where the program looks for it."""
    from holitom_cli.cli.config import config_file

    def write(text: str) -> Path:
        path = config_file()
        assert tmp_path in path.parents  # never the developer's own
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def settings(invoke: Invoke, demo_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The method settings that an `ask` arrives at, stopped before it looks for its checkpoint."""
    from holitom_cli.cli import session

    arrived: list[Any] = []

    def stop(_options: object, method: Any, _talk: object) -> None:
        arrived.append(asdict(method))
        raise typer.Exit

    def of(*options: str) -> dict[str, Any]:
        with monkeypatch.context() as patch:
            patch.setattr(session, "find_checkpoint", stop)
            done = invoke("ask", demo_clip, "What?", *FAST, *options)
        assert done.code == 0, done.err
        found: dict[str, Any] = arrived.pop()
        return found

    return of


def test_option_then_environment_then_config_then_default(
    settings: Any, write_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings()["retain_ratio"] == 0.15
    write_config("retain-ratio = 0.2\nbeta = 0.5\n")
    monkeypatch.setenv("HOLITOM_TAU", "0.7")
    assert (settings()["retain_ratio"], settings()["beta"], settings()["tau"]) == (0.2, 0.5, 0.7)
    monkeypatch.setenv("HOLITOM_RETAIN_RATIO", "0.3")
    assert settings()["retain_ratio"] == 0.3
    assert settings("--retain-ratio", "0.4")["retain_ratio"] == 0.4
    assert settings("--retain-ratio", "0.4", "--set", "retain-ratio=0.5")["retain_ratio"] == 0.5


def test_a_preset_wins_over_what_stands_further_off(
    settings: Any, write_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config("retain_ratio = 0.2\n")
    monkeypatch.setenv("HOLITOM_TAU", "0.7")
    assert settings("--preset", "10") | {"beta": 0} == settings() | {"retain_ratio": 0.1, "tau": 0.65, "beta": 0}
    monkeypatch.setenv("HOLITOM_PRESET", "10")
    found = settings()
    assert (found["retain_ratio"], found["tau"]) == (0.1, 0.7)  # the environment's own setting is as near
    assert settings("--retain-ratio", "0.4")["retain_ratio"] == 0.4


def test_a_budget_is_a_share_with_its_preset(settings: Any, write_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings("--budget", "10")
    assert (found["retain_ratio"], found["tau"]) == (0.1, 0.65)
    assert settings("--budget", "940t")["retain_ratio"] == "940t"
    assert settings("--budget", "10", "--tau", "0.7")["tau"] == 0.7
    assert settings("--budget", "10", "--method", "uniform+inner")["inner_ratio"] == 0.5
    write_config("retain_ratio = 0.2\n")
    monkeypatch.setenv("HOLITOM_BUDGET", "5")
    assert settings()["retain_ratio"] == 0.05
    assert settings("--method", "full") == {}  # it keeps what it keeps
    assert settings("--retain-ratio", "0.4")["retain_ratio"] == 0.4
    assert settings("--preset", "25")["retain_ratio"] == 0.25


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget", "15%"], "The budget '15%' is not a percentage"),
        (["--budget", "15", "--preset", "10"], "so --preset has no effect"),
        (["--budget", "15", "--retain-ratio", "0.1"], "so --retain-ratio has no effect"),
        (["--budget", "15", "--method", "full"], "'full' keeps what it keeps"),
        (["--method", "uniform+full+inner"], "cannot be composed"),
    ],
)
def test_budgets_and_compositions_that_cannot_be(invoke: Any, demo_clip: Any, options: list[str], said: str) -> None:
    done = invoke("ask", demo_clip, "What?", *options)
    assert (done.code, done.out) == (2, "")
    assert said in " ".join(done.err.split())


def test_every_setting_of_the_method_has_its_option_and_variable(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "retain_ratio": 0.25, "tau": 0.75, "beta": 0.55, "neighbours": 5, "max_window": 3, "inner_layer": "off",
        "inner_ratio": 0.4,
    }  # fmt: skip
    given = [part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    assert settings(*given) == values
    assert settings(*(part for key, value in values.items() for part in ("--set", f"{key}={value}"))) == values
    assert settings() != values  # control
    for key, value in values.items():
        monkeypatch.setenv(f"HOLITOM_{key.upper()}", str(value))
    assert settings() == values


def test_environment_of_another_method_is_ignored_but_an_option_is_an_error(
    settings: Any, invoke: Invoke, demo_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLITOM_TAU", "0.7")
    monkeypatch.setenv("HOLITOM_PRESET", "10")
    assert settings("--method", "full") == {}
    for option in (["--tau", "0.7"], ["--preset", "10"], ["--set", "tau=0.7"]):
        invoke("ask", demo_clip, "What?", "--method", "full", *option).sentence(2, "Method 'full' has no ")


def test_environment_sets_the_other_options_too(
    invoke: Invoke, demo_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {"MODEL": "demo", "DEVICE": "cpu", "NUM_FRAMES": "3", "MAX_NEW_TOKENS": "2", "TAU": "0.7", "SEED": "7"}
    for name, value in chosen.items():
        monkeypatch.setenv(f"HOLITOM_{name}", value)
    document = invoke("ask", demo_clip, "What?", "--json").document()
    assert document["model"]["id"] == "demo"
    assert document["sampling"]["frames"] == 3
    assert (document["settings"]["max_new_tokens"], document["settings"]["seed"]) == (2, 7)
    assert document["results"][0]["method_settings"]["tau"] == 0.7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tau = ", "config.toml cannot be read: "),
        ("colour = 'red'", "config.toml sets 'colour', which is not an option."),
        ("yes = true", "config.toml sets 'yes', which is not an option."),
        ("num_frames = 0", "Invalid value for '--num-frames'"),
        ("tau = 'much'", "Invalid value for '--tau'"),
        ("retain_ratio = 1.5", "Setting retain_ratio is 1.5"),
    ],
)
def test_a_broken_config_is_named(invoke: Invoke, demo_clip: Path, write_config: Any, text: str, said: str) -> None:
    path = write_config(text)
    done = invoke("ask", demo_clip, "What?", *FAST[:4])
    done.sentence(2, said)
    assert str(path) in done.err or "retain_ratio" in said


def test_a_config_that_is_no_text_is_named(invoke: Invoke, demo_clip: Path, write_config: Any) -> None:
    write_config("").write_bytes(b"\xff\xfe\x00")
    invoke("ask", demo_clip, "What?").sentence(2, "config.toml cannot be read: ")


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["methods"], ["ask", "nope", "--nonsense", "--help"]])
def test_a_broken_config_leaves_other_commands_alone(invoke: Invoke, write_config: Any, command: list[str]) -> None:
    write_config("tau = ")
    done = invoke(*command)
    if command[0] == "ask":
        done.sentence(2, "config.toml cannot be read: ")  # control: here it is read
    else:
        assert done.code == 0
        assert done.out


def test_nothing_beside_the_clips_configures_anything(tmp_path: Path, demo_clip: Path) -> None:
    for name in ("config.toml", "holitom.toml", ".env"):
        (tmp_path / name).write_text("num_frames = 0\nHOLITOM_NUM_FRAMES=0\n", encoding="utf-8")
    done: Done = installed("ask", demo_clip, home=tmp_path)
    done.sentence(2, "There is no question.")


def test_a_variable_that_cannot_be_used_is_named(
    invoke: Invoke, demo_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLITOM_NUM_FRAMES", "many")
    invoke("ask", demo_clip, "What?").sentence(2, "HOLITOM_NUM_FRAMES")
