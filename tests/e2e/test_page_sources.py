"""Where the page's pictures come from, in a real Chromium: its camera, its clipboard, and files
that are dropped.
"""

import base64
import io

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from segserve.page.launch import page_served
from segserve.page.server import PageServer
from tests.browser import open_browser
from tests.e2e.test_page import CAT_WH, RESPONSE_MS, color_at, drop, reported, shown

pytestmark = pytest.mark.filterwarnings("ignore:::gradio")

CAMERA_WH = (640, 480)
CAT, PERSON = 8, 15
PERMISSIONS = ("camera", "clipboard-read", "clipboard-write")


@pytest.fixture(scope="module")
def url(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with page_served(PageServer()) as url:
            yield url


@pytest.fixture(scope="module")
def camera(photographs, tmp_path_factory):
    """What Chromium plays for its camera: a film of the cat."""
    with Image.open(io.BytesIO(photographs["chelsea"])) as picture:
        frame = io.BytesIO()
        picture.resize(CAMERA_WH).save(frame, "JPEG", quality=95)
    film = tmp_path_factory.mktemp("camera") / "cat.mjpeg"
    film.write_bytes(2 * frame.getvalue())
    return film


@pytest.fixture(scope="module")
def browser(camera):
    switches = ("--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={camera}")
    with open_browser(switches=switches) as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    """The page of somebody who allows the camera and the clipboard."""
    browser.grant_permissions(PERMISSIONS, origin=url)
    page = browser.new_page()
    page.set_default_timeout(RESPONSE_MS)
    page.goto(url)
    page.get_by_role("button", name="A cat").wait_for()
    page.bring_to_front()
    yield page
    page.close()


def deny(page: Page) -> None:
    """Denies every later request for a permission."""
    page.context.clear_permissions()
    page.context.grant_permissions([], origin=page.url)


def found(page: Page, class_id: int) -> None:
    expect(page.locator(f"[data-part=result] tr[data-class='{class_id}']")).to_be_visible(
        timeout=RESPONSE_MS
    )


def copy_picture(page: Page, content: bytes) -> None:
    script = (
        "async (url) => navigator.clipboard.write("
        "[new ClipboardItem({ 'image/png': await (await fetch(url)).blob() })])"
    )
    page.evaluate(script, f"data:image/png;base64,{base64.b64encode(content).decode()}")


def copy_words(page: Page, words: str) -> None:
    page.evaluate("(words) => navigator.clipboard.writeText(words)", words)


def paste_by_button(page: Page) -> None:
    page.get_by_role("button", name="Paste from clipboard").click()


def paste_by_keyboard(page: Page) -> None:
    page.keyboard.press("Control+V")


def drag_and_drop(page: Page, file) -> None:
    """As the desktop does it: Chromium itself finds what lies under the pointer, and reads the
    file.
    """
    box = page.locator("#picture").bounding_box()
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    session = page.context.new_cdp_session(page)
    for step in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        session.send("Input.dispatchDragEvent", {"type": step, **place, "data": data})


def open_camera(page: Page) -> None:
    page.get_by_role("button", name="Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()


def test_picture_taken_with_the_camera_shows_its_classes(page):
    open_camera(page)
    page.get_by_role("button", name="capture photo").click()
    shown(page)
    found(page, CAT)
    colors = page.locator("[data-part=colors]")
    assert colors.evaluate("node => [node.width, node.height]") == list(CAMERA_WH)
    assert color_at(page, CAMERA_WH[0] // 2, CAMERA_WH[1] // 2) == [255, 0, 0, 255]


def test_camera_that_is_denied_is_reported_and_an_upload_works(page, photographs):
    deny(page)
    open_camera(page)
    assert "address bar" in reported(page, "The camera cannot be used")
    page.get_by_role("button", name="Upload file").click()
    drop(page, photographs["chelsea"], "chelsea.png")
    found(page, CAT)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_camera_that_is_denied_first_and_then_allowed_takes_a_picture(page, url):
    deny(page)
    open_camera(page)
    reported(page, "The camera cannot be used")
    page.context.grant_permissions(PERMISSIONS, origin=url)
    page.get_by_text("Click to Access Webcam").click()
    page.get_by_role("button", name="capture photo").wait_for()
    expect(page.get_by_role("alert")).to_be_hidden()
    page.get_by_role("button", name="capture photo").click()
    found(page, CAT)


@pytest.mark.parametrize(
    "paste",
    [pytest.param(paste_by_button, id="button"), pytest.param(paste_by_keyboard, id="keyboard")],
)
def test_picture_pasted_shows_its_classes(page, photographs, paste):
    copy_picture(page, photographs["chelsea"])
    paste(page)
    shown(page)
    found(page, CAT)
    assert color_at(page, *CAT_WH) == [255, 0, 0, 255]


def test_clipboard_that_is_denied_is_reported_and_the_keyboard_pastes(page, photographs):
    copy_picture(page, photographs["chelsea"])
    deny(page)
    paste_by_button(page)
    assert "Ctrl+V" in reported(page, "There is no picture from the clipboard")
    paste_by_keyboard(page)
    found(page, CAT)
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize(
    "paste",
    [pytest.param(paste_by_button, id="button"), pytest.param(paste_by_keyboard, id="keyboard")],
)
def test_clipboard_without_a_picture_is_reported(page, paste):
    copy_words(page, "no picture")
    paste(page)
    assert "Copy a picture" in reported(page, "There is no picture from the clipboard")


def test_words_pasted_beside_a_response_leave_it_as_it_is(page, photographs):
    drop(page, photographs["chelsea"], "chelsea.png")
    shown(page)
    copy_words(page, "no picture")
    paste_by_keyboard(page)
    reported(page, "There is no picture from the clipboard")
    found(page, CAT)


def test_words_pasted_into_a_field_are_words(page):
    copy_words(page, "dog")
    page.get_by_role("button", name="Options").click()
    field = page.get_by_label("Classes", exact=True).first
    field.click()
    paste_by_keyboard(page)
    expect(field).to_have_value("dog")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_file_dropped_shows_its_classes(page, folder):
    drag_and_drop(page, folder / "cat.png")
    shown(page)
    found(page, CAT)
    assert color_at(page, *CAT_WH) == [255, 0, 0, 255]


def test_file_dropped_that_is_no_picture_is_reported(page, tmp_path):
    (tmp_path / "words.txt").write_text("no picture")
    drag_and_drop(page, tmp_path / "words.txt")
    assert "another file" in reported(page, "This file is no picture")


def test_file_dropped_onto_a_picture_takes_its_place(page, folder):
    drag_and_drop(page, folder / "cat.png")
    found(page, CAT)
    drag_and_drop(page, folder / "photos" / "trip" / "astronaut.png")
    found(page, PERSON)


def test_picture_pasted_onto_a_picture_takes_its_place(page, photographs):
    drop(page, photographs["chelsea"], "chelsea.png")
    found(page, CAT)
    copy_picture(page, photographs["astronaut"])
    paste_by_keyboard(page)
    found(page, PERSON)
