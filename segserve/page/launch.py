"""Serves the page on this machine. The browser contacts no other host."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .app import STYLES, build_page, examples
from .server import PageServer

# Gradio compiles templates in the browser, which needs 'unsafe-eval', and has inline styles and
# scripts.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "object-src 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Headers:
    """Middleware that adds the headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")  # other host names would allow DNS rebinding
_UPLOAD_LIMIT = "100mb"  # above the server's limit, so that the server reports its own limit
_SESSIONS = 100
_THREADS = 8


@contextmanager
def page_served(server: PageServer, *, port: int | None = None) -> Iterator[str]:
    """Serves the page and yields its address. At the end, uploaded images are deleted. By default,
    the port is the first free one from 7860. Raises OSError if the port is in use.
    """
    with tempfile.TemporaryDirectory(prefix="segserve-page-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads  # Gradio has no other setting for it
        page = build_page(server)
        try:
            _, url, _ = page.launch(**_settings(port))
            yield url
        finally:
            page.close(verbose=False)


def _settings(port: int | None) -> dict[str, Any]:
    return {
        "server_name": HOST,
        "server_port": port,
        "share": False,
        "quiet": True,
        "prevent_thread_lock": True,
        "max_threads": _THREADS,
        "max_file_size": _UPLOAD_LIMIT,
        "state_session_capacity": _SESSIONS,
        "enable_monitoring": False,
        "allowed_paths": [str(file) for file in examples().values()],
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "run_history": False,
        "footer_links": [],
        "theme": _theme(),
        "css_paths": STYLES,
        "app_kwargs": {
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=list(_NAMES)),
                Middleware(Headers),
            ],
        },
    }


def _theme() -> gr.themes.Base:
    """A plain theme with the fonts of the user's system, so that no font is downloaded."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_lg,
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(  # contrast of at least 4.5, WCAG's minimum for text; Gradio's own has less
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_800",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )
