"""Which token is sent, where several could be."""

import pytest

from segserve.client import SegmentationClient
from segserve.engines import ServerError
from segserve.gateway.background import find_endpoint

URL = "http://127.0.0.1:1"


def token_sent(given=None):
    return find_endpoint(URL, token=given).token


@pytest.fixture
def token_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no server runs from here
    monkeypatch.delenv("SEGSERVE_TOKEN", raising=False)
    path = tmp_path / "token"
    path.write_text("of-the-file\n")
    monkeypatch.setenv("SEGSERVE_TOKEN_FILE", str(path))
    return path


def test_find_endpoint_with_a_token_file_takes_its_content(token_file):
    assert token_sent() == "of-the-file"


def test_find_endpoint_with_token_and_file_takes_the_token(token_file, monkeypatch):
    monkeypatch.setenv("SEGSERVE_TOKEN", "of-the-environment")
    assert token_sent() == "of-the-environment"
    assert token_sent("given") == "given"


def test_find_endpoint_with_a_file_that_is_gone_says_so(token_file):
    token_file.unlink()
    with pytest.raises(ServerError, match=r"the file of \$SEGSERVE_TOKEN_FILE: .*No such file"):
        find_endpoint(URL)


def test_client_without_an_address_uses_the_variables(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGSERVE_URL", "http://127.0.0.1:9001/")
    monkeypatch.setenv("SEGSERVE_TOKEN", "the-token-of-the-environment")
    found = find_endpoint()
    assert (found.url, found.token) == ("http://127.0.0.1:9001/", "the-token-of-the-environment")
    with SegmentationClient() as client:
        assert client._target.endpoint == "http://127.0.0.1:9001/predictions/deeplabv3"
        assert client._target.token == found.token


def test_client_with_an_address_gets_no_token_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGSERVE_TOKEN", "the-token-of-the-environment")
    with SegmentationClient("http://127.0.0.1:9001") as client:
        assert client._target.token is None
