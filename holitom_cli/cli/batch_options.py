"""Options of `holitom batch` alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holitom_cli.errors import UsageError, reason

if TYPE_CHECKING:
    from holitom_cli.batch.inputs import Found
    from holitom_cli.cli.options import ModelOptions

_STDIN = "-"


class Engine(StrEnum):
    """Who does the work."""

    local = "local"
    ray = "ray"


def _option(panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


@dataclass(frozen=True)
class ClipOptions:
    """Which clips."""

    from_file: Annotated[
        Path | None, _option("Clips", "--from-file", metavar="FILE", help="A list of paths, one a line; - is stdin.")
    ] = None
    nul: Annotated[
        bool, _option("Clips", "-0", "--null", help="Lists are separated by NUL, as find -print0 writes them.")
    ] = False
    recursive: Annotated[bool, _option("Clips", "--recursive", "-r", help="Folders in folders, too.")] = False
    glob: Annotated[
        list[str] | None,
        _option("Clips", "--glob", metavar="PATTERN", help="Files of folders that are clips, as '*.mp4'; repeatable."),
    ] = None
    exclude: Annotated[
        list[str] | None,
        _option("Clips", "--exclude", metavar="PATTERN", help="Files and folders to leave out; repeatable."),
    ] = None
    sample: Annotated[
        int | None, _option("Clips", "--sample", metavar="N", help="Only N of the clips, drawn by --seed.", min=1)
    ] = None
    shard: Annotated[
        str | None,
        _option("Clips", "--shard", metavar="I/N", help="Only the I-th of N parts; jobs need not know of each other."),
    ] = None
    every: Annotated[
        str | None,
        _option("Clips", "--every", metavar="TIME", help="Ask about windows of this length: 60s, 90 or 1:30."),
    ] = None

    def find(self, paths: Sequence[Path], seed: int) -> Found | None:
        """The clips; None where no path is named at all.

        Raises:
            UsageError: none is there, or a list cannot be read.
        """
        from holitom_cli.batch import inputs

        lists = [path for path in (self.from_file, *paths) if path == Path(_STDIN)]
        if len(lists) > 1:
            raise UsageError("Stdin can be read once only.", "Name - once.")
        named = [path for path in paths if path != Path(_STDIN)]
        if self.from_file or lists:
            content = _read(self.from_file or Path(_STDIN))
            named += inputs.listed(content, nul=self.nul)
            if not named:
                raise UsageError("The list of paths is empty.", "Give one path a line, or with -0 separated by NUL.")
        elif self.nul:
            raise UsageError("There is no list that -0 could separate.", "Use --from-file, or - for stdin.")
        if not named:
            return None
        found = inputs.find_clips(named, inputs.Wanted(self.recursive, self.glob or (), self.exclude or ()))
        if self.shard is not None:
            found.clips = inputs.shard(found.clips, self.shard)
        if self.sample is not None:
            found.clips = inputs.sample(found.clips, self.sample, seed)
        return found

    @property
    def every_seconds(self) -> float | None:
        """The length of a window.

        Raises:
            UsageError: it is no time.
        """
        if self.every is None:
            return None
        found = re.fullmatch(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)\s*([smh]?)", self.every.strip())
        length = 0.0
        if found:
            hours, minutes, rest, unit = found.groups()
            length = (int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest)) * {"m": 60, "h": 3600}.get(unit, 1)
        if length < 1:
            raise UsageError(
                f"--every {self.every!r} is no time of a second or more.", "As in: --every 60s, 2m or 1:30"
            )
        return length


@dataclass(frozen=True)
class RunOptions:
    """How the run goes, and what becomes of failures."""

    rows: Annotated[
        int | None,
        _option(
            "Run", "--rows", metavar="N", help="Answers generated together.", min=1, show_default="16 on a GPU, else 1"
        ),
    ] = None
    deterministic: Annotated[
        bool, _option("Run", "--deterministic", help="One answer at a time: to the last bit those of holitom ask.")
    ] = False
    gpus: Annotated[
        str | None,
        _option("Run", "--gpus", metavar="all|0,1", help="One worker process on each of these GPUs."),
    ] = None
    engine: Annotated[
        Engine,
        _option("Run", "--engine", help="Who does the work: this machine, or the Ray cluster that it belongs to."),
    ] = Engine.local
    timeout: Annotated[
        float | None, _option("Run", "--timeout", metavar="SECONDS", help="That a clip may take.", min=1)
    ] = None
    retry_failed: Annotated[bool, _option("Run", "--retry-failed", help="Try failed rows again.")] = False
    force: Annotated[bool, _option("Run", "--force", help="Make every row again; the last one of a key counts.")] = (
        False
    )
    max_failures: Annotated[
        int | None, _option("Run", "--max-failures", metavar="N", help="Stop when N rows have failed.", min=1)
    ] = None
    fail_fast: Annotated[bool, _option("Run", "--fail-fast", help="Stop at the first failure.")] = False
    dry_run: Annotated[bool, _option("Run", "--dry-run", help="Say what there is to do and what it takes.")] = False

    @property
    def most_failures(self) -> int | None:
        return 1 if self.fail_fast else self.max_failures

    def device_type(self, model: ModelOptions) -> str:
        """The type of the device that models run on: one of this machine, or those of the cluster.

        Raises:
            HolitomError: there is no such device, or no cluster; or options name one and the other.
        """
        if self.engine is Engine.local:
            from holitom_cli.model.device import choose_device

            return choose_device(model.device).type
        if self.gpus is not None or model.device_map:
            raise UsageError("--engine ray chooses devices itself.", "Leave --gpus and --device-map out.")
        from holitom_cli.batch import cluster

        return cluster.device_type(model.device)

    def here(self, model: ModelOptions) -> ModelOptions:
        """What of the model's options concerns this machine: of a cluster, it is the one that only writes.

        Raises:
            UsageError: no machine of the cluster can tell which model suits the others.
        """
        if self.engine is Engine.local:
            return model
        if model.model is None:
            raise UsageError("--engine ray does not choose a model.", "Name one that all machines have by --model.")
        return replace(model, device="cpu")

    def devices(self, model: ModelOptions) -> list[str]:
        """The devices of several workers; none where this process does the work.

        Raises:
            UsageError: they are no numbers, or another option names a device.
            DeviceError: there is no such GPU.
        """
        if self.gpus is None:
            return []
        if model.device != "auto" or model.device_map:
            raise UsageError("--gpus names the devices.", "Leave --device and --device-map out.")
        from holitom_cli.model.device import choose_device, gpu_count

        if self.gpus == "all":
            choose_device("cuda")
            return [f"cuda:{number}" for number in range(gpu_count())]
        numbers = self.gpus.split(",")
        if not all(number.strip().isdigit() for number in numbers) or len(set(numbers)) < len(numbers):
            raise UsageError(f"--gpus {self.gpus!r} is no list of GPUs.", "As in: --gpus all, or --gpus 0,1")
        return [str(choose_device(f"cuda:{int(number)}")) for number in numbers]

    def rows_on(self, device_type: str) -> int:
        """How many answers are generated together.

        Raises:
            UsageError: two options exclude each other.
        """
        if self.deterministic and self.rows is not None:
            raise UsageError("--deterministic answers one question at a time.", "Leave --rows out.")
        if self.rows is not None:
            return self.rows
        return 16 if device_type == "cuda" and not self.deterministic else 1


def _read(file: Path) -> bytes:
    if file == Path(_STDIN):
        plain = getattr(sys.stdin, "buffer", None)  # a stand-in for stdin may have text alone
        return plain.read() if plain else sys.stdin.read().encode()
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"The list {file} cannot be read: {reason(error).lower()}.", "Check the path.") from error
