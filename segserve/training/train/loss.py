"""The loss of a batch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from ...recipe import Recipe
from ...runtime.errors import ModelError
from ...runtime.network.weights import SegmentationNetwork
from ..data import IGNORED

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class SegmentationLoss(nn.Module):
    """A network and the loss of its logits in one module, as data parallelism needs it.

    Shape: normalised images, float32 (N, 3, S, S), and label maps, uint8 (N, S, S), 255 for ignored
    pixels -> the loss, float32 (): 0 if every pixel is ignored.
    """

    _class_weights: Tensor | None

    def __init__(
        self,
        network: SegmentationNetwork,
        recipe: Recipe,
        labels: Sequence[str],
    ) -> None:
        super().__init__()
        self.network = network
        self._recipe = recipe
        self.register_buffer(
            "_class_weights", _class_weights(recipe.class_weights, labels), persistent=False
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        dtype = _AUTOCAST[self._recipe.precision]
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return self._cross_entropy(self.network(images), labels)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy, in float32, at every `loss_stride`th pixel of every such row."""
        stride = self._recipe.loss_stride
        truth = labels[:, stride // 2 :: stride, stride // 2 :: stride].long()
        logits = F.interpolate(
            logits.float(), size=truth.shape[-2:], mode="bilinear", align_corners=False
        )
        if not (truth != IGNORED).any():
            return logits.sum() * 0  # the mean over no pixel would be NaN
        return F.cross_entropy(logits, truth, self._class_weights, ignore_index=IGNORED)


def check_class_weights(given: Mapping[str, float], labels: Sequence[str]) -> None:
    """Raises ModelError if a recipe gives a weight to a class that the model does not have."""
    unknown = sorted(given.keys() - set(labels))
    if unknown:
        raise ModelError(
            f"class_weights: {', '.join(unknown)} is none of the classes {', '.join(labels)}"
        )


def _class_weights(given: Mapping[str, float], labels: Sequence[str]) -> Tensor | None:
    """float32 (classes,), 1 for classes that the recipe does not name. None if it names none."""
    check_class_weights(given, labels)
    return torch.tensor([given.get(label, 1.0) for label in labels]) if given else None
