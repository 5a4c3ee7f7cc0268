"""Ray Serve as a child process, with its own Ray on this machine."""

import secrets
from importlib.util import find_spec
from pathlib import Path

from ...runtime.files import write_whole
from ..errors import ServerError
from ..workers.process import HandlerServer

_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_METRICS_COLLECTION": "0",  # the ingress counts the contract's metrics
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 0 keeps Ray on the loopback interface
    "RAY_AUTH_MODE": "token",  # Ray's ports require the token of this run
}


class RayServe(HandlerServer):
    """Ray Serve on its own Ray: one process that starts both, and the processes of both."""

    engine = "ray"
    module = "segserve.engines.ray"
    title = "Ray Serve"
    # Ray adds /r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1
    longest_tmp_bytes = 36

    @classmethod
    def check_installed(cls) -> None:
        if find_spec("ray") is None:
            raise ServerError("Ray is not installed; install it with: pip install 'segserve[ray]'")

    @classmethod
    def environment(cls, hidden: str, tmp_dir: Path) -> dict[str, str]:
        """The variables that servers get, and those that isolate Ray."""
        token_file = tmp_dir / "ray_token"
        write_whole(token_file, secrets.token_hex(32), mode=0o600)
        inherited = super().environment(hidden, tmp_dir)
        return {**inherited, **_RAY_ENVIRONMENT, "RAY_AUTH_TOKEN_PATH": str(token_file)}
