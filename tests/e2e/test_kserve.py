"""KServe's own Python client reads the label map of a server, in a process of its own."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import requests

from segserve.archive import build_archive
from segserve.gateway.background import Server
from tests.conftest import EMBEDDED

# kserve wants older versions of packages that are installed here, and works with these.
PACKAGES = (
    "kserve==0.21.0",
    "cloudevents==1.12.0",
    "deprecation==2.1.0",
    "durationpy==0.11",
    "grpc-interceptor==0.15.4",
    "kubernetes==37.0.2",
    "oauthlib==4.0.1",
    "requests-oauthlib==2.0.0",
    "tabulate==0.10.0",
    "timing-asgi==0.3.2",
    "websocket-client==1.9.2",
)
CLIENT = """
import asyncio, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def main(url, token, image_file, output):
    client = InferenceRESTClient(config=RESTConfig(protocol="v2", timeout=120))
    headers = {"Authorization": f"Bearer {token}"}
    assert await client.is_server_live(url, headers=headers)
    assert await client.is_server_ready(url, headers=headers)
    assert await client.is_model_ready(url, "deeplabv3", headers=headers)
    image = InferInput("image", [1], "BYTES")
    content = np.array([open(image_file, "rb").read()], object)
    image.set_data_from_numpy(content, binary_data=True)
    request = InferRequest(model_name="deeplabv3", infer_inputs=[image])
    response = await client.infer(url, request, model_name="deeplabv3", headers=headers)
    np.save(output, response.outputs[0].as_numpy())

asyncio.run(main(*sys.argv[1:]))
"""


def test_kserve_client_gets_the_native_label_map(photographs, tmp_path):
    packages = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", packages]
    subprocess.run([*map(str, install), *PACKAGES], check=True, capture_output=True, text=True)
    image_file = tmp_path / "cat.png"
    image_file.write_bytes(photographs["chelsea"])
    archive = build_archive(EMBEDDED, tmp_path)
    with Server.start([archive], tmp_path / "run", engine="local") as server:
        server.wait_ready(timeout_s=300)
        token = server.inference_token
        native = requests.post(
            f"{server.inference_url}/predictions/deeplabv3",
            data=photographs["chelsea"],
            headers={"Authorization": f"Bearer {token}", "Accept": "application/x-npy"},
            timeout=120,
        )
        label_map = np.load(io.BytesIO(native.content))
        output = tmp_path / "label_map.npy"
        call_client(packages, server.inference_url, token, image_file, output)
        assert np.array_equal(np.load(output), label_map[None])


def call_client(packages: Path, *arguments: object) -> None:
    command = [sys.executable, "-c", CLIENT, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
