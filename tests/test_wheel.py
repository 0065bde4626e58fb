"""The built wheel, installed outside the clone: what is inside, and that it works there."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from holitom_cli import __version__

ROOT = Path(__file__).parent.parent
INFO = f"holitom_cli-{__version__}.dist-info"
SCRIPTS = "Scripts" if sys.platform == "win32" else "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with hatchling itself: no isolation, no network."""
    place = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of executables of a new environment that has the wheel, and borrows this one's libraries."""
    home = tmp_path_factory.mktemp("installed") / "env"
    venv.create(home, with_pip=False)
    python = home / SCRIPTS / Path(sys.executable).name
    install = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True, timeout=60)
    # A .pth line adds the folder after the new environment's own one, and reads no .pth files in it: the
    # libraries are found, the clone's editable install is not.
    (site,) = home.glob("[Ll]ib/**/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return home / SCRIPTS


def run(place: Path, *command: str | Path) -> str:
    """Standard output of a command that must succeed, run in `place`."""
    parts = [str(part) for part in command]
    done = subprocess.run(parts, cwd=place, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "holitom_cli").rglob("*.py")}
    assets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "holitom_cli" / "assets").rglob("*.*")}
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "holitom_cli").rglob("templates/*")}
    assert "holitom_cli/assets/demo/model.safetensors" in assets
    assert "holitom_cli/report/templates/page.html.jinja" in templates
    assert names >= sources | assets | templates | {"holitom_cli/py.typed"}
    assert {name.partition("/")[0] for name in names} == {"holitom_cli", INFO}
    assert f"{INFO}/licenses/LICENSE" in names
    assert not [name for name in names if "__pycache__" in name or "test" in name]


def test_installed_package_is_the_wheel(scripts: Path, tmp_path: Path) -> None:
    code = "import holitom_cli; print(holitom_cli.__file__)"
    found = Path(run(tmp_path, scripts / "python", "-c", code).strip())
    assert scripts.parent in found.parents
    assert ROOT not in found.parents  # control: the clone is not what answers


@pytest.mark.parametrize("start", [["holitom"], ["python", "-m", "holitom_cli"]])
def test_version_and_help(scripts: Path, tmp_path: Path, start: list[str]) -> None:
    assert __version__ in run(tmp_path, scripts / start[0], *start[1:], "--version")
    shown = run(tmp_path, scripts / start[0], *start[1:], "--help")
    assert {"ask", "--version", "--help"} <= set(shown.split())


def test_answers_a_question(scripts: Path, tmp_path: Path, demo_clip: Path) -> None:
    options = ["--model", "demo", "--device", "cpu", "--num-frames", "8", "--max-new-tokens", "4", "--json"]
    printed = run(tmp_path, scripts / "holitom", "ask", demo_clip, "What is shown?", *options)
    document = json.loads(printed)
    (result,) = document["results"]
    assert result["question"] == "What is shown?"
    assert len(result["answer"].split()) in range(1, 5)
    assert document["model"]["id"] == "demo"
    assert list(tmp_path.iterdir()) == []  # nothing is left beside the user's files


def test_shows_the_demo(scripts: Path, tmp_path: Path) -> None:
    document = json.loads(run(tmp_path, scripts / "holitom", "demo", "--device", "cpu", "--json"))
    assert scripts.parent in Path(document["video"]["path"]).parents
    assert scripts.parent in Path(document["model"]["path"]).parents
    assert len(document["results"]) == 6
    assert list(tmp_path.iterdir()) == []
