"""The image as users run it, but for fewer rights: built by `make image`, run here by docker or
podman.
"""

import json
import os

import pytest
import requests

from .engines import HEALTHCHECK, IMAGE, call_engine, container, need_image, readable
from .served import Load

TOKEN = "a-token-of-some-length"  # noqa: S105
SECONDS_TO_HEALTHY = float(
    os.environ.get("SEGSERVE_SECONDS_TO_HEALTHY") or 90
)  # 25 on two cores that do nothing else
BASE_MB = 125  # python:3.11-slim-bookworm as it is published
TARGET = os.environ.get("SEGSERVE_IMAGE_TARGET") or "server"
LARGEST_MB = {"server": 500, "onnx": 350}[TARGET]
PACKAGES = {
    "server": {"pkg:pypi/torch", "pkg:pypi/torchserve", "pkg:generic/openjdk"},
    "onnx": {"pkg:pypi/openvino"},
}[TARGET]
# PyTorch, its packages for GPUs, and packages that only PyTorch requires.
PYTORCH = (
    "torch",
    "nvidia",
    "triton",
    "cuda",
    "functorch",
    "sympy",
    "mpmath",
    "networkx",
    "jinja2",
    "markupsafe",
)

SIZES = """
import json, os
site = "/opt/venv/lib/python3.{}/site-packages".format(__import__("sys").version_info[1])
def size(path):
    if os.path.islink(path) or not os.path.isdir(path):
        return os.lstat(path).st_size
    return sum(size(entry.path) for entry in os.scandir(path))
sizes = {name: size(f"{site}/{name}") for name in os.listdir(site)}
print(json.dumps({"opt": size("/opt"), "packages": sizes}))
"""


@pytest.fixture(scope="module", autouse=True)
def _image():
    need_image()


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secrets")
    folder.chmod(0o755)
    readable(folder / "token", TOKEN)
    return (
        "--volume",
        f"{folder}:/run/secrets:ro",
        "--env",
        "SEGSERVE_TOKEN_FILE=/run/secrets/token",
    )


@pytest.fixture(scope="module")
def server(secret):
    with container(
        *secret, "--publish", "127.0.0.1::8080", "--publish", "127.0.0.1::8082"
    ) as server:
        server.seconds = server.wait_healthy()
        yield server


def test_container_is_healthy_within_seconds(server):
    assert server.seconds < SECONDS_TO_HEALTHY
    messages = [line["message"] for line in server.log()]
    assert "ready: deeplabv3" in messages


def test_container_segments_a_photograph_from_outside(server, photographs):
    response = requests.post(
        f"http://{server.address_of(8080)}/predictions/deeplabv3",
        files={"data": photographs["chelsea"]},
        headers={"Authorization": f"Bearer {TOKEN}", "X-Segment-Mask": "none"},
        timeout=120,
    )
    assert response.status_code == 200, response.text
    assert response.json()["classes"][0]["label"] == "cat"


def test_container_rejects_a_request_without_the_token(server):
    response = requests.post(
        f"http://{server.address_of(8080)}/predictions/deeplabv3", data=b"x", timeout=30
    )
    assert (response.status_code, response.json()["type"]) == (400, "InvalidKeyException")


def test_container_has_metrics_for_prometheus(server):
    assert (
        "ts_inference_requests_total"
        in requests.get(f"http://{server.address_of(8082)}/metrics", timeout=30).text
    )


def test_container_runs_without_rights(server):
    facts = json.loads(
        server.python(
            "import json, os; status = dict(line.split(':', 1) for line in "
            "open('/proc/1/status')); "
            "print(json.dumps([os.getuid(), os.getgid(), status['CapEff'].strip(), "
            "status['NoNewPrivs'].strip(), "
            "os.access('/opt', os.W_OK), os.statvfs('/').f_flag & os.ST_RDONLY]))"
        )
    )
    assert facts == [10001, 10001, "0" * 16, "1", False, 1]


def test_container_starts_no_shell(server):
    command = json.loads(
        call_engine("image", "inspect", "--format", "{{json .Config.Entrypoint}}", IMAGE).stdout
    )
    assert command == ["python", "-m", "segserve.gateway"]
    assert (
        json.loads(call_engine("image", "inspect", "--format", HEALTHCHECK, IMAGE).stdout)[0]
        == "CMD"
    )
    running = server.python(
        "import pathlib; print({p.joinpath('comm').read_text().strip() for p in "
        "pathlib.Path('/proc').glob('[0-9]*')})"
    )
    assert not {"sh", "bash", "dash"} & eval(running, {})  # noqa: S307


def test_container_holds_the_list_of_what_it_is_made_of(server):
    document = json.loads(server.python("print(open('/opt/segserve/sbom.cdx.json').read())"))
    assert document["bomFormat"] == "CycloneDX"
    purls = {component["purl"].partition("@")[0] for component in document["components"]}
    common = {"pkg:generic/cpython", "pkg:pypi/starlette", "pkg:deb/debian/libc6"}
    assert common | PACKAGES <= purls


def test_image_without_pytorch_is_small(server):
    sizes = json.loads(server.python(SIZES))
    pytorch = sum(
        size for name, size in sizes["packages"].items() if name.lower().startswith(PYTORCH)
    )
    own = sizes["packages"].get("torchserve-0.12.0.dist-info", 0)  # begins like PyTorch's name
    assert (sizes["opt"] - pytorch + own) / 1e6 + BASE_MB <= LARGEST_MB


def test_container_stopped_under_load_loses_no_request_and_ends_with_0(secret, photographs):
    with container(*secret, "--publish", "127.0.0.1::8080") as server:
        server.wait_healthy()
        url = f"http://{server.address_of(8080)}/predictions/deeplabv3"
        with Load(
            url, TOKEN, clients=4, body=photographs["chelsea"], headers={"X-Segment-Mask": "none"}
        ) as load:
            load.wait_for("completed", 4)
            call_engine("stop", "--time", "60", server.name)
            load.join()
        assert server.inspect("{{.State.ExitCode}}") == "0"
        messages = [line["message"] for line in server.log()]
    assert set(load.outcomes) <= {"completed", "rejected"}, load.outcomes
    assert "stopped; every request has its response" in messages


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        pytest.param(
            "SEGSERVE_ARCHIVE=/models/absent.mar",
            "there is no archive /models/absent.mar",
            id="no-archive",
        ),
        pytest.param("SEGSERVE_PROT=80", "there is no variable SEGSERVE_PROT", id="variable"),
        pytest.param("SEGSERVE_PORT=8082", "Address already in use", id="port-taken"),
    ],
)
def test_container_that_cannot_serve_ends_with_one_line(variable, message):
    with container("--env", variable) as failed:
        assert failed.wait_ended() == 1
        [error] = [line for line in failed.log() if line["level"] == "error"]
    assert message in error["message"]
