"""`segserve keygen`, `sign`, `archive --sign`, and the commands that take none but signed
archives.
"""

import pytest
from typer.testing import CliRunner

from segserve.cli import app
from segserve.signing import SigningKey, TrustedKeys

from .tiny import write_tiny_model


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_keygen_writes_a_pair_that_signs_and_is_trusted(run, tmp_path):
    (tmp_path / "net.mar").write_bytes(b"an archive")
    assert run("keygen", "mine").exit_code == 0
    assert run("sign", "net.mar", "mine.key").output.strip() == "net.mar.minisig"
    TrustedKeys.read(tmp_path / "mine.pub").verify(tmp_path / "net.mar")


def test_keygen_where_a_key_is_says_so_in_one_line(run):
    run("keygen", "mine")
    again = run("keygen", "mine")
    assert again.exit_code == 1
    assert again.stderr == "segserve: mine.pub: File exists\n"


def test_archive_with_sign_is_one_that_is_trusted(run, tmp_path):
    secret, public = SigningKey.generate().write(tmp_path / "mine")
    (tmp_path / "tiny").mkdir()
    write_tiny_model(tmp_path / "tiny")
    done = run("archive", "tiny", "--output", "out", "--sign", str(secret))
    assert done.exit_code == 0, done.output
    TrustedKeys.read(public).verify(tmp_path / "out" / "tiny.mar")


@pytest.mark.parametrize(
    "environment", [{}, {"SEGSERVE_TRUST": "mine.pub"}], ids=["flag", "variable"]
)
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("serve",), id="serve"),
        pytest.param(("serve", "--engine", "ray"), id="serve-on-ray"),
        pytest.param(("batch", "photos", "labels"), id="batch"),
    ],
)
def test_command_with_trusted_keys_rejects_another_archive_in_one_line(
    run, tmp_path, monkeypatch, command, environment
):
    SigningKey.generate().write(tmp_path / "mine")
    (tmp_path / "foreign.mar").write_bytes(b"an archive")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    flag = () if environment else ("--trust", "mine.pub")
    done = run(*command, "--archive", "foreign.mar", *flag)
    assert done.exit_code == 1
    assert "foreign.mar: there is no signature foreign.mar.minisig beside it" in done.stderr
    assert done.stderr.count("\n") == 1


def test_keygen_makes_the_folder_of_the_keys(tmp_path):
    done = CliRunner().invoke(app, ["keygen", str(tmp_path / "new" / "keys" / "signer")])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "new" / "keys" / "signer.key").stat().st_mode & 0o777 == 0o600
