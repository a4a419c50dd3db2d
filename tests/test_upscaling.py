"""upscale: tiles equal the whole, holes, memory, dtype, geometry; on real scans."""

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor

import medsr
from medsr.data import NUCLEI
from medsr.holes import HOLE_REACH
from medsr.methods.interpolation import Cubic, Lanczos, Linear
from medsr.methods.srresnet import SRResNet
from medsr.plan import BASE_BYTES, MemoryTooSmallError, plan
from medsr.scan import Grid, Intensity, Scan
from medsr.tiles import plan_tiles, region_shape
from medsr.upscaler import Upscaler, describe, fingerprint
from medsr.upscaling import upscale


def nuclei(*, dtype: str = "uint16") -> Scan:
    stack = tifffile.imread(NUCLEI)[:7, 40:141, 30:127].astype(dtype)
    return Scan(stack, Grid(("z", "y", "x"), (0.29, 0.26, 0.26)), Intensity(1944, 44575, np.dtype(dtype)))


def small(factor: tuple[int, ...]) -> SRResNet:
    torch.manual_seed(3)
    network = SRResNet(factor, features=6, blocks=2, head_kernel=5, tail_kernel=5)
    # At initialization the residual is small; make it count.
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    return network.eval()


METHODS = [
    Linear((2, 2)),
    Cubic((4, 4)),
    Lanczos((3, 3)),
    Cubic((1, 2, 2)),
    Cubic((4, 1, 1)),
    small((2, 2)),
    small((1, 2, 2)),
    small((2, 3, 1)),
]


@pytest.mark.parametrize("upscaler", METHODS, ids=lambda m: f"{type(m).__name__}{m.factor}")
@pytest.mark.parametrize("tile", [17, 40])
def test_tiled_equals_whole(upscaler: Upscaler, tile: int) -> None:
    scan = nuclei()
    wide = Intensity(0, 65535, scan.intensity.dtype)
    scan = Scan(scan.data, scan.grid, wide)
    whole = upscale(scan, upscaler, tile=scan.shape[-len(upscaler.factor) :])
    sizes = tuple(min(tile, n) if n > 10 else 3 for n in scan.shape[-len(upscaler.factor) :])
    tiled = upscale(scan, upscaler, tile=sizes)
    difference = np.abs(whole.data[:].astype(int) - tiled.data[:].astype(int))
    assert difference.max() <= 1


def test_result_keeps_dtype_and_moves_the_grid() -> None:
    scan = nuclei()
    result = upscale(scan, Cubic((2, 2)))
    assert result.data.dtype == np.uint16
    assert result.shape == (7, 202, 194)
    assert result.grid.spacing_um == (0.29, 0.13, 0.13)
    assert result.grid.origin_um == pytest.approx((0, -0.065, -0.065))
    assert result.intensity == scan.intensity
    assert "Cubic" in result.history[-1]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_every_dtype_comes_back(dtype: str) -> None:
    data = np.linspace(0, 120, 64 * 64).reshape(64, 64).astype(dtype)
    scan = Scan(data, Grid(("y", "x")), Intensity(0, 100, np.dtype(dtype)))
    result = upscale(scan, Linear((2, 2)))
    assert result.data.dtype == np.dtype(dtype)
    assert result.data[:].max() == pytest.approx(120, abs=1)


def test_a_2d_method_takes_channels_and_times_one_by_one() -> None:
    data = np.random.default_rng(0).integers(0, 1000, (2, 3, 2, 30, 40)).astype("uint16")
    scan = Scan(data, Grid(("t", "c", "z", "y", "x")), Intensity(0, 1000, np.dtype("uint16")))
    result = upscale(scan, Cubic((2, 2)), tile=(11, 9))
    alone = Scan(data[1, 2, 1], Grid(("y", "x")), scan.intensity)
    np.testing.assert_array_equal(result.data[1, 2, 1], upscale(alone, Cubic((2, 2))).data[:])


@pytest.mark.parametrize("upscaler", [Cubic((2, 2)), small((2, 2)), small((2, 2, 2))], ids=lambda m: str(m.factor))
def test_holes_stay_holes_and_tiles_agree_around_them(upscaler: Upscaler) -> None:
    heights = nuclei(dtype="float32").read() / 1000
    heights[:, 20:60, 30:80] = np.nan
    heights[2, 3, 5] = np.nan
    scan = Scan(heights, Grid(("z", "y", "x")), Intensity(2, 45, np.dtype("float32")))
    whole = upscale(scan, upscaler)
    tiled = upscale(scan, upscaler, tile=(3, 23, 19)[-len(upscaler.factor) :])
    np.testing.assert_allclose(whole.data[:], tiled.data[:], atol=1e-4)
    expected = np.isnan(heights)
    for axis, f in enumerate(scan.grid.pad_factor(upscaler.factor)):
        expected = expected.repeat(f, axis)
    np.testing.assert_array_equal(np.isnan(whole.data[:]), expected)


def test_a_hole_does_not_ring_into_its_surroundings() -> None:
    flat = np.full((64, 64), 5.0, "float32")
    flat[20:50, 20:50] = np.nan
    scan = Scan(flat, Grid(("y", "x")), Intensity(0, 100, np.dtype("float32")))
    result = upscale(scan, Cubic((2, 2))).data[:]
    assert np.nanmax(np.abs(result - 5)) < 1e-3
    assert max(Cubic((2, 2)).halo) < HOLE_REACH


def test_memory_decides_the_tile_and_too_little_says_how_much_is_needed() -> None:
    scan = Scan(np.zeros((4000, 4000), "uint16"), Grid(("y", "x")), Intensity(0, 1, np.dtype("uint16")))
    network = small((4, 4))
    roomy = plan(scan, network, memory=BASE_BYTES + 2_000_000_000)
    tight = plan(scan, network, memory=BASE_BYTES + 50_000_000)
    assert np.prod(tight.tile) < np.prod(roomy.tile)
    assert tight.bytes_per_tile <= 50_000_000
    with pytest.raises(MemoryTooSmallError, match=r"at least .* MB .* raise --memory"):
        plan(scan, network, memory=BASE_BYTES + 10_000)


class Fragile(torch.nn.Module):
    """Refuses tiles above a size, as a card without memory does."""

    factor = (2, 2)
    halo = (3, 3)

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def adapt(self, scan: Scan) -> "Fragile":
        return self

    def forward(self, low: Tensor) -> Tensor:
        if low.shape[-1] * low.shape[-2] > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Cubic((2, 2))(low)


def test_a_tile_without_memory_is_halved_and_gives_the_same_bytes() -> None:
    scan = nuclei()
    expected = upscale(scan, Cubic((2, 2))).data[:]
    np.testing.assert_array_equal(upscale(scan, Fragile(5000), tile=(101, 97)).data[:], expected)
    with pytest.raises(torch.OutOfMemoryError):
        upscale(scan, Fragile(5), tile=(101, 97))


class WrongSize:
    """A method whose result has its input's size, as one rival's default setting."""

    factor = (2, 2)
    halo = (0, 0)

    def adapt(self, scan: Scan) -> "WrongSize":
        return self

    def __call__(self, low: Tensor) -> Tensor:
        return low


def test_a_method_that_breaks_the_contract_is_named() -> None:
    with pytest.raises(ValueError, match="WrongSize: expected an estimate of shape"):
        upscale(nuclei(), WrongSize())


def test_tiles_cover_each_fine_sample_once() -> None:
    count = np.zeros((10 * 3, 23 * 2), int)
    for tile in plan_tiles((10, 23), (3, 2), halo=(2, 1), tile=(4, 7)):
        count[tile.target] += 1
        assert region_shape(tile.keep) == region_shape(tile.target)
    assert (count == 1).all()


def test_fingerprint_knows_the_weights() -> None:
    first, second = small((2, 2)), small((2, 2))
    assert fingerprint(first) == fingerprint(second)
    with torch.no_grad():
        next(second.parameters()).view(-1)[0] += 1e-6
    assert fingerprint(first) != fingerprint(second)
    assert "0x" not in describe(WrongSize())
    assert len(fingerprint(second.to(torch.bfloat16))) == 64


def test_the_door_holds_the_verb_not_the_module() -> None:
    assert callable(medsr.upscale)
    assert callable(medsr.evaluate)
    assert callable(medsr.train)
