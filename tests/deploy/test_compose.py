"""What `docker compose up` brings up: its parts run on this machine, and by its text what cannot be
run here.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import requests
import yaml

from bench.serving.peers.deployed import make_secrets, write_proxy
from segserve.gateway.settings import variables
from tests.conftest import PROJECT
from tests.packed import pack

from .served import ECHO, free_ports, responses, running

DEPLOY = PROJECT / "deploy"
NGINX, PROMETHEUS, PROMTOOL, OPENSSL = map(
    shutil.which, ("nginx", "prometheus", "promtool", "openssl")
)


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """The folder that `make-secrets.sh` fills."""
    if OPENSSL is None:
        pytest.skip("openssl is not installed: no secrets can be made")
    return make_secrets(tmp_path_factory.mktemp("secrets"))


@pytest.fixture(scope="module")
def server(secrets, tmp_path_factory):
    """The container's command with an archive that echoes; yields its address."""
    folder = tmp_path_factory.mktemp("server")
    token = folder / "token"
    shutil.copy(secrets / "token", token)
    port, metrics_port = free_ports(2)
    place = {
        "ARCHIVE": pack(folder, "echo", ECHO),
        "TOKEN_FILE": token,
        "HOST": "127.0.0.1",
        "RUN_DIR": folder / "run",
    }
    with running(folder, **place, PORT=port, METRICS_PORT=metrics_port) as command:
        command.wait_ready(f"http://127.0.0.1:{port}")
        yield f"127.0.0.1:{port}", f"127.0.0.1:{metrics_port}"


@contextmanager
def process(*command, url, environment=None, verify=True):
    """A program that serves a URL while it runs."""
    child = subprocess.Popen(command, env={**os.environ, **(environment or {})})
    try:
        deadline = time.monotonic() + 120
        while not responses(url, verify=verify):
            assert child.poll() is None, f"{command[0]} ended with {child.returncode}"
            assert time.monotonic() < deadline, f"{command[0]} does not respond at {url}"
            time.sleep(0.2)
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


@pytest.fixture(scope="module")
def proxy(server, secrets, tmp_path_factory):
    """Debian's nginx with the project's settings, before the server and a real page; yields its
    address.
    """
    if NGINX is None:
        pytest.skip("nginx is not installed: the proxy is not run")
    folder = tmp_path_factory.mktemp("proxy")
    port, page_port = free_ports(2)
    nginx = write_proxy(folder, secrets, port=port, server=server[0], page=f"127.0.0.1:{page_port}")
    page = [
        sys.executable,
        "-m",
        "segserve",
        "page",
        "--server",
        f"http://{server[0]}",
        "--port",
        str(page_port),
    ]
    environment = {"SEGSERVE_TOKEN_FILE": str(secrets / "token")}
    url = f"https://127.0.0.1:{port}"
    with (
        process(*page, url=f"http://127.0.0.1:{page_port}", environment=environment),
        process(*nginx, url=f"{url}/ping", verify=str(secrets / "tls.crt")),
    ):
        yield url, folder / "access.log"


def test_proxy_passes_predictions_on_with_the_token_that_lasts(proxy, secrets):
    url, log = proxy
    token = (secrets / "token").read_text().strip()
    response = requests.post(
        f"{url}/predictions/echo",
        data=b"x" * 2_000_000,
        headers={"Authorization": f"Bearer {token}"},
        verify=secrets / "tls.crt",
        timeout=60,
    )
    assert (response.status_code, response.text) == (200, "1.0")
    reported = [json.loads(line) for line in log.read_text().splitlines()]
    assert reported[-1]["message"] == "POST /predictions/echo 200"
    assert token not in log.read_text()


@pytest.mark.parametrize("path", ["v2", "v2/health/ready", "openapi.json"])
def test_proxy_passes_paths_of_the_server_without_a_token_on(proxy, server, secrets, path):
    through = requests.get(f"{proxy[0]}/{path}", verify=secrets / "tls.crt", timeout=60)
    direct = requests.get(f"http://{server[0]}/{path}", timeout=60)
    assert (through.status_code, through.content) == (200, direct.content)


@pytest.mark.parametrize("path", ["v2/models/echo", "hf/echo"])
def test_proxy_passes_the_protocols_on_with_the_token(proxy, server, secrets, path):
    headers = {"Authorization": f"Bearer {(secrets / 'token').read_text().strip()}"}
    through, direct = (
        requests.get(url, headers=headers, verify=secrets / "tls.crt", timeout=60)
        for url in (f"{proxy[0]}/{path}", f"http://{server[0]}/{path}")
    )
    assert (through.status_code, through.content) == (direct.status_code, direct.content)


def test_proxy_without_the_token_gets_the_server_s_rejection(proxy, secrets):
    response = requests.post(
        f"{proxy[0]}/predictions/echo", data=b"x", verify=secrets / "tls.crt", timeout=60
    )
    assert (response.status_code, response.json()["type"]) == (400, "InvalidKeyException")


def test_proxy_has_no_way_to_the_management_api(proxy, secrets):
    response = requests.delete(f"{proxy[0]}/models/echo", verify=secrets / "tls.crt", timeout=60)
    assert response.status_code == 405


def test_proxy_rejects_what_is_too_large_in_json(proxy, secrets):
    response = requests.post(
        f"{proxy[0]}/predictions/echo",
        data=b"x" * (64 * 2**20 + 1),
        verify=secrets / "tls.crt",
        timeout=60,
    )
    assert (response.status_code, response.json()["error"]["code"]) == (413, "image_too_large")


def test_proxy_meets_a_flood_from_one_address_with_503_and_a_time_to_come_back(proxy, secrets):
    def send_until_rejected() -> requests.Response | None:
        with requests.Session() as session:
            for _ in range(200):
                response = session.get(f"{proxy[0]}/ping", verify=secrets / "tls.crt", timeout=60)
                if response.status_code != 200:
                    return response
        return None

    with ThreadPoolExecutor(12) as clients:
        rejected = [
            response
            for response in clients.map(lambda _: send_until_rejected(), range(12))
            if response is not None
        ]
    assert rejected
    for response in rejected:
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        assert response.headers["Retry-After"] == "2"
    time.sleep(1)
    assert requests.get(f"{proxy[0]}/ping", verify=secrets / "tls.crt", timeout=60).ok


def test_proxy_without_upstream_returns_503_with_retry_after(secrets, tmp_path):
    if NGINX is None:
        pytest.skip("nginx is not installed: the proxy is not run")
    port, absent = free_ports(2)
    nginx = write_proxy(
        tmp_path, secrets, port=port, server=f"127.0.0.1:{absent}", page=f"127.0.0.1:{absent}"
    )
    certificate = str(secrets / "tls.crt")
    child = subprocess.Popen(nginx)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                response = requests.get(
                    f"https://127.0.0.1:{port}/ping", verify=certificate, timeout=10
                )
                break
            except requests.ConnectionError:
                assert time.monotonic() < deadline, "nginx does not respond"
                time.sleep(0.1)
    finally:
        child.terminate()
        child.wait(30)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
    assert response.headers["Retry-After"] == "2"


def test_proxy_rejects_what_it_cannot_read_in_json(proxy, secrets):
    for headers in ({"Host": "a b"}, {"X-Long": "y" * 40_000}):
        response = requests.get(
            f"{proxy[0]}/ping", headers=headers, verify=secrets / "tls.crt", timeout=30
        )
        assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")


def test_proxy_speaks_no_old_tls(proxy):
    port = int(proxy[0].rpartition(":")[2])
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_1"]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=30, check=False)
    assert done.returncode != 0


def test_page_behind_the_proxy_requires_the_password(proxy, secrets):
    assert requests.get(f"{proxy[0]}/", verify=secrets / "tls.crt", timeout=60).status_code == 401
    password = (secrets / "page.password").read_text().strip()
    response = requests.get(
        f"{proxy[0]}/", auth=("segserve", password), verify=secrets / "tls.crt", timeout=60
    )
    assert response.status_code == 200
    assert "segserve" in response.text


def test_make_secrets_leaves_what_is_there_and_is_read_by_nothing_else(secrets):
    before = {
        file.name: file.read_bytes() for file in secrets.iterdir() if file.name != "page.htpasswd"
    }
    subprocess.run(["sh", DEPLOY / "proxy" / "make-secrets.sh", secrets], check=True)
    assert all((secrets / name).read_bytes() == content for name, content in before.items())
    assert all(file.stat().st_mode & 0o077 == 0 for file in secrets.iterdir())


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed: it is not run")
def test_prometheus_with_the_project_s_settings_finds_the_server(server, tmp_path):
    shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    settings = tmp_path / "prometheus" / "prometheus.yml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(
        text.replace("server:8082", server[1]).replace(
            "scrape_interval: 15s", "scrape_interval: 1s"
        )
    )
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    command = [PROMETHEUS, f"--config.file={settings}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with process(
        *command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn", url=f"{url}/-/ready"
    ):
        deadline = time.monotonic() + 60
        while not (
            found := query(url, "ts_inference_requests_total")
            or query(url, 'up{job="segserve"} == 1')
        ):
            assert time.monotonic() < deadline, "Prometheus does not find the server"
            time.sleep(0.5)
        assert found[0]["metric"]["job"] == "segserve"
        rules = requests.get(f"{url}/api/v1/rules", timeout=30).json()["data"]["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}


def query(url, expression):
    response = requests.get(f"{url}/api/v1/query", params={"query": expression}, timeout=30)
    return response.json()["data"]["result"]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_prometheus_settings_have_no_findings():
    done = subprocess.run(
        [PROMTOOL, "check", "config", DEPLOY / "prometheus" / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_compose_files_that_are_mounted_are_there(compose):
    for name, service in compose["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {source}"
            else:
                assert source in compose["volumes"], f"{name}: {source}"


def test_compose_sets_variables_that_the_container_has(compose):
    assert set(compose["services"]["server"]["environment"]) <= set(variables())


def test_compose_services_have_no_rights_and_only_the_proxy_is_reached_from_elsewhere(compose):
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        published = service.get("ports", [])
        assert name == "proxy" or all(port.startswith("127.0.0.1:") for port in published), name
    assert compose["networks"]["inside"]["internal"] is True
    assert compose["services"]["server"]["networks"] == ["inside"]


def test_compose_logs_and_bodies_cannot_fill_the_machine(compose):
    for name, service in compose["services"].items():
        assert name == "secrets" or service["logging"]["driver"] == "local", name
    assert "size=" in compose["services"]["proxy"]["tmpfs"][0]


def test_compose_server_and_secrets_come_from_the_image_that_is_named(compose):
    images = {name: compose["services"][name]["image"] for name in ("secrets", "server")}
    assert set(images.values()) == {"${SEGSERVE_IMAGE:-segserve}"}


def test_compose_targets_are_those_of_the_dockerfile(compose):
    stages = set(
        re.findall(
            r"^FROM .* AS (\S+)$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    targets = {
        service["build"]["target"] for service in compose["services"].values() if "build" in service
    }
    assert targets <= stages


def test_grafana_is_provisioned_with_the_dashboard_and_a_prometheus(compose):
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "segserve.yaml").read_text())[
        "providers"
    ]
    mounted = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/segserve.json" in mounted
