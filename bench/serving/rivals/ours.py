"""The served model: the archive, config.properties and model-config.yaml of this project, on TorchServe."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from segserve.archive import build_archive
from segserve.client.request import JSON, as_fields, http_headers
from segserve.server.process import TorchServe

from ..contestant import Opened
from ..load import Door
from ..over_http import HttpContestant
from ..workload import Workload

READY_S = 600


@contextmanager
def open_ours(workload: Workload) -> Iterator[Opened]:
    """One contestant for each encoding of the mask, all on one server."""
    archive = build_archive(workload.model, workload.scratch)
    began_s = perf_counter()
    with TorchServe.start([archive], workload.scratch / "ours") as server:
        server.wait_ready(READY_S)
        start_s = perf_counter() - began_s
        contestants = {f"ours, {encoding}": _contestant(server, encoding, workload) for encoding in workload.encodings}
        yield Opened(contestants, server.pid, start_s)


def _contestant(server: TorchServe, encoding: str, workload: Workload) -> HttpContestant:
    headers = http_headers(JSON, as_fields(mask=encoding)) | {"Authorization": f"Bearer {server.inference_token}"}
    return HttpContestant(Door(f"{server.inference_url}/predictions/{server.models[0]}", headers), workload)
