"""One process or several: which share of the work is this process's, and on which device."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


def leads() -> bool:
    """Whether this process is the one that reports and writes: the only one, or `torchrun`'s
    first.
    """
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class World:
    """A process among those of the run, as `torchrun` counts them; alone without it."""

    rank: int
    size: int
    device: torch.device


@contextmanager
def joined() -> Iterator[World]:
    """Joins the processes that `torchrun` started, with NCCL on GPUs and Gloo on CPUs; leaves them
    at the end.
    """
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
