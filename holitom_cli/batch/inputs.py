"""Which clips a batch has: files, folders, patterns and lists of paths."""

from __future__ import annotations

import glob
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from hashlib import blake2b
from pathlib import Path

from holitom_cli.errors import UsageError, reason

ENDINGS = frozenset(
    f".{ending}"
    for ending in "3gp avi flv gif m2ts m4v mkv mov mp4 mpeg mpg mts mxf ogv ts vob webm wmv".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files of a folder are clips. Patterns are the shell's, for names or for paths below the folder."""

    recursive: bool = False
    patterns: Sequence[str] = ()  # instead of the known endings
    exclude: Sequence[str] = ()


@dataclass(slots=True)
class Found:
    """Clips in order, none twice, and how many files were passed over, by the reason."""

    clips: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def find_clips(paths: Iterable[Path], wanted: Wanted = Wanted()) -> Found:
    """Files as named, and of folders every visible entry with a video's ending, sorted; none twice.

    A path that is not there is taken for a pattern if it looks like one. A link that leads nowhere is a clip too: it
    becomes an error row, not a gap.

    Raises:
        UsageError: no clip at all, or a folder that cannot be read.
    """
    found = Found()
    clips: dict[Path, None] = {}
    for path in paths:
        for place in _meant(path):
            if place.is_dir():
                clips.update(dict.fromkeys(_clips_in(place, place, wanted, found.skipped)))
            else:
                clips[place] = None
    found.clips = list(clips)
    if not found.clips:
        passed = f" {describe(found.skipped)}." if found.skipped else ""
        raise UsageError(
            f"There is no video file in the given folders.{passed}",
            f"Use --recursive or --glob; known endings: {' '.join(sorted(ENDINGS))}",
        )
    return found


def listed(content: bytes, *, nul: bool) -> list[Path]:
    """Paths in a list: one a line, or separated by NUL as `find -print0` writes them."""
    parts = content.split(b"\0") if nul else [line.rstrip(b"\r") for line in content.split(b"\n")]
    return [Path(os.fsdecode(part)) for part in parts if part.strip()]


def describe(skipped: Counter[str]) -> str:
    """Passed over: 2 hidden, 1 no video ending."""
    return "Passed over: " + ", ".join(f"{count:,} {why}" for why, count in sorted(skipped.items()))


def sample(clips: Sequence[Path], count: int, seed: int) -> list[Path]:
    """So many of the clips, drawn by the seed, in their order."""
    drawn = random.Random(seed).sample(range(len(clips)), min(count, len(clips)))
    return [clips[place] for place in sorted(drawn)]


def shard(clips: Sequence[Path], part: str) -> list[Path]:
    """The clips of one of several jobs that do not know of each other: "2/8" is the second of eight.

    A clip's path alone says whose it is, so that the jobs agree even where files are added between their starts.

    Raises:
        UsageError: not the number of a part.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    number, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= parts:
        raise UsageError(f"--shard {part!r} is not the number of a part.", "As in: --shard 2/8 for the second of 8.")
    return [clip for clip in clips if _draw(clip) % parts == number - 1]


def _draw(clip: Path) -> int:
    return int.from_bytes(blake2b(os.fsencode(clip), digest_size=8).digest(), "big")


def _meant(path: Path) -> list[Path]:
    """The path itself, or what it means as a pattern that no shell has expanded."""
    if os.path.lexists(path) or not glob.has_magic(str(path)):
        return [path]
    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))] or [path]  # noqa: PTH207  absolute too


def _clips_in(folder: Path, root: Path, wanted: Wanted, skipped: Counter[str]) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        if folder == root:
            said = reason(error).lower()
            raise UsageError(f"Folder {folder} cannot be read: {said}.", "Check its permissions.") from error
        skipped["folders that cannot be read"] += 1
        return
    for path in entries:
        if why := _objection(path, root, wanted):
            skipped[why] += 1
        elif path.is_dir():
            yield from _clips_in(path, root, wanted, skipped)
        else:
            yield path


def _objection(path: Path, root: Path, wanted: Wanted) -> str | None:
    """Why an entry of a folder is passed over."""
    if path.name.startswith("."):  # ._x.mp4, too, which other systems leave beside x.mp4
        return "hidden"
    if _matches(path, root, wanted.exclude):
        return "excluded"
    if path.is_dir():
        linked = path.is_symlink()  # it may lead back up
        return None if wanted.recursive and not linked else "folders"
    if wanted.patterns:
        return None if _matches(path, root, wanted.patterns) else "not in the pattern"
    return None if path.suffix.lower() in ENDINGS else "without a video's ending"


def _matches(path: Path, root: Path, patterns: Sequence[str]) -> bool:
    below = path.relative_to(root).as_posix()
    return any(fnmatch(path.name, pattern) or fnmatch(below, pattern) for pattern in patterns)
