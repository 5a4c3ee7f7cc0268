"""A real browser that requests only the pages under test."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from playwright.sync_api import BrowserContext, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NO_BROWSER = "no Chromium is installed: apt-get install chromium"


def find_browser() -> str | None:
    """The path of a Chromium; Playwright's own download is not needed."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def open_browser(
    *, width_px: int = 1280, height_px: int = 900, switches: Sequence[str] = (), **context
) -> Iterator[BrowserContext]:
    """A browser with a new profile, in a window of that size, started with these switches of
    Chromium besides.

    Raises:
        RuntimeError: there is none on this machine.
    """
    executable = find_browser()
    if executable is None:
        raise RuntimeError(NO_BROWSER)
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=executable,
            args=[*_QUIET, *switches],
            viewport={"width": width_px, "height": height_px},
            env={**os.environ, "LANG": "C.UTF-8"},
            **context,
        )
        try:
            yield browser
        finally:
            browser.close()
