"""A model small enough for unit tests, and hypothesis without chance or clock."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.pipeline import Pipeline
from segserve.runtime.settings import Settings

from .tiny import write_tiny_model

settings.register_profile(
    "unit",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small tensors are quicker so, and sums come out the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A model folder that can be served: three classes, random weights. Not to be written to."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_segmenter(tiny_model) -> Segmenter:
    return Segmenter.load(tiny_model, settings=Settings(precision="fp32"))


@pytest.fixture(scope="session")
def tiny_pipeline(tiny_segmenter) -> Pipeline:
    return Pipeline(tiny_segmenter, Settings(precision="fp32"))
