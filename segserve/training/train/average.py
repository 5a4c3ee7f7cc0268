"""Averages of a network's weights: over the steps of a run, and of the end of a run with its
start.
"""

from copy import deepcopy
from typing import TypeVar

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Network = TypeVar("Network", bound=nn.Module)


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """A copy of the network that follows it, step by step, as an exponential moving average.

    Batch norms' running statistics follow as well. The first steps count less, so that a short run
    does not keep the
    untrained start in its average: the decay grows as (1 + step) / (10 + step) up to `decay`.
    """

    def follow(average: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        if not average.is_floating_point():
            return current
        kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
        return average.lerp(current, 1 - kept)

    return AveragedModel(network, avg_fn=follow, use_buffers=True)


def blended(network: Network, other: nn.Module, share: float) -> Network:
    """Returns a copy of the network that mixes in `share` of the weights and running statistics of
    `other`.
    """
    copy, theirs = deepcopy(network), other.state_dict()
    copy.load_state_dict(
        {
            name: own.lerp(theirs[name], share) if own.is_floating_point() else own
            for name, own in network.state_dict().items()
        }
    )
    return copy
