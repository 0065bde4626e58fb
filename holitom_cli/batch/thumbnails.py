"""One picture of each clip of a batch, for a page about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from holitom_cli.batch.reader import reader_count
from holitom_cli.errors import HolitomError
from holitom_cli.types import Sampling

if TYPE_CHECKING:
    from holitom_cli.types import ByteArray

Place = tuple[str, float, bool]  # a clip's path, seconds from its first frame, whether the next key frame will do


def pictures(
    places: Sequence[Place],
    shrink: Callable[[ByteArray], ByteArray],
    encode: Callable[[ByteArray], bytes],
    timeout_seconds: float | None = None,
) -> Iterator[tuple[Place, bytes | None]]:
    """Read the frame at each place, several clips at a time; None of a clip that cannot be read.

    Args:
        places: in any order.
        shrink: makes of a picture (H, W, 3) uint8 a small one.
        encode: makes a file of that, so that few pictures are in memory.
        timeout_seconds: that each stage of a clip's reading may take.
    """
    from holitom_cli.video import stop_workers

    read = partial(_picture, shrink=shrink, encode=encode, timeout_seconds=timeout_seconds)
    pool = ThreadPoolExecutor(reader_count(), thread_name_prefix="thumbnails")
    try:
        yield from zip(places, pool.map(read, places), strict=True)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        stop_workers()  # else the pool would wait for them
        raise
    finally:
        pool.shutdown()


def _picture(
    place: Place,
    shrink: Callable[[ByteArray], ByteArray],
    encode: Callable[[ByteArray], bytes],
    timeout_seconds: float | None,
) -> bytes | None:
    from holitom_cli import video

    path, seconds, roughly = place
    near = Sampling(num_frames=1, keyframes=True, start_seconds=seconds)
    wish = near if roughly else Sampling(at_seconds=(seconds,))
    try:
        return encode(video.read(path, wish, timeout_seconds=timeout_seconds, shrink=shrink).pixels[0])
    except HolitomError:
        return None
