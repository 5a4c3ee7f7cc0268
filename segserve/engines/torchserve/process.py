"""A TorchServe as a child process: started, watched until its models answer, stopped without a
trace.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ..environment import HIDDEN_SETTING, handed_on
from ..errors import ServerError
from ..properties import write_properties
from ..running import STATE_FILE, RunningServer
from ..state import ServerState
from .java import find_java
from .launch import CONFIG_FILE, launch, make_tmp_dir, torchserve_home
from .log import model_failure, server_failure, worker_output_complete
from .metrics_file import METRICS_FILE, write_metrics_file

if TYPE_CHECKING:
    from ...signing import TrustedKeys

_POLL_S = 0.25
_OUTPUT_LAG_S = 3  # how long a dead worker's last words may take to reach the log


class TorchServe(RunningServer):
    """A TorchServe: a front end in Java, whose children are the workers."""

    engine = "torchserve"

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
        """See `RunningServer.start`.

        Raises:
            ServerError: no Java, too.
        """
        java_home = find_java()
        run_dir = run_dir.resolve()
        models, settings = cls._prepare(archives, run_dir, config, overrides, trusted)
        environment = handed_on(os.environ, hidden=settings.get(HIDDEN_SETTING, ""))
        write_metrics_file(
            run_dir / METRICS_FILE, torchserve_home() / "ts" / "configs" / METRICS_FILE
        )
        write_properties(
            {"metrics_config": str(run_dir / METRICS_FILE), **settings}, run_dir / CONFIG_FILE
        )
        tmp_dir = make_tmp_dir(run_dir)
        child = launch(
            java_home,
            run_dir,
            tmp_dir,
            models=models,
            vm_arguments=settings.get("vmargs", ""),
            environment=environment,
        )
        try:
            state = ServerState.of(child.pid, settings, models=models, tmp_dir=tmp_dir)
            state.write(run_dir / STATE_FILE)
        except BaseException:
            child.kill()
            raise
        return cls(run_dir, state, child)

    def _raise_if_failed(self) -> None:
        ended = not self._tree.alive()
        log = self._log()
        if model_failure(log) is not None:
            deadline = time.monotonic() + _OUTPUT_LAG_S
            while not worker_output_complete(log) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                log = self._log()
            raise ServerError(f"{model_failure(log)}; the log is {self.log_path}")
        if ended:
            raise ServerError(
                f"TorchServe ended: {self._why_ended(log)}; the log is {self.log_path}"
            )

    def _why_ended(self, log: str) -> str:
        status = self._exit_status(_OUTPUT_LAG_S)
        return (
            f"signal {-status} killed it"
            if status is not None and status < 0
            else server_failure(log)
        )
