"""Measures the time of every label map encoding on one core, and its size.

The label maps are those of photographs, resized to 640 x 480 pixels and to 16 megapixels. Each time
is the median over all photographs, with the fastest run in parentheses.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from timeit import repeat
from typing import Annotated, get_args

import numpy as np
import torch
import typer
from PIL import Image

from bench.images import NAMES
from segserve.resources import resource, sample_photograph
from segserve.runtime.encode.mask import encode_npy, encode_png
from segserve.runtime.encode.response import JsonResponse
from segserve.runtime.inference.labels import LabelRule, SegmentedImage
from segserve.runtime.inference.segmenter import Segmenter
from segserve.schema.request import MaskEncoding

SIZES_WH = {"640 x 480": (640, 480), "4096 x 4096": (4096, 4096)}


def main(
    model: str = "embedded",
    runs: Annotated[
        int, typer.Option(help="of each photograph at 640 x 480; fewer of larger ones")
    ] = 40,
) -> None:
    torch.set_num_threads(1)
    segmenter = Segmenter.load(resource(f"model/{model}"))
    for title, size_wh in SIZES_WH.items():
        segmentations = [_segmented(segmenter, name, size_wh) for name in NAMES]
        repeats = max(3, runs * 640 * 480 // (size_wh[0] * size_wh[1]))
        print(
            f"{title}, {len(NAMES)} photographs, {repeats} runs of each: median (fastest) ms, "
            "largest response"
        )
        for name, encode in _encoders(segmenter).items():
            print(f"  {name:24} {_cost(encode, segmentations, repeats)}")


def _segmented(segmenter: Segmenter, name: str, size_wh: tuple[int, int]) -> SegmentedImage:
    with Image.open(sample_photograph(name)) as image:
        pixels = np.array(image.convert("RGB").resize(size_wh))
    return segmenter.segment(pixels, rule=LabelRule(keep_confidence=True))


def _encoders(segmenter: Segmenter) -> dict[str, Callable[[SegmentedImage], bytes]]:
    """Functions that encode a segmentation as the server does: they compute the size first, then
    the response body.
    """
    record = segmenter.record

    def in_json(segmentation: SegmentedImage, mask: MaskEncoding, confidence: bool) -> bytes:
        reply = JsonResponse(segmentation, record)
        reply.size_bytes(mask, confidence=confidence)
        return reply.body(mask, confidence=confidence)

    return {
        **{
            f"mask={mask}": partial(in_json, mask=mask, confidence=False)
            for mask in get_args(MaskEncoding)
        },
        "mask=none confidence=true": partial(in_json, mask="none", confidence=True),
        "Accept: image/png": lambda found: encode_png(found.label_map, record.palette),
        "Accept: application/x-npy": lambda found: encode_npy(found.label_map),
    }


def _cost(
    encode: Callable[[SegmentedImage], bytes], segmentations: Sequence[SegmentedImage], runs: int
) -> str:
    times_s = [
        seconds
        for found in segmentations
        for seconds in repeat(partial(encode, found), number=1, repeat=runs)
    ]
    median_ms, least_ms = 1000 * statistics.median(times_s), 1000 * min(times_s)
    largest_bytes = max(len(encode(found)) for found in segmentations)
    return f"{median_ms:8.2f} ({least_ms:.2f}) ms {largest_bytes:10,} bytes"


if __name__ == "__main__":
    typer.run(main)
