"""Weights that do not fit: the message names the first difference and the record that would fit."""

import re

import pytest
import torch
import yaml

from segserve.runtime.errors import ModelError
from segserve.runtime.network.weights import build_network, check_fit
from segserve.runtime.record import Architecture

from .tiny import tiny_record

TORCHVISION = {"aspp_rates": (12, 24, 36)}
TINY = {"backbone": "test_efficientnet", "aspp_rates": (1, 2), "aspp_out_channels": 8}


def state_of(fields, classes=3):
    with torch.device("meta"):
        return build_network(Architecture(**fields), classes).state_dict()


def rejection(state, **fields) -> str:
    record = tiny_record(architecture=Architecture(**fields))
    with pytest.raises(
        ModelError, match=r"^weights do not fit the record in \d+ tensors; first: "
    ) as caught:
        check_fit(state, build_network(record.architecture, len(record.classes)), record)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def advised(message: str) -> Architecture:
    """The architecture as a user would paste it into a record."""
    return Architecture(
        **yaml.safe_load(re.search(r"architecture: .*", message)[0])["architecture"]
    )


FITTING = {
    "torchvision resnet50": {
        "backbone": "torchvision.resnet50",
        "output_stride": 8,
        "aux_head": True,
        **TORCHVISION,
    },
    "torchvision resnet101": {
        "backbone": "torchvision.resnet101",
        "output_stride": 8,
        **TORCHVISION,
    },
    "torchvision mobilenet": {
        "backbone": "torchvision.mobilenet_v3_large",
        "use_l5_exp": True,
        **TORCHVISION,
    },
    "corenet": {**TINY, "head": "corenet"},
    "separable": {**TINY, "aspp_sep_conv": True},
    "auxiliary head": {**TINY, "aux_head": True},
    "more rates": {**TINY, "aspp_rates": (1, 2, 3, 4)},
    "no rates": {**TINY, "aspp_rates": ()},
    "multiscale": {**TINY, "head": "multiscale", "aspp_in_channels": 12},
    "multiscale expanded": {
        **TINY,
        "head": "multiscale",
        "aspp_in_channels": 12,
        "use_l5_exp": True,
    },
}


@pytest.mark.parametrize("fields", FITTING.values(), ids=FITTING.keys())
def test_check_fit_of_another_architecture_gives_the_record_that_fits(fields):
    message = rejection(state_of(fields, classes=5), **TINY, output_stride=16)
    assert advised(message) == Architecture(**fields)
    assert "They fit a record with 5 classes (here 3)" in message


def test_check_fit_differing_tensors_are_reported_in_the_order_of_the_network():
    state = state_of(TINY)
    state["head.4.bias"] = torch.empty(5)
    del state["backbone.conv_stem.weight"]
    state["stray"] = torch.empty(2)
    assert re.search(
        r"in 3 tensors; first: backbone\.conv_stem\.weight: expected \(24, 3, 3, 3\), got none; "
        r"head\.4\.bias: expected \(3,\), got \(5,\); stray: expected none, got \(2,\)\. They fit "
        r"no head",
        rejection(state, **TINY),
    )


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"head.0.project.0.weight": torch.empty(3)}, id="a lone vector"),
        pytest.param(
            {"head.0.project.0.weight": torch.empty(0, 8, 1, 1), "head.1.weight": torch.empty(3)},
            id="no channels",
        ),
    ],
)
def test_check_fit_of_no_network_says_that_nothing_fits(state):
    assert (
        "They fit no head of deeplabv3.py on test_efficientnet or on torchvision's backbones"
        in rejection(state, **TINY)
    )


def test_check_fit_of_the_same_architecture_passes():
    record = tiny_record()
    network = build_network(record.architecture, 3)
    check_fit(network.state_dict(), network, record)
