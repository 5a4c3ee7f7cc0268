"""TorchServe's stock segmenter at our input size: only its resize and its crop are replaced."""

from pathlib import Path

from PIL.Image import Image
from torchvision import transforms as T  # noqa: N812 - the name the field uses
from ts.torch_handler import image_segmenter

from segserve.runtime import record

_RULE = record.read_record(Path(__file__).parent).input.resize


def _resized(image: Image) -> Image:
    return T.functional.resize(image, _RULE.size_for(image.height, image.width))


class SameSizeSegmenter(image_segmenter.ImageSegmenter):
    image_processing = T.Compose(
        [T.Lambda(_resized), *image_segmenter.ImageSegmenter.image_processing.transforms[2:]]
    )
