"""What can be said about a path before any decoder sees it."""

from __future__ import annotations

import stat
from pathlib import Path

from holitom_cli.errors import VideoError


def shown(path: str | Path) -> str:
    """The file's name as one printable line, whatever bytes it holds."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in Path(path).name)


def subtitle_file(clip: str | Path, source: str | Path) -> Path:
    """Where the subtitles of a clip stand: in a file that is named, or with "auto" beside the clip or in it."""
    if source != "auto":
        return Path(source)
    beside = (Path(clip).with_suffix(ending) for ending in (".srt", ".vtt", ".ass"))
    return next((file for file in beside if file.is_file()), Path(clip))


def no_subtitles(clip: str | Path, source: str | Path) -> VideoError:
    """What is said where a clip has no subtitles in words."""
    name = shown(subtitle_file(clip, source))
    return VideoError(f"{name} has no subtitles in words.", f"Name a file with some: --subtitles {Path(name).stem}.srt")


def readable(path: str | Path) -> str:
    """The absolute path of a folder, or of a regular, readable, non-empty file; raises VideoError otherwise.

    An absolute path can never be taken for an option, a URL or a "concat:" list by a decoder. A FIFO or device
    is refused unopened, for opening one may wait for ever.
    """
    file = Path(path).absolute()
    name = shown(file) or str(file)
    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            return str(file)
        if not stat.S_ISREG(status.st_mode):
            raise VideoError(f"{name} is not a regular file.", "Save the stream to a file first.")
        with file.open("rb"):
            pass
    except FileNotFoundError:
        raise VideoError(f"There is no file {name}.", f"Looked in {file.parent}.") from None
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise VideoError(f"{name} cannot be opened: {reason}.", "Check the path and its permissions.") from None
    if status.st_size == 0:
        raise VideoError(f"{name} is empty (0 bytes).", "The download or copy may not have finished.")
    return str(file)
