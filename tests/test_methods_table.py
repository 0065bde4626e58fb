"""The maintainer's script behind the figures of docs/methods.md: from rows of eval and bench to tables and plots."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from holitom_cli import methods
from holitom_cli.quality.statistics import against, standard_error
from tests import methods_table
from tests.methods.test_documented import documented
from tests.test_docs import table

SVG = "{http://www.w3.org/2000/svg}"
PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
QUESTIONS = 8  # two a clip


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    page = f"# Methods\n\nbefore\n\n{methods_table.BEGIN}old\n<!-- end of figures -->\n\nafter\n"
    (tmp_path / "docs" / "methods.md").write_text(page, encoding="utf-8")
    return tmp_path / "docs"


def answers(method: str, budget: float | str, right: int, flops: float = 1e9, count: int = QUESTIONS) -> list[Any]:
    """Rows of an evaluation in which the first `right` questions are answered well."""
    return [
        {
            "key": f"{method}-{budget}-{number}", "checkpoint": "demo", "video": f"shapes-0-{number // 2}",
            "question": f"What is {number}?", "type": "count", "method": method, "budget": budget, "answer": "one",
            "correct": number < right, "tokens": 100, "true_flops": 3 * flops, "paper_flops": flops, "ttft_ms": 1.0,
        }
        for number in range(count)
    ]  # fmt: skip


def timed(rival: str, budget: float, ttft_ms: float, **more: Any) -> dict[str, Any]:
    """A row of a benchmark; its prefill of 2 ms at 500 TFLOP/s is 1 TFLOP."""
    prefill = {"median_ms": 2.0, "tflop_per_s": 500.0}
    stages = {"compress": {"median_ms": 0.7}, "prefill": prefill, "ttft": {"median_ms": ttft_ms}}
    known = {"model": "shape:7b", "dtype": "bfloat16", "quantize": None, "device_name": "A card", "frames": 32}
    memory = {"beyond_weights_bytes": 3 * 2**20, "cache_bytes": 2**20}
    return known | {"rival": rival, "budget": budget, "visual_tokens": 941, "stages": stages, "memory": memory} | more


def write_rows(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


GOOD = [*answers("full", 100, 8, 9e9), *answers("vidcom2", 15, 6), *answers("vidcom2", 5, 4, 4e8)]
OTHERS = [*answers("full", 100, 8, 9e9), *answers("holitom", 15, 7, 5e8), *answers("inner", 100, 8, 7e9)]
TIMES = [timed("full", 100, 190.0), timed("holitom", 15, 60.0), timed("vidcom2", 15, 62.5)]


class Written:
    """The page after the script has run."""

    def __init__(self, docs: Path, *arguments: str) -> None:
        methods_table.main([*arguments, "--docs", str(docs)])
        self.page = docs / "methods.md"
        self.text = self.page.read_text(encoding="utf-8")

    def rows(self, heading: str) -> dict[str, list[str]]:
        """Cells by method of the table with this first heading."""
        return {row[0].strip("`"): row[1:] for row in table(self.page, heading)}

    @property
    def accuracies(self) -> dict[str, list[str]]:
        return self.rows("accuracy, %")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    one, other = write_rows(tmp_path / "a.jsonl", GOOD), write_rows(tmp_path / "b.jsonl", OTHERS)
    return [one, other, "--bench", write_rows(tmp_path / "bench.jsonl", TIMES)]


def test_accuracies_are_the_packages_own_statistics(docs: Path, files: list[str]) -> None:
    found = Written(docs, *files).accuracies
    error = 100 * (standard_error([True] * 6 + [False] * 2) or 0)
    assert found["full"] == ["100.0 ± 0.0", "", "", "", "", "", ""]
    _, _, _, at_15, at_10, at_5, paired = found["vidcom2"]
    assert at_15 == f"75.0 ± {error:.1f} (75%)"
    assert (at_10, at_5[:12]) == ("–", "50.0 ± 18.9 ")
    answered = methods_table.read_answers([Path(file) for file in files[:2]], 0).judged
    change = against(answered["vidcom2", 15], answered["holitom", 15], 0)
    assert change
    assert paired == f"-12.5 ({100 * change['low']:+.1f} to {100 * change['high']:+.1f})"
    assert found["inner"][0] == "100.0 ± 0.0 (100%)"


def test_methods_are_sorted_by_accuracy_at_15_percent(docs: Path, files: list[str], tmp_path: Path) -> None:
    before = Written(docs, *files)
    assert list(before.accuracies)[:4] == ["full", "holitom", "vidcom2", "inner"]
    assert list(before.rows("cost at 15%"))[:4] == ["full", "holitom", "vidcom2", "inner"]
    better = [*answers("full", 100, 8), *answers("vidcom2", 15, 8)]  # control: another file, another table
    after = Written(docs, write_rows(tmp_path / "a.jsonl", better), *files[1:])
    assert list(after.accuracies)[:3] == ["full", "vidcom2", "holitom"]
    assert after.text != before.text


def test_costs_are_those_of_the_benchmark(docs: Path, files: list[str]) -> None:
    written = Written(docs, *files)
    found = written.rows("cost at 15%")
    assert found["vidcom2"] == ["941", "1.0 TFLOP", "0.7 ms", "62.5 ms", "3.04x", "3.0 MiB", "1.0 MiB"]
    assert found["full"][4] == ""
    assert found["uniform"] == ["–"] * 7
    assert "shape:7b (random weights) in bfloat16 on A card, 32 frames" in written.text
    named = Written(docs, *files, "--device", "an H200", "--checkpoint", "mine", "--note", "One.", "--note", "Two.")
    assert "on an H200, 32 frames" in named.text
    assert "Checkpoint: mine (" in named.text
    assert "\nOne. Two.\n" in named.text


def test_every_registered_method_is_there_and_those_without_figures_say_so(docs: Path, files: list[str]) -> None:
    found = Written(docs, *files).accuracies
    own = {name for name in methods.available() if methods.find(name).status == methods.Method.status}
    assert set(found) == set(methods.available()) - own
    assert found["uniform"] == ["no figures yet", *["–"] * 5, ""]
    assert found["dycoke"] == ["no figures yet", "–", *["*cannot*"] * 4, ""]


def test_what_cannot_be_kept_depends_on_the_layers(docs: Path, files: list[str]) -> None:
    assert Written(docs, *files, "--depth", "7").accuracies["fastv"] == ["", *["*cannot*"] * 5, ""]
    deep = Written(docs, *files, "--depth", "28")
    assert deep.accuracies["fastv"] == ["no figures yet", "–", "–", "–", "–", "*cannot*", ""]
    assert deep.rows("cost at 15%")["pyramiddrop"][0] == "*cannot*"  # in the 28 layers that were timed


def test_every_figure_stands_in_one_table(docs: Path, files: list[str]) -> None:
    page = Written(docs, *files).page
    found = {(row[0].strip("`"), row[1]): row[2:] for row in table(page, "every figure")}
    assert list(found) == [
        ("full", "100%"),
        ("holitom", "15%"),
        ("vidcom2", "15%"),
        ("vidcom2", "5%"),
        ("inner", "100%"),
    ]
    questions, reached, of_full, _, gained, lost, *costs = found["vidcom2", "15%"]
    assert (questions, reached[:5], of_full, gained, lost) == ("8", "75.0%", "75.0%", "0", "2")
    assert costs == ["100", "1.0 GFLOP", "3.0 GFLOP", "941", "1.0 TFLOP", "62.5 ms", "3.0 MiB"]
    assert found["vidcom2", "5%"][-4:] == ["–"] * 4


def test_numbers_of_tokens_and_settings_have_rows_of_their_own(docs: Path, tmp_path: Path) -> None:
    rows = [*answers("full", 100, 8), *answers("holitom:inner_layer=off", 15, 5), *answers("random", "940t", 3)]
    written = Written(docs, write_rows(tmp_path / "a.jsonl", rows))
    assert written.accuracies["holitom:inner_layer=off"][3].startswith("62.5 ±")
    assert written.accuracies["random"][1:6] == ["–"] * 5
    assert [row[1] for row in table(written.page, "every figure") if row[0] == "`random`"] == ["940 tokens"]


def test_fewer_questions_are_told(docs: Path, tmp_path: Path) -> None:
    rows = [*answers("full", 100, 8), *answers("evs", 15, 2, count=4), {"key": "k", "error": {"message": "No."}}]
    written = Written(docs, write_rows(tmp_path / "a.jsonl", rows))
    assert written.accuracies["evs"][3] == "50.0 ± 28.9 (50%) of 4"
    assert "8 questions about 4 clips of shapes-0;" in written.text
    assert "1 question failed." in written.text


def test_pictures_show_what_is_cheaper_than_half_of_full(docs: Path, files: list[str]) -> None:
    Written(docs, *files)
    expected = {methods_table.FLOPS_PLOT: {"vidcom2", "holitom"}, methods_table.TTFT_PLOT: {"vidcom2", "holitom"}}
    for name, shown in expected.items():
        root = ElementTree.parse(docs / name).getroot()
        words = {str(item.text) for item in root.iter(f"{SVG}text")}
        assert words & {*methods.available()} == {*shown, "full"}  # inner takes 7 of full's 9 GFLOP
        assert "vidcom2 at 15%: 75.0% ± 16.4" in {str(item.text) for item in root.iter(f"{SVG}title")}


def test_without_figures_the_page_says_so(docs: Path, files: list[str]) -> None:
    Written(docs, *files)
    written = Written(docs)  # nothing of the figures before is left
    assert "No answers yet." in written.text
    assert "No times yet." in written.text
    assert written.accuracies["holitom"][0] == "no figures yet"
    assert not list(docs.glob("*.svg"))
    assert written.text.startswith("# Methods\n\nbefore\n")
    assert written.text.endswith("\nafter\n")
    only_times = Written(docs, *files[2:])
    assert only_times.rows("cost at 15%")["holitom"][0] == "941"


def test_a_rival_that_failed_is_told(docs: Path, tmp_path: Path) -> None:
    fault = {"stage": "device", "message": "Too little memory.", "hint": ""}
    failed = {name: value for name, value in timed("evs", 15, 1.0).items() if name not in ("stages", "memory")}
    refused = failed | {"rival": "dycoke", "error": fault}
    rows = [*TIMES, failed | {"error": fault}, refused, timed("holitom", 15, 61.0)]
    log = tmp_path / "bench.log"
    write_rows(log, rows)
    log.write_text("Timing shape:7b\n" + log.read_text(encoding="utf-8"), encoding="utf-8")
    found = Written(docs, "--bench", str(log)).rows("cost at 15%")
    assert found["evs"] == ["failed", *["–"] * 6]
    assert found["dycoke"][0] == "*cannot*"
    assert found["holitom"][3] == "61.0 ms"  # the later one


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*answers("full", 100, 8), answers("evs", 15, 2)[0] | {"checkpoint": "other"}], "is of the checkpoint other"),
        ([*answers("full", 100, 8), answers("full", 100, 8)[0] | {"key": "x"}], "in another run as well"),
        ([{"rival": "full"}], "holds no rows of holitom eval"),
        ([{"key": "a", "answer": "of a batch"}], "holds no rows of holitom eval"),
    ],
)
def test_rows_that_cannot_stand_beside_each_other(docs: Path, tmp_path: Path, rows: list[Any], said: str) -> None:
    before = (docs / "methods.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match=said):
        Written(docs, write_rows(tmp_path / "a.jsonl", rows))
    assert (docs / "methods.md").read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*TIMES, timed("evs", 15, 1.0, frames=64)], "frames is 64, and 32 before"),
        (GOOD, "holds no rows of holitom bench"),
    ],
)
def test_times_that_cannot_stand_beside_each_other(docs: Path, tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        Written(docs, "--bench", write_rows(tmp_path / "b.jsonl", rows))


def test_files_that_are_not_there(docs: Path) -> None:
    for arguments in (["nothing.jsonl"], ["--bench", "nothing.jsonl"]):
        with pytest.raises(SystemExit, match=r"There is no file nothing\.jsonl"):
            Written(docs, *arguments)


# --- the page itself ----------------------------------------------------------------------------


def missing(page: Path) -> set[str]:
    """Methods that the page has to have figures of, or to say that there are none yet."""
    return {name for name in documented() if name not in {row[0].strip("`") for row in table(page, "accuracy, %")}}


def test_the_documented_page_has_every_method(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(methods_table.BEGIN) == 1
    assert missing(PAGE) == set(), (
        "run the script again, or add a row: | `name` | no figures yet | – | – | – | – | – |  |"
    )
    changed = re.sub(r"^\| `evs` \| .*±.*\n|^\| `evs` \| no figures yet.*\n", "", text, flags=re.MULTILINE)
    (tmp_path / "changed.md").write_text(changed, encoding="utf-8")
    assert missing(tmp_path / "changed.md") == {"evs"}  # control


def test_the_documented_pages_pictures_are_there() -> None:
    for name in re.findall(r"!\[.*?\]\((.+?)\)", PAGE.read_text(encoding="utf-8")):
        ElementTree.parse(PAGE.parent / name)
