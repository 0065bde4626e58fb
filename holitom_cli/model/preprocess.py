"""Frames to the tower's pixels, exactly as the checkpoint's own preprocessor file says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from holitom_cli.errors import ModelError
from holitom_cli.types import Frames

if TYPE_CHECKING:
    from holitom_cli.types import ByteArray

_CHUNK_FRAMES = 8  # frames held in float32 at full size at a time
_MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL's numbers for resampling filters

# In the order in which transformers looks for them; the third is where the first published checkpoints keep it.
_FILES = (
    "processor_config.json",
    "video_preprocessor_config.json",
    "video_processor/preprocessor_config.json",
    "preprocessor_config.json",
)


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """How pixels are resized and normalised: (x * scale - mean) / std."""

    file: str
    height: int
    width: int
    mode: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_preprocessor(directory: Path) -> Preprocessor:
    """Read the checkpoint's video preprocessor file; an image preprocessor's file serves where there is none.

    Raises:
        ModelError: no file, or one that asks for something that this program does not do.
    """
    for name in _FILES:
        path = directory / name
        if not path.is_file():
            continue
        content = read_json(path)
        if name == "processor_config.json":  # only newer ones hold the video processor's settings
            content = content.get("video_processor") or {}
        if content:
            return _parse(name, content)
    raise ModelError(
        f"{directory} has no preprocessor file, so the pixels' size and normalisation are unknown.",
        "Copy video_preprocessor_config.json or preprocessor_config.json from the original checkpoint.",
    )


def shrinker(preprocessor: Preprocessor, device: torch.device) -> Callable[[ByteArray], ByteArray]:
    """What makes of one picture (H, W, 3) uint8 what `prepare` would resize it to: (height, width, 3) uint8.

    Frames that were shrunk as they arrived give the same pixels as frames that were kept at full size.
    """

    def shrink(picture: ByteArray) -> ByteArray:
        pixels = torch.from_numpy(picture.copy()).to(device)  # the copy may be written to, as torch wants
        with torch.inference_mode():
            resized = _resize(pixels.permute(2, 0, 1)[None], preprocessor)[0].permute(1, 2, 0)
        return resized.cpu().numpy()

    return shrink


def prepare(preprocessor: Preprocessor, frames: Frames, device: torch.device) -> Tensor:
    """Resize and normalise on the device: (F, H, W, 3) uint8 -> (F, 3, height, width) float32.

    Antialiased like the library's own processor, which rounds to 8 bits between resizing and normalising.
    """
    mean, std = (torch.tensor(part, device=device).view(1, 3, 1, 1) for part in (preprocessor.mean, preprocessor.std))
    pixels = torch.as_tensor(frames.pixels if _writable(frames) else frames.pixels.copy())
    chunks = [_resize(chunk.to(device).permute(0, 3, 1, 2), preprocessor) for chunk in pixels.split(_CHUNK_FRAMES)]
    return torch.cat(chunks).float().mul_(preprocessor.scale).sub_(mean).div_(std)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: the file cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", "Download the checkpoint again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object.", "Download the checkpoint again.")
    return content


def _writable(frames: Frames) -> bool:
    """Whether torch may share the memory of the pixels; it warns of arrays that it must not write to."""
    flags = getattr(frames.pixels, "flags", None)
    return flags is None or bool(flags.writeable)


def _resize(pixels: Tensor, preprocessor: Preprocessor) -> Tensor:
    """(f, 3, H, W) uint8 -> (f, 3, height, width) uint8."""
    size = (preprocessor.height, preprocessor.width)
    if pixels.shape[-2:] == size:
        return pixels
    smooth = preprocessor.mode in ("bilinear", "bicubic")
    resized = F.interpolate(pixels.float(), size, mode=preprocessor.mode, antialias=smooth)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _parse(name: str, content: dict[str, Any]) -> Preprocessor:
    try:
        if not content.get("do_resize", True) or content.get("do_center_crop"):
            raise ValueError("do_resize false or do_center_crop true")
        return Preprocessor(
            name,
            *_size(content["size"]),
            mode=_MODES[content.get("resample", 3)],
            scale=float(content.get("rescale_factor", 1 / 255)) if content.get("do_rescale", True) else 1.0,
            mean=_colours(content["image_mean"]) if content.get("do_normalize", True) else (0.0, 0.0, 0.0),
            std=_colours(content["image_std"], zero=False) if content.get("do_normalize", True) else (1.0, 1.0, 1.0),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{name} of the checkpoint asks for a preprocessing that is not supported ({error!r}).",
            "Use a checkpoint that resizes frames to a fixed square, as the published ones do.",
        ) from error


def _size(size: dict[str, int] | int) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return size["height"], size["width"]


def _colours(values: list[float], *, zero: bool = True) -> tuple[float, float, float]:
    """One number each for red, green and blue."""
    red, green, blue = (float(value) for value in values)
    if not zero and 0 in (red, green, blue):
        raise ValueError("image_std with a zero")
    return red, green, blue
