"""Interpolation: against independent implementations, and the laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medsr.methods.interpolation import INTERPOLATIONS, Cubic, Lanczos, Linear, _blocks, interpolate, reach
from medsr.scan import Grid
from tests import laws

FACTORS = [(2,), (5,), (2, 2), (3, 3), (4, 4), (1, 3), (2, 4), (1, 2, 2), (4, 1, 1), (2, 2, 2), (1, 1), (2, 3, 1)]
KINDS = list(INTERPOLATIONS)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("factor", [(2, 2), (3, 3), (4, 4), (2, 5), (1, 3)])
@pytest.mark.parametrize(
    ("kind", "peer"),
    [
        ("linear", Image.Resampling.BILINEAR),
        ("cubic", Image.Resampling.BICUBIC),
        ("lanczos", Image.Resampling.LANCZOS),
    ],
)
def test_equals_pillow_away_from_the_edge(kind, peer, factor):
    low = noise(1, 1, 23, 31)
    fine = interpolate(low, factor, kind=kind)[0, 0].numpy()
    image = Image.fromarray(low[0, 0].numpy())
    other = np.asarray(image.resize((31 * factor[1], 23 * factor[0]), peer))
    inner = tuple(slice(4 * f, -4 * f) for f in factor)
    np.testing.assert_allclose(fine[inner], other[inner], atol=3e-7)


@pytest.mark.parametrize("factor", [(2,), (4,), (2, 3), (4, 1, 2)])
def test_linear_equals_torch_up_to_the_edge(factor):
    low = noise(2, 3, *(7, 9, 8)[: len(factor)])
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(factor)]
    size = [n * f for n, f in zip(low.shape[2:], factor, strict=True)]
    expected = torch.nn.functional.interpolate(low, size, mode=mode, align_corners=False)
    torch.testing.assert_close(interpolate(low, factor, kind="linear"), expected, atol=1e-6, rtol=0)


def test_cubic_by_hand():
    """Factor 2 in 1D: weights of Keys at -1.25, -0.25, 0.75, 1.75, edges repeated."""
    line = [1.0, 4.0, 2.0, 8.0]
    near = [-0.0703125, 0.8671875, 0.2265625, -0.0234375]
    expected = near[0] * 4 + near[1] * 2 + near[2] * 8 + near[3] * 8
    fine = interpolate(torch.tensor([[line]], dtype=torch.float64), (2,))
    assert fine[0, 0, 5].item() == pytest.approx(expected, abs=1e-15)


def test_cubic_is_exact_for_parabolas():
    place = torch.arange(20, dtype=torch.float64)
    fine = interpolate((place**2)[None, None], (4,))[0, 0, 16:-16]
    where = ((torch.arange(80, dtype=torch.float64) + 0.5) / 4 - 0.5)[16:-16]
    torch.testing.assert_close(fine, where**2, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", FACTORS)
def test_halo_is_exact(kind, factor):
    method = INTERPOLATIONS[kind](factor)
    assert method.halo == tuple(0 if f == 1 else {"linear": 1, "cubic": 2, "lanczos": 3}[kind] for f in factor)
    laws.halo_is_exact(method, (11,) * len(factor))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", FACTORS)
def test_flat_fields_come_back_bit_for_bit(kind, factor):
    for level in (0.1, 1 / 3, 40.7):
        low = torch.full((1, 1, *(5,) * len(factor)), level)
        fine = interpolate(low, factor, kind=kind)
        assert torch.equal(fine, torch.full_like(fine, level))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", FACTORS)
def test_ramp_stays_in_place(kind, factor):
    method = INTERPOLATIONS[kind](factor)
    axes = ("z", "y", "x")[-len(factor) :]
    grid = Grid(axes, (0.29, 0.26, 1.3)[-len(factor) :], (5.0, -3.0, 0.7)[-len(factor) :])
    border = tuple(h * f for h, f in zip(method.halo, factor, strict=True))
    # Lanczos does not reproduce a line; its deviation is zero in the mean
    tolerance = 0.021 if kind == "lanczos" else 1e-9
    laws.ramp_stays_in_place(method, grid, grid.refine(factor), (13,) * len(factor), border=border, tolerance=tolerance)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_tiled_equals_whole_for_any_size_and_tile(data):
    dims = data.draw(st.integers(1, 3))
    factor = tuple(data.draw(st.lists(st.integers(1, 4), min_size=dims, max_size=dims)))
    size = tuple(data.draw(st.lists(st.integers(1, 9), min_size=dims, max_size=dims)))
    tile = tuple(data.draw(st.lists(st.integers(1, 10), min_size=dims, max_size=dims)))
    method = INTERPOLATIONS[data.draw(st.sampled_from(KINDS))](factor)
    laws.tiled_equals_whole(method, noise(1, 1, *size), tile, tolerance=1e-6)


@pytest.mark.parametrize("limit", [1, 7, 64, 1000, 10**9])
@pytest.mark.parametrize("size", [(10,), (7, 9), (3, 8, 5)])
def test_blocks_fill_the_size_once_and_stay_below_the_limit(size, limit):
    seen = np.zeros(size, int)
    for block in _blocks(size, limit):
        seen[block] += 1
        assert seen[block].size <= limit
    assert (seen == 1).all()


def test_blocks_do_not_show(monkeypatch):
    low = noise(2, 1, 12, 17, 9)
    whole = interpolate(low, (2, 3, 1), kind="lanczos")
    monkeypatch.setattr("medsr.methods.interpolation.BLOCK_SAMPLES", 200)
    torch.testing.assert_close(interpolate(low, (2, 3, 1), kind="lanczos"), whole, atol=1e-6, rtol=0)


def test_gradient_is_the_transpose():
    low = noise(1, 2, 4, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: interpolate(x, (2, 3)), low)


def test_a_hole_reaches_no_further_than_the_kernel():
    low = noise(1, 1, 15, 15)
    low[0, 0, 7, 7] = float("nan")
    for kind in KINDS:
        lost = torch.isnan(interpolate(low, (2, 2), kind=kind)[0, 0])
        radius = reach((2, 2), kind=kind)[0]
        assert not lost[: (7 - radius) * 2].any()
        assert not lost[(8 + radius) * 2 :].any()
        assert lost[14:16, 14:16].all()


@pytest.mark.parametrize("method", [Linear((2, 2)), Cubic((4, 4)), Lanczos((3, 1)), Cubic(2), Cubic((1, 2, 2))])
def test_is_an_upscaler(method):
    from medsr.upscaler import Upscaler

    assert isinstance(method, Upscaler)
    assert method.adapt(None) is method
    assert repr(method).startswith(type(method).__name__)
    low = noise(1, 1, *(6,) * len(method.factor))
    assert method(low).dtype == torch.float32
    assert method(low.double()).dtype == torch.float64
    assert method(low.half()).dtype == torch.float32


def test_a_tensor_of_other_axes_is_refused():
    with pytest.raises(ValueError, match=r"expected floats of shape \(n, c, \*size\) with 2 sizes.*float32"):
        Cubic((2, 2))(noise(1, 1, 3, 4, 5))
    with pytest.raises(ValueError, match="expected floats"):
        Cubic((2, 2))(torch.zeros(1, 1, 4, 4, dtype=torch.int32))
    with pytest.raises(ValueError, match="whole numbers"):
        Cubic((0, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_equals_cpu():
    low = noise(1, 1, 30, 40) + 40
    for kind in KINDS:
        other = interpolate(low.cuda(), (3, 4), kind=kind).cpu()
        torch.testing.assert_close(other, interpolate(low, (3, 4), kind=kind), atol=1e-5, rtol=0)
