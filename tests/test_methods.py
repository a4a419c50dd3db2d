"""The laws asked of every method, new and trained on the shipped scans."""

import copy
import subprocess
import sys

import pytest
import torch

from medsr.methods import Cubic, Lanczos
from medsr.scan import Grid
from tests import laws
from tests.methods_asked import (
    GAIN_MATTERS,
    INTERPOLATED,
    NETWORKS,
    SPACING,
    as_method,
    mammogram,
    network,
    noise,
    real_scan,
    sizes,
)

CASES = [(name, 0) for name in INTERPOLATED] + [(name, steps) for name in NETWORKS for steps in (0, 12)]


@pytest.fixture(params=CASES, ids=[f"{name}-{'trained' if steps else 'new'}" for name, steps in CASES])
def method(request):
    name, steps = request.param
    return INTERPOLATED[name] if name in INTERPOLATED else network(name, steps)


# ---------------------------------------------------------------- the laws, of all methods


def test_is_an_upscaler(method):
    from medsr.upscaler import Upscaler

    assert isinstance(method, Upscaler)
    assert len(method.halo) == len(method.factor)
    assert method.adapt(None) is method
    assert str(method.factor) in repr(method)
    with torch.inference_mode():
        assert method(noise(2, 1, *sizes(method))).dtype == torch.float32


def test_tiled_equals_whole(method):
    size = sizes(method)
    scan = real_scan() if len(size) == 3 else mammogram()
    low = scan[(..., *(slice(n) for n in size))]
    for tile in laws.tile_sizes(size):
        laws.tiled_equals_whole(method, low, tile)


def test_flat_stays_flat(method):
    for size in (sizes(method), (3,) * len(method.factor), (1,) * len(method.factor)):
        laws.flat_stays_flat(method, size)


def test_gray_levels_survive(method):
    laws.gray_levels_survive(method)


def test_commutes_with_the_intensity_line(method, request):
    """All are blind to the level; batch normalization and attention are not proportional to the contrast."""
    low = noise(1, 1, *(n // 2 for n in sizes(method)))
    for gain, offset in [(1.0, 0.3), (1.0, 40.0), (0.01, 0.0), (3.0, -1.0), (250.0, 40.0)]:
        if gain == 1 or not request.node.callspec.id.startswith(GAIN_MATTERS):
            laws.commutes_with_line(method, low, gain, offset)


@pytest.mark.parametrize("name", [*INTERPOLATED, "srresnet-2"])
def test_blob_stays_in_place(name):
    """Asked of a network once it has learned a little: what a new one adds is not centered on anything."""
    method = INTERPOLATED.get(name) or network(name, 150)
    dims = len(method.factor)
    grid = Grid(("z", "y", "x")[-dims:], SPACING[dims], (3.0, -8.0, 11.0)[:dims])
    laws.blob_stays_in_place(method, grid, sizes(method), tolerance=0.002 if name in INTERPOLATED else 0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_halo_is_exact(name):
    precise = copy.deepcopy(network(name, 12)).double()
    laws.halo_is_exact(precise, tuple(2 * h + 4 for h in precise.halo))


# ---------------------------------------------------------------- the laws fail where they should


class Shifted:
    """A method with the half-pixel error: each coarse sample at the first of its fine ones."""

    factor, halo = (2, 2), (2, 2)

    def __call__(self, low):
        return Cubic((2, 2))(low).roll(1, -1)


class ShortHalo(Lanczos):
    """A method that claims a smaller halo than it has."""

    def __init__(self, factor):
        super().__init__(factor)
        self.halo = tuple(max(0, h - 1) for h in self.halo)


def test_laws_catch_what_they_are_for():
    grid = Grid(("y", "x"), (50.0, 50.0))
    with pytest.raises(AssertionError, match=r"off by"):
        laws.ramp_stays_in_place(Shifted(), grid, grid.refine((2, 2)), (12, 12), border=(6, 6))
    with pytest.raises(AssertionError, match=r"blob moved by \+0.4"):
        laws.blob_stays_in_place(Shifted(), grid, (31, 31))
    with pytest.raises(AssertionError, match="differ from the whole"):
        laws.tiled_equals_whole(ShortHalo((2, 2)), mammogram()[..., :40, :40], (8, 8))
    with pytest.raises(AssertionError, match="halo says"):
        laws.halo_is_exact(ShortHalo((2, 2)), (13, 13))
    with pytest.raises(AssertionError, match="gray levels are left"):
        laws.gray_levels_survive(as_method((2, 2), lambda low: Cubic((2, 2))(low.bfloat16().float())))
    with pytest.raises(AssertionError, match="flat field"):
        laws.flat_stays_flat(as_method((2, 2), lambda low: Cubic((2, 2))(low) * 1.002), (5, 5))
    with pytest.raises(AssertionError, match="change the picture"):
        laws.commutes_with_line(as_method((2, 2), lambda low: Cubic((2, 2))(low) ** 2), noise(1, 1, 5, 5), 2.0, 0.1)


# ---------------------------------------------------------------- the room


def test_methods_come_one_by_one():
    """Importing the room imports no torch, and a command that interpolates imports no network."""
    program = (
        "import sys, medsr.methods as m; assert 'torch' not in sys.modules; m.Cubic; "
        "assert 'medsr.methods.srresnet' not in sys.modules; assert set(m.__all__) <= set(dir(m)); "
        "[getattr(m, name) for name in m.__all__]"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_method_is_named():
    import medsr.methods

    with pytest.raises(AttributeError, match="no attribute 'Bicubic'"):
        medsr.methods.Bicubic  # noqa: B018
