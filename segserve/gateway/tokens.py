"""Bearer tokens in files, as Docker and Kubernetes provide secrets."""

import logging
import re
import secrets
from pathlib import Path

from ..engines.errors import ServerError
from ..runtime.files import write_whole
from .bearer import carries
from .torchserve_errors import bad_token

logger = logging.getLogger("segserve.gateway")

_LEAST_CHARACTERS = 16


class TokenFile:
    """The token in a file. The file is read again when it has changed, so a new secret is valid at
    once.

    Raises:
        ServerError: the file cannot be read, or holds no token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = _read(path)
        self._changed_ns = path.stat().st_mtime_ns
        self._is_lost = False

    @classmethod
    def drawn(cls, path: Path) -> "TokenFile":
        """Generates a token and writes it to a new file, readable only by this user."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{secrets.token_urlsafe(24)}\n", mode=0o600)
        return cls(path)

    def check(self, authorization: str | None) -> None:
        """Checks that the header `Authorization` carries the token.

        Raises:
            RefusalError: it does not.
        """
        if not carries(authorization, self._current()):
            raise bad_token()

    def _current(self) -> str:
        try:
            changed_ns = self._path.stat().st_mtime_ns
            if changed_ns != self._changed_ns:
                self._token, self._changed_ns = _read(self._path), changed_ns
            self._is_lost = False
        except (OSError, ServerError) as error:  # the file is being replaced, or is gone
            if not self._is_lost:
                logger.warning(
                    "%s: the token that held so far holds on; to revoke it, write another one",
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
    if not re.fullmatch(rf"[\x21-\x7e]{{{_LEAST_CHARACTERS},}}", token):
        raise ServerError(
            f"{path} must hold one token of at least {_LEAST_CHARACTERS} letters, digits and signs "
            "without spaces; "
            "make one with: openssl rand -hex 32"
        )
    return token
