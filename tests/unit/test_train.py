"""Data set, sampler, loop, checkpoints and export, on a few coloured squares."""

import csv
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from segserve.recipe import Recipe
from segserve.runtime.errors import ModelError
from segserve.runtime.network import load_network
from segserve.runtime.network.backbone import build_backbone
from segserve.runtime.record import Accuracy, Architecture, read_document, read_record, write_record
from segserve.training.data import IGNORED, VocFolder, check_split
from segserve.training.loop import (
    LOG_FILE,
    RunLog,
    StepReport,
    StepSampler,
    TrainingCrops,
    train,
)
from segserve.training.model_folder import export_weights, load_backbone
from segserve.training.state import (
    CHECKPOINT_FILE,
    build_optimizer,
    build_schedule,
    read_checkpoint,
    write_checkpoint,
)

from .tiny import tiny_network, tiny_record, write_tiny_model
from .voc import write_squares

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
    data = VocFolder(write_squares(tmp_path_factory.mktemp("squares"), images=6), "train")
    return check_split(data, tiny_record().classes)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a record and no weights yet."""
    folder = tmp_path_factory.mktemp("untrained")
    write_record(tiny_record(), folder)
    return folder


def ignore(*_):
    pass


# Crops


@pytest.mark.parametrize("crop_px", [32, 64, 200], ids=["within", "as large", "padded"])
def test_training_crops_give_image_and_labels_of_the_crop_size(squares, crop_px):
    crops = TrainingCrops(
        squares.data, RECIPE.model_copy(update={"crop_px": crop_px}), tiny_record().input
    )
    image, labels = crops[(3, 7)]
    assert (image.shape, image.dtype) == ((3, crop_px, crop_px), torch.uint8)
    assert (labels.shape, labels.dtype) == ((crop_px, crop_px), torch.uint8)
    assert set(labels.unique().tolist()) <= {0, 1, 2, IGNORED}
    assert (labels == IGNORED).any() == (crop_px == 200)


def test_training_crops_depend_on_index_and_seed_alone(squares):
    crops = TrainingCrops(squares.data, RECIPE, tiny_record().input)
    image, labels = crops[(3, 7)]
    crops[(1, 8)]
    torch.manual_seed(99)
    again, again_labels = crops[(3, 7)]
    assert torch.equal(image, again)
    assert torch.equal(labels, again_labels)
    assert not torch.equal(image, crops[(3, 8)][0])


def test_training_crops_keep_labels_on_their_pixels(squares):
    crops = TrainingCrops(squares.data, RECIPE, tiny_record().input)
    for seed in range(8):
        image, labels = crops[(0, seed)]  # a red square, class 1
        red = (image[0].int() - image[2].int()) > 90
        assert ((labels == 1) == red).float().mean() > 0.95


@pytest.mark.parametrize("key", ["momentum", "poly_power", "weight_decay"])
def test_read_recipe_removed_key_is_an_error(tmp_path, key):
    (tmp_path / "recipe.yaml").write_text(f"steps: 1\n{key}: 0.5\n")
    with pytest.raises(ModelError, match=rf"^recipe\.yaml: {key}: unknown key$"):
        read_document(tmp_path / "recipe.yaml", Recipe)


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
def test_step_sampler_visits_every_image_once_per_epoch(images, batch_size, seed):
    recipe = RECIPE.model_copy(update={"steps": 3 * images, "batch_size": batch_size, "seed": seed})
    indices = [index for batch in StepSampler(images, recipe, 0) for index, _ in batch]
    for begin in range(0, len(indices) - images + 1, images):
        assert sorted(indices[begin : begin + images]) == list(range(images))


def test_step_sampler_seeds_and_orders_differ_between_epochs_and_runs():
    recipe = RECIPE.model_copy(update={"steps": 20})
    pairs = [pair for batch in StepSampler(20, recipe, 0) for pair in batch]
    assert len({seed for _, seed in pairs}) == len(pairs)
    assert [index for index, _ in pairs[:20]] != [index for index, _ in pairs[20:40]]
    other = StepSampler(20, recipe.model_copy(update={"seed": 1}), 0)
    assert [pair for batch in other for pair in batch] != pairs


@pytest.mark.parametrize("processes", [2, 4], ids=str)
def test_step_sampler_shares_of_all_processes_are_the_batch(processes):
    recipe = RECIPE.model_copy(update={"steps": 5})
    whole = list(StepSampler(6, recipe, 2))
    shares = [
        list(StepSampler(6, recipe, 2, rank=rank, processes=processes)) for rank in range(processes)
    ]
    for step, batch in enumerate(whole):
        assert {len(share[step]) for share in shares} == {4 // processes}
        assert sorted(pair for share in shares for pair in share[step]) == sorted(batch)


# The loop


def test_train_loss_falls(model, squares, tmp_path):
    losses = []
    recipe = RECIPE.model_copy(update={"steps": 40})
    network = train(model, recipe, squares, tmp_path, lambda report: losses.append(report.loss))
    assert len(losses) == 40
    assert np.mean(losses[-8:]) < 0.6 * np.mean(losses[:8])
    assert not network.training
    with (tmp_path / LOG_FILE).open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "loss", "learning_rate", "seconds", "mean_iou"]
    assert [int(row[0]) for row in rows[1:]] == list(range(1, 41))
    assert [float(row[1]) for row in rows[1:]] == pytest.approx(losses, abs=1e-4)


class InterruptedTrainingError(Exception):
    pass


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("killed_after", [1, 3, 5, 7], ids=str)
def test_train_interrupted_and_resumed_ends_with_the_same_weights(
    model, squares, tmp_path, killed_after, precision
):
    recipe = RECIPE.model_copy(update={"precision": precision, "ema_decay": 0.7})
    undisturbed = train(model, recipe, squares, tmp_path / "undisturbed", ignore).state_dict()

    def kill(report):
        if report.step == killed_after:
            raise InterruptedTrainingError

    with pytest.raises(InterruptedTrainingError, match=r"^$"):
        train(model, recipe, squares, tmp_path / "killed", kill, checkpoint_every=3)
    steps = []
    resumed = train(
        model,
        recipe,
        squares,
        tmp_path / "killed",
        lambda report: steps.append(report.step),
        checkpoint_every=3,
    ).state_dict()
    # A step is reported before its checkpoint is written.
    assert steps == list(range((killed_after - 1) // 3 * 3 + 1, recipe.steps + 1))
    assert resumed.keys() == undisturbed.keys()
    assert [name for name in resumed if not torch.equal(resumed[name], undisturbed[name])] == []


def test_train_finished_run_makes_no_step(model, squares, tmp_path):
    recipe = RECIPE.model_copy(update={"steps": 2})
    first = train(model, recipe, squares, tmp_path, ignore).state_dict()
    again = train(
        model, recipe, squares, tmp_path, lambda *_: pytest.fail("a step was made")
    ).state_dict()
    assert [name for name in first if not torch.equal(first[name], again[name])] == []


def test_train_other_recipe_in_the_same_run_raises(model, squares, tmp_path):
    train(model, RECIPE.model_copy(update={"steps": 1}), squares, tmp_path, ignore)
    with pytest.raises(
        ModelError,
        match="holds another run, which differs in recipe; remove it",
    ):
        train(model, RECIPE.model_copy(update={"steps": 2}), squares, tmp_path, ignore)


def test_train_other_classes_data_or_input_in_the_same_run_raise(model, squares, tmp_path):
    recipe = RECIPE.model_copy(update={"steps": 1})
    train(model, recipe, squares, tmp_path / "run", ignore)
    classes = tiny_record().classes
    renamed = (*classes[:2], classes[2].model_copy(update={"label": "fox"}))
    rule = tiny_record().input.model_copy(update={"mean": (0.1, 0.2, 0.3)})
    for changes, data, differing in (
        ({"classes": renamed}, squares, "classes"),
        ({"input": rule}, squares, "input rule"),
        ({}, replace(squares, pixels=squares.pixels + 1), "data"),
    ):
        write_record(tiny_record(**changes), tmp_path)
        with pytest.raises(ModelError, match=f"another run, which differs in {differing}; "):
            train(tmp_path, recipe, data, tmp_path / "run", ignore)


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "interrupted"])
def test_train_other_starting_weights_in_the_same_run_raise(squares, tmp_path, finished):
    model = write_tiny_model(tmp_path)
    recipe = RECIPE.model_copy(update={"steps": 2, "start": "model"})

    def stop(report):
        if report.step == 2 and not finished:
            raise InterruptedTrainingError

    with suppress(InterruptedTrainingError):
        train(model, recipe, squares, tmp_path / "run", stop, checkpoint_every=1)
    network = tiny_network(tiny_record())
    network.head[-1].bias.data.add_(1)
    export_weights(network, read_record(model), model)
    with pytest.raises(ModelError, match="another run, which differs in starting weights; "):
        train(model, recipe, squares, tmp_path / "run", ignore)


def test_train_start_from_the_model_begins_with_its_weights(tiny_model, squares, tmp_path):
    recipe = RECIPE.model_copy(
        update={"steps": 1, "start": "model", "backbone_lr": 1e-12, "head_lr": 1e-12}
    )
    trained = dict(train(tiny_model, recipe, squares, tmp_path, ignore).named_parameters())
    for name, parameter in load_network(read_record(tiny_model), tiny_model).named_parameters():
        torch.testing.assert_close(trained[name], parameter, atol=1e-6, rtol=0)


def test_train_start_share_keeps_that_much_of_the_start(squares, tmp_path):
    model = write_tiny_model(tmp_path)
    start = load_network(read_record(model), model).state_dict()
    recipe = RECIPE.model_copy(update={"steps": 3, "start": "model"})
    alone = train(model, recipe, squares, tmp_path / "alone", ignore).state_dict()
    shared = recipe.model_copy(update={"start_share": 0.25})
    kept = train(model, shared, squares, tmp_path / "run", ignore)
    for name, weight in kept.state_dict().items():
        if weight.is_floating_point():
            torch.testing.assert_close(weight, 0.75 * alone[name] + 0.25 * start[name])
    export_weights(kept, read_record(model), model)  # as the command does at the end of a run
    again = train(model, shared, squares, tmp_path / "run", ignore).state_dict()
    for name, weight in kept.state_dict().items():
        torch.testing.assert_close(again[name], weight, rtol=0, atol=0)


def test_train_start_share_without_a_start_raises(model, squares, tmp_path):
    recipe = RECIPE.model_copy(update={"start_share": 0.25})
    with pytest.raises(
        ModelError, match=r"start_share is 0\.25, but the run starts from a backbone"
    ):
        train(model, recipe, squares, tmp_path, ignore)


def test_train_frozen_norms_keep_their_statistics_and_learn_their_scale(
    tiny_model, squares, tmp_path
):
    recipe = RECIPE.model_copy(
        update={"steps": 3, "start": "model", "batch_norm_momentum": 0.0, "ema_decay": 0.0}
    )
    trained = train(tiny_model, recipe, squares, tmp_path, ignore).state_dict()
    start = load_network(read_record(tiny_model), tiny_model).state_dict()
    norms = [name.removesuffix(".running_mean") for name in start if name.endswith(".running_mean")]
    assert norms
    for norm in norms:
        for statistic in ("running_mean", "running_var"):
            assert torch.equal(trained[f"{norm}.{statistic}"], start[f"{norm}.{statistic}"])
    assert not torch.equal(trained[f"{norms[0]}.weight"], start[f"{norms[0]}.weight"])


def test_train_without_loading_processes_sees_the_same_batches(model, squares, tmp_path):
    recipe = RECIPE.model_copy(update={"steps": 2})
    alone, helped = (
        train(model, recipe, squares, tmp_path / str(n), ignore, workers=n).state_dict()
        for n in (0, 1)
    )
    assert [name for name in alone if not torch.equal(alone[name], helped[name])] == []


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


def test_build_schedule_longer_than_the_run_is_that_of_a_longer_run():
    network = tiny_network(tiny_record())

    def rates(recipe):
        optimizer = build_optimizer(network, recipe)
        schedule = build_schedule(optimizer, recipe, 0)
        for _ in range(4):
            yield schedule.get_last_lr()
            optimizer.step()
            schedule.step()

    cut_short = RECIPE.model_copy(update={"steps": 4, "schedule_steps": 8, "schedule": "cosine"})
    assert list(rates(cut_short)) == list(rates(RECIPE.model_copy(update={"schedule": "cosine"})))


@pytest.mark.parametrize("finished", [0, 1, 4], ids=str)
def test_build_schedule_follows_warm_up_and_poly_from_any_step(finished):
    optimizer = build_optimizer(tiny_network(tiny_record()), RECIPE)
    schedule = build_schedule(optimizer, RECIPE, finished)
    rates = []
    for _ in range(finished, RECIPE.steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [
        0.02 * min(1, (step + 1) / 3) * (1 - step / 8) ** 0.9 for step in range(finished, 8)
    ]
    assert rates == pytest.approx(expected)


# Checkpoints


def test_checkpoint_comes_back_as_it_was_saved(tmp_path):
    saved = {"step": 3, "states": {"network": {"weight": torch.arange(4.0)}}}
    write_checkpoint(tmp_path / "new folder", saved)
    loaded = read_checkpoint(tmp_path / "new folder")
    assert loaded["step"] == 3
    assert torch.equal(loaded["states"]["network"]["weight"], torch.arange(4.0))


def test_checkpoint_of_an_empty_folder_is_none(tmp_path):
    assert read_checkpoint(tmp_path) is None


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from segserve.training.state import write_checkpoint
folder = Path(sys.argv[1])
write_checkpoint(folder, {"step": 1, "weight": torch.ones(1000)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
write_checkpoint(folder, {"step": 2, "weight": torch.ones(1_000_000)})
"""


def test_checkpoint_on_a_full_disk_keeps_the_previous_one(tmp_path):
    failed = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert "File too large" in failed.stderr
    assert read_checkpoint(tmp_path)["step"] == 1
    write_checkpoint(tmp_path, {"step": 3})
    assert read_checkpoint(tmp_path)["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]


def test_run_log_removes_rows_of_steps_that_are_repeated(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in range(1, 6):
        log.add(StepReport(step, 1.0, 0.1, 2.0, 0.5 if step == 2 else None))
    log.close()
    with (tmp_path / LOG_FILE).open("a") as file:
        file.write("6,0.5")  # killed while it was written
    log = RunLog(tmp_path, 3)
    log.add(StepReport(4, 9.0, 0.1, 2.0))
    log.close()
    with (tmp_path / LOG_FILE).open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["mean_iou"]) for row in rows] == [
        ("1", "1.0000", ""),
        ("2", "1.0000", "0.5000"),
        ("3", "1.0000", ""),
        ("4", "9.0000", ""),
    ]


# Recipe, backbone weights, export


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("steps: 0", "steps: .*greater than 0"),
        ("seed: -1", "seed: .*greater than or equal to 0"),
        ("batch_norm_momentum: -1", "batch_norm_momentum: .*greater than or equal to 0"),
        ("lr: 1", "lr: unknown key"),
        ("scales: [0.5]", "scales.1: is missing"),
        ("precision: fp8", "precision: .*'bf16' or 'fp32'"),
    ],
    ids=lambda value: value.split(":")[0],
)
def test_read_recipe_bad_value_raises_one_line(tmp_path, line, message):
    (tmp_path / "recipe.yaml").write_text(
        line if line.startswith("steps") else f"steps: 1\n{line}\n"
    )
    with pytest.raises(ModelError, match=rf"^recipe\.yaml: .*{message}") as caught:
        read_document(tmp_path / "recipe.yaml", Recipe)
    assert "\n" not in str(caught.value)


def test_load_backbone_from_a_file_loads_every_tensor(tmp_path):
    source, target = (tiny_network(tiny_record()).backbone for _ in range(2))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    save_file(source.state_dict(), tmp_path / "backbone.safetensors")
    load_backbone(target, "test_efficientnet", str(tmp_path / "backbone.safetensors"))
    assert all(
        torch.equal(tensor, target.state_dict()[name])
        for name, tensor in source.state_dict().items()
    )


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(backbone="test_convnext", output_stride=32),
        Architecture(backbone="test_efficientnet", output_stride=32, use_l5_exp=True),
    ],
    ids=["stages lifted to the top", "wrapped"],
)
def test_load_backbone_from_a_classifier_with_other_names_loads_every_tensor(
    tmp_path, architecture
):
    classifier = timm.create_model(architecture.backbone)
    save_file(classifier.state_dict(), tmp_path / "classifier.safetensors")
    backbone, _ = build_backbone(architecture)
    load_backbone(backbone, architecture.backbone, str(tmp_path / "classifier.safetensors"))
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(
        backbone.eval()(image)[-1], classifier.eval().forward_features(image)
    )


def test_load_backbone_from_a_mobilenet_of_torchvision_loads_every_tensor(tmp_path):
    classifier = torchvision.models.mobilenet_v3_large()
    torch.save(classifier.state_dict(), tmp_path / "mobilenet.pth")
    architecture = Architecture(backbone="torchvision.mobilenet_v3_large")
    backbone, _ = build_backbone(architecture)
    load_backbone(backbone, architecture.backbone, str(tmp_path / "mobilenet.pth"))
    published = classifier.features.state_dict()
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, published[name])


class _RunsCode:
    def __reduce__(self):
        return os.system, ("exit",)


def test_load_backbone_of_torchvision_runs_no_code_of_the_file(tmp_path, monkeypatch):
    """torchvision takes its download from this folder, if it is there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    backbone, _ = build_backbone(Architecture(backbone="torchvision.resnet18", dilation="uniform"))
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, file)
    load_backbone(backbone, "torchvision.resnet18", "torchvision")
    loaded = backbone.state_dict()["conv1.weight"]
    torch.testing.assert_close(loaded, state["conv1.weight"])
    torch.save({**state, "code": _RunsCode()}, file)
    with pytest.raises(ModelError, match="torchvision cannot give its weights"):
        load_backbone(backbone, "torchvision.resnet18", "torchvision")


def test_load_backbone_incomplete_file_raises_and_names_a_tensor(tmp_path):
    backbone = tiny_network(tiny_record()).backbone
    save_file(
        {"conv_stem.weight": backbone.state_dict()["conv_stem.weight"]},
        tmp_path / "part.safetensors",
    )
    with pytest.raises(
        ModelError, match=r"part\.safetensors: lacks \d+ tensors of backbone x, first: bn1"
    ):
        load_backbone(backbone, "x", str(tmp_path / "part.safetensors"))


def test_export_weights_then_load_network_gives_the_same_logits(tmp_path):
    network = tiny_network(tiny_record())
    record = export_weights(network, tiny_record(), tmp_path)
    assert read_record(tmp_path) == record
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == ["model.yaml", "weights.safetensors"]
    assert (
        len({path.stat().st_mode for path in files}) == 1
    )  # record and weights have the same permissions
    stored = load_file(tmp_path / "weights.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {
        torch.float16
    }
    loaded = load_network(record, tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    inputs = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded(inputs), network(inputs), atol=0.1, rtol=0.01
        )  # half precision


def test_export_weights_drops_the_accuracy_of_earlier_weights(tmp_path):
    accuracy = Accuracy(dataset="d", images=1, mean_iou=1, pixel_accuracy=1, class_iou={})
    assert (
        export_weights(
            tiny_network(tiny_record()), tiny_record(accuracy=accuracy), tmp_path
        ).accuracy
        is None
    )


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")], ids=str)
def test_export_weights_value_beyond_half_precision_raises_and_writes_nothing(tmp_path, value):
    network = tiny_network(tiny_record())
    network.backbone.bn1.running_var[0] = value
    with pytest.raises(
        ValueError,
        match=r"^backbone\.bn1\.running_var: holds values that are not finite, or above 65504",
    ):
        export_weights(network, tiny_record(), tmp_path)
    assert list(tmp_path.iterdir()) == []
