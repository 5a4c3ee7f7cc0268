"""Trains variants of one model and prints a table: `python -m bench.training levers|heads --data
DATA`.

    levers   single changes of the embedded model's recipe, with a fraction of its steps
    heads    the three heads with the same backbone, schedule and seed

If the recipe starts from a model, `--reference` names the TFLite file for `segserve import`.

A trained variant is not trained again. An interrupted variant is resumed. All runs are in the
folder `--runs`.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from segserve.recipe import RECIPE_FILE, Recipe, read_recipe
from segserve.resources import resource
from segserve.runtime.network.build import SegmentationNetwork
from segserve.runtime.network.weights import WEIGHTS_FILE, load_network
from segserve.runtime.record import Architecture, ModelRecord, read_record, validated, write_record
from segserve.training.data import check_split, open_data
from segserve.training.evaluate.measure import measure, offline_model
from segserve.training.train.loop import train
from segserve.training.train.model_folder import export_weights
from segserve.training.train.reference import import_reference

MIN_IMAGES = 20

# CoreNet's heads with their own defaults. Separable: full 3x3 kernels at stride 8 need minutes per
# step on a CPU.
HEADS: Mapping[str, Mapping[str, object]] = {
    "deeplabv3": {"head": "deeplabv3"},
    "corenet": {"head": "corenet"},
    "corenet, separable": {"head": "corenet", "aspp_sep_conv": True},
    "multiscale, separable": {"head": "multiscale", "aspp_sep_conv": True},
}


@dataclass(frozen=True)
class Variant:
    name: str
    record: ModelRecord
    recipe: Recipe


def main() -> None:
    arguments = _arguments()
    folder = resource(f"model/{arguments.model}")
    record, recipe = read_record(folder), read_recipe(folder / RECIPE_FILE)
    if arguments.crop_px is not None:
        record, recipe = _shrunk(record, recipe, arguments.crop_px)
    for variant in _variants(arguments.kind, record, recipe, arguments):
        if arguments.only and variant.name not in arguments.only:
            continue
        trained = _trained(variant, arguments)
        print(f"| {variant.name} | {' | '.join(_figures(trained, arguments))} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["levers", "heads"])
    parser.add_argument("--data", type=Path, required=True, help="folder in PASCAL VOC layout")
    parser.add_argument("--split", default="train")
    parser.add_argument("--val", default="dev")
    parser.add_argument(
        "--model", default="embedded", help="name of the model in model/ whose recipe is varied"
    )
    parser.add_argument("--backbone", help="instead of the model's")
    parser.add_argument("--backbone-weights", help="instead of the recipe's")
    parser.add_argument("--reference", type=Path, help="deeplabv3_mnv2_pascal_quant.tflite")
    parser.add_argument("--only", nargs="*", help="names of the variants; all without it")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument(
        "--crop-px", type=int, help="instead of the recipe's; images and input shrink in proportion"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    return parser.parse_args()


def _shrunk(record: ModelRecord, recipe: Recipe, crop_px: int) -> tuple[ModelRecord, Recipe]:
    """Record and recipe for smaller crops. The image size and the network's input size shrink in
    proportion.
    """
    resize = record.input.resize
    size_px = (
        round(resize.size_px * crop_px / recipe.crop_px / resize.multiple_of) * resize.multiple_of
    )
    rule = record.input.model_copy(
        update={"resize": resize.model_copy(update={"size_px": size_px})}
    )
    crops = {"crop_px": crop_px, "image_px": recipe.image_px * crop_px // recipe.crop_px}
    return record.model_copy(update={"input": rule}), recipe.model_copy(update=crops)


def _variants(
    kind: str, record: ModelRecord, recipe: Recipe, arguments: argparse.Namespace
) -> Iterator[Variant]:
    changed = {
        "steps": arguments.steps,
        "backbone_weights": arguments.backbone_weights or recipe.backbone_weights,
    }
    backbone = arguments.backbone or record.architecture.backbone
    for name, lever in _levers(recipe, arguments.steps).items() if kind == "levers" else ():
        own = {key: value for key, value in lever.items() if key in Architecture.model_fields}
        architecture = record.architecture.model_copy(update={"backbone": backbone, **own})
        others = {key: value for key, value in lever.items() if key in Recipe.model_fields}
        yield Variant(
            name, _untrained(record, architecture), recipe.model_copy(update={**changed, **others})
        )
    for name, head in HEADS.items() if kind == "heads" else ():
        architecture = validated({"backbone": backbone, **head}, Architecture, name)
        yield Variant(name, _untrained(record, architecture), recipe.model_copy(update=changed))


def _levers(recipe: Recipe, steps: int) -> Mapping[str, Mapping[str, object]]:
    """The changes of recipe or architecture. The variant with another seed shows the size of random
    differences.
    """
    return {
        "the recipe": {},
        "another seed": {"seed": recipe.seed + 1},
        "repeats of rare classes": {"repeat_threshold": 0.05},
        "repeats and copy-paste": {"repeat_threshold": 0.05, "copy_paste": 0.25},
        "Lovasz-softmax, half of the loss": {"lovasz_weight": 0.5},
        "the hardest quarter of the pixels": {"hard_share": 0.25},
        "loss at every pixel": {"loss_stride": 1},
        "separable ASPP": {"aspp_sep_conv": True},
        "three times the learning rates": {
            "backbone_lr": 3 * recipe.backbone_lr,
            "head_lr": 3 * recipe.head_lr,
        },
        "norms with the batch's statistics": {"batch_norm_momentum": 0.01},
        "scales 0.8 to 1.25": {"scales": (0.8, 1.25)},
        "without colour jitter": {"color_jitter": 0.0},
        "without moving average": {"ema_decay": 0.0},
        "twice the steps": {"steps": 2 * steps},
    }


def _untrained(record: ModelRecord, architecture: Architecture) -> ModelRecord:
    return record.model_copy(
        update={"architecture": architecture, "weights": None, "accuracy": None}
    )


def _trained(variant: Variant, arguments: argparse.Namespace) -> Path:
    """The variant's model folder. Trains the variant if it is not trained yet."""
    folder: Path = arguments.runs / arguments.kind / variant.name.replace(" ", "-").replace(",", "")
    if not (folder / WEIGHTS_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_record(variant.record, folder)
        classes = variant.record.classes
        data = check_split(open_data(arguments.data, arguments.split, classes), classes)
        if variant.recipe.start == "model":
            import_reference(arguments.reference, folder, data.data, lambda _finished, _total: None)
        network = train(folder, variant.recipe, data, folder / "run", lambda _report: None)
        export_weights(network, variant.record, folder)
    return folder


def _figures(folder: Path, arguments: argparse.Namespace) -> Iterator[str]:
    record = read_record(folder)
    data = open_data(arguments.data, arguments.val, record.classes)
    with offline_model(folder) as predictor:
        evaluation = measure(data, predictor, lambda _finished: None)
    covered = evaluation.covered_mean(MIN_IMAGES)
    yield "-" if covered is None else f"{covered.mean_iou:.3f}"
    yield f"{evaluation.mean_iou:.3f}"
    if arguments.kind == "heads":
        network = load_network(record, folder)
        size_px = record.input.resize.size_px
        inputs = torch.zeros(1, 3, size_px * 3 // 4, size_px)
        yield f"{sum(parameter.numel() for parameter in network.parameters()) / 1e6:.2f} M"
        yield f"{_multiply_adds(network, inputs) / 1e9:.2f} G"
        yield f"{_median_ms(network, inputs):.0f} ms"


def _multiply_adds(network: SegmentationNetwork, inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(inputs)
    return counter.get_total_flops() / 2


def _median_ms(network: SegmentationNetwork, inputs: torch.Tensor, rounds: int = 15) -> float:
    network = network.to(memory_format=torch.channels_last)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    times_ms = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(rounds):
            began_s = time.perf_counter()
            network(inputs)
            times_ms.append((time.perf_counter() - began_s) * 1e3)
    return statistics.median(times_ms)


if __name__ == "__main__":
    main()
