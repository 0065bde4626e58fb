"""Which device and number format to run on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from holitom_cli.errors import DeviceError, UsageError

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def choose_device(name: str = "auto") -> torch.device:
    """The device to run on: cuda, mps or cpu, the first that works, for "auto".

    Raises:
        DeviceError: the device is absent, or an NVIDIA card is there that the installed torch cannot use.
        UsageError: not the name of a device.
    """
    if name == "auto":
        name = _best_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is not a device.", "Use auto, cuda, cuda:N, mps or cpu.") from error
    if device.type == "cuda":
        return _usable_cuda(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("This machine has no Metal (mps) device that torch can use.", "Use --device cpu.")
    if device.type not in ("cpu", "mps"):
        raise UsageError(f"Device {name!r} is not supported.", "Use auto, cuda, cuda:N, mps or cpu.")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format: for "auto" bfloat16 where the card has it, float16 on older ones, float32 on a CPU.

    Raises:
        UsageError: not the name of a supported format.
    """
    if name != "auto":
        if name not in _DTYPES:
            raise UsageError(f"{name!r} is not a number format.", f"Use auto, {', '.join(_DTYPES)}.")
        return _DTYPES[name]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if native else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def device_name(device: torch.device) -> str:
    """What people call the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else "CPU"


def gpu_count() -> int:
    """How many GPUs torch sees."""
    return torch.cuda.device_count()


def nvidia_card() -> str | None:
    """Name of the first NVIDIA card according to the driver, whether or not torch can use it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(result.stdout.splitlines()), None)


@contextmanager
def memory_advice(place: str, purpose: str, hint: str) -> Iterator[None]:
    """Turn running out of memory, on any device, into a sentence.

    Args:
        place: whose memory it is.
        purpose: what it is not enough for: "for this question", "to load demo".
        hint: what to try.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceError(f"The memory of {place} is not enough {purpose}.", hint) from error
    except RuntimeError as error:  # the CPU's allocator, Metal and a failed CUDA context have no class of their own
        if not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        raise DeviceError(f"The memory of {place} is not enough {purpose}.", hint) from error


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if card := nvidia_card():
        raise DeviceError(
            f"This machine has an {card}, but the installed torch {torch.__version__} cannot use it.",
            _mend() + " To run on the CPU all the same: --device cpu.",
        )
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _mend() -> str:
    if torch.version.cuda is None:  # type: ignore[redundant-expr,unused-ignore]
        return "Install a CUDA build: pip install --force-reinstall torch (Windows: from PyTorch's CUDA index)."
    return f"Update the NVIDIA driver to one for CUDA {torch.version.cuda}, or install torch for an older CUDA."


def _usable_cuda(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        card = nvidia_card()
        found = f"an {card}, but torch {torch.__version__} cannot use it" if card else "no NVIDIA card"
        raise DeviceError(f"This machine has {found}.", _mend() if card else "Use --device cpu.")
    named: int | None = device.index
    index = torch.cuda.current_device() if named is None else named
    if index >= count:
        raise DeviceError(f"There is no cuda:{index}; this machine has {count} GPU(s).", "Use cuda:0, say.")
    major, minor = torch.cuda.get_device_capability(index)
    if torch.version.hip is None and not _has_kernels(major, minor, torch.cuda.get_arch_list()):
        raise DeviceError(
            f"{torch.cuda.get_device_name(index)} (compute capability {major}.{minor}) is not among the cards "
            f"that torch {torch.__version__} was built for.",
            "Install a torch build for this card, or use --device cpu.",
        )
    return torch.device("cuda", index)


def _has_kernels(major: int, minor: int, built_for: list[str]) -> bool:
    """Binary code runs within a major version on the same or a later minor one, PTX on anything later."""
    for arch in built_for:
        kind, _, digits = arch.partition("_")
        number = int("".join(digit for digit in digits if digit.isdigit()))
        same_major = number // 10 == major and number % 10 <= minor
        if same_major or (kind == "compute" and number <= major * 10 + minor):
            return True
    return not built_for
