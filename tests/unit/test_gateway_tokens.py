"""Tokens in files, as containers get secrets."""

import os
from pathlib import Path

import pytest

from segserve.engines import BadTokenError, ServerError
from segserve.gateway.admission import TokenFile

TOKEN = "a-token-of-some-length"  # noqa: S105


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


def test_the_token_is_accepted(file):
    TokenFile(file).check(f"Bearer {TOKEN}")


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(None, id="none"),
        pytest.param("", id="empty"),
        pytest.param(TOKEN, id="without-bearer"),
        pytest.param(f"Basic {TOKEN}", id="basic"),
        pytest.param(f"Bearer {TOKEN}x", id="longer"),
        pytest.param("Bearer ", id="empty-token"),
        pytest.param("Bearer \udce9", id="bytes"),
    ],
)
def test_nothing_else_is_accepted(file, authorization):
    with pytest.raises(BadTokenError):
        TokenFile(file).check(authorization)


def test_after_the_file_has_changed_only_the_new_token_is_accepted(file):
    token = TokenFile(file)
    file.write_text("another-token-of-some-length")
    os.utime(file, ns=(1, 1))
    token.check("Bearer another-token-of-some-length")
    with pytest.raises(BadTokenError):
        token.check(f"Bearer {TOKEN}")


@pytest.mark.parametrize(
    "content", [pytest.param(None, id="gone"), pytest.param("short", id="broken")]
)
def test_while_the_file_is_replaced_the_old_token_is_accepted(file, content):
    token = TokenFile(file)
    file.unlink()
    if content:
        file.write_text(content)
    token.check(f"Bearer {TOKEN}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "must hold one token of at least 16", id="empty"),
        pytest.param(b"short", "must hold one token of at least 16", id="short"),
        pytest.param(b"two words of a sentence", "without spaces", id="spaces"),
        pytest.param(b"\xff\xfe" * 20, "it is not text", id="binary"),
    ],
)
def test_token_file_that_holds_none_says_how_to_make_one(file, content, message):
    file.write_bytes(content)
    with pytest.raises(ServerError, match=message):
        TokenFile(file)


def test_token_file_that_is_missing_is_reported(tmp_path):
    with pytest.raises(ServerError, match=r"cannot read the token in .*: No such file"):
        TokenFile(tmp_path / "absent")


def test_generated_token_is_new_and_private(tmp_path):
    path = tmp_path / "run" / "token"
    TokenFile.generate(path)
    first = path.read_text()
    TokenFile.generate(path).check(f"Bearer {path.read_text().strip()}")
    assert path.read_text() != first
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "lose", [Path.unlink, lambda file: file.write_text("")], ids=["removed", "emptied"]
)
def test_token_whose_file_is_lost_stays_valid_and_the_log_says_so_once(tmp_path, caplog, lose):
    file = tmp_path / "token"
    file.write_text("a-token-of-some-length")
    token = TokenFile(file)
    lose(file)
    for _ in range(2):
        token.check("Bearer a-token-of-some-length")
    [message] = caplog.messages
    assert "the last token stays valid; to revoke it, write another one" in message
    assert "a-token-of-some-length" not in message
