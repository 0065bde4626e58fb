"""What answering takes of a GPU, told before a weight is read, with settings that are enough."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from holitom_cli import load_model, methods
from holitom_cli.errors import DeviceError
from holitom_cli.model import loading, memory, shapes
from holitom_cli.model.loading import shape_of
from holitom_cli.model.quantise import Quantize
from tests.gpu.capped import suggested

GIB = 1024**3
CUDA = torch.device("cuda", 0)
TEXT = 24


@pytest.fixture(scope="module")
def seven_b() -> tuple[Any, dict[str, tuple[int, ...]]]:
    """Widths and tensors of the 7B shape."""
    from holitom_cli.model.network import Network

    config = shapes.published_config("7b")
    network = Network(config, torch.bfloat16)
    return shape_of(config), {name: tuple(part.shape) for name, part in network.named_parameters()}


def task(frames: int = 32, method: str = "holitom", new_tokens: int = 64) -> memory.Task:
    most = methods.get(method).most_tokens
    return memory.Task(frames, lambda count: most(count, 196) + 1 + TEXT, new_tokens, 196)


def need(seven_b: Any, quantize: Quantize | None, asked: memory.Task | None) -> memory.Need:
    return memory.need(seven_b[0], seven_b[1], torch.bfloat16, quantize, asked)


@pytest.mark.parametrize(("quantize", "gib"), [(None, 14.96), ("int8", 7.87), ("int4", 5.02)])
def test_weights_of_the_published_shape(seven_b: Any, quantize: Any, gib: float) -> None:
    assert need(seven_b, quantize, None).total / GIB == pytest.approx(gib, abs=0.01)


# Peaks of one H200 at commit 5bd496b, 7B shape: 32 frames, 64 tokens.
@pytest.mark.parametrize(("method", "measured_bytes"), [("holitom", 16_552_387_584), ("full", 17_450_170_368)])
def test_the_estimate_is_what_was_measured(
    seven_b: Any, method: str, measured_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CHUNK_FRAMES", 8)  # of that run
    found = need(seven_b, None, task(method=method))
    beyond = measured_bytes - found.weights
    assert beyond <= 1.02 * (found.total - found.weights) < 1.2 * beyond


def test_more_of_anything_takes_more(seven_b: Any) -> None:
    least = need(seven_b, "int4", task(8)).total
    assert least < need(seven_b, "int4", task(32)).total < need(seven_b, "int4", task(512)).total
    assert least < need(seven_b, "int4", task(8, method="full")).total
    assert least < need(seven_b, "int4", task(8, new_tokens=4000)).total
    assert least < need(seven_b, "int8", task(8)).total < need(seven_b, None, task(8)).total


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A GPU with so many GiB free."""

    def make(gib: float) -> None:
        monkeypatch.setattr(memory, "free_bytes", lambda _: int(gib * GIB))
        monkeypatch.setattr(memory, "device_name", lambda _: "Small Card")

    return make


def check(seven_b: Any, quantize: Any, asked: memory.Task | None) -> DeviceError | None:
    try:
        memory.check("7B", seven_b[0], seven_b[1], CUDA, torch.bfloat16, quantize, asked)
    except DeviceError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("gib", "asked", "options"),
    [
        (23, task(), None),
        (15, task(), ["--quantize", "int8"]),
        (11, task(), ["--quantize", "int8"]),
        (8, task(), ["--quantize", "int4"]),
        (8, task(64, "full"), ["--quantize", "int4", "--num-frames", "32"]),
        (11, None, ["--quantize", "int8"]),
        (4, task(), []),
    ],
)
def test_what_is_suggested_is_enough(
    seven_b: Any, card: Callable[[float], None], gib: float, asked: memory.Task | None, options: list[str] | None
) -> None:
    card(gib)
    error = check(seven_b, None, asked)
    assert (error is None) == (options is None)
    if error is None:
        return
    assert f"Small Card has {gib}.0 GiB free." in error.message
    assert suggested(error.hint) == (options or ["--device-map", "auto", "--device", "cpu"])
    if options:
        frames = int(options[3]) if len(options) > 2 else None
        again = memory.Task(frames, asked.tokens, asked.new_tokens, asked.patches) if asked and frames else asked
        assert check(seven_b, options[1], again) is None
        assert check(seven_b, None, again) is not None  # control


def test_the_sentence(seven_b: Any, card: Callable[[float], None]) -> None:
    card(15)
    error = check(seven_b, None, task())
    assert error is not None
    assert re.fullmatch(
        r"Asking 7B about 32 frames takes 15\.\d GiB \(15\.0 GiB of it weights\), but Small Card has 15\.0 GiB free\.",
        error.message,
    )
    assert re.fullmatch(r"Use --quantize int8: that takes 8\.\d GiB\.", error.hint)


def test_settings_that_are_there_are_not_suggested(seven_b: Any, card: Callable[[float], None]) -> None:
    card(6.2)
    error = check(seven_b, "int4", task(128, "full"))
    assert error is not None
    assert suggested(error.hint)[0] == "--num-frames"


def test_a_checkpoint_that_does_not_fit_is_refused_before_it_is_read(
    tiny_checkpoint: Path, card: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    card(0)
    monkeypatch.setattr(loading, "choose_device", lambda _: CUDA)
    monkeypatch.setattr(loading, "choose_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(loading, "reading", None)  # reading would be an error of another kind
    with pytest.raises(DeviceError, match=r"The weights of .* take 0\.0 GiB, but Small Card has 0\.0 GiB free"):
        load_model(tiny_checkpoint)


class Cuda:
    """What is asked of torch.cuda."""

    def __init__(self, free: float, total: float, share: float, reserved: float) -> None:
        self.memory = self
        self._free, self._total, self._share, self._reserved = free, total, share, reserved

    def empty_cache(self) -> None: ...

    def mem_get_info(self, _: torch.device) -> tuple[int, int]:
        return int(self._free * GIB), int(self._total * GIB)

    def get_per_process_memory_fraction(self, _: torch.device) -> float:
        return self._share

    def memory_reserved(self, _: torch.device) -> int:
        return int(self._reserved * GIB)


@pytest.mark.parametrize(
    ("there", "free_gib"),
    [(Cuda(20, 24, 1, 0), 20), (Cuda(100, 140, 0.1, 0), 14), (Cuda(100, 140, 0.1, 4), 10), (Cuda(3, 140, 0.1, 0), 3)],
)
def test_a_process_may_have_less_than_is_free(there: Cuda, free_gib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", there)
    found = memory.free_bytes(CUDA)
    assert found is not None
    assert found / GIB == pytest.approx(free_gib)
