"""Degradations: the laws, the physics of the kernels, noise, dose, and MATLAB's bicubic."""

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
from scipy import ndimage, special

import medsr.degradation as room
from medsr.degradation import (
    Airy,
    Degradation,
    DegradationRange,
    DetectorMTF,
    FineGrid,
    Gaussian,
    PoissonGaussian,
    Weights,
    confocal_fwhm_um,
    matlab_imresize,
    noise_kernel,
    noise_power_spectrum,
    simulate_low_dose,
    widefield_fwhm_um,
)
from medsr.degradation.microscope import FWHM_PER_SIGMA
from medsr.scan import Intensity
from tests import laws_degradation as laws

every = pytest.mark.parametrize("case", laws.CASES, ids=str)


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
    between = (high[..., 0::2] + high[..., 1::2])[..., 1::3, :] / 2
    torch.testing.assert_close(low, between)


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
    """2000 x 2000 by 2, separable: 25 ms on one quiet core; the gate leaves room for a busy machine."""
    high = torch.rand(1, 1, 2000, 2000)
    degradation = Degradation((2, 2), kernel=Gaussian(fwhm_samples=2.0))
    degradation.mean(high)
    assert min(_seconds(lambda: degradation.mean(high)) for _ in range(3)) < 0.5


def _seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# kernels


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("fwhm_um", [0.3, 0.8, 2.5])
def test_gaussian_has_the_width_asked_for(fwhm_um, half):
    (part,) = Gaussian(fwhm_um=fwhm_um).parts(FineGrid((2,), (0.1,), (half,)))
    place = (np.arange(part.weights.size) - (part.weights.size - 1) / 2) * 0.1
    assert part.weights.size % 2 == (0 if half else 1)
    sd = math.sqrt(float(part.weights @ place**2))
    assert sd * FWHM_PER_SIGMA == pytest.approx(fwhm_um, rel=2e-3)


def test_rotated_gaussian_has_its_axes_in_micrometers():
    grid = FineGrid((2, 2), (0.1, 0.2), (False, False))
    (part,) = Gaussian(fwhm_um=(2.0, 0.8), angle_deg=30).parts(grid)
    y = (np.arange(part.weights.shape[0]) - part.weights.shape[0] // 2)[:, None] * 0.1
    x = (np.arange(part.weights.shape[1]) - part.weights.shape[1] // 2)[None, :] * 0.2
    second = [[float((part.weights * a * b).sum()) for b in (y, x)] for a in (y, x)]
    values, vectors = np.linalg.eigh(second)
    np.testing.assert_allclose(np.sqrt(values) * FWHM_PER_SIGMA, [0.8, 2.0], rtol=5e-3)
    wide = vectors[:, 1] * np.sign(vectors[0, 1])
    assert math.degrees(math.atan2(wide[1], wide[0])) == pytest.approx(30, abs=0.5)


def test_quarter_turns_stay_separable():
    grid = FineGrid((2, 2), (0.1, 0.1), (False, False))
    turned = Gaussian(fwhm_um=(1.0, 0.4), angle_deg=90).parts(grid)
    plain = Gaussian(fwhm_um=(0.4, 1.0)).parts(grid)
    assert all(np.array_equal(a.weights, b.weights) for a, b in zip(turned, plain, strict=True))


def test_airy_is_dark_where_it_should_be():
    """Zeros at 0.610 and 1.117 wavelength / na (Born and Wolf), and 83.8 % of the light within the first."""
    na, wavelength = 0.5, 0.5
    grid = FineGrid((2, 2), (0.01, 0.01), (False, False))
    (part,) = Airy(na, wavelength).parts(grid)
    middle = part.weights.shape[0] // 2
    profile = part.weights[middle, middle:] / part.weights[middle, middle]
    assert profile[61] < 1e-5
    assert profile[112] < 1e-5
    assert profile[round(0.5145 * 50)] == pytest.approx(0.5, abs=0.02)  # FWHM = 1.029 wavelength / (2 na)
    y, x = np.indices(part.weights.shape) - middle
    inside = part.weights[np.hypot(y, x) <= 61].sum()
    total = 1 - special.j0(8 * math.pi) ** 2 - special.j1(8 * math.pi) ** 2  # within the cut at 4 wavelength / na
    assert inside * total == pytest.approx(0.838, abs=0.003)


@pytest.mark.parametrize("na, index", [(0.2, 1.0), (0.75, 1.0), (1.2, 1.333), (1.4, 1.518)])
def test_widefield_widths_equal_the_published_formula(na, index):
    """Closed forms of the 3D nonparaxial widefield Gaussian, and the paraxial ones for a small aperture."""
    axial, lateral = (w / FWHM_PER_SIGMA for w in widefield_fwhm_um(na, 0.52, refractive_index=index))
    k, c = 2 * math.pi * index / 0.52, math.cos(math.asin(na / index))
    t = c**1.5
    assert lateral == pytest.approx(math.sqrt(7 * (1 - t) / (4 - 7 * t + 3 * c**3.5)) / k, rel=1e-9)
    root = math.sqrt(4 * c**5 - 25 * c**3.5 + 42 * c**2.5 - 25 * t + 4)
    assert axial == pytest.approx(5 * math.sqrt(7) * (1 - t) / (math.sqrt(6) * k * root), rel=1e-6)
    if na == 0.2:
        assert lateral == pytest.approx(0.225 * 0.52 / na, rel=0.02)
        assert axial == pytest.approx(2 * math.sqrt(6) * index * 0.52 / (2 * math.pi * na**2), rel=0.02)


def test_confocal_widths():
    """A point pinhole adds the curvatures; at one Airy unit only the excitation is left in the plane (paraxial)."""
    wide = widefield_fwhm_um(0.3, 0.52, refractive_index=1.0)
    laser = widefield_fwhm_um(0.3, 0.488, refractive_index=1.0)
    point = confocal_fwhm_um(0.3, 0.52, excitation_um=0.488, pinhole_au=0, refractive_index=1.0)
    np.testing.assert_allclose(point, [(a**-2 + b**-2) ** -0.5 for a, b in zip(wide, laser, strict=True)])
    tiny = confocal_fwhm_um(0.3, 0.52, excitation_um=0.488, pinhole_au=0.01, refractive_index=1.0)
    np.testing.assert_allclose(tiny, point, rtol=1e-3)
    one = confocal_fwhm_um(0.3, 0.52, excitation_um=0.488, pinhole_au=1, refractive_index=1.0)
    assert one[1] == pytest.approx(laser[1], rel=0.01)
    assert point[0] < one[0] < laser[0]


def test_confocal_pinhole_equals_the_paraxial_bessel_formula():
    """2 q**2 J1(v) J2(v) / (v (1 - J0(v)**2 - J1(v)**2)), v = q a, q = 2 pi na / wavelength."""
    na, emission, excitation, au = 0.1, 0.52, 0.488, 0.6
    q, v = 2 * math.pi * na / emission, 0.6 * 0.61 * 2 * math.pi
    detection = 2 * q**2 * special.j1(v) * special.jn(2, v) / (v * (1 - special.j0(v) ** 2 - special.j1(v) ** 2))
    expected = FWHM_PER_SIGMA / math.sqrt((2 * math.pi * na / excitation) ** 2 / 2 + detection)
    got = confocal_fwhm_um(na, emission, excitation_um=excitation, pinhole_au=au, refractive_index=1.0)
    assert got[1] == pytest.approx(expected, rel=5e-3)


def test_microscope_refuses_impossible_apertures():
    with pytest.raises(ValueError, match="refractive index above na; found na 1.4"):
        widefield_fwhm_um(1.4, 0.5, refractive_index=1.333)
    assert Gaussian.widefield(1.4, 0.5).axial_fwhm_um > Gaussian.widefield(1.4, 0.5).fwhm_um
    assert Gaussian.confocal(1.2, 0.52, excitation_um=0.488).fwhm_um < Gaussian.widefield(1.2, 0.52).fwhm_um


MTFS = {
    "gaussian": DetectorMTF("gaussian", f50_per_mm=2.5),
    "lorentzian": DetectorMTF("lorentzian", f50_per_mm=2.0),
    "table": DetectorMTF.measured([0, 1, 2, 3, 4, 5, 6, 8, 10], [1, 0.93, 0.8, 0.66, 0.53, 0.42, 0.33, 0.19, 0.1]),
}


@pytest.mark.parametrize("name", MTFS)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("axes", [1, 2])
def test_kernel_has_the_mtf_asked_for(name, half, axes):
    """The transform of the weights, along an axis and at an angle, up to 90 % of the band (80 % between samples)."""
    spacing_um = 50.0
    (part,) = MTFS[name].parts(FineGrid((2,) * axes, (spacing_um,) * axes, (half,) * axes))
    place = np.arange(part.weights.shape[0]) - (part.weights.shape[0] - 1) / 2
    cycles = np.linspace(0, 0.4 if half else 0.45, 17)
    for direction in np.eye(axes)[:1].tolist() + ([[0.6, 0.8]] if axes == 2 else []):
        own = []
        for f in cycles:
            wave = np.ones(())
            for d in direction:
                wave = np.multiply.outer(wave, np.exp(-2j * np.pi * f * d * place))
            own.append((part.weights * wave).sum())
        asked = MTFS[name].at(cycles / (spacing_um * 1e-3))
        assert np.abs(np.imag(own)).max() < 1e-12
        np.testing.assert_allclose(np.real(own), asked, atol=0.005)


def test_mtf_curves():
    for form in ("gaussian", "lorentzian", "exponential"):
        curve = DetectorMTF(form, f50_per_mm=3.0)
        np.testing.assert_allclose(curve.at(np.array([0.0, 3.0])), [1.0, 0.5])
    beyond = MTFS["table"].at(np.array([12.0, 14.0]))
    np.testing.assert_allclose(beyond, [0.1 * 0.1 / 0.19, 0.1 * (0.1 / 0.19) ** 2])
    with pytest.raises(ValueError, match="ascending"):
        DetectorMTF.measured([1, 1], [0.5, 0.4])
    with pytest.raises(ValueError, match="f50_per_mm above 0"):
        DetectorMTF("gaussian")
    with pytest.raises(ValueError, match="expected gaussian, lorentzian"):
        DetectorMTF("box", f50_per_mm=1.0)


def test_slice_profile_blurs_z_only():
    impulse = torch.zeros(1, 1, 33, 5, 5, dtype=torch.float64)
    impulse[0, 0, 16, 2, 2] = 1
    profile = Gaussian(axial_fwhm_um=2.0)
    low = Degradation((1, 1, 1), kernel=profile, spacing_um=(0.5, None, None)).mean(impulse)[0, 0]
    assert float(low[:, 2, 2].sum()) == pytest.approx(1)
    assert float(low[16 + 2, 2, 2] / low[16, 2, 2]) == pytest.approx(0.5, abs=1e-3)


# noise


@pytest.mark.parametrize(
    "noise",
    [
        PoissonGaussian(40.0, 0.02),
        PoissonGaussian(3.0, 0.5),
        PoissonGaussian(2e6),
        PoissonGaussian(5e9, 1e-6),
        PoissonGaussian(-200.0, 0.01, zero=1.5),
        PoissonGaussian(None, 0.05),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_statistics(noise, dtype):
    laws.noise_statistics(noise, [-0.3, 0.0, 0.04, 0.5, 1.0, 1.7], dtype)


def test_noise_follows_the_generator_and_passes_gradients():
    noise = PoissonGaussian(50.0, 0.02)
    degradation = Degradation((2, 2), kernel=Gaussian(fwhm_samples=1.0), noise=noise)
    high = torch.rand(1, 1, 16, 16, generator=generator(3)).requires_grad_()
    laws.follows_generator(degradation, high.detach())
    degradation(high, generator()).sum().backward()
    torch.testing.assert_close(high.grad, degradation.adjoint(torch.ones(1, 1, 8, 8)))
    assert PoissonGaussian()(high, generator()).equal(high)


def test_detector_noise_in_stored_counts():
    """gain 2 counts a photon, offset 100, read noise 6 counts: variance 2 (stored - 100) + 36 stored counts squared."""
    for black, white in ((100.0, 4100.0), (4100.0, 100.0), (0.0, 1000.0)):
        intensity = Intensity(black, white, np.dtype(np.uint16))
        noise = PoissonGaussian.from_detector(2.0, 6.0, offset=100, intensity=intensity)
        unit = torch.from_numpy(intensity.to_unit(np.array([50.0, 100.0, 600.0, 2100.0]))).double()
        stored = (noise.variance(unit) * (white - black) ** 2).numpy()
        np.testing.assert_allclose(stored, [36, 36, 1036, 4036], rtol=1e-4)
    np.testing.assert_allclose(PoissonGaussian.from_detector(2.0, 6.0).variance(torch.tensor([500.0])), 1036)


def test_noise_errors():
    with pytest.raises(ValueError, match="photons other than 0"):
        PoissonGaussian(0.0)
    with pytest.raises(ValueError, match="read_noise of at least 0"):
        PoissonGaussian(10.0, -1.0)
    with pytest.raises(ValueError, match="gain: expected stored counts"):
        PoissonGaussian.from_detector(0.0, 1.0)


# low dose

CROSSTALK = np.outer([0.12, 0.76, 0.12], [0.12, 0.76, 0.12])
OFFSET, GAIN, READ = 50.0, 0.4, 3.0


def detector(signal, dose, random):
    """A direct simulation: quanta and electronic noise, both through the crosstalk; variance GAIN s + READ**2."""
    k = CROSSTALK / math.sqrt((CROSSTALK**2).sum())
    mean = dose * signal
    quanta = (random.poisson(mean / GAIN) * GAIN - mean) + READ * random.standard_normal(mean.shape)
    return mean + OFFSET + ndimage.convolve(quanta, k[None], mode="wrap")


def test_low_dose_equals_a_detector_at_that_dose():
    """Standard deviation within 1 % over the signal range, noise power within 2 % in three bands."""
    random = np.random.default_rng(7)
    kernel = noise_kernel(noise_power_spectrum(detector(np.full((8, 512, 512), 1000.0), 1.0, random), roi=64), reach=4)
    assert (kernel**2).sum() == pytest.approx(1)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None, :])
    bands = [(frequency >= a) & (frequency < b) for a, b in ((0.05, 0.2), (0.2, 0.35), (0.35, 0.5))]
    for level in (20.0, 100.0, 400.0, 1500.0, 6000.0):
        signal = np.full((6, 448, 448), level)
        full = torch.from_numpy(detector(signal, 1.0, random))
        low = simulate_low_dose(
            full, generator(int(level)), dose=0.5, gain=GAIN, read_noise=READ, offset=OFFSET, kernel=kernel
        ).numpy()
        real = detector(signal, 0.5, random)
        assert low.mean() == pytest.approx(real.mean(), abs=0.1)
        assert 0.99 < low.std() / real.std() < 1.01
        spectra = [noise_power_spectrum(image, roi=64) for image in (low, real)]
        for band in bands:
            assert 0.98 < spectra[0][band].mean() / spectra[1][band].mean() < 1.02


def test_low_dose_noise_does_not_wrap_around():
    """Noise at opposite borders is independent, however wide the kernel."""
    flat = torch.full((40, 64, 64), 1000.0, dtype=torch.float64)
    noise = simulate_low_dose(flat, generator(), dose=0.5, gain=1.0, kernel=np.ones((5, 5))).numpy() - 500
    near = np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]
    far = np.corrcoef(noise[:, 0].ravel(), noise[:, -1].ravel())[0, 1]
    assert near == pytest.approx(0.8, abs=0.06)
    assert abs(far) < 0.08


def test_low_dose_edges():
    image = torch.full((2, 40, 48), 500.0)
    assert torch.equal(simulate_low_dose(image, generator(), dose=1.0, gain=0.4, read_noise=3.0), image)
    low = simulate_low_dose(
        image, generator(), dose=0.25, gain=torch.full((40, 48), 0.4, dtype=torch.float64), kernel=CROSSTALK
    )
    assert low.dtype == torch.float32
    assert torch.equal(low, simulate_low_dose(image, generator(), dose=0.25, gain=0.4, kernel=CROSSTALK))
    for call in (
        lambda: simulate_low_dose(image, generator(), dose=1.5, gain=0.4),
        lambda: simulate_low_dose(image, generator(), dose=0.5, gain=-1.0),
        lambda: simulate_low_dose(image.int(), generator(), dose=0.5, gain=0.4),
        lambda: simulate_low_dose(image, generator(), dose=0.5, gain=0.4, kernel=np.zeros((3, 3))),
        lambda: noise_power_spectrum(np.zeros((32, 32)), roi=64),
        lambda: noise_kernel(np.ones((8, 8)), reach=8),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()


def test_white_noise_has_a_flat_spectrum():
    spectrum = noise_power_spectrum(4 * np.random.default_rng(0).standard_normal((12, 256, 256)), roi=32)
    assert spectrum[4:-4, 4:-4].mean() == pytest.approx(16, rel=0.02)


# MATLAB


def test_matlab_weights_by_hand():
    """Interior weights of x2: the cubic at +-1/4, +-3/4, +-5/4, +-7/4, halved: 111, 29, -9, -3 of 256."""
    impulse = np.zeros((1, 32))
    impulse[0, 15] = 1.0
    got = matlab_imresize(impulse, (1, 2))[0] * 256
    np.testing.assert_allclose(got[5:11], [0, -9, 111, 29, -3, 0], atol=1e-12)
    middle = np.zeros((1, 30))
    middle[0, 13] = 1.0
    d = np.arange(-5, 6) / 3
    cubic = np.where(abs(d) <= 1, 1.5 * abs(d) ** 3 - 2.5 * d**2 + 1, -0.5 * abs(d) ** 3 + 2.5 * d**2 - 4 * abs(d) + 2)
    np.testing.assert_allclose(matlab_imresize(middle, (1, 3))[0, 4], cubic.max() / cubic.sum())


def test_matlab_clamps_the_border():
    """First sample of x2: taps at 1/4 left of sample 1 and beyond are read from sample 1."""
    got = matlab_imresize(np.array([[1.0, 0, 0, 0, 0, 0, 0, 0]]), (1, 2))[0, 0] * 256
    assert got == pytest.approx(111 + 29 - 9 - 3)
    assert matlab_imresize(np.arange(14.0).reshape(2, 7), (1, 2)).shape == (2, 4)


def test_matlab_rounds_between_the_passes():
    image = np.random.default_rng(1).integers(0, 256, (24, 18), np.uint8)
    rows = np.clip(np.floor(matlab_imresize(image.astype(float), (3, 1)) + 0.5), 0, 255)
    both = np.clip(np.floor(matlab_imresize(rows, (1, 3)) + 0.5), 0, 255).astype(np.uint8)
    assert np.array_equal(matlab_imresize(image, 3), both)
    once = np.clip(np.floor(matlab_imresize(image.astype(float), 3) + 0.5), 0, 255).astype(np.uint8)
    assert not np.array_equal(both, once)


def test_matlab_rounds_half_away_from_zero():
    """A step of 0, 1 at x2: (128 + 128 k) / 256 sums give halves; integers of any sign round away from zero."""
    half = np.array([[0, 1] * 8], np.int16)
    exact = matlab_imresize(half.astype(float), (1, 2))
    assert exact[0, 4] == pytest.approx(0.5)
    assert matlab_imresize(half, (1, 2))[0, 4] == 1
    assert matlab_imresize(-half, (1, 2))[0, 4] == -1


@pytest.mark.parametrize("factor", [(2, 2), (3, 3), (4, 4), (2, 3), (1, 4)])
def test_matlab_float_equals_cubic_degradation(factor):
    image = np.random.default_rng(2).random((24, 36))
    low = Degradation(factor, sampling="cubic").mean(torch.from_numpy(image)[None, None])[0, 0]
    np.testing.assert_allclose(matlab_imresize(image, factor), low.numpy(), atol=1e-13)


def test_matlab_keeps_the_type():
    for dtype in (np.uint8, np.uint16, np.int16, np.float32, np.float64):
        flat = np.full((9, 9, 3), 77, dtype)
        low = matlab_imresize(flat, 2)
        assert low.dtype == dtype
        assert low.shape == (5, 5, 3)
        np.testing.assert_allclose(low, 77, rtol=1e-6)
    with pytest.raises(ValueError, match="expected an image"):
        matlab_imresize(np.zeros(4), 2)
    with pytest.raises(ValueError, match="expected integers, float32"):
        matlab_imresize(np.zeros((4, 4), bool), 2)


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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ranges = DegradationRange(fwhm_um=(0.2, 0.6), anisotropy=2, photons=(50, 5000), read_noise=(0, 0.02))
    g, patch = generator(), torch.rand(1, 1, 96, 96)
    times = [_seconds(lambda: ranges.sample(g, (2, 2), (0.1, 0.1))(patch, g)) for _ in range(40)]
    torch.set_num_threads(threads)
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
