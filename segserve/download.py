"""Downloads a file of a known SHA-256: goes on where it broke off, and gives the file its name when
it is whole.
"""

import fcntl
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import requests

from .runtime.errors import FetchError
from .runtime.record import sha256_of

Report = Callable[[int, int | None], None]

_ATTEMPTS = 5
_BLOCK_BYTES = 2**14  # a connection that breaks takes with it what has arrived of a block
_TIMEOUT_S = (10, 60)  # to connect, and from one byte to the next


def download(url: str, target: Path, *, sha256: str, max_bytes: int, report: Report) -> None:
    """Downloads `url` to `target`, whose folder is made where it is missing.

    What has arrived is kept in `target` + `.part`, also by a killed process, and the next call goes
    on from there. The hash alone decides whether the parts belong together, so that they may come
    from different mirrors.

    Args:
        max_bytes: a server that sends more is not heard out.
        report: called with the number of bytes that are there and, if the server reports it, of
            all.

    Raises:
        FetchError: the server cannot be reached, rejects the request, or breaks off repeatedly;
            the file cannot be written, or has another SHA-256 and is deleted.
        OSError: the folder cannot be written to.
    """
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab", buffering=0) as file:
        _lock(file, part)
        _receive_all(url, file, max_bytes, report)
        digest = sha256_of(part)
        if digest != sha256:
            part.unlink()
            raise FetchError(
                f"{url}: SHA-256 is {digest}, the record says {sha256}; what arrived is deleted"
            )
        part.replace(target)


def _lock(file: BinaryIO, part: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FetchError(
            f"{part}: another process is downloading it: wait for it to end"
        ) from error


def _receive_all(url: str, file: BinaryIO, max_bytes: int, report: Report) -> None:
    """Receives the rest of the file; a broken connection is taken up again as long as each brings
    something.
    """
    for attempt in range(_ATTEMPTS):
        before_bytes = file.tell()
        try:
            _receive(url, file, max_bytes, report)
        except requests.RequestException as error:
            if file.tell() == before_bytes or attempt == _ATTEMPTS - 1:
                kept = (
                    f"; {file.tell() / 1e6:.1f} MB are kept for the next try" if file.tell() else ""
                )
                raise FetchError(f"{url}: {_reason(error)}{kept}") from error
        else:
            return


def _receive(url: str, file: BinaryIO, max_bytes: int, report: Report) -> None:
    present_bytes = file.seek(0, 2)
    headers = {"Accept-Encoding": "identity"}  # a range counts the bytes that are sent
    if present_bytes:
        headers["Range"] = f"bytes={present_bytes}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable and present_bytes:
            return  # nothing comes after what is there
        present_bytes = _start(response, present_bytes)
        file.truncate(present_bytes)
        length = response.headers.get("Content-Length", "")
        total_bytes = present_bytes + int(length) if length.isdigit() else None
        report(present_bytes, total_bytes)
        for block in response.iter_content(_BLOCK_BYTES):
            present_bytes += len(block)
            if max(present_bytes, total_bytes or 0) > max_bytes:
                raise FetchError(
                    f"{url}: sends more than {max_bytes} bytes, which the file does not have"
                )
            _write(file, block)
            report(present_bytes, total_bytes)


def _start(response: requests.Response, requested: int) -> int:
    """The first byte of the response: 0 if the server sends the whole file all the
    same.
    """
    if response.status_code == requests.codes.ok:
        return 0
    content_range = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if response.status_code != requests.codes.partial_content or content_range is None:
        raise FetchError(
            f"{response.url}: the server returned {response.status_code} {response.reason}"
        )
    start = int(content_range[1])
    if start > requested:
        raise FetchError(
            f"{response.url}: requested the bytes from {requested} on, got those from {start} on"
        )
    return start


def _write(file: BinaryIO, block: bytes) -> None:
    remaining = memoryview(block)
    while remaining:
        try:
            remaining = remaining[file.write(remaining) :]
        except OSError as error:
            kept = f"{file.tell() / 1e6:.1f} MB are kept for the next try"
            raise FetchError(f"{file.name}: {error.strerror}; {kept}") from error


def _reason(error: BaseException) -> str:
    """What lies at the bottom of an error: requests wraps it in what urllib3 has wrapped."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return str(error) or type(error).__name__
