"""Converts TorchServe's own failures to errors that say what to do. TorchServe reports them in
Java's terms.
"""

import json
import logging

from ..runtime.errors import BadRequestError, InternalError, OverloadedError, UnavailableError

logger = logging.getLogger("segserve.gateway")

_FORBIDDEN = 403  # with a valid token, TorchServe's status for some paths that it cannot parse
_UNREADABLE = frozenset(
    {"ErrorDataDecoderException", "IllegalArgumentException", "UnsupportedCharsetException"}
    | {"ArrayIndexOutOfBoundsException", "StringIndexOutOfBoundsException"}
)
"""Java's exceptions for invalid paths and forms."""


def raise_for_failure(status: int, content: bytes) -> None:
    """Raises an error if TorchServe itself failed at a prediction.

    The handler's errors have another format. TorchServe's other errors (no such model, a bad token)
    have another status.

    Raises:
        OverloadedError: the queue is full, or no worker is ready.
        UnavailableError: the worker that had the request is gone. TorchServe reports a 500 or a
            507, depending on which of its threads is first.
        BadRequestError: TorchServe cannot parse the path or the form.
        InternalError: any other failure.
    """
    kind = _type_of(content) if status >= InternalError.status or status == _FORBIDDEN else None
    match kind:
        case None:
            return
        case "ServiceUnavailableException":
            raise OverloadedError(
                "as many requests wait as may, or no worker is ready; send it again later"
            )
        case "InternalServerException":
            raise UnavailableError("the process that had this request is gone; send it again")
    logger.warning("TorchServe failed at a request: %s", content.decode(errors="replace"))
    if kind in _UNREADABLE:
        raise BadRequestError(
            "the path or the form cannot be read; send the image as the body, with a type of its "
            "own such as "
            "image/jpeg, or as the part 'data' of a form"
        )
    raise InternalError("the server failed at this request; its log says why")


def _type_of(content: bytes) -> object:
    """The type of an error in the format of TorchServe's frontend; None for any other content."""
    try:
        document = json.loads(content)
    except ValueError:
        return None
    return document.get("type") if isinstance(document, dict) else None
