"""Compares the throughput of Ray Serve and TorchServe over HTTP: `python -m bench.engines`.

All engines serve the same archive on this machine. Eight clients send requests to one server and
then to the next, in rounds, so that a drift of the machine's speed affects all equally. The ratio
is the median of the rounds' ratios. An idle server computes nothing.
"""

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from bench.images import write_photographs
from bench.serving.load import send_all
from bench.serving.peers.ours import gateway_to, ready_server
from segserve.archive import build_archive
from segserve.engines import EngineName
from segserve.resources import resource

CLIENTS = 8


def main(
    model: str = "embedded",
    images: Annotated[int, typer.Option(help="in a round of each")] = 200,
    rounds: int = 5,
) -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        paths = write_photographs(folder / "images", images)
        archive = build_archive(resource(f"model/{model}"), folder)
        gateways = {
            engine: gateway_to(
                stack.enter_context(ready_server(archive, folder / engine, engine=engine))
            )
            for engine in EngineName
        }
        for gateway in gateways.values():
            send_all(gateway, paths[:CLIENTS], clients=CLIENTS)  # warm-up
        measured = [
            {
                engine: send_all(gateway, paths, clients=CLIENTS).images_a_second()
                for engine, gateway in gateways.items()
            }
            for _ in range(rounds)
        ]
    print(f"{images} images a round, {CLIENTS} clients, {rounds} rounds")
    for engine in EngineName:
        print(f"{engine:12}{statistics.median(each[engine] for each in measured):6.1f} images/s")
    ratio = statistics.median(
        each[EngineName.RAY] / each[EngineName.TORCHSERVE] for each in measured
    )
    print(f"Ray Serve to TorchServe: {ratio:.2f}")


if __name__ == "__main__":
    typer.run(main)
