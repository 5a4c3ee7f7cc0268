"""The loss of a batch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from ..data import IGNORED
from ..runtime.errors import ModelError
from ..runtime.network import SegmentationNetwork
from .depthwise import FastDepthwise
from .recipe import Recipe

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class SegmentationLoss(nn.Module):
    """A network and the cross-entropy of its logits, one module with one forward pass, as data parallelism wants it.

    Shape: normalised images, float32 (N, 3, S, S), and label maps, uint8 (N, S, S) with 255 for pixels to ignore ->
    the loss, float32 (): 0 where every pixel is to be ignored.
    """

    _class_weights: Tensor | None

    def __init__(
        self,
        network: SegmentationNetwork,
        recipe: Recipe,
        labels: Sequence[str],
        teacher: SegmentationNetwork | None = None,
    ) -> None:
        super().__init__()
        self.network, self.teacher = network, teacher
        self._recipe = recipe
        self.register_buffer("_class_weights", _class_weights(recipe.class_weights, labels), persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        dtype, recipe = _AUTOCAST[self._recipe.precision], self._recipe
        with FastDepthwise(), torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            if recipe.aux_weight == 0:
                return self._taught(self.network(images), images, labels)
            logits, aux_logits = self.network.forward_with_aux(images)
            loss = self._taught(logits, images, labels)
        return loss + recipe.aux_weight * self._cross_entropy(aux_logits, labels)

    def _taught(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The loss against the labels, and where there is a teacher, against its probabilities."""
        loss = self._cross_entropy(logits, labels)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.teacher(images).float()
            taught = F.interpolate(taught, size=logits.shape[-2:], mode="bilinear", align_corners=False).softmax(1)
        return torch.lerp(loss, F.cross_entropy(logits.float(), taught), self._recipe.teacher_weight)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """In float32, at every `loss_stride`th pixel of the crop."""
        stride = self._recipe.loss_stride
        truth = labels[:, stride // 2 :: stride, stride // 2 :: stride].long()
        logits = F.interpolate(logits.float(), size=truth.shape[-2:], mode="bilinear", align_corners=False)
        if not (truth != IGNORED).any():
            return logits.sum() * 0  # the mean over no pixel would be NaN
        smoothing = self._recipe.label_smoothing
        return F.cross_entropy(logits, truth, self._class_weights, ignore_index=IGNORED, label_smoothing=smoothing)


def _class_weights(given: Mapping[str, float], labels: Sequence[str]) -> Tensor | None:
    """float32 (classes,), 1 for the classes that the recipe does not name, or None where it names none."""
    unknown = sorted(given.keys() - set(labels))
    if unknown:
        raise ModelError(f"class_weights: {', '.join(unknown)} is none of the classes {', '.join(labels)}")
    return torch.tensor([given.get(label, 1.0) for label in labels]) if given else None
