"""Signed archives: what is signed is what is trusted, in minisign's own files."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from segserve.signing import SignatureError, SigningKey, TrustedKeys, signature_path

CONTENT = bytes(range(256)) * 8192  # two chunks of what is read at once

# Of the text `an archive`, by minisign 0.11: `minisign -G -W` and `minisign -S -m signed.mar -t 'of
# minisign'`.
MINISIGN_PUBLIC = """untrusted comment: minisign public key A9563136A75BD57A
RWR61VunNjFWqYZX/7smd0JwrH9g/Sv2Trr4CY7nCVTuzVrecG88kGXg
"""
MINISIGN_SIGNATURE = """untrusted comment: signature from minisign secret key
RUR61VunNjFWqUpLGSHFXv1MROaVeHKokXXMVHBM2o20zBRX45beIwWbeyJyFXk/HecHhgjVEjyw7+8ro9kIG47FF+R14EGybgk=
trusted comment: of minisign
GkTpPnje2eysgoHUcWbZ2z4AzHRhkKzhAqZ+khxaedZ1YPuW27eNFv5CQxScfPoI4B/Rq1EqV46mpyPP9YCuBg==
"""


@pytest.fixture
def archive(tmp_path) -> Path:
    path = tmp_path / "net.mar"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def keys(tmp_path) -> tuple[Path, Path]:
    return SigningKey.generate().write(tmp_path / "signer")


@pytest.fixture
def signed(archive, keys) -> Path:
    SigningKey.read(keys[0]).sign(archive)
    return archive


@pytest.fixture
def trusted(keys) -> TrustedKeys:
    return TrustedKeys.read(keys[1])


def rewritten(path: Path, line: int, text: str) -> None:
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")


def test_signing_key_written_is_for_its_owner_alone(keys):
    secret, public = keys
    assert (secret.name, public.name) == ("signer.key", "signer.pub")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert secret.read_text().splitlines()[1] not in public.read_text()


def test_signing_key_written_twice_is_not_overwritten(keys, tmp_path):
    before = [path.read_bytes() for path in keys]
    with pytest.raises(FileExistsError, match=r"signer\.pub"):
        SigningKey.generate().write(tmp_path / "signer")
    keys[1].unlink()
    with pytest.raises(FileExistsError, match=r"signer\.key"):
        SigningKey.generate().write(tmp_path / "signer")
    assert not keys[1].exists()
    assert keys[0].read_bytes() == before[0]


def test_sign_same_archive_gives_the_same_signature(signed, keys):
    before = signature_path(signed).read_bytes()
    SigningKey.read(keys[0]).sign(signed)
    assert signature_path(signed).read_bytes() == before


def test_verify_signed_archive_passes(signed, trusted):
    trusted.verify(signed)


def test_verify_what_minisign_signed_passes(tmp_path):
    archive, public = tmp_path / "signed.mar", tmp_path / "minisign.pub"
    archive.write_bytes(b"an archive")
    signature_path(archive).write_text(MINISIGN_SIGNATURE)
    public.write_text(MINISIGN_PUBLIC)
    TrustedKeys.read(public).verify(archive)


def test_verify_with_untrusted_comment_changed_passes(signed, trusted):
    rewritten(signature_path(signed), 0, "untrusted comment: anything")
    trusted.verify(signed)


def test_verify_with_several_keys_passes_for_each(signed, keys, tmp_path):
    _, other = SigningKey.generate().write(tmp_path / "other")
    both = tmp_path / "both.pub"
    both.write_text(other.read_text() + "\n" + keys[1].read_text())
    TrustedKeys.read(both).verify(signed)


def damaged_archive(archive: Path) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def damaged_signature(archive: Path) -> None:
    path = signature_path(archive)
    content = bytearray(base64.b64decode(path.read_text().splitlines()[1]))
    content[-1] ^= 1
    rewritten(path, 1, base64.b64encode(content).decode())


def unhashed_signature(archive: Path) -> None:
    path = signature_path(archive)
    content = base64.b64decode(path.read_text().splitlines()[1])
    rewritten(path, 1, base64.b64encode(b"Ed" + content[2:]).decode())


DAMAGE = {
    "changed archive": (damaged_archive, r"net\.mar: it or its signature is not what was signed"),
    "longer archive": (
        lambda path: path.write_bytes(CONTENT + b"x"),
        "is not what was signed",
    ),
    "empty archive": (lambda path: path.write_bytes(b""), "is not what was signed"),
    "changed signature": (damaged_signature, "is not what was signed"),
    "changed trusted comment": (
        lambda path: rewritten(signature_path(path), 2, "trusted comment: file:other.mar\thashed"),
        "is not what was signed",
    ),
    "missing signature": (
        lambda path: signature_path(path).unlink(),
        r"net\.mar: there is no signature net\.mar\.minisig beside it; .*segserve sign net\.mar "
        r"KEY",
    ),
    "empty signature": (
        lambda path: signature_path(path).write_text(""),
        "expected a signature as `segserve sign`",
    ),
    "signature that is no text": (
        lambda path: signature_path(path).write_bytes(b"\xff\xfe"),
        "expected a signature",
    ),
    "signature that is no base64": (
        lambda path: rewritten(signature_path(path), 1, "!"),
        "expected a signature",
    ),
    "signature of another size": (
        lambda path: rewritten(signature_path(path), 3, "AAAA"),
        "expected a signature",
    ),
    "old format": (
        unhashed_signature,
        "expected a signature as `segserve sign` and minisign 0.10 or newer write them",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_verify_damaged_archive_or_signature_says_so_in_one_line(signed, trusted, damage, message):
    damage(signed)
    with pytest.raises(SignatureError, match=message) as caught:
        trusted.verify(signed)
    assert "\n" not in str(caught.value)


def test_verify_archive_of_another_key_names_both(signed, tmp_path):
    _, other = SigningKey.generate().write(tmp_path / "other")
    with pytest.raises(
        SignatureError,
        match=r"signed by the key [0-9A-F]{16}, and .*other\.pub trusts [0-9A-F]{16};",
    ):
        TrustedKeys.read(other).verify(signed)


def test_verify_archive_of_another_key_under_a_trusted_id_is_rejected(signed, keys, trusted):
    """Key ids are public, so a forged id must fail by the signature."""
    forger = SigningKey.generate()
    forger._id = next(iter(trusted.keys))
    forger.sign(signed)
    with pytest.raises(SignatureError, match="is not what was signed"):
        trusted.verify(signed)


def test_copy_of_a_signed_archive_is_the_archive(signed, trusted, tmp_path):
    trusted.copy(signed, tmp_path / "copy.mar")
    assert (tmp_path / "copy.mar").read_bytes() == CONTENT


def test_verified_copy_is_what_was_signed_whatever_happens_to_the_original(signed, trusted):
    content = signed.read_bytes()
    with trusted.verified(signed) as copied:
        signed.write_bytes(b"other")
        assert copied.read_bytes() == content
    assert not copied.exists()


def test_copy_leaves_a_file_that_is_there_already(signed, trusted, tmp_path):
    target = tmp_path / "there.mar"
    target.write_bytes(b"another archive")
    with pytest.raises(FileExistsError):
        trusted.copy(signed, target)
    assert target.read_bytes() == b"another archive"


def test_copy_of_a_changed_archive_leaves_nothing(signed, trusted, tmp_path):
    damaged_archive(signed)
    with pytest.raises(SignatureError, match="is not what was signed"):
        trusted.copy(signed, tmp_path / "copy.mar")
    assert not (tmp_path / "copy.mar").exists()


PUBLIC_KEYS = {
    "empty": ("", "expected public keys"),
    "comment alone": ("untrusted comment: minisign public key\n", "expected public keys"),
    "other text": (
        "ssh-ed25519 AAAA user@host\n",
        "expected public keys as `segserve keygen` and minisign write them",
    ),
    "too short": ("RWTs\n", "expected public keys"),
    "other algorithm": (base64.b64encode(b"XX" + bytes(40)).decode(), "expected public keys"),
}


@pytest.mark.parametrize(("text", "message"), PUBLIC_KEYS.values(), ids=PUBLIC_KEYS.keys())
def test_trusted_keys_that_are_none_say_what_is_expected(tmp_path, text, message):
    (tmp_path / "key.pub").write_text(text)
    with pytest.raises(SignatureError, match=message):
        TrustedKeys.read(tmp_path / "key.pub")


def with_password(path: Path) -> None:
    content = base64.b64decode(path.read_text().splitlines()[1])
    rewritten(path, 1, base64.b64encode(content[:2] + b"Sc" + content[4:]).decode())


def damaged_key(path: Path) -> None:
    content = bytearray(base64.b64decode(path.read_text().splitlines()[1]))
    content[70] ^= 1  # of the secret
    rewritten(path, 1, base64.b64encode(content).decode())


SECRET_KEYS = {
    "others may read it": (
        lambda path: path.chmod(0o644),
        r"\(mode 0644\): chmod 600 .*signer\.key",
    ),
    "the group may read it": (lambda path: path.chmod(0o640), r"\(mode 0640\): chmod 600 "),
    "public key": (
        lambda path: shutil.copy(path.with_suffix(".pub"), path),
        "expected a secret key without a password, as `segserve keygen`",
    ),
    "empty": (lambda path: path.write_text(""), "expected a secret key"),
    "password": (
        with_password,
        r"signer\.key: expected a secret key without a password",
    ),
    "damaged": (damaged_key, "this key is damaged; take it from your backup"),
}


@pytest.mark.parametrize(("change", "message"), SECRET_KEYS.values(), ids=SECRET_KEYS.keys())
def test_signing_key_that_cannot_be_used_says_why_in_one_line(keys, change, message):
    change(keys[0])
    with pytest.raises(SignatureError, match=message) as caught:
        SigningKey.read(keys[0])
    assert "\n" not in str(caught.value)


def test_absent_files_are_named(signed, keys, trusted, tmp_path):
    absent = tmp_path / "absent.mar"
    for use in (SigningKey.read(keys[0]).sign, SigningKey.read, TrustedKeys.read, trusted.verify):
        with pytest.raises(FileNotFoundError, match=r"absent\.mar"):
            use(absent)


@pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is not installed")
def test_signature_is_verified_by_minisign_and_its_own_by_us(signed, keys, trusted, tmp_path):
    secret, public = keys
    run = {"check": True, "capture_output": True}
    subprocess.run(["minisign", "-V", "-m", str(signed), "-p", str(public)], **run)
    signature_path(signed).unlink()
    subprocess.run(
        ["minisign", "-S", "-s", str(secret), "-m", str(signed), "-t", "of minisign"], **run
    )
    trusted.verify(signed)
    theirs = tmp_path / "theirs.pub", tmp_path / "theirs.key"
    subprocess.run(["minisign", "-G", "-W", "-p", str(theirs[0]), "-s", str(theirs[1])], **run)
    theirs[1].chmod(0o600)
    SigningKey.read(theirs[1]).sign(signed)
    TrustedKeys.read(theirs[0]).verify(signed)
