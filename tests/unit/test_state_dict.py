"""Weights that do not fit: the message names the first differences."""

import pytest
import torch

from segserve.runtime.errors import ModelError
from segserve.runtime.network import build_network, check_fit

from .tiny import tiny_record


def tiny_network() -> torch.nn.Module:
    return build_network(tiny_record().architecture, 3)


def test_check_fit_differing_tensors_are_reported_in_the_order_of_the_network():
    network = tiny_network()
    state = network.state_dict()
    state["head.4.bias"] = torch.empty(5)
    del state["backbone.conv_stem.weight"]
    state["stray"] = torch.empty(2)
    with pytest.raises(
        ModelError,
        match=r"^weights do not fit the record in 3 tensors; first: "
        r"backbone\.conv_stem\.weight: expected \(24, 3, 3, 3\), got none; "
        r"head\.4\.bias: expected \(3,\), got \(5,\); stray: expected none, got \(2,\)$",
    ):
        check_fit(state, network)


def test_check_fit_of_no_tensors_names_three():
    with pytest.raises(ModelError, match=r"first: \S+: .*, got none; .*, got none; .*, got none$"):
        check_fit({}, tiny_network())


def test_check_fit_of_the_same_architecture_passes():
    network = tiny_network()
    check_fit(network.state_dict(), network)
