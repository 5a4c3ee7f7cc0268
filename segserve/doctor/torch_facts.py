"""Facts about torch, from a separate process: a broken torch may end the process that
imports it.

`python -m segserve.doctor.torch_facts` prints the facts as JSON.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

_TIMEOUT_S = 120


@dataclass(frozen=True)
class TorchFacts:
    """`cuda_build` is the CUDA version that torch was built for; None for a build without it."""

    torch: str
    torchvision: str
    threads: int
    bf16: bool
    cuda_build: str | None
    gpu: str | None


class TorchBrokenError(Exception):
    """torch cannot be imported, or not together with torchvision; the message is the reason in one
    line.
    """


def send_torch() -> TorchFacts:
    """The facts of the torch that this Python imports.

    Raises:
        TorchBrokenError: there is none, or it does not work.
    """
    command = [sys.executable, "-W", "ignore", "-m", __name__]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TorchBrokenError(f"importing it takes more than {_TIMEOUT_S} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise TorchBrokenError(
            said[-1][:300] if said else f"importing it ends Python with status {done.returncode}"
        )
    return TorchFacts(**json.loads(done.stdout.splitlines()[-1]))


def _facts() -> TorchFacts:
    import torch
    import torchvision

    from ..runtime.inference.segmenter import has_bf16

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    device = torch.device("cuda" if gpu else "cpu")
    return TorchFacts(
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        threads=torch.get_num_threads(),
        bf16=has_bf16(device),
        cuda_build=torch.version.cuda,
        gpu=gpu,
    )


if __name__ == "__main__":
    print(json.dumps(asdict(_facts())))  # noqa: T201 - what the parent reads
