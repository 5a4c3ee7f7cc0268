"""Who may ask: the tokens of `key_file.json`, a file of the same form as TorchServe's."""

import json
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from ..server.bearer import carries
from ..server.refusals import bad_token

Kind = Literal["inference", "management"]
_KINDS: tuple[Kind, ...] = ("inference", "management")
_EXPIRES = "expiration time"  # TorchServe's key


class Tokens:
    """The tokens that stand in a file, which is read again whenever it has changed.

    Args:
        path: the file; made where it is missing.
        minutes: how long new tokens live.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, *, minutes: int) -> None:
        self._path = path
        self._lifetime = timedelta(minutes=minutes)
        self._changed_ns = -1
        self._entries: Mapping[str, Any] = {}
        if not path.exists():
            self._write({kind: self._new() for kind in _KINDS} | {"API": {"key": _random_key()}})

    def check(self, authorization: str | None, kind: Kind) -> None:
        """Returns where the header `Authorization` opens what `kind` of token is for.

        Raises:
            RefusalError: it does not, or has expired.
        """
        entry = self._read().get(kind, {})
        if not _holds(authorization, entry) or _expired(entry):
            raise bad_token()

    def renew(self, authorization: str | None, kind: str) -> None:
        """Puts a new token of a kind into the file, for whoever has the API key.

        Raises:
            RefusalError: it is not the API key, or there is no such kind.
        """
        entries = self._read()
        if not _holds(authorization, entries.get("API", {})) or kind not in _KINDS:
            raise bad_token("Authentication")
        self._write({**entries, kind: self._new()})

    def _new(self) -> dict[str, str]:
        expires = datetime.now(UTC) + self._lifetime
        return {"key": _random_key(), _EXPIRES: expires.isoformat().replace("+00:00", "Z")}

    def _read(self) -> Mapping[str, Any]:
        """What stands in the file; nobody may ask where it is gone or broken."""
        try:
            changed_ns = self._path.stat().st_mtime_ns
            if changed_ns != self._changed_ns:
                self._entries = json.loads(self._path.read_text(encoding="utf-8"))
                self._changed_ns = changed_ns
        except (OSError, ValueError):
            return {}
        return self._entries

    def _write(self, entries: Mapping[str, Any]) -> None:
        """Whole or not at all, and for nobody but this user."""
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(entries, file, indent=2)
        partial.replace(self._path)


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
