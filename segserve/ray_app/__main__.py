"""`python -m segserve.ray_app ARCHIVE...`, in a run folder: serves the archives on a Ray of its own until SIGTERM.

That is what `RayServe.start` runs. A cluster that is there already takes `segserve.ray_app:app` (docs/ray.md).
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

from ..runtime.errors import ModelError
from ..server.launch import CONFIG_FILE
from ..server.properties import read_properties
from . import Arguments, app
from .build import cores_needed
from .process import FAILED

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 2**29  # images and answers that are under way; what does not fit is spilled to the disk


def main(archives: Sequence[str]) -> int:
    """Serves until SIGTERM or SIGINT; 1 where an archive cannot be served."""
    ended = threading.Event()
    settings = read_properties(Path(CONFIG_FILE))
    try:
        arguments = _arguments(archives, settings)
        _start_ray(cores_needed(arguments))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())  # after Ray has set its own
        _serve(arguments, settings["inference_address"])
        ended.wait()
    except (ModelError, RuntimeError) as error:
        print(f"{FAILED}{_reason(str(error))}", file=sys.stderr)  # noqa: T201 - the log of the server
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
    """A Ray of its own, whose ports are this machine's alone."""
    ray.init(
        address="local",
        _node_ip_address=_LOOPBACK,
        _temp_dir=os.environ["TMPDIR"],
        num_cpus=cores,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.WARNING,
    )


def _serve(arguments: Arguments, inference_address: str) -> None:
    address = urlsplit(inference_address)
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    serve.start(
        proxy_location="HeadOnly", http_options={"host": address.hostname, "port": address.port}, logging_config=quiet
    )
    serve.run(app(arguments), name="segserve", route_prefix="/", logging_config=quiet)


def _reason(text: str) -> str:
    """The line that says it, out of what Ray wraps around an error of a replica."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.partition("RuntimeError: ")[2] for line in lines if "RuntimeError: " in line]
    return (told or lines or ["no reason was given"])[-1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
