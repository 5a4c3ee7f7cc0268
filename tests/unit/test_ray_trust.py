"""Ray Serve and archives that must be signed: reported before anything is deployed, and
again by every replica.
"""

import pickle

import pytest

from segserve.signing import SignatureError, SigningKey, TrustedKeys
from tests.packed import pack

pytest.importorskip("ray", reason="Ray is not installed: pip install 'segserve[ray]'")

from segserve.engines.ray import Arguments
from segserve.engines.ray.build import cores_needed, read_named_archives
from segserve.engines.worker import load_handler

SOURCE = """
class Echo:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        return data
"""


@pytest.fixture
def archive(tmp_path):
    return pack(tmp_path, "echo", SOURCE)


@pytest.fixture
def keys(tmp_path):
    key = SigningKey.generate()
    return key, key.write(tmp_path / "signer")[1]


def test_arguments_with_trust_take_a_signed_archive_alone(archive, keys):
    key, public = keys
    arguments = Arguments(archive=str(archive), trust=str(public), threads=1)
    with pytest.raises(
        SignatureError, match=r"there is no signature echo-1\.0\.mar\.minisig beside it"
    ):
        cores_needed(read_named_archives(arguments), arguments)
    key.sign(archive)
    assert cores_needed(read_named_archives(arguments), arguments) == 1


def test_load_handler_of_a_changed_archive_unpacks_nothing(archive, keys, tmp_path):
    key, public = keys
    key.sign(archive)
    archive.write_bytes(archive.read_bytes() + b"x")
    folder = tmp_path / "unpacked"
    folder.mkdir()
    with pytest.raises(SignatureError, match="is not what was signed"):
        load_handler(archive, folder, overrides={}, gpu_id=None, trusted=TrustedKeys.read(public))
    assert list(folder.iterdir()) == []


def test_trusted_keys_reach_a_replica_on_another_machine_as_they_are(keys):
    trusted = TrustedKeys.read(keys[1])
    assert pickle.loads(pickle.dumps(trusted)) == trusted  # noqa: S301 - as Ray sends them
