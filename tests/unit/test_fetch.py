"""A published model: found in its own folder, made once from its checkpoint, rejected in words that
help.
"""

import shutil

import pytest
import torch

from segserve.fetch import fetch_model, servable_folder
from segserve.runtime.errors import FetchError, ModelError
from segserve.runtime.network import build_network, load_network
from segserve.runtime.record import (
    Accuracy,
    Calibration,
    Checkpoint,
    Weights,
    read_record,
    sha256_of,
    write_record,
)

from ..file_server import served
from .tiny import tiny_record

FILE = "tiny-01234567.pth"
THEIRS = {"head.": "classifier.", "aux_head.": "aux_classifier."}
ARCHITECTURE = tiny_record().architecture.model_copy(update={"aux_head": True})


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SEGSERVE_MIRROR", raising=False)
    return tmp_path / "home"


def network(architecture=ARCHITECTURE, classes=3):
    torch.manual_seed(0)
    return build_network(architecture, classes).eval()


def published_state(subject) -> dict[str, torch.Tensor]:
    """The state dict under torchvision's names."""
    names = {
        name: next((to + name[len(at) :] for at, to in THEIRS.items() if name.startswith(at)), name)
        for name in subject.state_dict()
    }
    return {names[name]: tensor for name, tensor in subject.state_dict().items()}


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(published_state(network()), tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


@pytest.fixture
def model(tmp_path, checkpoint):
    """A model folder as the repository holds it: a record that names a checkpoint, a card, no
    weights.
    """
    folder = tmp_path / "model" / "tiny"
    folder.mkdir(parents=True)
    source = Checkpoint(
        file=FILE, base_url="https://127.0.0.1:9/", sha256=sha256_of(checkpoint), size_mib=1
    )
    accuracy = Accuracy(dataset="published", mean_iou=0.5, pixel_accuracy=0.9)
    write_record(
        tiny_record(architecture=ARCHITECTURE, checkpoint=source, accuracy=accuracy), folder
    )
    (folder / "README.md").write_text("# a card")
    return folder


@pytest.fixture
def own_model(tmp_path):
    """A model folder of a user's own: the record names neither weights nor a checkpoint."""
    folder = tmp_path / "own"
    folder.mkdir()
    write_record(tiny_record(architecture=ARCHITECTURE), folder)
    return folder


@pytest.fixture
def mirror(checkpoint, monkeypatch):
    with served(checkpoint.read_bytes(), path=f"/models/{FILE}") as server:
        monkeypatch.setenv("SEGSERVE_MIRROR", f"{server.url}/models")
        yield server


def fetch(model, weights=None):
    return fetch_model(model, weights=weights, report=lambda *_: None)


def assert_ready(folder, model):
    """The folder holds the record, completed, the card, and the weights of `network()`; nothing
    else.
    """
    record, expected = read_record(folder), network().state_dict()
    assert record.model_copy(update={"weights": None}) == read_record(model)
    assert {path.name for path in folder.iterdir()} == {
        "model.yaml",
        "README.md",
        "weights.safetensors",
    }
    loaded = load_network(record, folder).state_dict()
    assert list(loaded) == list(expected)
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


# Fetched


@pytest.mark.usefixtures("mirror")
def test_fetch_model_downloads_and_the_model_can_be_served(model, home):
    folder = fetch(model)
    assert folder == home / "models" / "tiny" == servable_folder(model)
    assert_ready(folder, model)


def test_fetch_model_again_downloads_nothing(model, mirror):
    fetch(model)
    assert_ready(fetch(model), model)
    assert mirror.ranges == [None]


def test_fetch_model_leaves_the_model_folder_as_it_is(model, mirror):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    fetch(model)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_fetch_model_twice_gives_the_same_bytes(model, checkpoint, home):
    first = (fetch(model, checkpoint) / "weights.safetensors").read_bytes()
    shutil.rmtree(home)
    assert (fetch(model, checkpoint) / "weights.safetensors").read_bytes() == first


@pytest.mark.parametrize("damage", [b"", b"damaged"], ids=["emptied", "overwritten"])
def test_fetch_model_damaged_weights_are_fetched_again(model, mirror, damage):
    (fetch(model) / "weights.safetensors").write_bytes(damage)
    assert_ready(fetch(model), model)
    assert mirror.ranges == [None, None]


def test_fetch_model_changed_record_is_renewed_without_a_download(model, mirror):
    folder = fetch(model)
    write_record(read_record(model).model_copy(update={"summary": "in other words"}), model)
    with pytest.raises(
        ModelError, match="its record has changed since it was fetched: `segserve fetch tiny`"
    ):
        servable_folder(model)
    assert fetch(model) == servable_folder(model) == folder
    assert_ready(folder, model)
    assert mirror.ranges == [None]


def measured(folder) -> dict[str, object]:
    """Writes what `segserve calibrate`, `evaluate --write` and `quantize` write."""
    figures = {
        "calibration": Calibration(
            temperature=1.2, dataset="dev", images=4, ece_before=0.1, ece=0.05
        ),
        "accuracy": Accuracy(dataset="dev", mean_iou=0.6, pixel_accuracy=0.8),
        "int8": Weights(file="int8.safetensors", sha256="0" * 64),
    }
    write_record(read_record(folder).model_copy(update=figures), folder)
    return figures


@pytest.mark.usefixtures("mirror")
def test_fetch_model_that_was_measured_stays_usable_and_keeps_the_figures(model):
    folder = fetch(model)
    figures = measured(folder)
    assert servable_folder(model) == folder
    write_record(read_record(model).model_copy(update={"summary": "in other words"}), model)
    record = read_record(fetch(model))
    assert record.summary == "in other words"
    assert {name: getattr(record, name) for name in figures} == figures


@pytest.mark.usefixtures("mirror")
def test_fetch_model_of_new_weights_drops_the_figures_of_the_old_ones(model):
    folder = fetch(model)
    measured(folder)
    (folder / "weights.safetensors").write_bytes(b"damaged")
    assert_ready(fetch(model), model)


def test_fetch_model_of_a_local_file_needs_no_server(model, checkpoint):
    assert_ready(fetch(model, checkpoint), model)
    assert checkpoint.exists()


def test_fetch_model_file_put_into_its_folder_is_taken(model, checkpoint, home):
    (home / "models" / "tiny").mkdir(parents=True)
    shutil.copy(checkpoint, home / "models" / "tiny" / FILE)
    assert_ready(fetch(model), model)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SEGSERVE_HOME": "home"}, "home/models/tiny"),
        ({"XDG_CACHE_HOME": "cache"}, "cache/segserve/models/tiny"),
        ({"HOME": "user"}, "user/.cache/segserve/models/tiny"),
    ],
    ids=["SEGSERVE_HOME", "XDG_CACHE_HOME", "HOME"],
)
def test_fetch_model_folder_follows_the_environment(
    model, checkpoint, tmp_path, monkeypatch, variables, expected
):
    for name in ("SEGSERVE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in variables.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    assert fetch(model, checkpoint) == tmp_path / expected


# Served or not


def test_servable_folder_of_a_model_yet_to_be_fetched_names_the_command(model):
    with pytest.raises(
        ModelError, match=r"^tiny: its weights are not in the repository: `segserve fetch tiny`"
    ):
        servable_folder(model)


def test_servable_folder_of_a_model_with_weights_is_its_own(tiny_model):
    assert servable_folder(tiny_model) == tiny_model
    assert fetch(tiny_model) == tiny_model


def test_load_network_of_a_record_without_its_weights_names_the_remedy(model, own_model):
    with pytest.raises(ModelError, match="names no weights: `segserve fetch` the model first"):
        load_network(read_record(model), model)
    with pytest.raises(ModelError, match="names no weights: train the model first"):
        load_network(read_record(own_model), own_model)


# Rejected


def test_fetch_model_without_internet_says_which_file_to_put_where(
    silent_url, model, home, monkeypatch
):
    monkeypatch.setenv("SEGSERVE_MIRROR", silent_url)
    with pytest.raises(FetchError, match="Connection refused") as caught:
        fetch(model)
    place = home / "models" / "tiny" / FILE
    assert f"bring https://127.0.0.1:9/{FILE} to {place} and fetch again" in str(caught.value)
    assert "--weights" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fetch_model_without_mirror_requests_the_publisher_s_file(model):
    with pytest.raises(FetchError, match=rf"^https://127\.0\.0\.1:9/{FILE}: .*Connection refused"):
        fetch(model)


def test_fetch_model_server_with_another_file_is_rejected(model, mirror):
    mirror.content = mirror.content[:-1] + b"?"
    with pytest.raises(FetchError, match=r"SHA-256 is .* what arrived is deleted"):
        fetch(model)
    assert not (model / "weights.safetensors").exists()


@pytest.mark.parametrize("place", ["given", "put into its folder"])
def test_fetch_model_local_file_of_another_hash_is_rejected_with_both_hashes(
    model, home, checkpoint, place
):
    torch.save(published_state(network().double()), checkpoint)  # fits as well
    weights = checkpoint
    if place != "given":
        (home / "models" / "tiny").mkdir(parents=True)
        weights = None
        shutil.copy(checkpoint, home / "models" / "tiny" / FILE)
    expected = read_record(model).checkpoint.sha256
    with pytest.raises(
        FetchError, match=f"SHA-256 is {sha256_of(checkpoint)}, that of {FILE} is {expected}"
    ):
        fetch(model, weights)


def test_fetch_model_checkpoint_of_another_architecture_is_reported_as_such(model, tmp_path):
    other = ARCHITECTURE.model_copy(update={"head": "corenet"})
    torch.save(published_state(network(other)), tmp_path / "other.pth")
    with pytest.raises(
        ModelError, match=r"first: head\.1\.weight: expected \(8, 8, 3, 3\), got \(3, 8, 1, 1\)"
    ):
        fetch(model, tmp_path / "other.pth")


def test_fetch_model_missing_local_file_says_so(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        fetch(model, tmp_path / "absent.pth")


@pytest.mark.parametrize("weights", [None, "own.pth"], ids=["nothing", "file"])
def test_fetch_model_record_without_checkpoint_names_import(own_model, tmp_path, weights):
    with pytest.raises(ModelError, match="tiny: the record names no checkpoint: `segserve import`"):
        fetch(own_model, weights and tmp_path / weights)


@pytest.mark.parametrize("place", [0.0, 0.2, 0.4, 0.6, 0.8, 0.99], ids=str)
def test_fetch_model_truncated_file_is_rejected(model, checkpoint, place):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(len(content) * place)])
    with pytest.raises(ModelError, match=r"^checkpoint\.pth: is damaged"):
        fetch(model, checkpoint)
