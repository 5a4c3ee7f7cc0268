"""All measured systems, by their names on the command line."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from .figures import LIMIT, PLAIN_LOOP
from .loop import Prepare, open_loop
from .peer import BenchError, Opened, Workload
from .peers.deployed import open_deployed
from .peers.loops import prepare_huggingface, prepare_limit, prepare_plain_loop
from .peers.ours import (
    open_ours,
    open_ours_in_int8,
    open_ours_in_onnx,
    open_ours_on_ray,
    open_without_gateway,
)
from .peers.processes import open_python_server
from .peers.stock import open_stock

Open = Callable[[Workload], AbstractContextManager[Opened]]


@dataclass(frozen=True)
class Peer:
    """A system to measure.

    Attributes:
        open: returns a context that starts and stops the system.
        needs: import names of the packages that the system needs. It is skipped if one is missing.
    """

    name: str
    open: Open
    needs: tuple[str, ...] = ()

    def opened(self, workload: Workload) -> AbstractContextManager[Opened]:
        """The context that starts and stops the system. Raises as `open` too.

        Raises:
            BenchError: a package is missing.
        """
        missing = [package for package in self.needs if find_spec(package) is None]
        if missing:
            raise BenchError(
                f"{', '.join(missing)} is not installed: pip install 'segserve[bench]'"
            )
        return self.open(workload)


def _loop(name: str, title: str, prepare: Prepare, *needs: str) -> Peer:
    return Peer(name, partial(open_loop, title=title, prepare=prepare), needs)


def _stock(name: str, title: str, *, same_size: bool) -> Peer:
    return Peer(name, partial(open_stock, title=title, same_size=same_size), ("captum",))


def _server(name: str, title: str, module: str, network: str, *needs: str) -> Peer:
    return Peer(
        name, partial(open_python_server, title=title, module=module, network=network), needs
    )


PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        _loop("limit", LIMIT, prepare_limit),
        _loop("loop", PLAIN_LOOP, prepare_plain_loop),
        Peer("ours", open_ours),
        Peer("ours-int8", open_ours_in_int8),
        Peer("ours-onnx", open_ours_in_onnx),
        Peer("ours-ray", open_ours_on_ray, ("ray",)),
        Peer("ours-direct", open_without_gateway),
        Peer("deployed", open_deployed),
        _stock("stock", "image_segmenter, as shipped", same_size=False),
        _stock("stock-same-size", "image_segmenter, our input size", same_size=True),
        _server("litserve", "LitServe, as documented", "litserve_server", "eager", "litserve"),
        _server("litserve-ours", "LitServe, our network", "litserve_server", "ours", "litserve"),
        _server(
            "fastapi", "FastAPI, as documented", "fastapi_server", "eager", "fastapi", "uvicorn"
        ),
        _server(
            "fastapi-ours", "FastAPI, our network", "fastapi_server", "ours", "fastapi", "uvicorn"
        ),
        _loop("huggingface", "Hugging Face pipeline", prepare_huggingface, "transformers"),
    )
}

ON_REQUEST = ("ours-ray", "ours-direct")
"""The systems that are measured only if they are named."""
