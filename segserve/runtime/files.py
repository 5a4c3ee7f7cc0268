"""Atomic file writes: a file appears under its name only when it is complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

AnyPath = str | os.PathLike[str]


def write_whole(path: AnyPath, content: str | bytes, *, mode: int = 0o666) -> None:
    """Writes bytes, or text in UTF-8, as `whole_file` does."""
    encoded = content.encode() if isinstance(content, str) else content
    with whole_file(path, mode=mode) as file:
        file.write(encoded)


@contextmanager
def whole_file(
    path: AnyPath, *, mode: int = 0o666, folder: AnyPath | None = None
) -> Iterator[BinaryIO]:
    """A file to write to that replaces `path` when the block ends. After an error, `path` is as
    before.

    Several threads and processes may write the same file at once. The last one to end wins.

    Args:
        mode: permissions of the file, reduced by the umask.
        folder: of the temporary file, on the same file system; by default that of `path`.

    Raises:
        OSError: the file cannot be written. The temporary file is removed.
    """
    # Not derived from the name of `path`, which may be as long as names can be.
    partial = os.path.join(folder or os.path.dirname(path), f".segserve-{os.urandom(8).hex()}.part")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise
