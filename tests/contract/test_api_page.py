"""The commands of docs/api.md do what stands there."""

import json
import os
import subprocess

import pytest

from tests.contract.conftest import Api
from tests.documents import blocks

COMMANDS = blocks("docs/api.md", "sh")


@pytest.mark.parametrize(
    ("command", "encoding"),
    list(zip(COMMANDS, ["rle", "polygons", None], strict=True)),
    ids=["header", "form", "JSON"],
)
def test_api_page_command_gets_a_response(api: Api, photographs, tmp_path, command, encoding):
    (tmp_path / "cat.png").write_bytes(photographs["chelsea"])
    token = api.headers["Authorization"].removeprefix("Bearer ")
    result = subprocess.run(
        ["/bin/bash", "-c", command.replace("http://127.0.0.1:8080", api.inference_url)],
        cwd=tmp_path,
        env={**os.environ, "TOKEN": token},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    response = json.loads(result.stdout)
    assert response.get("mask", {}).get("encoding") == encoding
    assert "cat" in [entry["label"] for entry in response["classes"]]
