"""How a hand-written server processes an image, in LitServe's three steps: decode an image file,
predict its label map, uint8 (H, W) at the image's original size, and encode that as a PNG.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name the field uses
from torchvision import transforms as T  # noqa: N812

from segserve.runtime.decode.image import Decoded, decode_reduced
from segserve.runtime.encode.mask import encode_png
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.network import load_network
from segserve.runtime.record import read_record
from segserve.runtime.settings import Settings

LabelMap = NDArray[np.uint8]


def first_device() -> torch.device:
    """The first GPU, if there is one, as in TorchServe's workers."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class EagerSteps:
    """The steps as in tutorials and server documentation: Pillow, torchvision's transforms,
    float32, eager mode.

    The network's input size is the same as in our server.
    """

    def __init__(self, model: Path, device: torch.device) -> None:
        self._device = device
        self._record = read_record(model)
        self._network = load_network(self._record, model).to(device).eval()
        mean, std = self._record.input.mean, self._record.input.std
        self._normalized = T.Compose([T.ToTensor(), T.Normalize(mean, std)])

    def decode(self, content: bytes) -> tuple[Tensor, tuple[int, int]]:
        """The network's input, float32 (1, 3, h, w), and the image's original (height, width)."""
        image = Image.open(io.BytesIO(content)).convert("RGB")
        height_px, width_px = self._record.input.resize.size_for(image.height, image.width)
        inputs = self._normalized(image.resize((width_px, height_px), Image.Resampling.BILINEAR))
        return inputs.unsqueeze(0).to(self._device), (image.height, image.width)

    def predict(self, image: tuple[Tensor, tuple[int, int]]) -> LabelMap:
        inputs, size_hw = image
        with torch.inference_mode():
            logits = self._network(inputs)
            full = F.interpolate(logits, size=size_hw, mode="bilinear", align_corners=False)
            return full.argmax(1)[0].to(torch.uint8).cpu().numpy()

    def encode(self, label_map: LabelMap) -> bytes:
        image = Image.fromarray(label_map, mode="P")
        image.putpalette(self._record.palette)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()


class OurSteps:
    """The steps with our own code, so that a comparison shows only the difference between the
    servers.
    """

    def __init__(self, model: Path, device: torch.device) -> None:
        self._segmenter = Segmenter.load(model, device=device)
        self._limits = Settings().pixel_limits

    def decode(self, content: bytes) -> Decoded:
        return decode_reduced(content, limits=self._limits, needed=self._segmenter.needed_hw)

    def predict(self, image: Decoded) -> LabelMap:
        return self._segmenter.segment(image.rgb, size_hw=image.size_hw).label_map

    def encode(self, label_map: LabelMap) -> bytes:
        return encode_png(label_map, self._segmenter.record.palette)


STEPS: Mapping[str, Callable[[Path, torch.device], Any]] = {
    "eager": EagerSteps,
    "ours": OurSteps,
}
