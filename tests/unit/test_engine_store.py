"""The model store: archives by their model's name."""

import json
import zipfile

import pytest

from segserve.engines import ServerError
from segserve.engines.store import fill_store, model_name
from segserve.signing import SignatureError, SigningKey, TrustedKeys


def write_archive(path, name):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"modelName": name}}))
    return path


def test_fill_store_with_archives_names_them_by_their_models(tmp_path):
    archives = [
        write_archive(tmp_path / "first.mar", "net"),
        write_archive(tmp_path / "v2 (final).mar", "other"),
    ]
    assert fill_store(archives, tmp_path / "store") == ("net", "other")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["net.mar", "other.mar"]
    assert model_name(tmp_path / "store" / "other.mar") == "other"


def test_fill_store_with_old_content_replaces_it(tmp_path):
    archive = write_archive(tmp_path / "a.mar", "net")
    fill_store([write_archive(tmp_path / "b.mar", "old")], tmp_path / "store")
    fill_store([archive], tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["net.mar"]
    assert archive.exists()


def test_fill_store_with_two_of_a_name_rejects(tmp_path):
    archives = [write_archive(tmp_path / f"{i}.mar", "net") for i in range(2)]
    with pytest.raises(ServerError, match="two archives have the same model name: net, net"):
        fill_store(archives, tmp_path / "store")


@pytest.mark.parametrize(
    "name", ["../net", "/dev/null/net", "a/net", "net=other", "-net", "a\nnet", ""]
)
def test_fill_store_with_a_name_that_is_no_file_s_rejects_and_writes_nothing(tmp_path, name):
    archive = write_archive(tmp_path / "a.mar", name)
    with pytest.raises(
        ServerError, match="the model's name must be letters, digits, dots and dashes, got"
    ):
        fill_store([archive], tmp_path / "run" / "store")
    assert [path.name for path in tmp_path.rglob("*.mar")] == ["a.mar"]


def test_fill_store_with_nothing_says_how_to_make_an_archive(tmp_path):
    with pytest.raises(ServerError, match="make one with: segserve archive"):
        fill_store([], tmp_path / "store")


@pytest.fixture
def signing(tmp_path):
    key = SigningKey.generate()
    _, public = key.write(tmp_path / "signer")
    return key, TrustedKeys.read(public)


def test_fill_store_with_trusted_keys_holds_the_bytes_that_were_verified(tmp_path, signing):
    key, trusted = signing
    archive = write_archive(tmp_path / "a.mar", "net")
    key.sign(archive)
    content = archive.read_bytes()
    assert fill_store([archive], tmp_path / "store", trusted=trusted) == ("net",)
    archive.write_bytes(b"something else")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["net.mar"]
    assert (tmp_path / "store" / "net.mar").read_bytes() == content


def test_fill_store_with_trusted_keys_rejects_what_is_not_signed_before_it_is_opened(
    tmp_path, signing
):
    key, trusted = signing
    signed, foreign = write_archive(tmp_path / "a.mar", "net"), tmp_path / "b.mar"
    key.sign(signed)
    foreign.write_bytes(b"no archive at all")
    with pytest.raises(SignatureError, match=r"b\.mar: there is no signature b\.mar\.minisig"):
        fill_store([signed, foreign], tmp_path / "store", trusted=trusted)
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["0.verified"]


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param(None, id="no-manifest"),
        pytest.param("{", id="not-json"),
        pytest.param("[]", id="not-an-object"),
        pytest.param("{}", id="no-name"),
    ],
)
def test_model_name_with_other_zip_file_says_it_is_no_archive(tmp_path, manifest):
    with zipfile.ZipFile(tmp_path / "a.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json" if manifest else "readme", manifest or "hello")
    with pytest.raises(ServerError, match=r"a\.mar is not a model archive"):
        model_name(tmp_path / "a.mar")


def test_model_name_with_text_file_says_it_is_no_archive(tmp_path):
    (tmp_path / "a.mar").write_text("hello")
    with pytest.raises(ServerError, match=r"a\.mar is not a model archive"):
        model_name(tmp_path / "a.mar")


def test_model_name_without_file_says_so(tmp_path):
    with pytest.raises(ServerError, match=r"there is no archive .*absent\.mar"):
        model_name(tmp_path / "absent.mar")
