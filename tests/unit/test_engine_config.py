"""Settings: the file format, the ports, and what the project's own config.properties promises."""

import re
import socket
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segserve.engines import ServerError
from segserve.engines.config import (
    choose_addresses,
    merge,
    read_config,
    read_properties,
    write_properties,
)
from segserve.resources import resource

VARIABLES = (
    "SEGSERVE_PORT",
    "SEGSERVE_MANAGEMENT_PORT",
    "SEGSERVE_METRICS_PORT",
)
PORT_KEYS = (
    "inference_address",
    "management_address",
    "metrics_address",
    "grpc_inference_port",
    "grpc_management_port",
)


@pytest.fixture(autouse=True)
def no_ports_in_environment(monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return port


def ports(addresses):
    return [int(re.search(r"[0-9]+$", addresses[key])[0]) for key in PORT_KEYS]


def test_read_properties_with_comments_escapes_and_continuation_returns_java_s_values(tmp_path):
    path = tmp_path / "a.properties"
    path.write_text(
        "# comment\n! comment\n\n key = a=b \nlong=one,\\\n   two\npath=C:\\\\x\\u00e9\\t.\n",
        encoding="ascii",
    )
    assert read_properties(path) == {"key": "a=b ", "long": "one,two", "path": "C:\\xé\t."}


def test_read_properties_with_a_broken_escape_names_the_file(tmp_path):
    path = tmp_path / "a.properties"
    path.write_text("# first\nkey=\\u12\n")
    with pytest.raises(ServerError, match=r"a\.properties: Invalid .u escape sequence"):
        read_properties(path)


def test_read_properties_without_file_says_so(tmp_path):
    with pytest.raises(ServerError, match=r"cannot read the settings .*No such file"):
        read_properties(tmp_path / "absent.properties")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(value=st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\\\t\n\r ")))
def test_write_properties_with_any_text_is_read_back(tmp_path, value):
    path = tmp_path / "a.properties"
    write_properties({"key": value}, path)
    assert read_properties(path) == {"key": value}


def test_read_config_with_unknown_key_names_it(tmp_path):
    path = tmp_path / "config.properties"
    path.write_text("max_reqest_size=1\n")
    with pytest.raises(ServerError, match="no setting 'max_reqest_size'"):
        read_config(path)


def test_choose_addresses_with_free_ports_keeps_them(free_port):
    chosen = choose_addresses({"inference_address": f"http://127.0.0.1:{free_port}"})
    assert chosen["inference_address"] == f"http://127.0.0.1:{free_port}"


def test_choose_addresses_with_port_in_environment_takes_it(monkeypatch, free_port):
    monkeypatch.setenv("SEGSERVE_PORT", str(free_port))
    assert choose_addresses({})["inference_address"] == f"http://127.0.0.1:{free_port}"


def test_choose_addresses_with_empty_environment_keeps_settings(monkeypatch, free_port):
    monkeypatch.setenv("SEGSERVE_PORT", "")
    settings = {"inference_address": f"http://127.0.0.1:{free_port}"}
    assert choose_addresses(settings)["inference_address"] == f"http://127.0.0.1:{free_port}"


def test_choose_addresses_with_taken_port_picks_another(taken_port):
    chosen = choose_addresses({"grpc_inference_port": str(taken_port)})
    assert chosen["grpc_inference_port"] != str(taken_port)


def test_choose_addresses_with_the_same_port_everywhere_picks_five_different(
    monkeypatch, free_port
):
    for variable in VARIABLES:
        monkeypatch.setenv(variable, str(free_port))
    chosen = ports(choose_addresses({}))
    assert chosen[0] == free_port
    assert len(set(chosen)) == 5


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("0", id="zero"),
        pytest.param("65536", id="too-large"),
        pytest.param("-1", id="negative"),
        pytest.param("80.5", id="fraction"),
        pytest.param("http", id="word"),
        pytest.param("٨٠٨٠", id="other-digits"),
    ],
)
def test_choose_addresses_with_bad_port_names_the_variable(monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)
    with pytest.raises(
        ServerError, match=f"^{variable} must be a port number from 1 to 65535, got '{text}'"
    ):
        choose_addresses({})


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("unix:/tmp/socket", id="unix-socket"),
        pytest.param("127.0.0.1:8080", id="no-scheme"),
        pytest.param("http://", id="no-host"),
        pytest.param("http://127.0.0.1:8080/path", id="path"),
    ],
)
def test_choose_addresses_with_bad_address_says_what_is_expected(address):
    with pytest.raises(ServerError, match="metrics_address must be http://HOST:PORT"):
        choose_addresses({"metrics_address": address})


def test_choose_addresses_with_other_machine_s_address_says_so():
    with pytest.raises(ServerError, match=r"cannot listen on 192\.0\.2\.1:"):
        choose_addresses({"inference_address": "http://192.0.2.1:8080"})


def test_merge_with_store_allows_only_archives_inside_it(tmp_path):
    store = tmp_path / "a store, with [marks] (and more)"
    allowed = merge({}, model_store=store, overrides={})["allowed_urls"]
    assert "," not in allowed  # TorchServe splits the list there
    assert re.fullmatch(allowed, f"file://{store}/net.mar")
    for rejected in (
        f"file://{store}/../net.mar",
        f"file://{store}/sub/net.mar",
        "file:///net.mar",
        "http://a/net.mar",
    ):
        assert not re.fullmatch(allowed, rejected)


def test_merge_with_override_takes_it_over_the_file(tmp_path):
    merged = merge({"job_queue_size": "7"}, model_store=tmp_path, overrides={"job_queue_size": "8"})
    assert merged["job_queue_size"] == "8"


def test_merge_with_unknown_override_says_so(tmp_path):
    with pytest.raises(ServerError, match="overrides: TorchServe has no setting 'job_queue'"):
        merge({}, model_store=tmp_path, overrides={"job_queue": "8"})


def test_project_config_listens_on_this_machine_only():
    config = read_config(resource("config.properties"))
    hosts = [urlsplit(config[key]).hostname for key in PORT_KEYS[:3]]
    hosts += [config["grpc_inference_address"], config["grpc_management_address"]]
    assert hosts == ["127.0.0.1"] * 5
    assert ports(config) == [8080, 8081, 8082, 7070, 7071]


def test_project_config_is_locked_down_and_sized_for_16_megapixels():
    config = read_config(resource("config.properties"))
    switches = (
        "disable_token_authorization",
        "enable_model_api",
        "install_py_dep_per_model",
        "enable_envvars_config",
    )
    assert [config[key] for key in switches] == ["false"] * 4
    assert not re.fullmatch(config["allowed_urls"], "http://localhost/model-store/net.mar")
    assert config["max_request_size"] == config["max_response_size"] == str(64 * 2**20)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        pytest.param("HF_TOKEN", True, id="token"),
        pytest.param("aws_secret_access_key", True, id="lower-case"),
        pytest.param("DB_PASSWORD", True, id="password"),
        pytest.param("GOOGLE_APPLICATION_CREDENTIALS", True, id="credentials"),
        pytest.param("PATH", False, id="path"),
        pytest.param("OMP_NUM_THREADS", False, id="threads"),
    ],
)
def test_project_config_hides_variables_by_name(name, hidden):
    pattern = read_config(resource("config.properties"))["blacklist_env_vars"]
    assert (
        bool(re.fullmatch(pattern, name)) is hidden
    )  # TorchServe matches whole names, too: see the e2e test
