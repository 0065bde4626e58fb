"""Draw docs/images from today's pages: `python -m tests.make_report_pictures`, where a Chromium is installed.

The bundled model answers about the bundled clip, and about some of the questions of docs/quality.md: some minutes.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tests.quality_curve import write_files
from tests.report.test_browser import LOOKS, started

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "images"
CLIP = ROOT / "holitom_cli" / "assets" / "demo" / "shapes.mp4"
QUESTIONS = ["Which corner of the picture has the yellow circle?", "Tell me the colour that the triangle changes to."]
ASKED = 60  # questions of the set
COMMON = ["--model", "demo", "--device", "cpu", "--quiet"]
METHODS = ["--methods", "full,holitom,uniform,random", "--budgets", "25,15,10,5"]
# Where each page is looked at: width in pixels, scheme, what is scrolled to.
HEIGHTS = {400: 800, 1280: 1000, 1920: 1000}
VIEWS: dict[str, list[tuple[int, Any, str]]] = {
    "page": [(width, scheme, {400: "#strip", 1280: "h1", 1920: "#kept"}[width]) for width, scheme in LOOKS],
    "batch": [(1280, "light", "#rows-title"), (400, "dark", "h1"), (1920, "dark", "h1")],
    "eval": [(1280, "light", "h1"), (400, "light", "h1"), (1920, "dark", "h1")],
    "compare": [(1280, "dark", "h1"), (400, "light", "#plots-title")],
}
QUALITY = 80  # of WebP: sharp enough to read, and small


def main() -> None:
    """Write the pictures."""
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, started() as browser:
        for name, page in pages(Path(folder)):
            for width, scheme, place in VIEWS[name]:
                shot = shoot(browser, page, width, scheme, place)
                shot.save(TARGET / f"{name}-{width}-{scheme}.webp", quality=QUALITY, method=6)


def pages(folder: Path) -> Iterator[tuple[str, Path]]:
    """The pages that the program writes."""
    asked = write_files(folder / "clips", 0, ASKED)
    (folder / "clips" / "torn.mp4").write_bytes(CLIP.read_bytes()[:900])
    with asked.open("a", encoding="utf-8") as file:
        file.write('{"video": "torn.mp4", "question": "What moves?"}\n')
    commands: dict[str, list[str | Path]] = {
        "page": ["ask", CLIP, QUESTIONS[0], "-q", QUESTIONS[1], "--baseline"],
        "batch": ["batch", "--questions", asked, "-o", folder / "answers.jsonl", "--clip-pages", folder / "pages"],
        "eval": ["eval", "--set", "shapes", "--limit", str(ASKED), *METHODS],
        "compare": ["compare", CLIP, QUESTIONS[1], *METHODS],
    }
    for name, command in commands.items():
        page = folder / f"{name}.html"
        whole = [sys.executable, "-m", "holitom_cli", *command, *COMMON, "--report", page]
        done = subprocess.run(list(map(str, whole)), stdout=subprocess.DEVNULL, check=False)
        if done.returncode not in (0, 3):  # 3: the torn clip
            raise SystemExit(f"{command[0]} has failed.")
        yield name, page


def shoot(browser: Browser, file: Path, width: int, scheme: Any, place: str) -> Image.Image:
    """What a window shows."""
    shown = browser.new_page(viewport={"width": width, "height": HEIGHTS[width]}, color_scheme=scheme)
    shown.goto(file.as_uri())
    shown.evaluate(f"document.querySelector('{place}').scrollIntoView()")
    shown.wait_for_timeout(300)  # pictures in view are decoded beside
    shot = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
    shown.close()
    shot.thumbnail((1280, 1280))
    return shot


if __name__ == "__main__":
    main()
