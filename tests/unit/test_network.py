"""What cannot be built is told in the record's words."""

import pytest

from segserve.runtime.errors import ModelError
from segserve.runtime.network import build_network
from segserve.runtime.record import Architecture

UNBUILDABLE = {
    "unknown backbone": ({"backbone": "resnet999"}, "backbone resnet999: timm cannot give"),
    "channels that do not divide": (
        {"backbone": "rexnet_100", "head": "multiscale"},
        r"head multiscale on backbone rexnet_100: .*expected a positive multiple of",
    ),
}


@pytest.mark.parametrize(("keys", "message"), UNBUILDABLE.values(), ids=UNBUILDABLE.keys())
def test_build_network_of_an_impossible_architecture_is_a_model_error(keys, message):
    with pytest.raises(ModelError, match=message):
        build_network(Architecture(**keys), num_classes=3)
