"""Mean IoU while a network is trained."""

from copy import deepcopy
from dataclasses import dataclass

from ...runtime.inference.segmenter import Segmenter
from ...runtime.network.build import SegmentationNetwork
from ...runtime.record import ModelRecord
from ...runtime.settings import Settings
from ..data import LabelledImages
from ..evaluate.measure import measure
from ..evaluate.offline import predictor_of


@dataclass(frozen=True)
class Validation:
    """Measures a network on a split through the code that serves it."""

    record: ModelRecord
    data: LabelledImages

    def __call__(self, network: SegmentationNetwork) -> float:
        """Mean IoU in 0..1 over the classes that the split holds. The network is left as it is."""
        device = next(network.parameters()).device
        # The segmenter casts what it is given, and training goes on in float32.
        segmenter = Segmenter(deepcopy(network), self.record, device=device, settings=Settings())
        with predictor_of(segmenter) as predictor:
            return measure(self.data, predictor, lambda _finished: None).mean_iou
