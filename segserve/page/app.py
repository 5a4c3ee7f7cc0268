"""The layout of the page, and the events of its controls."""

from abc import ABCMeta
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from ..resources import PHOTOGRAPHS, sample_photograph
from ..runtime.encode.overlay import DEFAULT_OPACITY
from ..runtime.record import BACKGROUND
from .server import IN_BROWSER, PageResponse, PageServer, Problem


def _as_dropped(picture: gr.Image, payload: Any) -> Path | None:  # noqa: ANN401 - differs between versions
    """Returns the uploaded file undecoded, because the server's error messages are better than
    Gradio's; None for a path outside the upload folder, which Gradio does not check if the request
    does not declare it as a file.
    """
    if not payload or not payload.path:
        return None
    file = Path(payload.path).resolve()
    return file if file.is_relative_to(Path(picture.GRADIO_CACHE).resolve()) else None


# This bypasses Gradio's metaclass, because that would write a .pyi file next to this module.
Picture: type[gr.Image] = ABCMeta.__new__(
    type(gr.Image),
    "Picture",
    (gr.Image,),
    {"preprocess": _as_dropped, "get_block_name": lambda _: "image"},  # the browser's component
)

_ASSETS = Path(__file__).with_name("assets")
STYLES = (_ASSETS / "page.css", _ASSETS / "viewer.css")

_VIEWS = (
    ("One", "none"),
    ("With its mirror image", "flip"),
    ("Several sizes, mirrored", "multiscale"),
)
_THUMBNAIL_WH = (192, 192)
_UPLOADS_CHECKED_S, _UPLOADS_KEPT_S = 600, 3600
_AT_ONCE, _WAITING = 2, 16  # requests

# The viewer ends it with the next response. Gradio's own progress indicator announces the name of a
# missing translation to screen readers.
_BUSY = """(...values) => {
  if (values[0]) document.querySelector(".viewer").setAttribute("aria-busy", "true");
  return values;
}"""

_PRIVATE: dict[str, Any] = {"api_visibility": "private"}  # programs must use the server instead


class Controls(NamedTuple):
    """The controls of a request, in the order of `send`'s arguments."""

    picture: gr.Image
    model: gr.Dropdown
    classes: gr.Dropdown
    threshold: gr.Slider
    tiles: gr.Checkbox
    views: gr.Radio


def build_page(server: PageServer) -> gr.Blocks:
    """Builds the page. It keeps no state between requests; results stay in the browser."""
    page = gr.Blocks(
        title="segserve",
        analytics_enabled=False,
        delete_cache=(_UPLOADS_CHECKED_S, _UPLOADS_KEPT_S),
    )
    with page:
        address = gr.Markdown(elem_id="address")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=280):
                picture = Picture(
                    label="Picture",
                    sources=["upload", "clipboard", "webcam"],
                    height=280,
                    buttons=[],
                    elem_id="picture",
                )
                retry = gr.Button("Try again", variant="primary", elem_id="retry")
                _offer_examples(picture)
                with gr.Accordion("Options", open=False, elem_id="options"):
                    controls = _lay_out_controls(picture)
            with gr.Column(scale=3, min_width=280):
                viewer = _viewer()
        _wire(page, server, address, retry, controls, viewer)
        page.queue(max_size=_WAITING, default_concurrency_limit=_AT_ONCE, api_open=False)
    return page


def _lay_out_controls(picture: gr.Image) -> Controls:
    return Controls(
        picture,
        model=gr.Dropdown([], label="Model", allow_custom_value=True),
        classes=gr.Dropdown(
            [],
            label="Classes",
            info="Keep only these; none chosen keeps all.",
            multiselect=True,
            allow_custom_value=True,
        ),
        threshold=gr.Slider(
            0,
            1,
            value=0,
            step=0.01,
            label="Threshold",
            info="Pixels less certain than this become background.",
            buttons=[],
        ),
        tiles=gr.Checkbox(
            label="Tiles", info="Look at a large picture piece by piece, at its own resolution."
        ),
        views=gr.Radio(
            _VIEWS,
            value="none",
            label="Views",
            info="Average over more of them: slower, a little better.",
        ),
    )


def examples() -> dict[str, Path]:
    """The sample photographs by what they show; none if the extra `demo` is not installed."""
    try:
        return {what.capitalize(): sample_photograph(name) for name, what in PHOTOGRAPHS.items()}
    except FileNotFoundError:
        return {}


def _offer_examples(picture: gr.Image) -> None:
    """A button with a thumbnail for each sample photograph."""
    with TemporaryDirectory() as folder, gr.Row(elem_id="examples"):
        for what, file in examples().items():
            thumbnail = Path(folder, file.name)
            with Image.open(file) as photograph:
                photograph.thumbnail(_THUMBNAIL_WH)
                photograph.save(thumbnail)
            button = gr.Button(what, icon=thumbnail)  # copies the thumbnail
            button.click(partial(str, file), outputs=picture, show_progress="hidden", **_PRIVATE)


def _viewer() -> gr.HTML:
    html, *scripts = (
        (_ASSETS / name).read_text(encoding="utf-8")
        for name in ("viewer.html", "viewer.js", "sources.js")
    )
    return gr.HTML(
        label="Segmentation",
        html_template=html,
        js_on_load="\n".join(scripts),
        apply_default_css=False,
        elem_id="viewer",
        background=BACKGROUND,
        opacity=DEFAULT_OPACITY,
        problems=IN_BROWSER,
    )


def _wire(
    page: gr.Blocks,
    server: PageServer,
    address: gr.Markdown,
    retry: gr.Button,
    controls: Controls,
    viewer: gr.HTML,
) -> None:
    def send(
        picture: Path | None,
        model: str | None,
        classes: Sequence[str],
        threshold: float,
        tiles: bool,
        views: str,
    ) -> PageResponse | Problem | None:
        if picture is None:
            return None
        return server.send(
            picture,
            model=model,
            classes=classes or None,
            threshold=threshold,
            mode="slide" if tiles else "whole",
            tta=views,
        )

    def refresh_choices(model: str | None) -> tuple[str, Any, Any]:
        catalogue = server.catalogue(model)
        choices = gr.update(choices=list(catalogue.models), value=catalogue.model)
        heading = (
            "# What is in the picture?\nThe class of every pixel, by the server at "
            f"`{server.endpoint().url}`."
        )
        return heading, choices, gr.update(choices=list(catalogue.labels))

    surroundings: dict[str, Any] = {
        "inputs": controls.model,
        "outputs": [address, controls.model, controls.classes],
    }
    page.load(refresh_choices, **surroundings, show_progress="hidden", **_PRIVATE)
    options = controls[1:]
    requested = gr.on(
        [controls.picture.change, retry.click, *(option.input for option in options)],
        send,
        list(controls),
        viewer,
        js=_BUSY,
        show_progress="hidden",
        trigger_mode="always_last",  # replacing an image causes two changes
        **_PRIVATE,
    )
    requested.then(refresh_choices, **surroundings, show_progress="hidden", **_PRIVATE)
