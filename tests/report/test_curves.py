"""Pages about methods side by side: what they say is what the document says, and outside words stay words."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holitom_cli.report.comparison import Compared, agreement, full_of
from holitom_cli.report.curves import comparison_page, evaluation_page
from holitom_cli.report.evaluation import evaluation_document
from holitom_cli.report.record import comparison
from holitom_cli.report.text import visible
from holitom_cli.types import Answer, Choice
from tests.program import FAST, Invoke, invoke
from tests.report.factory import make_answer, make_baseline, make_frames, make_model, make_video
from tests.report.test_page import HOSTILE, Reader

__all__ = ["invoke"]

SETTINGS: dict[str, Any] = {"questions_file": None, "set": "shapes", "questions": 40, "videos": 8, "num_frames": 32}


def result(
    method: str, budget: float | str, accuracy: float | None, tokens: float, kind: str = "when"
) -> dict[str, Any]:
    against = {"kept": 0.9, "difference": -0.1, "low": -0.2, "high": 0.0, "gained": 1, "lost": 5, "questions": 40}
    cost = {"tokens": tokens, "flops": 1e9 * tokens, "paper_flops": 9e8 * tokens, "ttft_ms": tokens / 10}
    return {
        "method": method, "budget": budget, "accuracy": accuracy, "stderr": None if accuracy is None else 0.04,
        "failed": 0, "questions": 40, "by_type": {kind: {"accuracy": accuracy, "questions": 40}},
        "against_full": against, **(cost if accuracy is not None else dict.fromkeys(cost)),
    }  # fmt: skip


RESULTS = [
    result("full", 100, 0.9, 1568),
    result("holitom", 15, 0.8, 197),
    result("holitom", "78t", 0.7, 78),
    result("random", 15, 0.6, 235),
]


def evaluated(results: Sequence[dict[str, Any]] = RESULTS, words: str | None = None) -> str:
    model = make_model(kind="demo") if words is None else make_model(kind="random", id=words, device_name=words)
    asked = SETTINGS if words is None else SETTINGS | {"set": None, "questions_file": words}
    document = evaluation_document(model, {"torch": "2.13"}, asked, results)
    return evaluation_page(model, json.loads(json.dumps(document)))


def compared(words: str | None = None) -> list[Compared]:
    ours, full = make_answer(), make_baseline()
    few = replace(ours, token_ids=(*ours.token_ids[:6], 99), text="He is not.", warnings=("Noise.",))
    rows = [Compared("full", 100, full), Compared("holitom", 15, ours), Compared("uniform", "940t", few)]
    if words is None:
        return rows
    video = make_frames(video=make_video(path=f"clips/{words}"))
    bad: dict[str, Any] = {
        "question": words,
        "text": words,
        "frames": video,
        "warnings": (words,),
        "model": make_model(id=words),
    }
    return [
        replace(row, method="full" if row.method == "full" else words, answer=replace(row.answer, **bad))
        for row in rows
    ]


def shown(rows: Sequence[Compared]) -> str:
    return comparison_page(rows, comparison([row.answer for row in rows], [row.budget for row in rows], full_of(rows)))


# --- an evaluation -------------------------------------------------------------------------------


def test_every_result_is_a_point_and_a_row() -> None:
    page = evaluated()
    made = Reader(page)
    assert "40 questions about 8 clips" in made.words
    assert "Accuracy on shapes" in made.words
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 3
    for plot, costs in zip(
        plots, (["197", "78", "235", "1,568"], ["197.0 GFLOP", "78.0 GFLOP"], ["19.7 ms"]), strict=True
    ):
        said = re.findall(r"<title>(.*?)</title>", plot)
        for cost in costs:
            assert any(title.endswith(f", {cost}") for title in said), (cost, said)
        assert "holitom at 78 tokens: 70.0% ± 4.0" in " ".join(said)
        assert len(re.findall(r'class="bar ', plot)) == 3  # full has a band
    cells = re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
    assert any(re.search(r"holitom.*15%.*80\.0% ± 4\.0", row) for row in cells)
    assert any(re.search(r"random.*15%.*-10\.0 \(-20\.0 to \+0\.0\)", row) for row in cells)
    assert "results 2.by_type.when.accuracy" in made.words


def test_types_stand_in_one_table_however_many_methods_there_are() -> None:
    many = [result(f"m{number}", 15, 0.5, 100 + number) for number in range(9)]
    page = evaluated(many)
    assert page.count('<h2 id="part') == 4  # accuracy, against full, cost, by type
    types = page.split("By type</h2>")[1].split("</table>")[0]
    assert re.findall(r'scope="col">(.*?)<', types) == ["method", "budget", "when"]
    assert types.count("50.0%") == 9


def test_what_nobody_answered_is_no_point() -> None:
    page = evaluated([*RESULTS[:2], result("failing", 15, None, 1)])
    assert "failing" in page
    assert not re.search(r"<title>failing", page)
    nothing = evaluated([result("failing", 15, None, 1)])
    assert "<svg" not in nothing


def test_random_weights_are_told_of() -> None:
    assert "accuracy is chance" in evaluated(words="x")
    assert "accuracy is chance" not in evaluated()


# --- one question --------------------------------------------------------------------------------


def test_answers_figures_and_agreement_are_shown() -> None:
    page = shown(compared())
    made = Reader(page)
    for words in ("He is holding a football.", "He is not.", "940 tokens", "Noise.", "match.mp4"):
        assert words in made.words
    said = re.findall(r"<title>(.*?)</title>", page)
    assert "uniform at 940 tokens: 25.0%, 952" in said  # 6 of 24 tokens
    assert "holitom at 15%: 100.0%, 96.7 ms" in said
    assert len(re.findall(r"<svg", page)) == 3
    assert 'class="bar ' not in page.split("</style>")[1]  # one question has no error


def test_without_full_there_is_nothing_to_agree_with() -> None:
    page = shown(compared()[1:])
    assert "<svg" not in page
    assert "nothing to agree with" in page


@pytest.mark.parametrize(
    ("ours", "full", "wanted"),
    [
        ((1, 2, 3), (1, 2, 3), 1.0),
        ((1, 2), (1, 2, 3, 4), 0.5),
        ((1, 9, 3, 4), (1, 2, 3, 4), 0.25),
        ((9,), (1,), 0.0),
        ((), (), 1.0),
    ],
)
def test_agreement_is_what_comes_before_the_first_difference(
    ours: tuple[int, ...], full: tuple[int, ...], wanted: float
) -> None:
    assert agreement(make_answer(token_ids=ours), make_answer(token_ids=full)) == wanted


def test_agreement_of_choices_is_what_their_probabilities_share() -> None:
    def choosing(*odds: float) -> Answer:
        return make_answer(choices=tuple(Choice(f"answer {n}", share) for n, share in enumerate(odds)))

    assert agreement(choosing(0.7, 0.3), choosing(0.7, 0.3)) == pytest.approx(1)
    assert agreement(choosing(0.5, 0.5), choosing(0.8, 0.2)) == pytest.approx(0.7)
    assert agreement(choosing(1.0, 0.0), choosing(0.0, 1.0)) == 0


# --- nothing from outside ------------------------------------------------------------------------


@pytest.mark.parametrize("words", HOSTILE)
def test_words_from_outside_stay_words(words: str) -> None:
    def evaluation(said: str) -> Reader:
        return Reader(evaluated([result(said, 15, 0.5, 100, said)], said))

    def question(said: str) -> Reader:
        return Reader(shown(compared(said)))

    for made, harmless in ((evaluation(words), evaluation("x")), (question(words), question("x"))):
        assert Counter(tag for tag, _ in made.elements) == Counter(tag for tag, _ in harmless.elements)
        names = [{name for _, own in page.elements for name in own} for page in (made, harmless)]
        assert names[0] == names[1]
        assert visible(words) in made.words
        assert not made.having("script")


def test_pages_need_nothing_beside_them() -> None:
    for page in (evaluated(), shown(compared())):
        made = Reader(page)
        links = [str(value) for _, own in made.elements for name, value in own.items() if name in ("href", "src")]
        assert links == []
        assert "url(" not in page
        (policy,) = made.having("meta", **{"http-equiv": "Content-Security-Policy"})
        assert str(policy["content"]).startswith("default-src 'none'; img-src data:")
        tables = len(made.having("table"))
        assert tables == len(made.having("caption")) >= 3
        assert all(own.get("aria-label") for own in made.having("svg", role="img"))


# --- the program ---------------------------------------------------------------------------------


def test_compare_writes_it(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    options = ["--methods", "full,holitom,uniform", "--budgets", "40,20", "--json", "--report", "page.html"]
    done = invoke("compare", demo_clip, "What is there?", *FAST, *options)
    assert done.code == 0, done.err
    assert "Wrote page.html." in done.err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    said = re.findall(r"<title>(.*?)</title>", page)
    for entry in json.loads(done.out)["results"]:
        where = f"{entry['method']} at {entry['budget']}%" if entry["method"] != "full" else "full"
        assert any(re.fullmatch(rf"{where}: [\d.]+%, {entry['tokens']['visual']:,}", title) for title in said), said


def test_eval_writes_it(invoke: Invoke, demo_clip: Path, tmp_path: Path) -> None:
    asked = [{"video": str(demo_clip), "question": f"What is {n}?", "answer": "one"} for n in range(2)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    options = ["--methods", "full,uniform", "--budgets", "20", "--json", "--report", "page.html"]
    done = invoke("eval", "asked.jsonl", *FAST, *options)
    assert done.code == 0, done.err
    assert "Wrote page.html." in done.err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "2 questions about 1 clip" in page
    uniform = next(entry for entry in json.loads(done.out)["results"] if entry["method"] == "uniform")
    assert f", {round(uniform['tokens']):,}</title>" in page


@pytest.mark.parametrize("command", [("eval", "--set", "shapes"), ("compare", "clip.mp4", "What?")])
def test_a_place_that_is_none_is_refused_at_once(invoke: Invoke, command: tuple[str, ...]) -> None:
    done = invoke(*command, "--report", "nowhere/page.html")
    done.sentence(2, "There is no folder nowhere to write page.html to.")
