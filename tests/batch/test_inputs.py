"""Which clips there are: files, folders, patterns, lists, samples and shards."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from holitom_cli.batch.inputs import Wanted, find_clips, listed, sample, shard
from holitom_cli.errors import UsageError

FILES = (
    "a.MP4", "b.mkv", "c.txt", "._a.mp4", ".hidden.mp4", "new\nline.mp4", "sub/d.mp4", "sub/skip.mp4",
    "sub/deep/e.webm", ".git/f.mp4", "g.bin",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / "folder.mp4").mkdir()
    return tmp_path


def names(folder: Path, clips: list[Path]) -> list[str]:
    return [clip.relative_to(folder).as_posix() for clip in clips]


def test_folders_give_visible_videos_and_count_the_rest(folder: Path) -> None:
    found = find_clips([folder])
    assert names(folder, found.clips) == ["a.MP4", "b.mkv", "new\nline.mp4"]
    assert found.skipped == {"hidden": 3, "without a video's ending": 2, "folders": 2}


def test_recursive_with_patterns(folder: Path) -> None:
    everything = find_clips([folder], Wanted(recursive=True))
    assert names(folder, everything.clips) == [
        "a.MP4", "b.mkv", "new\nline.mp4", "sub/d.mp4", "sub/deep/e.webm", "sub/skip.mp4",
    ]  # fmt: skip
    some = find_clips([folder], Wanted(recursive=True, patterns=["*.mp4", "*.bin"], exclude=["skip*", "sub/deep"]))
    assert names(folder, some.clips) == ["g.bin", "new\nline.mp4", "sub/d.mp4"]
    assert some.skipped["excluded"] == 2
    assert names(folder, find_clips([folder], Wanted(recursive=True, patterns=["sub/*.mp4"])).clips) == [
        "sub/d.mp4", "sub/skip.mp4",
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_that_leads_back_up_ends(folder: Path) -> None:
    (folder / "sub" / "up").symlink_to(folder)
    assert len(find_clips([folder], Wanted(recursive=True)).clips) == 6


def test_what_is_named_is_taken_at_its_word_and_once(folder: Path) -> None:
    named = folder / "c.txt"
    assert find_clips([named, folder, named]).clips[0] == named
    assert len(find_clips([named, folder, named]).clips) == 4
    assert find_clips([folder / "gone.mp4"]).clips == [folder / "gone.mp4"]


def test_patterns_that_no_shell_expanded(folder: Path) -> None:
    assert names(folder, find_clips([folder / "*.m*"]).clips) == ["b.mkv", "new\nline.mp4"]
    assert names(folder, find_clips([folder / "**" / "*.webm"]).clips) == ["sub/deep/e.webm"]
    assert find_clips([folder / "no*thing"]).clips == [folder / "no*thing"]  # becomes an error row
    odd = folder / "what[1].mp4"
    odd.write_text("", encoding="utf-8")
    assert find_clips([odd]).clips == [odd]


def test_nothing_is_a_sentence_with_the_counts(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no video file in the given folders\. Passed over: 3 hidden, 8 not in the pattern"
    ):
        find_clips([folder], Wanted(recursive=True, patterns=["*.gif"], exclude=[]))
    with pytest.raises(UsageError, match="no video file in the given folders"):
        find_clips([folder / "folder.mp4"])


@pytest.mark.skipif(os.name != "posix", reason="bytes in names")
def test_lists_keep_every_byte_of_a_name() -> None:
    assert listed(b"a.mp4\r\n\n b c.mp4 \n", nul=False) == [Path("a.mp4"), Path(" b c.mp4 ")]
    assert listed(b"new\nline.mp4\0\xff.mp4\0", nul=True) == [Path("new\nline.mp4"), Path(os.fsdecode(b"\xff.mp4"))]


def test_a_sample_is_the_seeds_and_in_order() -> None:
    clips = [Path(f"{number:03}.mp4") for number in range(100)]
    drawn = sample(clips, 10, 1)
    assert drawn == sorted(drawn) == sample(clips, 10, 1)
    assert len(set(drawn)) == 10
    assert drawn != sample(clips, 10, 2)
    assert sample(clips, 1000, 1) == clips


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_shards_are_all_clips_once_whatever_else_is_there(parts: int) -> None:
    clips = [Path(f"{number:03}.mp4") for number in range(200)]
    shares = [shard(clips, f"{number}/{parts}") for number in range(1, parts + 1)]
    assert sorted(clip for share in shares for clip in share) == clips
    assert min(map(len, shares)) > 0.5 * len(clips) / parts
    later = [*clips, Path("new.mp4")]
    assert all(set(share) <= set(shard(later, f"{number}/{parts}")) for number, share in enumerate(shares, 1))


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_what_is_no_shard(part: str) -> None:
    with pytest.raises(UsageError, match="is not the number of a part"):
        shard([], part)
