"""Keys that tell a finished question from an open one, and the rows of an output file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holitom_cli.errors import BatchError

if TYPE_CHECKING:
    from holitom_cli.methods import Method
    from holitom_cli.model.loading import Checkpoint
    from holitom_cli.types import Sampling

_BLOCK_BYTES = 65536
_BLOCKS = 64
_ROW_BEGINS = b'{"key": "'


def clip_identity(path: Path) -> str:
    """A name for a file's content: its size, and a hash of 64 blocks spread over it (all of a file up to 4 MiB).

    A folder of pictures is known by their names, sizes and times of change. What cannot be read is known by its path:
    it will be an error row.
    """
    digest = blake2b(digest_size=16)
    try:
        if path.is_dir():
            status = [(entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in sorted(path.iterdir())]
            return f"folder {blake2b(repr(status).encode(), digest_size=16).hexdigest()}"
        total = path.stat().st_size
        with path.open("rb") as file:
            last = max(0, total - _BLOCK_BYTES)
            for start in sorted({last * block // (_BLOCKS - 1) for block in range(_BLOCKS)}):
                file.seek(start)
                digest.update(file.read(_BLOCK_BYTES))
    except OSError:
        return f"unreadable {path}"
    return f"{total} {digest.hexdigest()}"


def question_key(clip: str, question: str, settings: Mapping[str, Any]) -> str:
    """The key of one row: the same clip, question, settings and model give the same key."""
    everything = json.dumps([clip, question, settings], sort_keys=True, ensure_ascii=False)
    return blake2b(everything.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def watched_key(clip: str, checkpoint: Checkpoint, where: Sequence[str], method: Method, sampling: Sampling) -> str:
    """The key of a compressed clip: everything that its tokens depend on, `where` being the device and the dtype."""
    from holitom_cli import __version__, methods
    from holitom_cli.account import versions
    from holitom_cli.cache import FORMAT

    source = checkpoint.source
    weights = weights_identity(source.path)
    settings = [methods.name_of(method), asdict(method)]  # type: ignore[call-overload]
    model = [str(source.path), source.revision, weights, *where]
    everything = [FORMAT, __version__, versions(), clip, model, settings, asdict(sampling)]
    return blake2b(
        json.dumps(everything, sort_keys=True).encode("utf-8", "backslashreplace"), digest_size=16
    ).hexdigest()


def weights_identity(folder: Path) -> list[list[str | int]]:
    """The files that make a model: name, bytes and time of change of each in its folder."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def finished_rows(output: Path) -> dict[str, dict[str, Any]]:
    """Rows with an answer in an output file, by key; rows that a crash tore count as open.

    Raises:
        BatchError: the file holds something else than rows.
    """
    return {row["key"]: row for row in rows_in(output) if "answer" in row}


def rows_in(output: Path) -> Iterator[dict[str, Any]]:
    """All rows of an output file, one at a time; none where there is no file, and torn ones are left out.

    Raises:
        BatchError: the file holds something else than rows.
    """
    if not output.is_file():
        return
    with output.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                _ = row["key"]
            except (ValueError, TypeError, KeyError) as error:
                if line.startswith(_ROW_BEGINS[: len(line)]):
                    continue
                raise BatchError(
                    f"Line {number} of {output} is not a row of a batch, so nothing is added to that file.",
                    "Choose another --output.",
                ) from error
            yield row


def mend_last_row(output: Path) -> None:
    """Cut off a last row that a crash tore; a whole one gets the end of line that it lacks."""
    kept, newline, last = output.read_bytes().rpartition(b"\n")
    if not last:
        return
    with output.open("ab") as file:
        try:
            json.loads(last)
            file.write(b"\n")
        except ValueError:
            file.truncate(len(kept) + len(newline))
