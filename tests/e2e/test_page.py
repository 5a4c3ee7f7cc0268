"""The page in a real Chromium, over a real server that it finds by itself."""

import io
import json
import os
import re
from urllib.parse import urlsplit

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect
from pycocotools.coco import COCO

from segserve.archive import build_archive
from segserve.client import SegmentationClient
from segserve.gateway import background as endpoint
from segserve.gateway.background import SERVE_DIR, Server
from segserve.page.launch import page_served
from segserve.page.server import PageServer
from tests.browser import NO_BROWSER, find_browser, open_browser
from tests.conftest import EMBEDDED

# Without a browser these tests are skipped with the reason; in CI its absence is a failure.
if find_browser() is None and os.environ.get("SEGSERVE_BROWSER") != "required":
    pytest.skip(NO_BROWSER, allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:::gradio")

RESPONSE_MS = 60_000  # the machine may be busy
CAT_WH = (225, 150)  # a pixel of chelsea well within the cat


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return build_archive(EMBEDDED, tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def folder(archive, tmp_path_factory):
    """The current folder, in which a server runs as `segserve serve` leaves it."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Server.start([archive], SERVE_DIR) as server:
            server.wait_ready()
            yield folder
            if (last := Server.running(SERVE_DIR)) is not None:  # a test has started it again
                last.stop()


@pytest.fixture(scope="module")
def url(folder):
    with page_served(PageServer()) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with open_browser(accept_downloads=True) as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    page = browser.new_page()
    page.set_default_timeout(RESPONSE_MS)
    page.goto(url)
    page.get_by_role("button", name="A cat").wait_for()
    yield page
    page.close()


@pytest.fixture(scope="module")
def cat(browser, url, photographs):
    """A page that shows the cat; tests that use it leave it so."""
    page = browser.new_page()
    page.set_default_timeout(RESPONSE_MS)
    page.goto(url)
    drop(page, photographs["chelsea"], "chelsea.png")
    shown(page)
    return page


@pytest.fixture(scope="module")
def expected(folder, photographs):
    """What the client says of the cat."""
    server = Server.running(SERVE_DIR)
    with SegmentationClient(server.inference_url, token=server.inference_token) as client:
        return client.segment(photographs["chelsea"])


def drop(page: Page, content: bytes, name: str) -> None:
    page.locator("#picture input[type=file]").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": content}
    )


def shown(page: Page) -> None:
    expect(page.locator("[data-part=result]")).to_be_visible(timeout=RESPONSE_MS)


def reported(page: Page, title: str) -> str:
    """Waits for a problem of that title, and returns its details."""
    expect(page.get_by_role("alert")).to_contain_text(title, timeout=RESPONSE_MS)
    return page.locator("[data-part=problem-detail]").inner_text()


def saved(page: Page, button: str) -> tuple[str, bytes]:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def color_at(page: Page, x: int, y: int) -> list[int]:
    """R, G, B and A of the colours that lie over a pixel of the picture."""
    script = (
        "([x, y]) => "
        "[...document.querySelector('[data-part=colors]').getContext('2d').getImageData(x, y, 1, "
        "1).data]"
    )
    return page.evaluate(script, [x, y])


def test_page_with_dropped_picture_shows_its_classes(cat, expected):
    for share in expected.classes:
        row = cat.locator(f"tr[data-class='{share.id}']")
        expect(row).to_contain_text(share.label)
        expect(row).to_contain_text(f"{100 * share.fraction:.1f} %")
    assert color_at(cat, *CAT_WH) == [255, 0, 0, 255]
    steps = cat.locator("[data-part=steps]").inner_text()
    assert steps.startswith("By deeplabv3 2.0 · ")
    assert "the network" in steps


def test_page_with_example_shows_its_classes(page):
    page.get_by_role("button", name="A person").click()
    shown(page)
    expect(page.locator("tr", has_text="person")).to_be_visible()


def test_page_sends_requests_to_its_own_server_alone(browser, url):
    page = browser.new_page()
    requested = []
    page.on("request", lambda request: requested.append(urlsplit(request.url)))
    page.goto(url)
    page.get_by_role("button", name="A cat").click()
    shown(page)
    page.close()
    assert len(requested) > 5
    assert {parts.netloc for parts in requested if parts.scheme not in ("data", "blob")} == {
        urlsplit(url).netloc
    }


def test_switch_and_opacity_change_the_colors_without_a_request(cat):
    requested = []
    cat.on("request", lambda request: requested.append(request.url))
    switch, slider = cat.get_by_role("switch", name="cat"), cat.get_by_label("Opacity")
    switch.press("Space")
    assert color_at(cat, *CAT_WH)[3] == 0
    switch.press("Space")
    assert color_at(cat, *CAT_WH)[3] == 255
    slider.press("Home")
    assert (
        cat.locator("[data-part=colors]").evaluate("node => getComputedStyle(node).opacity") == "0"
    )
    slider.fill("55")
    assert requested == []


def test_switch_on_a_vga_picture_takes_less_than_200_ms(page, photographs):
    with Image.open(io.BytesIO(photographs["chelsea"])) as picture:
        buffer = io.BytesIO()
        picture.resize((640, 480)).save(buffer, "PNG")
    drop(page, buffer.getvalue(), "vga.png")
    shown(page)
    script = (
        "() => { const began = performance.now(); document.querySelector('[data-switch]').click(); "
        "return performance.now() - began; }"
    )
    assert min(page.evaluate(script) for _ in range(4)) < 200


def test_pointer_over_the_picture_reports_the_class(cat):
    stage = cat.locator("[data-part=stage]")
    size = stage.bounding_box()
    stage.hover(position={"x": size["width"] / 2, "y": size["height"] / 2})
    expect(cat.get_by_role("status").filter(has_text="cat at")).to_have_text(
        re.compile("cat at 22[456], (149|150|151)")
    )
    expect(cat.locator("tr.pointed")).to_contain_text("cat")
    stage.hover(position={"x": size["width"] - 3, "y": size["height"] / 2})
    expect(cat.locator("tr.pointed")).to_contain_text("background")


def test_arrow_keys_on_the_picture_show_the_class(cat):
    stage = cat.locator("[data-part=stage]")
    cat.mouse.move(0, 0)
    stage.press("ArrowLeft")
    expect(cat.locator("[data-part=readout]")).to_contain_text(re.compile(r"^\w+ at \d+, \d+$"))
    expect(cat.locator("[data-part=pointer]")).to_be_visible()


def test_download_of_labels_is_the_label_map_of_the_client(cat, expected):
    name, content = saved(cat, "Label map")
    assert name == "chelsea-labels.png"
    with Image.open(io.BytesIO(content)) as labels:
        assert np.array_equal(np.asarray(labels), expected.label_map)
        assert labels.getpalette() == expected.to_image().getpalette()


def test_download_of_coco_is_read_by_pycocotools(cat, expected, tmp_path):
    name, content = saved(cat, "COCO JSON")
    assert name == "chelsea-coco.json"
    (tmp_path / name).write_bytes(content)
    coco = COCO(tmp_path / name)
    [cat_id] = coco.getCatIds(catNms=["cat"])
    [annotation] = coco.loadAnns(coco.getAnnIds(catIds=[cat_id]))
    assert np.array_equal(coco.annToMask(annotation), expected.mask_of("cat"))


def test_download_of_overlay_is_what_is_seen(cat, expected):
    cat.get_by_label("Opacity").fill("100")
    name, content = saved(cat, "Overlay")
    cat.get_by_label("Opacity").fill("55")
    assert name == "chelsea-overlay.png"
    with Image.open(io.BytesIO(content)) as overlay:
        pixels = np.asarray(overlay.convert("RGB"))
    of_cat = pixels[expected.mask_of("cat")]
    assert 0.9 < (of_cat == (255, 0, 0)).all(axis=1).mean() < 1  # the rest is outline and name


def test_options_reach_the_server(page, photographs):
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Classes", exact=True).first.click()
    page.get_by_role("option", name="dog", exact=True).click()
    drop(page, photographs["chelsea"], "chelsea.png")
    shown(page)
    assert page.locator("tbody tr[data-class='8']").count() == 0


def test_models_of_the_server_can_be_chosen(page):
    page.get_by_role("button", name="Options").click()
    expect(page.get_by_label("Model").first).to_have_value("deeplabv3")


def png(size_wh: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size_wh).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        pytest.param(b"this is no picture", "JPEG, PNG, WEBP", id="text"),
        pytest.param(png((300, 200))[:-40], "send the file whole", id="truncated"),
        pytest.param(png((5000, 4000)), "it down before sending", id="too-large"),
    ],
)
def test_picture_that_is_rejected_is_reported_in_plain_words(page, content, detail):
    drop(page, content, "broken.png")
    assert detail in reported(page, "The server cannot segment this picture")
    assert "Traceback" not in page.locator("body").inner_text()


def test_wrong_token_is_reported_in_plain_words(browser, folder, photographs, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # restores that of the other page at the end
    server = Server.running(SERVE_DIR)
    with page_served(PageServer(server.inference_url, "wrong")) as url:
        page = browser.new_page()
        page.goto(url)
        drop(page, photographs["chelsea"], "chelsea.png")
        assert "--token" in reported(page, "The server rejects the token")
        page.close()


def test_result_is_the_only_picture(cat):
    expect(cat.locator("#picture img")).to_be_hidden()
    expect(cat.locator("[data-part=picture]")).to_be_visible()


def test_slider_shows_the_picture_before_and_after(cat):
    slider, colors = cat.get_by_label("Before / after"), cat.locator("[data-part=colors]")
    clipped = "node => getComputedStyle(node).clipPath"
    slider.fill("40")
    assert colors.evaluate(clipped) == "inset(0px 0px 0px 40%)"
    slider.fill("0")
    assert "40%" not in colors.evaluate(clipped)


def test_option_is_sent_when_it_changes(page, photographs):
    drop(page, photographs["chelsea"], "chelsea.png")
    shown(page)
    expect(page.locator("tr[data-class='8']")).to_be_visible()
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Classes", exact=True).first.click()
    page.get_by_role("option", name="dog", exact=True).click()
    expect(page.locator("tr[data-class='8']")).to_have_count(0, timeout=RESPONSE_MS)


def test_screen_reader_is_never_given_a_raw_key(page, photographs):
    page.evaluate(
        """() => {
          window.texts = [];
          const note = () => window.texts.push(document.body.textContent);
          new MutationObserver(note).observe(document.body, { subtree: true, childList: true });
        }"""
    )
    drop(page, photographs["chelsea"], "chelsea.png")
    shown(page)
    texts = page.evaluate("window.texts")
    assert len(texts) > 1
    assert [text for text in texts if re.search(r"\b(common|image|upload_text)\.\w+", text)] == []


def overflow_px(page: Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


def test_phone_width_needs_no_horizontal_scrolling(page, photographs):
    page.set_viewport_size({"width": 360, "height": 780})
    assert overflow_px(page) == 0
    drop(page, photographs["chelsea"], "chelsea.png")
    shown(page)
    expect(page.locator("[data-part=stage]")).to_be_in_viewport(ratio=1)
    page.get_by_role("button", name="Options").click()
    expect(page.get_by_label("Threshold").first).to_be_visible()
    assert overflow_px(page) == 0


def test_phone_readout_says_tap(browser, url, photographs):
    page = browser.new_page()
    page.context.new_cdp_session(page).send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    page.goto(url)
    page.get_by_role("button", name="A cat").wait_for(timeout=RESPONSE_MS)
    drop(page, photographs["chelsea"], "chelsea.png")
    shown(page)
    expect(page.locator("[data-part=readout]")).to_have_text("Tap the picture to see a class.")
    page.close()


FOCUSED = """() => {
  const node = document.activeElement;
  const label = node.getAttribute("aria-label") || node.labels?.[0]?.innerText || node.innerText ||
  ""; return { name: label.trim(), outline: getComputedStyle(node).outlineStyle };
}"""


def test_keyboard_alone_reaches_every_control_and_shows_where_it_is(page, photographs):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name=re.compile("upload", re.IGNORECASE)).first.press("Enter")
    chooser.value.set_files(
        {"name": "chelsea.png", "mimeType": "image/png", "buffer": photographs["chelsea"]}
    )
    shown(page)
    page.get_by_role("button", name="Options").press("Enter")
    page.get_by_role("button", name="Upload file").focus()
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUSED))
    wanted = [
        "^A cat$",
        "^A person$",
        "^Options",
        "^Model$",
        "^Classes$",
        "^range slider for Threshold$",
        "^Tiles",
        "^One$",
    ]
    wanted += [
        "^The picture",
        "^Before / after",
        "^Opacity",
        "^cat$",
        "^Overlay$",
        "^Label map",
        "^COCO JSON$",
    ]
    places = [
        next((i for i, focused in enumerate(seen) if re.search(want, focused["name"])), None)
        for want in wanted
    ]
    assert None not in places, dict(zip(wanted, places, strict=True))
    assert places == sorted(places)
    assert {seen[place]["outline"] for place in places} == {"solid"}


@pytest.mark.parametrize(
    "scheme", [pytest.param("light", id="light"), pytest.param("dark", id="dark")]
)
def test_page_keeps_the_accessibility_rules_of_axe(browser, url, scheme):
    page = browser.new_page()
    page.emulate_media(color_scheme=scheme)
    page.goto(url)
    page.get_by_role("button", name="A cat").click()
    shown(page)
    page.get_by_role("button", name="Options").click()
    expect(page.get_by_label("Threshold").first).to_be_visible()
    report = Axe().run(page).response
    page.close()
    assert {"color-contrast", "label"} <= {rule["id"] for rule in report["passes"]}
    assert {
        rule["id"]: [node["html"] for node in rule["nodes"]] for rule in report["violations"]
    } == {}


def test_page_offers_programs_nothing(page, url):
    info = page.request.get(f"{url}gradio_api/info")
    assert json.loads(info.text())["named_endpoints"] == {}
    assert page.request.get(f"{url}openapi.json").status in (403, 404)
    assert page.request.get(url, headers={"Host": "attacker.example"}).status == 400


def test_page_works_again_when_the_server_is_back(
    archive, page, photographs, silent_url, monkeypatch
):
    monkeypatch.setattr(
        endpoint, "DEFAULT_URL", silent_url
    )  # at the usual one somebody's server may run
    Server.running(SERVE_DIR).stop()
    drop(page, photographs["chelsea"], "chelsea.png")
    assert "segserve serve" in reported(page, "No server responds")
    Server.start([archive], SERVE_DIR).wait_ready()  # with a token and maybe ports of its own
    page.get_by_role("button", name="Try again").click()
    shown(page)
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
