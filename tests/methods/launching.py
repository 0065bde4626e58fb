"""What a GPU would be asked for, counted without one.

    python -m tests.methods.launching [holitom fastvid ...]

Tensors say that they are on a device, compute on the CPU, and note what is done with them. An operation that is no view
counts as one launch (a sort, or a sum, may take a few kernels). Triton's kernels are not run: what holds for plain
torch is more than what they leave.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from holitom_cli import methods
from holitom_cli.methods import Method
from holitom_cli.types import VideoFeatures, VisualTokens
from tests.methods.test_contract import Clip, features

DEVICE = torch.device("meta")  # one that is not the CPU and needs no driver
HOST = torch.device("cpu")
_NOTHING = {"empty", "empty_like", "new_empty", "detach", "alias", "lift_fresh", "_unsafe_view"}
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2"}


@dataclass
class Asked:
    """Of the device."""

    launches: Counter[str] = field(default_factory=Counter)  # by operation
    waits: int = 0  # values that the host waits for, or the length of a result
    uploads: int = 0  # copies of what the host has

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = func._schema.name.removeprefix("aten::")
        written = [argument.alias_info.is_write for argument in func._schema.arguments if argument.alias_info]
        if name in _NOTHING or (written and not any(written)):  # the others are views
            return
        self.launches[name] += 1
        masks = name.startswith("index") and any(
            part.dtype == torch.bool for part in tree_iter(args[1]) if isinstance(part, Tensor)
        )
        endless = name == "repeat_interleave" and kwargs.get("output_size") is None
        self.waits += name in _WAITS or masks or endless or kwargs.get("device") == HOST
        self.uploads += name == "_to_copy" and not isinstance(args[0], Counted)

    @property
    def numbers(self) -> tuple[int, int, int]:
        """Launches, waits, uploads."""
        return self.launches.total(), self.waits, self.uploads


class Counted(Tensor):
    """A tensor that says it is on DEVICE."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Counted:
        made: Counted = Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), dtype=here.dtype, device=DEVICE
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise AssertionError(f"{func} outside of Device")


def here(part: Any) -> Any:
    """What is behind a tensor on DEVICE; other things are what they are."""
    return part.here if isinstance(part, Counted) else part


class Device(TorchDispatchMode):
    """Runs operations on tensors there, and notes them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked = Asked()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(part, Counted) for part in tree_iter((args, kwargs))) and kwargs.get("device") != DEVICE:
            return func(*args, **kwargs)
        self.asked.note(func, args, kwargs)
        plain = {name: value for name, value in kwargs.items() if name != "device"}
        out = func(*tree_map(here, args), **tree_map(here, plain))
        if kwargs.get("device") == HOST:
            return out
        if "out" in kwargs or func._schema.name.endswith("_"):
            return kwargs.get("out", args[0])
        return tree_map(lambda part: Counted(part) if isinstance(part, Tensor) else part, out)


class Python(TorchFunctionMode):
    """What torch does for lists on its own, and would do wrongly there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.tolist and isinstance(args[0], Counted):
            return args[0].cpu().tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list):
            return func(args[0], torch.tensor(args[1]).to(args[0].device), *args[2:])
        if func is torch.tensor and kwargs.get("device") == DEVICE:
            return torch.tensor(*args, **kwargs | {"device": None}).to(DEVICE)
        return func(*args, **kwargs)


@contextmanager
def watched() -> Iterator[Asked]:
    """What is asked of DEVICE meanwhile."""
    with torch.no_grad(), Device() as device, Python():  # with torch.inference_mode() not every operation would show
        yield device.asked


def counted(method: Method, video: VideoFeatures) -> tuple[Asked, VisualTokens]:
    """What compressing a clip asks a device for, and what comes of it."""
    assert video.attention is not None
    there = VideoFeatures(Counted(video.tokens), Counted(video.attention), video.grid)
    with watched() as asked:
        visual = method.compress(there)
    return asked, VisualTokens(*(here(getattr(visual, part.name)) for part in fields(visual)))


def cuts(frames: int, grid: int, width: int, every: int) -> VideoFeatures:
    """Scenes of some frames each that have nothing in common, with little unrest."""
    stream = torch.Generator().manual_seed(every)
    patches, scenes = grid**2, -(-frames // every)
    colour = 2 * torch.randn(scenes, 1, width, generator=stream) + torch.randn(scenes, patches, width, generator=stream)
    tokens = colour.repeat_interleave(every, 0)[:frames]
    tokens = tokens + 0.1 * torch.randn(frames, patches, width, generator=stream)
    return VideoFeatures(tokens, torch.rand(frames, patches, generator=stream).softmax(-1), grid)


CLIPS: dict[str, Callable[[], VideoFeatures]] = {
    "still": lambda: features(Clip(32, 14, 24, torch.float32, 1.0)),
    "moving": lambda: features(Clip(32, 14, 24, torch.float32, 0.0)),
    "half still": lambda: features(Clip(32, 14, 24, torch.float32, 0.5)),
    "cuts every 16 frames": lambda: cuts(32, 14, 24, 16),
    "cuts every 4 frames": lambda: cuts(32, 14, 24, 4),
    "cuts every 2 frames": lambda: cuts(32, 14, 24, 2),
    "256 frames, cuts every 8": lambda: cuts(256, 14, 24, 8),
}


def main(names: list[str]) -> None:
    """A line for each method and clip."""
    for name in names or ["holitom", "fastvid", "flashvid", "prunevid"]:
        for kind, made in CLIPS.items():
            asked, visual = counted(methods.get(name), made())
            numbers = (*asked.numbers, len(visual.segments), len(visual))
            words = ("launches", "waits", "uploads", "segments", "tokens")
            said = "  ".join(f"{number:5} {word}" for number, word in zip(numbers, words, strict=True))
            print(f"{name:9} {kind:25} {said}")


if __name__ == "__main__":
    main(sys.argv[1:])
