"""The moving average of a network's weights over the steps of a run."""

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of the network that follows it, step by step, as an exponential moving average.

    Batch norms' running statistics follow as well. The first steps count less, so that a short run does not keep the
    untrained start in its average: the decay grows as (1 + step) / (10 + step) up to `decay`.
    """

    def follow(average: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return current
        kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
        return average.lerp(current, 1 - kept)

    return AveragedModel(network, avg_fn=follow, use_buffers=True)
