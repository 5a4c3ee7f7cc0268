"""The hardware, the versions and the date of a measurement."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from segserve.doctor.machine import send_torch

PACKAGES = (
    "torchserve",
    "litserve",
    "fastapi",
    "uvicorn",
    "transformers",
    "timm",
    "pillow",
    "numpy",
)


def facts() -> Mapping[str, str]:
    """The facts by name, in the order for the report.

    Raises:
        TorchBrokenError: torch cannot be imported.
    """
    torch = send_torch()
    precision = "with bf16" if torch.bf16 else "without bf16"
    cores = len(os.sched_getaffinity(0))
    busy = os.getloadavg()[0]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{_processor()}, {cores} cores, {torch.threads} threads, {precision}",
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "GPU": torch.gpu or "none",
        "load before": f"{busy:.1f} of {cores} cores",
        "versions": ", ".join(
            [f"torch {torch.torch}", f"torchvision {torch.torchvision}", *_versions()]
        ),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        "a processor",
    )


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue  # its system is skipped
    return found
