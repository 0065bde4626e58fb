"""A short run of the memory check, and that it sees what stays."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.video import flat_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def test_memory_is_flat(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        flat_memory.main(["64"])
    growth = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (ended.value.code, growth["flat"], growth["clips"]) == (False, True, 64)
    assert growth["begin_bytes"] > 50e6  # a process with torch in it


@pytest.mark.parametrize(("kept_bytes", "flat"), [(0, True), (30_000, False)])
def test_what_each_clip_leaves_is_seen(kept_bytes: int, flat: bool) -> None:
    kept: list[bytes] = []
    growth = flat_memory.grow(64, lambda _: kept.append(b"\1" * kept_bytes), [Path()] * 8)
    assert growth.flat == flat
    assert growth.bytes_a_clip == pytest.approx(kept_bytes, abs=flat_memory.MOST_BYTES_A_CLIP)
