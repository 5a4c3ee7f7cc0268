"""Ray Serve as a child process, with its own Ray on this machine. It is started, found and stopped
like TorchServe.
"""

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ...runtime.files import write_whole
from ..environment import HIDDEN_SETTING, handed_on
from ..errors import ServerError
from ..properties import write_properties
from ..running import STATE_FILE, RunningServer
from ..state import ServerState
from ..torchserve.launch import CONFIG_FILE, MODEL_STORE, OWNER_ALONE, make_tmp_dir, new_log

if TYPE_CHECKING:
    from ...signing import TrustedKeys

FAILED = "segserve: "
"""The beginning of the log's last line if the server itself reports why it ended."""

_LONGEST_TMP_BYTES = (
    36  # Ray adds /r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1
)
_EXIT_LAG_S = 3
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_METRICS_COLLECTION": "0",  # the gateway counts the contract's metrics
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 0 keeps Ray on the loopback interface
    "RAY_AUTH_MODE": "token",  # Ray's ports require the token of this run
}


class RayServe(RunningServer):
    """Ray Serve on its own Ray: one process that starts both, and the processes of both."""

    engine = "ray"

    @classmethod
    def start(
        cls,
        archives: Sequence[Path],
        run_dir: Path,
        *,
        config: Path | None = None,
        overrides: Mapping[str, str] | None = None,
        trusted: "TrustedKeys | None" = None,
    ) -> Self:
        """Starts Ray Serve, see `RunningServer.start`.

        Of config.properties it uses `inference_address`, `max_request_size`, `blacklist_env_vars`
        and the settings of tokens. All other settings apply only to TorchServe.

        Raises:
            ServerError: as in `RunningServer.start`, or Ray is not installed.
        """
        if find_spec("ray") is None:
            raise ServerError("Ray is not installed; install it with: pip install 'segserve[ray]'")
        run_dir = run_dir.resolve()
        models, settings = cls._prepare(archives, run_dir, config, overrides, trusted)
        address = settings["inference_address"]
        if not address.startswith("http://"):
            raise ServerError(
                f"inference_address: Ray Serve answers over http://, got {address!r}; put TLS "
                "before it"
            )
        settings |= {
            "management_address": address,
            "metrics_address": address,
        }  # one port serves all three
        write_properties(settings, run_dir / CONFIG_FILE)
        tmp_dir = make_tmp_dir(run_dir, longest_bytes=_LONGEST_TMP_BYTES)
        child = _launch(run_dir, tmp_dir, models, settings)
        try:
            state = ServerState.of(
                child.pid,
                settings,
                models=models,
                tmp_dir=tmp_dir,
                engine=cls.engine,
                with_grpc=False,
            )
            state.write(run_dir / STATE_FILE)
        except BaseException:
            child.kill()
            raise
        return cls(run_dir, state, child)

    def _raise_if_failed(self) -> None:
        if self._tree.alive():
            return
        status = self._exit_status(_EXIT_LAG_S)
        if status is not None and status < 0:
            reason = f"signal {-status} killed it"
        else:
            lines = [line for line in self._log().splitlines() if line.strip()]
            told = [line.removeprefix(FAILED) for line in lines if line.startswith(FAILED)]
            reason = (told or lines or ["it wrote nothing"])[-1]
        raise ServerError(f"Ray Serve ended: {reason}; the log is {self.log_path}")


def _launch(
    run_dir: Path, tmp_dir: Path, models: Sequence[str], settings: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    archives = [f"{MODEL_STORE}/{name}.mar" for name in models]
    ray_token = tmp_dir / "ray_token"
    write_whole(ray_token, secrets.token_hex(32), mode=0o600)
    with new_log(run_dir).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "segserve.engines.ray", *archives],
            cwd=run_dir,
            env={
                **_environment(settings.get(HIDDEN_SETTING, "")),
                "TMPDIR": str(tmp_dir),
                "RAY_AUTH_TOKEN_PATH": str(ray_token),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=OWNER_ALONE,
        )


def _environment(hidden: str) -> dict[str, str]:
    """The part of this process's environment that servers get, and the variables that isolate
    Ray.
    """
    return {**handed_on(os.environ, hidden=hidden), **_RAY_ENVIRONMENT}
