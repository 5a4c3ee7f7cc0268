"""The place to drop a picture: Gradio's, but the file goes on just as it was dropped."""

from abc import ABCMeta
from pathlib import Path
from typing import Any

import gradio as gr


def _as_dropped(picture: gr.Image, payload: Any) -> Path | None:  # noqa: ANN401 - Gradio's type is another in every version
    """The file, not decoded: the server says better than Gradio what is wrong with it. None where it was not dropped
    here: Gradio looks at no path of a request that does not call itself a file's.
    """
    if not payload or not payload.path:
        return None
    file = Path(payload.path).resolve()
    return file if file.is_relative_to(Path(picture.GRADIO_CACHE).resolve()) else None


def _block_name(_: gr.Image) -> str:
    return "image"  # what draws it in the browser


# Made past Gradio's own metaclass, which would write a .pyi file beside this one.
Picture: type[gr.Image] = ABCMeta.__new__(
    type(gr.Image), "Picture", (gr.Image,), {"preprocess": _as_dropped, "get_block_name": _block_name}
)
