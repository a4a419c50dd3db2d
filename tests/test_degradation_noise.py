"""Noise, low dose, and MATLAB's bicubic."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsr.degradation import (
    Degradation,
    Gaussian,
    PoissonGaussian,
    matlab_imresize,
    noise_kernel,
    noise_power_spectrum,
    simulate_low_dose,
)
from medsr.scan import Intensity
from tests import laws_degradation as laws


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
