"""The device of the measured systems: the first GPU, if there is one, as in TorchServe's
workers.
"""

import torch


def first_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has finished its work. A CPU needs no wait."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
