"""Bearer tokens in files, as Docker and Kubernetes provide secrets."""

import logging
import re
import secrets
from pathlib import Path

from ..engines.errors import ServerError
from ..runtime.files import write_whole

logger = logging.getLogger("segserve.gateway")

_MIN_CHARACTERS = 16
_SCHEME = "Bearer "


class TokenFile:
    """The token in a file, which is read again when it has changed.

    Raises:
        ServerError: the file cannot be read, or holds no token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = _read(path)
        self._changed_ns = path.stat().st_mtime_ns
        self._is_lost = False

    @classmethod
    def generate(cls, path: Path) -> "TokenFile":
        """Writes a random token to a new file, which only this user can read."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{secrets.token_urlsafe(24)}\n", mode=0o600)
        return cls(path)

    def matches(self, authorization: str | None) -> bool:
        """Whether the header carries the token. Every wrong token takes the same time."""
        given = authorization or ""
        # A header may hold any bytes.
        return given.startswith(_SCHEME) and secrets.compare_digest(
            given.removeprefix(_SCHEME).encode("utf-8", "surrogateescape"),
            self._current().encode(),
        )

    def _current(self) -> str:
        try:
            changed_ns = self._path.stat().st_mtime_ns
            if changed_ns != self._changed_ns:
                self._token, self._changed_ns = _read(self._path), changed_ns
            self._is_lost = False
        except (OSError, ServerError) as error:  # the file is being replaced, or is gone
            if not self._is_lost:
                logger.warning(
                    "%s: the last token stays valid; to revoke it, write another one",
                    error,
                )
            self._is_lost = True
        return self._token


def _read(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ServerError(f"cannot read the token in {path}: {reason}") from error
    if not re.fullmatch(rf"[\x21-\x7e]{{{_MIN_CHARACTERS},}}", token):
        raise ServerError(
            f"{path} must hold one token of at least {_MIN_CHARACTERS} letters, digits and signs "
            "without spaces; make one with: openssl rand -hex 32"
        )
    return token
