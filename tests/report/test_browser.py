"""The page as a browser shows it: looked at in Chromium, where there is one, at three widths, in light and dark."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from holitom_cli import video
from holitom_cli.report.page import page
from holitom_cli.report.pictures import shrinker
from holitom_cli.report.record import document
from holitom_cli.report.summary import Place, places, thumbnail, thumbnail_side, write_summary
from tests.report.conftest import FRAMES, Known
from tests.report.test_curves import compared, evaluated
from tests.report.test_curves import shown as compared_page
from tests.report.test_page import HOSTILE, hostile_page
from tests.report.test_summary import made_rows

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser", "chrome"))), None)
AXE_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
INK = "rgb(27, 30, 37)"  # of words in plots on white
LOOKS = [(width, scheme) for width in (400, 1280, 1920) for scheme in ("light", "dark")]

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.timeout(180),  # a browser takes its time to start where cores are busy
]


@dataclass
class Visit:
    """An open page and what happened on it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def ask(self, script: str) -> Any:
        return self.page.evaluate(script)


@contextmanager
def started() -> Iterator[Browser]:
    """Chromium, driven by playwright."""
    from playwright.sync_api import sync_playwright

    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # Chromium wants it so
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=root)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with started() as browser:
        yield browser


@pytest.fixture(scope="module")
def file(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "out.html"
    path.write_text(page(known.answers, known.baseline, known.pictures), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def close_pages(browser: Browser) -> Iterator[None]:
    """An open page costs memory, and time."""
    yield
    for context in browser.contexts:
        context.close()


def visit(browser: Browser, file: Path, width: int = 1280, scheme: Any = "light") -> Visit:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    found = Visit(context.new_page())
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.on("console", lambda message: found.complaints.append(message.text))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.on("dialog", lambda dialog: found.complaints.append(dialog.message))
    found.page.goto(file.as_uri())
    return found


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_page_fits_and_is_accessible(browser: Browser, file: Path, width: int, scheme: str) -> None:
    shown = visit(browser, file, width, scheme)
    root = "document.documentElement"
    assert shown.ask(f"{root}.scrollWidth <= {root}.clientWidth")
    shown.ask(f"{root}.insertAdjacentHTML('beforeend', '<p style=min-width:3000px>x</p>')")
    assert not shown.ask(f"{root}.scrollWidth <= {root}.clientWidth")  # control
    shown.page.reload()
    assert violations(shown) == []
    assert [url for url in shown.requests if not url.startswith("data:")] == [file.as_uri()] * 2
    assert shown.complaints == []


def violations(shown: Visit) -> list[str]:
    """What axe finds wrong: contrast, names, headings, lists, landmarks."""
    axe = pytest.importorskip("axe_playwright_python.base", reason="axe is not installed")
    shown.ask(axe.AXE_FILE_PATH.read_text(encoding="utf-8"))
    found = shown.ask(f"axe.run({{runOnly: {AXE_RULES}}})")
    return [f"{item['id']}: {node['html'][:200]}" for item in found["violations"] for node in item["nodes"]]


def test_control_axe_sees_what_is_wrong(browser: Browser, file: Path, tmp_path: Path) -> None:
    text = file.read_text(encoding="utf-8")
    broken = text.replace("--quiet: #5a6172", "--quiet: #c8ccd4").replace(' lang="en"', "")
    assert broken != text
    (tmp_path / "broken.html").write_text(broken, encoding="utf-8")
    kinds = {line.partition(":")[0] for line in violations(visit(browser, tmp_path / "broken.html"))}
    assert {"color-contrast", "html-has-lang"} <= kinds


def test_every_picture_is_painted(browser: Browser, file: Path) -> None:
    shown = visit(browser, file)
    boxes = shown.ask("[...document.querySelectorAll('svg.picture')].map(e => e.getBoundingClientRect().toJSON())")
    assert len(boxes) == 4 * FRAMES
    assert all(box["width"] > 60 and box["height"] == pytest.approx(box["width"], rel=0.02) for box in boxes)
    for number in (1, FRAMES):
        shot = shown.page.locator("#strip svg.picture").nth(number - 1).screenshot()
        colours = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))
        middle = colours[len(colours) * 5 // 14 + 2 : len(colours) * 7 // 14 - 2, :][:, len(colours[0]) * 5 // 14 + 2]
        assert (middle.mean() > 128) == (number % 2 == 0)  # the square is black, then white
        assert colours.std() > 20


def test_counts_in_the_browser_are_the_records(browser: Browser, file: Path, known: Known) -> None:
    first = document(known.answers, known.baseline)["results"][0]
    shown = visit(browser, file)
    many = shown.ask("[...document.querySelectorAll('#strip .many')].map(e => parseInt(e.innerText.replace(',', '')))")
    assert len(many) == FRAMES
    assert sum(many) == first["tokens"]["visual"]
    rows = shown.ask("[...document.querySelectorAll('#funnel tbody tr')].map(r => r.cells[1].innerText)")
    wanted = [step["tokens"] for step in first["tokens"]["funnel"]]
    wanted += [step["tokens_with_newline"] for step in first["tokens"]["inside"]]
    assert [int(row.replace(",", "")) for row in rows] == wanted
    assert shown.ask("document.querySelectorAll('#strip .segment').length") == len(first["segments"])


def test_keys_lead_from_the_strip_to_a_frame(browser: Browser, file: Path) -> None:
    shown = visit(browser, file)
    shown.page.locator("#strip a").nth(2).focus()
    shown.page.keyboard.press("Enter")
    assert shown.ask("location.hash") == "#f3"
    assert shown.ask("document.querySelector(':target').getBoundingClientRect().top") < 900
    shown.page.locator("summary").focus()
    shown.page.keyboard.press("Enter")
    assert shown.page.locator("table.everything").is_visible()


def test_page_reads_the_same_without_scripts_and_prints(browser: Browser, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(file.as_uri())
    assert plain.locator("#strip svg.picture").count() == FRAMES
    assert plain.locator("#kept svg.picture").last.is_visible()
    printed = plain.pdf(format="A4")
    assert printed.startswith(b"%PDF")


@pytest.mark.parametrize("words", HOSTILE)
def test_words_from_outside_do_nothing(browser: Browser, tmp_path: Path, words: str) -> None:
    (tmp_path / "page.html").write_text(hostile_page(words), encoding="utf-8")
    shown = visit(browser, tmp_path / "page.html")
    shown.page.mouse.move(300, 300)
    assert shown.ask("window.hacked") is None
    assert shown.complaints == []
    assert [url for url in shown.requests if not url.startswith("data:")] == [(tmp_path / "page.html").as_uri()]


def test_control_a_script_in_the_page_would_act(browser: Browser, tmp_path: Path) -> None:
    broken = hostile_page("x").replace("<bdi>x</bdi>", f"<bdi>{HOSTILE[0]}</bdi>", 1)
    (tmp_path / "page.html").write_text(broken, encoding="utf-8")
    guarded = visit(browser, tmp_path / "page.html")
    assert guarded.ask("window.hacked") is None  # the page's own policy forbids scripts, should one slip in
    assert any("Content Security Policy" in complaint for complaint in guarded.complaints)
    (tmp_path / "open.html").write_text(broken.replace("Content-Security-Policy", "nothing"), encoding="utf-8")
    assert visit(browser, tmp_path / "open.html").ask("window.hacked") == 1


# --- a batch -----------------------------------------------------------------------------------


def shots(clip: Path, found: Sequence[Place], side: int) -> dict[Place, bytes]:
    """A picture of each place, all of them different: frames of a clip with some noise."""
    frames, dice = video.read(clip, 32, shrink=shrinker(side)).pixels.astype(int), np.random.default_rng(0)
    noise = dice.integers(-6, 7, (len(found), *frames.shape[1:]), dtype=np.int8)
    pictures = ((frames[n % 32] + noise[n]).clip(0, 255).astype(np.uint8) for n in range(len(found)))
    return {place: thumbnail(picture) for place, picture in zip(found, pictures, strict=True)}


def test_5000_rows_open_quickly_and_can_be_sorted(browser: Browser, tmp_path: Path, demo_clip: Path) -> None:
    rows = made_rows(5000)
    thumbnails = shots(demo_clip, places(rows), thumbnail_side(len(rows)))
    write_summary(rows, tmp_path / "page.html", "answers.jsonl", thumbnails)
    assert (tmp_path / "page.html").stat().st_size < 10_000_000
    opened = []
    for _ in range(3):
        shown = visit(browser, tmp_path / "page.html", 400)
        opened.append(shown.ask("performance.timing.loadEventEnd - performance.timing.navigationStart"))
    assert min(opened) <= 2000  # milliseconds
    firsts = "[...document.querySelectorAll('#rows tbody tr')].slice(0, 2).map(row => row.cells[3].dataset.n)"
    for wanted in (["100", "101"], ["5098", "5097"]):
        shown.page.click("#rows thead th:nth-child(4) button")
        assert shown.ask(firsts) == wanted
    assert shown.ask("document.querySelector('#rows tbody').rows.length") == 5000
    first = shown.page.locator("#rows img").first
    first.scroll_into_view_if_needed()
    first.evaluate("async e => await e.decode()")
    assert first.evaluate("e => [e.naturalWidth, e.getBoundingClientRect().width]") == [64, 80]
    assert shown.ask("document.images.length") == 4500  # every tenth failed
    assert shown.ask("document.documentElement.scrollWidth") == 400
    assert [url for url in shown.requests if not url.startswith("data:")] == [(tmp_path / "page.html").as_uri()]
    assert shown.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_summary_is_accessible(browser: Browser, tmp_path: Path, demo_clip: Path, scheme: str) -> None:
    rows = made_rows(20)
    for row in rows[:3]:
        row["page"] = str(tmp_path / f"{row['key']}.html")
        Path(row["page"]).write_text("x", encoding="utf-8")
    write_summary(rows, tmp_path / "page.html", "answers.jsonl", shots(demo_clip, places(rows)[:10], 96))
    assert violations(visit(browser, tmp_path / "page.html", 1280, scheme)) == []


# --- on paper --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ask", "batch", "eval", "compare"])
def test_pages_print_dark_on_white_and_lose_nothing(
    browser: Browser, file: Path, tmp_path: Path, demo_clip: Path, kind: str
) -> None:
    page_file = file if kind == "ask" else tmp_path / "page.html"
    if kind == "batch":
        rows = made_rows(20)
        write_summary(rows, page_file, "answers.jsonl", shots(demo_clip, places(rows), 96))
    elif kind != "ask":
        page_file.write_text(evaluated() if kind == "eval" else compared_page(compared()), encoding="utf-8")
    shown = visit(browser, page_file, 703, "dark")  # the width of A4 within its margins
    ink = "[...document.querySelectorAll('body, p, td, .plot text')].map(e => getComputedStyle(e))"
    light = f"{ink}.filter(s => s.display != 'none' && Math.min(...s[PLACE].match(/\\d+/g)) > 140).length"
    assert shown.ask(light.replace("PLACE", "'color'")) > 0  # control: on a dark screen words are light
    shown.page.emulate_media(media="print", color_scheme="dark")
    assert shown.ask(light.replace("PLACE", "'color'")) == 0
    assert kind in ("ask", "batch") or shown.ask("getComputedStyle(document.querySelector('.plot text')).fill") == INK
    assert shown.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown.ask("document.documentElement.scrollWidth") == 703
    assert shown.ask(
        "document.querySelector('nav') ? getComputedStyle(document.querySelector('nav')).display : ''"
    ) in (
        "none",
        "",
    )


# --- methods side by side ------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), LOOKS)
@pytest.mark.parametrize("kind", ["eval", "compare"])
def test_plots_fit_and_are_accessible(browser: Browser, tmp_path: Path, kind: str, width: int, scheme: str) -> None:
    file = tmp_path / "page.html"
    file.write_text(evaluated() if kind == "eval" else compared_page(compared()), encoding="utf-8")
    shown = visit(browser, file, width, scheme)
    assert shown.ask("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    boxes = shown.ask("[...document.querySelectorAll('svg.plot')].map(e => e.getBoundingClientRect().toJSON())")
    assert len(boxes) == 3
    assert all(300 < box["width"] < width and box["height"] > 200 for box in boxes)
    words = "[...document.querySelectorAll('svg.plot text')].map(e => [e, e.ownerSVGElement])"
    boxes_of = f"{words}.map(pair => pair.map(e => e.getBoundingClientRect()))"
    within = "a.top >= b.top && a.bottom <= b.bottom && a.left >= b.left && a.right <= b.right"
    inside = f"{boxes_of}.every(([a, b]) => {within})"
    assert shown.ask(inside)  # no label is cut off, whatever the fonts
    assert violations(shown) == []
    assert [url for url in shown.requests if not url.startswith("data:")] == [file.as_uri()]
    assert shown.complaints == []
    shown.ask("document.querySelector('svg.plot text').setAttribute('y', 2)")
    assert not shown.ask(inside)  # control
