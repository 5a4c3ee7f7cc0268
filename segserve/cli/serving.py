"""The commands that pack, sign and serve a model, and look at its server: `segserve archive`,
`keygen`, `sign`, `serve`, `stop`, `demo`, `page` and `doctor`.
"""

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..doctor import Level, as_json, as_lines, examine, status_of
from ..engines import EngineName
from ..resources import PHOTOGRAPHS, sample_photograph
from .app import (
    MAKE,
    SIGNALLED,
    USE,
    ModelArgument,
    TrustFlag,
    app,
    console,
    errors_in_one_line,
    model_folder,
    print_plain,
)
from .bulk import image_table

if TYPE_CHECKING:
    from ..client import Segmentation
    from ..gateway.background import Server
    from ..runtime.settings import Runtime

RuntimeFlag = Annotated[
    Literal["torch", "onnx"] | None,
    typer.Option(
        help="what computes the network; onnx needs no PyTorch, and computes on the CPU. By "
        "default onnx on a CPU, if the model has a network.onnx"
    ),
]
ServerOption = Annotated[
    str | None, typer.Option(help="its address; by default that of `segserve serve`")
]
TokenOption = Annotated[
    str | None,
    typer.Option(help="inference token; by default that of `segserve serve`, else $SEGSERVE_TOKEN"),
]
BUILD_DIR = Path("build")


@app.command(rich_help_panel=MAKE)
def archive(
    model: ModelArgument = "embedded",
    output: Annotated[Path, typer.Option(help="folder for the archive")] = BUILD_DIR,
    runtime: RuntimeFlag = None,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY", help="sign it with the secret key of this file")
    ] = None,
) -> None:
    """Pack a model into a self-contained, reproducible archive."""
    with errors_in_one_line():
        path = _build(model, output, load=runtime != "onnx", runtime=runtime)
        if sign is not None:
            _sign(path, sign)


@app.command(rich_help_panel=MAKE)
def keygen(
    name: Annotated[
        Path, typer.Argument(help="NAME.key, to keep secret, and NAME.pub are written")
    ],
) -> None:
    """Generate a key pair for signing archives."""
    from ..signing import SigningKey

    with errors_in_one_line():
        secret, public = SigningKey.generate().write(name)
        print_plain(f"{secret}  signs: segserve sign ARCHIVE {secret}")
        print_plain(
            f"{public}  is for those who serve: segserve serve --archive ARCHIVE --trust {public}"
        )


@app.command(rich_help_panel=MAKE)
def sign(
    archive: Annotated[Path, typer.Argument(help="an archive (.mar)")],
    key: Annotated[
        Path,
        typer.Argument(help="a secret key of `segserve keygen`, or of minisign without a password"),
    ],
) -> None:
    """Sign an archive. The signature is written next to it, in minisign's format."""
    with errors_in_one_line():
        _sign(archive, key)


def _sign(archive: Path, key: Path) -> None:
    from ..signing import SigningKey

    print_plain(str(SigningKey.read(key).sign(archive)))


@app.command(rich_help_panel=USE)
def serve(
    model: ModelArgument = "embedded",
    engine: Annotated[
        EngineName | None,
        typer.Option(
            help="what runs the archive; by default torchserve, or local where TorchServe is not "
            "installed"
        ),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(help="an archive that is there already, in place of one made of the model"),
    ] = None,
    runtime: RuntimeFlag = None,
    trust: TrustFlag = None,
) -> None:
    """Start a server with a model and leave it running in the background."""
    from ..engines import default_engine
    from ..gateway.background import SERVE_DIR, Server, running_server

    with errors_in_one_line():
        if (running := running_server()) is not None:
            raise ValueError(
                f"a server already runs at {running.inference_url}: `segserve stop` ends it"
            )
        server = Server.start(
            [archive or _build(model, BUILD_DIR, runtime=runtime)],
            SERVE_DIR,
            engine=engine or default_engine(),
            trust=trust,
        )
        if server.replaced_port is not None:
            print_plain(
                f"port {server.replaced_port} is in use, so the server takes another; "
                "SEGSERVE_PORT selects one"
            )
        print_plain(f"the server is starting at {server.inference_url} (log: {server.log_path})")
        try:
            server.wait_ready(server.start_timeout_s)
        except BaseException:
            server.stop()
            raise
        _print_ready(server, server.models[0])


def _print_ready(server: "Server", name: str) -> None:
    token = server.inference_token
    authorization = f" -H 'Authorization: Bearer {token}'" if token else ""
    print_plain(f"{name} is ready at {server.inference_url}. Try:\n")
    print_plain("  segserve segment PHOTO.jpg\n")
    url = f"{server.inference_url}/predictions/{name}?mask=png"
    print_plain(f"  curl{authorization} -F data=@PHOTO.jpg '{url}'\n")
    if token:
        print_plain(f"The token is in {server.token_file}, and changes at every start.")
    print_plain("`segserve stop` stops the server.")


@app.command(rich_help_panel=USE)
def stop() -> None:
    """Stop the server that `segserve serve` started from this folder."""
    from ..gateway.background import running_server

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
    from ..client import SegmentationClient
    from ..engines import default_engine
    from ..gateway.background import Server

    with errors_in_one_line():
        archive, pictures = _build(model, BUILD_DIR), BUILD_DIR / "demo"
        pictures.mkdir(parents=True, exist_ok=True)
        with Server.start([archive], Path(".run/demo"), engine=default_engine()) as server:
            console.print(f"a server is starting at {server.inference_url} ...")
            server.wait_ready()
            with SegmentationClient(
                server.inference_url, token=server.inference_token, model=archive.stem
            ) as client:
                for name, content in PHOTOGRAPHS.items():
                    photograph = sample_photograph(name)
                    _show(client.segment(photograph), photograph, content, pictures)
        console.print("The server is stopped. `make serve` starts one that stays.")


def _show(segmentation: "Segmentation", photograph: Path, content: str, pictures: Path) -> None:
    """Saves label map and overlay, and prints the classes found."""
    height_px, width_px = segmentation.label_map.shape
    labels, overlay = (
        pictures / f"{photograph.stem}-{name}" for name in ("labels.png", "overlay.jpg")
    )
    segmentation.to_image().save(labels)
    segmentation.overlay().save(overlay, quality=90)
    title = f"{photograph.name} ({content}), {width_px} x {height_px} pixels"
    console.print(image_table(segmentation.classes, title))
    console.print(f"label map: {labels}\noverlay:   {overlay}\n", soft_wrap=True)


def _build(
    model: str, output: Path, *, load: bool = False, runtime: "Runtime | None" = None
) -> Path:
    from ..archive import build_archive
    from ..runtime.record import sha256_of

    path = build_archive(model_folder(model), output, load=load, runtime=runtime)
    print_plain(f"{path}  {path.stat().st_size / 1e6:.1f} MB  SHA-256 {sha256_of(path)}")
    return path


@app.command(rich_help_panel=USE)
def page(
    server: ServerOption = None,
    token: TokenOption = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="of the page; by default a free one from 7860"),
    ] = None,
) -> None:
    """Open a local web page that segments images with a running server and shows the results."""
    with errors_in_one_line():
        from ..page.launch import page_served
        from ..page.server import PageServer

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end)
        with page_served(PageServer(server, token), port=port) as url:
            print_plain(f"The page is at {url}  (Ctrl-C ends it)")
            threading.Event().wait()


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(SIGNALLED + number)  # runs `with` and `finally` blocks, which remove the uploads


_COLOR = {
    Level.OK: typer.colors.GREEN,
    Level.WARNING: typer.colors.YELLOW,
    Level.PROBLEM: typer.colors.RED,
}


@app.command(rich_help_panel=USE)
def doctor(
    server: ServerOption = None,
    token: TokenOption = None,
    json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> None:
    """Diagnose problems of a server, and say how to solve them."""
    findings = []
    for finding in examine(server, token=token):
        findings.append(finding)
        if not json:
            typer.secho(as_lines([finding]), fg=_COLOR[finding.level])
    if json:
        typer.echo(as_json(findings))
    raise typer.Exit(status_of(findings))
