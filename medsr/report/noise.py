"""noise_table: what became of the noise in quiet regions, by band of frequencies."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medsr.report.material import Material
from medsr.report.sections import Table, number

if TYPE_CHECKING:
    from medsr.consistency.noise_curve import NoiseCurve
    from medsr.scan import Scan
    from medsr.trust.flat_fields import BandNoise
    from medsr.trust.sharpness import NoisePower

__all__ = ["noise_table", "scan_noise"]

Floats = NDArray[np.float64]
Corner = tuple[int, int]

ROI = 32
"""Side of a region in coarse samples."""
QUIET = 1.3
"""Variance in a quiet region over that of the expected noise, at most: 32 x 32 samples of noise come out within 1 +-
0.15 in all but one of a thousand, and the estimate of the noise is some percent off itself."""
LEAST = 8
"""Regions that do not overlap, without which a spectrum is mostly chance and its precision is not known."""
BANDS = 2
"""Up to the coarse sampling limit."""


def noise_table(material: Material) -> Table:
    """Noise power of cubic and estimate over that of the measured scan, where the enlarged region holds noise alone."""
    title = "Noise by band"
    high, wide = material.view.fine
    if material.low is None or "measured" not in material.crops:
        return Table(title, reason="The measured scan was not given, so there is no noise to compare with.")
    if high != wide or material.view.axes != ("y", "x"):
        return Table(title, reason="Not measured: rows and columns of the shown plane are refined differently.")
    crops = {name: plane.astype(np.float64) for name, plane in material.crops.items() if name != "truth"}
    quiet = _quiet(crops["measured"], material.low)
    if len(quiet) < LEAST:
        reason = (
            f"Fewer than {LEAST} regions of {ROI} × {ROI} coarse samples of the enlarged region, none over another, "
            "hold noise alone."
        )
        return Table(title, reason=reason)
    known = [s for s in material.spacing if s is not None]
    steps = (known[0], known[1]) if len(known) == 2 else (1.0, 1.0)
    before = _spectra(crops.pop("measured"), quiet, (steps[0] * high, steps[1] * high), 1)
    spectra = {name: _spectra(plane, quiet, steps, high) for name, plane in crops.items()}
    ratios, doubts = {}, []
    for name, after in spectra.items():
        ratios[name], doubt = _ratios(before, after, BANDS * high)
        doubts += [d / b.value for b, d in zip(ratios[name], doubt, strict=True) if not b.reason]
    rows = [
        [f"{number(bands[0].low)} to {number(bands[0].high)}", *(number(b.value, 2) for b in bands)]
        for bands in zip(*ratios.values(), strict=True)
        if not bands[0].reason
    ]
    unit = "µm" if len(known) == 2 else "sample"
    note = (
        f"Noise power density over that of the measured scan in {len(quiet)} regions that do not overlap, of the "
        f"enlarged one, that hold noise alone; by their differences each figure is known within "
        f"± {max(1, math.ceil(100 * max(doubts)))} % (95 %). Above {number(0.5 / (high * max(steps)))} cycles per "
        f"{unit} the scan holds nothing to compare with: noise there was computed. Less noise is not better if detail "
        "went with it."
    )
    return Table(title, (f"cycles per {unit}", *ratios), rows, note)


def _spectra(plane: Floats, quiet: list[Corner], steps: tuple[float, float], finer: int) -> list[NoisePower]:
    """The noise power of each quiet region, in a plane that is finer than the measured one by a factor."""
    from medsr.trust import noise_power

    side = ROI * finer
    return [
        noise_power(plane[y * finer : y * finer + side, x * finer : x * finer + side], spacing_um=steps, roi=side)
        for y, x in quiet
    ]


def _ratios(before: list[NoisePower], after: list[NoisePower], bands: int) -> tuple[tuple[BandNoise, ...], list[float]]:
    """Ratios of the mean spectra, and by leaving out each region once (jackknife) half of their 95 % intervals."""
    from medsr.trust import noise_power_ratio

    def without(left_out: int | None) -> tuple[BandNoise, ...]:
        means = (
            replace(each[0], radial=np.mean([p.radial for i, p in enumerate(each) if i != left_out], axis=0))
            for each in (before, after)
        )
        return noise_power_ratio(*means, bands=bands)

    count = len(before)
    others = np.array([[band.value for band in without(i)] for i in range(count)])
    deviation = np.sqrt((count - 1) * np.square(others - others.mean(0)).mean(0))
    return without(None), (float(stats.t.ppf(0.975, count - 1)) * deviation).tolist()


def scan_noise(low: Scan, values: Floats, curve: NoiseCurve | None = None) -> Floats:
    """Expected standard deviation of a scan's noise at calibrated values of any shape, in their units.

    Args:
        curve: the scan's, where it was estimated before.
    """
    from medsr.consistency.noise_curve import estimate_noise

    line = low.intensity
    slope, offset = (line.slope, line.intercept) if line.units else (1.0, 0.0)
    span = line.white - line.black
    level = ((np.asarray(values, np.float64) - offset) / slope - line.black) / span
    return (curve or estimate_noise(low)).sd(level) * abs(span * slope)


def _quiet(plane: Floats, low: Scan) -> list[Corner]:
    """Corners of regions of `ROI`, none over another, in which a plane of the scan varies no more than its noise."""
    from medsr.consistency.noise_curve import estimate_noise
    from medsr.trust import noise_power

    curve = estimate_noise(low)
    taken, found = np.zeros(plane.shape, bool), list[Corner]()
    for top in range(0, plane.shape[0] - ROI + 1, ROI // 2):
        for left in range(0, plane.shape[1] - ROI + 1, ROI // 2):
            window = slice(top, top + ROI), slice(left, left + ROI)
            values = plane[window]
            if taken[window].any() or not np.isfinite(values).all() or values.min() == values.max():
                continue
            expected = float(scan_noise(low, values.mean(), curve))
            if noise_power(values, roi=ROI).value <= QUIET * expected**2:
                taken[window] = True
                found.append((top, left))
    return found
