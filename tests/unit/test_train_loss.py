"""Loss and moving average."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from segserve.recipe import Recipe
from segserve.training.state import SegmentationLoss, moving_average


class Fixed(torch.nn.Module):
    """A network that gives the logits it holds."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, _images):
        return self.logits


def loss_of(network, labels, **recipe):
    return SegmentationLoss(network, Recipe(steps=1, precision="fp32", **recipe))(
        torch.zeros(2, 3, 8, 8), labels
    )


@pytest.fixture
def logits():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels():
    labels = torch.randint(3, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    labels[0, :4] = 255
    return labels.to(torch.uint8)


def upsampled(logits, size):
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def test_loss_is_the_mean_over_the_labelled_pixels(logits, labels):
    probabilities = upsampled(logits, (8, 8)).log_softmax(1)
    kept = [
        (n, y, x) for n in range(2) for y in range(8) for x in range(8) if labels[n, y, x] != 255
    ]
    by_hand = -sum(probabilities[n, int(labels[n, y, x]), y, x] for n, y, x in kept) / len(kept)
    torch.testing.assert_close(loss_of(Fixed(logits), labels), by_hand)


def test_loss_at_a_stride_uses_every_nth_pixel(logits, labels):
    expected = F.cross_entropy(logits, labels[:, 1::2, 1::2].long(), ignore_index=255)
    torch.testing.assert_close(loss_of(Fixed(logits), labels, loss_stride=2), expected)


def test_loss_in_bf16_is_computed_in_float32(logits, labels):
    recipe = Recipe(steps=1, precision="bf16")
    loss = SegmentationLoss(Fixed(logits), recipe)(torch.zeros(2, 3, 8, 8), labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_of(Fixed(logits), labels))


def test_loss_where_every_pixel_is_ignored_is_zero_and_has_zero_gradients(logits):
    network = Fixed(logits)
    loss = loss_of(network, torch.full((2, 8, 8), 255, dtype=torch.uint8))
    torch.autograd.backward(loss)
    assert loss == 0
    assert not network.logits.grad.any()


def test_moving_average_follows_parameters_and_running_statistics():
    network = torch.nn.BatchNorm2d(1)
    average = moving_average(network, decay=0.5)
    for value in (1.0, 2.0, 4.0, 8.0):
        with torch.no_grad():
            network.weight.fill_(value)
            network.running_mean.fill_(-value)
            network.num_batches_tracked.fill_(int(value))
        average.update_parameters(network)
    # 1, then decays 2/11, 3/12 and 4/13, all below 0.5
    expected = 1.0
    for value, decay in ((2.0, 2 / 11), (4.0, 3 / 12), (8.0, 4 / 13)):
        expected = decay * expected + (1 - decay) * value
    assert average.module.weight.item() == pytest.approx(expected)
    assert average.module.running_mean.item() == pytest.approx(-expected)
    assert average.module.num_batches_tracked.item() == 8


def test_moving_average_never_passes_its_decay():
    network = torch.nn.Linear(1, 1, bias=False)
    average = moving_average(network, decay=0.5)
    for step in range(100):
        with torch.no_grad():
            network.weight.fill_(float(step == 99))
        average.update_parameters(network)
    assert average.module.weight.item() == pytest.approx(0.5)


def test_moving_average_without_decay_is_the_network():
    network = torch.nn.Linear(1, 1)
    average = moving_average(network, decay=0.0)
    for value in (3.0, 5.0):
        with torch.no_grad():
            network.weight.fill_(value)
        average.update_parameters(network)
    assert average.module.weight.item() == 5.0
