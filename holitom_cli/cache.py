"""Compressed clips on disk: asking again about the same clip neither decodes nor looks at it.

One safetensors file an entry, named by a key of everything that it depends on. Files are written beside and moved into
place, so that readers, other writers and a kill at any moment find a whole entry or none.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holitom_cli.errors import reason
from holitom_cli.types import Frames, Sampling, VideoInfo, VisualTokens

if TYPE_CHECKING:
    import torch

FORMAT = 1  # of an entry; part of every key
LIMIT_BYTES = 2 * 1024**3
_ENDING = ".safetensors"
_UNFINISHED = ".unfinished"
_ABANDONED_SECONDS = 3600  # nobody writes an entry for that long
_TOKENS = ("embeds", "frame", "cell", "size", "source")


class Cache:
    """A folder of entries, the least recently used of which go when it grows beyond a limit."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = folder
        self.trouble = ""  # a sentence about why the last entry was not kept
        self._limit_bytes = limit_bytes

    def get(self, key: str, device: torch.device, clip: str | Path) -> tuple[Frames, VisualTokens] | None:
        """An entry about this clip, its tensors on the device; None where there is none.

        One that cannot be read is removed. The same clip may have had another name when it was kept.
        """
        path = self._path(key)
        try:
            frames, visual = _load(path, device)
            os.utime(path)
        except FileNotFoundError:
            return None
        except Exception:  # whatever a library makes of a damaged file: it is made anew
            with suppress(OSError):
                path.unlink()
            return None
        info = frames.video and replace(frames.video, path=str(Path(clip).absolute()))
        return replace(frames, video=info), visual

    def put(self, key: str, frames: Frames, visual: VisualTokens) -> None:
        """Keep an entry; where it cannot be written, `trouble` says why."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._write(self._path(key), _dump(frames, visual))
            self._make_room()
        except OSError as error:
            self.trouble = f"What was seen of the clip is not kept in {self.folder}: {reason(error).lower()}."

    def sizes(self) -> dict[Path, int]:
        """Bytes of every entry, the least recently used first."""
        found = {}
        for path in self.folder.glob(f"*{_ENDING}"):
            with suppress(FileNotFoundError):  # another process removes entries too
                status = path.stat()
                found[path] = (status.st_mtime_ns, status.st_size)
        return {path: size for path, (_, size) in sorted(found.items(), key=lambda item: item[1])}

    def clear(self) -> tuple[int, int]:
        """Remove all entries; returns how many there were, and their bytes."""
        sizes = self.sizes()
        for path in (*sizes, *self.folder.glob(f"*{_UNFINISHED}")):
            path.unlink(missing_ok=True)
        return len(sizes), sum(sizes.values())

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_ENDING}"

    def _write(self, path: Path, content: bytes) -> None:
        handle, name = tempfile.mkstemp(_UNFINISHED, dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _make_room(self) -> None:
        sizes = self.sizes()
        total = sum(sizes.values())
        for path, size in sizes.items():
            if total <= self._limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        for path in self.folder.glob(f"*{_UNFINISHED}"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:  # its writer was killed
                    path.unlink()


def _dump(frames: Frames, visual: VisualTokens) -> bytes:
    import torch
    from safetensors.torch import save

    tensors = {name: getattr(visual, name).contiguous().cpu() for name in _TOKENS}
    tensors["seconds"] = torch.as_tensor(frames.seconds)
    if frames.indices is not None:
        tensors["indices"] = torch.as_tensor(frames.indices)
    about = {
        "segments": [(part.start, part.stop) for part in visual.segments],
        "stages": visual.stages,
        "video": asdict(frames.video) if frames.video else None,
        "sampling": asdict(frames.sampling) if frames.sampling else None,
        "decoder": frames.decoder,
        "decoder_reason": frames.decoder_reason,
        "frames_missing": frames.frames_missing,
        "moved_seconds": frames.moved_seconds,
        "warnings": frames.warnings,
    }
    return save(tensors, {"about": json.dumps(about)})


def _load(path: Path, device: torch.device) -> tuple[Frames, VisualTokens]:
    import numpy as np
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()["about"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    visual = VisualTokens(
        **{name: tensors[name].to(device) for name in _TOKENS},
        segments=tuple(range(start, stop) for start, stop in about.pop("segments")),
        stages=tuple((stage, left) for stage, left in about.pop("stages")),
    )
    video, sampling, seconds = about.pop("video"), about.pop("sampling"), tensors["seconds"].numpy()
    frames = Frames(
        pixels=np.empty((len(seconds), 0, 0, 3), np.uint8),
        seconds=seconds,
        indices=tensors["indices"].numpy() if "indices" in tensors else None,
        video=VideoInfo(**video) if video else None,
        sampling=Sampling(**{**sampling, "at_seconds": tuple(sampling["at_seconds"])}) if sampling else None,
        cached=True,
        **{**about, "warnings": tuple(about["warnings"])},
    )
    return frames, visual
