"""A server of this package as a child process. It is started, found and stopped like TorchServe."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

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

_EXIT_LAG_S = 3


class HandlerServer(RunningServer):
    """One main process, `python -m MODULE ARCHIVE...`, and the processes that it starts.

    Attributes:
        module: the module to run.
        title: the name of the server in messages.
        longest_tmp_bytes: the longest path of the folder for temporary files.
    """

    module: ClassVar[str]
    title: ClassVar[str]
    longest_tmp_bytes: ClassVar[int] = 80

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
        """Starts the server, see `RunningServer.start`.

        The server uses only some settings of config.properties (docs/engines.md). All other
        settings apply only to TorchServe.

        Raises:
            ServerError: as in `RunningServer.start`, or a package is not installed.
        """
        cls.check_installed()
        run_dir = run_dir.resolve()
        models, settings = cls._prepare(archives, run_dir, config, overrides, trusted)
        address = settings["inference_address"]
        if not address.startswith("http://"):
            raise ServerError(
                f"inference_address: {cls.title} supports only http://, got {address!r}; use a "
                "proxy for TLS"
            )
        # One port serves all three.
        settings |= {"management_address": address, "metrics_address": address}
        write_properties(settings, run_dir / CONFIG_FILE)
        tmp_dir = make_tmp_dir(run_dir, longest_bytes=cls.longest_tmp_bytes)
        child = cls._launch(run_dir, tmp_dir, models, settings)
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

    @classmethod
    def check_installed(cls) -> None:
        """Checks that the packages of the server are installed.

        Raises:
            ServerError: a package is not installed.
        """

    @classmethod
    def environment(cls, hidden: str, tmp_dir: Path) -> dict[str, str]:
        """The environment of the main process. `hidden` is a regular expression of names."""
        return handed_on(os.environ, hidden=hidden)

    @classmethod
    def _launch(
        cls, run_dir: Path, tmp_dir: Path, models: Sequence[str], settings: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        archives = [f"{MODEL_STORE}/{name}.mar" for name in models]
        environment = cls.environment(settings.get(HIDDEN_SETTING, ""), tmp_dir)
        with new_log(run_dir).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", cls.module, *archives],
                cwd=run_dir,
                env={**environment, "TMPDIR": str(tmp_dir)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=OWNER_ALONE,
            )

    def _raise_if_failed(self) -> None:
        if self._tree.alive():
            return
        status = self._exit_status(_EXIT_LAG_S)
        if status is not None and status < 0:
            reason = f"signal {-status} killed it"
        else:
            lines = [line for line in self._log().splitlines() if line.strip()]
            reported = [line.removeprefix(FAILED) for line in lines if line.startswith(FAILED)]
            reason = (reported or lines or ["it wrote nothing"])[-1]
        raise ServerError(f"{self.title} ended: {reason}; the log is {self.log_path}")
