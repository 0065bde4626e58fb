"""A page for each clip of a batch, written beside the model's work."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holitom_cli.cli.pictures import read_again
from holitom_cli.errors import HolitomError, reason
from holitom_cli.report import page
from holitom_cli.report.text import counted
from holitom_cli.types import Answer

if TYPE_CHECKING:
    from holitom_cli.batch.runner import Item

_CLIPS = 64  # whose answers are remembered: those that are answered together are far fewer
_WAITING = 2  # pages; the model waits for more, so that they never pile up
_NAME_LETTERS = 40


@contextmanager
def clip_pages(
    folder: Path | None, timeout_seconds: float | None, tell: Callable[[str], None]
) -> Iterator[Callable[[Item], dict[str, Any]]]:
    """What is to hear of every item, and says what its row gets besides; nothing where there is no folder.

    At the end, what is under way is finished, and `tell` hears a sentence about pages that could not be made.
    """
    if folder is None:
        yield lambda _: {}
        return
    pages = ClipPages(folder, timeout_seconds)
    try:
        yield pages.add
    finally:
        if said := pages.close():
            tell(said)


class ClipPages:
    """Pages in a folder; each is written anew when its clip has one more answer."""

    def __init__(self, folder: Path, timeout_seconds: float | None) -> None:
        """Make the folder, and write nothing yet."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._timeout_seconds = folder, timeout_seconds
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pages")
        self._waiting: list[Future[None]] = []
        self._clips: OrderedDict[Any, tuple[Path, list[Answer]]] = OrderedDict()
        self._failures: dict[Path, str] = {}

    def add(self, item: Item) -> dict[str, Any]:
        """One answer more; what its row says about the page that it will be on."""
        if not isinstance(item.outcome, Answer):
            return {}
        place = (item.job.clip.absolute(), item.job.window)
        file, before = self._clips.get(place, (self._folder / _name(item), []))
        answers = [*before, _light(item.outcome)]
        self._clips[place] = file, answers
        self._clips.move_to_end(place)
        if len(self._clips) > _CLIPS:
            self._clips.popitem(last=False)
        while len(self._waiting) >= _WAITING:
            self._waiting.pop(0).result()
        self._waiting.append(self._pool.submit(self._write, str(item.job.clip), file, answers))
        return {"page": str(file.absolute())}

    def close(self) -> str:
        """Finish what is under way; a sentence about pages that could not be made, empty where all could."""
        self._pool.shutdown()
        if not self._failures:
            return ""
        first = next(iter(self._failures.values()))
        return f"{counted(len(self._failures), 'page')} of clips could not be made: {first}"

    def _write(self, clip: str, file: Path, answers: list[Answer]) -> None:
        try:
            shots = read_again(clip, self._timeout_seconds, answers[0].frames, page.LONGEST_SIDE)
            page.write_page(answers, [], shots, file)
            self._failures.pop(file, None)
        except HolitomError as error:
            self._failures[file] = error.message
        except OSError as error:
            self._failures[file] = f"{reason(error)}."


def _name(item: Item) -> str:
    """The clip's name, and something that tells it from other clips, windows and runs."""
    stem = re.sub(r"[^\w.-]+", "_", item.job.clip.stem, flags=re.ASCII)[:_NAME_LETTERS]
    rest = repr((str(item.job.clip.absolute()), item.job.window, item.key)).encode("utf-8", "backslashreplace")
    return f"{stem}-{blake2b(rest, digest_size=6).hexdigest()}.html"


def _light(answer: Answer) -> Answer:
    """The answer without what takes memory, on a GPU above all, and is on no page."""
    visual, frames = answer.visual, answer.frames
    account = {name: getattr(visual, name).cpu() for name in ("frame", "cell", "size", "source")}
    return replace(
        answer,
        visual=replace(visual, embeds=visual.embeds[:, :0].clone(), **account),
        frames=replace(frames, pixels=frames.pixels[:, :0, :0].copy()),
        inner_source=answer.inner_source.cpu(),
        inner_size=answer.inner_size.cpu(),
    )
