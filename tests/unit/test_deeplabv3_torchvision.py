"""`ASPP` and `DeepLabHead` against torchvision's: same names, same numbers, same gradients, and
what differs.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.models import segmentation
from torchvision.models.segmentation import deeplabv3 as torchvision_deeplabv3

from deeplabv3 import ASPP, ASPPPooling, DeepLabHead

# Beyond the largest rate (36), so that taps off the kernel's centre meet features and not only
# padding.
WIDER_THAN_RATES_PX = 38


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(
    scope="module",
    params=["deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large"],
    ids=str,
)
def theirs(request):
    """The head of one of torchvision's models, random, in eval mode."""
    torch.manual_seed(1)
    model = getattr(segmentation, request.param)(
        weights=None, weights_backbone=None, num_classes=21
    )
    return with_random_norms(model.classifier).eval()


@pytest.fixture
def ours(theirs):
    """Our head, carrying the weights of theirs."""
    head = fresh_head_like(theirs)
    head.load_state_dict(theirs.state_dict(), strict=True)
    return head.eval()


def with_random_norms(module):
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, mean=1.0, std=0.2)
            nn.init.normal_(part.bias, std=0.2)
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
            part.num_batches_tracked.fill_(7)
    return module


def in_channels_of(head):
    return head[0].convs[0][0].in_channels


def fresh_head_like(theirs):
    return DeepLabHead(in_channels_of(theirs), num_classes=21, atrous_rates=[12, 24, 36])


def assert_same_state(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def copied_state(module):
    return copy.deepcopy(module.state_dict())


# The issue's snippets, freshly constructed and so in training mode.


def test_deeplab_head_fresh_from_the_issue_gives_logits_of_the_input_size():
    head = DeepLabHead(in_channels=2048, num_classes=21, atrous_rates=[12, 24, 36])
    assert head.training
    assert head(torch.randn(1, 2048, 32, 32)).shape == (1, 21, 32, 32)


def test_aspp_fresh_from_the_issue_gives_256_channels_of_the_input_size():
    aspp = ASPP(in_channels=2048, atrous_rates=[6, 12, 18])
    assert aspp.training
    assert aspp(torch.randn(1, 2048, 32, 32)).shape == (1, 256, 32, 32)


# A batch of one in training mode, which torchvision rejects, and a batch of two, where nothing may
# differ.


def test_aspp_pooling_training_batch_of_one_normalises_with_running_statistics():
    pooling = with_random_norms(ASPPPooling(6, 16)).train()
    x = torch.randn(1, 6, 5, 7)
    norm = pooling[2]
    pooled = torch.einsum("oi,ni->no", pooling[1].weight[:, :, 0, 0], x.mean(dim=(2, 3)))
    normed = (pooled - norm.running_mean) / (
        norm.running_var + norm.eps
    ).sqrt() * norm.weight + norm.bias
    expected = normed.clamp(min=0)[:, :, None, None].expand(1, 16, 5, 7)
    assert 0 < expected.count_nonzero() < expected.numel()
    torch.testing.assert_close(pooling(x), expected)


def test_aspp_pooling_training_batch_of_one_leaves_running_statistics_unchanged():
    pooling = with_random_norms(ASPPPooling(6, 4)).train()
    before = copied_state(pooling)
    pooling(torch.randn(1, 6, 5, 7))
    assert_same_state(pooling.state_dict(), before)


def test_aspp_training_batch_of_one_updates_every_norm_but_the_pooled_one():
    aspp = with_random_norms(ASPP(6, [1, 2], 4)).train()
    before = copied_state(aspp)
    aspp(torch.randn(1, 6, 5, 7))
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    changed = {
        name for name, value in aspp.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {name for name in statistics if not name.startswith("convs.3.")}


def test_aspp_training_batch_of_one_gives_every_parameter_a_gradient():
    aspp = with_random_norms(ASPP(6, [1, 2], 4, dropout=0.0)).train()
    aspp(torch.randn(1, 6, 5, 7)).square().sum().backward()
    assert [
        name for name, p in aspp.named_parameters() if p.grad is None or p.grad.count_nonzero() == 0
    ] == []


@pytest.mark.parametrize(
    ("reference", "subject"),
    [
        pytest.param(torchvision_deeplabv3.ASPPPooling(6, 4), ASPPPooling(6, 4), id="pooling"),
        pytest.param(torchvision_deeplabv3.ASPP(6, [1, 2, 3], 4), ASPP(6, [1, 2, 3], 4), id="aspp"),
    ],
)
def test_module_training_batch_of_two_equals_torchvision(reference, subject):
    reference, subject = (
        with_random_norms(copy.deepcopy(reference)).train(),
        copy.deepcopy(subject).train(),
    )
    subject.load_state_dict(reference.state_dict(), strict=True)
    before = copied_state(reference)
    x = torch.randn(2, 6, 5, 7)
    torch.manual_seed(2)  # both draw the same dropout
    expected = reference(x)
    torch.manual_seed(2)
    assert torch.equal(subject(x), expected)
    assert_same_state(subject.state_dict(), reference.state_dict())
    assert not any(torch.equal(before[name], value) for name, value in subject.named_buffers())


# The heads of torchvision's three DeepLabV3 models.


def test_deeplab_head_state_of_torchvision_loads_strictly(theirs, ours):
    assert_same_state(ours.state_dict(), theirs.state_dict())


def test_torchvision_head_state_of_ours_loads_strictly(theirs):
    ours = with_random_norms(fresh_head_like(theirs))
    target = torchvision_deeplabv3.DeepLabHead(in_channels_of(theirs), 21)
    target.load_state_dict(ours.state_dict(), strict=True)
    assert_same_state(target.state_dict(), ours.state_dict())


@torch.inference_mode()
def test_deeplab_head_with_torchvision_weights_gives_the_same_logits(theirs, ours):
    features = F.relu(
        torch.randn(1, in_channels_of(theirs), WIDER_THAN_RATES_PX, WIDER_THAN_RATES_PX)
    )
    expected = theirs(features)
    assert expected.std() > 1e-2  # far above the tolerance: equal logits are not merely small ones
    torch.testing.assert_close(ours(features), expected, rtol=0, atol=1e-5)


def test_deeplab_head_with_torchvision_weights_gives_the_same_gradients(theirs, ours):
    features = torch.randn(
        1, in_channels_of(theirs), WIDER_THAN_RATES_PX, 14
    )  # narrow, to save time
    cotangent = torch.randn(1, 21, *features.shape[-2:])

    def gradients(head):
        x = features.clone().requires_grad_()
        parameters = dict(head.named_parameters())
        found = torch.autograd.grad((head(x) * cotangent).sum(), [x, *parameters.values()])
        return dict(zip(["input", *parameters], found, strict=True))

    expected, got = gradients(theirs), gradients(ours)
    assert list(got) == list(expected)
    assert all(gradient.count_nonzero() > 0 for gradient in expected.values())
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
