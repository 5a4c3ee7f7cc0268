"""Images whose decoding ends the process.

A decoder written in C can crash, and no exception tells of it: the worker is gone, the server starts another one, and
the client sends the image again. So every worker notes what it is decoding where the note outlives it.

Such a note accuses an image and does not convict it. The process may as well have been killed from outside, or by the
image beside it in another thread, and a good picture must not be refused for that. So when an accused image comes
again, it is first tried in a process of its own: if that ends too, the image is refused from then on, otherwise it is
acquitted. An image thus costs one worker, or, where several share a folder, those that were at it at the same time.
"""

import fcntl
import logging
import os
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

from .errors import CorruptImageError
from .image import Decoded, NeededSize, decode_reduced

logger = logging.getLogger(__name__)

_SLOTS = 64  # images that the threads of one process decode at once; the next one waits
_DIGEST_BYTES = 32
_TRIAL_S = 20  # decoding takes 5 s at most (docs/hostile-input.md), a new process and a busy machine the rest
_REFUSED_FOR_S = 24 * 3600  # then it is tried again: decoders get better, and folders outlive upgrades
_NOTES, _LOCK = "notes-", "lock"


class Quarantine:
    """Decodes images, but not those that are known to end the process. Safe to use from several threads.

    Args:
        folder: of this user alone; shared by all workers that shall learn from each other.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with _locked(folder):  # so that nobody takes our new notes for those of the dead
            self._accuse()
            self._notes = _Notes(folder)

    @classmethod
    def in_temporary_folder(cls) -> Self | None:
        """The quarantine of all workers with this user and this $TMPDIR; none where there is no room for it."""
        try:
            return cls(_private_folder())
        except OSError as error:
            logger.warning("images that crash the decoder cannot be remembered: %s", error)
            return None

    def sweep(self) -> None:
        """Accuses what other workers were decoding as they died. A new worker has done so already."""
        with suppress(OSError), _locked(self._folder):
            self._accuse()

    def decode(self, content: bytes, *, max_pixels: int, needed: NeededSize | None) -> Decoded:
        """As `decode_reduced`, which this process survives.

        Raises:
            CorruptImageError: decoding this very file has ended a process that did nothing else, too.
        """
        digest = sha256(content)
        self._examine(self._folder / digest.hexdigest(), content, max_pixels)
        with self._notes.noted(digest.digest()):
            return decode_reduced(content, max_pixels=max_pixels, needed=needed)

    def _examine(self, mark: Path, content: bytes, max_pixels: int) -> None:
        """A mark is empty where an image is accused, and says why where it is refused."""
        try:
            found = mark.stat()
        except FileNotFoundError:
            return
        if found.st_size == 0 or time.time() - found.st_mtime > _REFUSED_FOR_S:
            reason = _tried(content, max_pixels)
            if reason is None:
                mark.unlink(missing_ok=True)
                return
            logger.warning("the image with SHA-256 %s is refused from now on: %s", mark.name, reason)
            mark.write_text(reason, encoding="utf-8")
        raise CorruptImageError("this image crashes its decoder; save it again with another program and send that")

    def _accuse(self) -> None:
        for notes in self._folder.glob(f"{_NOTES}*"):
            for digest in _left_behind(notes):
                logger.warning("a process ended as it decoded the image with SHA-256 %s", digest.hex())
                (self._folder / digest.hex()).touch(mode=0o600)


class _Notes:
    """A file with the SHA-256 of every image that this process is decoding.

    It is locked while the process lives, which the kernel sees to, and written by system calls of a microsecond: what
    they wrote outlives the process. (Writing to mapped memory would do as well, but on a full disk that is a signal.)
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix=_NOTES, dir=folder, buffering=0, delete=False)  # noqa: SIM115
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
        with suppress(OSError):  # an image that can be decoded is worth more than its note
            os.pwrite(self._file.fileno(), digest, slot * _DIGEST_BYTES)


def _left_behind(notes: Path) -> list[bytes]:
    """What the process was decoding as it ended; the notes are gone then. Nothing of a process that lives."""
    with notes.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []
        content = file.read()
        notes.unlink(missing_ok=True)
    digests = (content[start : start + _DIGEST_BYTES] for start in range(0, len(content), _DIGEST_BYTES))
    return [digest for digest in digests if any(digest)]


def _tried(content: bytes, max_pixels: int) -> str | None:
    """Why decoding this image in a process of its own went wrong; None where the process ended well."""
    root = str(Path(__file__).parents[2])  # in an archive, its own copy of this package
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-P", "-m", f"{__package__}.trial", str(max_pixels)]
    try:
        ended = subprocess.run(
            command, input=content, env=environment, timeout=_TRIAL_S, check=False, capture_output=True
        )
    except subprocess.TimeoutExpired:
        return f"decoding takes more than {_TRIAL_S} s"
    except OSError as error:  # better refused than trusted
        return f"it cannot be tried: {error.strerror}"
    return f"decoding ends with status {ended.returncode}" if ended.returncode else None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _private_folder() -> Path:
    """One that nobody else can have put marks into; where somebody has taken its name, one for this process alone."""
    folder = Path(tempfile.gettempdir(), f"segserve-{os.getuid()}-quarantine")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="segserve-quarantine-"))
