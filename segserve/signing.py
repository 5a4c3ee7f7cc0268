"""Signed archives, in the files of minisign, whose own tool makes and verifies the same: a
signature stands beside its archive as `NAME.mar.minisig`.

It is Ed25519 over the BLAKE2b-512 hash of the archive, and a second time over that signature and
the comment shown as trusted. The format: https://jedisct1.github.io/minisign/, "Signature format".
"""

import base64
import hashlib
import os
import secrets
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SUFFIX = ".minisig"
SECRET_SUFFIX, PUBLIC_SUFFIX = ".key", ".pub"

_KEY, _HASHED = b"Ed", b"ED"
_NO_PASSWORD, _CHECKSUM = b"\0\0", b"B2"
_UNTRUSTED, _TRUSTED = "untrusted comment: ", "trusted comment: "
# Salt and limits of the key derivation, all zero where there is no password.
_KDF_BYTES = 32 + 8 + 8
_PUBLIC_BYTES = 2 + 8 + 32
_SECRET_BYTES = 2 + 2 + 2 + _KDF_BYTES + 8 + 64 + 32
_SIGNATURE_BYTES = 2 + 8 + 64
_OTHERS = 0o077


class SignatureError(ValueError):
    """An archive that no trusted key has signed, or a key that cannot be used."""


@dataclass(frozen=True)
class TrustedKeys:
    """The public keys whose archives are trusted: Ed25519 keys of 32 bytes by minisign's ids for
    them. `source` is their file.
    """

    keys: Mapping[bytes, bytes]
    source: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """The keys of a file: one as minisign writes it, or several, one below the other, while
        keys change hands. Raises SignatureError if it has none, or anything else.
        """
        lines = [line for line in _lines(path) if line and not line.startswith(_UNTRUSTED)]
        keys = [_decoded(line, _PUBLIC_BYTES) for line in lines]
        if not keys or not all(key.startswith(_KEY) for key in keys):
            raise SignatureError(
                f"{path}: expected public keys as `segserve keygen` and minisign write them"
            )
        return cls({key[2:10]: key[10:] for key in keys}, str(path))

    def verify(self, archive: Path) -> None:
        """Raises SignatureError unless the archive is what one of these keys has signed."""
        self._check(archive, _digest(archive))

    def copy(self, archive: Path, target: Path) -> None:
        """Copies an archive and verifies the copy: what lies at `target` is what was signed,
        whatever happens to the original; nothing is left there if it is rejected. Errors as in
        `verify`.
        """
        with archive.open("rb") as file, target.open("xb") as copied:
            try:
                shutil.copyfileobj(file, copied)
                copied.flush()
                self._check(archive, _digest(target))
            except BaseException:
                target.unlink(missing_ok=True)
                raise

    @contextmanager
    def verified(self, archive: Path) -> Iterator[Path]:
        """Yields a verified copy of an archive, which exists only within this context. Errors as in
        `verify`.
        """
        with TemporaryDirectory(prefix="segserve-verified-") as folder:
            copied = Path(folder, archive.name)
            self.copy(archive, copied)
            yield copied

    def _check(self, archive: Path, digest: bytes) -> None:
        signature = _Signature.read(archive)
        key = self.keys.get(signature.key_id)
        if key is None:
            trusted = ", ".join(map(_key_id_text, self.keys))
            raise SignatureError(
                f"{archive}: signed by the key {_key_id_text(signature.key_id)}, and {self.source} "
                f"trusts {trusted}; get it from the owner of a trusted key"
            )
        public = Ed25519PublicKey.from_public_bytes(key)
        try:
            public.verify(signature.of_file, digest)
            public.verify(signature.of_comment, signature.of_file + signature.trusted_comment)
        except InvalidSignature as error:
            raise SignatureError(
                f"{archive}: it or its signature is not what was signed; get both again"
            ) from error


class SigningKey:
    """A secret key without a password: only its owner may read its file."""

    def __init__(self, key: Ed25519PrivateKey, key_id: bytes) -> None:
        self._key = key
        self._id = key_id

    @classmethod
    def generate(cls) -> Self:
        return cls(Ed25519PrivateKey.generate(), secrets.token_bytes(8))

    @classmethod
    def read(cls, path: Path) -> Self:
        """A key that `write` or `minisign -G -W` made. Raises SignatureError if it is none, has a
        password, or others may read it.
        """
        content = _decoded("".join(_lines(path)[1:2]), _SECRET_BYTES)
        if not content.startswith(_KEY + _NO_PASSWORD):
            raise SignatureError(
                f"{path}: expected a secret key without a password, as `segserve keygen` and "
                "`minisign -G -W` write it"
            )
        mode = path.stat().st_mode & 0o777
        if mode & _OTHERS:
            raise SignatureError(
                f"{path}: others may read this key (mode {mode:04o}): chmod 600 {path}"
            )
        # minisign leaves the checksum, which comes last, empty
        key_id, seed, public, _ = struct.unpack("8s32s32s32s", content[6 + _KDF_BYTES :])
        key = Ed25519PrivateKey.from_private_bytes(seed)
        if public != key.public_key().public_bytes_raw():
            raise SignatureError(f"{path}: this key is damaged; take it from your backup")
        return cls(key, key_id)

    def write(self, path: Path) -> tuple[Path, Path]:
        """Writes `PATH.key`, readable only by its owner, and `PATH.pub`, for others to trust;
        returns both. Raises FileExistsError if there is such a file already.
        """
        secret, public = (
            path.with_name(f"{path.name}{suffix}") for suffix in (SECRET_SUFFIX, PUBLIC_SUFFIX)
        )
        shown = self._key.public_key().public_bytes_raw()
        pair = self._id + self._key.private_bytes_raw() + shown
        checksum = hashlib.blake2b(_KEY + pair, digest_size=32).digest()
        hidden = _KEY + _NO_PASSWORD + _CHECKSUM + bytes(_KDF_BYTES) + pair + checksum
        _write_new(public, "public key", self._id, _KEY + self._id + shown, mode=0o644)
        try:
            _write_new(secret, "secret key", self._id, hidden, mode=0o600)
        except OSError:
            public.unlink()
            raise
        return secret, public

    def sign(self, archive: Path) -> Path:
        """Writes the signature, the same for the same archive, and returns its path."""
        # Not at the top, because workers of Ray import the archive's `segserve.runtime`.
        from .runtime.files import write_whole

        of_file = self._key.sign(_digest(archive))
        shown_name = "".join(letter if letter.isprintable() else "?" for letter in archive.name)
        comment = f"file:{shown_name}\thashed"
        of_comment = self._key.sign(of_file + comment.encode())
        lines = (
            f"{_UNTRUSTED}signature by the key {_key_id_text(self._id)}",
            _encoded(_HASHED + self._id + of_file),
            f"{_TRUSTED}{comment}",
            _encoded(of_comment),
        )
        place = signature_path(archive)
        write_whole(place, "".join(f"{line}\n" for line in lines))
        return place


def signature_path(archive: Path) -> Path:
    return archive.with_name(archive.name + SUFFIX)


class _Signature(NamedTuple):
    key_id: bytes
    of_file: bytes
    trusted_comment: bytes
    of_comment: bytes

    @classmethod
    def read(cls, archive: Path) -> Self:
        path = signature_path(archive)
        if not path.exists():
            raise SignatureError(
                f"{archive}: there is no signature {path.name} beside it; the one who packed the "
                f"archive makes one with: segserve sign {archive.name} KEY"
            )
        lines = _lines(path)
        if len(lines) == 4 and lines[2].startswith(_TRUSTED):
            of_file, of_comment = _decoded(lines[1], _SIGNATURE_BYTES), _decoded(lines[3], 64)
            if of_file.startswith(_HASHED) and of_comment:
                comment = lines[2].removeprefix(_TRUSTED).encode()
                return cls(of_file[2:10], of_file[10:], comment, of_comment)
        raise SignatureError(
            f"{path}: expected a signature as `segserve sign` and minisign 0.10 or newer write them"
        )


def _digest(path: Path) -> bytes:
    """BLAKE2b-512 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, hashlib.blake2b).digest()


def _key_id_text(key_id: bytes) -> str:
    """As minisign shows it: a little-endian number in hexadecimal digits."""
    return key_id[::-1].hex().upper()


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _decoded(line: str, size: int) -> bytes:
    """The content of a line of base64; nothing if it is none, or of another size."""
    try:
        content = base64.b64decode(line, validate=True)
    except ValueError:
        return b""
    return content if len(content) == size else b""


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _write_new(path: Path, what: str, key_id: bytes, content: bytes, *, mode: int) -> None:
    text = f"{_UNTRUSTED}minisign {what} {_key_id_text(key_id)}\n{_encoded(content)}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
