"""Run the README's examples again and put what they print in its place: `python -m tests.make_readme`.

A maintainer's script, for when the program's words or the bundled model have changed. Times differ from run to run, so
what it writes is to be looked at before it is kept. Lines that begin with `$ ` are run in a folder that holds the
clips that the README speaks of.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
_HOME = "/home/you"  # stands for the folder, wherever it is


def main() -> None:
    """Write the file."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder)
        text = README.read_text(encoding="utf-8")
        text = re.sub(r"(?<=^```console\n).*?(?=^```$)", lambda match: _console(match[0], folder), text, flags=_BLOCKS)
        (code,) = re.findall(r"^```python\n(.*?)^```$", text, _BLOCKS)
        printed = _run([sys.executable, "-c", code], folder)
        text = re.sub(r"(?<=^```text\n).*?(?=^```$)", lambda _: printed, text, flags=_BLOCKS)
    README.write_text(text, encoding="utf-8")


_BLOCKS = re.MULTILINE | re.DOTALL


def _prepare(folder: Path) -> None:
    """The clips: the tests' city, the demo's shapes, and a folder with three that differ and one that is none."""
    city = ROOT / "tests" / "data" / "city.mp4"
    shutil.copy(city, folder)
    shutil.copy(ROOT / "holitom_cli" / "assets" / "demo" / "shapes.mp4", folder)
    (folder / "clips").mkdir()
    for number, name in enumerate(("bikes", "city", "cup")):
        (folder / "clips" / f"{name}.mp4").write_bytes(city.read_bytes() + bytes(8 * number))
    (folder / "clips" / "broken.mp4").write_bytes(b"no video at all" * 50)


def _console(block: str, folder: Path) -> str:
    """The block's commands, each with what it prints today."""
    commands = re.findall(r"^\$ (?:.*\\\n)*.*\n", block, re.MULTILINE)
    return "".join(command + _run(["bash", "-c", command.removeprefix("$ ")], folder) for command in commands)


def _run(command: list[str], folder: Path) -> str:
    """What it prints on both streams at a width of 80 columns, without trailing space."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = os.environ | {"PATH": programs, "COLUMNS": "80", "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    printed = done.stdout.replace(str(folder), _HOME).replace(str(ROOT), f"{_HOME}/holitom_cli")
    lines = [line.rstrip() for line in printed.splitlines()]
    told = [line for line in lines if not re.match(r"Loading |Reading |Watching|Answering|Warming up", line)]
    return "\n".join(told).strip("\n") + "\n"


if __name__ == "__main__":
    main()
