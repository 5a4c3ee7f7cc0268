"""Data set, sampler, loop, checkpoints and export, on a few coloured squares."""

import csv
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from segserve.data import IGNORED, VocFolder
from segserve.runtime.errors import ModelError
from segserve.runtime.network import load_network
from segserve.runtime.record import Accuracy, read_record, write_record
from segserve.train import checkpoint as checkpoint_module
from segserve.train import loop as loop_module
from segserve.train.backbone import load_backbone
from segserve.train.checkpoint import CHECKPOINT_FILE, Checkpoint
from segserve.train.crops import StepSampler, TrainingCrops
from segserve.train.export import export_weights
from segserve.train.loop import LOG_FILE, train
from segserve.train.optimizer import build_optimizer, build_schedule
from segserve.train.recipe import Recipe, read_recipe

from .tiny import tiny_network, tiny_record
from .voc import write_pair, write_split, write_squares

RECIPE = Recipe(
    steps=8,
    batch_size=4,
    image_px=64,
    crop_px=64,
    scales=(0.8, 1.2),
    backbone_lr=0.02,
    head_lr=0.05,
    warmup_steps=2,
    batch_norm_momentum=0.1,
    precision="fp32",
)


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return VocFolder(write_squares(tmp_path_factory.mktemp("squares"), images=6), "train")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a record and no weights yet."""
    folder = tmp_path_factory.mktemp("untrained")
    write_record(tiny_record(), folder)
    return folder


def ignore(*_):
    pass


# The data set


def test_voc_folder_split_is_a_name_or_a_path(squares, tmp_path):
    (tmp_path / "some.txt").write_text("square1\nsquare3\n")
    assert squares.names == [f"square{index}" for index in range(6)]
    assert VocFolder(squares.folder, str(tmp_path / "some.txt")).names == ["square1", "square3"]


def test_voc_folder_missing_files_are_named(squares, tmp_path):
    folder = shutil.copytree(squares.folder, tmp_path / "data")
    (folder / "images" / "square2.jpg").unlink()
    (folder / "labels" / "square4.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"^2 files are missing, first: .*square2\.jpg, .*square4\.png"):
        VocFolder(folder, "train")


def test_voc_folder_missing_split_raises(squares):
    with pytest.raises(FileNotFoundError, match=r"test\.txt"):
        VocFolder(squares.folder, "test")


def test_voc_folder_empty_split_raises(tmp_path):
    write_split(tmp_path, "train", [])
    with pytest.raises(ValueError, match="train names no image"):
        VocFolder(tmp_path, "train")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((10, 12), np.uint8), r"a: expected a label map of uint8 \(12, 10\).*got uint8 \(10, 12\)"),
        (np.zeros((12, 10, 3), np.uint8), r"got uint8 \(12, 10, 3\)"),
        (np.zeros((12, 10), np.uint16), r"got uint16 \(12, 10\)"),
    ],
    ids=["turned", "colours", "16 bits"],
)
def test_pair_label_map_of_other_size_or_type_raises(tmp_path, labels, message):
    write_pair(tmp_path, "a", np.zeros((12, 10, 3), np.uint8), labels)
    write_split(tmp_path, "train", ["a"])
    with pytest.raises(ValueError, match=message):
        VocFolder(tmp_path, "train").pair("a")


def test_pair_image_is_upright_as_when_it_is_served(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_pair(tmp_path, "a", np.zeros((12, 10, 3), np.uint8), np.zeros((10, 12), np.uint8), exif=exif)
    write_split(tmp_path, "train", ["a"])
    assert VocFolder(tmp_path, "train").pair("a")[0].shape == (10, 12, 3)


def test_pair_broken_image_raises_and_is_named(squares, tmp_path):
    folder = shutil.copytree(squares.folder, tmp_path / "data")
    path = folder / "images" / "square1.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"^square1: the image ends too early"):
        VocFolder(folder, "train").pair("square1")


# Crops


@pytest.mark.parametrize("crop_px", [32, 64, 200], ids=["within", "as large", "padded"])
def test_training_crops_give_image_and_labels_of_the_crop_size(squares, crop_px):
    crops = TrainingCrops(squares, RECIPE.model_copy(update={"crop_px": crop_px}), tiny_record().input)
    image, labels = crops[(3, 7)]
    assert (image.shape, image.dtype) == ((3, crop_px, crop_px), torch.uint8)
    assert (labels.shape, labels.dtype) == ((crop_px, crop_px), torch.uint8)
    assert set(labels.unique().tolist()) <= {0, 1, 2, IGNORED}
    assert (labels == IGNORED).any() == (crop_px == 200)


def test_training_crops_depend_on_index_and_seed_alone(squares):
    crops = TrainingCrops(squares, RECIPE, tiny_record().input)
    image, labels = crops[(3, 7)]
    crops[(1, 8)]
    torch.manual_seed(99)
    again, again_labels = crops[(3, 7)]
    assert torch.equal(image, again)
    assert torch.equal(labels, again_labels)
    assert not torch.equal(image, crops[(3, 8)][0])


def test_training_crops_keep_labels_on_their_pixels(squares):
    crops = TrainingCrops(squares, RECIPE, tiny_record().input)
    for seed in range(8):
        image, labels = crops[(0, seed)]  # a red square, class 1
        red = (image[0].int() - image[2].int()) > 90
        assert ((labels == 1) == red).float().mean() > 0.95


# The sampler


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 30), st.integers(0, 30))
def test_step_sampler_restarts_at_any_step(images, batch_size, steps, first_step):
    recipe = RECIPE.model_copy(update={"steps": steps, "batch_size": batch_size})
    first_step = min(first_step, steps)
    whole = list(StepSampler(images, recipe, 0))
    rest = StepSampler(images, recipe, first_step)
    assert list(rest) == whole[first_step:]
    assert list(rest) == whole[first_step:]
    assert len(rest) == steps - first_step


@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 3))
def test_step_sampler_visits_every_image_once_a_pass(images, batch_size, seed):
    recipe = RECIPE.model_copy(update={"steps": 3 * images, "batch_size": batch_size, "seed": seed})
    indices = [index for batch in StepSampler(images, recipe, 0) for index, _ in batch]
    for begin in range(0, len(indices) - images + 1, images):
        assert sorted(indices[begin : begin + images]) == list(range(images))


def test_step_sampler_seeds_and_orders_differ_between_passes_and_runs():
    recipe = RECIPE.model_copy(update={"steps": 20})
    pairs = [pair for batch in StepSampler(20, recipe, 0) for pair in batch]
    assert len({seed for _, seed in pairs}) == len(pairs)
    assert [index for index, _ in pairs[:20]] != [index for index, _ in pairs[20:40]]
    other = StepSampler(20, recipe.model_copy(update={"seed": 1}), 0)
    assert [pair for batch in other for pair in batch] != pairs


# The loop


def test_train_loss_falls(model, squares, tmp_path):
    losses = []
    recipe = RECIPE.model_copy(update={"steps": 40})
    network = train(model, recipe, squares, tmp_path, lambda step, loss, seconds: losses.append(loss))
    assert len(losses) == 40
    assert np.mean(losses[-8:]) < 0.6 * np.mean(losses[:8])
    assert not network.training
    with (tmp_path / LOG_FILE).open() as file:
        rows = list(csv.reader(file))
    assert [int(row[0]) for row in rows] == list(range(1, 41))
    assert [float(row[1]) for row in rows] == pytest.approx(losses, abs=1e-4)


class InterruptedTrainingError(Exception):
    pass


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("killed_after", [1, 3, 5, 7], ids=str)
def test_train_interrupted_and_resumed_ends_with_the_same_weights(
    model, squares, tmp_path, monkeypatch, killed_after, precision
):
    monkeypatch.setattr(loop_module, "CHECKPOINT_EVERY", 3)
    recipe = RECIPE.model_copy(update={"precision": precision})
    undisturbed = train(model, recipe, squares, tmp_path / "undisturbed", ignore).state_dict()

    def kill(step, _loss, _seconds):
        if step == killed_after:
            raise InterruptedTrainingError

    with pytest.raises(InterruptedTrainingError, match=r"^$"):
        train(model, recipe, squares, tmp_path / "killed", kill)
    steps = []
    resumed = train(model, recipe, squares, tmp_path / "killed", lambda step, *_: steps.append(step)).state_dict()
    # A step is reported before its checkpoint is written.
    assert steps == list(range((killed_after - 1) // 3 * 3 + 1, recipe.steps + 1))
    assert resumed.keys() == undisturbed.keys()
    assert [name for name in resumed if not torch.equal(resumed[name], undisturbed[name])] == []


def test_train_finished_run_is_not_trained_again(model, squares, tmp_path):
    recipe = RECIPE.model_copy(update={"steps": 2})
    first = train(model, recipe, squares, tmp_path, ignore).state_dict()
    again = train(model, recipe, squares, tmp_path, lambda *_: pytest.fail("a step was made")).state_dict()
    assert [name for name in first if not torch.equal(first[name], again[name])] == []


def test_train_other_recipe_in_the_same_run_raises(model, squares, tmp_path):
    train(model, RECIPE.model_copy(update={"steps": 1}), squares, tmp_path, ignore)
    with pytest.raises(ModelError, match="holds a run of another recipe; remove it, or give another folder"):
        train(model, RECIPE.model_copy(update={"steps": 2}), squares, tmp_path, ignore)


def test_train_start_from_the_model_begins_with_its_weights(tiny_model, squares, tmp_path):
    recipe = RECIPE.model_copy(update={"steps": 1, "start": "model", "backbone_lr": 1e-12, "head_lr": 1e-12})
    trained = dict(train(tiny_model, recipe, squares, tmp_path, ignore).named_parameters())
    for name, parameter in load_network(read_record(tiny_model), tiny_model).named_parameters():
        torch.testing.assert_close(trained[name], parameter, atol=1e-6, rtol=0)


def test_train_diverging_loss_raises(model, squares, tmp_path):
    recipe = RECIPE.model_copy(update={"backbone_lr": 1e30, "head_lr": 1e30, "warmup_steps": 0})
    with pytest.raises(FloatingPointError, match="the loss is nan: lower the learning rates"):
        train(model, recipe, squares, tmp_path, ignore)


def test_build_optimizer_decays_kernels_and_spares_norms_and_biases():
    network = tiny_network(tiny_record())
    groups = build_optimizer(network, RECIPE).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (0.02, 1e-4),
        (0.02, 0),
        (0.05, 1e-4),
        (0.05, 0),
    ]
    assert {parameter.ndim for group in groups[::2] for parameter in group["params"]} == {4}
    assert {parameter.ndim for group in groups[1::2] for parameter in group["params"]} == {1}
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))


@pytest.mark.parametrize("finished", [0, 1, 4], ids=str)
def test_build_schedule_follows_warm_up_and_poly_from_any_step(finished):
    optimizer = build_optimizer(tiny_network(tiny_record()), RECIPE)
    schedule = build_schedule(optimizer, RECIPE, finished)
    rates = []
    for _ in range(finished, RECIPE.steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.02 * min(1, (step + 1) / 3) * (1 - step / 8) ** 0.9 for step in range(finished, 8)]
    assert rates == pytest.approx(expected)


# Checkpoints


def test_checkpoint_comes_back_as_it_was_saved(tmp_path):
    saved = Checkpoint(3, RECIPE.model_dump(), {"weight": torch.arange(4.0)}, {"state": {}, "param_groups": []})
    saved.save(tmp_path / "new folder")
    loaded = Checkpoint.load(tmp_path / "new folder")
    assert (loaded.step, loaded.recipe, loaded.optimizer) == (3, RECIPE.model_dump(), saved.optimizer)
    assert torch.equal(loaded.network["weight"], torch.arange(4.0))


def test_checkpoint_of_an_empty_folder_is_none(tmp_path):
    assert Checkpoint.load(tmp_path) is None


def test_checkpoint_write_that_fails_in_the_middle_keeps_the_former(tmp_path, monkeypatch):
    Checkpoint(1, {}, {}, {}).save(tmp_path)

    def full_disk(_content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module.torch, "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            Checkpoint(2, {}, {}, {}).save(tmp_path)
    assert Checkpoint.load(tmp_path).step == 1
    Checkpoint(3, {}, {}, {}).save(tmp_path)
    assert Checkpoint.load(tmp_path).step == 3
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]


# Recipe, backbone weights, export


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("steps: 0", "steps: .*greater than 0"),
        ("seed: -1", "seed: .*greater than or equal to 0"),
        ("momentum: 0", "momentum: .*greater than 0"),
        ("lr: 1", "lr: unknown key"),
        ("scales: [0.5]", "scales.1: is missing"),
        ("precision: fp16", "precision: .*'bf16' or 'fp32'"),
    ],
    ids=lambda value: value.split(":")[0],
)
def test_read_recipe_bad_value_raises_one_line(tmp_path, line, message):
    (tmp_path / "recipe.yaml").write_text(line if line.startswith("steps") else f"steps: 1\n{line}\n")
    with pytest.raises(ModelError, match=rf"^recipe\.yaml: .*{message}") as caught:
        read_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(caught.value)


def test_load_backbone_from_a_file_loads_every_tensor(tmp_path):
    source, target = (tiny_network(tiny_record()).backbone for _ in range(2))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    save_file(source.state_dict(), tmp_path / "backbone.safetensors")
    load_backbone(target, "test_efficientnet", str(tmp_path / "backbone.safetensors"))
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())


def test_load_backbone_incomplete_file_raises_and_names_a_tensor(tmp_path):
    backbone = tiny_network(tiny_record()).backbone
    save_file({"conv_stem.weight": backbone.state_dict()["conv_stem.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(ModelError, match=r"part\.safetensors: lacks \d+ tensors of backbone x, first: bn1"):
        load_backbone(backbone, "x", str(tmp_path / "part.safetensors"))


def test_export_weights_then_load_network_gives_the_same_logits(tmp_path):
    network = tiny_network(tiny_record())
    record = export_weights(network, tiny_record(), tmp_path)
    assert read_record(tmp_path) == record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.yaml", "weights.safetensors"]
    stored = load_file(tmp_path / "weights.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}
    loaded = load_network(record, tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    inputs = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(inputs), network(inputs), atol=0.1, rtol=0.01)  # half precision


def test_export_weights_drops_the_accuracy_of_earlier_weights(tmp_path):
    accuracy = Accuracy(dataset="d", images=1, mean_iou=1, pixel_accuracy=1, class_iou={})
    assert export_weights(tiny_network(tiny_record()), tiny_record(accuracy=accuracy), tmp_path).accuracy is None


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")], ids=str)
def test_export_weights_value_beyond_half_precision_raises_and_writes_nothing(tmp_path, value):
    network = tiny_network(tiny_record())
    network.backbone.bn1.running_var[0] = value
    with pytest.raises(
        ValueError, match=r"^backbone\.bn1\.running_var: holds values that are not finite, or above 65504"
    ):
        export_weights(network, tiny_record(), tmp_path)
    assert list(tmp_path.iterdir()) == []
