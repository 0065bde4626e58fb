"""Training processes side by side, one a GPU, as `torchrun` starts them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Team:
    """Processes that take every step together; a process that nobody has joined is a team of one."""

    rank: int = 0
    size: int = 1

    @classmethod
    def gather(cls) -> Team:
        """The processes that torchrun has started with this one; in a team of one without it."""
        if not torch.distributed.is_torchelastic_launched():
            return cls()
        torch.distributed.init_process_group()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    def device(self) -> torch.device:
        """Where this process computes: its GPU, or the CPU."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        device = torch.device("cuda", torch.distributed.get_node_local_rank(fallback_rank=0))
        torch.cuda.set_device(device)
        return device

    @property
    def leads(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def agree(self, value: float) -> float:
        """The leader's value."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        torch.distributed.broadcast(shared, 0)
        return float(shared)

    def part(self) -> None:
        """End what holds the processes together."""
        if self.size > 1:
            torch.distributed.destroy_process_group()

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Give everyone the leader's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)

    def average(self, tensors: list[Tensor]) -> None:
        """Give everyone the mean of everyone's values, in place."""
        if self.size == 1:
            return
        joined = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(joined)
        parts = joined.div_(self.size).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
