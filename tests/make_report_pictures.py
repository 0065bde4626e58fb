"""Draw docs/images from today's page: `python -m tests.make_report_pictures`, where a Chromium is installed."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tests.report.test_browser import started

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from holitom_cli.types import Answer

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "images"
QUESTIONS = ["Which corner of the picture has the yellow circle?", "Tell me the colour that the triangle changes to."]
# name: width, scheme, what is scrolled to, height
VIEWS: dict[str, tuple[int, Any, str, int]] = {
    "page-1280-light.webp": (1280, "light", "h1", 1000),
    "page-1920-dark.webp": (1920, "dark", "#kept", 1000),
    "page-400-light.webp": (400, "light", "#strip", 800),
}
QUALITY = 82  # of WebP: sharp enough to read, and small


def main() -> None:
    """Write the pictures."""
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, started() as browser:
        page = Path(folder) / "page.html"
        page.write_text(_page(), encoding="utf-8")
        for name, view in VIEWS.items():
            _shoot(browser, page, *view).save(TARGET / name, quality=QUALITY, method=6)


def _page() -> str:
    """The bundled model's answers about the bundled clip."""
    from holitom_cli import pipeline, video
    from holitom_cli.model.hub import locate
    from holitom_cli.model.loading import load_model
    from holitom_cli.report.page import LONGEST_SIDE, page
    from holitom_cli.report.pictures import shrinker

    clip = locate("demo").path / "shapes.mp4"
    model = load_model("demo", device="cpu")

    def asked(method: str) -> list[Answer]:
        watched = pipeline.watch(model, clip, method=method)
        pipeline.ask(model, watched, QUESTIONS[0])  # so that both are timed alike
        return [pipeline.ask(model, watched, question) for question in QUESTIONS]

    return page(asked("holitom"), asked("full"), video.read(clip, shrink=shrinker(LONGEST_SIDE)))


def _shoot(browser: Browser, file: Path, width: int, scheme: Any, place: str, height: int) -> Image.Image:
    shown = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    shown.goto(file.as_uri())
    shown.evaluate(f"document.querySelector('{place}').scrollIntoView()")
    shot = Image.open(io.BytesIO(shown.screenshot())).convert("RGB")
    shot.thumbnail((1280, 1280))
    return shot


if __name__ == "__main__":
    main()
