"""noise_table: what became of the noise in quiet regions, by band of frequencies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsr.report.material import Material
from medsr.report.sections import Table, number

if TYPE_CHECKING:
    from medsr.scan import Scan
    from medsr.trust.sharpness import NoisePower

__all__ = ["noise_table"]

Floats = NDArray[np.float64]

ROI = 32
"""Side of a region in coarse samples."""
QUIET = 1.3
"""Variance in a quiet region over that of the expected noise, at most: 32 x 32 samples of noise come out within 1 +-
0.15 in all but one of a thousand, and the estimate of the noise is some percent off itself."""
LEAST = 4
"""Regions, half overlapping, without which a spectrum is mostly chance."""
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
    if quiet is None:
        reason = f"Fewer than {LEAST} regions of {ROI} × {ROI} coarse samples of the enlarged region hold noise alone."
        return Table(title, reason=reason)
    from medsr.trust import noise_power, noise_power_ratio

    fine = np.repeat(np.repeat(quiet, high, 0), wide, 1)
    known = [s for s in material.spacing if s is not None]
    steps = (known[0], known[1]) if len(known) == 2 else (1.0, 1.0)
    spectra: dict[str, NoisePower] = {
        name: noise_power(plane, spacing_um=[s * high for s in steps], roi=ROI, mask=quiet)
        if name == "measured"
        else noise_power(plane, spacing_um=steps, roi=ROI * high, mask=fine)
        for name, plane in crops.items()
    }
    before = spectra.pop("measured")
    ratios = {name: noise_power_ratio(before, after, bands=BANDS * high) for name, after in spectra.items()}
    rows = [
        [f"{number(bands[0].low)} to {number(bands[0].high)}", *(number(b.value, 2) for b in bands)]
        for bands in zip(*ratios.values(), strict=True)
        if not bands[0].reason
    ]
    unit = "µm" if len(known) == 2 else "sample"
    note = (
        f"Noise power density over that of the measured scan in {before.regions} half overlapping regions of the "
        f"enlarged one that hold noise alone. Above {number(0.5 / (high * max(steps)))} cycles per {unit} the scan "
        "holds nothing to compare with: noise there was computed. Less noise is not better if detail went with it."
    )
    return Table(title, (f"cycles per {unit}", *ratios), rows, note)


def _quiet(plane: Floats, low: Scan) -> NDArray[np.bool_] | None:
    """Where a plane of the scan varies no more than its noise, in regions of `ROI`; None where too few do."""
    from medsr.consistency.noise_curve import estimate_noise
    from medsr.trust import noise_power

    if min(plane.shape) < ROI:
        return None
    curve, line = estimate_noise(low), low.intensity
    slope, offset = (line.slope, line.intercept) if line.units else (1.0, 0.0)
    span = line.white - line.black
    quiet, found = np.zeros(plane.shape, bool), 0
    for top in range(0, plane.shape[0] - ROI + 1, ROI // 2):
        for left in range(0, plane.shape[1] - ROI + 1, ROI // 2):
            window = slice(top, top + ROI), slice(left, left + ROI)
            values = plane[window]
            if not np.isfinite(values).all() or values.min() == values.max():
                continue
            level = ((float(values.mean()) - offset) / slope - line.black) / span
            expected = float(curve.sd(np.array(level))) * abs(span * slope)
            if noise_power(values, roi=ROI).value <= QUIET * expected**2:
                quiet[window] = True
                found += 1
    return quiet if found >= LEAST else None
