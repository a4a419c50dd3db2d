"""Metrics: hand-computed values, the reference implementation, holes, masks, band-limited noise."""

import math

import numpy as np
import pydicom
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from medsr import frc, metrics
from medsr.data import MAMMOGRAM, NUCLEI
from medsr.frc import FourierRings, frc_curve, frc_resolution, frc_um
from medsr.metrics import (
    agreement,
    consistency_db,
    foreground_mask,
    foreground_threshold,
    nrmse,
    psnr_db,
    ssim,
)


def pair(*shape: int, level: float = 3e4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.normal(level, 3000, shape)
    return truth + random.normal(0, 1500, shape), truth


def reference_ssim(estimate: np.ndarray, truth: np.ndarray, data_range: float) -> float:
    return structural_similarity(
        truth, estimate, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )


def test_psnr_by_hand() -> None:
    truth = np.zeros((4, 5), np.uint16)
    estimate = truth.copy()
    estimate[0, 0] = 20  # mean squared error 400 / 20 = 20
    assert psnr_db(estimate, truth, data_range=200) == pytest.approx(10 * math.log10(200**2 / 20))
    assert nrmse(estimate, truth, data_range=200) == pytest.approx(math.sqrt(20) / 200)
    assert consistency_db(estimate, truth, data_range=200) == psnr_db(estimate, truth, data_range=200)
    assert psnr_db(truth, truth, data_range=1) == math.inf
    assert nrmse(truth, truth, data_range=1) == 0


def test_unsigned_values_do_not_wrap() -> None:
    low, high = np.full((3, 3), 1, np.uint8), np.full((3, 3), 2, np.uint8)
    assert psnr_db(low, high, data_range=10) == psnr_db(high, low, data_range=10) == pytest.approx(20)


def test_the_range_is_what_is_said() -> None:
    estimate, truth = pair(30, 30, level=2000)
    gain = psnr_db(estimate, truth, data_range=65535) - psnr_db(estimate, truth, data_range=4095)
    assert gain == pytest.approx(24.1, abs=0.05)
    for wrong in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="data_range: expected a finite value above 0"):
            psnr_db(estimate, truth, data_range=wrong)


@settings(max_examples=25, deadline=None)
@given(gain=st.floats(0.01, 100), offset=st.floats(-1e4, 1e4))
def test_figures_do_not_depend_on_units(gain: float, offset: float) -> None:
    estimate, truth = pair(24, 24, level=0)
    moved = [gain * x + offset for x in (estimate, truth)]
    assert psnr_db(*moved, data_range=gain * 9000) == pytest.approx(psnr_db(estimate, truth, data_range=9000), abs=1e-6)
    assert nrmse(*moved, data_range=gain * 9000) == pytest.approx(nrmse(estimate, truth, data_range=9000))


@pytest.mark.parametrize("shape", [(11, 11), (300, 257), (64, 12)])
def test_ssim_is_that_of_the_reference(shape: tuple[int, ...]) -> None:
    estimate, truth = pair(*shape)
    assert ssim(estimate, truth, data_range=9000) == pytest.approx(reference_ssim(estimate, truth, 9000), abs=1e-12)


@pytest.mark.parametrize("band", [300, 5000, 2**22])
def test_ssim_of_stacks_and_volumes_in_any_band(band: int, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate, truth = pair(30, 70, 90)
    monkeypatch.setattr(metrics, "BAND", band)
    planes = [reference_ssim(e, t, 9000) for e, t in zip(estimate, truth, strict=True)]
    assert ssim(estimate, truth, data_range=9000) == pytest.approx(np.mean(planes), abs=1e-12)
    whole = reference_ssim(estimate, truth, 9000)
    assert ssim(estimate, truth, data_range=9000, dims=3) == pytest.approx(whole, abs=1e-12)
    mean = np.mean((estimate - truth) ** 2)
    assert psnr_db(estimate, truth, data_range=9000) == pytest.approx(10 * math.log10(9000**2 / mean))


def test_ssim_of_a_plane_smaller_than_its_window_does_not_exist() -> None:
    assert math.isnan(ssim(*pair(10, 50), data_range=1))


def test_ssim_of_flat_fields_on_a_high_pedestal_is_exact() -> None:
    flat = np.full((40, 40), 60_000.0)
    assert ssim(flat, flat, data_range=10) == 1.0
    assert ssim(flat + 1e-9, flat, data_range=10) == pytest.approx(1, abs=1e-9)


def test_holes_are_left_out_of_every_figure() -> None:
    estimate, truth = pair(60, 64)
    holed, hole = truth.copy(), np.zeros(truth.shape, bool)
    hole[20:25, 30:40] = True
    holed[hole] = np.nan
    estimate[0, 0] = np.inf
    known = ~hole
    known[0, 0] = False
    mean = np.mean((estimate[known] - truth[known]) ** 2)
    assert psnr_db(estimate, holed, data_range=9000) == pytest.approx(10 * math.log10(9000**2 / mean))
    # Windows that see no hole are those of the arrays without holes, at least 6 samples away from one.
    free = np.ones(truth.shape, bool)
    free[15:30, 25:45] = False
    free[:6, :6] = False
    estimate[0, 0] = 0
    expected = ssim(estimate, truth, data_range=9000, mask=free)
    estimate[0, 0] = np.inf
    assert ssim(estimate, holed, data_range=9000) == pytest.approx(expected, abs=1e-12)
    nothing = np.full((20, 20), np.nan)
    assert math.isnan(psnr_db(nothing, nothing, data_range=1))
    assert math.isnan(ssim(nothing, nothing, data_range=1))


def test_a_mask_says_where() -> None:
    estimate, truth = pair(60, 64)
    mask = np.zeros(truth.shape, bool)
    mask[10:40, 20:50] = True
    whole, inside = agreement(estimate, truth, data_range=9000, mask=mask)
    assert (whole.samples, inside.samples) == (60 * 64, 30 * 30)
    assert (whole.windows, inside.windows) == (50 * 54, 30 * 30)
    cut = np.s_[10:40, 20:50]
    assert inside.psnr_db(9000) == pytest.approx(psnr_db(estimate[cut], truth[cut], data_range=9000))
    around = np.s_[5:45, 15:55]  # the windows of these centers
    assert inside.ssim == pytest.approx(ssim(estimate[around], truth[around], data_range=9000), abs=1e-12)


def test_a_mask_over_a_hole_counts_what_is_known() -> None:
    estimate, truth = pair(40, 40)
    truth[10:14, 10:14] = np.nan
    mask = np.zeros(truth.shape, bool)
    mask[8:20, 8:20] = True
    inside = agreement(estimate, truth, data_range=9000, mask=mask)[1]
    assert inside.samples == 12 * 12 - 4 * 4
    known = mask & np.isfinite(truth)
    assert inside.squared == pytest.approx(((estimate - truth)[known] ** 2).sum())


def test_planes_add_up() -> None:
    estimate, truth = pair(5, 40, 41)
    parts = [agreement(e, t, data_range=9000)[0] for e, t in zip(estimate, truth, strict=True)]
    total = sum(parts[1:], start=parts[0])
    whole = agreement(estimate, truth, data_range=9000)[0]
    assert total.psnr_db(9000) == pytest.approx(whole.psnr_db(9000))
    assert total.ssim == pytest.approx(whole.ssim)


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"one shape, found \(4, 5\) and \(5, 4\)"):
        psnr_db(np.zeros((4, 5)), np.zeros((5, 4)), data_range=1)
    with pytest.raises(ValueError, match="one shape"):
        frc_curve(np.zeros((4, 5)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="expected two arrays of shape"):
        FourierRings((8, 8)).add(np.zeros((8, 8)), np.zeros((8, 9)))


def test_foreground_of_nuclei_and_of_a_breast() -> None:
    plane = tifffile.imread(NUCLEI)[15]
    mask = foreground_mask(plane)
    assert 0.4 < mask.mean() < 0.65
    assert plane[mask].mean() > 2 * plane[~mask].mean()
    breast = pydicom.dcmread(MAMMOGRAM).pixel_array
    tissue = foreground_mask(breast)
    assert 0.5 < tissue.mean() < 0.7
    assert tissue[700:1500, 100:700].all()
    assert not tissue[50:500, 1200:1450].any()


def test_foreground_does_not_depend_on_units_nor_on_a_hot_pixel() -> None:
    plane = tifffile.imread(NUCLEI)[15].astype(np.float32)
    mask = foreground_mask(plane)
    assert (foreground_mask(plane * 3e-4 - 7) != mask).mean() < 1e-3
    plane[3, 3] = 1e7
    assert (foreground_mask(plane) != mask)[12:, 12:].mean() < 1e-3


def test_foreground_is_never_empty() -> None:
    assert foreground_mask(np.full((20, 20), 7, np.uint16)).all()
    holed = np.full((20, 20), np.float32(7))
    holed[:5] = np.nan
    assert (foreground_mask(holed) == np.isfinite(holed)).all()
    assert foreground_mask(np.eye(20), threshold=1e9).all()
    for nothing in (np.full((4, 4), np.nan), np.full((4, 4), np.inf)):
        with pytest.raises(ValueError, match="at least one finite value"):
            foreground_mask(nothing)
        with pytest.raises(ValueError, match="at least one finite value"):
            foreground_threshold(nothing)


def test_a_hole_does_not_eat_the_foreground_around_it() -> None:
    plane = np.zeros((60, 60), np.float32)
    plane[20:40, 20:40] = 100
    whole = foreground_mask(plane)
    plane[28:32, 28:32] = np.nan
    holed = foreground_mask(plane)
    assert (holed == (whole & np.isfinite(plane))).all()


def band_limited(
    shape: tuple[int, ...], limit: float, spacing: tuple[float, ...], axes: tuple[int, ...], seed: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays with a common signal up to `limit` cycles a unit along `axes`, and noise of their own."""
    random = np.random.default_rng(seed)
    grids = np.meshgrid(*(np.fft.fftfreq(n, s) for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    radius = np.sqrt(sum(grids[a] ** 2 for a in axes))
    signal = np.fft.ifftn(np.fft.fftn(random.normal(size=shape)) * (radius <= limit)).real
    signal /= signal.std()
    first, second = (signal + random.normal(size=shape) for _ in range(2))
    return first, second


CASES = [
    ((512, 512), (1.0, 1.0), None, 0.2),
    ((512, 512), (1.0, 1.0), None, 0.4),
    ((300, 411), (0.1, 0.1), None, 3.3),
    ((256, 400), (0.2, 0.1), None, 2.0),
    ((1500, 1300), (0.05, 0.05), None, 3.0),
    ((48, 128, 128), (0.3, 0.1, 0.1), None, 3.5),
    ((48, 128, 128), (0.3, 0.1, 0.1), (-2, -1), 3.0),
    ((96, 20, 30), (0.3, 0.1, 0.1), (0,), 1.2),
]


@pytest.mark.parametrize("shape, spacing, axes, limit", CASES)
def test_resolution_of_band_limited_noise(
    shape: tuple[int, ...], spacing: tuple[float, ...], axes: tuple[int, ...] | None, limit: float
) -> None:
    along = tuple(a % len(shape) for a in axes or range(len(shape)))
    first, second = band_limited(shape, limit, spacing, along)
    found = frc_um(first, second, axes=axes, spacing_um=[spacing[a] for a in along])
    assert found * limit == pytest.approx(1, abs=0.05)


def test_resolution_is_physical() -> None:
    first, second = band_limited((256, 256), 0.3, (1, 1), (0, 1))
    one = frc_resolution(frc_curve(first, second))
    assert one.unit == "sample"
    assert frc_um(first, second, spacing_um=(0.25, 0.25)) == pytest.approx(one.value / 4)
    assert math.isnan(frc_um(first, second, spacing_um=None))
    assert math.isnan(frc_um(first, second, spacing_um=(None, 0.25)))


def test_blocks_planes_and_batches_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = band_limited((6, 96, 80), 0.3, (1, 1, 1), (1, 2))
    whole = frc_curve(first, second, axes=(1, 2))
    rings = FourierRings((96, 80))
    for one, two in zip(first, second, strict=True):
        rings.add(one, two)
    np.testing.assert_allclose(rings.curve().correlation, whole.correlation, atol=1e-12)
    monkeypatch.setattr(frc, "BATCH", 1)
    np.testing.assert_allclose(frc_curve(first, second, axes=(1, 2)).correlation, whole.correlation, atol=1e-12)


def test_a_plane_with_a_hole_is_passed_over() -> None:
    first, second = band_limited((4, 64, 64), 0.3, (1, 1, 1), (1, 2))
    expected = frc_curve(first[[0, 1, 3]], second[[0, 1, 3]], axes=(1, 2)).correlation
    first[2, 30, 30] = np.nan
    rings = FourierRings((4, 64, 64), axes=(1, 2))
    rings.add(first, second)
    np.testing.assert_allclose(rings.curve().correlation, expected, atol=1e-12)


def test_correlation_against_the_definition() -> None:
    first, second = band_limited((64, 64), 0.3, (1, 1), (0, 1))
    curve = frc_curve(first, second)
    window = np.sin(np.pi * (np.arange(64) + 0.5) / 64) ** 2
    one, two = (np.fft.fft2((x - x.mean()) * np.outer(window, window)) for x in (first, second))
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    ring = np.rint(radius * 64) == 10
    expected = (one * two.conj())[ring].sum().real
    expected /= math.sqrt((np.abs(one[ring]) ** 2).sum() * (np.abs(two[ring]) ** 2).sum())
    assert curve.correlation[9] == pytest.approx(expected)
    assert curve.frequency[9] == pytest.approx(radius[ring].mean())
    assert curve.counts[9] == ring.sum()


def test_no_crossing_has_a_reason() -> None:
    random = np.random.default_rng(1)
    same = random.normal(size=(128, 128))
    found = frc_resolution(frc_curve(same, same, spacing_um=(0.5, 0.5)))
    assert math.isnan(found.value)
    assert found.reason == "above the threshold up to the sampling limit (1 um)"
    opposite = frc_resolution(frc_curve(same, -same))
    assert math.isnan(opposite.value)
    assert "lowest frequency" in opposite.reason
    for nothing in (np.zeros((64, 64)), np.full((64, 64), np.nan), np.zeros((2, 2))):
        found = frc_resolution(frc_curve(nothing, nothing))
        assert math.isnan(found.value)
        assert "no block" in found.reason


def test_white_noise_does_not_correlate() -> None:
    random = np.random.default_rng(2)
    curve = frc_curve(random.normal(size=(256, 256)), random.normal(size=(256, 256)))
    assert np.average(curve.correlation, weights=curve.counts) < 0.02
    assert (np.abs(curve.correlation[5:]) * np.sqrt(curve.counts[5:]) < 7).all()
    assert (np.abs(curve.correlation[60:]) < 1 / 7).all()


def test_a_shared_hole_does_not_correlate() -> None:
    first, second = band_limited((256, 256), 0.25, (1, 1), (0, 1))
    holes = np.zeros((256, 256), bool)
    holes[40:60, 50:200] = True
    first[holes] = second[holes] = np.nan
    found = frc_resolution(frc_curve(first, second))
    assert found.value == pytest.approx(4, rel=0.08)
