"""holitom compare, run as a program: one question, several methods."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError  # type: ignore[import-untyped]

from holitom_cli.model import vision
from tests.make_random_checkpoint import RANDOM
from tests.program import Done, Invoke

SCHEMA = Path(__file__).parents[2] / "docs" / "result.schema.json"
SMALL = ["--model", str(RANDOM), "--num-frames", "6", "--max-new-tokens", "4", "--device", "cpu", "--quiet"]
METHODS = ["--methods", "full,holitom,vidcom2+inner,fastv,evs:retain_ratio=0.5", "--budgets", "40,500t"]
LABELS = [
    ("full", 100), ("holitom", 40), ("holitom", "500t"), ("vidcom2+inner", 40), ("vidcom2+inner", "500t"),
    ("fastv", 40), ("fastv", "500t"), ("evs:retain_ratio=0.5", 50.0),
]  # fmt: skip


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each time that frames went through the tower: whether keys were asked for."""
    seen: list[bool] = []
    encode = vision.encode

    def count(*args: Any, **settings: Any) -> Any:
        seen.append(settings["keys"])
        return encode(*args, **settings)

    monkeypatch.setattr(vision, "encode", count)
    return seen


def test_json_has_a_result_for_each_method_and_budget(invoke: Invoke, demo_clip: Path, encodings: list[bool]) -> None:
    done = invoke("compare", demo_clip, "What happens?", *SMALL, *METHODS, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    validator = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    validator.validate(document)
    results = document["results"]
    assert [(entry["method"], entry["budget"]) for entry in results] == [
        (label.partition(":")[0], budget) for label, budget in LABELS
    ]
    assert encodings == [False]  # once for all of them, without keys, which none of them needs
    visual = [entry["tokens"]["visual"] for entry in results]
    total = visual[0]
    assert visual[0] == visual[5] == results[0]["tokens"]["original"]  # fastv acts inside
    assert visual[4] == 500
    assert visual[7] == total // 2
    assert results[0]["agrees_with_baseline"] is True
    same = [entry["agrees_with_baseline"] for entry in results]
    assert same == [entry["answer"] == results[0]["answer"] for entry in results]
    costs = [entry["flops"]["true_flops"] for entry in results]
    assert max(costs) == costs[0] > costs[7] > min(costs)
    with pytest.raises(ValidationError):  # control
        validator.validate(document | {"results": [results[0] | {"budget": "15%"}]})


def test_what_is_left_in_the_cache_is_told(invoke: Invoke, demo_clip: Path) -> None:
    options = ["--methods", "full,aircache-like,uniform+aircache-like", "--budgets", "20"]
    done = invoke("compare", demo_clip, "What happens?", *SMALL, *options, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).validate(document)
    full, cache, both = (entry["tokens"] for entry in document["results"])
    assert "cached_by_layer" not in full
    rows, depth = full["visual"] + 1, len(cache["cached_by_layer"])
    assert sum(cache["cached_by_layer"]) == round(0.2 * rows * depth)
    assert sum(both["cached_by_layer"]) == round(0.1 * (both["visual"] + 1) * depth)
    assert document["results"][0]["flops"] == document["results"][1]["flops"]  # the prefill is that of full
    report = invoke("ask", demo_clip, "What happens?", *SMALL[:-1], "--method", "aircache-like")
    assert re.search(rf"cached, mean\s.*\b{round(0.1 * rows)}\s+10\.\d%", " ".join(report.err.split()))


def test_an_answer_is_what_ask_says(invoke: Invoke, demo_clip: Path) -> None:
    compared = invoke("compare", demo_clip, "What happens?", *SMALL, "--methods", "full,holitom", "--json")
    asked = invoke("ask", demo_clip, "What happens?", *SMALL, "--budget", "15", "--baseline", "--json")
    full, holitom = json.loads(compared.out)["results"]
    ours, baseline = json.loads(asked.out)["results"]
    for one, other in ((holitom, ours), (full, baseline)):
        for key in ("answer", "tokens", "flops", "method_settings", "segments"):
            assert one[key] == other[key]
    assert holitom["agrees_with_baseline"] == ours["agrees_with_baseline"]


def rows(done: Done) -> list[dict[str, str]]:
    assert done.code == 0, done.err
    return list(csv.DictReader(io.StringIO(done.out)))


def test_csv_and_table_have_the_same_rows(invoke: Invoke, demo_clip: Path) -> None:
    table = invoke("compare", demo_clip, "What?", *SMALL, *METHODS)
    assert table.code == 0, table.err
    listed = rows(invoke("compare", demo_clip, "What?", *SMALL, *METHODS, "--csv"))
    assert [(row["method"], row["budget"]) for row in listed] == [(label, str(budget)) for label, budget in LABELS]
    for row in listed:
        assert row["method"] in table.out
        assert f" {int(row['tokens']):,} " in table.out
        assert f"{round(float(row['mean_tokens_by_layer'])):,}" in table.out
        assert row["device_peak_bytes"] == ""  # on a CPU nothing is known of one method's memory
    original = int(listed[0]["tokens"])
    assert float(listed[5]["mean_tokens_by_layer"]) == pytest.approx(0.4 * original, abs=3)  # fastv, in the mean
    assert int(listed[5]["tokens"]) == original
    assert listed[0]["agrees_with_full"] == "True"


def test_choices_are_chosen_from(invoke: Invoke, demo_clip: Path) -> None:
    done = invoke(
        "compare", demo_clip, "What?", *SMALL[:4], "--device", "cpu", "--quiet", "--choices", "red,blue", "--csv"
    )
    assert {row["answer"] for row in rows(done)} <= {"red", "blue"}
    assert len(rows(done)) == 4


def test_all_leaves_out_what_cannot_keep_so_few(invoke: Invoke, demo_clip: Path) -> None:
    loud = [option for option in SMALL if option != "--quiet"]
    done = invoke("compare", demo_clip, "What?", *loud, "--methods", "all", "--budgets", "10", "--csv")
    methods = {row["method"] for row in rows(done)}
    assert {"full", "holitom", "vidcom2", "random"} <= methods
    assert not {"dycoke", "pyramiddrop"} & methods
    said = " ".join(done.err.split())
    assert "Left out: dycoke at 10%" in said
    assert "Left out: pyramiddrop at 10%" in said


def test_a_number_of_tokens_too_small_for_one_of_all_leaves_that_one_out(invoke: Invoke, demo_clip: Path) -> None:
    done = invoke("compare", demo_clip, "What?", *SMALL, "--methods", "all", "--budgets", "300t", "--csv")
    counts = {row["method"]: int(row["tokens"]) for row in rows(done)}
    assert "fastv" not in counts
    assert counts["vidcom2"] == counts["visionzip"] == counts["fastvid"] == counts["random"] == 300
    assert counts["flashvid"] == 375  # its budget is a mean over the layers
    named = invoke("compare", demo_clip, "What?", *SMALL, "--methods", "full,fastv", "--budgets", "300t")
    named.sentence(2, "FastV cannot average 25.5%")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--methods", "holytom"], "no method 'holytom'"),
        (["--methods", "pyramiddrop"], "PyramidDrop cannot average 15.0%"),
        (["--budgets", "15%"], "The budget '15%' is not a percentage"),
        (["--json", "--csv"], "one document on stdout"),
        (["--choices", "a,b", "--temperature", "1"], "so --temperature has no effect"),
    ],
)
def test_wrong_usage(invoke: Invoke, demo_clip: Path, options: list[str], said: str) -> None:
    done = invoke("compare", demo_clip, "What?", "--model", RANDOM, *options)
    assert done.code == 2
    assert said in " ".join((done.out + done.err).split())
    assert "Traceback" not in done.err
