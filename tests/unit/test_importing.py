"""Checkpoints of other libraries, with random weights: after the import, the same logits."""

import argparse
import json
import shutil
from pathlib import Path, WindowsPath

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models import segmentation as torchvision_models
from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation
from typer.testing import CliRunner

from segserve.cli import app
from segserve.importing.model import import_checkpoint, load_checkpoint
from segserve.runtime.errors import ModelError
from segserve.runtime.network import load_network
from segserve.runtime.record import read_record

from .images import noise

pytestmark = pytest.mark.slow

IMAGE = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
LABELS = ("background", "disc", "box")


def randomised(model: nn.Module) -> nn.Module:
    """Other running statistics than 0 and 1, so that a norm at the wrong place shows."""
    torch.manual_seed(0)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.2, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.2, 0.2)
    return model.eval()


def imported(path: Path, folder: Path, labels=LABELS, **options):
    known = {"size_px": 96, "mean": (0.5,) * 3, "std": (0.5,) * 3, "licence": "own"}
    options = {"architecture": {}, **known, **options}
    return import_checkpoint(path, folder, labels=labels, **options)


def logits_of(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_network(read_record(folder), folder)(IMAGE)


def assert_same(theirs: torch.Tensor, ours: torch.Tensor) -> None:
    scale = theirs.abs().max()
    assert scale > 0
    torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-4, rtol=0)


def torchvision_model(name: str, num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    build = getattr(torchvision_models, name)
    return randomised(
        build(weights=None, weights_backbone=None, num_classes=num_classes, **options)
    )


def torchvision_logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.classifier(model.backbone(IMAGE)["out"])


@pytest.fixture
def mobilenet():
    return torchvision_model("deeplabv3_mobilenet_v3_large", aux_loss=True)


@pytest.mark.parametrize(
    "name", ["deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "deeplabv3_resnet101"]
)
@pytest.mark.parametrize("aux_loss", [True, None], ids=["aux", "no aux"])
def test_import_torchvision_gives_the_same_logits(tmp_path, name, aux_loss):
    model = torchvision_model(name, aux_loss=aux_loss)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    imported(tmp_path / "w.pth", tmp_path / "model")
    assert_same(torchvision_logits(model), logits_of(tmp_path / "model"))


def test_import_auxiliary_head_of_other_classes_is_left_out(tmp_path, mobilenet):
    other = torchvision_model("deeplabv3_mobilenet_v3_large", num_classes=21, aux_loss=True)
    state = mobilenet.state_dict() | {
        name: tensor for name, tensor in other.state_dict().items() if name.startswith("aux_")
    }
    torch.save(state, tmp_path / "w.pth")
    imported(tmp_path / "w.pth", tmp_path / "model")
    assert_same(torchvision_logits(mobilenet), logits_of(tmp_path / "model"))


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3}, "under 'model'"),
        (lambda state: {"state_dict": state, "lr": 0.1}, "under 'state_dict'"),
        (lambda state: {"model_ema": {"module": state}}, "under 'model_ema'"),
        (lambda state: {f"module.{name}": t for name, t in state.items()}, "prefix 'module'"),
        (lambda state: {f"net._orig_mod.{name}": t for name, t in state.items()}, "'_orig_mod'"),
        (
            lambda state: (
                {f"model.{name}": t for name, t in state.items()}
                | {"criterion.weight": torch.ones(3)}
            ),
            "",
        ),
        (lambda state: {name: t for name, t in state.items() if "num_batches" not in name}, ""),
    ],
    ids=["script", "state_dict", "average", "parallel", "compiled", "lightning", "old"],
)
def test_import_finds_the_state_dict(tmp_path, mobilenet, wrap, note):
    wrapped = wrap(mobilenet.state_dict())
    if "module" in wrapped.get("model_ema", {}):
        wrapped["model_ema"] = {
            f"module.{name}": tensor for name, tensor in wrapped["model_ema"]["module"].items()
        } | {"n_averaged": torch.tensor(7)}
    torch.save(wrapped, tmp_path / "w.pth")
    found = imported(tmp_path / "w.pth", tmp_path / "model")
    assert note in " ".join(found.notes)
    assert_same(torchvision_logits(mobilenet), logits_of(tmp_path / "model"))


def test_import_half_precision_and_safetensors_keep_the_tensors(tmp_path, mobilenet):
    save_file(mobilenet.half().state_dict(), tmp_path / "w.safetensors")
    mobilenet.float()
    imported(tmp_path / "w.safetensors", tmp_path / "model")
    with torch.inference_mode():
        difference = (torchvision_logits(mobilenet) - logits_of(tmp_path / "model")).abs().max()
    assert difference < 0.02 * torchvision_logits(mobilenet).abs().max()


def test_import_one_output_is_served_as_background_and_class(tmp_path):
    model = torchvision_model("deeplabv3_mobilenet_v3_large", num_classes=1)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    found = imported(tmp_path / "w.pth", tmp_path / "model", labels=["crack"])
    assert found.record.labels == ("background", "crack")
    ours = logits_of(tmp_path / "model").softmax(1)[:, 1]
    torch.testing.assert_close(ours, torchvision_logits(model).sigmoid()[:, 0], atol=1e-5, rtol=0)


SMP = {
    "v3 resnet18": (smp.DeepLabV3, {"encoder_name": "resnet18"}),
    "v3 resnet50 stride 16": (
        smp.DeepLabV3,
        {
            "encoder_name": "resnet50",
            "encoder_output_stride": 16,
            "decoder_atrous_rates": (6, 12, 18),
        },
    ),
    "v3 separable": (smp.DeepLabV3, {"encoder_name": "resnet34", "decoder_aspp_separable": True}),
    "v3+ resnet34": (smp.DeepLabV3Plus, {"encoder_name": "resnet34"}),
    "v3+ stride 8": (
        smp.DeepLabV3Plus,
        {"encoder_name": "resnet50", "encoder_output_stride": 8, "decoder_channels": 64},
    ),
    "v3+ not separable": (
        smp.DeepLabV3Plus,
        {"encoder_name": "resnet18", "decoder_aspp_separable": False},
    ),
    "v3+ timm": (smp.DeepLabV3Plus, {"encoder_name": "tu-resnet18d"}),
    "v3 timm": (smp.DeepLabV3, {"encoder_name": "tu-mobilenetv3_small_050"}),
}


def smp_model(name: str) -> nn.Module:
    kind, options = SMP[name]
    torch.manual_seed(0)
    return randomised(kind(encoder_weights=None, classes=3, **options))


def smp_logits(model: nn.Module) -> torch.Tensor:
    """Without the upsampling to the image's size, which serving does by itself."""
    with torch.inference_mode():
        return model.segmentation_head[0](model.decoder(model.encoder(IMAGE)))


@pytest.mark.parametrize("name", SMP)
def test_import_smp_folder_gives_the_same_logits(tmp_path, name):
    model = smp_model(name)
    model.save_pretrained(str(tmp_path / "theirs"))
    imported(tmp_path / "theirs", tmp_path / "model")
    assert_same(smp_logits(model), logits_of(tmp_path / "model"))


@pytest.mark.parametrize("name", ["v3 resnet18", "v3+ resnet34"])
def test_import_smp_state_dict_gives_the_same_logits(tmp_path, name):
    model = smp_model(name)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    imported(tmp_path / "w.pth", tmp_path / "model")
    assert_same(smp_logits(model), logits_of(tmp_path / "model"))


def test_import_smp_state_dict_of_a_timm_encoder_needs_its_name(tmp_path):
    model = smp_model("v3 timm")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match="--backbone"):
        imported(tmp_path / "w.pth", tmp_path / "model")
    imported(
        tmp_path / "w.pth",
        tmp_path / "model",
        architecture={"backbone": "mobilenetv3_small_050"},
    )
    assert_same(smp_logits(model), logits_of(tmp_path / "model"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output_stride": 16},
        {"output_stride": 8, "tf_padding": False},
        {"depth_multiplier": 1.4},
    ],
    ids=["stride 32", "stride 16", "stride 8", "wide"],
)
def test_import_hugging_face_folder_gives_the_same_logits(tmp_path, options):
    torch.manual_seed(0)
    config = MobileNetV2Config(num_labels=3, id2label=dict(enumerate(LABELS)), **options)
    model = randomised(MobileNetV2ForSemanticSegmentation(config))
    model.save_pretrained(tmp_path / "theirs")
    preprocessing = {
        "size": {"shortest_edge": 513},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (tmp_path / "theirs/preprocessor_config.json").write_text(json.dumps(preprocessing))
    unknown = dict.fromkeys(("size_px", "mean", "std"))
    found = imported(tmp_path / "theirs", tmp_path / "model", labels=None, **unknown)
    assert found.record.labels == LABELS
    assert (found.record.input.resize.side, found.record.input.resize.size_px) == ("shorter", 513)
    assert found.record.input.mean == (0.5, 0.5, 0.5)
    with torch.inference_mode():
        assert_same(model(IMAGE).logits, logits_of(tmp_path / "model"))


# Bad input


def test_import_into_a_folder_with_a_model_writes_nothing(tmp_path, mobilenet):
    torch.save(mobilenet.state_dict(), tmp_path / "w.pth")
    imported(tmp_path / "w.pth", tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}
    with pytest.raises(ModelError, match="holds a model already"):
        imported(tmp_path / "w.pth", tmp_path / "model")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda model, path: torch.save(model, path), "holds more than tensors.*state_dict"),
        (lambda model, path: torch.jit.script(nn.ReLU()).save(path), "holds more than tensors"),
        (lambda model, path: path.write_bytes(b"PK\3\4broken"), "is damaged"),
        (lambda model, path: path.write_bytes(b"no checkpoint"), "is damaged"),
        (lambda model, path: torch.save({"epoch": 3}, path), r"no state dict in it \(epoch\)"),
        (lambda model, path: torch.save([1, 2], path), "no state dict in it"),
    ],
    ids=["whole", "script", "cut", "text", "empty", "list"],
)
def test_import_of_what_is_no_state_dict_says_what_to_save(tmp_path, mobilenet, save, message):
    path = tmp_path / "w.pth"
    save(mobilenet, path)
    with pytest.raises(ModelError, match=message) as caught:
        imported(path, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: torchvision_model("fcn_resnet50"),
            "FCN with ResNet-50: not a DeepLab; served are DeepLabV3",
        ),
        (lambda: torchvision_model("fcn_resnet101"), "FCN with ResNet-101"),
        (lambda: torchvision_model("lraspp_mobilenet_v3_large"), "LR-ASPP"),
        (lambda: smp.Unet("resnet18", encoder_weights=None), "Unet"),
        (lambda: smp.FPN("resnet18", encoder_weights=None), "FPN"),
        (lambda: nn.Sequential(nn.Linear(2, 3)), "of no known DeepLab"),
        (
            lambda: smp.DeepLabV3("efficientnet-b0", encoder_weights=None),
            "encoder is not one of resnet18",
        ),
    ],
    ids=["fcn", "fcn 101", "lraspp", "unet", "fpn", "linear", "encoder"],
)
def test_import_of_another_architecture_names_it(tmp_path, model, message):
    torch.save(model().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=message):
        imported(tmp_path / "w.pth", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_px": None, "mean": None}, "give --size-px, --mean"),
        ({"labels": None}, "give --classes"),
        ({"labels": ("a", "b")}, "names 2 classes, the checkpoint has 3"),
    ],
    ids=["input", "no classes", "other number"],
)
def test_import_guesses_nothing(tmp_path, mobilenet, options, message):
    torch.save(mobilenet.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=message):
        imported(tmp_path / "w.pth", tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_import_of_other_shapes_names_the_tensor(tmp_path, mobilenet):
    state = mobilenet.state_dict()
    state["backbone.0.0.weight"] = torch.zeros(16, 4, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"backbone\.0\.0\.weight: expected \(16, 3, 3, 3\)"):
        imported(tmp_path / "w.pth", tmp_path / "model")


def test_load_checkpoint_of_a_folder_without_weights_says_what_is_expected(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"expected one of model\.safetensors"):
        load_checkpoint(tmp_path)


def test_imported_model_is_served_like_any_other(tmp_path):
    """DeepLabV3Plus through the fused network and its label map."""
    from segserve.runtime.inference.segmenter import Segmenter
    from segserve.runtime.settings import Settings

    smp_model("v3+ resnet34").save_pretrained(str(tmp_path / "theirs"))
    imported(tmp_path / "theirs", tmp_path / "model")
    image_rgb = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    fused, plain = (
        Segmenter.load(tmp_path / "model", settings=Settings(precision="fp32", fuse=fuse))
        .segment(image_rgb)
        .label_map
        for fuse in (True, False)
    )
    assert (fused == plain).mean() > 0.999
    shutil.rmtree(tmp_path / "model")


class Evil:
    def __reduce__(self):
        return (print, ("code of the file ran",))


class SavedOnWindows:
    def __reduce__(self):
        return (WindowsPath, ("C:", "data"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
@pytest.mark.parametrize(
    "wrap",
    [lambda evil: evil, lambda evil: argparse.Namespace(evil=evil)],
    ids=["alone", "in options"],
)
def test_load_checkpoint_runs_no_code_of_a_file(tmp_path, capfd, zipped, wrap):
    torch.save({"state": wrap(Evil())}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"^w\.pth: is damaged, or holds more than tensors"):
        load_checkpoint(tmp_path / "w.pth")
    assert "ran" not in capfd.readouterr().out


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_load_checkpoint_reads_options_numbers_and_paths_beside_the_tensors(tmp_path, zipped):
    beside = {
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu"), out=tmp_path),
        "best": np.float64(0.5),
        "epoch": np.int64(3),
        "path": tmp_path,
        "windows": SavedOnWindows(),
    }
    content = {"model": {"weight": torch.ones(2)}, **beside}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert list(load_checkpoint(tmp_path / "w.pth").state) == ["weight"]


def test_import_tensors_in_any_memory_layout_are_taken(tmp_path, mobilenet):
    state = mobilenet.to(memory_format=torch.channels_last).state_dict()
    state["classifier.2.weight"] = state["classifier.2.bias"]  # one storage for two
    torch.save(state, tmp_path / "w.pth")
    imported(tmp_path / "w.pth", tmp_path / "model")
    loaded = load_network(read_record(tmp_path / "model"), tmp_path / "model").state_dict()
    assert torch.equal(loaded["head.2.weight"], state["classifier.2.bias"])
    assert torch.equal(loaded["head.1.weight"], state["classifier.1.weight"])


# The command


def run(*command):
    return CliRunner().invoke(app, ["import", *map(str, command)])


KNOWN = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--size-px", "96")


def test_import_command_writes_a_model_and_segments_a_photograph(tmp_path, mobilenet):
    torch.save({"model": mobilenet.state_dict()}, tmp_path / "mine.pth")
    Image.fromarray(noise(70, 90)).save(tmp_path / "photo.png")
    more = "--classes", "background, disc, box", "--image", tmp_path / "photo.png", *KNOWN
    result = run(tmp_path / "mine.pth", "-o", tmp_path / "model/mine", *more)
    assert result.exit_code == 0, result.stderr
    assert "weights found under 'model'" in result.stdout
    assert "photo.png: " in result.stdout
    assert f"segserve serve {tmp_path}/model/mine" in result.stdout.replace("\n", "")
    assert read_record(tmp_path / "model/mine").labels == LABELS


def test_import_command_keeps_colours_and_categories_of_a_class_file(
    tmp_path, mobilenet, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.save(mobilenet.state_dict(), "epoch=10-step=200.ckpt")
    text = "- background\n- {label: disc, color: [1, 2, 3], from: [ring]}\n- box\n"
    Path("own.yaml").write_text(text)
    result = run("epoch=10-step=200.ckpt", "--classes", "own.yaml", *KNOWN)
    assert result.exit_code == 0, result.stderr
    record = read_record(Path("model/epoch-10-step-200"))
    assert [info.color for info in record.classes] == [(0, 0, 0), (1, 2, 3), (0, 128, 0)]
    assert Path("model/epoch-10-step-200/classes.yaml").read_text() == text


@pytest.mark.parametrize("equal", [True, False])
def test_import_command_compares_with_the_original(tmp_path, mobilenet, equal):
    torch.save(mobilenet.state_dict(), tmp_path / "w.pth")
    Image.fromarray(noise(70, 90)).save(tmp_path / "photo.png")
    found = imported(tmp_path / "w.pth", tmp_path / "first", image_rgb=noise(70, 90))
    np.save(tmp_path / "original.npy", found.label_map if equal else 1 - found.label_map % 2)
    more = "--image", tmp_path / "photo.png", "--compare", tmp_path / "original.npy", *KNOWN
    result = run(
        tmp_path / "w.pth", "-o", tmp_path / "second", "--classes", "background,disc,box", *more
    )
    assert result.exit_code == (0 if equal else 1)
    assert "of the pixels have the original's class" in result.stdout
    assert (tmp_path / "second").exists() == equal


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--mean", "a,b"), "--mean: expected numbers, got 'a,b'"),
        (("--data", "."), "--data is for files .tflite"),
        (("--compare", __file__), "--compare needs --image"),
        (("--backbone", "resnet1"), "backbone resnet1"),
        (("--output-stride", "7"), "output_stride"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_import_command_reports_wrong_flags_in_one_line(tmp_path, mobilenet, more, message):
    torch.save(mobilenet.state_dict(), tmp_path / "w.pth")
    known = [] if "--mean" in more else KNOWN
    result = run(
        tmp_path / "w.pth", "-o", tmp_path / "m", "--classes", "background,disc,box", *known, *more
    )
    assert result.exit_code == 1
    [line] = result.stderr.strip().splitlines()
    assert message in line
    assert not (tmp_path / "m").exists()
