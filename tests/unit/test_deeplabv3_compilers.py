"""One suite that each head passes: compiled, exported, scripted, in bfloat16, channels last,
copied, pickled.

A new head costs one entry in `FAMILIES`.
"""

import copy
import pickle
import shutil
from functools import partial

import pytest
import torch
from torch import nn
from torch.export import Dim

from deeplabv3 import ASPP, CoreNetHead, DeepLabHead, MultiScaleDeepLabHead

pytestmark = pytest.mark.slow

RATES = (1, 2)
# As (channels, factor, offset): of a size s, a level has the height or width factor * s + offset.
FEATURES = [(6, 1, 0)]
LEVELS_THAT_MEET = [(2, 8, 0), (3, 4, 0), (8, 2, 0), (16, 1, 0)]
LEVELS_THAT_DISAGREE = [
    (2, 8, 1),
    (3, 4, 2),
    (8, 2, 2),
    (16, 1, 2),
]  # level 2 is odd, and all are resized

multiscale = partial(
    MultiScaleDeepLabHead, (2, 3, 8, 16), 3, RATES, aspp_in_channels=5, aspp_out_channels=4
)
FAMILIES = {
    "aspp": (partial(ASPP, 6, RATES, 4), FEATURES),
    "deeplab": (partial(DeepLabHead, 6, 3, RATES, aspp_out_channels=4), FEATURES),
    "corenet": (partial(CoreNetHead, 6, 3, RATES, aspp_out_channels=4), FEATURES),
    "multiscale": (multiscale, LEVELS_THAT_MEET),
    "multiscale-disagreeing": (multiscale, LEVELS_THAT_DISAGREE),
    "multiscale-upsampled": (partial(multiscale, output_upsample_factor=4), LEVELS_THAT_MEET),
}
every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
every_kernel = pytest.mark.parametrize("separable", [False, True], ids=["full", "separable"])
needs_cxx = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)
without_script_warning = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def built(family, separable=False):
    """The family's module in eval mode, its batch norms with statistics unlike those of a fresh
    one.
    """
    module = FAMILIES[family][0](separable=separable, dropout=0.0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, mean=1.0, std=0.2)
            part.running_mean.normal_(std=0.2)
            part.running_var.uniform_(0.5, 2.0)
    return module.eval()


def inputs(family, batch, height, width):
    """What the family's `forward` takes: one tensor of features, or the list of levels."""
    levels = FAMILIES[family][1]
    tensors = [
        torch.randn(batch, c, factor * height + off, factor * width + off)
        for c, factor, off in levels
    ]
    return tensors if len(tensors) > 1 else tensors[0]


def dynamic_axes(family):
    """`dynamic_shapes` of torch.export for `inputs`: batch, height and width free, as far as levels
    allow.
    """
    batch, height, width = Dim("batch", max=64), Dim("height", max=512), Dim("width", max=512)
    axes = [
        {0: batch, 2: f * height + off, 3: f * width + off} for _, f, off in FAMILIES[family][1]
    ]
    return axes if len(axes) > 1 else axes[0]


def converted(x, **kwargs):
    return [level.to(**kwargs) for level in x] if isinstance(x, list) else x.to(**kwargs)


def assert_same_output(subject, module, x):
    with torch.no_grad():
        expected = module(x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(subject(x), expected, rtol=1e-5, atol=1e-6)


# Compilers.


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("family", "separable", "backend"),
    [
        pytest.param("aspp", False, "aot_eager", id="aspp-aot_eager"),
        pytest.param("deeplab", False, "inductor", id="deeplab-inductor", marks=needs_cxx),
        pytest.param("corenet", True, "aot_eager", id="corenet-separable-aot_eager"),
        pytest.param(
            "multiscale-disagreeing", False, "aot_eager", id="multiscale-disagreeing-aot_eager"
        ),
    ],
)
def test_module_compiled_whole_gives_the_same_output(family, separable, backend):
    module = built(family, separable)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    assert_same_output(compiled, module, inputs(family, 2, 3, 4))


@every_family
@every_kernel
def test_module_exported_gives_the_same_output_at_other_sizes(family, separable):
    module = built(family, separable)
    exported = torch.export.export(
        module, (inputs(family, 2, 3, 5),), dynamic_shapes=(dynamic_axes(family),)
    ).module()
    for batch, height, width in ((2, 3, 5), (1, 2, 2), (3, 7, 4), (5, 2, 9)):
        assert_same_output(exported, module, inputs(family, batch, height, width))


@without_script_warning
@every_family
@every_kernel
def test_module_scripted_gives_the_same_output_at_other_sizes(family, separable):
    module = built(family, separable)
    scripted = torch.jit.script(module)
    for batch, height, width in ((2, 3, 5), (1, 1, 1), (3, 7, 4)):
        assert_same_output(scripted, module, inputs(family, batch, height, width))


@without_script_warning
@every_family
def test_module_scripted_training_batch_of_one_equals_eager(family):
    module = built(family).train()
    scripted = torch.jit.script(copy.deepcopy(module))
    assert_same_output(scripted, module, inputs(family, 1, 3, 5))
    after, expected = scripted.state_dict(), module.state_dict()
    torch.testing.assert_close(dict(after), dict(expected), rtol=1e-5, atol=1e-6)


@without_script_warning
def test_multiscale_head_scripted_wrong_number_of_levels_is_rejected():
    scripted = torch.jit.script(built("multiscale"))
    with pytest.raises(torch.jit.Error, match="levels: got 3 tensors, expected 4"):
        scripted(inputs("multiscale", 1, 1, 1)[:3])


# Number and memory formats.


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@every_family
@every_kernel
def test_module_autocast_to_bfloat16_stays_close_to_float32(family, separable, training):
    module = built(family, separable).train(training)
    x = inputs(family, 1, 6, 7)
    with torch.no_grad():
        expected = copy.deepcopy(module)(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = module(x)
    assert got.dtype == torch.bfloat16
    # bfloat16 rounds to 1 part in 256; a few roundings in a row stay within 4 % of the largest
    # logit.
    torch.testing.assert_close(
        got.float(), expected, rtol=0, atol=0.04 * expected.abs().max().item()
    )


@every_family
@every_kernel
def test_module_channels_last_gives_the_same_output(family, separable):
    module = built(family, separable)
    x = inputs(family, 2, 3, 5)
    subject = copy.deepcopy(module).to(memory_format=torch.channels_last)
    with torch.no_grad():
        got = subject(converted(x, memory_format=torch.channels_last))
        torch.testing.assert_close(got, module(x), rtol=1e-5, atol=1e-6)


# Copies.


@every_family
@every_kernel
@pytest.mark.parametrize(
    "duplicated",
    [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda module: pickle.loads(pickle.dumps(module)), id="pickle"),  # noqa: S301 - our own
    ],
)
def test_module_duplicated_gives_the_same_output_from_its_own_weights(
    family, separable, duplicated
):
    module = built(family, separable)
    x = inputs(family, 2, 3, 5)
    twin = duplicated(module)
    with torch.no_grad():
        expected = module(x)
        for parameter in module.parameters():
            parameter.zero_()
        assert torch.equal(twin(x), expected)
        assert not torch.equal(module(x), expected)
