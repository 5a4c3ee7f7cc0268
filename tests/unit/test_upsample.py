"""The resize of logits, strip by strip."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812

from segserve.runtime.inference.logits import Upsampling


def resized(logits: torch.Tensor, size_hw: tuple[int, int], cuts: list[int]) -> torch.Tensor:
    upsampling = Upsampling((logits.shape[1], logits.shape[2]), size_hw, logits)
    strips = [slice(top, bottom) for top, bottom in pairwise(cuts)]
    return torch.cat(
        [upsampling.strip(logits[:, upsampling.grid_rows(strip)], strip) for strip in strips], dim=1
    )


@given(st.data())
def test_strips_any_split_equals_interpolate_of_the_whole(data):
    h, w, height, width = (data.draw(st.integers(1, top)) for top in (9, 9, 60, 40))
    logits = torch.randn(3, h, w, generator=torch.Generator().manual_seed(h * w))
    cuts = sorted({0, height, *data.draw(st.lists(st.integers(0, height), max_size=5))})
    whole = F.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[
        0
    ]
    torch.testing.assert_close(resized(logits, (height, width), cuts), whole, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("columns", [64, 65], ids=str)
def test_strips_of_wide_grids_are_the_same_either_way(columns):
    logits = torch.randn(3, 4, columns, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(logits[None], size=(30, 500), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(
        resized(logits, (30, 500), [0, 7, 8, 30]), whole, atol=2e-5, rtol=1e-5
    )
