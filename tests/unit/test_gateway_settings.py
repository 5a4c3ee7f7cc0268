"""The variables of the gateway, and its check of the memory."""

import os
import re
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from segserve.engines import ServerError
from segserve.gateway.__main__ import check_health
from segserve.gateway.settings import (
    MIN_MEMORY_BYTES,
    GatewaySettings,
    check_memory,
    check_settings,
)


def test_settings_of_an_empty_environment_are_the_image_s():
    settings = GatewaySettings.from_environment(
        {"PATH": "/bin", "SEGSERVE_PORT": " ", "SEGSERVE_HOME": "/models"}
    )
    assert settings == GatewaySettings()
    assert settings.archive == (Path("/opt/segserve/model.mar"),)


def test_settings_of_variables_are_theirs():
    settings = GatewaySettings.from_environment(
        {
            "SEGSERVE_ARCHIVE": "/models/a.mar, /models/b.mar",
            "SEGSERVE_PORT": "9000",
            "SEGSERVE_DEVICE": "gpu",
            "SEGSERVE_DRAIN_DELAY_S": "2.5",
            "SEGSERVE_TOKEN_FILE": "/run/secrets/token",
        }
    )
    assert settings.archive == (Path("/models/a.mar"), Path("/models/b.mar"))
    assert (settings.port, settings.device, settings.drain_delay_s) == (9000, "gpu", 2.5)
    assert settings.token_file == Path("/run/secrets/token")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param(
            "SEGSERVE_PROT",
            "1",
            "there is no variable SEGSERVE_PROT; there are .*SEGSERVE_PORT",
            id="typo",
        ),
        pytest.param(
            "SEGSERVE_QUUX_ZZ",
            "1",
            "there is no variable SEGSERVE_QUUX_ZZ; there are SEGSERVE_ARC",
            id="unknown",
        ),
        pytest.param(
            "SEGSERVE_PORT",
            "http",
            "SEGSERVE_PORT is 'http', which is not valid: .* integer",
            id="word",
        ),
        pytest.param(
            "SEGSERVE_PORT",
            "tcp://10.0.0.1:80",
            "SEGSERVE_PORT is 'tcp://10.0.0.1:80'",
            id="service-link",
        ),
        pytest.param(
            "SEGSERVE_METRICS_PORT",
            "65536",
            "SEGSERVE_METRICS_PORT is '65536'.* less than",
            id="too-large",
        ),
        pytest.param(
            "SEGSERVE_DEVICE",
            "tpu",
            "SEGSERVE_DEVICE is 'tpu'.* 'auto', 'cpu' or 'gpu'",
            id="device",
        ),
        pytest.param(
            "SEGSERVE_DRAIN_DELAY_S",
            "-1",
            "SEGSERVE_DRAIN_DELAY_S is '-1'.* greater",
            id="negative",
        ),
        pytest.param(
            "SEGSERVE_TOKEN", "s3cret", "there is no variable SEGSERVE_TOKEN;", id="secret"
        ),
    ],
)
def test_settings_of_a_wrong_variable_name_it_and_the_way_out(name, value, message):
    with pytest.raises(ServerError, match=message) as caught:
        GatewaySettings.from_environment({name: value})
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_torchserve_settings_by_default_close_the_model_api():
    settings = GatewaySettings().torchserve_settings()
    assert settings["enable_model_api"] == "false"
    assert "number_of_gpu" not in settings


def test_torchserve_settings_with_management_token_take_archives_of_the_models_folder(tmp_path):
    settings = GatewaySettings(
        management_token_file=tmp_path / "token", models_dir=Path("/models"), device="cpu"
    )
    assert settings.torchserve_settings()["enable_model_api"] == "true"
    assert settings.torchserve_settings()["number_of_gpu"] == "0"
    assert re.fullmatch(settings.torchserve_settings()["allowed_urls"], "file:///models/next.mar")


def test_max_request_bytes_is_that_of_the_config(tmp_path):
    (tmp_path / "config.properties").write_text("max_request_size=1000\n")
    settings = GatewaySettings(config=tmp_path / "config.properties")
    assert settings.max_request_bytes() == 1000


def test_max_request_bytes_that_is_no_number_is_rejected(tmp_path):
    (tmp_path / "config.properties").write_text("max_request_size=64 MiB\n")
    with pytest.raises(
        ServerError, match="max_request_size must be a number of bytes, got '64 MiB'"
    ):
        GatewaySettings(config=tmp_path / "config.properties").max_request_bytes()


def test_check_memory_with_too_low_a_limit_says_how_much_is_needed(tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text(f"{512 * 2**20}\n")
    with pytest.raises(
        ServerError, match="limited to 512 MiB, and the server needs 1536 MiB at least"
    ):
        check_memory((tmp_path / "absent", limit))


@pytest.mark.parametrize(
    "content",
    [pytest.param("max\n", id="none"), pytest.param(f"{MIN_MEMORY_BYTES}\n", id="enough")],
)
def test_check_memory_with_enough_passes(tmp_path, content):
    limit = tmp_path / "memory.max"
    limit.write_text(content)
    check_memory((limit,))


@pytest.mark.parametrize(("device", "visible"), [("auto", "1"), ("cpu", "")], ids=["auto", "cpu"])
def test_check_settings_hides_the_gpus_from_children_if_the_device_is_cpu(
    tmp_path, monkeypatch, device, visible
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    check_settings(GatewaySettings(run_dir=tmp_path, device=device))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "0.0.0.0:8084"), ("::", "[::]:8084"), ("::1", "[::1]:8084")],  # noqa: S104
    ids=["IPv4", "every", "loopback"],
)
def test_grpc_address_has_brackets_around_ipv6(host, address):
    assert GatewaySettings(host=host, grpc_port=8084).grpc_address == address


class Ping(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"Healthy")


@contextmanager
def healthy_at(host: str):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    server_class = type("Server", (HTTPServer,), {"address_family": family})
    with server_class((host, 0), Ping) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"], ids=["IPv4", "loopback", "every"])
def test_health_check_finds_the_gateway_at_its_host(monkeypatch, capsys, host):
    with healthy_at(host) as port:
        monkeypatch.setenv("SEGSERVE_HOST", host)
        monkeypatch.setenv("SEGSERVE_PORT", str(port))
        assert check_health() == 0, capsys.readouterr().out
