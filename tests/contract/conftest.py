"""A real server with two models, the shipped one and a copy of it with narrow limits; all tests run
on every engine, or on those that SEGSERVE_CONTRACT_ENGINES names.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
import yaml

from segserve.archive import build_archive
from segserve.engines import EngineName
from segserve.gateway.background import Server
from segserve.runtime.record import read_record, write_record
from tests.conftest import EMBEDDED

NARROW = "narrow"

# Small limits, a queue of one, and a resize rule under which a 1 x 1,000,000 picture needs 0.8 TB
# of memory.
NARROW_CONFIG = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 1,
    "maxBatchDelay": 1,
    "jobQueueSize": 1,
    "handler": {
        "max_image_pixels": 2_000_000,
        "max_response_bytes": 100_000,
        "resize": {"side": "shorter", "size_px": 512, "max_px": 2_000_000_000},
        "threads": 1,
        "defaults": {"mask": "none"},
    },
}


@dataclass(frozen=True)
class Api:
    """The address of a server and the header with its token."""

    inference_url: str
    headers: dict[str, str]

    def post(
        self, model: str = "deeplabv3", headers: dict[str, str] | None = None, **body
    ) -> requests.Response:
        url = f"{self.inference_url}/predictions/{model}"
        return requests.post(url, headers={**self.headers, **(headers or {})}, timeout=120, **body)

    def describe(self, model: str = "deeplabv3") -> requests.Response:
        url = f"{self.inference_url}/models/{model}?customized=true"
        return requests.get(url, headers=self.headers, timeout=120)


ENGINES = {
    "torchserve": (EngineName.TORCHSERVE, "torch"),
    "local": (EngineName.LOCAL, "torch"),
    "ray": (EngineName.RAY, "torch"),
    "local-onnx": (EngineName.LOCAL, "onnx"),
}
"""The engines, and the runtimes of the archives that they serve."""

TESTED = os.environ.get("SEGSERVE_CONTRACT_ENGINES", " ".join(ENGINES)).split()


@pytest.fixture(scope="package", params=[ENGINES[name] for name in TESTED], ids=TESTED)
def engine(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The name of an engine, and the runtime of the archives that it serves."""
    if request.param[0] == "ray":
        pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'segserve[ray]'")
    return request.param


@pytest.fixture(scope="package")
def archives(engine: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    _, runtime = engine
    folder = tmp_path_factory.mktemp("archives")
    models = (EMBEDDED, _narrow_model(folder))
    return [build_archive(model, folder, runtime=runtime) for model in models]


@pytest.fixture(scope="package")
def server(
    engine: tuple[str, str], archives: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Tests are grouped by engine: each is started once, not while the other runs, and gone when
    other tests begin.
    """
    name, _ = engine
    run_dir = tmp_path_factory.mktemp(name) / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSERVE_GRPC_PORT", str(_free_port()))
        with Server.start(archives, run_dir, engine=name) as server:
            server.wait_ready(timeout_s=300)
            yield server


@pytest.fixture(scope="package")
def grpc_address(server: Server) -> str:
    return f"127.0.0.1:{os.environ['SEGSERVE_GRPC_PORT']}"


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="package")
def api(server: Server) -> Api:
    return Api(
        server.inference_url,
        {"Authorization": f"Bearer {server.inference_token}"},
    )


def _narrow_model(folder: Path) -> Path:
    model = Path(shutil.copytree(EMBEDDED, folder / NARROW))
    write_record(read_record(model).model_copy(update={"name": NARROW}), model)
    (model / "model-config.yaml").write_text(yaml.safe_dump(NARROW_CONFIG))
    return model
