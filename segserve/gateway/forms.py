"""Rejects forms that name a part twice: the engines would keep one of them without a word."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ..runtime.errors import BadRequestError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


async def distinct_parts(body: AsyncIterable[bytes], content_type: str) -> AsyncIterator[bytes]:
    """Yields the chunks of a form's body unchanged, as they arrive. A form that cannot be parsed is
    the engine's concern.

    Raises:
        BadRequestError: a second part has the name of an earlier one.
    """
    names = _PartNames(content_type)
    async for chunk in body:
        names.read(chunk)
        yield chunk


class _PartNames:
    """Reads the names of a form's parts from its chunks."""

    def __init__(self, content_type: str) -> None:
        self._seen: set[bytes] = set()
        self._field, self._value = bytearray(), bytearray()
        self._parser = self._new_parser(content_type)

    def _new_parser(self, content_type: str) -> MultipartParser | None:
        """None for a form without a valid boundary."""
        _, options = parse_options_header(content_type)
        callbacks: MultipartCallbacks = {
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._on_header_end,
        }
        try:
            return MultipartParser(options.get(b"boundary", b""), callbacks)
        except FormParserError:
            return None

    def read(self, chunk: bytes) -> None:
        if self._parser is None:
            return
        try:
            self._parser.write(chunk)
        except FormParserError:
            self._parser = None

    def _on_header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._value))
            name = options.get(b"name", b"")
            if name in self._seen:
                raise BadRequestError(
                    f"the form has two parts {name.decode('utf-8', 'replace')!r:.40}; send one "
                    "image a request, and each option once"
                )
            self._seen.add(name)
        self._field.clear()
        self._value.clear()
