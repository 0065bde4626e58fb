"""Pictures made for bright screens (HDR), as an ordinary screen would show them.

The checkpoints have seen ordinary pictures, and the code values of HDR mean other light: shown as they are, pictures
are grey and pale. FFmpeg's conversion to RGB leaves them as they are.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from holitom_cli.types import ByteArray

TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273, table 3
WHITE_NITS = 203.0  # what white paper has in an HDR picture: ITU-R BT.2408, table 1
PEAK_NITS = 1000.0  # brighter light than that is white
# BT.2020 primaries to those of BT.709: ITU-R BT.2087, 4.3
TO_BT709 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))
_STEPS = 4096  # of the table that turns light into code values


def to_ordinary(picture: ByteArray, transfer: str) -> ByteArray:
    """(H, W, 3) uint8 in BT.2020 primaries and a transfer of `TRANSFERS` -> the same in BT.709 and sRGB's transfer.

    Light is compressed by the brightest of its three colours, so that hues stay: 0 to `PEAK_NITS` become 0 to 1 by
    x (1 + x / p^2) / (1 + x), x in units of white (Reinhard et al. 2002, equation 4).
    """
    import numpy as np

    light = _light_of(transfer)[picture]
    brightest = light.max(axis=-1, keepdims=True)
    peak = PEAK_NITS / WHITE_NITS
    light *= (1 + brightest / peak**2) / (1 + brightest)
    places = np.clip(light @ np.array(TO_BT709, np.float32).T, 0, 1) * (_STEPS - 1) + 0.5
    ordinary: ByteArray = _codes()[places.astype(np.int64)]
    return ordinary


@cache
def _light_of(transfer: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Light (256,) float32 of each code value, in units of white.

    HLG's system gamma, which belongs to the screen, is applied to each colour alone.
    """
    import numpy as np

    code = np.arange(256) / 255
    if transfer == "PQ":  # ITU-R BT.2100, table 4
        power = code ** (1 / 78.84375)
        nits = 10_000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    else:  # table 5
        scene = np.where(code <= 0.5, code**2 / 3, (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12)
        nits = PEAK_NITS * scene**1.2
    return (nits / WHITE_NITS).astype(np.float32)


@cache
def _codes() -> ByteArray:
    """Code value of sRGB (4096,) uint8 of light from 0 to 1: IEC 61966-2-1."""
    import numpy as np

    light = np.arange(_STEPS) / (_STEPS - 1)
    code = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (code * 255).round().astype(np.uint8)
