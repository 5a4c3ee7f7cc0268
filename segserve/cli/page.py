"""The command `segserve page`."""

import signal
import sys
import threading
from types import FrameType
from typing import Annotated

import typer

from .app import USE, app, errors_in_one_line, print_plain
from .output import SIGNALLED


@app.command(rich_help_panel=USE)
def page(
    server: Annotated[
        str | None, typer.Option(help="its address; by default that of `segserve serve`")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="by default that of `segserve serve`, else $SEGSERVE_TOKEN")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="of the page; by default a free one from 7860"),
    ] = None,
) -> None:
    """Open a local web page that segments images with a running server and shows the results."""
    with errors_in_one_line():
        _check_installed()
        from ..page.asking import Server
        from ..page.launch import page_served

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end)
        with page_served(Server(server, token), port=port) as url:
            print_plain(f"The page is at {url}  (Ctrl-C ends it)")
            threading.Event().wait()


def _check_installed() -> None:
    try:
        import gradio  # noqa: F401 - checks that it is installed
    except ImportError as error:
        raise ValueError("the page needs Gradio: pip install 'segserve[page]'") from error


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(SIGNALLED + number)  # runs `with` and `finally` blocks, which remove the uploads
