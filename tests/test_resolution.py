"""Resolution: band limits are found again, noise resolves nothing, computed samples are refused, edges and noise."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage, special

from medsr.data import NUCLEI
from medsr.degradation.dose import noise_power_spectrum
from medsr.frc import frc_curve, frc_resolution
from medsr.methods import Cubic
from medsr.scan import Grid, Scan, robust_intensity
from medsr.trust import (
    decorrelation_analysis,
    fsc_sectors,
    noise_power,
    one_image_frc,
    power_spectrum,
    resolution_table,
    sample_independence,
    slanted_edge_mtf,
)

SPACING = (0.1, 0.1)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def limited(array: np.ndarray, highest: float, *, along: tuple[float, ...] | None = None) -> np.ndarray:
    """The array without frequencies above `highest` (cycles per sample; scaled by axis with `along`), spread 1."""
    bins = [np.fft.fftfreq(n) / (1 if along is None else along[i]) for i, n in enumerate(array.shape)]
    radius = np.sqrt(sum(np.square(f) for f in np.meshgrid(*bins, indexing="ij", sparse=True)))
    kept = np.fft.ifftn(np.fft.fftn(array) * (radius <= highest)).real
    return (kept - kept.mean()) / kept.std()


@cache
def nuclei() -> np.ndarray:
    return tifffile.imread(NUCLEI).astype(np.float64)


@pytest.mark.parametrize("highest", [0.1, 0.16, 0.23])
@pytest.mark.parametrize("calibration", ["two-images", "none"])
def test_one_image_finds_the_band_limit(highest: float, calibration: str) -> None:
    image = limited(noise(512, 512), highest) + 0.3 * noise(512, 512, seed=1)
    found = one_image_frc(image, spacing_um=SPACING, calibration=calibration)
    assert (found.reason, found.unit) == ("", "um")
    assert found.value == pytest.approx(0.1 / highest, rel=0.05)
    in_samples = one_image_frc(image, calibration=calibration)
    assert in_samples.unit == "sample"
    assert in_samples.value == pytest.approx(10 * found.value)


def test_the_known_shift_of_the_halves_costs_no_correlation() -> None:
    found = one_image_frc(limited(noise(512, 512), 0.24) + 0.3 * noise(512, 512, seed=1), calibration="none")
    assert found.curve is not None
    high = (found.curve.frequency > 0.15) & (found.curve.frequency < 0.22)
    assert found.curve.correlation[high].min() > 0.8


@pytest.mark.parametrize("highest", [0.1, 0.2, 0.3])
def test_photons_divided_by_a_coin_find_the_band_limit(highest: float) -> None:
    image = np.random.default_rng(1).poisson(200 + 12 * limited(noise(512, 512), highest))
    found = one_image_frc(image * 2.0 + 100, spacing_um=SPACING, split="binomial", gain=2, offset=100)
    assert found.reason == ""
    assert found.value == pytest.approx(0.1 / highest, rel=0.05)
    wrong = one_image_frc(image * 2.0 + 100, spacing_um=SPACING, split="binomial")
    assert "variance over mean" in wrong.reason
    assert math.isnan(wrong.value)


def test_one_image_agrees_with_two_images_where_noise_ends_the_detail() -> None:
    """A spectrum that falls like that of a microscope meets the noise at some frequency: both must find it."""
    signal = ndimage.gaussian_filter(noise(12, 512, 512), (0, 2.2, 2.2))
    signal /= signal.std()
    one, two = (signal + 0.5 * noise(12, 512, 512, seed=s) for s in (1, 2))
    expected = frc_resolution(frc_curve(one, two, axes=(-2, -1), spacing_um=SPACING)).value
    found = one_image_frc(one, spacing_um=SPACING)
    assert found.value == pytest.approx(expected, rel=0.08)
    assert one_image_frc(one, spacing_um=SPACING, calibration="none").value > 1.1 * expected


def test_the_published_calibration_stands_for_the_shift() -> None:
    """At a crossing x the published curve divides by 0.55 for low x, where 1/2 is the halves' coarser sampling."""
    image = limited(noise(512, 512), 0.08) + 0.3 * noise(512, 512, seed=1)
    found = one_image_frc(image, spacing_um=SPACING, calibration="published")
    plain = one_image_frc(image, spacing_um=SPACING, calibration="none")
    assert found.value / plain.value == pytest.approx(0.5 / 0.5515, rel=0.02)
    with pytest.raises(ValueError, match="only for the diagonal split"):
        one_image_frc(image, calibration="published", split="binomial")


@pytest.mark.parametrize("shape", [(512, 512), (128, 128), (20, 256, 256)])
def test_white_noise_resolves_nothing(shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    found = one_image_frc(image, spacing_um=SPACING)
    assert math.isnan(found.value)
    assert "nothing stands out" in found.reason
    assert abs(found.independence.correlation) < 0.05
    counts = np.random.default_rng(2).poisson(100, shape)
    assert math.isnan(one_image_frc(counts, split="binomial").value)
    assert math.isnan(decorrelation_analysis(image).value)


def test_the_correlation_of_white_noise_is_below_a_seventh_everywhere() -> None:
    found = one_image_frc(noise(40, 256, 256), calibration="none")
    assert found.curve is not None
    assert found.curve.correlation.max() < 1 / 7


@pytest.mark.parametrize("order", [0, 1, 3])
def test_an_interpolated_scan_is_refused(order: int) -> None:
    for image in (nuclei()[12], noise(128, 128)):
        finer = ndimage.zoom(image, 2, order=order, mode="nearest", grid_mode=True)
        found = one_image_frc(finer, spacing_um=SPACING)
        assert math.isnan(found.value)
        assert found.reason.startswith("invalid: samples are not independent (neighbors correlate by 0.")
        assert found.independence.correlation > 0.4
        assert found.curve is None


def test_a_scan_of_our_own_upscaler_is_refused() -> None:
    import torch

    finer = Cubic((2, 2))(torch.from_numpy(nuclei()[None, None, 12]).float())[0, 0].numpy()
    assert one_image_frc(finer).reason.startswith("invalid: samples are not independent")


def test_correlated_noise_that_passes_the_test_does_not_resolve_anything() -> None:
    """The limit is drawn where noise alone starts to look like detail."""
    for sigma in (0.3, 0.4, 0.46):
        image = ndimage.gaussian_filter(noise(10, 512, 512), (0, sigma, sigma))
        found = one_image_frc(image)
        assert found.independence.reason == ""
        assert math.isnan(found.value)
    sharpened = noise(256, 256)
    sharpened[:, 1:-1] -= (sharpened[:, 2:] + sharpened[:, :-2]) / 4
    assert sample_independence(ndimage.gaussian_filter(noise(256, 256), 0.6)).reason != ""
    assert sample_independence(sharpened).correlation < -0.2


def test_samples_that_repeat_on_a_lattice_are_refused() -> None:
    image = noise(256, 256)
    image[::2] *= 3
    found = sample_independence(image)
    assert found.unevenness > 1.5
    assert "lattice" in found.reason


def test_scans_as_measured_pass_the_test() -> None:
    assert sample_independence(nuclei()).reason == ""
    assert abs(sample_independence(np.random.default_rng(0).poisson(30, (256, 256))).fano - 1) < 0.05


@pytest.mark.shared
def test_ct_is_refused_by_its_correlated_noise(shared_data: Path) -> None:
    import pydicom

    slices = sorted((shared_data / "dev" / "ctmr").rglob("*.dcm"))[:3]
    stack = np.stack([pydicom.dcmread(path).pixel_array for path in slices])
    assert sample_independence(stack).reason.startswith("invalid: samples are not independent")


def test_images_without_noise_or_full_of_holes_have_a_reason() -> None:
    assert "holds noise" in one_image_frc(np.full((64, 64), 3.0)).reason
    assert "free of holes" in one_image_frc(np.full((64, 64), np.nan)).reason
    with pytest.raises(ValueError, match=r"expected an image \(\.\.\., y, x\)"):
        one_image_frc(np.zeros(5))


def test_holes_are_passed_over() -> None:
    image = limited(noise(512, 512), 0.15) + 0.3 * noise(512, 512, seed=1)
    image[200:210, 300:320] = np.nan
    assert one_image_frc(image, spacing_um=SPACING).value == pytest.approx(0.1 / 0.15, rel=0.06)


@pytest.mark.parametrize("highest", [0.1, 0.2, 0.3, 0.4])
def test_decorrelation_finds_the_band_limit_of_real_planes(highest: float) -> None:
    for z in (6, 15, 24):
        plane = limited(nuclei()[z], highest) + 0.01 * noise(256, 256)
        found = decorrelation_analysis(plane, spacing_um=(0.26, 0.26))
        assert found.value == pytest.approx(0.26 / highest, rel=0.1)
        assert (found.unit, found.reason) == ("um", "")


def test_decorrelation_does_not_depend_on_units_and_knows_its_limits() -> None:
    plane = nuclei()[15]
    found = decorrelation_analysis(plane, spacing_um=(0.26, 0.26))
    assert 0.52 < found.value < 1.2
    assert decorrelation_analysis(3 * plane - 7, spacing_um=(0.26, 0.26)).value == pytest.approx(found.value)
    assert "at least 32" in decorrelation_analysis(plane[:20]).reason
    assert "constant" in decorrelation_analysis(np.full((64, 64), 2.0)).reason
    with pytest.raises(ValueError, match="expected finite values"):
        decorrelation_analysis(np.where(plane > plane.mean(), np.nan, plane))


def test_decorrelation_by_sector_sees_the_coarser_axis() -> None:
    """Detail that ends at 0.1 along the first axis and at 0.3 along the second."""
    plane = limited(noise(257, 257), 1.0, along=(0.1, 0.3)) + 0.05 * noise(257, 257, seed=1)
    for axis, highest in ((0, 0.1), (1, 0.3)):
        found = decorrelation_analysis(plane, sector=(axis, 20.0))
        assert found.value == pytest.approx(1 / highest, rel=0.1)


def test_shells_tell_depth_from_plane() -> None:
    signal = limited(noise(96, 96, 96), 1.0, along=(0.12, 0.3, 0.3))
    pair = [signal + 2 * noise(96, 96, 96, seed=s) for s in (1, 2)]
    found = fsc_sectors(*pair, spacing_um=SPACING + SPACING[:1], cone=20.0)
    assert found["z"].value == pytest.approx(0.1 / 0.12, rel=0.1)
    assert found["yx"].value == pytest.approx(0.1 / 0.3, rel=0.1)
    with pytest.raises(ValueError, match="two volumes"):
        fsc_sectors(pair[0][0], pair[1][0])


def test_the_power_of_white_noise_is_its_variance_times_the_cell() -> None:
    found = power_spectrum(3 * noise(8, 256, 256), axes=(-2, -1), spacing_um=(0.5, 0.2))
    assert found.power[5:].mean() == pytest.approx(9 * 0.5 * 0.2, rel=0.02)
    assert found.limit == pytest.approx(2.5)
    line = power_spectrum(3 * noise(16, 64, 256), axes=(0,), spacing_um=(0.5,))
    assert line.power.mean() == pytest.approx(9 * 0.5, rel=0.05)
    assert "constant" in power_spectrum(np.zeros((64, 64))).reason


def test_a_line_of_a_spectrum_stands_where_its_period_is() -> None:
    wave = np.sin(2 * np.pi * np.arange(256) / 8)[None] + np.zeros((64, 1))
    found = power_spectrum(wave, spacing_um=(0.1, 0.1))
    assert found.frequency[found.power.argmax()] == pytest.approx(1 / 0.8, rel=0.03)


def edge(degrees: float, sigma: float, *, height: float = 1000.0) -> np.ndarray:
    y, x = np.mgrid[:120, :100]
    turn = math.radians(degrees)
    distance = (x - 50.3) * math.cos(turn) + (y - 60) * math.sin(turn)
    return 500 + height / 2 * special.erf(distance / sigma / math.sqrt(2))


@pytest.mark.parametrize("degrees", [2, 5, -7, 12, 25])
@pytest.mark.parametrize("sigma", [0.5, 0.8, 1.5, 3])
def test_a_gaussian_edge_has_a_gaussian_mtf(degrees: float, sigma: float) -> None:
    image = edge(degrees, sigma)
    for turned in (image, image.T, -image):
        found = slanted_edge_mtf(turned, spacing_um=(50, 50))
        expected = np.exp(-2 * (math.pi * sigma * 50 * found.frequency) ** 2)
        assert np.abs(found.mtf - expected).max() < 0.02
        assert found.angle == pytest.approx(abs(degrees), abs=0.1)
        if sigma > 0.5:
            assert found.value == pytest.approx(math.sqrt(math.log(2) / 2) / (math.pi * sigma * 50), rel=0.05)
    noisy = slanted_edge_mtf(image + 5 * noise(120, 100), spacing_um=(50, 50))
    assert np.abs(noisy.mtf - np.exp(-2 * (math.pi * sigma * 50 * noisy.frequency) ** 2)).max() < 0.03


def test_without_an_edge_there_is_a_reason() -> None:
    y, x = np.mgrid[:120, :100]
    for image, reason in (
        (noise(100, 100), "no edge"),
        (np.full((50, 50), 3.0), "no edge"),
        ((x > 50) * 100.0, "not slanted"),
        (edge(38, 1.0), "38 degrees"),
        (100.0 * (np.hypot(x - 50, y - 60) < 30), "no edge"),
        (np.full((50, 50), np.nan), "without NaN"),
        (noise(8, 8), "too small"),
    ):
        found = slanted_edge_mtf(image)
        assert math.isnan(found.value)
        assert reason in found.reason
    with pytest.raises(ValueError, match="expected a plane"):
        slanted_edge_mtf(noise(3, 40, 40))


def test_noise_power_integrates_to_the_variance() -> None:
    flat = 1000 + 3 * ndimage.gaussian_filter(noise(2, 300, 400), (0, 0.7, 0.7)) + np.linspace(0, 50, 400)
    found = noise_power(flat, spacing_um=(50, 70), roi=64)
    cell = 1 / (64 * 50) / (64 * 70)
    assert found.spectrum.sum() * cell == pytest.approx(found.value)
    assert found.value == pytest.approx((flat - np.linspace(0, 50, 400)).var(), rel=0.03)
    assert found.mean == pytest.approx(flat.mean(), rel=0.01)
    assert found.spectrum / (50 * 70) == pytest.approx(noise_power_spectrum(flat, roi=64))


def test_noise_power_looks_only_where_it_may() -> None:
    image = 3 * noise(256, 256)
    image[:, 128:] += 50 * noise(256, 128, seed=3)
    mask = np.zeros(image.shape, bool)
    mask[:, :128] = True
    assert noise_power(image, roi=32, mask=mask).value == pytest.approx(9, rel=0.05)
    assert noise_power(image, roi=32, share=0.4).value == pytest.approx(9, rel=0.1)
    image[:, :128] = np.nan
    assert "no flat region" in noise_power(image, roi=32, mask=mask).reason


def scan(array: np.ndarray, spacing: tuple[float, ...]) -> Scan:
    stored = np.clip(np.rint(array), 0, np.iinfo(np.uint16).max).astype(np.uint16)
    return Scan(stored, Grid(("z", "y", "x"), spacing), robust_intensity(nuclei(), np.dtype(np.uint16)))


def test_before_and_after_in_micrometers() -> None:
    truth = nuclei()
    low = truth.reshape(30, 128, 2, 128, 2).mean((2, 4))
    estimate = ndimage.zoom(low, (1, 2, 2), order=3, mode="nearest", grid_mode=True)
    scans = scan(low, (0.29, 0.52, 0.52)), scan(estimate, (0.29, 0.26, 0.26)), scan(truth, (0.29, 0.26, 0.26))
    rows = {(row.measure, row.along): row for row in resolution_table(*scans)}
    limit = rows["sampling limit", "yx"]
    assert (limit.before.value, limit.after.value, limit.unit) == (1.04, 0.52, "um")
    one = rows["one-image FRC", "yx"]
    assert one.after.reason.startswith("invalid: samples are not independent")
    right = rows["FRC with the truth", "yx"]
    assert right.before.value == pytest.approx(right.after.value, rel=0.01)
    looks = rows["decorrelation", "yx"]
    assert looks.truth is not None
    assert looks.before.value > looks.truth.value
    assert "32" in rows["decorrelation", "z"].after.reason
    assert not {r.measure for r in resolution_table(*scans[:2])} & {"FRC with the truth"}
    with pytest.raises(ValueError, match="a multiple"):
        resolution_table(scans[1], scans[0])


def test_samples_that_were_computed_are_refused_even_if_they_look_white() -> None:
    low = scan(nuclei(), (0.29, 0.26, 0.26))
    estimate = scan(nuclei(), (0.29, 0.26, 0.26))
    rows = {row.measure: row for row in resolution_table(low, estimate)}
    assert "computed from the coarse scan; neighbors correlate by 0." in rows["one-image FRC"].after.reason
