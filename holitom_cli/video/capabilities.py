"""What this installation can decode."""

from __future__ import annotations

_CODECS = ("h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video")


def capabilities() -> dict[str, list[str]]:
    """The decoders that are installed, the usual codecs that there are and are not, and FFmpeg's libraries."""
    from importlib.util import find_spec

    import av
    from PIL import features

    decord = ["decord"] if find_spec("decord") else []
    webp = ["pillow"] if features.check("webp") else []
    return {
        "decoders": ["av", *decord, *webp],
        "codecs": [name for name in _CODECS if name in av.codecs_available],
        "codecs_missing": [name for name in _CODECS if name not in av.codecs_available],
        "ffmpeg": [f"{name} {'.'.join(map(str, number))}" for name, number in av.library_versions.items()],
    }
