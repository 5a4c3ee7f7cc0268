"""The engine `torchserve`: a TorchServe of its own, reached over loopback."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...runtime.errors import UnavailableError
from ...signing import TrustedKeys
from ..engine import EngineRequest, EngineResponse
from .config import max_request_bytes, read_properties
from .forward import Api, TorchServeClient
from .launch import CONFIG_FILE
from .process import TorchServe


class TorchServeEngine:
    """See `Engine`.

    Args:
        archives: the archives to serve.
        run_dir: the folder for everything that TorchServe writes.
        config: the settings of config.properties.
        overrides: settings that replace those of `config`.
        trusted: the keys that archives must be signed with.

    Raises:
        ServerError: TorchServe cannot be started.
        SignatureError: an archive is not signed by a trusted key.
    """

    def __init__(
        self,
        archives: Sequence[Path],
        run_dir: Path,
        *,
        config: Path | None,
        overrides: Mapping[str, str],
        trusted: TrustedKeys | None,
    ) -> None:
        self._server = TorchServe.start(
            archives, run_dir, config=config, overrides=overrides, trusted=trusted
        )
        self._client: TorchServeClient | None = None
        self.log_path = self._server.log_path
        self.models = self._server.models

    async def start(self, timeout_s: float) -> None:
        server = self._server
        await asyncio.to_thread(server.wait_ready, timeout_s)
        self._client = TorchServeClient(
            inference=Api(server.inference_url, server.inference_token),
            management=Api(server.management_url, server.management_token),
            metrics=Api(server.metrics_url, None),
            max_request_bytes=max_request_bytes(read_properties(server.run_dir / CONFIG_FILE)),
        )

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()
        await asyncio.to_thread(self._server.stop)

    async def obstacle(self) -> str | None:
        return await asyncio.to_thread(self._server.obstacle)

    async def predict(self, request: EngineRequest) -> EngineResponse:
        return await self._ready().predict(request)

    async def describe(self, request: EngineRequest) -> EngineResponse:
        return await self._ready().describe(request)

    async def manage(self, request: EngineRequest) -> EngineResponse:
        return await self._ready().manage(request)

    async def metrics(self) -> bytes:
        return await self._client.metrics() if self._client is not None else b""

    def _ready(self) -> TorchServeClient:
        if self._client is None:
            raise UnavailableError("the model is being loaded; try again in a few seconds")
        return self._client
