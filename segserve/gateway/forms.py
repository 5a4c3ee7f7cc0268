"""Rejects forms that name a part twice: the engines would keep one of them without a word."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..runtime.errors import BadRequestError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


async def distinct_parts(body: AsyncIterable[bytes], content_type: str) -> AsyncIterator[bytes]:
    """Yields a form's body unchanged. A form that cannot be parsed is the engine's concern.

    Raises:
        BadRequestError: a second part has the name of an earlier one.
    """
    parser = _parser_of_names(content_type)
    async for chunk in body:
        try:
            if parser is not None:
                parser.write(chunk)
        except FormParserError:
            parser = None
        yield chunk


def _parser_of_names(content_type: str) -> MultipartParser | None:
    """A parser that rejects the second part of a name; None for a form without a valid boundary."""
    seen: set[bytes] = set()
    field, value = bytearray(), bytearray()

    def on_header_end() -> None:
        if field.lower() == b"content-disposition":
            name = parse_options_header(bytes(value))[1].get(b"name", b"")
            if name in seen:
                raise BadRequestError(
                    f"the form has two parts {name.decode('utf-8', 'replace')!r:.40}; send one "
                    "image a request, and each option once"
                )
            seen.add(name)
        field.clear()
        value.clear()

    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    callbacks: MultipartCallbacks = {
        "on_header_field": lambda data, start, end: field.extend(data[start:end]),
        "on_header_value": lambda data, start, end: value.extend(data[start:end]),
        "on_header_end": on_header_end,
    }
    try:
        return MultipartParser(boundary, callbacks)
    except FormParserError:
        return None
