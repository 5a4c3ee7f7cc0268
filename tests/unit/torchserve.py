"""Requests as a worker of TorchServe gets them: packed like its front end packs them, read by its
own code.
"""

import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path

from ts.context import Context
from ts.protocol.otf_message_handler import retrieve_msg
from ts.service import Service


@dataclass(frozen=True)
class Part:
    """A part of a form, or the body: that is a part `body`."""

    content: bytes
    name: str = "body"
    content_type: str = ""


@dataclass(frozen=True)
class Request:
    parts: tuple[Part, ...]
    headers: dict[str, str] = field(default_factory=dict)


def raw(content: bytes, content_type: str = "application/octet-stream", **headers: str) -> Request:
    """A request whose body is `content`; in the names of headers, `_` stands for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(
        (Part(content, content_type=content_type),), {"Content-Type": content_type, **named}
    )


def form(*parts: Part, boundary: str = "xyz", **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request(parts, {"Content-Type": f"multipart/form-data; boundary={boundary}", **named})


def received(*requests: Request) -> tuple[list[dict], list[dict]]:
    """The rows and the headers of a batch of these requests."""
    processors, rows, _ = Service.retrieve_data_for_inference(_through_a_socket(requests))
    return rows, [processor.get_request_properties() for processor in processors]


def received_by(context: Context, *requests: Request) -> list[dict]:
    """The rows of a batch, whose headers are put into the context as TorchServe does."""
    processors, rows, ids = Service.retrieve_data_for_inference(_through_a_socket(requests))
    context.request_ids, context.request_processor = ids, processors
    return rows


def worker_context(folder: Path, config: dict | None = None, gpu: int | None = None) -> Context:
    return Context(
        "tiny",
        str(folder),
        {},
        4,
        gpu,
        "0.12.0",
        model_yaml_config={} if config is None else config,
    )


def _through_a_socket(requests: tuple[Request, ...]) -> list[dict]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=ours.sendall, args=(_packed(requests),))
        sender.start()
        _, batch = retrieve_msg(theirs)
        sender.join()
    return batch


def _packed(requests: tuple[Request, ...]) -> bytes:
    return b"I" + b"".join(map(_packed_request, range(len(requests)), requests)) + _END


def _packed_request(index: int, request: Request) -> bytes:
    headers = b"".join(
        _sized(name.encode()) + _sized(value.encode()) for name, value in request.headers.items()
    )
    parts = b"".join(
        _sized(part.name.encode()) + _sized(part.content_type.encode()) + _sized(part.content)
        for part in request.parts
    )
    return _sized(f"request-{index}".encode()) + headers + _END + parts + _END


def _sized(content: bytes) -> bytes:
    return struct.pack("!i", len(content)) + content


_END = struct.pack("!i", -1)
