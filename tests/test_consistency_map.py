"""The consistency map tells the true scene from what contradicts the measurement, and nothing else."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import medsr
from medsr import Degradation, DegradationRange, Grid, Intensity, PoissonGaussian, Scan
from medsr.consistency.map import EXPECTED_BEYOND, LEAST, ConsistencyMap, consistency_map
from medsr.consistency.noise_curve import NoiseCurve, estimate_noise, rounding_sd

NOISE = PoissonGaussian(200, 0.01)


def measured(fine: Scan, degradation: Degradation, seed: int = 0) -> Scan:
    unit = torch.from_numpy(fine.intensity.to_unit(fine.read()))
    low = degradation(unit, torch.Generator().manual_seed(seed)).numpy()
    return Scan(fine.intensity.to_stored(low), fine.grid.coarsen(degradation.factor), fine.intensity)


@pytest.fixture(scope="module")
def nuclei() -> Scan:
    scan = medsr.read_scan(medsr.NUCLEI)
    return replace(scan, data=scan.read((slice(8, 20), slice(0, 256), slice(0, 256))))


@pytest.mark.parametrize(
    "degradation",
    [
        Degradation((2, 2), noise=NOISE),
        Degradation((2, 2, 2), kernel=medsr.Gaussian(fwhm_samples=1.2), noise=NOISE),
        Degradation((4, 1, 1), noise=PoissonGaussian(None, 0.02)),
    ],
    ids=["2x2", "2x2x2 blurred", "4x1x1"],
)
def test_the_true_scene_has_unit_variance(nuclei: Scan, degradation: Degradation) -> None:
    found = consistency_map(measured(nuclei, degradation), nuclei, degradation=degradation)
    assert found.rms == pytest.approx(1, abs=0.02)
    assert found.beyond == pytest.approx(EXPECTED_BEYOND, abs=0.0015)
    assert abs(found.mean) < 0.02
    assert found.found == 0


def test_an_invented_spot_is_flagged_where_it_is_in_micrometers(nuclei: Scan) -> None:
    degradation = Degradation((2, 2), noise=NOISE)
    low = measured(nuclei, degradation, seed=3)
    values = nuclei.read().copy()
    values[5, 100:108, 60:72] += 12000
    found = consistency_map(low, replace(nuclei, data=values), degradation=degradation)
    assert found.found == 1
    region = found.regions[0]
    assert (region.start, region.stop) == ((5, 50, 30), (6, 54, 36))
    assert region.z > 3
    assert region.samples > LEAST
    # edges of the samples: 0.26 um each, the first centered at 0
    assert region.box_um[1] == pytest.approx((0.26 * 99.5, 0.26 * 107.5))
    assert region.box_um[2] == pytest.approx((0.26 * 59.5, 0.26 * 71.5))
    assert found.worst is not None
    assert found.worst.start[0] == 5
    assert "1 region flagged" in found.describe()


def test_what_the_measurement_cannot_see_never_shows(nuclei: Scan) -> None:
    """A checkerboard of fine samples has the block mean 0."""
    low = measured(nuclei, Degradation((2, 2)))
    board = 3000 * (-1) ** np.add.outer(np.arange(256), np.arange(256))
    values = np.clip(nuclei.read().astype(np.int64), 3000, 60000)
    even = replace(nuclei, data=values.astype(np.uint16))
    checkered = replace(nuclei, data=(values + board).astype(np.uint16))
    first, second = (consistency_map(low, s, noise=0.01) for s in (even, checkered))
    assert second.rms == pytest.approx(first.rms, abs=1e-3)


def test_blocks_give_what_the_whole_gives(nuclei: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    degradation = Degradation((2, 2, 2), kernel=medsr.Gaussian(fwhm_samples=2.0), noise=NOISE)
    low = measured(nuclei, degradation)
    whole = consistency_map(low, nuclei, degradation=degradation)
    monkeypatch.setattr("medsr.consistency.map.WORK", 1 << 14)
    parts = consistency_map(low, nuclei, degradation=degradation)
    assert parts.z.data.block != whole.z.data.block  # type: ignore[attr-defined]
    assert np.abs(parts.z.read() - whole.z.read()).max() < 1e-5
    assert (parts.rms, parts.samples) == (pytest.approx(whole.rms), whole.samples)


def test_a_coarser_map_of_regions_finds_the_same_spot(nuclei: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    degradation = Degradation((2, 2), noise=NOISE)
    low = measured(nuclei, degradation)
    values = nuclei.read().copy()
    values[5, 96:128, 64:96] += 12000
    monkeypatch.setattr("medsr.consistency.cells.CELLS", 4096)
    found = consistency_map(low, replace(nuclei, data=values), degradation=degradation)
    assert found.found == 1
    start, stop = found.regions[0].start, found.regions[0].stop
    assert all(a <= b for a, b in zip(start, (5, 48, 32), strict=True))
    assert all(a >= b for a, b in zip(stop, (6, 64, 48), strict=True))


def test_holes_are_left_out_as_far_as_they_reach(nuclei: Scan) -> None:
    degradation = Degradation((2, 2), kernel=medsr.Gaussian(fwhm_samples=1.5), noise=NOISE)
    plane = nuclei.read()[:1]
    intensity = replace(nuclei.intensity, padding=(0, 0))
    grid = Grid(("z", "y", "x"), (0.29, 0.26, 0.26))
    fine = Scan(plane.copy(), grid, intensity)
    low = measured(replace(fine, intensity=nuclei.intensity), degradation)
    fine.data[0, 40:60, 40:60] = 0  # type: ignore[index]
    low = replace(low, intensity=intensity)
    low.data[0, 20:30, 20:30] = 0  # type: ignore[index]
    found = consistency_map(low, fine, degradation=degradation)
    z = found.z.read()
    reach = degradation.halo[0]
    assert np.isnan(z[0, 20 - reach : 30 + reach, 20 - reach : 30 + reach]).all()
    assert np.isfinite(z).sum() == found.samples == z.size - (10 + 2 * reach) ** 2
    assert found.rms == pytest.approx(1, abs=0.03)


def test_a_scan_of_holes_says_so() -> None:
    line = Intensity(0, 1, np.dtype(np.float32))
    low = Scan(np.full((8, 8), np.nan, np.float32), Grid(("y", "x")), line)
    found = consistency_map(low, Scan(np.full((16, 16), np.nan, np.float32), Grid(("y", "x")), line))
    assert (found.samples, found.worst, found.regions) == (0, None, ())
    assert "all holes" in found.describe()


def test_rounding_is_the_least_noise() -> None:
    """A scan without noise, rounded: z of the truth is that of an even error over one gray level."""
    line = Intensity(0, 1000, np.dtype(np.uint16))
    fine = np.random.default_rng(0).integers(0, 1000, (256, 256)).astype(np.uint16)
    scan = Scan(fine, Grid(("y", "x")), line)
    low = measured(scan, Degradation((4, 4)))
    assert consistency_map(low, scan, noise=0.0).rms == pytest.approx(1, abs=0.05)
    assert rounding_sd(line) == pytest.approx(12**-0.5 / 1000)


@pytest.mark.parametrize("photons, read", [(None, 0.01), (300.0, 0.005)])
def test_the_noise_of_a_smooth_scene_is_found(photons: float | None, read: float) -> None:
    noise = PoissonGaussian(photons, read)
    ramp = torch.linspace(0.05, 0.95, 512, dtype=torch.float64).expand(512, 512)
    noisy = noise(ramp, torch.Generator().manual_seed(1)).numpy()
    line = Intensity(1000, 50000, np.dtype(np.uint16))
    curve = estimate_noise(Scan(line.to_stored(noisy), Grid(("y", "x")), line))
    levels = np.array(curve.levels)
    expected = np.sqrt(noise.variance(torch.from_numpy(levels)).numpy())
    assert len(levels) > 8
    assert np.abs(np.array(curve.deviations) / expected - 1).max() < 0.06


def test_masks_and_saturation_tell_nothing() -> None:
    line = Intensity(0, 4095, np.dtype(np.uint16))
    values = np.random.default_rng(0).normal(2000, 30, (512, 512)).astype(np.uint16)
    values[:, :200] = 0
    values[:, 440:] = 4095
    curve = estimate_noise(Scan(values, Grid(("y", "x")), line))
    assert curve.sd(np.array([0.49])) * 4095 == pytest.approx(30, rel=0.08)
    assert min(curve.deviations) * 4095 > 15


def test_estimated_noise_judges_real_scans_fairly(nuclei: Scan) -> None:
    """The true scene is not flagged by the noise that was estimated from the noisy scan."""
    for shown in (nuclei, medsr.read_scan(medsr.MAMMOGRAM)):
        cut = replace(shown, data=shown.read()[..., 200:456, :256]) if shown.grid.axes == ("y", "x") else shown
        found = consistency_map(measured(cut, Degradation((2, 2), noise=NOISE)), cut)
        assert 0.7 < found.rms < 1.1
        assert found.beyond < 3 * EXPECTED_BEYOND


def test_ranges_and_their_refusals(nuclei: Scan) -> None:
    degradation = Degradation((2, 2), noise=NOISE)
    low = measured(nuclei, degradation)
    ranged = consistency_map(low, nuclei, degradation=DegradationRange(photons=(10.0, 20.0)))
    assert "estimated from the scan" in ranged.noise
    assert isinstance(ranged, ConsistencyMap)
    given: Any
    for given, words in (
        ({"degradation": Degradation((4, 4))}, "expected the factor"),
        ({"noise": -1.0}, "at least 0"),
    ):
        with pytest.raises(ValueError, match=words):
            consistency_map(low, nuclei, **given)
    with pytest.raises(ValueError, match="a whole multiple"):
        consistency_map(nuclei, low)
    with pytest.raises(ValueError, match="ascending levels"):
        NoiseCurve((1.0, 0.0), (1.0, 1.0))
