"""What the documents say is tried: examples run, and every name in them exists."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from tests.make_random_checkpoint import RANDOM
from tests.test_layers import PACKAGE, ROOMS

if TYPE_CHECKING:
    from holitom_cli.model import Model
    from holitom_cli.types import Answer

ROOT = PACKAGE.parent
README, ARCHITECTURE = ROOT / "README.md", ROOT / "docs" / "architecture.md"
DEMO = PACKAGE / "assets" / "demo"
ADDING = ROOT / "docs" / "adding-a-method.md"
BATCH = ROOT / "docs" / "batch.md"
SERVE = ROOT / "docs" / "serve.md"
DOCUMENTS = [README, ARCHITECTURE, BATCH, ADDING, SERVE, ROOT / "docs" / "report.md", ROOT / "docs" / "video.md"]


def blocks(document: Path | str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    text = document if isinstance(document, str) else document.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def table(document: Path, first_heading: str) -> list[list[str]]:
    """The cells of the one table whose first heading is this, without the heading."""
    text = document.read_text(encoding="utf-8")
    (rows,) = re.findall(rf"^\| {first_heading} \|.*\n\|[ |-]*\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


# --- shell examples ----------------------------------------------------------------------------


def shell_commands(text: str) -> Iterator[list[str]]:
    """Every simple command of the text's shell examples, as words; output and comments are left out."""
    for block in [*blocks(text, "sh"), *blocks(text, "console")]:
        with_output = block.startswith("$ ")
        for line in block.replace("\\\n", " ").splitlines():
            if with_output and not line.startswith("$ "):
                continue
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|;<>")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in lexer:
                if set(word) <= set("|;"):
                    yield words
                    words = []
                else:
                    words.append(word)
            yield words


def wrong_words(words: list[str], make_targets: set[str]) -> list[str]:
    """What does not exist of a `holitom` or `make` command line: its command, options or target."""
    import typer

    from holitom_cli.cli.app import app

    if words[:1] == ["make"]:
        return [word for word in words[1:] if "=" not in word and word not in make_targets]
    if words[:1] != ["holitom"]:
        return []
    group: Any = typer.main.get_command(app)
    command = group if len(words) < 2 or words[1].startswith("-") else group.commands.get(words[1])
    if command is None:
        return [words[1]]
    known = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
    options = [word.partition("=")[0] for word in words[1:] if re.match(r"--?[A-Za-z]", word)]
    return [option for option in options if option not in known]


@pytest.fixture(scope="module")
def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_shell_examples_name_what_exists(document: Path, make_targets: set[str]) -> None:
    commands = list(shell_commands(document.read_text(encoding="utf-8")))
    assert [wrong for words in commands for wrong in wrong_words(words, make_targets)] == []


def test_readme_shows_the_commands_that_matter() -> None:
    shown = [" ".join(words) for words in shell_commands(README.read_text(encoding="utf-8"))]
    for start in (
        "make demo",
        "make test",
        "holitom demo",
        "holitom ask",
        "holitom batch",
        "holitom doctor",
        "uv tool install",
    ):
        assert any(line.startswith(start) for line in shown), start


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("holitom look clip.mp4", "look"),
        ("holitom ask clip.mp4 'How?' --keep 3", "--keep"),
        ("cat q.txt | holitom ask clip.mp4 - -z", "-z"),
        ("make tea", "tea"),
    ],
)
def test_control_wrong_shell_examples_are_seen(line: str, wrong: str, make_targets: set[str]) -> None:
    for text in (f"```sh\n{line}\n```\n", f"```console\n$ {line}\nsome output\n```\n"):
        found = [word for words in shell_commands(text) for word in wrong_words(words, make_targets)]
        assert found == [wrong]


# --- README ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """What the README's Python example printed, and the names that it left."""

    printed: str
    names: dict[str, Any]

    @property
    def model(self) -> Model:
        return self.names["model"]  # type: ignore[no-any-return]

    @property
    def answer(self) -> Answer:
        return self.names["answer"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """The README's Python example, run in a folder that holds its clip."""
    (code,) = blocks(README, "python")
    folder = tmp_path_factory.mktemp("example")
    (folder / "shapes.mp4").symlink_to(DEMO / "shapes.mp4")
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "stdout", printed)
        exec(compile(code, str(README), "exec"), names)
    return Example(printed.getvalue(), names)


def test_python_example_prints_what_the_readme_shows(example: Example) -> None:
    (shown,) = blocks(README, "text")
    assert without_noise(example.printed) == without_noise(shown)
    assert example.answer.tokens.original == 32 * demo_patches()


def demo_patches() -> int:
    """Visual tokens a frame of the demo model."""
    from holitom_cli.model.hub import locate
    from holitom_cli.model.loading import read_checkpoint

    return read_checkpoint(locate("demo")).visual_grid ** 2


def without_noise(printed: str) -> list[str]:
    """Lines with their numbers masked; answers, which are all words, become one mark."""
    return [re.sub(r"[\d.]+", "N", line) if re.search(r"\d", line) else "words" for line in printed.splitlines()]


def test_readmes_report_has_todays_rows(example: Example) -> None:
    """A report pasted long ago would lack rows that the report has now, or name others."""
    (shown, *_) = (block for block in blocks(README, "console") if block.startswith("$ holitom ask"))
    rows = labels(rendered(example.answer))
    assert {"file", "decoder", "temporal merge", "TTFT", "true FLOPs"} <= rows
    assert rows - labels(shown) <= {"per token"}  # missing when an answer has one token only
    changed = shown.replace("temporal merge", "merge over time")
    assert rows - labels(changed) == {"temporal merge"}  # control


def test_readme_shows_the_demo_that_is_bundled() -> None:
    (shown, *_) = (block for block in blocks(README, "console") if block.startswith("$ holitom demo"))
    items = [json.loads(line) for line in (DEMO / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    said = "".join(f"{item['question']}\n  {item['answer']}  right\n" for item in items)
    assert shown.startswith(f"$ holitom demo\n{said}")


def labels(report: str) -> set[str]:
    """First columns of the rows below the headings."""
    return set(re.findall(r"^  ([A-Za-z][A-Za-z ]*?)(?:  |, )", report, re.MULTILINE))


def rendered(answer: Answer) -> str:
    from rich.console import Console

    from holitom_cli.report.terminal import report

    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(report([answer]))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_settings_table_is_complete_and_has_the_defaults() -> None:
    from holitom_cli import methods

    cls = methods.find("holitom")
    described = {row[0].strip("`"): row[1] for row in table(README, "setting")}
    assert described == {field.name: str(field.default) for field in methods.settings_of(cls)}
    text = README.read_text(encoding="utf-8")
    for name, values in cls.presets.items():
        assert f"`--preset {name}`" in text
        assert values["retain_ratio"] == int(name) / 100
    assert cls.presets["10"]["tau"] == 0.65
    assert "tau 0.65" in text


def test_figures_in_the_text_are_the_programs() -> None:
    from holitom_cli.model.hub import _LARGE_NEEDS_GIB

    assert f"at least {_LARGE_NEEDS_GIB[None]} GiB" in README.read_text(encoding="utf-8")


def test_batch_example_shows_todays_sentence(tmp_path: Path) -> None:
    from holitom_cli.errors import VideoError
    from holitom_cli.video import probe

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all" * 50)
    with pytest.raises(VideoError) as caught:
        probe(broken)
    assert f"clips/broken.mp4: failed: {caught.value.message}\n" in README.read_text(encoding="utf-8")


def test_exit_codes_are_those_of_the_program() -> None:
    from holitom_cli.cli.guard import INTERRUPTED
    from holitom_cli.cli.rows import SOME_FAILED
    from holitom_cli.errors import HolitomError, UsageError

    meanings = {int(row[0]): row[1] for row in table(README, "exit code")}
    assert set(meanings) == {0, HolitomError.exit_code, UsageError.exit_code, SOME_FAILED, INTERRUPTED}
    assert "batch" in meanings[SOME_FAILED]
    assert "Ctrl-C" in meanings[INTERRUPTED]


def test_jq_example_names_keys_of_the_document(example: Example) -> None:
    from holitom_cli.report.record import document

    filters = [words[-1] for words in shell_commands(README.read_text(encoding="utf-8")) if words[:1] == ["jq"]]
    (entry,) = document([example.answer])["results"]
    paths = [path for text in filters[:1] for path in re.findall(r"\\\((\.[a-z_.]+)", text)]
    assert ".question" in paths
    assert [path for path in paths if not has_path(entry, path)] == []
    assert not has_path(entry, ".tokens.kept")  # control


def has_path(value: Any, path: str) -> bool:
    for name in path.removeprefix(".").split("."):
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True


def test_config_example_sets_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from holitom_cli.cli import config
    from holitom_cli.errors import UsageError

    (toml,) = blocks(README, "toml")
    file = tmp_path / "config.toml"
    monkeypatch.setattr(config, "config_file", lambda: file)
    file.write_text(toml, encoding="utf-8")
    assert config.defaults()["num_frames"] == 64
    file.write_text(toml.replace("num_frames", "frames"), encoding="utf-8")
    with pytest.raises(UsageError, match="'frames'"):  # control
        config.defaults()


def test_environment_variables_are_known() -> None:
    import typer

    from holitom_cli.cli.app import app

    group: Any = typer.main.get_command(app)
    listed = [parameter.envvar for command in group.commands.values() for parameter in command.params]
    known = {name for names in listed for name in ([names] if isinstance(names, str) else names or [])}
    named = {name for path in DOCUMENTS for name in re.findall(r"HOLITOM_[A-Z_]+[A-Z]", path.read_text("utf-8"))}
    assert named
    assert named <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


# --- architecture ------------------------------------------------------------------------------


def existing_rooms() -> set[str]:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    return folders | modules


def test_table_of_rooms_is_the_one_that_is_enforced() -> None:
    described = {row[0].strip("`/").removesuffix(".py"): row[2] for row in table(ARCHITECTURE, "room")}
    assert set(described) == existing_rooms()
    for room, may_import in described.items():
        expected = (ROOMS[room] - {"__init__"}) & existing_rooms()
        assert set(re.findall(r"`([a-z]+)`", may_import)) == expected, room


def missing_modules(text: str) -> list[str]:
    """Modules and folders named in backticks that are neither in the package nor in the project."""
    named = re.findall(r"`([\w/]+(?:\.py|/))(?:::\w+)?`", text)
    return [name for name in named if not ((PACKAGE / name).exists() or (ROOT / name).exists())]


def test_every_module_named_exists() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    assert missing_modules(text) == []
    assert missing_modules("see `video/nothing.py` and `cellar/`") == ["video/nothing.py", "cellar/"]  # control


def test_every_module_is_named() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    modules = [path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__")]
    # docs/cli.md has the commands, and docs/methods.md the methods, of which a clone may have its own.
    names = [path.relative_to(PACKAGE).as_posix() for path in modules if path.parent.name not in ("cli", "methods")]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_name_of_the_contracts_exists() -> None:
    """`Type.field` in backticks is an attribute or a field."""
    from holitom_cli import types

    named = re.findall(r"`([A-Z]\w+)\.(\w+)`", ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(named) >= 5
    owners = vars(types)
    assert [f"{owner}.{name}" for owner, name in named if not known_field(owners.get(owner), name)] == []
    assert not known_field(types.Frames, "pictures")  # control


def known_field(owner: Any, name: str) -> bool:
    return name in getattr(owner, "__annotations__", {}) or hasattr(owner, name)


# --- adding a method ---------------------------------------------------------------------------


@pytest.fixture
def stride(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The document's method as if its file were in the package."""
    from holitom_cli import methods

    (code,) = blocks(ADDING, "python")
    (tmp_path / "stride.py").write_text(code, encoding="utf-8")
    assert "stride" not in methods.available()  # control: it is this file that is found
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    yield methods
    sys.modules.pop("holitom_cli.methods.stride", None)
    vars(methods).pop("stride", None)


def test_example_method_passes_the_projects_linter(tmp_path: Path) -> None:
    (code,) = blocks(ADDING, "python")
    assert lint(code) == ""
    assert "F401" in lint("import math\n")  # control


def lint(code: str) -> str:
    place = ["--config", str(ROOT / "pyproject.toml"), "--stdin-filename", str(PACKAGE / "methods" / "stride.py")]
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--no-cache", "--output-format", "concise", *place]
    return subprocess.run([*command, "-"], input=code, capture_output=True, text=True, timeout=60, check=False).stdout


def test_example_method_is_found_with_its_settings(stride: ModuleType) -> None:
    from holitom_cli.errors import MethodError

    assert "stride" in stride.available()
    assert stride.get("stride", every="14").every == 14  # as --set gives it
    assert stride.name_of(stride.get("stride")) == "stride"
    with pytest.raises(MethodError, match="Setting every is 0"):
        stride.get("stride", every=0)
    with pytest.raises(MethodError, match="has 6 layers"):
        stride.get("stride", halve_layer=6).reductions(6)


@pytest.mark.parametrize("every", [1, 7, 100])
def test_example_method_keeps_the_contract(stride: ModuleType, every: int) -> None:
    from tests.methods.test_contract import CLIPS, broken_promises, features

    method = stride.get("stride", every=every)
    for video in map(features, CLIPS):
        visual = method.compress(video)
        assert broken_promises(video, visual) == []
        assert len(visual) == method.most_tokens(*video.tokens.shape[:2])


@pytest.mark.parametrize("rows", [1, 2, 17])
def test_example_reduction_keeps_the_convention(stride: ModuleType, rows: int) -> None:
    import torch

    from tests.methods.test_contract import view, wrong_reduction

    (reduction,) = stride.get("stride", halve_layer=2).reductions(6).values()
    seen = view(rows, 1, 6, torch.float32)
    states, into = reduction.apply(seen)
    assert wrong_reduction(seen, states, into) == []
    assert len(states) == (rows + 1) // 2
    least_kept = seen.attention[-1][into >= 0].min()
    assert (seen.attention[-1][into < 0] <= least_kept).all()


@pytest.mark.usefixtures("stride")
def test_example_methods_python_lines_run(
    demo_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks(ADDING, "py")
    (tmp_path / "clip.mp4").symlink_to(demo_clip)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(ADDING), "exec"), {})
    visual = 32 * -(-demo_patches() // 14)
    assert f"('stride', {visual})" in capsys.readouterr().out


def test_example_method_answers(stride: ModuleType, demo_clip: Path) -> None:
    from holitom_cli import ask, load_model, video, watch
    from holitom_cli.types import Frames

    model, whole = load_model(RANDOM, device="cpu"), video.read(demo_clip, 32)
    frames = Frames(whole.pixels[::8], whole.seconds[::8])

    def answer(method: str, **settings: Any) -> Answer:
        return ask(model, watch(model, frames, method=method, **settings), "What happens?", max_new_tokens=6)

    full, every_seventh = answer("full"), answer("stride", halve_layer=4)
    assert answer("stride", every=1).token_ids == full.token_ids
    assert every_seventh.token_ids != full.token_ids  # control
    assert every_seventh.method == "stride"
    assert every_seventh.tokens.funnel == (("sampled", 4 * 196), ("stride", 4 * 28))
    rows = (4 * 28 + 2) // 2  # half of the span, newline token included, rounded up
    assert every_seventh.tokens.inside == ((4, rows),)
    assert int(every_seventh.inner_size.sum()) in (rows - 1, rows)  # nothing was merged; the newline stands for none
