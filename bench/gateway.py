"""Measures what the gateway costs: requests through it against requests to its TorchServe directly.

    python -m bench.gateway [--images 100] [--rounds 5]

Both ways lead to the same TorchServe and worker. The rounds alternate between them; the result is
the median of the rounds.
"""

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from bench.images import write_photographs
from bench.serving.figures import Figure, Run
from bench.serving.load import Gateway, send_all
from bench.serving.peers.ours import gateway_of, gateway_to, ready_server
from segserve.archive import build_archive
from segserve.engines.torchserve.config import read_properties
from segserve.engines.torchserve.process import CONFIG_FILE, KEY_FILE
from segserve.gateway import ENGINE_FOLDER
from segserve.resources import resource

CLIENTS = 8


def main(
    images: Annotated[int, typer.Option(help="images of a round")] = 100, rounds: int = 5
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_photographs(folder / "images", images)
        archive = build_archive(resource("model/embedded"), folder)
        with ready_server(archive, folder / "run") as server:
            ways = {
                "direct": _direct(folder / "run" / ENGINE_FOLDER, server.models[0]),
                "gateway": gateway_to(server),
            }
            for gateway in ways.values():
                send_all(gateway, paths[:20], clients=CLIENTS)  # warm-up
            runs = [_round(ways, paths, number, clients=1) for number in range(rounds)]
            _report("median of one client, ms", runs, Run.median_ms)
            runs = [_round(ways, paths, number, clients=CLIENTS) for number in range(rounds)]
            _report("8 clients, images/s", runs, Run.images_a_second)


def _direct(engine_folder: Path, model: str) -> Gateway:
    """Requests to the TorchServe behind the gateway, by the files in its folder."""
    url = read_properties(engine_folder / CONFIG_FILE)["inference_address"]
    tokens = json.loads((engine_folder / KEY_FILE).read_text(encoding="utf-8"))
    return gateway_of(url, tokens["inference"]["key"], model)


def _round(
    ways: Mapping[str, Gateway], paths: Sequence[Path], number: int, *, clients: int
) -> dict[str, Run]:
    order = list(ways) if number % 2 else list(ways)[::-1]
    return {way: send_all(ways[way], paths, clients=clients) for way in order}


def _report(title: str, runs: Sequence[Mapping[str, Run]], figure: Figure) -> None:
    direct, gateway = (
        statistics.median(figure(run[way]) for run in runs) for way in ("direct", "gateway")
    )
    ratio = statistics.median(figure(run["gateway"]) / figure(run["direct"]) for run in runs)
    print(f"{title}: direct {direct:.1f}, gateway {gateway:.1f}, ratio {ratio:.3f}")


if __name__ == "__main__":
    typer.run(main)
