"""One or several processes: the rank and the device of this process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


def leads() -> bool:
    """Whether this process reports and writes: the only process, or the first of `torchrun`."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class World:
    """The rank of this process among the `size` processes of `torchrun`; 0 of 1 without it."""

    rank: int
    size: int
    device: torch.device


@contextmanager
def joined() -> Iterator[World]:
    """Joins the processes that `torchrun` started, with NCCL on GPUs and Gloo on CPUs."""
    size, local_rank = (
        int(os.environ.get("WORLD_SIZE", "1")),
        int(os.environ.get("LOCAL_RANK", "0")),
    )
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), size, device)
    finally:
        distributed.destroy_process_group()
