"""Explains errors in plain words: the title says what happened, the detail says what to do."""

from typing import NamedTuple, TypedDict

from ..client import (
    AuthenticationError,
    MalformedResponseError,
    ResponseError,
    TimedOutError,
    UnknownModelError,
    UnreachableError,
)


class Problem(TypedDict):
    """The viewer's document for an error."""

    title: str
    detail: str


class _Words(NamedTuple):
    title: str
    advice: str


_BY_KIND: tuple[tuple[type[Exception], _Words], ...] = (
    (
        UnreachableError,
        _Words("No server answers", "Start one with `segserve serve`, then press Segment again."),
    ),
    (TimedOutError, _Words("The server took too long", "Try a smaller picture, or fewer passes.")),
    (
        AuthenticationError,
        _Words(
            "The server refuses the token", "Start the page again with --token or $SEGSERVE_TOKEN."
        ),
    ),
    (
        UnknownModelError,
        _Words("The server has no such model", "Choose another one under Options."),
    ),
    (
        MalformedResponseError,
        _Words("This is not a segmentation server", "Look at the address that the page was given."),
    ),
    (
        FileNotFoundError,
        _Words("The picture is no longer here", "Drop it again: pictures are kept for an hour."),
    ),
)
_BY_CODE = {
    "image_truncated": _Words("The file ends too early", "Save or copy the picture once more."),
    "image_corrupt": _Words("The file is damaged", "Try another copy of the picture."),
    "image_unsupported": _Words("This file is no picture that can be read", "Choose another file."),
    "image_too_large": _Words("The picture is too large", "Make it smaller."),
    "request_too_large": _Words("The file is too large", "Make it smaller."),
    "answer_too_large": _Words(
        "The answer would be too large", "Choose another encoding, or a smaller picture."
    ),
    "cost_too_high": _Words(
        "This would take too long", "Turn off tiles, or average over fewer views."
    ),
    "bad_option": _Words("The server does not know this option", "Change it under Options."),
    "out_of_memory": _Words("The server has no memory left", "Try a smaller picture."),
    "ServiceUnavailableException": _Words(
        "The server is busy", "Wait a moment, then press Segment again."
    ),
}
# For the browser's script: by the image's source and the browser's error name, "" for any other
# error.
IN_BROWSER: dict[str, dict[str, Problem]] = {
    "camera": {
        "NotAllowedError": {
            "title": "The browser may not use the camera",
            "detail": "Allow it for this page in the browser's address bar, or upload a picture.",
        },
        "NotFoundError": {
            "title": "No camera was found",
            "detail": "Connect one, or upload a picture.",
        },
        "": {
            "title": "The camera cannot be used",
            "detail": "Close other programs that may be using it, or upload a picture.",
        },
    },
    "clipboard": {
        "NotAllowedError": {
            "title": "The browser may not read the clipboard",
            "detail": "Press Ctrl+V (Command+V on a Mac), which needs no permission, "
            "or upload a picture.",
        },
        "": {
            "title": "There is no picture on the clipboard",
            "detail": "Copy a picture, not its file's name or address, or upload it.",
        },
    },
    "drop": {"": {"title": "This file is no picture", "detail": "Choose another file."}},
}
_OTHERWISE = _Words("This did not work", "")


def in_plain_words(error: Exception) -> Problem:
    """Converts an error to a problem. The server's message is included, because it contains the
    numbers.
    """
    title, advice = _words(error)
    message = (
        error.message
        if isinstance(error, ResponseError)
        else ""
        if isinstance(error, OSError)
        else str(error)
    )
    sentence = f"{message[:1].upper()}{message[1:].rstrip('.')}." if message else ""
    return {"title": title, "detail": " ".join(part for part in (advice, sentence) if part)}


def _words(error: Exception) -> _Words:
    for kind, words in _BY_KIND:
        if isinstance(error, kind):
            return words
    return _BY_CODE.get(error.code, _OTHERWISE) if isinstance(error, ResponseError) else _OTHERWISE
