"""Remembers images that crash the process that decodes them.

A decoder written in C can crash without an exception. Then the worker is lost, the server starts
another one, and the client sends the image again. So every worker notes which image it is decoding,
in a file that outlives the worker.

Such a note makes an image suspect, but it proves nothing. The process may have been killed from
outside, or by another image in another thread. A valid image must not be rejected for that. So when
a suspect image arrives again, it is first decoded in a separate process. If that process crashes
too, the image is rejected from then on. Otherwise the image is no longer suspect. So an image costs
one worker. If several workers share a folder, it costs those that decode it at the same time.
"""

import fcntl
import logging
import os
import resource
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from typing import Self

from ...schema.request import Alpha
from ..errors import CorruptImageError, SegserveError
from ..settings import PixelLimits
from .image import Decoded, NeededSize, decode_reduced

logger = logging.getLogger(__name__)

_SLOTS = 64  # images that one process decodes at once; the next one waits
_DIGEST_BYTES = 32
# At most 5 s to decode (docs/hostile-input.md). The rest is for a new process on a busy machine.
_CHECK_S = 20
_REJECTED_FOR_S = 24 * 3600  # then it is checked again: decoders improve
_NOTES, _LOCK = "notes-", "lock"


class Quarantine:
    """Decodes images, except those that are known to crash the process. Safe to use from several
    threads.

    Args:
        folder: of this user alone; workers that share it learn from each other's crashes.

    Raises:
        OSError: the folder is not writable.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with _locked(folder):  # other workers must not take our new notes for a dead process's
            self._mark_suspects()
            self._notes = _Notes(folder)

    @classmethod
    def in_temporary_folder(cls) -> Self | None:
        """That of all workers of this user and $TMPDIR; None if its folder is not writable."""
        try:
            return cls(_private_folder())
        except OSError as error:
            logger.warning("images that crash the decoder cannot be remembered: %s", error)
            return None

    def sweep(self) -> None:
        """Marks an image as suspect if another worker died while decoding it."""
        with suppress(OSError), _locked(self._folder):
            self._mark_suspects()

    def decode(
        self, content: bytes, *, limits: PixelLimits, needed: NeededSize | None, alpha: Alpha
    ) -> Decoded:
        """As `decode_reduced`. Raises a CorruptImageError for a file that has also crashed a
        separate process, or has taken it too long.
        """
        digest = sha256(content)
        self._examine(self._folder / digest.hexdigest(), content, limits)
        with self._notes.noted(digest.digest()):
            return decode_reduced(content, limits=limits, needed=needed, alpha=alpha)

    def _examine(self, mark: Path, content: bytes, limits: PixelLimits) -> None:
        """Checks a marked image. An empty mark: suspect; any other: rejected."""
        try:
            found = mark.stat()
        except FileNotFoundError:
            return
        if found.st_size == 0 or time.time() - found.st_mtime > _REJECTED_FOR_S:
            failure = _failure_in_subprocess(content, limits)
            if failure is None:
                mark.unlink(missing_ok=True)
                return
            logger.warning(
                "the image with SHA-256 %s is rejected from now on: %s", mark.name, failure
            )
            mark.write_text("rejected", encoding="ascii")
        raise CorruptImageError(
            "this image crashes its decoder; save it again with another program and send that"
        )

    def _mark_suspects(self) -> None:
        for notes in self._folder.glob(f"{_NOTES}*"):
            for digest in _unfinished_digests(notes):
                logger.warning(
                    "a process ended as it decoded the image with SHA-256 %s", digest.hex()
                )
                (self._folder / digest.hex()).touch(mode=0o600)


class _Notes:
    """A file with the SHA-256 of every image that this process is decoding.

    The kernel keeps the file locked while the process lives. Each note is one system call of a
    microsecond, and the note outlives the process. (Mapped memory would work too, but a full disk
    would then raise a signal.)
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115
            prefix=_NOTES, dir=folder, buffering=0, delete=False
        )
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.write(bytes(_SLOTS * _DIGEST_BYTES))
        self._free: SimpleQueue[int] = SimpleQueue()
        for slot in range(_SLOTS):
            self._free.put(slot)

    @contextmanager
    def noted(self, digest: bytes) -> Iterator[None]:
        slot = self._free.get()
        self._write(slot, digest)
        try:
            yield
        finally:
            self._write(slot, bytes(_DIGEST_BYTES))
            self._free.put(slot)

    def _write(self, slot: int, digest: bytes) -> None:
        with suppress(OSError):  # decode the image even without a note
            os.pwrite(self._file.fileno(), digest, slot * _DIGEST_BYTES)


def _unfinished_digests(notes: Path) -> list[bytes]:
    """The images that a dead process was decoding; none if it lives. Deletes its notes."""
    with notes.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []
        content = file.read()
        notes.unlink(missing_ok=True)
    digests = (
        content[start : start + _DIGEST_BYTES] for start in range(0, len(content), _DIGEST_BYTES)
    )
    return [digest for digest in digests if any(digest)]


def _failure_in_subprocess(content: bytes, limits: PixelLimits) -> Exception | None:
    """Why a separate process did not decode this image; None if it did."""
    root = str(Path(__file__).parents[3])  # in an archive, the archive's own copy of this package
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
    }
    command = [sys.executable, "-P", "-m", __name__, *map(str, limits)]
    try:
        subprocess.run(
            command,
            input=content,
            env=environment,
            timeout=_CHECK_S,
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return error
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _private_folder() -> Path:
    """A folder in which no other user can put marks; of this process alone if its name is taken."""
    folder = Path(tempfile.gettempdir(), f"segserve-{os.getuid()}-quarantine")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="segserve-quarantine-"))


def _decode_and_end() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(SegserveError, MemoryError):  # rejecting an image is not a crash
        limits = PixelLimits(*map(int, sys.argv[1:]))
        decode_reduced(sys.stdin.buffer.read(), limits=limits, needed=None)


if __name__ == "__main__":
    _decode_and_end()
