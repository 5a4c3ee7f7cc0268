"""The commands `segserve archive`, `serve`, `stop` and `demo`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .app import (
    MAKE,
    USE,
    ModelArgument,
    app,
    console,
    errors_in_one_line,
    model_folder,
    print_plain,
)
from .trust import SignFlag, TrustFlag, sign_archive, trusted_keys

if TYPE_CHECKING:
    from ..engines.running import RunningServer

DEMO_DIR = Path(".run/demo")
BUILD_DIR = Path("build")
_READY_TIMEOUT_S = 300  # long enough for a busy machine; failures are reported immediately


class Engine(StrEnum):
    """The server that runs an archive."""

    TORCHSERVE = "torchserve"
    LOCAL = "local"
    RAY = "ray"


@app.command(rich_help_panel=MAKE)
def archive(
    model: ModelArgument = "embedded",
    output: Annotated[Path, typer.Option(help="folder for the archive")] = BUILD_DIR,
    sign: SignFlag = None,
) -> None:
    """Pack a model into a self-contained, reproducible archive."""
    with errors_in_one_line():
        path = _build(model, output)
        if sign is not None:
            sign_archive(path, sign)


@app.command(rich_help_panel=USE)
def serve(
    model: ModelArgument = "embedded",
    engine: Annotated[Engine, typer.Option(help="what runs the archive")] = Engine.TORCHSERVE,
    archive: Annotated[
        Path | None,
        typer.Option(help="an archive that is there already, in place of one made of the model"),
    ] = None,
    trust: TrustFlag = None,
) -> None:
    """Start a server with a model, wait until it is ready, and leave it running in the
    background.
    """
    from ..engines.endpoint import ENGINES, SERVE_DIR

    with errors_in_one_line():
        trusted = trusted_keys(trust)
        server = ENGINES[engine].start(
            [archive or _build(model, BUILD_DIR)], SERVE_DIR, trusted=trusted
        )
        try:
            server.wait_ready(_READY_TIMEOUT_S)
        except BaseException:
            server.stop()
            raise
        _print_ready(server, server.models[0])


def _print_ready(server: "RunningServer", name: str) -> None:
    authorization = (
        f" -H 'Authorization: Bearer {server.inference_token}'" if server.inference_token else ""
    )
    console.print(
        f"{name} is ready at {server.inference_url} (log: {server.log_path}). Try:\n",
        soft_wrap=True,
    )
    print_plain(
        f"  curl{authorization} -H 'X-Segment-Mask: png' -F data=@PHOTO.jpg "
        f"{server.inference_url}/predictions/{name}\n"
    )
    print_plain(
        "The token lives for a day and changes at every start. `segserve stop` stops the server."
    )


@app.command(rich_help_panel=USE)
def stop() -> None:
    """Stop the server that `segserve serve` started from this folder."""
    from ..engines.endpoint import running_server

    with errors_in_one_line():
        server = running_server()
        if server is None:
            console.print("no server is running")
            return
        server.stop()
        console.print("stopped")


@app.command(rich_help_panel=USE)
def demo(model: ModelArgument = "embedded") -> None:
    """Serve a model, segment two photographs over HTTP, and show the classes found."""
    from ..demo import run_demo

    with errors_in_one_line():
        run_demo(_build(model, BUILD_DIR), DEMO_DIR, BUILD_DIR / "demo", console)


def _build(model: str, output: Path) -> Path:
    from ..archive import build_archive
    from ..runtime.record import sha256_of

    path = build_archive(model_folder(model), output)
    print_plain(f"{path}  {path.stat().st_size / 1e6:.1f} MB  SHA-256 {sha256_of(path)}")
    return path
