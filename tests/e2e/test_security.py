"""The hardened defaults, one by one, on a TorchServe as `segserve serve` starts it: see
docs/security.md.
"""

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import grpc
import onnx
import psutil
import pytest
import requests
from PIL import Image, PngImagePlugin

from segserve.archive import build_archive
from segserve.engines import ServerError
from segserve.engines.config import read_properties
from segserve.engines.torchserve_process import TorchServe
from segserve.signing import SigningKey, TrustedKeys
from tests.conftest import EMBEDDED, PROJECT
from tests.e2e.user import segserve
from tests.packed import pack
from tests.unit.tiny import write_tiny_model

# Reports what code in an archive sees of the environment: its own, and that of the process that
# started it.
PROBE = """
import json, os, pathlib

class Probe:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        parent = pathlib.Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\\0")
        names = [entry.partition(b"=")[0].decode() for entry in parent if entry]
        return [json.dumps({"own": sorted(os.environ), "parent": names}) for _ in data]
"""

# Leaves a trace as soon as it is imported.
FOREIGN = """
import pathlib
pathlib.Path("MARKER").touch()

class Foreign:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [b"" for _ in data]
"""

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "hunter2",
    "SEGSERVE_TOKEN": "hunter2",
    "DATABASE_URL": "postgres://user:hunter2@db/prod",
    "https_proxy": "http://user:hunter2@proxy:3128",
    "MY_SETTING": "hunter2",
}
COMMENT = "eine sehr private Bildunterschrift"
ORIGIN = {
    "Origin": "https://attacker.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization",
}


@pytest.fixture(scope="module")
def signing(tmp_path_factory) -> tuple[SigningKey, Path]:
    key = SigningKey.generate()
    return key, key.write(tmp_path_factory.mktemp("keys") / "signer")[1]


@pytest.fixture(scope="module")
def server(signing, tmp_path_factory):
    """Serves two signed archives, and was started where secrets stand in the environment."""
    key, public = signing
    folder = tmp_path_factory.mktemp("archives")
    archives = [
        build_archive(write_tiny_model(tmp_path_factory.mktemp("tiny")), folder),
        pack(folder, "probe", PROBE),
    ]
    for archive in archives:
        key.sign(archive)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SECRETS.items():
            environment.setenv(name, value)
        server = TorchServe.start(
            archives, tmp_path_factory.mktemp("run"), trusted=TrustedKeys.read(public)
        )
    with server:
        server.wait_ready()
        yield server


@pytest.fixture
def bearer(server) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.inference_token}"}


@pytest.fixture
def management_bearer(server) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.management_token}"}


def image_with_comment() -> bytes:
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", COMMENT)
    file = io.BytesIO()
    Image.effect_noise((64, 48), 50).convert("RGB").save(file, "PNG", pnginfo=comment)
    return file.getvalue()


def processes(server) -> list[psutil.Process]:
    leader = psutil.Process(server.pid)
    return [leader, *leader.children(recursive=True)]


# Who may send requests


def test_every_socket_listens_on_loopback_alone(server):
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for process in processes(server)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("method", "port", "path"),
    [
        pytest.param("POST", "inference", "/predictions/tiny", id="prediction"),
        pytest.param("POST", "inference", "/predictions/tiny/1.0", id="prediction-of-a-version"),
        pytest.param("GET", "inference", "/ping", id="ping"),
        pytest.param("GET", "management", "/models", id="list"),
        pytest.param("GET", "management", "/models/tiny?customized=true", id="description"),
        pytest.param("POST", "management", "/models?url=tiny.mar", id="registration"),
        pytest.param("PUT", "management", "/models/tiny?min_worker=0", id="scaling"),
        pytest.param("PUT", "management", "/models/tiny/1.0/set-default", id="default-version"),
        pytest.param("POST", "management", "/workflows?url=tiny.war", id="workflow"),
        pytest.param("GET", "management", "/token?type=inference", id="new-token"),
    ],
)
@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Bearer ", "Basic dG9rZW4="], ids=str
)
def test_request_without_the_token_is_rejected(server, method, port, path, authorization):
    url = f"{server.inference_url if port == 'inference' else server.management_url}{path}"
    headers = {"Authorization": authorization} if authorization else {}
    response = requests.request(method, url, headers=headers, timeout=30)
    assert response.status_code == 400
    assert response.json()["type"] == "InvalidKeyException"


def test_grpc_prediction_without_the_token_is_rejected(server):
    with (
        grpc.insecure_channel(server.grpc_address) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions")(
            b"", timeout=30, metadata=[("authorization", "Bearer wrong")]
        )
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("call", ["ListModels", "RegisterModel", "UnregisterModel"])
def test_grpc_management_without_the_token_is_rejected(server, call):
    address = (
        f"127.0.0.1:{read_properties(server.run_dir / 'config.properties')['grpc_management_port']}"
    )
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/org.pytorch.serve.grpc.management.ManagementAPIsService/{call}")(
            b"", timeout=30
        )
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


# What may be loaded


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("POST", "/models?url=tiny.mar", id="register-from-the-store"),
        pytest.param("POST", "/models?url=http://127.0.0.1:1/evil.mar", id="register-from-the-web"),
        pytest.param("DELETE", "/models/tiny", id="unregister"),
    ],
)
def test_models_cannot_be_changed_over_http_with_the_management_token(
    server, management_bearer, method, path
):
    response = requests.request(
        method, f"{server.management_url}{path}", headers=management_bearer, timeout=30
    )
    assert response.status_code == 405
    [listed] = requests.get(
        f"{server.management_url}/models/tiny", headers=management_bearer, timeout=30
    ).json()
    assert listed["modelName"] == "tiny"


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://127.0.0.1:1/evil.war", id="web"),
        pytest.param("file:///tmp/evil.war", id="file"),
        pytest.param("../evil.war", id="above-the-store"),
    ],
)
def test_workflows_cannot_be_loaded_with_the_management_token(server, management_bearer, url):
    """TorchServe's switch for models does not close its workflows: the allowed URLs do."""
    url = f"{server.management_url}/workflows?url={url}"
    response = requests.post(url, headers=management_bearer, timeout=30)
    assert response.status_code == 404
    assert "allowed" in response.json()["message"]


def test_predictions_port_takes_nothing_of_the_management_api(server, management_bearer):
    for method, path in (
        ("GET", "/models"),
        ("POST", "/models?url=tiny.mar"),
        ("PUT", "/models/tiny?min_worker=0"),
    ):
        response = requests.request(
            method, f"{server.inference_url}{path}", headers=management_bearer, timeout=30
        )
        assert response.status_code in (400, 404, 405), path


def test_serve_foreign_archive_is_rejected_before_any_of_its_code_runs(signing, tmp_path):
    marker = tmp_path / "ran"
    archive = pack(tmp_path, "foreign", FOREIGN.replace("MARKER", str(marker)))
    SigningKey.generate().sign(archive)
    done = segserve("serve", "--archive", str(archive), "--trust", str(signing[1]), folder=tmp_path)
    assert done.returncode == 1
    assert "signed by the key" in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert not marker.exists()
    assert not (tmp_path / ".run").exists()


def test_archive_changed_after_the_start_is_not_what_is_served(server, signing, tmp_path):
    """What was verified lies in the server's own folder, and not as a link to where it came
    from.
    """
    for archive in (server.run_dir / "model-store").iterdir():
        assert not archive.is_symlink()
        assert archive.stat().st_nlink == 1


def test_start_with_trusted_keys_and_the_model_api_is_rejected(signing, tmp_path):
    (tmp_path / "config.properties").write_text("enable_model_api=true\n")
    with pytest.raises(
        ServerError, match="archives that are registered over HTTP are not verified"
    ):
        TorchServe.start(
            [tmp_path / "absent.mar"],
            tmp_path / "run",
            config=tmp_path / "config.properties",
            trusted=TrustedKeys.read(signing[1]),
        )


def test_archive_holds_no_pickle(tmp_path):
    """Weights are safetensors, the network is ONNX: everything else is text."""
    with zipfile.ZipFile(build_archive(EMBEDDED, tmp_path)) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".safetensors"):
                assert json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            elif name.endswith(".onnx"):
                assert onnx.load_model_from_string(content).graph.node
            else:
                content.decode("utf-8")


def test_repository_holds_no_pickle():
    if not (PROJECT / ".git").exists():
        pytest.skip("not a git repository")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    pickles = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy", ".npz", ".mar", ".key")
    assert [name for name in listed.splitlines() if name.endswith(pickles)] == []


# What responses contain


@pytest.mark.parametrize("port", ["inference", "management", "metrics"])
@pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST"])
def test_no_page_of_another_origin_may_read_a_response(server, bearer, port, method):
    paths = {"inference": "/predictions/tiny", "management": "/models", "metrics": "/metrics"}
    headers = {**ORIGIN, **(bearer if port == "inference" else {})}
    response = requests.request(
        method, f"{getattr(server, f'{port}_url')}{paths[port]}", headers=headers, timeout=30
    )
    assert not [name for name in response.headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(image_with_comment(), 200, id="response"),
        pytest.param(b"no image", 415, id="error"),
    ],
)
def test_response_is_not_stored_not_guessed_at_and_reports_no_version(server, bearer, body, status):
    response = requests.post(
        f"{server.inference_url}/predictions/tiny", data=body, headers=bearer, timeout=60
    )
    assert response.status_code == status
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "no-store" in response.headers["Cache-Control"]
    assert response.headers["Content-Type"] == "application/json"
    assert not {name.lower() for name in response.headers} & {"server", "x-powered-by", "via"}


# What is written, and who reads it


def test_logs_hold_neither_token_nor_image(server, bearer, management_bearer):
    image = image_with_comment()
    url = f"{server.inference_url}/predictions/tiny"
    encoded = base64.b64encode(image).decode()
    assert requests.post(url, data=image, headers=bearer, timeout=60).ok
    assert requests.post(url, files={"data": ("private.png", image)}, headers=bearer, timeout=60).ok
    assert requests.post(url, json={"data": encoded}, headers=bearer, timeout=60).ok
    assert (
        requests.post(url, data=image[: len(image) // 2], headers=bearer, timeout=60).status_code
        == 422
    )
    assert requests.get(f"{server.management_url}/models", headers=management_bearer, timeout=60).ok
    for token in ("wrong-token-of-a-user", server.inference_token):
        requests.get(
            f"{server.management_url}/models",
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
        )
    reported = server.log_path.read_bytes()
    assert b"tiny" in reported
    tokens = [
        entry["key"]
        for entry in json.loads((server.run_dir / "key_file.json").read_text()).values()
    ]
    for private in (*tokens, "wrong-token-of-a-user", COMMENT, "private.png", encoded[1000:1040]):
        assert private.encode() not in reported, private
    assert image[1000:1020] not in reported


def test_secrets_of_the_environment_reach_no_process_of_the_server(server, bearer):
    response = requests.post(
        f"{server.inference_url}/predictions/probe", data=b"x", headers=bearer, timeout=60
    )
    seen = response.json()
    assert "PATH" in seen["own"]
    assert not set(SECRETS) & {*seen["own"], *seen["parent"]}
    for process in processes(server):
        assert "hunter2" not in str(process.environ())


def test_tokens_are_in_one_file_that_its_owner_alone_reads_outside_of_the_repository(server):
    assert (server.run_dir / "key_file.json").stat().st_mode & 0o777 == 0o600
    if (PROJECT / ".git").exists():  # what `segserve serve` writes below the current folder
        names = [".run/serve/key_file.json", "signer.key"]
        done = subprocess.run(
            ["git", "check-ignore", *names],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.split() == names


def test_what_the_server_writes_of_requests_is_its_owner_s_alone(server):
    [tmp_dir] = [path for path in server.run_dir.iterdir() if path.name == "tmp"]
    assert tmp_dir.stat().st_mode & 0o777 == 0o700  # Netty puts large forms there: CVE-2021-21290
    assert server.log_path.stat().st_mode & 0o077 == 0
    assert not (server.run_dir / "logs").exists()


def test_command_line_of_the_server_shows_no_token(server):
    tokens = [
        entry["key"]
        for entry in json.loads((server.run_dir / "key_file.json").read_text()).values()
    ]
    lines = " ".join(" ".join(process.cmdline()) for process in processes(server))
    assert sys.executable in lines
    assert not [token for token in tokens if token in lines]
    assert os.path.basename(lines.split()[0]) == "java"
