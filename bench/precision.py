"""Measures what lower precision costs and gains: `python -m bench.precision --data DATA`.

The table has accuracy on labelled images, the share of pixels with float32's class, and the median
time of one image of the resize rule's size, on one thread and on all, over alternating rounds.
"""

import statistics
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import Annotated

import numpy as np
import torch
import typer

from segserve.fetch import model_named
from segserve.runtime.encode.mask import LabelMap
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.record import read_record
from segserve.runtime.settings import Settings
from segserve.training.data import LabelledImages, open_data
from segserve.training.measure import measure, predictor_of

REFERENCE = "fp32, module by module"
SETTINGS: Mapping[str, Settings] = {
    REFERENCE: Settings(precision="fp32", fuse=False),
    "fp32": Settings(precision="fp32"),
    "bf16": Settings(precision="bf16"),
    "int8": Settings(precision="int8"),
}
ROUNDS = 15


def main(
    data: Annotated[Path, typer.Option(help="as for `segserve evaluate`")],
    model: Annotated[str, typer.Option(help="a model of model/")] = "embedded",
    split: str = "dev",
) -> None:
    folder = model_named(model)
    images = open_data(data, split, read_record(folder).classes)
    segmenters = {
        name: Segmenter.load(folder, settings=settings) for name, settings in SETTINGS.items()
    }
    threads = torch.get_num_threads()
    times_ms = [_network_ms(segmenters, count) for count in (1, threads)]
    reference: dict[str, LabelMap] = {}
    print(
        "| precision | mean IoU, all classes | those in 20 images | pixel accuracy | as float32 | "
        f"network, ms: 1 thread | {threads} threads |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, segmenter in segmenters.items():
        label_maps, figures = _measured(segmenter, images)
        reference = reference or label_maps
        same = statistics.mean(
            float(np.mean(label_maps[image] == reference[image])) for image in images.names
        )
        cells = [name, *figures, f"{same:.2%}", *(f"{times[name]:.0f}" for times in times_ms)]
        print(f"| {' | '.join(cells)} |", flush=True)


def _measured(segmenter: Segmenter, data: LabelledImages) -> tuple[dict[str, LabelMap], list[str]]:
    """The label map of every image, and the cells of the table."""
    label_maps: dict[str, LabelMap] = {}
    with predictor_of(segmenter) as predictor:

        def kept(name: str, image_rgb: np.ndarray) -> LabelMap:
            label_maps[name] = predictor.label_map(name, image_rgb)
            return label_maps[name]

        keeping = replace(predictor, label_map=kept)
        report = measure(data, keeping, lambda _finished: None, min_images=20)
    covered = f"{report.covered.mean_iou:.4f}" if report.covered else "-"
    return label_maps, [f"{report.mean_iou:.4f}", covered, f"{report.pixel_accuracy:.4f}"]


def _network_ms(segmenters: Mapping[str, Segmenter], threads: int) -> dict[str, float]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    times_s: dict[str, list[float]] = {name: [] for name in segmenters}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, segmenter in segmenters.items():
                size_px = segmenter.record.input.resize.size_px
                grey = np.full((size_px * 3 // 4, size_px, 3), 128, np.uint8)
                inputs = segmenter.preprocess(grey)
                segmenter.infer(inputs)  # the threads of the one before it may still spin
                times_s[name].append(timeit(partial(segmenter.infer, inputs), number=1))
    torch.set_num_threads(before)
    return {name: 1000 * statistics.median(values) for name, values in times_s.items()}


if __name__ == "__main__":
    typer.run(main)
