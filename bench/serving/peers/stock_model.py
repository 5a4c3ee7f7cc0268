"""The model file of the stock handler's archive: our network with the output format of
torchvision's segmenters.
"""

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name the field uses

from segserve.runtime import record
from segserve.runtime.network import build_network


class StockSegmenter(nn.Module):
    """Float (N, 3, H, W) -> {"out": logits (N, classes, H, W)}, as torchvision's DeepLabV3. It
    takes no arguments.
    """

    def __init__(self) -> None:
        super().__init__()
        written = record.read_record(Path(__file__).parent)
        self.network = build_network(written.architecture, len(written.classes))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            "out": F.interpolate(
                self.network(x), size=x.shape[-2:], mode="bilinear", align_corners=False
            )
        }
