"""The example page in a real Chromium: the model computes in the browser."""

import io
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect

from examples.browser.build import build
from segserve.local import LocalSegmenter
from tests.browser import NO_BROWSER, find_browser, open_browser
from tests.conftest import EMBEDDED

# Without a browser these tests are skipped with the reason; in CI its absence is a failure.
if find_browser() is None and os.environ.get("SEGSERVE_BROWSER") != "required":
    pytest.skip(NO_BROWSER, allow_module_level=True)

SEGMENT_MS = 60_000  # the machine may be busy

KEEP_LABELS = """
document.addEventListener("segmented", ({ detail }) => {
  window.segmentation = { ...detail, labels: [...detail.labels] };
});
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    build(str(EMBEDDED), folder)
    return folder


@pytest.fixture(scope="module")
def url(built) -> Iterator[str]:
    handler = partial(Quiet, directory=str(built))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(url, request) -> Iterator[Page]:
    with open_browser(width_px=request.param) as browser:
        page = browser.pages[0]
        page.add_init_script(KEEP_LABELS)
        page.goto(url)
        yield page


def choose(page: Page, name: str, content: bytes) -> None:
    page.get_by_label("Choose a picture").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": content}
    )


def test_page_gives_the_classes_of_the_server(page, photographs):
    segmenter = LocalSegmenter(EMBEDDED)
    for name, label in (("chelsea", "cat"), ("astronaut", "person")):
        choose(page, f"{name}.png", photographs[name])
        expect(page.get_by_role("status")).to_contain_text(f"{name}.png: ", timeout=SEGMENT_MS)
        expect(page.get_by_role("rowheader", name=label)).to_be_visible()
        got = page.evaluate("window.segmentation")
        labels = np.reshape(got["labels"], (got["height"], got["width"]))
        expected = segmenter.segment(photographs[name]).label_map
        assert (labels == expected).mean() > 0.995
    assert Axe().run(page).violations_count == 0
    overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0


@pytest.fixture
def desktop(url) -> Iterator[Page]:
    with open_browser() as browser:
        browser.pages[0].goto(url)
        yield browser.pages[0]


def test_page_says_what_is_no_picture_and_takes_the_next_one(desktop, photographs):
    choose(desktop, "notes.png", b"text")
    expect(desktop.get_by_role("alert")).to_have_text(
        "notes.png is not a picture that this browser can read."
    )
    choose(desktop, "cat.png", photographs["chelsea"])
    expect(desktop.get_by_role("rowheader", name="cat")).to_be_visible(timeout=SEGMENT_MS)
    expect(desktop.get_by_role("alert")).to_be_hidden()


def test_page_scales_a_large_picture_and_says_so(desktop, photographs):
    file = io.BytesIO()
    Image.open(io.BytesIO(photographs["chelsea"])).resize((3000, 2000)).save(file, "PNG")
    choose(desktop, "large.png", file.getvalue())
    scaled = desktop.get_by_text("It was scaled to 2449 x 1632")
    expect(scaled).to_be_visible(timeout=2 * SEGMENT_MS)


def test_page_without_its_model_says_what_is_missing(built, tmp_path):
    for path in built.iterdir():
        if path.name != "model.onnx":
            (tmp_path / path.name).symlink_to(path)
    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with open_browser() as browser:
            browser.pages[0].goto(f"http://127.0.0.1:{server.server_port}")
            problem = browser.pages[0].get_by_role("alert")
            expect(problem).to_contain_text("model.onnx cannot be loaded (status 404)")
        server.shutdown()
