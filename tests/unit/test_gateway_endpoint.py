"""Which token is sent, where several could be, and which environment a server gets."""

import sys
from pathlib import Path

import pytest

from segserve.client import SegmentationClient
from segserve.engines import ServerError
from segserve.gateway import background
from segserve.gateway.background import Server, find_endpoint
from segserve.gateway.settings import GatewaySettings

URL = "http://127.0.0.1:1"
SETTINGS = GatewaySettings.model_fields


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


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """That of the process which `started` starts in place of a gateway."""
    passed_on = {}
    spawn = background.spawn

    def spawn_idle(_, run_dir, environment, *, new_session):
        passed_on.update(environment)
        idle = [sys.executable, "-c", "import time; time.sleep(60)"]
        return spawn(idle, run_dir, environment, new_session=new_session)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(background, "spawn", spawn_idle)
    monkeypatch.setattr(background, "_model_names", lambda *_: ("echo",))
    return passed_on


def started() -> Server:
    with Server.start([Path("echo.mar")], Path("run"), engine="local") as server:
        return server


def test_start_passes_relative_paths_on_as_absolute_ones(environment, monkeypatch, tmp_path):
    fields = {name.upper(): str(field.annotation) for name, field in SETTINGS.items()}
    own = {"ARCHIVE", "CONFIG", "RUN_DIR"}
    names = {name for name, annotation in fields.items() if "Path" in annotation} - own
    for name in names:
        monkeypatch.setenv(f"SEGSERVE_{name}", f"secrets/{name}")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "TOKEN_FILE").write_text("of-the-file\n")
    server = started()
    monkeypatch.chdir("/")
    assert server.token_file.read_text() == "of-the-file\n"
    assert {"TOKEN_FILE", "MANAGEMENT_TOKEN_FILE", "TRUST", "MODELS_DIR"} <= names
    for name in names:
        assert environment[f"SEGSERVE_{name}"] == str(tmp_path / "secrets" / name)


def test_start_with_empty_variables_takes_them_as_unset(environment, monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSERVE_TOKEN_FILE", " ")
    assert started().token_file == tmp_path / "run" / "token"
    assert "SEGSERVE_TOKEN_FILE" not in environment


def test_start_passes_on_the_variables_that_workers_need(environment, monkeypatch):
    monkeypatch.setenv("SEGSERVE_WORKER_ENV", "MY_MODE")
    monkeypatch.setenv("MY_MODE", "fast")
    started()
    assert (environment["SEGSERVE_WORKER_ENV"], environment["MY_MODE"]) == ("MY_MODE", "fast")


@pytest.mark.parametrize(("given", "expected"), [(None, 300), ("900", 900)], ids=["unset", "set"])
def test_start_timeout_is_that_of_the_environment(environment, monkeypatch, given, expected):
    if given:
        monkeypatch.setenv("SEGSERVE_START_TIMEOUT_S", given)
    assert started().start_timeout_s == expected
    assert float(environment["SEGSERVE_START_TIMEOUT_S"]) == expected


def test_start_with_a_variable_that_is_not_valid_names_it(environment, monkeypatch):
    monkeypatch.setenv("SEGSERVE_DEVICE", "tpu")
    with pytest.raises(ServerError, match=r"^SEGSERVE_DEVICE is 'tpu', which is not valid"):
        started()
    assert environment == {}
