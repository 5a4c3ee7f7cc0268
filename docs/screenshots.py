"""Takes the pictures of the page that the documentation shows: `python -m docs.screenshots`."""

import sys
import tempfile
from contextlib import chdir
from pathlib import Path

from playwright.sync_api import Page, expect

from segserve.archive import build_archive
from segserve.gateway.background import SERVE_DIR, Server
from segserve.page.launch import page_served
from segserve.page.server import PageServer
from segserve.resources import resource
from tests.browser import open_browser

_SIZES_PX = {"page.jpg": (1280, 820), "page-phone.jpg": (360, 780)}
_QUALITY = 88
_WAIT_MS = 60_000
_STEP_MS = 500  # for what moves to come to rest


def main() -> None:
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        archive = build_archive(resource("model/embedded"), Path(folder))
        with chdir(folder), Server.start([archive], SERVE_DIR) as server:
            server.wait_ready()
            with page_served(PageServer()) as url, open_browser() as browser:
                for name, (width_px, height_px) in _SIZES_PX.items():
                    page = browser.new_page()
                    page.set_viewport_size({"width": width_px, "height": height_px})
                    page.goto(url)
                    _segment(page)
                    page.screenshot(path=here / name, type="jpeg", quality=_QUALITY, full_page=True)
                    sys.stdout.write(
                        f"{here / name}  {(here / name).stat().st_size / 1000:.0f} kB\n"
                    )
                    page.close()


def _segment(page: Page) -> None:
    """Twice, as the first response after a start takes longer than later ones; then points
    at the picture.
    """
    page.get_by_role("button", name="A cat").click()
    stage, steps = page.locator("[data-part=stage]"), page.locator("[data-part=steps]")
    stage.wait_for(timeout=_WAIT_MS)
    first = steps.inner_text()
    page.get_by_role("button", name="A person").click()
    expect(steps).not_to_have_text(first, timeout=_WAIT_MS)
    page.wait_for_timeout(_STEP_MS)
    stage.hover()
    page.wait_for_timeout(_STEP_MS)


if __name__ == "__main__":
    main()
