"""A damaged archive stops its worker at load, with one line that says what is wrong."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from segserve.archive import build_archive
from segserve.engines import ServerError
from segserve.engines.torchserve_process import TorchServe
from tests.conftest import EMBEDDED


def with_record(change: Callable[[dict], object]) -> Callable[[str, bytes], bytes]:
    """A change of the archive's record."""

    def edit(name: str, content: bytes) -> bytes:
        if name != "model.yaml":
            return content
        record = yaml.safe_load(content)
        change(record)
        return yaml.safe_dump(record, sort_keys=False).encode()

    return edit


def flip_last_byte_of_weights(name: str, content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1]) if name == "weights.safetensors" else content


DAMAGE = {
    "weights of another SHA-256": (
        flip_last_byte_of_weights,
        "weights.safetensors: SHA-256 is .* the record says",
    ),
    "unknown key": (
        with_record(lambda record: record.update(colour="red")),
        "model.yaml: colour: unknown key",
    ),
    "missing label": (
        with_record(lambda record: record["classes"].pop()),
        "weights do not fit the record",
    ),
    "wrong shape": (
        with_record(lambda record: record["architecture"].update(aspp_out_channels=128)),
        r"weights do not fit the record in \d+ tensors; first: .*expected \(128",
    ),
}


@pytest.mark.parametrize(("edit", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_server_damaged_archive_fails_at_load_with_one_clear_line(tmp_path, edit, reason):
    archive = rewritten(build_archive(EMBEDDED, tmp_path), edit)
    rejection = pytest.raises(ServerError, match=f"cannot serve this archive: {reason}")
    with TorchServe.start([archive], tmp_path / "run") as server, rejection as caught:
        server.wait_ready()
    assert "\n" not in str(caught.value)


def rewritten(archive: Path, edit: Callable[[str, bytes], bytes]) -> Path:
    damaged = archive.with_name("damaged.mar")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(damaged, "w") as target:
        for name in source.namelist():
            target.writestr(name, edit(name, source.read(name)))
    return damaged
