"""torchvision's models the whole way: a checkpoint over HTTP, fetched, packed, loaded, and equal to
torchvision's own.

The checkpoints have the published ones' names and shapes, and random values: the model folders are
copied, and the SHA-256 of such a checkpoint is put into the copy's record.
"""

import io
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812
from torchvision.models import segmentation
from torchvision.models.resnet import Bottleneck
from torchvision.transforms._presets import SemanticSegmentation

from segserve.client import SegmentationClient
from segserve.gateway.background import Server
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.network import load_network
from segserve.runtime.record import ResizeRule, read_record, sha256_of, write_record
from segserve.runtime.settings import Settings
from tests.conftest import PROJECT
from tests.file_server import served

# Sizes of the network's input: the published one where it is quick, elsewhere one beyond the
# largest atrous rate, 36.
MODELS = {"mobilenet_v3_large": 520, "resnet50": 304, "resnet101": 304}


def segserve(*arguments: object, folder, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "segserve", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "SEGSERVE_HOME": str(folder / "home"), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@torch.no_grad()
def random_model(builder: str, photograph: Image.Image) -> torch.nn.Module:
    """torchvision's model, as well-conditioned as a trained one: its norms have the photograph's
    statistics, and what a bottleneck adds is small. Else rounding alone, which differs between
    memory layouts, grows from layer to layer.
    """
    torch.manual_seed(0)
    model = getattr(segmentation, builder)(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
        elif isinstance(module, Bottleneck):
            torch.nn.init.constant_(module.bn3.weight, 0.2)
    small = SemanticSegmentation(resize_size=260)(photograph)
    model(torch.stack([small, small.flip(-1), small.flip(-2)]))
    for head in (model.classifier, model.aux_classifier):
        torch.nn.init.normal_(head[-1].weight, std=0.05)
    return model.eval()


@pytest.fixture(scope="module")
def chelsea(photographs):
    with Image.open(io.BytesIO(photographs["chelsea"])) as picture:
        return picture.convert("RGB")


@pytest.fixture(scope="module", params=MODELS, ids=str)
def published(request, tmp_path_factory, chelsea):
    """(torchvision's model, the folder that everything lies in, the model folder in it, size of the
    input).
    """
    folder = tmp_path_factory.mktemp("published")
    model = shutil.copytree(PROJECT / "model" / request.param, folder / request.param)
    record = read_record(model)
    theirs = random_model(record.name, chelsea)
    torch.save(theirs.state_dict(), folder / "checkpoint.pth")
    checkpoint = record.checkpoint.model_copy(
        update={"sha256": sha256_of(folder / "checkpoint.pth")}
    )
    write_record(record.model_copy(update={"checkpoint": checkpoint}), model)
    yield theirs, folder, model, MODELS[request.param]
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def archive(published):
    """The archive, made by the commands from a server that breaks the connection half way."""
    _, folder, model, _ = published
    content = (folder / "checkpoint.pth").read_bytes()
    half = len(content) // 2**15 * 2**14
    with served(content, path=f"/{read_record(model).checkpoint.file}", drops=[half]) as server:
        fetched = segserve("fetch", model, folder=folder, SEGSERVE_MIRROR=server.url)
    assert fetched.returncode == 0, fetched.stderr
    assert server.ranges == [None, f"bytes={half}-"]
    again = segserve("fetch", model, folder=folder, SEGSERVE_MIRROR=server.url)  # which is gone
    assert again.returncode == 0, again.stderr
    packed = segserve("archive", model, folder=folder)
    assert packed.returncode == 0, packed.stderr
    return folder / "build" / f"{read_record(model).name}.mar"


@pytest.fixture(scope="module")
def unpacked(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(archive) as content:
        content.extractall(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def image_rgb(chelsea, published):
    """A photograph whose shorter side is the network's, so that nothing is resized and no rounding
    differs.
    """
    size_px = published[-1]
    return np.array(chelsea.resize((size_px * 5 // 4, size_px)))


@torch.inference_mode()
def test_published_model_gives_the_outputs_of_torchvisions_own(published, unpacked, image_rgb):
    theirs, _, _, size_px = published
    expected = theirs(SemanticSegmentation(resize_size=size_px)(Image.fromarray(image_rgb))[None])
    assert 0.1 < expected["out"].std() < 10  # an error of 1e-4 is one, and not rounding

    rule = read_record(unpacked).input.resize.model_copy(update={"size_px": size_px})
    segmenter = Segmenter.load(
        unpacked, settings=Settings(precision="fp32", resize=ResizeRule(**rule.model_dump()))
    )
    inputs = segmenter.preprocess(image_rgb)
    logits = enlarged(segmenter.infer(inputs), image_rgb)
    torch.testing.assert_close(logits, expected["out"], rtol=0, atol=1e-4)

    network = load_network(read_record(unpacked), unpacked)
    aux_logits = network.aux_head(network.backbone(inputs.contiguous())[-2])
    torch.testing.assert_close(enlarged(aux_logits, image_rgb), expected["aux"], rtol=0, atol=1e-4)

    top = expected["out"][0].topk(2, dim=0)
    is_clear = (top.values[0] - top.values[1] > 1e-3).numpy()
    labels = segmenter.segment(image_rgb).label_map
    assert is_clear.mean() > 0.9
    assert np.array_equal(labels[is_clear], top.indices[0].numpy()[is_clear])


def enlarged(logits, image_rgb):
    return F.interpolate(logits, size=image_rgb.shape[:2], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("published", ["mobilenet_v3_large"], indirect=True)
def test_published_model_is_served(published, archive, unpacked, image_rgb, tmp_path):
    with Server.start([archive], tmp_path / "run") as server:
        server.wait_ready()
        with SegmentationClient(
            server.inference_url, token=server.inference_token, model=archive.stem
        ) as client:
            labels = client.segment(image_rgb).label_map
    assert np.array_equal(labels, Segmenter.load(unpacked).segment(image_rgb).label_map)


@pytest.mark.parametrize("published", ["mobilenet_v3_large"], indirect=True)
def test_fetch_checkpoint_of_another_model_says_what_differs_in_one_line(published, tmp_path):
    _, folder, *_ = published
    result = segserve("fetch", "resnet50", "--weights", folder / "checkpoint.pth", folder=tmp_path)
    assert result.returncode == 1
    assert "weights do not fit the record in " in result.stderr
    assert "first: backbone.conv1.weight: expected (64, 3, 7, 7), got none; " in result.stderr
    assert result.stderr.strip().count("\n") == 0


def test_fetch_without_internet_says_which_file_to_put_where_in_one_line(silent_url, tmp_path):
    result = segserve("fetch", "resnet101", folder=tmp_path, SEGSERVE_MIRROR=silent_url)
    place = tmp_path / "home" / "models" / "resnet101" / "deeplabv3_resnet101_coco-586e9e4e.pth"
    assert result.returncode == 1
    assert f"bring https://download.pytorch.org/models/{place.name} to {place}" in result.stderr
    assert result.stderr.strip().count("\n") == 0


@pytest.mark.parametrize("command", ["archive", "serve", "demo"])
def test_command_given_a_model_yet_to_be_fetched_names_the_command(tmp_path, command):
    result = segserve(command, "resnet101", folder=tmp_path)
    assert result.returncode == 1
    assert "`segserve fetch resnet101` downloads them" in result.stderr
    assert result.stderr.strip().count("\n") == 0


def test_make_mar_fetches_before_it_packs():
    command = ["make", "-n", "mar", "MODEL=resnet101"]
    planned = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    assert (
        0
        < planned.index("segserve fetch model/resnet101")
        < planned.index("segserve archive model/resnet101")
    )
