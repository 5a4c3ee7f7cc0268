"""TorchServe's own `image_segmenter` with the same network and weights, set up as in its example.

https://github.com/pytorch/serve/tree/master/examples/image_segmenter/deeplabv3: a model file and a
state dict. The settings are those of TorchServe's docker/config.properties: one worker per core,
and each computes on all cores.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
import torch

from segserve.archive import run_archiver
from segserve.engines.torchserve_process import TorchServe
from segserve.runtime.network import load_network
from segserve.runtime.record import RECORD_FILE, read_record

from ..load import Gateway, HttpPeer
from ..peer import BenchError, Opened, Workload
from .processes import READY_S

NAME = "stock"
_HERE = Path(__file__).parent
_SETTINGS = """\
inference_address=http://127.0.0.1:8080
management_address=http://127.0.0.1:8081
metrics_address=http://127.0.0.1:8082
number_of_netty_threads=32
job_queue_size=1000
"""
# A response has two floats per pixel, as indented JSON. At our input size, this exceeds
# TorchServe's default limit.
_LARGE_RESPONSES = "max_response_size=655350000\n"


@contextmanager
def open_stock(workload: Workload, *, title: str, same_size: bool) -> Iterator[Opened]:
    """Starts the stock handler: unchanged, which processes a crop of 224 x 224 pixels, or at our
    input size.
    """
    folder = workload.scratch / ("stock-same-size" if same_size else "stock")
    folder.mkdir()
    config = folder / "stock.properties"
    config.write_text(_SETTINGS + (_LARGE_RESPONSES if same_size else ""))
    handler = str(_HERE / "stock_handler.py") if same_size else "image_segmenter"
    archive = _archive(workload.model, handler, folder)
    began_s = time.perf_counter()
    with TorchServe.start([archive], folder / "run", config=config) as server:
        server.wait_ready(READY_S)
        _wait_for_every_worker(server)
        start_s = time.perf_counter() - began_s
        headers = {"Authorization": f"Bearer {server.inference_token}"}
        gateway = Gateway(f"{server.inference_url}/predictions/{NAME}", headers)
        yield Opened({title: HttpPeer(gateway, workload)}, server.pid, start_s)


def _archive(model: Path, handler: str, folder: Path) -> Path:
    network = load_network(read_record(model), model)
    weights = folder / "weights.pth"
    torch.save({f"network.{name}": value for name, value in network.state_dict().items()}, weights)
    options = {
        "--model-name": NAME,
        "--version": "1.0",
        "--model-file": _HERE / "stock_model.py",
        "--serialized-file": weights,
        "--handler": handler,
        "--extra-files": model / RECORD_FILE,
        "--export-path": folder,
    }
    run_archiver(options, scratch=folder)
    return folder / f"{NAME}.mar"


def _wait_for_every_worker(server: TorchServe) -> None:
    """The first worker responds while the others still load."""
    deadline = time.monotonic() + READY_S
    headers = {"Authorization": f"Bearer {server.management_token}"}
    while time.monotonic() < deadline:
        [version] = requests.get(
            f"{server.management_url}/models/{NAME}", headers=headers, timeout=30
        ).json()
        if all(worker["status"] == "READY" for worker in version["workers"]):
            return
        time.sleep(1)
    raise BenchError(f"not every worker of {NAME} is ready after {READY_S} s")
