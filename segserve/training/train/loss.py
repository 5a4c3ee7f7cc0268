"""The loss of a batch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from ...recipe import Recipe
from ...runtime.errors import ModelError
from ...runtime.network.build import SegmentationNetwork
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
        teacher: SegmentationNetwork | None = None,
    ) -> None:
        super().__init__()
        self.network, self.teacher = network, teacher
        self._recipe = recipe
        self.register_buffer(
            "_class_weights", _class_weights(recipe.class_weights, labels), persistent=False
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        dtype = _AUTOCAST[self._recipe.precision]
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return self._with_teacher(self.network(images), images, labels)

    def _with_teacher(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The loss against the labels, and against the teacher's probabilities if there is one."""
        loss = self._label_loss(logits, labels)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            target = self.teacher(images).float()
            target = F.interpolate(
                target, size=logits.shape[-2:], mode="bilinear", align_corners=False
            ).softmax(1)
        return torch.lerp(
            loss, F.cross_entropy(logits.float(), target), self._recipe.teacher_weight
        )

    def _label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss against the labels, in float32, at every `loss_stride`th pixel of the crop."""
        recipe = self._recipe
        stride = recipe.loss_stride
        truth = labels[:, stride // 2 :: stride, stride // 2 :: stride].long()
        logits = F.interpolate(
            logits.float(), size=truth.shape[-2:], mode="bilinear", align_corners=False
        )
        if not (truth != IGNORED).any():
            return logits.sum() * 0  # the mean over no pixel would be NaN
        if recipe.hard_share == 1:
            loss = F.cross_entropy(logits, truth, self._class_weights, ignore_index=IGNORED)
        else:
            losses = F.cross_entropy(
                logits, truth, self._class_weights, ignore_index=IGNORED, reduction="none"
            )
            losses = losses[truth != IGNORED]
            loss = losses.topk(max(1, int(recipe.hard_share * len(losses)))).values.mean()
        return (
            torch.lerp(loss, lovasz_softmax(logits, truth), recipe.lovasz_weight)
            if recipe.lovasz_weight
            else loss
        )


def lovasz_softmax(logits: Tensor, truth: Tensor) -> Tensor:
    """The Lovasz extension of 1 - IoU, as the mean over the classes of the batch's labels.

    Source: algorithm 1 of Berman et al., arXiv:1705.08790.

    Args:
        logits: float32 (N, C, H, W).
        truth: int64 (N, H, W), 255 for ignored pixels.
    """
    labelled = truth != IGNORED
    probabilities, truth = logits.softmax(1).movedim(1, 0)[:, labelled], truth[labelled]
    losses = []
    for class_id in truth.bincount().nonzero().flatten().tolist():
        is_class = (truth == class_id).float()
        errors, order = (is_class - probabilities[class_id]).abs().sort(descending=True)
        is_class = is_class[order]
        intersection = is_class.sum() - is_class.cumsum(0)
        union = is_class.sum() + (1 - is_class).cumsum(0)
        steps = (1 - intersection / union).diff(prepend=errors.new_zeros(1))
        # Not a matrix product, which autocast would round to bf16.
        losses.append((errors * steps).sum())
    return torch.stack(losses).mean()


def _class_weights(given: Mapping[str, float], labels: Sequence[str]) -> Tensor | None:
    """float32 (classes,), 1 for classes that the recipe does not name. None if it names none."""
    unknown = sorted(given.keys() - set(labels))
    if unknown:
        raise ModelError(
            f"class_weights: {', '.join(unknown)} is none of the classes {', '.join(labels)}"
        )
    return torch.tensor([given.get(label, 1.0) for label in labels]) if given else None
