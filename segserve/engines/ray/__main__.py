"""`python -m segserve.engines.ray ARCHIVE...`, in a run folder: serves the archives on its own Ray
until SIGTERM.

`RayServe.start` runs this command. An existing cluster runs `segserve.engines.ray:app` instead
(docs/ray.md).
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import ray
from ray import serve

from ...runtime.errors import ModelError
from ..properties import read_properties
from ..torchserve.launch import CONFIG_FILE
from ..workers.process import FAILED
from . import Arguments, app
from .build import cores_needed

_NAME = "segserve"
_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = (
    2**29
)  # images and responses in flight; Ray spills what does not fit to the disk


def main(archives: Sequence[str]) -> int:
    """Serves until SIGTERM or SIGINT. Returns 1 if an archive cannot be served."""
    ended = threading.Event()
    settings = read_properties(Path(CONFIG_FILE))
    try:
        arguments = _arguments(archives, settings)
        _start_ray(cores_needed(arguments))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())  # replaces Ray's own handlers
        _serve(arguments, settings["inference_address"])
        ended.wait()
    except (ModelError, RuntimeError) as error:
        print(f"{FAILED}{' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201 - the log of the server
        return 1
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()
    return 0


def _arguments(archives: Sequence[str], settings: Mapping[str, str]) -> Arguments:
    return Arguments(
        archive=",".join(str(Path(archive).absolute()) for archive in archives),
        token_authorization=settings.get("disable_token_authorization") != "true",
        token_minutes=int(settings.get("token_expiration_min", 60)),
        max_request_bytes=int(settings.get("max_request_size", 6_553_500)),
    )


def _start_ray(cores: int) -> None:
    """Starts a Ray whose ports only this machine can reach."""
    ray.init(
        address="local",
        _node_ip_address=_LOOPBACK,
        _temp_dir=os.path.join(
            os.environ["TMPDIR"], "r"
        ),  # Ray opens this folder to all users; its parent is closed
        num_cpus=cores,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.WARNING,
    )


def _serve(arguments: Arguments, inference_address: str) -> None:
    address = urlsplit(inference_address)
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": address.hostname, "port": address.port},
        logging_config=quiet,
    )
    try:
        serve.run(app(arguments), name=_NAME, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        raise RuntimeError(_replica_error() or str(error)) from error


def _replica_error() -> str:
    """The error that kept a replica from starting, from the traceback that Ray Serve stores."""
    deployments = serve.status().applications[_NAME].deployments.values()
    lines = "\n".join(deployment.message for deployment in deployments).splitlines()
    errors = [line.partition("Error: ")[2].strip() for line in lines if "Error: " in line]
    reported = [error for error in errors if not error.startswith("Traceback")]
    return reported[-1] if reported else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
