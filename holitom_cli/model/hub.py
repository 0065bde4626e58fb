"""Where a checkpoint is: bundled, in a local directory, or in the hub's cache; and how to get it there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from holitom_cli.errors import ModelError, UsageError
from holitom_cli.model.preprocess import read_json

if TYPE_CHECKING:
    import torch

LARGE = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
SMALL = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
DEMO = "demo"

# Weights, 15.0 GiB in bfloat16, and room for the video and the cache.
_LARGE_NEEDS_GIB: dict[str | None, int] = {None: 19, "int8": 11, "int4": 8}
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
_IGNORED = ["onnx/*"]
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_ORIGINAL = re.compile(r"lmms-lab/llava-onevision-qwen2-(0\.5b|7b|72b)-([\w-]+)", re.IGNORECASE)
_CONVERTED = {"0.5b": ("ov", "si"), "7b": ("ov", "si", "ov-chat"), "72b": ("ov", "si", "ov-chat")}


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint on this machine."""

    id: str
    path: Path
    kind: Literal["demo", "published", "local"]
    revision: str | None = None  # commit on the hub
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Download:
    """What getting a checkpoint would take."""

    id: str
    revision: str  # commit
    total_bytes: int
    missing_bytes: int
    place: Path
    free_bytes: int


class NotHereError(ModelError):
    """A hub checkpoint that has not been downloaded, or not completely."""


def default_model(device: torch.device, quantize: str | None = None) -> tuple[str, str]:
    """The checkpoint to use when none is named, and why. Decided by total memory, so that it never changes."""
    if device.type != "cuda":
        return SMALL, f"the 0.5B checkpoint, because {device.type} is slow for 7B"
    import torch

    total = torch.cuda.get_device_properties(device).total_memory
    size = f"the card has {total / 1024**3:.0f} GiB"
    if total >= _LARGE_NEEDS_GIB[quantize] * 1024**3:
        return LARGE, f"the 7B checkpoint, because {size}"
    return SMALL, f"the 0.5B checkpoint, because {size} and 7B needs {_LARGE_NEEDS_GIB[quantize]}"


def locate(model: str, revision: str | None = None, reason: str = "") -> Source:
    """Find a checkpoint on this machine.

    Args:
        model: "demo", a directory, or a hub id.
        revision: a branch, tag or commit of a hub id.
        reason: why this checkpoint was chosen, if the user did not name it.

    Raises:
        NotHereError: a hub id that is not in the cache.
        UsageError: a revision of something that has none.
        ModelError: no such directory, or a name that no transformers checkpoint has.
    """
    path = Path(model).expanduser()
    if revision and (model == DEMO or path.is_dir()):
        raise UsageError(f"The checkpoint {model} has no revisions.", "Leave --revision out; only hub ids have them.")
    if model == DEMO:
        return Source(DEMO, Path(__file__).parent.parent / "assets" / "demo", "demo", reason=reason)
    if path.is_dir():
        return Source(model, path.resolve(), "local", reason=reason)
    if path.exists():
        raise ModelError(f"{model} is a file, not a checkpoint.", "Give the directory that config.json is in.")
    _refuse_other_names(model)
    if not _HUB_ID.fullmatch(model):
        raise ModelError(f"There is no directory {model}.", f"Give a directory, a hub id such as {SMALL}, or demo.")
    snapshot = _cached_snapshot(model, revision)
    return Source(model, snapshot, "published", revision=snapshot.name, reason=reason)


def plan_download(model: str, revision: str | None = None) -> Download:
    """Ask the hub what a checkpoint weighs and what of it is missing here.

    Raises:
        ModelError: the hub cannot be reached, or has no such checkpoint.
    """
    _refuse_other_names(model)
    if not _HUB_ID.fullmatch(model):
        raise ModelError(f"{model!r} is not a hub id.", f"Hub ids look like {SMALL}.")
    from huggingface_hub import constants, hf_hub_download, snapshot_download

    with _hub_errors(model):
        files = snapshot_download(
            model,
            revision=revision,
            allow_patterns=_PATTERNS,
            ignore_patterns=_IGNORED,
            dry_run=True,
            tqdm_class=_no_bar(),
        )
    if not any(file.filename.endswith(".safetensors") for file in files):
        raise ModelError(f"{model} has no safetensors checkpoint.", "Only safetensors are loaded.")
    with _hub_errors(model):
        config = hf_hub_download(model, "config.json", revision=files[0].commit_hash, tqdm_class=_no_bar())
    check_architecture(model, read_json(Path(config)))
    place = Path(constants.HF_HUB_CACHE)
    return Download(
        id=model,
        revision=files[0].commit_hash,
        total_bytes=sum(file.file_size or 0 for file in files),
        missing_bytes=sum(file.file_size or 0 for file in files if file.will_download),
        place=place,
        free_bytes=shutil.disk_usage(existing_parent(place)).free,
    )


def check_architecture(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model, by what its config.json says.

    Raises:
        ModelError: it is one.
    """
    kind = config.get("model_type")
    if kind != "llava_onevision":
        raise ModelError(
            f"{name} is a {kind or 'nameless'} checkpoint, not LLaVA-OneVision.",
            "Use a llava-hf/llava-onevision-qwen2-...-hf checkpoint.",
        )


def check_space(plan: Download) -> None:
    """Refuse a download that the disk has no room for.

    Raises:
        ModelError: not enough disk.
    """
    if plan.missing_bytes > plan.free_bytes:
        need, free = plan.missing_bytes / 1024**3, plan.free_bytes / 1024**3
        raise ModelError(
            f"{plan.id} needs {need:.1f} GiB more, but {plan.place} has {free:.1f} GiB free.",
            "Free some space, or set HF_HOME to a directory on another disk.",
        )


def download(plan: Download) -> Source:
    """Get a checkpoint; finished files are kept if it is interrupted.

    Raises:
        ModelError: the hub failed.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors(plan.id):
        path = snapshot_download(plan.id, revision=plan.revision, allow_patterns=_PATTERNS, ignore_patterns=_IGNORED)
    return Source(plan.id, Path(path), "published", revision=plan.revision)


def cached_models() -> dict[str, int]:
    """LLaVA-OneVision checkpoints in the hub's cache, and their size in bytes."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return {}
    return {repo.repo_id: repo.size_on_disk for repo in repos if "llava-onevision" in repo.repo_id.lower()}


def _no_bar() -> type[Any]:
    """A progress bar that shows nothing, for looking things up."""
    from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

    class NoBar(tqdm):  # type: ignore[type-arg,misc,unused-ignore]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})

    return NoBar


def _refuse_other_names(model: str) -> None:
    if match := _ORIGINAL.fullmatch(model):
        size, variant = (group.lower() for group in match.groups())
        there = variant in _CONVERTED[size]
        other = f"llava-hf/llava-onevision-qwen2-{size}-{variant if there else 'ov'}-hf"
        said = "The same weights" if there else "The nearest that is"
        raise ModelError(f"{model} is not in the transformers layout.", f"{said}: --model {other}.")
    if re.search(r"llava-onevision-(1\.5|2)(\b|-)", model, re.IGNORECASE):
        raise ModelError(
            f"{model} is another architecture than LLaVA-OneVision and is not supported.",
            f"Use {SMALL}, say.",
        )


def _cached_snapshot(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=_PATTERNS,
                ignore_patterns=_IGNORED,
                local_files_only=True,
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        at = f" at {revision}" if revision else ""
        raise NotHereError(
            f"{model}{at} has not been downloaded.",
            f"Run: holitom pull {model}; without a network, give a local directory or --model demo.",
        ) from error


@contextmanager
def _hub_errors(model: str) -> Iterator[None]:
    """Turn what can go wrong with the hub into sentences."""
    from huggingface_hub import errors

    sentences = {
        errors.GatedRepoError: (f"{model} asks for your consent on the hub first.", "Accept it, then: hf auth login."),
        errors.RepositoryNotFoundError: (f"The hub has no public model {model}.", "Check it, or: hf auth login."),
        errors.RevisionNotFoundError: (f"{model} has no such revision.", "Leave --revision out for the newest."),
    }
    try:
        yield
    except (errors.HfHubHTTPError, OSError, RuntimeError) as error:
        wrapped = isinstance(error, errors.DryRunError) and error.__cause__ is not None
        cause = error.__cause__ if wrapped else error
        for kind, (message, hint) in sentences.items():
            if isinstance(cause, kind):
                raise ModelError(message, hint) from error
        first = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise ModelError(
            f"{model} cannot be downloaded: {first.partition('. ')[0].rstrip('.')}.",
            "Check the network and HF_HUB_OFFLINE, give a local directory, or use --model demo.",
        ) from error


def existing_parent(place: Path) -> Path:
    """The nearest directory that is there already."""
    return next(parent for parent in (place, *place.parents) if parent.exists())
