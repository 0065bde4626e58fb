"""The maintainer's script behind docs/quality.md: it measures, goes on, pairs, and writes tables and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from holitom_cli.quality.shapes import shapes
from tests import quality_curve
from tests.make_random_checkpoint import RANDOM
from tests.program import SCHEMA

SVG = "{http://www.w3.org/2000/svg}"
PAGE = Path(__file__).parent.parent / "docs" / "quality.md"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    page = f"# Quality\n\nbefore\n\n{quality_curve.BEGIN}old\n{quality_curve.END}\nafter\n"
    (tmp_path / "docs" / "quality.md").write_text(page, encoding="utf-8")
    return tmp_path / "docs"


def row(number: int, correct: bool, video: str = "shapes-0-000000", method: str = "full") -> dict[str, Any]:
    figures = {"tokens": 9, "true_flops": 1.0, "paper_flops": 1.0, "ttft_ms": 1.0}
    known = {"video": video, "question": f"What is {number}?", "type": "count", "method": method, "budget": 100}
    return known | {"answer": "one", "correct": correct} | figures


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def test_runs_are_paired_by_clip_and_question(tmp_path: Path) -> None:
    ours = write_rows(tmp_path / "a", [row(1, True), row(2, True), row(3, False), row(4, True), row(5, True)])
    files = [
        row(number, right, "shapes-0-000000.mp4") for number, right in ((1, False), (2, True), (3, True), (4, False))
    ]
    failed = {"key": "k", "video": "shapes-0-000000.mp4", "question": "What is 5?", "error": {}}
    other = [row(1, True, "shapes-0-000001.mp4"), row(1, True, "shapes-0-000000.mp4", method="uniform")]  # no partner
    theirs = write_rows(tmp_path / "b", [*files, failed, *other])
    found = list(quality_curve.compared(quality_curve.read(ours), {"files": theirs}, 0))
    ((name, method, budget, questions, painted, there, difference, gained, lost),) = found
    assert (name, method, budget, questions) == ("files", "`full`", "100%", "4")
    assert painted.startswith("75.0% ± ")
    assert (there, difference, gained, lost) == ("50.0%", "-25.0", "1", "2")


def test_it_measures_writes_and_goes_on(tmp_path: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_curve, "PARTS", (("full", "random"), ("holitom",)))
    monkeypatch.setattr(quality_curve, "BUDGETS", "15,10")
    monkeypatch.setattr(quality_curve, "AS_FILES", ("--methods", "full"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HOLITOM_NUM_FRAMES", "2")
    out = tmp_path / "out"

    def run() -> str:
        quality_curve.main([str(out), "--model", str(RANDOM), "--limit", "6", "--docs", str(docs)])
        return (docs / "quality.md").read_text(encoding="utf-8")

    page = run()
    clips = len({item.clip for item in shapes(limit=6)})
    rows = [json.loads(line) for line in (out / "tensors.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 6 * 5
    for one in rows:
        SCHEMA.validate(one)
    assert page.startswith("# Quality\n\nbefore\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page
    assert f"6 questions about {clips} clips, set shapes, seed 0" in page
    for cell in ("\n| `full` | 100% |", "| `holitom` | 10% |", "| `random` | 15% |", "| files | `full` | 100% | 6 |"):
        assert page.count(cell) == 1
    assert len(list((out / "clips").glob("*.mp4"))) == clips
    ElementTree.parse(docs / quality_curve.PLOT)
    written = (out / "tensors.jsonl").read_bytes(), (out / "files.jsonl").read_bytes()
    monkeypatch.setattr(quality_curve, "write_clip", None)  # a clip that is there is not written again
    assert run() == page
    assert ((out / "tensors.jsonl").read_bytes(), (out / "files.jsonl").read_bytes()) == written


def test_a_page_without_a_place_is_left_alone(docs: Path) -> None:
    page = docs / "quality.md"
    page.write_text("# Quality\n", encoding="utf-8")
    result = {
        "method": "full", "budget": 100, "tokens": 9, "accuracy": 0.5, "stderr": None, "flops": 1.0, "paper_flops": 1.0,
        "by_type": {}, "against_full": {"kept": 1, "difference": 0, "low": None, "gained": 0, "lost": 0},
    }  # fmt: skip
    other = result | {"method": "holitom", "budget": 15}
    known = {"id": "x", "parameters": 1, "dtype": "float32", "device_name": "CPU"}
    asked = {"questions": 2, "videos": 1, "set": "shapes", "seed": 0}
    versions = dict.fromkeys(("holitom_cli", "torch", "transformers"), "1")
    document = {"model": known, "settings": asked, "versions": versions, "results": [result, other]}
    with pytest.raises(SystemExit, match="has no place for figures"):
        quality_curve.write(docs, document, iter([]))
    assert page.read_text(encoding="utf-8") == "# Quality\n"


def test_the_documented_page_has_its_place() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(quality_curve.BEGIN) == page.count(quality_curve.END) == 1
    assert page.index(quality_curve.BEGIN) < page.index(quality_curve.END)


def test_the_picture_has_a_line_for_each_method_and_full_as_a_level() -> None:
    common: dict[str, Any] = {"stderr": 0.01}
    results = [
        common | {"method": "full", "budget": 100, "accuracy": 0.99},
        *(common | {"method": "uniform", "budget": budget, "accuracy": 0.8} for budget in (25, 5)),
        *(common | {"method": "holitom", "budget": budget, "accuracy": 0.9} for budget in (25, 5)),
    ]
    root = ElementTree.fromstring(quality_curve.picture({"model": {"id": "x"}, "results": results}))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"Accuracy of the checkpoint x on generated clips", "HoliTom", "uniform", "full", "5%", "25%"} <= set(texts)
    assert len([path for path in root.iter(f"{SVG}path") if str(path.get("class")).startswith("way")]) == 2
    assert not list(root.iter(f"{SVG}circle"))  # full is no point at a budget
