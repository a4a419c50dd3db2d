"""Perceptual measures: the published formulas written out, holes, masks, bands, and how they rank real estimates."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, signal

from medsr import perceptual
from medsr.metrics import psnr_db
from medsr.perceptual import gmsd, haarpsi
from tests.methods_asked import mammogram, real_scan


def planes() -> dict[str, np.ndarray]:
    nuclei = real_scan()[0, 0, 15].numpy()
    return {"tissue": mammogram()[0, 0].numpy(), "nuclei": nuclei, "odd": nuclei[3:120, 40:255]}


REAL = planes()


def halved(plane: np.ndarray) -> np.ndarray:
    return signal.convolve2d(plane, np.full((2, 2), 0.25), "valid")[::2, ::2]


def written_out_haarpsi(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Reisenhofer et al. with whole filters, on 0..255; only centers whose widest filter lies inside."""
    first, second = halved(estimate), halved(truth)
    total = weights = 0.0
    for turned in (False, True):
        found = []
        for plane in (first, second):
            scales = []
            for scale in (1, 2, 3):
                half = 2 ** (scale - 1)
                wavelet = np.full((2 * half, 2 * half), 2.0**-scale)
                wavelet[:half] *= -1
                response = np.abs(signal.convolve2d(plane, wavelet.T if turned else wavelet, "valid"))
                start, size = 4 - half, [n - 7 for n in plane.shape]
                scales.append(response[start : start + size[0], start : start + size[1]])
            found.append(scales)
        mine, true = found
        alike = np.mean([(2 * a * b + 30) / (a**2 + b**2 + 30) for a, b in zip(mine[:2], true[:2], strict=True)], 0)
        weight = np.maximum(mine[2], true[2])
        total += (weight / (1 + np.exp(-4.2 * alike))).sum()
        weights += weight.sum()
    share = total / weights
    return (math.log(share / (1 - share)) / 4.2) ** 2


def written_out_gmsd(estimate: np.ndarray, truth: np.ndarray) -> float:
    prewitt = np.array([[1, 0, -1]] * 3) / 3
    mine, true = (
        np.hypot(*(signal.convolve2d(halved(p), k, "valid") for k in (prewitt, prewitt.T))) for p in (estimate, truth)
    )
    return float(((2 * mine * true + 170) / (mine**2 + true**2 + 170)).std())


def worse(plane: np.ndarray, seed: int = 0) -> np.ndarray:
    return ndimage.gaussian_filter(plane, 0.8) + np.random.default_rng(seed).normal(0, 0.01, plane.shape)


# ---------------------------------------------------------------- what they are


@pytest.mark.parametrize("name", REAL)
def test_they_are_the_published_formulas(name):
    truth = REAL[name].astype(np.float64)
    estimate = worse(truth)
    for data_range in (1.0, 0.37):
        scaled = estimate * 255 / data_range, truth * 255 / data_range
        assert haarpsi(estimate, truth, data_range=data_range) == pytest.approx(written_out_haarpsi(*scaled), abs=1e-12)
        assert gmsd(estimate, truth, data_range=data_range) == pytest.approx(written_out_gmsd(*scaled), abs=1e-12)
        finer = [p.repeat(2, 0).repeat(2, 1) for p in (estimate, truth)]  # which halving undoes
        for measure in (haarpsi, gmsd):
            as_it_is = measure(estimate, truth, data_range=data_range, halve=False)
            assert as_it_is == pytest.approx(measure(*finer, data_range=data_range), abs=1e-12)


@pytest.mark.parametrize("name", REAL)
def test_equal_planes(name):
    truth = REAL[name]
    assert haarpsi(truth, truth, data_range=1) == pytest.approx(1, abs=1e-12)
    assert gmsd(truth, truth, data_range=1) == 0
    assert haarpsi(truth + 0.25, truth, data_range=1) == pytest.approx(1, abs=1e-5)  # blind to the level
    flat = np.full((40, 40), 0.3)
    assert haarpsi(flat, flat, data_range=1) == 1
    assert gmsd(flat, flat, data_range=1) == 0


@pytest.mark.parametrize("name", REAL)
def test_they_are_symmetric_bounded_and_fall_with_blur_and_noise(name):
    truth = REAL[name].astype(np.float64)
    noise = np.random.default_rng(1).normal(0, 1, truth.shape)
    for family in (
        [ndimage.gaussian_filter(truth, sigma) for sigma in (0, 0.5, 0.8, 1.2, 1.8, 3, 6)],
        [truth + sigma * noise for sigma in (0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.3)],
    ):
        likeness = [haarpsi(e, truth, data_range=1) for e in family]
        deviation = [gmsd(e, truth, data_range=1) for e in family]
        assert likeness == sorted(likeness, reverse=True)
        assert deviation[:5] == sorted(deviation[:5])
        assert all(0 <= v <= 1 + 1e-12 for v in likeness)
        assert all(0 <= v <= 0.5 for v in deviation)
        assert haarpsi(truth, family[3], data_range=1) == pytest.approx(likeness[3], abs=1e-12)
        assert gmsd(truth, family[3], data_range=1) == pytest.approx(deviation[3], abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(0.01, 1e5), offset=st.floats(-1e4, 1e4))
def test_units_do_not_matter_but_the_range_does(gain, offset):
    truth = REAL["odd"].astype(np.float64)
    pair = [gain * x + offset for x in (worse(truth), truth)]
    for measure in (haarpsi, gmsd):
        expected = measure(worse(truth), truth, data_range=1)
        assert measure(*pair, data_range=gain) == pytest.approx(expected, abs=1e-6)
        assert measure(*pair, data_range=16 * gain) != pytest.approx(expected, abs=1e-3)


def test_stored_integers_do_not_wrap():
    truth = (REAL["nuclei"].clip(0, 1) * 65535).astype(np.uint16)
    estimate = (worse(REAL["nuclei"]).clip(0, 1) * 65535).astype(np.uint16)
    for measure in (haarpsi, gmsd):
        floats = measure(estimate.astype(np.float64), truth.astype(np.float64), data_range=65535)
        assert measure(estimate, truth, data_range=65535) == floats


# ---------------------------------------------------------------- holes, masks, memory


def test_holes_are_left_out():
    """With a band of NaN across, each measure is that of the windows on both sides, whatever the values beside it."""
    truth = REAL["nuclei"].astype(np.float64)
    estimate = worse(truth)
    holed = truth.copy()
    holed[100:110] = np.nan
    beyond = np.zeros(truth.shape, bool)
    beyond[: 100 - 8] = beyond[110 + 6 :] = True  # by its center, a window of 16 samples there holds no hole
    estimate[40, 50] = np.inf
    beyond[40 - 7 : 40 + 9, 50 - 7 : 50 + 9] = False
    finite = np.where(np.isfinite(estimate), estimate, 0)
    chosen = beyond.reshape(128, 2, 128, 2).mean((1, 3)) >= 0.5
    assert haarpsi(estimate, holed, data_range=1) == pytest.approx(
        haarpsi(finite, truth, data_range=1, mask=chosen.repeat(2, 0).repeat(2, 1)), abs=1e-3
    )
    moved = holed.copy()
    moved[99] = moved[110] = 7.0  # shares a block of 2 x 2 with nothing known, or lies beside the hole
    for measure in (haarpsi, gmsd):
        assert math.isfinite(measure(estimate, holed, data_range=1))
        assert math.isnan(measure(np.full((30, 30), np.nan), np.zeros((30, 30)), data_range=1))
    top, bottom = gmsd(estimate[:100], truth[:100], data_range=1), gmsd(estimate[110:], truth[110:], data_range=1)
    assert min(top, bottom) < gmsd(estimate, holed, data_range=1) < max(top, bottom)


def test_a_mask_chooses_the_centers():
    truth = REAL["tissue"].astype(np.float64)
    estimate = truth.copy()
    estimate[:, :128] = worse(truth)[:, :128]
    left = np.zeros(truth.shape, bool)
    left[:, :100] = True
    for measure, perfect in ((haarpsi, 1), (gmsd, 0)):
        right = measure(estimate, truth, data_range=1, mask=np.roll(left, 150, 1))
        assert right == pytest.approx(perfect, abs=1e-12)
        cut = np.s_[:, : 100 + 8]  # what the windows of these centers see
        inside = measure(estimate[cut], truth[cut], data_range=1, mask=left[cut])
        assert measure(estimate, truth, data_range=1, mask=left) == pytest.approx(inside, abs=1e-12)
        assert math.isnan(measure(estimate, truth, data_range=1, mask=np.zeros(truth.shape, bool)))


@pytest.mark.parametrize("band", [1, 5000])
def test_bands_do_not_show(band, monkeypatch):
    truth = REAL["tissue"].astype(np.float64)
    estimate = worse(truth)
    truth[30:33, 60] = np.nan
    mask = np.random.default_rng(2).random(truth.shape) > 0.4
    whole = [m(estimate, truth, data_range=1, mask=mask) for m in (haarpsi, gmsd)]
    monkeypatch.setattr(perceptual, "BAND", band)
    assert [m(estimate, truth, data_range=1, mask=mask) for m in (haarpsi, gmsd)] == pytest.approx(whole, abs=1e-12)


def test_memory_is_bounded():
    truth = np.random.default_rng(0).random((3000, 3000), np.float32)
    for measure in (haarpsi, gmsd):
        tracemalloc.start()
        measure(truth, truth, data_range=1)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200e6, f"{measure.__name__}: {peak / 1e6:.0f} MB"


@pytest.mark.parametrize("shape", [(1, 1), (5, 100), (100, 5), (15, 100), (100, 15)])
def test_a_plane_smaller_than_a_window_has_no_value(shape):
    plane = np.random.default_rng(0).random(shape)
    assert math.isnan(haarpsi(plane, plane, data_range=1))
    assert (gmsd(plane, plane, data_range=1) == 0) == (min(shape) >= 6)


def test_what_cannot_be_is_refused():
    plane = np.zeros((20, 20))
    for measure in (haarpsi, gmsd):
        with pytest.raises(ValueError, match=r"planes \(y, x\) of one shape, found"):
            measure(plane, plane[:10], data_range=1)
        with pytest.raises(ValueError, match="take one plane"):
            measure(plane[None], plane[None], data_range=1)
        with pytest.raises(ValueError, match="of one shape"):
            measure(plane, plane, data_range=1, mask=np.ones((5, 5), bool))
        for wrong in (0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match="data_range: expected a finite value above 0"):
                measure(plane, plane, data_range=wrong)


# ---------------------------------------------------------------- what they are for


def test_halving_hides_the_finest_octave():
    """Detail that the block means do not hold is seen by the measure that does not halve alone."""
    truth = REAL["tissue"].astype(np.float64)
    blocks = truth.reshape(128, 2, 128, 2).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    assert haarpsi(blocks, truth, data_range=1) == pytest.approx(1, abs=1e-12)
    assert haarpsi(blocks, truth, data_range=1, halve=False) < 0.95


@pytest.mark.parametrize("name", REAL)
def test_at_equal_psnr_a_sharp_estimate_is_ranked_over_a_blurred_one(name):
    """Blurred: a Gaussian. Sharp: the truth with its brightness slowly bent, to the same mean squared error."""
    truth = REAL[name].astype(np.float64)
    blurred = ndimage.gaussian_filter(truth, 1.5)
    rows, columns = np.meshgrid(*(np.linspace(0, np.pi, n) for n in truth.shape), indexing="ij")
    bent = np.cos(rows) * np.cos(columns)
    bent *= math.sqrt(float(np.square(blurred - truth).mean() / np.square(bent).mean()))
    sharp = truth + bent
    assert psnr_db(sharp, truth, data_range=1) == pytest.approx(psnr_db(blurred, truth, data_range=1), abs=1e-9)
    assert haarpsi(sharp, truth, data_range=1) > haarpsi(blurred, truth, data_range=1) + 0.05
    assert gmsd(sharp, truth, data_range=1) < gmsd(blurred, truth, data_range=1) / 2


@pytest.mark.parametrize("name", REAL)
def test_finer_measurement_looks_better(name):
    """Cubic interpolation from half the samples, from a quarter, from an eighth."""
    from medsr.methods import Cubic

    truth = REAL[name][:112, :208].astype(np.float32)
    estimates = []
    for f in (2, 4, 8):
        low = torch.nn.functional.avg_pool2d(torch.from_numpy(truth)[None, None], f)
        estimates.append(Cubic((f, f))(low)[0, 0].numpy())
    likeness = [haarpsi(e, truth, data_range=1) for e in estimates]
    assert likeness == sorted(likeness, reverse=True)
    deviation = [gmsd(e, truth, data_range=1) for e in estimates]
    assert deviation == sorted(deviation)
