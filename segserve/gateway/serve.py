"""Runs TorchServe and its gateway. The gateway starts before TorchServe and ends after the last
response.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from socket import AF_INET, AF_INET6, socket
from typing import Any, Never

from aiohttp import web

from ..engines.errors import ServerError
from ..engines.torchserve.launch import LOG_FILE
from ..engines.torchserve.process import TorchServe
from ..signing import TrustedKeys
from .app import Door
from .json_log import LogFollower
from .listening import bind, listening
from .settings import Settings
from .tokens import TokenFile
from .upstream import Place, TorchServePlaces

logger = logging.getLogger("segserve.gateway")

_WATCH_S = 2.0
_LATE_REQUEST_S = 0.5
_DRAWN_TOKEN = "token"  # noqa: S105 - the name of a file


async def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then completes the pending requests.

    Raises:
        ServerError: the server cannot be started, or ended by itself.
        SignatureError: an archive is not signed by a trusted key.
    """
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
    _check_archives(settings)
    _check_models_dir(settings)
    _check_run_dir(settings.run_dir)
    _check_host(settings.host)
    door = _door(settings)
    apps = _bound(settings, door)
    server = TorchServe.start(
        settings.archive,
        settings.run_dir,
        config=settings.config,
        overrides=settings.torchserve_settings(),
        trusted=_trusted(settings),
    )
    with LogFollower(server.log_path), server:
        answered = True
        try:
            async with (
                door,
                asyncio.timeout(None) as drain,
                listening(
                    apps, drain_timeout_s=settings.drain_timeout_s, late_request_s=_LATE_REQUEST_S
                ),
            ):
                await _first_of(
                    _watch(server, door, settings.start_timeout_s), asked_to_stop.wait()
                )
                await _turn_away(door, settings.drain_delay_s)
                # aiohttp may wait twice as long as its timeout. This deadline comes before the
                # container is killed.
                drain.reschedule(
                    asyncio.get_running_loop().time() + _LATE_REQUEST_S + settings.drain_timeout_s
                )
        except TimeoutError:
            if not drain.expired():
                raise
            answered = False
    if answered:
        logger.info("stopped; what was asked is answered")
    else:
        logger.warning(
            "stopped; some requests took longer than SEGSERVE_DRAIN_TIMEOUT_S, %g s, and are lost: "
            "raise it, and with "
            "it the time after which the container is killed",
            settings.drain_timeout_s,
        )


def _check_archives(settings: Settings) -> None:
    for archive in settings.archive:
        if not archive.is_file():
            raise ServerError(
                f"SEGSERVE_ARCHIVE: there is no archive {archive}; mount the folder that holds it, "
                "as in "
                f"docker run --volume FOLDER:{archive.parent}:ro"
            )


def _check_models_dir(settings: Settings) -> None:
    if "models_dir" in settings.model_fields_set and not settings.models_dir.is_dir():
        raise ServerError(
            f"SEGSERVE_MODELS_DIR: there is no folder {settings.models_dir}; mount it, as in "
            f"docker run --volume FOLDER:{settings.models_dir}:ro"
        )


def _check_run_dir(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / LOG_FILE).touch()  # the first write shows whether the folder is writable
    except OSError as error:
        raise ServerError(
            f"SEGSERVE_RUN_DIR: cannot write into {run_dir}: {error.strerror}; give the container "
            "a place to write, as "
            "in docker run --tmpfs /tmp"
        ) from error
    if run_dir.stat().st_uid not in (0, os.getuid()):
        raise ServerError(
            f"SEGSERVE_RUN_DIR: {run_dir} belongs to another user, who could put other archives "
            "and tokens there; set "
            "it to a folder of your own"
        )


def _check_host(host: str) -> None:
    try:
        with socket(AF_INET6 if ":" in host else AF_INET) as any_port:
            any_port.bind((host, 0))
    except OSError as error:
        raise ServerError(
            f"SEGSERVE_HOST: cannot listen on {host}: {error.strerror}; set it to an address of "
            "this machine, or to "
            "0.0.0.0 for all of them"
        ) from error


def _trusted(settings: Settings) -> TrustedKeys | None:
    if settings.trust is None:
        return None
    if settings.management_token_file is not None:
        raise ServerError(
            "SEGSERVE_TRUST and SEGSERVE_MANAGEMENT_TOKEN_FILE are both set, and archives "
            "registered over HTTP are not "
            "verified; unset one of them"
        )
    return TrustedKeys.read(settings.trust)


def _door(settings: Settings) -> Door:
    if settings.token_file is not None:
        token = TokenFile(settings.token_file)
    else:
        drawn = settings.run_dir / _DRAWN_TOKEN
        token = TokenFile.drawn(drawn)
        logger.warning(
            "SEGSERVE_TOKEN_FILE is not set: a token for this run alone stands in %s", drawn
        )
    management = settings.management_token_file
    return Door(token, TokenFile(management) if management else None, settings.limits())


def _bound(settings: Settings, door: Door) -> list[tuple[web.Application, socket]]:
    """Binds a socket for every application. The ports are exactly those in `settings`."""
    apps = [
        (door.inference_app(), "SEGSERVE_PORT", settings.port),
        (door.metrics_app(), "SEGSERVE_METRICS_PORT", settings.metrics_port),
        (door.management_app(), "SEGSERVE_MANAGEMENT_PORT", settings.management_port),
    ]
    return [
        (app, bind(settings.host, port, variable))
        for app, variable, port in apps
        if app is not None
    ]


async def _first_of(*coroutines: Coroutine[Any, Any, object]) -> None:
    """Returns or raises when the first coroutine does. Cancels the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()


async def _watch(server: TorchServe, door: Door, start_timeout_s: float) -> Never:
    """Opens the gateway when every model has a worker. From then on, keeps its readiness up to
    date.
    """
    await asyncio.to_thread(server.wait_ready, start_timeout_s)
    door.open(_places(server))
    logger.info("ready: %s", ", ".join(server.models))
    while True:
        await asyncio.sleep(_WATCH_S)
        obstacle = await asyncio.to_thread(server.obstacle)
        if obstacle != door.obstacle:
            logger.warning("not ready: %s", obstacle) if obstacle else logger.info("ready again")
        door.obstacle = obstacle


def _places(server: TorchServe) -> TorchServePlaces:
    return TorchServePlaces(
        inference=Place(server.inference_url, server.inference_token),
        management=Place(server.management_url, server.management_token),
        metrics=Place(server.metrics_url, None),
    )


async def _turn_away(door: Door, delay_s: float) -> None:
    """Reports that the server is not ready, and keeps serving until clients have noticed."""
    logger.info(
        "asked to stop: requests are taken for %g s more, and all of them are answered", delay_s
    )
    door.obstacle = "the server is being stopped"
    door.closing = True  # a new connection goes to another server once clients have noticed
    await asyncio.sleep(delay_s)
