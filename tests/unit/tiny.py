"""A tiny model: its record, and a folder with random weights."""

from pathlib import Path

import torch

from segserve.runtime.network import build_network
from segserve.runtime.record import Architecture, ClassInfo, InputRule, ModelRecord, ResizeRule
from segserve.training.model_folder import export_weights

CLASSES = (("background", (0, 0, 0)), ("cat", (64, 0, 0)), ("dog", (64, 0, 128)))


def tiny_record(**changes) -> ModelRecord:
    fields = {
        "name": "tiny",
        "version": "1.0",
        "summary": "a tiny model",
        "licence": "Apache-2.0",
        "source": "random weights",
        "architecture": Architecture(
            backbone="test_efficientnet", aspp_rates=(1, 2), aspp_out_channels=8, aspp_dropout=0.1
        ),
        "input": InputRule(
            resize=ResizeRule(size_px=64, multiple_of=32, max_px=256),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        "classes": tuple(ClassInfo(label=label, color=color) for label, color in CLASSES),
    }
    return ModelRecord(**{**fields, **changes})


def tiny_network(record: ModelRecord) -> torch.nn.Module:
    """Random weights, spread so widely that the classes take turns within an image."""
    torch.manual_seed(3)
    network = build_network(record.architecture, len(record.classes))
    classifier = network.head[-1]
    torch.nn.init.normal_(classifier.weight, std=4.0)
    torch.nn.init.zeros_(classifier.bias)
    with torch.no_grad():  # running statistics of some noise, in place of those of no image at all
        network.train()
        for _ in range(20):
            network(torch.randn(4, 3, 64, 64))
    return network.eval()


def write_tiny_model(folder: Path, **changes) -> Path:
    record = tiny_record(**changes)
    export_weights(tiny_network(record), record, folder)
    return folder
