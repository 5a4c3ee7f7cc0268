"""Runs a gateway, which starts before its engine and ends after the last response."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from socket import socket
from typing import Any, Never

from starlette.types import ASGIApp

from ..engines import Engine, EngineName, ServerError
from ..engines.json_log import following
from ..engines.processes import HIDDEN_SETTING, restrict_environment
from ..signing import TrustedKeys
from . import ENGINE_FOLDER, TOKEN_FILE
from .admission import TokenFile
from .app import Gateway
from .http_server import bind, serving
from .settings import GatewaySettings, check_settings

logger = logging.getLogger("segserve.gateway")

_WATCH_S = 2.0


async def serve(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or SIGINT, then completes the pending requests.

    Raises:
        ServerError: the server cannot be started, or ended by itself.
        SignatureError: an archive is not signed by a trusted key.
    """
    stop_signal = asyncio.Event()
    _on_signals(stop_signal)
    check_settings(settings)
    gateway = _gateway(settings)
    apps = _bind_all(settings, gateway)
    grpc = _bind_grpc(settings, gateway)  # before TorchServe chooses its own ports
    engine = _start_engine(settings)
    log_path = getattr(engine, "log_path", None)
    with following(log_path) if log_path else nullcontext():
        try:
            http = serving(apps, drain_timeout_s=settings.drain_timeout_s)
            async with _left_together(http, grpc):
                await _first_of(
                    _watch(engine, gateway, stop_signal, settings.start_timeout_s),
                    stop_signal.wait(),
                )
                await _stop_accepting(gateway, settings.drain_delay_s)
            lost = gateway.lost + gateway.in_flight
        finally:
            await engine.stop()
    if lost:
        logger.warning("stopped; %d requests outlast SEGSERVE_DRAIN_TIMEOUT_S and are lost", lost)
    else:
        logger.info("stopped; every request has its response")


def _trusted(settings: GatewaySettings) -> TrustedKeys | None:
    if settings.trust is None:
        return None
    if settings.management_token_file is not None:
        raise ServerError(
            "SEGSERVE_TRUST and SEGSERVE_MANAGEMENT_TOKEN_FILE are both set, and archives "
            "registered over HTTP are not verified; unset one of them"
        )
    return TrustedKeys.read(settings.trust)


def _start_engine(settings: GatewaySettings) -> Engine:
    trusted = _trusted(settings)
    run_dir = settings.run_dir.resolve() / ENGINE_FOLDER
    if settings.engine is EngineName.TORCHSERVE:
        from ..engines.torchserve import TorchServeEngine
        from ..engines.torchserve_process import TorchServe

        server = TorchServe.start(
            settings.archive,
            run_dir,
            config=settings.config,
            overrides=settings.torchserve_settings(),
            trusted=trusted,
        )
        return TorchServeEngine(server)
    config = settings.server_config()
    restrict_environment(config.get(HIDDEN_SETTING, ""))  # that of TorchServe is its own
    if settings.engine is EngineName.LOCAL:
        from ..engines.local import LocalEngine

        return LocalEngine(settings.archive, run_dir, config=config, trusted=trusted)
    from ..engines import ray

    return ray.start_engine(settings.archive, run_dir, trusted=trusted)


def _gateway(settings: GatewaySettings) -> Gateway:
    management = settings.management_token_file
    return Gateway(
        token=_token(settings),
        management_token=TokenFile(management) if management else None,
        settings=settings,
        max_request_bytes=settings.max_request_bytes(),
    )


def _token(settings: GatewaySettings) -> TokenFile | None:
    if settings.server_config().get("disable_token_authorization") == "true":
        return None
    if settings.token_file is not None:
        return TokenFile(settings.token_file)
    path = settings.run_dir / TOKEN_FILE
    logger.warning(
        "SEGSERVE_TOKEN_FILE is not set: a random token, valid until the server stops, is in %s",
        path,
    )
    return TokenFile.generate(path)


def _bind_all(settings: GatewaySettings, gateway: Gateway) -> dict[socket, ASGIApp]:
    """Binds a socket for every application. The ports are exactly those in `settings`."""
    apps = [
        (gateway.inference_app(), "SEGSERVE_PORT", settings.port),
        (gateway.metrics_app(), "SEGSERVE_METRICS_PORT", settings.metrics_port),
        (gateway.management_app(), "SEGSERVE_MANAGEMENT_PORT", settings.management_port),
    ]
    return {
        bind(settings.host, port, variable): app for app, variable, port in apps if app is not None
    }


def _bind_grpc(settings: GatewaySettings, gateway: Gateway) -> AbstractAsyncContextManager[None]:
    """Binds the port of gRPC, if there is one. Serves it within the context."""
    if settings.grpc_port is None:
        return nullcontext()
    try:
        from .open_inference_grpc import serving_grpc
    except ModuleNotFoundError as error:
        raise ServerError("SEGSERVE_GRPC_PORT needs: pip install 'segserve[grpc]'") from error
    return serving_grpc(
        gateway,
        settings.grpc_address,
        max_bytes=settings.max_request_bytes(),
        drain_timeout_s=settings.drain_timeout_s,
    )


@asynccontextmanager
async def _left_together(*contexts: AbstractAsyncContextManager[None]) -> AsyncIterator[None]:
    """Enters the contexts in order, and leaves all of them at the same time."""
    stacks = [AsyncExitStack() for _ in contexts]
    try:
        for stack, context in zip(stacks, contexts, strict=True):
            await stack.enter_async_context(context)
        yield
    finally:
        await asyncio.gather(*(stack.aclose() for stack in stacks))


async def _first_of(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Returns or raises when the first coroutine does. Cancels the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()


def _on_signals(stop_signal: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop_signal.set)


async def _watch(
    engine: Engine, gateway: Gateway, stop_signal: asyncio.Event, start_timeout_s: float
) -> Never:
    """Opens the gateway when every model has a worker, and keeps its readiness up to date."""
    await engine.start(start_timeout_s)
    _on_signals(stop_signal)  # Ray has replaced the handlers
    gateway.open(engine)
    logger.info("ready: %s", ", ".join(engine.models))
    while True:
        await asyncio.sleep(_WATCH_S)
        reason = await engine.not_ready_reason()
        if reason != gateway.not_ready_reason:
            logger.warning("not ready: %s", reason) if reason else logger.info("ready again")
        gateway.not_ready_reason = reason


async def _stop_accepting(gateway: Gateway, delay_s: float) -> None:
    """Reports that the server is not ready, and keeps serving until clients have noticed."""
    logger.info("stopping: requests are accepted for %g s more", delay_s)
    gateway.not_ready_reason = "the server is being stopped"
    gateway.closing = True  # a new connection goes to another server once clients have noticed
    await asyncio.sleep(delay_s)
