"""The served model: this project's archive, config.properties and model-config.yaml."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import yaml

from segserve.archive import build_archive, config_of
from segserve.client.request import JSON, as_fields, http_headers
from segserve.engines import EngineName, default_engine
from segserve.engines.config import read_properties
from segserve.engines.torchserve_process import CONFIG_FILE as PROPERTIES_FILE
from segserve.engines.torchserve_process import KEY_FILE
from segserve.gateway import ENGINE_FOLDER
from segserve.gateway.background import Server
from segserve.runtime.settings import CONFIG_FILE, Runtime

from ..load import Gateway, HttpPeer
from ..peer import Opened, Workload
from .processes import READY_S


@contextmanager
def open_ours(
    workload: Workload,
    *,
    variant: str = "",
    engine: EngineName | None = None,
    runtime: Runtime | None = None,
    settings: Mapping[str, object] | None = None,
) -> Iterator[Opened]:
    """Starts a server with one peer per mask encoding, a variant with one for the first.

    Args:
        settings: of the section `handler` in model-config.yaml.
    """
    title = f"ours {variant}".strip()
    run_dir = workload.scratch / title.replace(" ", "-")
    model = _with_settings(workload, variant, settings) if settings else workload.model
    archive = build_archive(model, run_dir.with_name(f"{run_dir.name}-archive"), runtime=runtime)
    began_s = perf_counter()
    with ready_server(archive, run_dir, engine=engine or default_engine()) as server:
        start_s = perf_counter() - began_s
        peers = {
            f"{title}, {encoding}": HttpPeer(gateway_to(server, encoding), workload)
            for encoding in (workload.encodings[:1] if variant else workload.encodings)
        }
        yield Opened(peers, server.pid, start_s)


@contextmanager
def open_without_gateway(workload: Workload) -> Iterator[Opened]:
    """Starts a server, with one peer that sends to the TorchServe behind its gateway."""
    archive = build_archive(workload.model, workload.scratch / "direct-archive")
    began_s, run_dir = perf_counter(), workload.scratch / "direct"
    with ready_server(archive, run_dir) as server:
        start_s, encoding = perf_counter() - began_s, workload.encodings[0]
        engine = run_dir / ENGINE_FOLDER
        url = read_properties(engine / PROPERTIES_FILE)["inference_address"]
        tokens = json.loads((engine / KEY_FILE).read_text(encoding="utf-8"))
        direct = gateway_of(url, tokens["inference"]["key"], server.models[0], encoding)
        title = f"ours without the gateway, {encoding}"
        yield Opened({title: HttpPeer(direct, workload)}, server.pid, start_s)


@contextmanager
def ready_server(
    archive: Path, run_dir: Path, *, engine: EngineName = EngineName.TORCHSERVE
) -> Iterator[Server]:
    """Runs a server within the context, and waits until it is ready."""
    with Server.start([archive], run_dir, engine=engine) as server:
        server.wait_ready(READY_S)
        yield server


def gateway_to(server: Server, encoding: str = "png") -> Gateway:
    return gateway_of(server.inference_url, server.inference_token, server.models[0], encoding)


def gateway_of(url: str, token: str | None, model: str, encoding: str = "png") -> Gateway:
    """Requests for JSON with the mask in an encoding, compressed as for most clients."""
    headers = http_headers(JSON, as_fields(mask=encoding)) | {
        "Accept-Encoding": "gzip",  # as requests, httpx and browsers send
        "Authorization": f"Bearer {token}",
    }
    return Gateway(f"{url}/predictions/{model}", headers)


def _with_settings(workload: Workload, variant: str, settings: Mapping[str, object]) -> Path:
    copy = Path(shutil.copytree(workload.model, workload.scratch / f"{variant}-model"))
    config = yaml.safe_load(config_of(workload.model).read_text(encoding="utf-8"))
    config["handler"] |= settings
    (copy / CONFIG_FILE).write_text(yaml.safe_dump(config), encoding="utf-8")
    return copy
