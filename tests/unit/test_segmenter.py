"""From pixels to label maps: sizes, strips, summaries, precision, memory."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from segserve.runtime.errors import ModelError, OutOfMemoryError
from segserve.runtime.inference import labels as labels_module
from segserve.runtime.inference import segmenter as segmenter_module
from segserve.runtime.inference.labels import choose_labels
from segserve.runtime.inference.segmenter import Segmenter
from segserve.runtime.network import build_network
from segserve.runtime.record import Architecture, InputRule, ResizeRule
from segserve.runtime.settings import Settings
from segserve.runtime.telemetry import Timings

from .images import noise, smooth
from .tiny import tiny_network, tiny_record

CPU = torch.device("cpu")


def busy_logits(height: int = 6, width: int = 5, classes: int = 4) -> torch.Tensor:
    return torch.randn(classes, height, width, generator=torch.Generator().manual_seed(0)) * 3


def summarised(label_map: np.ndarray, probabilities: np.ndarray) -> list[tuple]:
    """The class summary, computed pixel by pixel without the module under test."""
    rows = []
    for class_id in np.unique(label_map):
        ys, xs = np.nonzero(label_map == class_id)
        box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
        rows.append(
            (int(class_id), len(ys), len(ys) / label_map.size, box, probabilities[ys, xs].mean())
        )
    return sorted(rows, key=lambda row: (-row[1], row[0]))


# Sizes


@settings(max_examples=25)
@given(st.integers(1, 200), st.integers(1, 200))
def test_segment_any_size_gives_label_map_of_that_size(tiny_segmenter, height_px, width_px):
    segmentation = tiny_segmenter.segment(noise(height_px, width_px))
    assert segmentation.label_map.shape == (height_px, width_px)
    assert segmentation.label_map.dtype == np.uint8
    assert segmentation.label_map.flags.c_contiguous
    assert sum(summary.pixels for summary in segmentation.classes) == height_px * width_px


@pytest.mark.parametrize(
    "size_hw", [(1, 1), (2000, 3), (3, 2000), (70_000, 1), (1, 70_000), (2, 70_000)], ids=str
)
def test_segment_extreme_size_gives_label_map_of_that_size(tiny_segmenter, size_hw):
    segmentation = tiny_segmenter.segment(smooth(*size_hw))
    assert segmentation.label_map.shape == size_hw
    assert segmentation.label_map.flags.c_contiguous


@pytest.mark.parametrize(
    ("size_hw", "most"), [((2**20, 1), 3 * 2**20), ((1, 2**20), 6 * 2**16)], ids=["column", "row"]
)
def test_segment_thin_image_never_grows_in_memory(tiny_segmenter, monkeypatch, size_hw, most):
    largest = []
    interpolate = F.interpolate

    def watched(pixels, **options):
        resized = interpolate(pixels, **options)
        between = (
            pixels.shape[1] * pixels.shape[2] * resized.shape[3]
        )  # torch resizes columns first
        largest.append(max(resized.numel(), between))
        return resized

    monkeypatch.setattr(segmenter_module.F, "interpolate", watched)
    tiny_segmenter.segment(np.zeros((*size_hw, 3), np.uint8))
    assert max(largest) <= most


def test_segment_same_image_twice_gives_the_same_response(tiny_segmenter):
    image = noise(60, 90)
    first, other, second = (
        tiny_segmenter.segment(pixels) for pixels in (image, noise(33, 44), image)
    )
    assert np.array_equal(first.label_map, second.label_map)
    assert first.classes == second.classes
    assert other.label_map.shape == (33, 44)


def test_segment_leaves_the_image_as_it_is(tiny_segmenter):
    image = noise(60, 90)
    tiny_segmenter.segment(image)
    assert np.array_equal(image, noise(60, 90))


def test_segment_records_its_stages(tiny_segmenter):
    timings = Timings()
    tiny_segmenter.segment(noise(20, 30), timings)
    assert list(timings.seconds) == ["preprocess", "inference"]
    assert all(seconds > 0 for seconds in timings.seconds.values())


def test_segment_follows_the_network_before_any_upsampling(tiny_segmenter):
    """Against the plain computation: resize, normalise, network, resize the logits, take the
    largest.
    """
    image = smooth(50, 80)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = F.interpolate(
        pixels, size=(32, 64), mode="bilinear", antialias=True
    )  # 50 x 80 -> 40 x 64 -> 32 x 64
    with torch.inference_mode():
        logits = tiny_segmenter._network((resized / 255 - 0.5) / 0.5)
    expected = F.interpolate(logits, size=(50, 80), mode="bilinear").argmax(dim=1)[0]
    agreeing = (tiny_segmenter.segment(image).label_map == expected.numpy()).mean()
    assert agreeing > 0.999  # ties of rounding


# Modes and test-time augmentation


def test_segment_without_options_is_one_pass_bit_for_bit(tiny_segmenter):
    image = smooth(50, 80)
    with torch.inference_mode():
        expected = choose_labels(tiny_segmenter.infer(tiny_segmenter.preprocess(image))[0], 50, 80)
    got = tiny_segmenter.segment(image)
    assert np.array_equal(got.label_map, expected.label_map)
    assert got.classes == expected.classes


@pytest.mark.parametrize("tta", ["flip", "multiscale"])
@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("size_hw", [(130, 170), (1, 1), (3, 200)], ids=str)
def test_segment_any_mode_of_a_mirrored_image_gives_the_mirrored_response(
    tiny_segmenter, size_hw, mode, tta
):
    image = smooth(*size_hw)
    straight = tiny_segmenter.segment(image, mode=mode, tta=tta).label_map
    mirrored = tiny_segmenter.segment(image[:, ::-1].copy(), mode=mode, tta=tta).label_map
    assert straight.shape == size_hw
    assert (mirrored[:, ::-1] == straight).mean() > 0.995  # ties of rounding


def test_segment_without_flip_a_mirrored_image_gives_another_response(tiny_segmenter):
    """The network is not symmetric by itself, or the test above would show nothing."""
    image = smooth(200, 300)
    straight = tiny_segmenter.segment(image).label_map
    assert (
        tiny_segmenter.segment(image[:, ::-1].copy()).label_map[:, ::-1] == straight
    ).mean() < 0.99


def test_segment_flip_is_the_mean_of_both_probabilities(tiny_segmenter):
    image = smooth(64, 64)
    with torch.inference_mode():
        inputs = tiny_segmenter.preprocess(image)
        straight, mirrored = (
            tiny_segmenter.infer(inputs),
            tiny_segmenter.infer(inputs.flip(-1)).flip(-1),
        )
        got = tiny_segmenter.logits(image, tiny_segmenter.plan(64, 64, tta="flip"), Timings())
    torch.testing.assert_close(got.softmax(0), (straight.softmax(1) + mirrored.softmax(1))[0] / 2)


def test_segment_multiscale_keeps_the_grid_of_the_finest_scale(tiny_segmenter):
    plan = tiny_segmenter.plan(64, 64, tta="multiscale")
    with torch.inference_mode():
        logits = tiny_segmenter.logits(smooth(64, 64), plan, Timings())
    assert plan.scales[0].size_hw == (128, 128)
    assert logits.shape == (3, 8, 8)


@pytest.mark.parametrize("size_hw", [(130, 260), (128, 70), (65, 65), (90, 400)], ids=str)
@pytest.mark.parametrize("together", [1, 3, 100], ids=lambda tiles: f"{tiles} tiles at once")
def test_segment_slide_is_the_same_however_many_tiles_go_together(
    tiny_segmenter, monkeypatch, size_hw, together
):
    image = smooth(*size_hw)
    expected = tiny_segmenter.segment(image, mode="slide")
    monkeypatch.setitem(segmenter_module._TILES_AT_ONCE, "cpu", together)
    got = tiny_segmenter.segment(image, mode="slide")
    assert got.label_map.shape == size_hw
    assert (got.label_map == expected.label_map).mean() > 0.999  # ties of rounding


def test_segment_slide_sees_what_the_whole_is_too_coarse_for():
    """A network that distinguishes red from green, and stripes that blur at its size."""

    class Colours(torch.nn.Module):
        def forward(self, inputs):
            return F.avg_pool2d(inputs, 16)

    segmenter = Segmenter(Colours(), tiny_record(), device=CPU, settings=Settings(precision="fp32"))
    stripes = np.zeros((256, 512, 3), np.uint8)
    for left in range(0, 512, 64):
        stripes[:, left : left + 32, 0] = stripes[:, left + 32 : left + 64, 1] = 255
    expected = stripes[..., 1] // 255
    assert (segmenter.segment(stripes).label_map == expected).mean() < 0.8
    assert (segmenter.segment(stripes, mode="slide").label_map == expected).mean() > 0.95


@pytest.mark.parametrize(
    ("options", "description"),
    [
        ({}, None),
        ({"mode": "slide"}, "12.0 passes"),
        ({"tta": "flip"}, "2.0 passes"),
        ({"mode": "slide", "tta": "flip"}, "24.0 passes"),
    ],
    ids=["plain", "slide", "flip", "both"],
)
def test_segment_reports_its_cost_where_it_is_not_one_pass(tiny_segmenter, options, description):
    timings = Timings()
    tiny_segmenter.segment(smooth(128, 160), timings, **options)
    assert timings.descriptions.get("inference") == description
    assert list(timings.seconds) == ["preprocess", "inference"]


# Strips


@pytest.mark.parametrize("strip_pixels", [1, 7, 100, 37 * 41, 2**16], ids=str)
def test_choose_labels_result_does_not_depend_on_the_strip_size(monkeypatch, strip_pixels):
    logits = busy_logits()
    expected = choose_labels(logits, 37, 41)
    monkeypatch.setattr(labels_module, "_STRIP_PIXELS", strip_pixels)
    segmentation = choose_labels(logits, 37, 41)
    assert np.array_equal(segmentation.label_map, expected.label_map)
    assert [(s.id, s.pixels, s.box_xyxy) for s in segmentation.classes] == [
        (s.id, s.pixels, s.box_xyxy) for s in expected.classes
    ]


# Summaries


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
def test_choose_labels_summaries_agree_with_plain_computation(height_px, width_px, seed):
    logits = torch.from_numpy(
        np.random.default_rng(seed).normal(0, 3, (5, 4, 6)).astype(np.float32)
    )
    segmentation = choose_labels(logits, height_px, width_px)
    full = F.interpolate(logits[None], size=(height_px, width_px), mode="bilinear")[0]
    probabilities = full.double().softmax(0).numpy().max(axis=0)
    expected = summarised(segmentation.label_map, probabilities)
    found = [(s.id, s.pixels, s.fraction, s.box_xyxy, s.confidence) for s in segmentation.classes]
    assert [row[:4] for row in found] == [row[:4] for row in expected]
    assert [row[4] for row in found] == pytest.approx([row[4] for row in expected], abs=1e-4)


def test_choose_labels_equally_large_classes_are_ordered_by_id():
    logits = torch.zeros(3, 1, 4)
    logits[2, 0, :2] = logits[1, 0, 2:] = 9
    assert [s.id for s in choose_labels(logits, 1, 4).classes] == [1, 2]


def test_choose_labels_one_certain_class_fills_the_image():
    logits = torch.full((3, 2, 2), -50.0)
    logits[1] = 50
    (summary,) = choose_labels(logits, 5, 7).classes
    assert (summary.id, summary.pixels, summary.fraction, summary.box_xyxy) == (
        1,
        35,
        1.0,
        (0, 0, 7, 5),
    )
    assert summary.confidence == pytest.approx(1)


def test_choose_labels_of_255_classes_keeps_the_last_id():
    logits = torch.zeros(255, 2, 2)
    logits[254] = 9
    assert (choose_labels(logits, 3, 3).label_map == 254).all()


# The resize rule


@given(
    st.builds(
        ResizeRule,
        side=st.sampled_from(["longer", "shorter"]),
        size_px=st.integers(1, 600),
        multiple_of=st.sampled_from([1, 8, 32]),
        max_px=st.integers(32, 3000),
    ),
    st.integers(1, 20_000),
    st.integers(1, 20_000),
)
def test_size_for_keeps_aspect_within_rounding_and_limits(rule, height_px, width_px):
    size_hw = rule.size_for(height_px, width_px)
    assert min(size_hw) >= 1
    assert max(size_hw) <= rule.max_px
    assert all(length % rule.multiple_of == 0 for length in size_hw)
    sides = (height_px, width_px)
    reference = max(sides) if rule.side == "longer" else min(sides)
    scale = min(rule.size_px / reference, rule.max_px / max(sides))
    step = rule.multiple_of
    limit_px = rule.max_px // step * step
    for given_px, got_px in zip(sides, size_hw, strict=True):
        exact_px = min(max(given_px * scale, step), limit_px)
        assert abs(got_px - exact_px) <= step / 2 + 1e-6


@pytest.mark.parametrize(
    ("rule", "size_hw", "expected"),
    [
        (ResizeRule(size_px=448, multiple_of=32), (375, 500), (320, 448)),
        (ResizeRule(size_px=448, multiple_of=32), (500, 375), (448, 320)),
        (ResizeRule(size_px=448, multiple_of=32), (1, 1), (448, 448)),
        (ResizeRule(size_px=448, multiple_of=32), (2000, 3), (448, 32)),
        (ResizeRule(size_px=520, side="shorter"), (375, 500), (520, 693)),
        (ResizeRule(size_px=520, side="shorter", max_px=600), (375, 500), (450, 600)),
        (
            ResizeRule(size_px=520, side="shorter", multiple_of=32, max_px=2010),
            (3, 2000),
            (32, 1984),
        ),
    ],
    ids=[
        "wide",
        "tall",
        "one pixel",
        "thin",
        "shorter",
        "shorter above max",
        "max between multiples",
    ],
)
def test_size_for_known_case_gives_known_size(rule, size_hw, expected):
    assert rule.size_for(*size_hw) == expected


def test_segmenter_resize_of_settings_replaces_the_record_rule(tiny_model):
    rule = ResizeRule(size_px=96, side="shorter")
    segmenter = Segmenter.load(tiny_model, settings=Settings(precision="fp32", resize=rule))
    assert segmenter.preprocess(smooth(50, 80)).shape == (1, 3, 96, 154)


def of_backbone(
    backbone: str, *, head: str = "deeplabv3plus", fuse: bool = False, **rule
) -> Segmenter:
    """A network whose resize rule leaves most sizes as they are."""
    architecture = Architecture(
        backbone=backbone,
        head=head,
        output_stride=32,
        aspp_rates=(1, 2),
        aspp_out_channels=8,
    )
    resize = ResizeRule(size_px=96, **rule)
    record = tiny_record(
        architecture=architecture, input=InputRule(resize=resize, mean=(0,) * 3, std=(1,) * 3)
    )
    network = build_network(architecture, len(record.classes)).eval()
    return Segmenter.of(network, record, settings=Settings(precision="fp32", fuse=fuse))


def test_segmenter_of_a_network_that_fails_at_odd_sizes_names_the_rule_to_set():
    with pytest.raises(
        ModelError,
        match=r"backbone dla46_c: .* 107 x 75 pixels: set input.resize.multiple_of to 32 \(",
    ):
        of_backbone("dla46_c")
    segmentation = of_backbone("dla46_c", multiple_of=32).segment(noise(1, 300))
    assert segmentation.label_map.shape == (1, 300)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (300, 1), (30, 480)], ids=str)
@pytest.mark.parametrize("tta", ["none", "multiscale"])
def test_segment_thin_image_of_a_network_with_a_least_size_is_padded(size_hw, tta):
    segmenter = of_backbone("convnext_atto")
    assert segmenter.segment(noise(*size_hw), tta=tta).label_map.shape == size_hw
    assert segmenter.segment(noise(*size_hw), mode="slide").label_map.shape == size_hw


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 300), (300, 1)], ids=str)
def test_segment_thin_image_of_a_network_that_openvino_does_not_compute_is_padded(size_hw):
    """PyTorch pools a row of one pixel, OpenVINO does not."""
    segmenter = of_backbone("resnet10t", head="deeplabv3", fuse=True)
    assert segmenter.backend == "OpenVINO"
    assert segmenter.segment(noise(*size_hw)).label_map.shape == size_hw


def test_segment_thin_image_of_a_network_without_a_least_size_is_not_padded(tiny_segmenter):
    assert tiny_segmenter._least_side_px == 1


def test_preprocess_normalises_by_mean_and_std_of_the_record(tiny_model):
    record = tiny_record(
        input=InputRule(resize=ResizeRule(size_px=4), mean=(0.25, 0.5, 0.75), std=(0.5, 0.25, 1.0)),
    )
    segmenter = Segmenter(
        tiny_network(record), record, device=CPU, settings=Settings(precision="fp32")
    )
    inputs = segmenter.preprocess(np.full((4, 4, 3), (51, 102, 255), np.uint8))
    assert inputs[0, :, 0, 0].tolist() == pytest.approx(
        [(0.2 - 0.25) / 0.5, (0.4 - 0.5) / 0.25, 0.25], abs=1e-6
    )


# Precision


def test_segment_bf16_agrees_with_fp32_on_most_pixels(tiny_model, tiny_segmenter):
    half = Segmenter.load(tiny_model, settings=Settings(precision="bf16"))
    assert half.dtype is torch.bfloat16
    assert tiny_segmenter.dtype is torch.float32
    image = smooth(120, 160)
    expected = tiny_segmenter.segment(image).label_map
    assert len(np.unique(expected)) > 1, "an image of one class would prove nothing"
    assert (half.segment(image).label_map == expected).mean() > 0.95


# Memory


class Greedy(torch.nn.Module):
    """A network that really allocates a pebibyte."""

    def forward(self, inputs):
        return torch.empty(2**50, dtype=torch.uint8, device=inputs.device)


def test_segment_network_without_memory_raises_out_of_memory():
    segmenter = Segmenter(Greedy(), tiny_record(), device=CPU, settings=Settings(precision="fp32"))
    with pytest.raises(
        OutOfMemoryError, match="no memory left for an image of 30 x 20 pixels; send it smaller"
    ):
        segmenter.segment(noise(20, 30))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_segment_gpu_agrees_with_cpu_and_survives_out_of_memory(tiny_model, tiny_segmenter):
    cuda = torch.device("cuda", 0)
    segmenter = Segmenter.load(tiny_model, device=cuda, settings=Settings(precision="fp32"))
    image = smooth(120, 160)
    expected = tiny_segmenter.segment(image).label_map
    assert (segmenter.segment(image).label_map == expected).mean() > 0.99
    in_tiles = tiny_segmenter.segment(image, mode="slide", tta="flip").label_map
    assert (segmenter.segment(image, mode="slide", tta="flip").label_map == in_tiles).mean() > 0.99
    with pytest.raises(OutOfMemoryError, match="no memory left"):
        Segmenter(
            Greedy(), tiny_record(), device=cuda, settings=Settings(precision="fp32")
        ).segment(image)
    assert (segmenter.segment(image).label_map == expected).mean() > 0.99


# Reduced copies


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("tta", ["none", "flip", "multiscale"])
def test_needed_hw_is_more_than_any_scale_and_no_more_than_the_image(tiny_segmenter, mode, tta):
    for height_px, width_px in ((1000, 2000), (64, 64), (10, 20), (1, 3000)):
        needed_hw = tiny_segmenter.needed_hw(height_px, width_px, mode=mode, tta=tta)
        views = tiny_segmenter.plan(height_px, width_px, mode=mode, tta=tta).scales
        for needed_px, own_px, seen_px in zip(
            needed_hw,
            (height_px, width_px),
            np.max([view.size_hw for view in views], axis=0),
            strict=True,
        ):
            assert min(own_px, seen_px) <= needed_px <= own_px


def test_segment_reduced_copy_gives_a_map_of_the_images_size(tiny_segmenter):
    segmentation = tiny_segmenter.segment(np.zeros((50, 100, 3), np.uint8), size_hw=(199, 400))
    assert segmentation.label_map.shape == (199, 400)
    assert sum(summary.pixels for summary in segmentation.classes) == 199 * 400
