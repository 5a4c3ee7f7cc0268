"""The records of torchvision's models say what torchvision says of its weights, so that neither can
drift.
"""

import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision.models import segmentation

from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.network import build_network
from segserve.runtime.record import RECORD_FILE, read_record
from segserve.runtime.settings import Settings

from ..conftest import EMBEDDED, PROJECT
from .images import smooth

PUBLISHED = sorted(
    path.parent
    for path in (PROJECT / "model").glob(f"*/{RECORD_FILE}")
    if read_record(path.parent).checkpoint
)


@pytest.fixture(params=PUBLISHED, ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture
def record(folder):
    return read_record(folder)


@pytest.fixture
def weights(record):
    """What torchvision knows about its weights of that name."""
    return models.get_model_weights(record.name).COCO_WITH_VOC_LABELS_V1


def test_published_models_are_torchvisions_three():
    names = {name for name in models.list_models(segmentation) if name.startswith("deeplabv3")}
    assert {read_record(folder).name for folder in PUBLISHED} == names


def test_published_checkpoint_is_the_file_that_torchvision_downloads(record, weights):
    checkpoint = record.checkpoint
    assert checkpoint.base_url + checkpoint.file == weights.url
    assert checkpoint.sha256.startswith(checkpoint.file.removesuffix(".pth").rpartition("-")[2])
    assert checkpoint.size_mib == weights.meta["_file_size"]


def test_published_classes_are_torchvisions_in_the_colours_of_the_embedded_model(record, weights):
    assert list(record.labels) == [category.strip("_") for category in weights.meta["categories"]]
    assert record.classes == read_record(EMBEDDED).classes


def test_published_accuracy_is_that_which_torchvision_publishes(record, weights):
    [(dataset, figures)] = weights.meta["_metrics"].items()
    assert record.accuracy.dataset.replace(" with", "").replace(" ", "-") == dataset
    assert 100 * record.accuracy.mean_iou == pytest.approx(figures["miou"])
    assert 100 * record.accuracy.pixel_accuracy == pytest.approx(figures["pixel_acc"])


def test_published_network_has_as_many_parameters_as_torchvision_says(record, weights):
    with torch.device("meta"):
        network = build_network(record.architecture, len(record.classes))
    assert (
        sum(parameter.numel() for parameter in network.parameters()) == weights.meta["num_params"]
    )


@pytest.mark.parametrize(
    "size_hw",
    [(375, 500), (333, 500), (300, 451), (520, 520), (520, 700), (90, 31), (1200, 700)],
    ids=str,
)
def test_published_input_is_that_of_torchvisions_transforms(record, weights, size_hw):
    image_rgb = smooth(*size_hw)
    expected = weights.transforms()(Image.fromarray(image_rgb))
    segmenter = Segmenter(
        torch.nn.Identity(), record, device=torch.device("cpu"), settings=Settings(precision="fp32")
    )
    [got] = segmenter.preprocess(image_rgb)
    assert got.shape == expected.shape
    # torch's resize of 8-bit images rounds as Pillow's does, but for fewer than one value in fifty.
    one_level = 1.01 / 255 / min(record.input.std)
    assert (got - expected).abs().max() < one_level
    assert ((got - expected).abs() > 1e-5).float().mean() < 0.02
    if min(size_hw) == 520:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_published_card_says_what_the_record_says(folder, record):
    card = (folder / "README.md").read_text(encoding="utf-8")
    checkpoint, accuracy = record.checkpoint, record.accuracy
    figures = (
        f"mean IoU **{100 * accuracy.mean_iou:.1f} %**, pixel accuracy "
        f"{100 * accuracy.pixel_accuracy:.1f} %"
    )
    for fact in (
        f"# {record.summary}\n",
        f"segserve fetch {folder.name}\n",
        f"`{checkpoint.file}` from {checkpoint.base_url}, {checkpoint.size_mib} MiB, SHA-256 "
        f"`{checkpoint.sha256}`",
        f"output stride {record.architecture.output_stride}, `{record.architecture.head}` head",
        f"| {', '.join(record.labels)} |",
        f"| {record.licence} |",
        f"on {accuracy.dataset}: {figures}",
    ):
        assert fact in card


def test_published_records_are_named_in_the_table_of_models(folder, record):
    table = (PROJECT / "docs" / "models.md").read_text(encoding="utf-8")
    [row] = [line for line in table.splitlines() if line.startswith(f"| `{folder.name}` |")]
    parameters = models.get_model_weights(record.name).COCO_WITH_VOC_LABELS_V1.meta["num_params"]
    for fact in (
        f"`{record.architecture.backbone}`",
        f"`{record.architecture.head}`",
        f"{parameters / 1e6:.1f} M",
        f"{100 * record.accuracy.mean_iou:.1f}",
        f"{100 * record.accuracy.pixel_accuracy:.1f}",
        record.licence,
        f"`segserve fetch {folder.name}`",
    ):
        assert f" {fact} " in row
