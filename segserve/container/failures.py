"""Where TorchServe itself failed: in its words, which are Java's, nobody is told what to do, nor when to come again."""

import json
import logging

from ..runtime.errors import BadRequestError, InternalError, OverloadedError, UnavailableError

logger = logging.getLogger("segserve.door")

_FORBIDDEN = 403  # where the token is right, TorchServe's word for some paths that it cannot read
_UNREADABLE = frozenset(
    {"ErrorDataDecoderException", "IllegalArgumentException", "UnsupportedCharsetException"}
    | {"ArrayIndexOutOfBoundsException", "StringIndexOutOfBoundsException"}
)
"""What Java throws at paths and forms."""


def raise_for_failure(status: int, content: bytes) -> None:
    """Returns but where TorchServe itself failed at a prediction: its words are Java's, and never when to come again.

    The handler's failures have another form, and its refusals (no such model, a bad token) another status.

    Raises:
        OverloadedError: its queue is full.
        UnavailableError: the worker that had the request is gone, a 500 or a 507 by whichever of its threads is first.
        BadRequestError: it cannot read the path, or the form.
        InternalError: anything else.
    """
    kind = _type_of(content) if status >= InternalError.status or status == _FORBIDDEN else None
    match kind:
        case None:
            return
        case "ServiceUnavailableException":
            raise OverloadedError("as many requests wait as may, or no worker is ready; send it again later")
        case "InternalServerException":
            raise UnavailableError("the process that had this request is gone; send it again")
    logger.warning("TorchServe failed at a request: %s", content.decode(errors="replace"))
    if kind in _UNREADABLE:
        raise BadRequestError(
            "the path or the form cannot be read; send the image as the body, with a type of its own such as "
            "image/jpeg, or as the part 'data' of a form"
        )
    raise InternalError("the server failed at this request; its log says why")


def _type_of(content: bytes) -> object:
    """Of an error as TorchServe's front end writes it; None of any other."""
    try:
        document = json.loads(content)
    except ValueError:
        return None
    return document.get("type") if isinstance(document, dict) else None
