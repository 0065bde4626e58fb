"""Who may import what: read from every module's source, and tried in a fresh interpreter.

The table is the one in docs/architecture.md. Each rule has a control: a module, written for the test, that
breaks it.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "holitom_cli"

# room: rooms that it may import. A room is a folder or a module at the top of the package.
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "sampling": {"errors"},
    "types": {"sampling"},
    "clock": set(),
    "flops": {"types"},
    "cache": {"errors", "types"},
    "algebra": set(),
    "video": {"errors", "sampling", "types"},
    "methods": {"errors", "types", "algebra"},
    "model": {"errors", "types"},
    "account": {"__init__", "errors", "types", "clock", "flops", "methods", "model"},
    "pipeline": {"errors", "types", "clock", "flops", "video", "algebra", "methods", "model", "account"},
    "conversation": {"types", "clock", "model", "pipeline"},
    "check": {"types", "methods", "model"},
    "bench": {"errors", "types", "clock", "flops", "methods", "model", "pipeline", "check"},
    "quality": {"errors", "types", "video", "methods", "model", "pipeline", "batch"},  # rows are resumed alike
    "batch": {"__init__", "errors", "types", "clock", "cache", "video", "methods", "model", "account", "pipeline"},
    "serve": {"__init__", "errors", "types", "clock", "video", "methods", "model", "pipeline", "batch"},
    "report": {"errors", "types"},
    "cli": {
        "__init__", "errors", "types", "clock", "cache", "video", "methods", "model", "account", "pipeline", "quality",
        "batch", "report", "check", "bench", "conversation", "serve",
    },
    "__init__": {"methods", "model", "pipeline", "conversation"},
    "__main__": {"cli"},
}  # fmt: skip
# What a room may name in annotations besides: types.py holds values that others make.
TYPING_ROOMS = {"types": {"clock", "methods"}}

# Libraries that belong to some rooms alone.
OWNERS = {
    "typer": {"cli"},
    "textual_image": {"cli"},
    "prompt_toolkit": {"cli"},
    "rich": {"cli", "report"},
    "transformers": {"model", "check", "quality"},
    "accelerate": {"model"},
    "tokenizers": {"model", "quality"},
    "av": {"video", "quality", "report"},
    "decord": {"video"},
    "ray": {"batch"},
    "httpcore2": {"serve"},
    "python_multipart": {"serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "prometheus_client": {"serve"},
}
# Rooms that get by with so few libraries that these can be listed.
LIBRARIES: dict[str, set[str]] = {
    "errors": set(),
    "sampling": set(),
    "types": set(),
    "flops": set(),
    "algebra": {"torch", "numpy", "triton"},
    "report": {"rich", "jinja2", "PIL", "numpy", "av"},
    "__init__": set(),
    "__main__": set(),
}
HEAVY = {
    "accelerate", "av", "decord", "huggingface_hub", "jinja2", "numpy", "PIL", "prompt_toolkit", "safetensors",
    "tokenizers", "torch", "transformers",
}  # fmt: skip
LIGHT_ROOMS = {"cli", "report", "errors", "types", "__init__", "__main__"}  # loaded for --help
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv"}


class Import(NamedTuple):
    """One imported module or name, and how it is imported."""

    name: str  # dotted; for `from a import b` it is a.b
    line: int
    at_start: bool  # runs when the module is imported
    typing_only: bool  # inside `if TYPE_CHECKING:`


def imports(tree: ast.AST, *, at_start: bool = True, typing_only: bool = False) -> Iterator[Import]:
    """Every import below `tree`; a relative one is named with its dots."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_start, typing_only)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            for alias in node.names:
                yield Import(f"{origin}.{alias.name}", node.lineno, at_start, typing_only)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(ast.Module(node.body, []), at_start=at_start, typing_only=True)
            yield from imports(ast.Module(node.orelse, []), at_start=at_start, typing_only=typing_only)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, at_start=at_start and not inside, typing_only=typing_only)


def room_of(path: Path, package: Path) -> str:
    first = path.relative_to(package).parts[0]
    return first.removesuffix(".py")


def target_room(name: str) -> str | None:
    """Room that an import reaches, None for a library."""
    top, _, rest = name.partition(".")
    if top != "holitom_cli":
        return None
    first = rest.partition(".")[0]
    return first if first in ROOMS else "__init__"


def complaints(path: Path, package: Path) -> Iterator[str]:
    """Say which rules a module breaks."""
    room = room_of(path, package)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    where = path.relative_to(package)
    if room not in ROOMS:
        yield f"{where}: {room} is not in the table of rooms"
        return
    for found in imports(tree):
        for complaint in _about(found, room):
            yield f"{where}:{found.line}: {complaint}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {f"os.{name}" for name in ENVIRONMENT}:
            yield f"{where}:{node.lineno}: reads the environment"


def _about(found: Import, room: str) -> Iterator[str]:
    library = found.name.partition(".")[0]
    target = target_room(found.name)
    if not library:
        yield f"relative import of {found.name}"
    elif target is not None:
        allowed = ROOMS[room] | (TYPING_ROOMS.get(room, set()) if found.typing_only else set())
        if target != room and target not in allowed:
            yield f"{room} imports {target}"
    elif found.name in {f"os.{name}" for name in ENVIRONMENT}:
        yield "reads the environment"
    elif library not in sys.stdlib_module_names and not found.typing_only:
        yield from _about_library(library, room, found)


def _about_library(library: str, room: str, found: Import) -> Iterator[str]:
    if room not in OWNERS.get(library, {room}) or library not in LIBRARIES.get(room, {library}):
        yield f"{room} imports the library {library}"
    if found.at_start and library in HEAVY and room in LIGHT_ROOMS:
        yield f"{library} is loaded at start-up"


def all_complaints(package: Path) -> list[str]:
    return [one for path in sorted(package.rglob("*.py")) for one in complaints(path, package)]


def test_every_module_keeps_to_the_table() -> None:
    assert len(list(PACKAGE.rglob("*.py"))) > 10  # the right folder is read
    assert all_complaints(PACKAGE) == []


OFFENCES = [
    ("model/x.py", "from holitom_cli.pipeline import ask", "model imports pipeline"),
    ("model/x.py", "from holitom_cli import pipeline", "model imports pipeline"),
    ("video/x.py", "import holitom_cli.model.vision", "video imports model"),
    ("report/x.py", "def f():\n    from holitom_cli.cli import main", "report imports cli"),
    ("algebra/x.py", "from holitom_cli.types import Frames", "algebra imports types"),
    ("errors.py", "from holitom_cli import types", "errors imports types"),
    ("methods/x.py", "from holitom_cli.clock import Clock", "methods imports clock"),
    ("methods/x.py", "if TYPE_CHECKING:\n    from holitom_cli.clock import Clock", "methods imports clock"),
    ("types.py", "from holitom_cli.clock import Clock", "types imports clock"),
    ("report/x.py", "from holitom_cli import __version__", "report imports __init__"),
    ("model/x.py", "from . import vision", "relative import"),
    ("pipeline.py", "import typer", "pipeline imports the library typer"),
    ("video/x.py", "def f():\n    from rich.text import Text", "video imports the library rich"),
    ("report/x.py", "import typer", "report imports the library typer"),
    ("pipeline.py", "from transformers import AutoConfig", "pipeline imports the library transformers"),
    ("model/x.py", "import av", "model imports the library av"),
    ("algebra/x.py", "import av", "algebra imports the library av"),
    ("report/x.py", "def f():\n    import torch", "report imports the library torch"),
    ("cli/x.py", "import torch.nn.functional as F", "torch is loaded at start-up"),
    ("cli/x.py", "try:\n    import av\nexcept ImportError:\n    av = None", "av is loaded at start-up"),
    ("cli/x.py", "class A:\n    from numpy import array", "numpy is loaded at start-up"),
    ("__init__.py", "import numpy", "numpy is loaded at start-up"),
    ("video/x.py", "import os\nhome = os.environ['HOME']", "reads the environment"),
    ("cli/x.py", "import os\n\n\ndef f():\n    return os.getenv('HOME')", "reads the environment"),
    ("cli/x.py", "from os import environ", "reads the environment"),
    ("stray.py", "x = 1", "not in the table"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "source", "expected"), OFFENCES)
def test_control_offences_are_seen(tmp_path: Path, name: str, source: str, expected: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    assert any(expected in complaint for complaint in all_complaints(tmp_path))


ALLOWED = [
    ("cli/x.py", "def f():\n    import numpy"),
    ("types.py", "if TYPE_CHECKING:\n    import torch\n    from holitom_cli.clock import Clock"),
    ("report/x.py", "from rich.text import Text\nfrom holitom_cli.errors import HolitomError"),
    ("model/x.py", "import torch\nfrom holitom_cli.model.cache import StaticCache"),
    ("video/x.py", "import os\n\nos.dup(1)"),
]


@pytest.mark.parametrize(("name", "source"), ALLOWED)
def test_what_is_allowed_passes(tmp_path: Path, name: str, source: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(source, encoding="utf-8")
    assert all_complaints(tmp_path) == []


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Heavy libraries that a fresh interpreter has loaded after this code, also where it exits."""
    report = "json.dump(sorted({name.partition('.')[0] for name in sys.modules}), sys.stderr)"
    program = f"import atexit, json, sys\natexit.register(lambda: {report})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return HEAVY & set(json.loads(done.stderr))


HELP = "from holitom_cli.cli import main; main()"


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["--version"]])
def test_command_line_starts_without_heavy_libraries(arguments: list[str]) -> None:
    assert loaded_by(HELP, *arguments) == set()


def processor_seconds(code: str, runs: int) -> float:
    """Processor time of a fresh interpreter, best of some runs: what it takes where nothing else runs."""
    spent = []
    for _ in range(runs):
        before = os.times()
        subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, check=True, timeout=60)
        after = os.times()
        spent.append(sum(after[2:4]) - sum(before[2:4]))  # user and system time of ended children
    return min(spent)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not add up the time of children")
def test_help_is_there_at_once() -> None:
    assert processor_seconds(HELP, runs=5) <= 0.3
    assert processor_seconds("import torch", runs=1) > 0.3  # control: loading torch would be seen


def test_importing_the_package_loads_nothing_heavy() -> None:
    listed = "import holitom_cli; assert {'ask', 'watch', 'load_model'} <= set(dir(holitom_cli))"
    assert loaded_by(listed) == set()


def test_control_a_public_name_loads_torch() -> None:
    assert "torch" in loaded_by("import holitom_cli; assert callable(holitom_cli.load_model)")


def test_public_names_come_from_their_rooms() -> None:
    import holitom_cli
    from holitom_cli import conversation, methods, model, pipeline
    from holitom_cli.model import loading

    assert holitom_cli.Conversation is conversation.Conversation
    assert holitom_cli.load_model is loading.load_model
    assert (holitom_cli.ask, holitom_cli.watch) == (pipeline.ask, pipeline.watch)
    assert holitom_cli.choose is pipeline.choose
    assert (holitom_cli.methods, holitom_cli.model) == (methods, model)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = holitom_cli.nonsense
