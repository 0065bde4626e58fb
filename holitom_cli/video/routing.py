"""Which decoder may read a clip, and why not the other one.

decord 0.6.0 (2021) finds a frame by seeking to a key frame and counting decoded frames from there. Where a codec
drops frames after a seek, or the container cannot seek to the packet, it silently returns another frame. It is let
near a clip only when none of that can happen; tests/video/test_decoders.py compares both frame by frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holitom_cli.video.packets import Table

CONTAINERS = {
    "mov",
    "matroska",
}  # elsewhere its seeks miss: MPEG-PS, MPEG-TS and AVI gave frames 12 to 48 away
CODECS = {"h264": "H.264", "vp9": "VP9", "mpeg4": "MPEG-4"}
PIXEL_FORMATS = {"yuv420p", "yuvj420p"}  # its older FFmpeg converts 10-bit pictures with other rounding
AV_REASON = "decodes stretches of the clip side by side"
WHOLE_REASON = "decodes the whole clip, whose packets do not tell which frames there are"


def objection_to_decord(
    container: str,
    codec: str,
    pixel_format: str,
    table: Table,
    *,
    mirrored: bool = False,
    interlaced: bool = False,
    square: bool = True,
) -> str | None:
    """Why decord must not read this clip, in plain words, or None when it may."""
    if codec not in CODECS:
        return f"decord is exact only for {', '.join(CODECS.values())}, and this is {codec.upper()}"
    if container.split(",", maxsplit=1)[0] not in CONTAINERS:
        return f"decord returns wrong frames from {container} files"
    if pixel_format not in PIXEL_FORMATS:
        return f"decord is not exact for {pixel_format} pictures"
    if mirrored:
        return "decord shows mirrored pictures as they are stored"
    if not square:
        return "decord shows pixels as squares that are none"
    if interlaced:
        return "decord leaves the lines of interlaced pictures as they are, combed"
    if not table.exact or any(packet.hidden for packet in table.packets):
        return "decord miscounts frames that an edit list hides or that carry no time of their own"
    if table.lost or table.damaged:
        return "the file is not whole, and decord returns nothing then"
    if not table.closed:
        return "decord returns wrong frames where groups of frames are open"
    return None
