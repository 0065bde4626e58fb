"""The report page: whole, true to the record, small, quick, and nothing that outside text could act through."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from holitom_cli import methods, video
from holitom_cli.report.overlay import Fate, kept, looked_at
from holitom_cli.report.page import LONGEST_SIDE, page
from holitom_cli.report.pictures import shrinker
from holitom_cli.report.record import document
from holitom_cli.report.text import visible
from holitom_cli.types import Answer, Choice, Frames, Generation
from tests.report.conftest import FRAMES, Known, moving
from tests.report.factory import make_answer, make_frames, make_video
from tests.report.test_overlay import compressed

BYTES_ALLOWED, SECONDS_ALLOWED = 3_000_000, 1.0


class Reader(HTMLParser):
    """Elements with their attributes, and the page's words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.by_id: dict[str, str] = {}  # words after the element with this id
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self._open = str(dict(attrs).get("id"))

    def handle_data(self, data: str) -> None:
        self.words += data
        self.by_id[self._open] = self.by_id.get(self._open, "") + data

    def having(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [own for name, own in self.elements if name == tag and attributes.items() <= own.items()]


@pytest.fixture(scope="module")
def made(known: Known) -> str:
    return page(known.answers, known.baseline, known.pictures)


@pytest.fixture(scope="module")
def read(made: str) -> Reader:
    return Reader(made)


# --- whole and true ------------------------------------------------------------------------------


def test_every_frame_is_in_the_strip_and_under_each_overlay(read: Reader) -> None:
    assert len(read.having("image")) == FRAMES  # each picture once
    shown = Counter(own["href"] for own in read.having("use"))
    assert shown == {f"#p{number}": 1 + 1 + 2 for number in range(1, FRAMES + 1)}  # strip, kept, two questions
    assert len(read.having("svg", role="img")) == 4 * FRAMES


def test_counts_are_those_of_the_record(read: Reader, known: Known) -> None:
    record = document(known.answers, known.baseline)
    first = record["results"][0]
    funnel = read.by_id["funnel"]
    for step in first["tokens"]["funnel"][1:]:
        assert f"{step['stage']}{step['tokens']:,}{step['tokens'] / first['tokens']['original']:.1%}" in funnel
    for inside in first["tokens"]["inside"]:
        assert f"inside, from layer {inside['layer']}{inside['tokens_with_newline']:,}" in funnel
    strip = re.findall(r"([\d,]+) tokens?\b", read.by_id["strip"].split("segment.")[-1])
    assert len(strip) == FRAMES
    assert sum(int(count.replace(",", "")) for count in strip) == first["tokens"]["visual"]
    assert f"{first['tokens']['visual']:,} of {first['tokens']['original']:,} visual tokens" in read.words
    assert len(re.findall(r"segment \d+", read.by_id["strip"])) == len(first["segments"])


def test_words_below_frames_count_the_patches(read: Reader, known: Known) -> None:
    overlay = kept(known.answers[0].visual)
    labels = [str(own["aria-label"]) for own in read.having("svg", role="img")]
    for frame in range(FRAMES):
        alone, merged, dropped = (overlay.count(frame, fate) for fate in (Fate.KEPT, Fate.MERGED, Fate.DROPPED))
        into = len(np.unique(overlay.token[frame])) - 1
        assert f"{alone} kept, {merged} merged into {into} tokens, {dropped} dropped" in labels[FRAMES + frame]


def test_questions_answers_settings_versions_and_times_are_there(read: Reader, known: Known) -> None:
    record = document(known.answers, known.baseline)
    settings = read.by_id["settings"]
    for answer, result in zip(known.answers, record["results"], strict=False):
        assert answer.question in read.by_id["answers"]
        assert " ".join(visible(answer.text).split()) in " ".join(read.by_id["answers"].split())
        assert str(result["tokens"]["visual"]) in settings
    for name, version in record["versions"].items():
        assert f"versions.{name}{version}" in settings
    for name in ("decoder", "sampling.mode", "settings.temperature", "results 1.method_settings.tau"):
        assert name in settings
    for stage in ("probe", "decode video", "vision", "compress", "prefill", "sample"):
        assert stage in read.by_id["time"]
    assert "Against full" in read.by_id["time"]


def test_bars_follow_each_other_and_end_together(read: Reader) -> None:
    styles = [str(own["style"]) for own in read.having("span") if "bar" in str(own.get("class")).split()]
    places = [tuple(map(float, re.findall(r"([\d.]+)%", style))) for style in styles]
    assert places
    assert all(start + width <= 100.02 for start, width in places)


def test_a_page_without_baseline_or_merge_inside(known: Known) -> None:
    alone = Reader(page(known.baseline[:1], [], known.pictures))
    assert len(alone.having("svg", role="img")) == 2 * FRAMES
    assert "looked at" not in alone.words
    assert "Against" not in alone.words


def test_as_many_answers_in_the_baseline_or_none(known: Known) -> None:
    with pytest.raises(ValueError, match="shorter"):
        page(known.answers, known.baseline[:1], known.pictures)


def test_choices_have_their_probabilities(known: Known) -> None:
    answer = replace(known.answers[0], choices=(Choice("left", 0.75), Choice("right", 0.25)), finish_reason="choice")
    words = Reader(page([answer], [], known.pictures)).by_id["answers"]
    assert "left75.0%" in words
    assert "nothing was generated" in words


# --- drawings ------------------------------------------------------------------------------------


def cells(path: str) -> Counter[tuple[int, int]]:
    """The cells (row, column) that an SVG path of stretches covers."""
    found: Counter[tuple[int, int]] = Counter()
    pieces = re.findall(r"M(\d+) (\d+)h(\d+)v1H(\d+)z", path)
    assert "".join(f"M{x} {y}h{w}v1H{x0}z" for x, y, w, x0 in pieces) == path
    for x, y, width, back in pieces:
        assert x == back
        found.update((int(y), int(x) + step) for step in range(int(width)))
    return found


def where(mask: Any) -> Counter[tuple[int, int]]:
    return Counter((int(y), int(x)) for y, x in zip(*mask.nonzero(), strict=True))


def figures(text: str, section: str) -> list[str]:
    """The markup of each picture in a section."""
    (part,) = re.findall(rf'<section id="{section}".*?</section>', text, re.DOTALL)
    return re.findall(r"<svg.*?</svg>", part, re.DOTALL)


def path_of(figure: str, kind: str) -> str:
    found = re.findall(rf'class="{kind}" d="([^"]*)"', figure)
    assert len(found) <= 1
    return found[0] if found else ""


def test_page_shows_merged_cells_exactly_on_the_still_part(made: str) -> None:
    drawn = figures(made, "kept")
    assert len(drawn) == FRAMES
    groups = [re.findall(r'class="group" fill="(#\w+)" d="([^"]*)"', figure) for figure in drawn]
    for group in groups:
        assert sum((cells(path) for _, path in group), Counter()) == where(~moving())
    assert all(set(group) == set(groups[0]) for group in groups)  # alike across the frames that they span


@pytest.mark.parametrize("name", methods.available())
def test_drawings_cover_what_the_overlay_says(name: str) -> None:
    visual = compressed(name)
    frames = len(visual.source)
    answer = make_answer(visual=visual, segments=())
    answer = replace(answer, tokens=replace(answer.tokens, frames=frames, patches_per_frame=36, inside=()))
    overlay = kept(visual)
    for frame, figure in enumerate(figures(page([answer], [], make_frames(frames)), "kept")):
        assert cells(path_of(figure, "dropped")) == where(overlay.fate[frame] == Fate.DROPPED)
        groups = re.findall(r'class="group" fill="#\w+" d="([^"]*)"><title>token (\d+): (\d+) patches', figure)
        assert {int(token): cells(path) for path, token, _ in groups} == {
            int(token): where(overlay.token[frame] == token) for token in np.unique(overlay.token[frame]) if token >= 0
        }
        assert all(int(size) == int(visual.size[int(token)]) for _, token, size in groups)
        dots = re.findall(r"M([\d.]+) ([\d.]+)h0", path_of(figure, "dot"))
        assert Counter((int(float(y)), int(float(x))) for x, y in dots) == where(overlay.stands[frame])


def test_each_question_has_its_own_overlay(made: str, known: Known) -> None:
    for number, answer in enumerate(known.answers, 1):
        seen = looked_at(answer)
        assert seen is not None
        for frame, figure in enumerate(figures(made, f"looked{number}")):
            assert cells(path_of(figure, "folded")) == where(seen.fate[frame] == Fate.FOLDED)
            assert cells(path_of(figure, "dropped")) == where(seen.fate[frame] == Fate.DROPPED)


# --- nothing from outside ------------------------------------------------------------------------

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</title><script>window.hacked = 1</script>",
    '</style><img src=x onerror="window.hacked=1">',
    '"><svg onload=window.hacked=1>',
    "' onmouseover='window.hacked=1",
    "javascript:window.hacked=1",
    "<a href='javascript:window.hacked=1'>click</a>",
    "{{ 7 * 7 }} {% include 'page.css' %}",
    "--><iframe src='https://example.invalid/'></iframe><!--",
    "&lt;script&gt;window.hacked=1&lt;/script&gt;",
    "<meta http-equiv=refresh content='0;url=https://example.invalid/'>",
    "<base href='https://example.invalid/'>",
    "]]><script>window.hacked=1</script>",
    "\x00<scr\x00ipt>\x1b[31m\u202egnp.exe\ud800",
    "<link rel=stylesheet href=https://example.invalid/x.css>",
    "<style>body{display:none}</style>",
]


def attacked(words: str) -> Answer:
    """An answer with these words in every place that words can come from."""
    frames = make_frames(2, make_video(path=f"clips/{words}", codec=words, container=words), decoder=words)
    answer = make_answer(
        question=words,
        text=f"{words}\n{words}",
        method=words,
        method_settings={words: words},
        generation=Generation(),
        frames=replace(frames, decoder_reason=words, warnings=(words,)),
        versions={words: words},
        warnings=(words,),
        choices=(Choice(words, 0.5), Choice(words, 0.5)),
        segments=(),
    )
    model = replace(answer.model, id=words, revision=words, path=words, reason=words, device_name=words)
    tokens = replace(answer.tokens, frames=2, funnel=(("sampled", 392), (words, 100)))
    visual = replace(answer.visual, source=cast("Any", np.zeros((2, 196), np.int64)))
    inner = cast("Any", np.zeros((2, 196), np.int64))
    return replace(answer, model=model, tokens=tokens, visual=visual, inner_source=inner)


def hostile_page(words: str) -> str:
    answer = attacked(words)
    return page([answer, answer], [answer, answer], answer.frames)


@pytest.mark.parametrize("words", HOSTILE)
def test_words_from_outside_stay_words(words: str) -> None:
    harmless, made = Reader(hostile_page("x")), Reader(hostile_page(words))
    lines = len(f"{words}\n{words}".splitlines())
    extra = {"p": 4 * (lines - 2), "bdi": 4 * (lines - 2)}  # an answer's lines are paragraphs
    tags = Counter(tag for tag, _ in made.elements)
    tags.subtract({tag: count for tag, count in extra.items() if count})
    assert +tags == Counter(tag for tag, _ in harmless.elements)
    assert {name for _, own in made.elements for name in own} == {name for _, own in harmless.elements for name in own}
    assert visible(words) in made.words


def test_control_unescaped_words_would_be_seen() -> None:
    harmless = hostile_page("x")
    broken = Reader(harmless.replace("<bdi>x</bdi>", "<bdi><script>1</script></bdi>", 1))
    assert Counter(tag for tag, _ in broken.elements) != Counter(tag for tag, _ in Reader(harmless).elements)


def test_page_needs_nothing_beside_it(made: str, read: Reader) -> None:
    links = [str(value) for _, own in read.elements for name, value in own.items() if name in ("href", "src")]
    assert links
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    targets = {own.get("id") for _, own in read.elements}
    assert {link[1:] for link in links if link.startswith("#")} <= targets
    assert not read.having("script")
    assert not read.having("link")
    assert "url(" not in made
    assert "@import" not in made
    (policy,) = read.having("meta", **{"http-equiv": "Content-Security-Policy"})
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:")


# --- for everyone --------------------------------------------------------------------------------


def test_headings_tables_and_pictures_are_marked_up(read: Reader) -> None:
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tables = len(read.having("table"))
    assert tables == len(read.having("caption"))
    assert all(own.get("scope") in ("col", "row") for own in read.having("th"))
    assert all(own.get("aria-label") for own in read.having("svg", role="img"))
    assert read.having("html", lang="en")


# --- small and quick -----------------------------------------------------------------------------


def answers_about(clip: Path, frames: int) -> tuple[Answer, Frames]:
    """An answer with the account of a real clip's size, and its pictures."""
    visual = compressed("holitom", frames, 14)
    pictures = video.read(clip, frames, shrink=shrinker(LONGEST_SIDE))
    answer = make_answer(visual=visual, inner_source=visual.source, frames=pictures, segments=())
    return replace(answer, tokens=replace(answer.tokens, frames=frames)), pictures


def test_page_of_32_frames_is_small_and_quickly_made(demo_clip: Path) -> None:
    answer, pictures = answers_about(demo_clip, 32)
    page([answer], [], pictures)  # the template is compiled once
    taken = []
    for _ in range(3):
        started = time.process_time()
        made = page([answer], [], pictures)
        taken.append(time.process_time() - started)
    assert min(taken) <= SECONDS_ALLOWED
    assert 300_000 < len(made.encode()) <= BYTES_ALLOWED


@pytest.mark.parametrize("frames", [32, 64])
def test_pictures_are_smaller_where_they_would_take_too_much(frames: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (frames, 270, 480, 3), dtype=np.uint8)
    pictures = make_frames(frames, pixels=noise)
    answer = make_answer(visual=compressed("holitom", frames, 14), frames=pictures, segments=())
    answer = replace(answer, tokens=replace(answer.tokens, frames=frames, inside=()))
    made = page([answer], [], pictures)
    assert len(made.encode()) <= BYTES_ALLOWED
    assert len(Reader(made).having("image")) == frames
