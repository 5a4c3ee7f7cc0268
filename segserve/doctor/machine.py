"""The machine: Python, Java, torch, GPU, packages, disk. Every check looks at one thing and changes
none.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from ..resources import fetched_models
from . import Finding, ok, problem, warning

OLDEST_PYTHON = (3, 11)
LOW_DISK_BYTES, NO_DISK_BYTES = 2 * 10**9, 3 * 10**8
"""Below the one an archive of a large model may not fit; below the other not even the shipped one,
unpacked.
"""

_INSTALL_TORCH = (
    "install the project's versions: pip install 'segserve[serve]', or make setup in a checkout"
)
_DRIVER_TIMEOUT_S = 30
_TORCH_TIMEOUT_S = 120


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
    """The facts of the torch that this Python imports, from a separate process: a broken torch may
    end the process that imports it.

    Raises:
        TorchBrokenError: there is none, or it does not work.
    """
    code = f"from {__name__} import print_torch; print_torch()"
    command = [sys.executable, "-W", "ignore", "-c", code]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TORCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TorchBrokenError(f"importing it takes more than {_TORCH_TIMEOUT_S} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise TorchBrokenError(
            said[-1][:300] if said else f"importing it ends Python with status {done.returncode}"
        )
    return TorchFacts(**json.loads(done.stdout.splitlines()[-1]))


def print_torch() -> None:
    """Imports torch and prints its `TorchFacts` as JSON."""
    import torch
    import torchvision

    from ..runtime.inference.segmenter import has_bf16

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    facts = TorchFacts(
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        threads=torch.get_num_threads(),
        bf16=has_bf16(torch.device("cuda" if gpu else "cpu")),
        cuda_build=torch.version.cuda,
        gpu=gpu,
    )
    print(json.dumps(asdict(facts)))  # noqa: T201 - what `send_torch` reads


_torch_facts = cache(send_torch)


def check_python(version: Sequence[int] = sys.version_info[:3]) -> Finding:
    text = ".".join(map(str, version))
    if tuple(version[:2]) < OLDEST_PYTHON:
        needed = ".".join(map(str, OLDEST_PYTHON))
        return problem("Python", f"{text} is too old", f"use Python {needed} or newer")
    return ok("Python", f"{text} ({sys.executable})")


def check_java() -> Finding:
    from ..engines import ServerError
    from ..engines.torchserve_process import find_java

    try:
        return ok("Java", f"works, in {find_java()}")
    except ServerError as error:  # it says what to install
        return problem("Java", str(error))


def check_torch() -> Finding:
    try:
        facts = _torch_facts()
    except TorchBrokenError as error:
        return problem("torch", f"does not load ({error})", _INSTALL_TORCH)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return judge_torch(facts, cores=cores)


def judge_torch(facts: TorchFacts, *, cores: int | None) -> Finding:
    precision = "bf16" if facts.bf16 else "float32, as bf16 is not native here"
    message = (
        f"{facts.torch} with torchvision {facts.torchvision}, {facts.threads} threads, "
        f"computes in {precision}"
    )
    if cores and facts.threads > cores:
        message += f", but this process may use {cores} cores"
        return warning("torch", message, f"unset OMP_NUM_THREADS, or set it to {cores}")
    return ok("torch", message)


def check_gpu() -> Finding:
    try:
        facts = _torch_facts()
    except TorchBrokenError:
        return warning("GPU", "not known, as torch does not load", "see torch, above")
    return judge_gpu(facts, driver_cuda=_driver_cuda())


def judge_gpu(facts: TorchFacts, *, driver_cuda: str | None) -> Finding:
    """`driver_cuda`: the newest CUDA that the driver runs; empty if it is unknown, None
    without a driver.
    """
    if facts.gpu:
        return ok("GPU", f"{facts.gpu}, through CUDA {facts.cuda_build}")
    if driver_cuda is None:
        return ok("GPU", "none; models run on the processor")
    if facts.cuda_build is None:
        return warning(
            "GPU",
            "an NVIDIA driver is here, but this torch is built without CUDA",
            "install a torch with CUDA (pytorch.org says how) to use it",
        )
    if driver_cuda and _numbers(driver_cuda) < _numbers(facts.cuda_build):
        return warning(
            "GPU",
            f"the driver runs CUDA up to {driver_cuda}, this torch is built for {facts.cuda_build}",
            "update the driver, or install a torch built for an older CUDA",
        )
    message = "an NVIDIA driver is here, but torch sees no GPU"
    return warning("GPU", message, "look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES")


def check_packages() -> Finding:
    """What the project needs by its own metadata; the extras are only listed."""
    required, extras = _requirements()
    required += extras.pop("serve", [])
    wrong = [fault for requirement in required if (fault := _fault(requirement))]
    if wrong:
        return problem("packages", "; ".join(wrong), _INSTALL_TORCH)
    lacking = sorted(name for name, needed in extras.items() if any(map(_fault, needed)))
    if not lacking:
        return ok("packages", "all there, those of the extras too")
    message = f"all there; of the extras not {', '.join(lacking)}"
    return ok("packages", message, "pip install 'segserve[NAME]' adds them")


def check_disk(folders: Mapping[str, Path] | None = None) -> Finding:
    """Free space where archives are built, models fetched and unpacked."""
    free_bytes = {
        name: shutil.disk_usage(_existing(path)).free
        for name, path in (folders or _folders()).items()
    }
    name, least_bytes = min(free_bytes.items(), key=lambda item: item[1])
    message = f"{least_bytes / 1e9:.1f} GB free for {name}"
    if least_bytes < NO_DISK_BYTES:
        return problem("disk", message, "make room; a server unpacks its archive there")
    if least_bytes < LOW_DISK_BYTES:
        return warning("disk", message, "make room before a large model is fetched or packed")
    return ok("disk", message)


def _driver_cuda() -> str | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "" if Path("/proc/driver/nvidia/version").exists() else None
    try:
        done = subprocess.run(
            [command], capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"CUDA Version: *([0-9.]+)", done.stdout)
    return found[1] if found else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Requirements as they are written, and by extra those of the extras."""
    required: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in metadata.requires("segserve") or []:
        requirement, _, marker = line.partition(";")
        if extra := re.search(r"extra *== *[\"']([\w-]+)", marker):
            extras.setdefault(extra[1], []).append(requirement.strip())
        elif not marker:  # any other marker is about another platform or Python
            required.append(requirement.strip())
    return required, extras


def _fault(requirement: str) -> str:
    """What is wrong with an installed package, against `NAME>=VERSION` or `NAME==VERSION`;
    or nothing.
    """
    name, operator, wanted = re.fullmatch(
        r"([\w.-]+)(?:\[.*?\])?\s*(>=|==)?\s*([\w.]*).*", requirement
    ).groups()  # type: ignore[union-attr]
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    old = operator == ">=" and _numbers(version) < _numbers(wanted)
    other = operator == "==" and version.partition("+")[0] != wanted
    return f"{name} is {version}, needed is {operator}{wanted}" if old or other else ""


def _folders() -> dict[str, Path]:
    return {
        "archives, here": Path(),
        "unpacked models": Path(tempfile.gettempdir()),
        "fetched models": fetched_models(),
    }


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
