"""Quantification: fits and limits by hand, flat fields, noise by band, specks that were put there."""

import math
import subprocess
import sys
from functools import cache

import numpy as np
import pydicom
import pytest
import torch
from scipy import ndimage

from medsr.data import MAMMOGRAM
from medsr.methods import Cubic
from medsr.metrics import foreground_mask
from medsr.trust import (
    bias_by_region,
    bland_altman,
    deming,
    find_specks,
    flat_field_curve,
    noise_power,
    noise_power_ratio,
    ordinary,
    speck_contrast,
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@cache
def mammogram() -> np.ndarray:
    return pydicom.dcmread(MAMMOGRAM).pixel_array.astype(np.float64)


def upscaled(low: np.ndarray) -> np.ndarray:
    return Cubic((2, 2))(torch.from_numpy(low[None, None]).float())[0, 0].numpy().astype(np.float64)


def halved(high: np.ndarray) -> np.ndarray:
    return high.reshape(high.shape[0] // 2, 2, high.shape[1] // 2, 2).mean((1, 3))


def test_fits_find_the_line_again() -> None:
    truth = 100 * noise(20_000, seed=1)
    exact = ordinary(truth, 0.9 * truth + 5)
    assert (exact.slope, exact.intercept, exact.fit) == (pytest.approx(0.9), pytest.approx(5), "ordinary")
    assert deming(truth, 0.9 * truth + 5).slope == pytest.approx(0.9)
    first, second = truth + 50 * noise(20_000, seed=2), 0.9 * truth + 50 * noise(20_000, seed=3)
    assert deming(first, second).slope == pytest.approx(0.9, abs=0.02)
    # Errors in the reference pull least squares down by 100² / (100² + 50²).
    assert ordinary(first, second).slope == pytest.approx(0.9 * 0.8, abs=0.02)
    half = truth + 25 * noise(20_000, seed=4)
    assert deming(half, second, ratio=4).slope == pytest.approx(0.9, abs=0.02)
    with pytest.raises(ValueError, match="above 0"):
        deming(first, second, ratio=0)
    assert math.isnan(ordinary(np.ones(5), np.ones(5)).slope)


def test_deming_by_hand_and_by_symmetry() -> None:
    x, y = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 5])
    # Orthogonal regression is the first principal axis.
    values, axes = np.linalg.eigh(np.cov(x, y))
    expected = axes[1, values.argmax()] / axes[0, values.argmax()]
    assert deming(x, y).slope == pytest.approx(expected)
    assert deming(y, x).slope == pytest.approx(1 / expected)


def test_bias_is_told_by_region() -> None:
    truth = np.zeros((64, 64))
    truth[16:48, 16:48] = 1000 + 10 * noise(32, 32)
    labels = np.zeros(truth.shape, int)
    labels[16:32, 16:48], labels[32:48, 16:48] = 3, 8
    estimate = truth.copy()
    estimate[labels == 3] += 7
    estimate[5, 5] = np.nan
    found = bias_by_region(estimate, truth, labels=labels, bands=4, foreground=labels > 0)
    rows = {row.region.split(" (")[0]: row for row in found}
    assert rows["label 3"].value == pytest.approx(7)
    assert rows["label 8"].value == pytest.approx(0)
    assert rows["label 3"].samples == 16 * 32
    assert rows["background"].value == 0
    assert rows["foreground"].value == pytest.approx(3.5)
    assert bias_by_region(estimate, truth)[1].value == pytest.approx(3.5, abs=1)  # found by itself
    assert rows["all"].samples == 64 * 64 - 1
    assert sum(row.samples for name, row in rows.items() if name.startswith("band")) == 64 * 64 - 1
    assert all(row.samples for row in rows.values())
    assert rows["all"].line.fit == "ordinary"


def test_a_coarse_reference_is_met_by_block_means() -> None:
    low = halved(mammogram())[:200, :200]
    estimate = np.kron(low, np.ones((2, 2))) * 1.02
    row = bias_by_region(estimate, low)[0]
    assert row.compared == "block means"
    assert row.line.slope == pytest.approx(1.02)
    assert row.value == pytest.approx(0.02 * low.mean())
    with pytest.raises(ValueError, match="whole multiple"):
        bias_by_region(estimate[:-1], low)
    with pytest.raises(ValueError, match="labels and foreground"):
        bias_by_region(low, low, labels=np.zeros((3, 3), int))


def test_bands_by_a_noisy_reference_regress_to_the_mean() -> None:
    truth = 1000 + 100 * noise(300, 300)
    first, second = (truth + 60 * noise(300, 300, seed=s) for s in (1, 2))
    by = {
        kind: [row.value for row in bias_by_region(first, second, banded_by=kind) if row.region.startswith("band")]
        for kind in ("reference", "mean")
    }
    assert by["reference"][0] > 20
    assert max(map(abs, by["mean"])) < 3


def test_foreground_of_two_noisy_arrays_is_the_same_either_way() -> None:
    truth = np.where(np.arange(128) < 64, 900.0, 1100.0) * np.ones((128, 1))
    pair = [truth + sd * noise(128, 128, seed=s) for s, sd in ((1, 20), (2, 500))]
    counts = [bias_by_region(*ordered, banded_by="mean")[1].samples for ordered in (pair, pair[::-1])]
    assert counts[0] == counts[1]


def test_limits_of_agreement_by_hand() -> None:
    first, second = 5 + 2 * noise(320, 320), np.zeros((320, 320))
    found = bland_altman(first, second)
    spread = first.std(ddof=1)
    assert found.bias[0] == found.value == pytest.approx(first.mean())
    assert found.lower[0] == pytest.approx(first.mean() - 1.96 * spread)
    assert found.upper[0] == pytest.approx(first.mean() + 1.96 * spread)
    assert found.independent == pytest.approx(320 * 320, rel=0.1)
    assert (found.blocks, found.block) == (100, 32)
    assert found.inside == pytest.approx(0.95, abs=0.005)
    # The spread of 100 blocks' means is known to 1 / sqrt(200) = 7 %.
    assert found.bias[2] - found.bias[0] == pytest.approx(1.98 * spread / 320, rel=0.2)
    # Variance of a limit: s² (1 / n + 1.96² / 2 / (n - 1)), about 2.92 s² / n.
    assert found.upper[2] - found.upper[0] == pytest.approx(1.98 * math.sqrt(2.92) * spread / 320, rel=0.2)
    small = bland_altman(first[:100, :100], second[:100, :100])
    assert len(small.mean) == len(small.difference) == 10_000
    assert "fewer than three" in bland_altman(first[:1, :2], second[:1, :2]).reason


def test_the_intervals_hold_where_neighbors_err_together() -> None:
    """In 95 of 100 draws the bias lies in its interval, however smooth the differences are."""
    inside = 0
    for seed in range(100):
        off = ndimage.gaussian_filter(noise(192, 192, seed=seed), 2.0, mode="wrap")
        found = bland_altman(off, np.zeros_like(off))
        inside += found.bias[1] <= 0 <= found.bias[2]
        assert found.independent < 192 * 192 / 10
    assert inside >= 88


def test_a_bias_that_grows_shows_as_a_slope() -> None:
    truth = 1000 + 100 * noise(200, 200)
    assert bland_altman(1.1 * truth, truth).slope == pytest.approx(0.1 / 1.05)


def test_flat_fields_stay_flat_or_are_told() -> None:
    levels = [-0.1, 0.0, 0.25, 1.0, 1.3]
    kept = flat_field_curve(Cubic((2, 2)), levels)
    assert kept.value < 1e-6
    assert kept.spread.max() < 1e-6
    assert kept.line.slope == pytest.approx(1)

    class Bent:
        factor, halo = (2, 2), (1, 1)

        def adapt(self, scan):
            return self

        def __call__(self, low):
            fine = low.repeat_interleave(2, -1).repeat_interleave(2, -2) * 0.9 + 0.05
            fine[..., ::2] += 0.01
            return fine

    bent = flat_field_curve(Bent(), levels)
    assert (bent.line.slope, bent.line.intercept) == (pytest.approx(0.9), pytest.approx(0.055))
    assert bent.spread == pytest.approx(np.full(5, 0.01), abs=1e-6)
    assert bent.value == pytest.approx(1.3 * 0.1 - 0.055)
    with pytest.raises(ValueError, match="finite"):
        flat_field_curve(Cubic((2, 2)), [math.nan])


def test_noise_is_compared_by_band() -> None:
    flat = 1000 + 10 * noise(512, 512)
    before = noise_power(flat, spacing_um=(100, 100))
    same = noise_power_ratio(before, noise_power(1000 + 2 * (flat - 1000), spacing_um=(100, 100)))
    assert [band.value for band in same] == pytest.approx([4] * 4)
    after = noise_power_ratio(before, noise_power(upscaled(flat), spacing_um=(50, 50)))
    low, high, none, last = after
    assert low.value == pytest.approx(1, abs=0.1)
    assert high.value < low.value
    assert "before holds nothing" in none.reason
    assert "before holds nothing" in last.reason
    assert after[-1].high == pytest.approx(0.5 / 50, rel=0.02)
    with pytest.raises(ValueError, match="one unit"):
        noise_power_ratio(before, noise_power(flat))


def test_specks_that_were_put_there_are_found_and_measured() -> None:
    """Disks of 150 um in the tissue of a real mammogram, of a contrast five times its noise."""
    image = mammogram()[600:1112, 100:612].copy()
    places = [(60.0, 80.0), (200.0, 300.0), (350.0, 120.0), (420.0, 440.0)]
    y, x = np.mgrid[:512, :512]
    for row, column in places:
        image += 6000.0 * (np.hypot(y - row, x - column) <= 1.5)
    where = [(50 * row, 50 * column) for row, column in places]
    found = find_specks(image, radius=75, spacing_um=(50, 50), count=12)
    for place in where:
        assert min(math.dist(place, other) for other in found) <= 50
    clean = speck_contrast(mammogram()[600:1112, 100:612], where, radius=75, spacing_um=(50, 50))
    with_specks = speck_contrast(image, where, radius=75, spacing_um=(50, 50))
    for old, new in zip(clean, with_specks, strict=True):
        assert new.value - old.value == pytest.approx(6000, abs=1)
        assert new.cnr > 4
        assert new.unit == "um"


def test_interpolation_loses_contrast_of_specks_and_says_so() -> None:
    image = mammogram()
    found = find_specks(image, radius=2.0, count=12, mask=foreground_mask(image))
    assert len(found) == 12
    measured = speck_contrast(image, found, radius=2.0)
    assert min(speck.cnr for speck in measured) > 3
    coarse = halved(image)
    after = speck_contrast(upscaled(coarse), found, radius=2.0)
    share = [b.value / a.value for a, b in zip(measured, after, strict=True)]
    assert 0.7 < np.mean(share) < 1
    cropped = speck_contrast(image[10:], found, radius=2.0, origin=(10.0, 0.0))
    assert [speck.value for speck in cropped] == pytest.approx([speck.value for speck in measured], rel=1e-6)
    # On the coarse grid itself the first sample's center lies half a sample further in.
    low = speck_contrast(
        coarse, [(50 * a, 50 * b) for a, b in found], radius=100, spacing_um=(100, 100), origin=(25, 25)
    )
    assert all(speck.value > 0 for speck in low)


def test_noise_alone_holds_few_specks() -> None:
    assert len(find_specks(noise(512, 512), radius=2.0)) <= 1
    assert find_specks(np.full((64, 64), np.nan), radius=2.0) == ()
    holed = noise(128, 128)
    holed[60:, 60:] = np.nan
    holed[30, 30] += 60
    assert find_specks(holed, radius=1.0)[0] == (30.0, 30.0)
    outside, near, empty = speck_contrast(holed, [(-9, 4), (30, 30), (100, 100)], radius=1.0)
    assert outside.reason == "outside the image"
    assert near.value > 5
    assert "too few samples" in empty.reason
    with pytest.raises(ValueError, match="radius"):
        find_specks(holed, radius=0.1)


def test_measuring_starts_without_torch() -> None:
    names = "bias_by_region, bland_altman, one_image_frc, noise_power, find_specks, flat_field_curve, resolution_table"
    code = f"import sys; from medsr.trust import {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
