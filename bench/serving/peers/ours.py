"""The served model: this project's archive, config.properties and model-config.yaml, on
TorchServe.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import yaml

from segserve.archive import build_archive, config_of
from segserve.client.request import JSON, as_fields, http_headers
from segserve.engines import EngineName
from segserve.gateway.background import Server
from segserve.runtime.record import read_record
from segserve.runtime.settings import CONFIG_FILE

from ..load import Gateway, HttpPeer
from ..peer import BenchError, Opened
from ..workload import Workload
from .processes import READY_S


@contextmanager
def open_ours(workload: Workload) -> Iterator[Opened]:
    """Starts one server with one peer per mask encoding."""
    with _served(workload, workload.model, "ours") as (server, start_s):
        peers = {
            f"ours, {encoding}": _peer(server, encoding, workload)
            for encoding in workload.encodings
        }
        yield Opened(peers, server.pid, start_s)


@contextmanager
def open_ours_in_int8(workload: Workload) -> Iterator[Opened]:
    """Starts the server with int8 inference, with one peer for the first encoding.

    Raises:
        BenchError: the model has no activation ranges.
    """
    if read_record(workload.model).int8 is None:
        raise BenchError("the model has no ranges: `segserve quantize` measures them")
    encoding = workload.encodings[0]
    with _served(workload, _in_int8(workload), "ours-int8") as (server, start_s):
        peers = {f"ours int8, {encoding}": _peer(server, encoding, workload)}
        yield Opened(peers, server.pid, start_s)


@contextmanager
def open_ours_in_onnx(workload: Workload) -> Iterator[Opened]:
    """Starts the engine `local` with the runtime `onnx`, without PyTorch, TorchServe and Java, with
    one peer for the first encoding.
    """
    encoding = workload.encodings[0]
    archive = build_archive(workload.model, workload.scratch / "onnx-archive", runtime="onnx")
    with _started(workload, archive, "ours-onnx", EngineName.LOCAL) as (server, start_s):
        peers = {f"ours local onnx, {encoding}": _peer(server, encoding, workload)}
        yield Opened(peers, server.pid, start_s)


@contextmanager
def _served(workload: Workload, model: Path, name: str) -> Iterator[tuple[Server, float]]:
    """The ready server of a model, and its start time in seconds."""
    archive = build_archive(model, workload.scratch / f"{name}-archive")
    with _started(workload, archive, name, EngineName.TORCHSERVE) as started:
        yield started


@contextmanager
def _started(
    workload: Workload, archive: Path, name: str, engine: EngineName
) -> Iterator[tuple[Server, float]]:
    began_s = perf_counter()
    with Server.start([archive], workload.scratch / name, engine=engine) as server:
        server.wait_ready(READY_S)
        yield server, perf_counter() - began_s


def _in_int8(workload: Workload) -> Path:
    """A copy of the model whose model-config.yaml selects int8."""
    copy = Path(shutil.copytree(workload.model, workload.scratch / "int8-model"))
    config = yaml.safe_load(config_of(workload.model).read_text(encoding="utf-8"))
    config["handler"]["precision"] = "int8"
    (copy / CONFIG_FILE).write_text(yaml.safe_dump(config), encoding="utf-8")
    return copy


def _peer(server: Server, encoding: str, workload: Workload) -> HttpPeer:
    headers = http_headers(JSON, as_fields(mask=encoding)) | {
        "Accept-Encoding": "gzip",  # as requests, httpx and browsers send
        "Authorization": f"Bearer {server.inference_token}",
    }
    return HttpPeer(
        Gateway(f"{server.inference_url}/predictions/{server.models[0]}", headers), workload
    )
