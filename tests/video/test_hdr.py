"""Clips for bright screens look as on an ordinary one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from holitom_cli.video import probe, read
from holitom_cli.video.hdr import to_ordinary
from tests import clips

# code values (of 255) of light in nits, from the curves written the other way round: ITU-R BT.2100, tables 4 and 5
WHITE, PEAK = 203.0, 1000.0


def pq_code(nits: float) -> float:
    power = (nits / 10_000) ** 0.1593017578125
    return float(255 * ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)


def hlg_code(nits: float) -> float:
    scene = (nits / PEAK) ** (1 / 1.2)
    if scene <= 1 / 12:
        return float(255 * np.sqrt(3 * scene))
    return float(255 * (0.17883277 * np.log(12 * scene - 0.28466892) + 0.55991073))


def ordinary_code(nits: float) -> float:
    """What grey light of so many nits is on an ordinary screen: compressed, then sRGB."""
    light = nits / WHITE
    light *= (1 + light / (PEAK / WHITE) ** 2) / (1 + light)
    return float(255 * (12.92 * light if light <= 0.0031308 else 1.055 * min(light, 1) ** (1 / 2.4) - 0.055))


def grey(code: float) -> Any:
    return np.full((2, 3, 3), round(code), np.uint8)


@pytest.mark.parametrize(("transfer", "code"), [("PQ", pq_code), ("HLG", hlg_code)])
@pytest.mark.parametrize("nits", [1.0, 20.0, 100.0, WHITE, 500.0, 1000.0])
def test_grey_is_the_formula(transfer: str, code: Any, nits: float) -> None:
    found = to_ordinary(grey(code(nits)), transfer)
    assert np.ptp(found) <= 1  # grey stays grey
    assert found.mean() == pytest.approx(ordinary_code(nits), abs=4)  # 8 bits of PQ are coarse
    if transfer == "PQ" and 100 <= nits <= 500:  # control: as it was, it is not; HLG is nearly right as it is
        assert abs(float(grey(code(nits)).mean()) - ordinary_code(nits)) > 20


def test_hues_stay_and_colours_become_stronger() -> None:
    """An ordinary red in the wider primaries of HDR looks pale when shown as it is."""
    wide = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.709 to BT.2020
    light = wide @ np.array([0.8, 0.1, 0.1]) * WHITE
    code = np.array([[[pq_code(value) for value in light]]]).round().astype(np.uint8)
    (red, green, blue), stored = to_ordinary(code, "PQ")[0, 0].astype(float), code[0, 0].astype(float)
    assert abs(green - blue) < 8
    assert (red - green) > 1.5 * (stored[0] - stored[1])


@pytest.mark.parametrize(("transfer", "number", "code"), [("PQ", 16, pq_code), ("HLG", 18, hlg_code)])
def test_clips_are_recognised(tmp_path: Path, transfer: str, number: int, code: Any) -> None:
    def make(name: str, tags: dict[str, int]) -> Path:
        return clips.make(
            tmp_path / name,
            3,
            "libx265",
            options={"x265-params": "log-level=none:crf=4"},
            pix_fmt="yuv420p10le",
            tags=tags,
            paint=lambda _: np.full((clips.HEIGHT, clips.WIDTH, 3), round(code(WHITE)), np.uint8),
        )

    bright = make("hdr.mp4", {"color_trc": number, "color_primaries": 9, "colorspace": 9})
    plain = make("sdr.mp4", {"color_trc": 1, "color_primaries": 1, "colorspace": 1})
    assert (probe(bright).hdr, probe(plain).hdr) == (transfer, "")
    assert read(bright, 1).pixels.mean() == pytest.approx(ordinary_code(WHITE), abs=5)
    assert read(plain, 1).pixels.mean() == pytest.approx(code(WHITE), abs=3)
