"""What is known of a running server, in a form that a later command can read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from .process_tree import creation_s


@dataclass(frozen=True)
class ServerState:
    """The content of `server.json`. It never holds a token.

    `created_s` is when the process was created, see `creation_s`; `tmp_dir` is removed when the
    server stops.
    """

    pid: int
    created_s: float
    inference_url: str
    management_url: str
    metrics_url: str
    models: tuple[str, ...]
    tmp_dir: str
    grpc_address: str = ""  # HOST:PORT of gRPC inference; empty where there is none
    engine: str = "torchserve"

    @classmethod
    def of(
        cls,
        pid: int,
        settings: Mapping[str, str],
        *,
        models: tuple[str, ...],
        tmp_dir: Path,
        engine: str = "torchserve",
        with_grpc: bool = True,
    ) -> Self:
        """Return the state of a process that was just started with `settings`."""
        created_s = creation_s(pid)
        keys = ("inference_address", "management_address", "metrics_address")
        # What is bound to every interface is reached on this one.
        inference, management, metrics = (
            settings[key].replace("//0.0.0.0:", "//127.0.0.1:") for key in keys
        )
        host = settings["grpc_inference_address"].replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - not bound here
        grpc_address = f"{host}:{settings['grpc_inference_port']}" if with_grpc else ""
        return cls(
            pid,
            created_s,
            inference,
            management,
            metrics,
            models,
            str(tmp_dir),
            grpc_address,
            engine,
        )

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read it, or return None where there is no file or it is not whole."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**fields, "models": tuple(fields["models"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None
