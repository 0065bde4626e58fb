"""The command line as its users meet it: the installed program, or its entry point in this process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests.make_random_checkpoint import RANDOM

ROOT = Path(__file__).parent.parent
PROGRAM = Path(sys.executable).parent / ("holitom.exe" if sys.platform == "win32" else "holitom")
SCHEMA = Draft202012Validator(json.loads((ROOT / "docs" / "result.schema.json").read_text(encoding="utf-8")))
# Little to do, and the same answer every time.
FAST = ("--model", str(RANDOM), "--device", "cpu", "--num-frames", "4", "--max-new-tokens", "5")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def document(self) -> Any:
        """The one JSON document on stdout, which the published schema describes."""
        value = json.loads(self.out)
        SCHEMA.validate(value)
        return value

    def sentence(self, code: int, said: str) -> None:
        """Check that the command failed with this code, and said so in a sentence with a hint and nothing more."""
        text = " ".join(self.err.split())
        assert self.code == code, self.err
        assert self.out == ""
        assert said in text
        assert "Traceback" not in text
        assert "This should not have happened" not in text
        _, _, told = text.partition("error: ")
        message, _, hint = told.partition(" hint: ")
        check_prose(message, hint)


def check_prose(message: str, hint: str) -> None:
    """A sentence that begins as sentences do and ends with a full stop, and a hint."""
    first = message.split(maxsplit=1)[0]
    assert first[0].isupper() or not first.isalpha(), message  # a file's name, a hub id or an option may come first
    assert message.endswith("."), message
    assert "\n" not in message
    assert hint[:1].isupper() or hint.startswith("As in"), hint


def environment(home: Path, **more: str) -> dict[str, str]:
    """A user without settings of his own, without a network, at a terminal of 80 columns."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HOLITOM_", "HF_", "XDG_"))}
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "LINES"):
        kept.pop(name, None)
    own = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    one_core = {"OMP_NUM_THREADS": "1"}  # quicker for so small a model, above all where others compute too
    return kept | own | one_core | {"PYTHONUTF8": "1"} | more


def installed(*arguments: str | Path, home: Path, stdin: str = "", timeout: float = 60, **variables: str) -> Done:
    """Run the installed program to its end."""
    done = subprocess.run(
        [PROGRAM, *map(str, arguments)],
        cwd=home,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        env=environment(home, **variables),
        timeout=timeout,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


Invoke = Callable[..., Done]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Invoke:
    """Run `holitom ARGUMENTS` in this process, which has torch loaded already, with an empty home."""
    from holitom_cli.cli.app import run

    for name in [name for name in os.environ if name.startswith(("HOLITOM_", "XDG_"))]:
        monkeypatch.delenv(name)
    for name, value in {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / ".config"), "COLUMNS": "300"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["holitom", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run()
        shown = capsys.readouterr()
        return Done(int(end.value.code or 0), shown.out, shown.err)

    return call
