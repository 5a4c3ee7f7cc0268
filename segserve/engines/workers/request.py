"""Converts an HTTP request to the row and the headers that TorchServe would pass to a handler."""

from collections.abc import AsyncIterable, Iterable
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, create_form_parser

from ...runtime.errors import BadRequestError, TooLargeError
from ...runtime.request import OPTION_HEADER_PREFIX

# Headers that TorchServe itself sets, and the one that is only for the gateway.
_NOT_PASSED_ON = {"describe", "explain", "authorization"}


async def read_body(chunks: AsyncIterable[bytes], *, max_bytes: int) -> bytes:
    """Reads the whole body.

    A body that is too large is not stored, but it is read to its end, so that the client gets to
    read the response.

    Raises:
        TooLargeError: the body has more than `max_bytes`.
    """
    body, size_bytes = bytearray(), 0
    async for chunk in chunks:
        size_bytes += len(chunk)
        if size_bytes > max_bytes:
            body.clear()
        else:
            body += chunk
    if size_bytes > max_bytes:
        raise TooLargeError(
            f"the request has {size_bytes} bytes, the limit is {max_bytes}; send a smaller image"
        )
    return bytes(body)


async def read_to_its_end(chunks: AsyncIterable[bytes]) -> None:
    """Reads a body and discards it."""
    async for _ in chunks:
        pass


def as_row(body: bytes, content_type: str) -> dict[str, bytes]:
    """The parts of a form by their names; any other body under the name `body`.

    Raises:
        BadRequestError: the form cannot be parsed.
    """
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        return {"body": body}
    row: dict[str, bytes] = {}

    def on_field(field: Field) -> None:
        row[_text(field.field_name)] = field.value or b""

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        row[_text(file.field_name)] = file.file_object.read()

    try:
        in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        parser = create_form_parser(
            {"Content-Type": content_type.encode("latin-1")}, on_field, on_file, in_memory
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise BadRequestError(
            f"the form cannot be read ({error}); expected multipart/form-data with a part 'data'"
        ) from error
    return row


def as_headers(raw: Iterable[tuple[bytes, bytes]], query: str) -> dict[str, str]:
    """Headers by their lower-case names. An option in the query becomes a header, unless a header
    sets it.

    Repeated values are joined by commas (RFC 9110, section 5.3).
    """
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        _add(options, f"{OPTION_HEADER_PREFIX}{name.lower()}", value)
    headers: dict[str, str] = {}
    for name_bytes, value_bytes in raw:
        _add(headers, name_bytes.decode("latin-1").lower(), value_bytes.decode("latin-1"))
    return {
        name: value for name, value in {**options, **headers}.items() if name not in _NOT_PASSED_ON
    }


def _add(headers: dict[str, str], name: str, value: str) -> None:
    headers[name] = f"{headers[name]}, {value}" if name in headers else value


def _text(name: bytes | None) -> str:
    return (name or b"").decode("utf-8", errors="replace")
