"""What the device can do at best: one large matrix product and one large copy, measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from holitom_cli.bench.work import Work
from holitom_cli.clock import Clock
from holitom_cli.model.device import memory_advice

_SIDES = {"cuda": 8192, "mps": 2048}  # of the matrices
_COPIED = {"cuda": 256 * 2**20, "mps": 128 * 2**20}  # bytes, far more than caches hold
_SMALL_SIDE, _SMALL_COPIED = 1024, 64 * 2**20  # on a CPU
_TRIES, _AT_ONCE = 5, 4


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The best of a few tries on this device."""

    flops_per_second: float  # 2 a multiply-add
    bytes_per_second: float  # read and written

    def floor_ms(self, work: Work) -> float:
        """The time that no implementation of this work can go below on this device and in this number format."""
        return 1000 * max(work.flops / self.flops_per_second, work.bytes / self.bytes_per_second)


@torch.inference_mode()
def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure a square matrix product and a copy."""
    side, copied = _SIDES.get(device.type, _SMALL_SIDE), _COPIED.get(device.type, _SMALL_COPIED)
    with memory_advice("the device", "to measure what it can do", "Use a smaller --model."):
        one, other = torch.randn(2, side, side, device=device, dtype=dtype)
        out = torch.empty_like(one)
        product = _best_seconds(device, lambda: torch.mm(one, other, out=out))
        source = torch.zeros(copied, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copy = _best_seconds(device, lambda: target.copy_(source))
    return Ceilings(2 * side**3 / product, 2 * copied / copy)


def better(one: Ceilings, other: Ceilings) -> Ceilings:
    """The higher of each."""
    return Ceilings(
        max(one.flops_per_second, other.flops_per_second), max(one.bytes_per_second, other.bytes_per_second)
    )


def _best_seconds(device: torch.device, run: Callable[[], object]) -> float:
    """The shortest of a few tries, each of several runs that follow one another at once; the first only warms up."""
    tries = []
    for _ in range(_TRIES + 1):
        clock = Clock(device)
        with clock.stage("runs"):
            for _ in range(_AT_ONCE):
                run()
        tries.append(clock.milliseconds()["runs"] / 1000 / _AT_ONCE)
    return min(tries[1:])
