"""Makes a model folder with random weights, to measure where the published ones are not at hand:

python -m bench.random_weights resnet101 FOLDER
"""

import sys
from pathlib import Path

import torch

from segserve.resources import resource
from segserve.runtime.network import build_network, write_weights
from segserve.runtime.record import read_record, write_record


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    record = read_record(resource(f"model/{name}"))
    torch.manual_seed(0)
    network = build_network(record.architecture, len(record.classes))
    folder.mkdir(parents=True)
    weights = write_weights(network.half().state_dict(), folder)
    write_record(record.model_copy(update={"weights": weights, "checkpoint": None}), folder)


if __name__ == "__main__":
    main()
