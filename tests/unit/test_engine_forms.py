"""Names of a form's parts, read from the chunks of its body."""

import asyncio

import pytest

from segserve.engines.torchserve import distinct_parts
from segserve.runtime.errors import BadRequestError

TYPE = "multipart/form-data; boundary=xyz"


def part(name, content=b"1"):
    return (
        b"--xyz\r\nContent-Type: text/plain\r\ncontent-disposition: form-data; name="
        + f'"{name}"'.encode()
        + b"\r\n\r\n"
        + content
        + b"\r\n"
    )


def passed_on(body, size, content_type=TYPE):
    async def chunks():
        for start in range(0, len(body), size):
            yield body[start : start + size]

    async def joined():
        return b"".join([chunk async for chunk in distinct_parts(chunks(), content_type)])

    return asyncio.run(joined())


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_distinct_parts_pass_unchanged(size):
    body = part("data", bytes(range(256)) * 20 + b'--xy name="data"') + part("mask") + b"--xyz--"
    assert passed_on(body, size) == body


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_distinct_parts_a_second_part_of_a_name_raises(size):
    with pytest.raises(BadRequestError, match="the form has two parts with the same name"):
        passed_on(part("data") + part("mask") + part("data") + b"--xyz--", size)


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", f"a; boundary={'x' * 5000}", ""],
    ids=["none", "empty", "long", "no type"],
)
def test_distinct_parts_without_a_boundary_pass_unchanged(content_type):
    body = part("data") * 2
    assert passed_on(body, 50, content_type) == body


def test_distinct_parts_what_cannot_be_parsed_passes_unchanged():
    assert passed_on(b"no boundary at all", 5) == b"no boundary at all"
