"""The local engine as a child process."""

from importlib.util import find_spec

from ..errors import ServerError
from ..workers.process import HandlerServer

_PACKAGES = ("prometheus_client", "python_multipart", "starlette", "uvicorn")


class LocalServer(HandlerServer):
    """One main process with the HTTP application, and its worker processes."""

    engine = "local"
    module = "segserve.engines.local"
    title = "the local server"

    @classmethod
    def check_installed(cls) -> None:
        missing = [name for name in _PACKAGES if find_spec(name) is None]
        if missing:
            raise ServerError(
                f"{', '.join(missing)} is not installed; install it with: "
                "pip install 'segserve[local]'"
            )
