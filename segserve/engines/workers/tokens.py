"""Authorization by the tokens of `key_file.json`, a file in TorchServe's format."""

import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from ...runtime.files import write_whole
from .torchserve_http import bad_token, carries

TokenKind = Literal["inference", "management"]
_KINDS: tuple[TokenKind, ...] = ("inference", "management")
_EXPIRES = "expiration time"  # TorchServe's key


class KeyFile:
    """The tokens in a file. The file is read again when it has changed.

    Args:
        path: the file; created if it is missing.
        minutes: the lifetime of new tokens.

    Raises:
        OSError: the file is not writable.
    """

    def __init__(self, path: Path, *, minutes: int) -> None:
        self._path = path
        self._lifetime = timedelta(minutes=minutes)
        self._changed_ns = -1
        self._entries: Mapping[str, Any] = {}
        if not path.exists():
            self._write({kind: self._new() for kind in _KINDS} | {"API": {"key": _random_key()}})

    def check(self, authorization: str | None, kind: TokenKind) -> None:
        """Checks that the header `Authorization` carries a valid token of this kind.

        Raises:
            RefusalError: the token is wrong, or has expired.
        """
        entry = self._read().get(kind, {})
        if not _holds(authorization, entry) or _expired(entry):
            raise bad_token()

    def renew(self, authorization: str | None, kind: str) -> None:
        """Writes a new token of this kind to the file. The request must carry the API key.

        Raises:
            RefusalError: the API key is wrong, or the kind does not exist.
        """
        entries = self._read()
        if not _holds(authorization, entries.get("API", {})) or kind not in _KINDS:
            raise bad_token("Authentication")
        self._write({**entries, kind: self._new()})

    def _new(self) -> dict[str, str]:
        expires = datetime.now(UTC) + self._lifetime
        return {"key": _random_key(), _EXPIRES: expires.isoformat().replace("+00:00", "Z")}

    def _read(self) -> Mapping[str, Any]:
        """The content of the file. If the file is missing or broken, it is empty, and every token
        is rejected.
        """
        try:
            changed_ns = self._path.stat().st_mtime_ns
            if changed_ns != self._changed_ns:
                self._entries = json.loads(self._path.read_text(encoding="utf-8"))
                self._changed_ns = changed_ns
        except (OSError, ValueError):
            return {}
        return self._entries

    def _write(self, entries: Mapping[str, Any]) -> None:
        write_whole(self._path, json.dumps(entries, indent=2), mode=0o600)


def _random_key() -> str:
    return secrets.token_urlsafe(24)


def _holds(authorization: str | None, entry: Mapping[str, str]) -> bool:
    key = entry.get("key", "")
    return bool(key) and carries(authorization, key)


def _expired(entry: Mapping[str, str]) -> bool:
    try:
        return datetime.fromisoformat(entry[_EXPIRES]) <= datetime.now(UTC)
    except (KeyError, ValueError):
        return True
