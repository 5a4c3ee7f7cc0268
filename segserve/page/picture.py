"""Gradio's image input, but the uploaded file is passed on unchanged."""

from abc import ABCMeta
from pathlib import Path
from typing import Any

import gradio as gr


def _as_dropped(picture: gr.Image, payload: Any) -> Path | None:  # noqa: ANN401 - differs between versions
    """Returns the uploaded file without decoding it, because the server's error messages are better
    than Gradio's.

    Returns None for a path outside the upload folder. Gradio does not check the path if the request
    does not declare it as a file.
    """
    if not payload or not payload.path:
        return None
    file = Path(payload.path).resolve()
    return file if file.is_relative_to(Path(picture.GRADIO_CACHE).resolve()) else None


def _block_name(_: gr.Image) -> str:
    return "image"  # the browser component


# This bypasses Gradio's metaclass, because that would write a .pyi file next to this module.
Picture: type[gr.Image] = ABCMeta.__new__(
    type(gr.Image),
    "Picture",
    (gr.Image,),
    {"preprocess": _as_dropped, "get_block_name": _block_name},
)
