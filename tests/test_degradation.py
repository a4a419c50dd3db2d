"""Degradations: the laws, borders, errors, speed, and the ranges they are drawn from."""

import math
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

import medsr.degradation as room
from medsr.degradation import (
    Airy,
    Degradation,
    DegradationRange,
    FineGrid,
    Gaussian,
    PoissonGaussian,
    Weights,
)
from tests import laws_degradation as laws

every = pytest.mark.parametrize("case", laws.CASES, ids=str)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# the laws


@every
def test_laws_of_the_mean(case):
    degradation = laws.CASES[case]()
    for coarse in (1, 6):
        laws.adjointness(degradation, coarse)
    laws.linearity(degradation, 3)
    laws.flat_field(degradation, 4)
    laws.context_suffices(degradation)


@every
def test_samples_lie_where_the_grid_says(case):
    degradation = laws.CASES[case]()
    laws.ramp_in_micrometers(degradation)
    laws.blob_stays(degradation)


@pytest.mark.parametrize("case", [c for c in laws.CASES if "-rotated-" in c or "-gaussian-" in c], ids=str)
def test_gradient_is_adjoint(case):
    laws.gradient_is_adjoint(laws.CASES[case](), 3)


@settings(max_examples=60, deadline=None)
@given(
    factor=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    fwhm=st.tuples(st.floats(0, 6), st.floats(0, 6)),
    angle=st.floats(-180, 180),
    sampling=st.sampled_from(["area", "point", "cubic"]),
    coarse=st.integers(1, 70),
)
def test_laws_hold_for_any_gaussian(factor, fwhm, angle, sampling, coarse):
    coarse = coarse if len(factor) == 1 else min(coarse, 9)
    kernel = Gaussian(fwhm_samples=fwhm, axial_fwhm_samples=fwhm[0], angle_deg=angle)
    degradation = Degradation(tuple(factor), kernel=kernel, sampling=sampling)
    laws.adjointness(degradation, coarse)
    laws.flat_field(degradation, coarse)


def test_area_without_kernel_is_the_block_mean():
    high = torch.rand(1, 1, 6, 12, dtype=torch.float64)
    expected = high.reshape(1, 1, 2, 3, 4, 3).mean((3, 5))
    torch.testing.assert_close(Degradation((3, 3)).mean(high), expected)


def test_point_sampling_skips_samples():
    high = torch.rand(1, 1, 9, 8)
    low = Degradation((3, 2), sampling="point").mean(high)
    lines = Degradation((1, 2), sampling="point").mean(high)
    torch.testing.assert_close(low, lines[..., 1::3, :])  # of three lines the middle one, and no other


def test_mean_equals_direct_filtering():
    """Against scipy.ndimage: blur the whole scan, then average blocks."""
    high = np.random.default_rng(0).random((24, 32))
    for kernel in (Gaussian(fwhm_um=(0.5, 0.3)), Gaussian(fwhm_um=(0.6, 0.2), angle_deg=25), Airy(0.9, 0.5)):
        parts = kernel.parts(FineGrid((2, 4), (0.1, 0.14), (False, False)))
        weights = parts[0].weights if len(parts) == 1 else np.outer(parts[0].weights, parts[1].weights)
        blurred = ndimage.convolve(high, weights, mode="nearest")
        # the operator continues the scan before blurring, scipy continues it too: blocks lie inside, so both agree
        expected = blurred.reshape(12, 2, 8, 4).mean((1, 3))
        low = Degradation((2, 4), kernel=kernel, spacing_um=(0.1, 0.14)).mean(torch.from_numpy(high)[None, None])
        np.testing.assert_allclose(low[0, 0].numpy(), expected, atol=1e-13)


def test_leading_axes_and_planes():
    stack = torch.rand(2, 1, 5, 8, 8, dtype=torch.float64)
    degradation = Degradation((2, 2), kernel=Gaussian(fwhm_samples=1.0))
    planes = degradation.mean(stack)
    assert planes.shape == (2, 1, 5, 4, 4)
    torch.testing.assert_close(planes[1, 0, 3], degradation.mean(stack[1, 0, 3]))
    as_volume = Degradation((1, 2, 2), kernel=Gaussian(fwhm_samples=1.0)).mean(stack)
    torch.testing.assert_close(planes, as_volume)


def test_half_precision_is_computed_in_float32_even_under_autocast():
    high = torch.rand(1, 1, 32, 32)
    degradation = Degradation((2, 2), kernel=Gaussian(fwhm_samples=(1.0, 0.5), angle_deg=20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = degradation.mean(high)
    assert low.dtype == torch.float32
    assert torch.equal(low, degradation.mean(high))
    assert degradation.mean(high.to(torch.bfloat16)).dtype == torch.float32


def test_errors_name_the_cure():
    with pytest.raises(ValueError, match=r"multiples of the factor \(2, 2\); crop to \(6, 8\)"):
        Degradation((2, 2)).mean(torch.zeros(1, 1, 7, 8))
    with pytest.raises(ValueError, match="at least one block"):
        Degradation((4, 4)).mean(torch.zeros(1, 1, 3, 8))
    with pytest.raises(ValueError, match="fine spacing along y, found unknown; set the spacing .* fwhm_samples"):
        Degradation((2, 2), kernel=Gaussian(fwhm_um=0.3))
    with pytest.raises(ValueError, match="fine spacing along z"):
        Degradation((2, 1, 1), kernel=Gaussian(axial_fwhm_um=0.3), spacing_um=(None, 0.1, 0.1))
    with pytest.raises(ValueError, match="expected one of area, point, cubic; found 'box'"):
        Degradation((2, 2), sampling="box")
    with pytest.raises(ValueError, match="one entry for each axis"):
        Degradation((2, 2), spacing_um=(0.1,))
    with pytest.raises(ValueError, match="sum above 0"):
        Degradation((2, 2), kernel=np.zeros((3, 3)))
    with pytest.raises(ValueError, match="one array with 3 axes or 3 lines"):
        Degradation((1, 2, 2), kernel=np.ones((3, 3)))
    with pytest.raises(ValueError, match="each width once"):
        Gaussian(fwhm_um=1.0, fwhm_samples=1.0)
    with pytest.raises(ValueError, match="two or three axes"):
        Degradation((2,), kernel=Airy(0.5, 0.5), spacing_um=(0.1,))
    with pytest.raises(ValueError, match="axes of size"):
        Degradation((2, 2)).mean(torch.zeros(8))


def test_degradations_travel_between_processes():
    degradation = Degradation((2, 2), kernel=Gaussian(fwhm_samples=1.0), noise=PoissonGaussian(100.0, 0.01))
    copy = pickle.loads(pickle.dumps(degradation))
    high = torch.rand(1, 1, 8, 8)
    assert torch.equal(copy(high, generator()), degradation(high, generator()))
    assert "fwhm_samples=1.0" in repr(copy)
    assert "photons=100.0" in repr(copy)


def test_large_scans_are_fast_enough():
    """2000 x 2000 by 2, separable: 30 to 60 ms of one core; the gate leaves room for a busy machine."""
    high = torch.rand(1, 1, 2000, 2000)
    degradation = Degradation((2, 2), kernel=Gaussian(fwhm_samples=2.0))
    degradation.mean(high)
    assert min(_seconds(lambda: degradation.mean(high)) for _ in range(3)) < 0.5


def _seconds(work):
    """Processor time of this thread, which a busy machine does not lengthen much."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


# ranges

FULL = DegradationRange(
    fwhm_um=(0.2, 1.2), axial_fwhm_um=(0.5, 2.0), anisotropy=2.0, photons=(50, 5000), read_noise=(0, 0.02)
)


def test_range_stays_inside_and_reaches_its_ends():
    g = generator(9)
    draws = [FULL.sample(g, (1, 2, 2), (0.5, 0.1, 0.1)) for _ in range(300)]
    widths = np.array([math.sqrt(math.prod(d.kernel.fwhm_um)) for d in draws])
    ratios = np.array([d.kernel.fwhm_um[0] / d.kernel.fwhm_um[1] for d in draws])
    photons = np.array([d.noise.photons for d in draws])
    assert 0.2 <= widths.min() < 0.25
    assert 1.15 < widths.max() <= 1.2
    assert ratios.min() >= 1
    assert ratios.max() <= 2 + 1e-9
    assert 50 <= photons.min() < 60
    assert 4200 < photons.max() <= 5000
    assert np.median(photons) == pytest.approx(500, rel=0.3)
    assert 0.5 <= min(d.kernel.axial_fwhm_um for d in draws) <= max(d.kernel.axial_fwhm_um for d in draws) <= 2.0
    assert 0 <= min(d.noise.read_noise for d in draws) <= max(d.noise.read_noise for d in draws) <= 0.02
    again = FULL.sample(generator(9), (1, 2, 2), (0.5, 0.1, 0.1))
    assert again.kernel == draws[0].kernel
    assert again.noise == draws[0].noise


def test_center_is_the_middle():
    center = FULL.center((1, 2, 2), (0.5, 0.1, 0.1))
    assert center.kernel == Gaussian((0.7, 0.7), axial_fwhm_um=1.25, angle_deg=0.0)
    assert center.noise.photons == pytest.approx(500)
    assert center.noise.read_noise == pytest.approx(0.01)
    plain = DegradationRange().center((2, 2))
    assert plain.kernel is None
    assert plain.noise is None
    torch.testing.assert_close(plain.mean(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 2, 2))


def test_range_in_coarse_samples_blurs_the_refined_axes():
    blur = DegradationRange(fwhm_samples=(1.0, 1.0), anisotropy=3.0)
    stack = blur.sample(generator(), (4, 1, 1)).kernel
    assert stack.axial_fwhm_samples == 1.0
    assert stack.fwhm_samples == (0.0, 0.0)
    assert blur.sample(generator(), (1, 2, 2)).kernel.axial_fwhm_samples is None
    assert blur.sample(generator(), (2,)).mean(torch.ones(1, 1, 8)).shape == (1, 1, 4)
    assert blur.sample(generator(), (1, 2)).kernel.fwhm_samples == (0.0, 1.0)
    volume = DegradationRange(fwhm_samples=(1.0, 1.0), axial_fwhm_um=(3.0, 3.0)).center((2, 2, 2), (0.5, None, None))
    assert volume.kernel.axial_fwhm_um == 3.0
    assert volume.kernel.axial_fwhm_samples is None


def test_range_of_a_microscope():
    scope = DegradationRange(na=0.5, wavelength_um=0.52, refractive_index=1.0)
    kernel = scope.center((2, 2), (0.1, 0.1)).kernel
    assert kernel == Gaussian.widefield(0.5, 0.52, refractive_index=1.0)
    with pytest.raises(ValueError, match="set the spacing of the scan"):
        scope.sample(generator(), (2, 2), None)


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"fwhm_um": (2, 1)}, r"\[from, to\] with 0 <= from <= to, found \[2.0, 1.0\]"),
        ({"fwhm_samples": (-1, 1)}, "0 <= from"),
        ({"photons": (0, 10)}, "photons above 0"),
        ({"na": 0.5}, "na and wavelength_um both"),
        ({"na": 1.6, "wavelength_um": 0.5}, "na below refractive_index"),
        ({"fwhm_um": (1, 1), "fwhm_samples": (1, 1)}, "one in-plane blur, found fwhm_um and fwhm_samples"),
        ({"anisotropy": 2}, "needs fwhm_um or fwhm_samples"),
        ({"sampling": "box"}, "area"),
        ({"blur": 1}, "Extra inputs"),
        ({"photons": (1, float("nan"))}, "finite"),
    ],
)
def test_range_refuses(fields, reason):
    with pytest.raises(ValidationError, match=reason):
        DegradationRange(**fields)


def test_range_schema_describes_every_field():
    fields = DegradationRange.model_json_schema()["properties"]
    assert all(0 < len(f["description"]) <= 120 and "\n" not in f["description"] for f in fields.values())


def test_drawing_and_applying_is_quick():
    """3 ms a patch of 96 x 96 on a quiet core (measured under 1 ms); the gate takes the median of many."""
    ranges = DegradationRange(fwhm_um=(0.2, 0.6), anisotropy=2, photons=(50, 5000), read_noise=(0, 0.02))
    g, patch = generator(), torch.rand(1, 1, 96, 96)
    times = [_seconds(lambda: ranges.sample(g, (2, 2), (0.1, 0.1))(patch, g)) for _ in range(40)]
    assert np.median(times) < 3e-3


# the door of the room


def test_a_recipe_imports_no_torch():
    code = (
        "import sys, medsr.degradation.range, medsr.degradation; print('torch' in sys.modules, 'scipy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_every_public_name_is_there():
    assert sorted(room.__all__) == dir(room)
    assert all(getattr(room, name) is not None for name in room.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Blur'"):
        room.Blur  # noqa: B018
    assert Weights(np.ones(3), np.ones(5)).arrays[1].sum() == pytest.approx(1)


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_point_sampling_is_no_antialias(factor):
    """White noise keeps its variance, and a wave above the coarse band comes back as its alias, as strong as it was."""
    degradation = Degradation((factor, factor), sampling="point")
    noise = torch.randn(1, 1, 60 * factor, 60 * factor, generator=torch.Generator().manual_seed(0))
    low = degradation.mean(noise)
    assert float(low.var()) > 0.8
    assert Degradation((factor, factor)).mean(noise).var() < 1.1 / factor**2
    places = torch.arange(60 * factor, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * 0.4 * places).expand(1, 1, 8 * factor, -1)
    middle = degradation.mean(wave)[0, 0, 4, 10:-10]
    expected = torch.cos(2 * math.pi * 0.4 * (factor * torch.arange(60, dtype=torch.float64) + (factor - 1) / 2))[
        10:-10
    ]
    assert float((middle - expected).abs().max()) < 0.03
