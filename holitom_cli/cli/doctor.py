"""holitom doctor: what this machine can do, and whether a checkpoint runs as the stock library runs it."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holitom_cli.cli import session
from holitom_cli.cli.config import config_file
from holitom_cli.cli.console import Talk, print_data, write_json
from holitom_cli.cli.options import ModelOptions, command
from holitom_cli.errors import HolitomError, UsageError
from holitom_cli.report.terminal import doctor_table
from holitom_cli.report.text import size

if TYPE_CHECKING:
    from holitom_cli.types import Frames

_CHECK_QUESTION = "What is shown in the video?"


@command()
def doctor(
    *,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    check_model: Annotated[
        str | None,
        typer.Option("--check-model", metavar="ID", help="Compare --method full with stock transformers on it."),
    ] = None,
    video: Annotated[
        str | None, typer.Option("--video", help="Clip for --check-model.", show_default="made-up frames")
    ] = None,
    num_frames: Annotated[int, typer.Option("--num-frames", min=1, help="Frames for --check-model.")] = 8,
    device: Annotated[str, typer.Option("--device", help="Device for --check-model.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Number format for --check-model.")] = "auto",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Download without asking.")] = False,
) -> None:
    """Report on the GPU, its memory, torch, the decoders, the cache and the models in it.

    With --check-model the exit code is 1 where the comparison fails.
    """
    from holitom_cli.video import capabilities

    if not check_model and (video or yes or (num_frames, device, dtype) != (8, "auto", "auto")):
        raise UsageError("This option only serves --check-model.", "As in: holitom doctor --check-model demo")
    findings = {"program": _program(), "device": _device(), "video": dict[str, Any](capabilities()), "cache": _cache()}
    if check_model:
        options = ModelOptions(model=check_model, device=device, dtype=dtype, yes=yes)
        findings["check"] = _check(options, video, num_frames)
    if json:
        write_json(findings)
    else:
        print_data(doctor_table({title.capitalize(): _in_words(facts) for title, facts in findings.items()}))
    if not findings.get("check", {}).get("passed", True):
        raise typer.Exit(1)


def _program() -> dict[str, Any]:
    from holitom_cli.account import versions

    system = {"python": platform.python_version(), "system": platform.platform(), "config_file": str(config_file())}
    return versions() | system


def _device() -> dict[str, Any]:
    import torch

    from holitom_cli.model import kernels
    from holitom_cli.model.device import choose_device, choose_dtype, device_name, nvidia_card

    facts: dict[str, Any] = {"torch_cuda": torch.version.cuda, "nvidia_card": nvidia_card()}
    try:
        device = choose_device()
    except HolitomError as error:
        return facts | {"problem": f"{error.message} {error.hint}"}
    facts |= {"device": str(device), "name": device_name(device)}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        facts |= {"memory_bytes": total, "free_memory_bytes": free, "gpus": torch.cuda.device_count()}
        facts["own_kernels"] = kernels.trouble() or True
    return facts | {"number_format": str(choose_dtype("auto", device)).removeprefix("torch.")}


def _cache() -> dict[str, Any]:
    from huggingface_hub import constants

    from holitom_cli.model import hub

    place = Path(constants.HF_HUB_CACHE)
    name, reason = hub.default_model(_device_or_cpu())
    return {
        "place": str(place),
        "free_bytes": shutil.disk_usage(hub.existing_parent(place)).free,
        "offline": constants.HF_HUB_OFFLINE,
        "models": hub.cached_models(),
        "default_model": f"{name} ({reason})",
    }


def _device_or_cpu() -> Any:
    from holitom_cli.model.device import choose_device

    try:
        return choose_device()
    except HolitomError:
        return choose_device("cpu")


def _check(options: ModelOptions, clip: str | None, num_frames: int) -> dict[str, Any]:
    from holitom_cli import methods
    from holitom_cli import video as video_room
    from holitom_cli.check import as_record, compare_with_stock

    talk = Talk()
    full = methods.get("full")
    checkpoint = session.find_checkpoint(options, full, talk)
    session.check_room(checkpoint, full, num_frames, [_CHECK_QUESTION])
    frames = video_room.read(clip, num_frames) if clip else _made_up(num_frames)
    model = session.load(options, checkpoint, talk)
    with talk.busy("Comparing with stock transformers"):
        return as_record(compare_with_stock(model, frames, _CHECK_QUESTION))


def _made_up(count: int) -> Frames:
    """Frames of seeded noise over a moving gradient: enough for a comparison of arithmetic."""
    import numpy as np

    from holitom_cli.types import Frames

    random = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 480)[None, None, :, None] + np.arange(count)[:, None, None, None] * 5
    pixels = (ramp + random.integers(0, 50, (count, 270, 480, 3))).clip(0, 255).astype(np.uint8)
    return Frames(pixels, np.arange(count, dtype=np.float64))


def _in_words(facts: dict[str, Any]) -> dict[str, str]:
    return {name.removesuffix("_bytes").replace("_", " "): _value(name, value) for name, value in facts.items()}


def _value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not known"
    if value in ([], {}):
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} ({size(bytes_)})" for key, bytes_ in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    return size(value) if name.endswith("_bytes") else str(value)
