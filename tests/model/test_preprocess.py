"""Frames to pixels: against the filters' formulas in float64, and files that cannot be followed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holitom_cli.errors import ModelError
from holitom_cli.model.hub import locate
from holitom_cli.model.loading import read_checkpoint
from holitom_cli.model.preprocess import Preprocessor, prepare, read_preprocessor
from holitom_cli.types import Frames
from tests.make_random_checkpoint import RANDOM

CPU = torch.device("cpu")
CLIP_MEAN, CLIP_STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)


def picture(height: int, width: int) -> Any:
    """Something with edges, gradients and noise: (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    bands = np.stack([255 * x / width, 255 * y / height, 255 * ((x // 17 + y // 11) % 2)], -1)
    noise = np.random.default_rng(0).normal(0, 20, bands.shape)
    return np.clip(bands + noise, 0, 255).astype(np.uint8)


def frames(*pictures: Any) -> Frames:
    return Frames(pixels=np.stack(pictures), seconds=np.arange(len(pictures), dtype=float))


def how(mode: str = "bicubic", side: int = 384, **changed: Any) -> Preprocessor:
    values: dict[str, Any] = {"scale": 1 / 255, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)} | changed
    return Preprocessor("test", side, side, mode, **values)


def undo(pixels: torch.Tensor, preprocessor: Preprocessor) -> Any:
    """Pixels from 0 to 1, (F, H, W, 3)."""
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (preprocessor.mean, preprocessor.std))
    return (pixels * std + mean).permute(0, 2, 3, 1).numpy()


SIZES = [(360, 640), (720, 405), (100, 90), (384, 384), (384, 500), (1, 1), (1080, 61)]


def kernel(mode: str, x: float) -> float:
    """The filter at a distance of x: a triangle, or Keys' cubic with a = -1/2."""
    x = abs(x)
    if mode == "bilinear":
        return max(0.0, 1 - x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resampling(mode: str, before: int, after: int) -> Any:
    """Weights (after, before) in float64; shrinking widens the filter."""
    step = before / after
    wide = max(step, 1.0)
    centres = (np.arange(after) + 0.5) * step
    weights = np.array([[kernel(mode, (x + 0.5 - centre) / wide) for x in range(before)] for centre in centres])
    return weights / weights.sum(1, keepdims=True)


def resize(image: Any, mode: str) -> Any:
    """(H, W, 3) -> (96, 96, 3) levels, one pass for rows and columns together."""
    rows, columns = (resampling(mode, length, 96) for length in image.shape[:2])
    exact = np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns, optimize=True)
    return np.clip(np.round(exact), 0, 255)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resizing_is_the_formula_rounded_to_levels(height: int, width: int, mode: str) -> None:
    image, preprocessor = picture(height, width), how(mode, side=96)
    expected = resize(image, mode)
    found = undo(prepare(preprocessor, frames(image), CPU), preprocessor)[0] * 255
    assert np.abs(found - expected).max() <= 1.01
    assert np.abs(found - expected).mean() <= 1e-2  # a level apart where float32 rounds the other way


def test_control_another_filter_and_no_smoothing_are_seen() -> None:
    image = picture(360, 640)
    found = undo(prepare(how("bicubic", side=96), frames(image), CPU), how())[0] * 255
    rows, columns = (((np.arange(96) + 0.5) * length / 96).astype(int) for length in image.shape[:2])
    for wrong in (resize(image, "bilinear"), image[rows][:, columns]):
        assert np.abs(found - wrong).mean() > 1


def test_normalising_is_what_the_formula_says() -> None:
    image = picture(384, 384)
    preprocessor = how(mean=CLIP_MEAN, std=CLIP_STD)
    expected = (image.astype(np.float64) / 255 - CLIP_MEAN) / CLIP_STD
    pixels = prepare(preprocessor, frames(image), CPU)[0].permute(1, 2, 0).double().numpy()
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    other = prepare(how(), frames(image), CPU)[0].permute(1, 2, 0).double().numpy()
    assert np.abs(other - expected).mean() > 0.1  # control: mean and std matter


def test_frames_stay_in_their_order_across_chunks() -> None:
    shades = [np.full((20, 30, 3), 10 * index, np.uint8) for index in range(19)]
    pixels = undo(prepare(how(side=32), frames(*shades), CPU), how())
    np.testing.assert_allclose(pixels.mean((1, 2, 3)) * 255, 10 * np.arange(19), atol=1e-3)


def test_channels_are_red_green_blue() -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    pixels = prepare(how(side=16), frames(red), CPU)[0]
    assert pixels.mean((1, 2)).tolist() == [1, -1, -1]


# --- the checkpoint's file -------------------------------------------------------------------

FILE = {
    "do_resize": True,
    "size": {"height": 98, "width": 98},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}
NAMES = (
    "processor_config.json",
    "video_preprocessor_config.json",
    "video_processor/preprocessor_config.json",
    "preprocessor_config.json",
)


def write(directory: Path, name: str, content: Any) -> None:
    (directory / name).parent.mkdir(exist_ok=True)
    nested = {"video_processor": content} if name == "processor_config.json" else content
    (directory / name).write_text(json.dumps(nested))


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_found_in_every_place(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, FILE)
    found = read_preprocessor(tmp_path)
    assert found == Preprocessor(name, 98, 98, "bicubic", 1 / 255, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_earlier_places_come_first(tmp_path: Path) -> None:
    for index, name in reversed(list(enumerate(NAMES))):
        write(tmp_path, name, FILE | {"size": 10 + index})
        found = read_preprocessor(tmp_path)
        assert (found.file, found.height) == (name, 10 + index)


def test_a_processor_file_without_a_video_part_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text('{"processor_class": "LlavaOnevisionProcessor"}')
    write(tmp_path, "preprocessor_config.json", FILE)
    assert read_preprocessor(tmp_path).file == "preprocessor_config.json"


def test_what_the_file_leaves_out(tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", FILE | {"do_rescale": False, "do_normalize": False, "resample": 2})
    found = read_preprocessor(tmp_path)
    assert (found.scale, found.mean, found.std, found.mode) == (1.0, (0, 0, 0), (1, 1, 1), "bilinear")
    write(tmp_path, "preprocessor_config.json", {key: FILE[key] for key in ("size", "image_mean", "image_std")})
    assert read_preprocessor(tmp_path).mode == "bicubic"


def unusable() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "no resizing", {"do_resize": False}
    yield "cropping", {"do_center_crop": True}
    yield "shortest edge", {"size": {"shortest_edge": 384}}
    yield "no size", {"size": None}
    yield "Lanczos", {"resample": 1}
    yield "two means", {"image_mean": [0.5, 0.5]}
    yield "one mean", {"image_mean": 0.5}
    yield "no std", {"image_std": None}
    yield "zero std", {"image_std": [0.5, 0.5, 0]}
    yield "std in words", {"image_std": ["a", "b", "c"]}
    yield "scale in words", {"rescale_factor": "small"}


@pytest.mark.parametrize("changed", [pytest.param(changed, id=name) for name, changed in unusable()])
def test_a_preprocessing_that_is_not_supported(tmp_path: Path, changed: dict[str, Any]) -> None:
    write(tmp_path, "preprocessor_config.json", FILE | changed)
    with pytest.raises(ModelError, match=r"^preprocessor_config\.json .* not supported") as caught:
        read_preprocessor(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_a_damaged_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"cannot be read|is not a JSON object"):
        read_preprocessor(tmp_path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no preprocessor file"):
        read_preprocessor(tmp_path)


def test_a_size_that_the_tower_does_not_take(tmp_path: Path) -> None:
    for file in RANDOM.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write(tmp_path, "video_preprocessor_config.json", FILE)
    with pytest.raises(ModelError, match="resizes frames to 98x98, but the tower takes 384x384"):
        _ = read_checkpoint(locate(str(tmp_path))).preprocessor
