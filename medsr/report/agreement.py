"""Whether intensities survive: bias and slope by region, and a Bland-Altman plot of the enlarged region."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsr.report.figures import agreement_svg
from medsr.report.material import Material
from medsr.report.sections import Figure, Table, number

if TYPE_CHECKING:
    from medsr.trust.quantification import BlandAltman, RegionBias

__all__ = ["bland_altman_plot", "quantities"]

Floats = NDArray[np.float64]

DRAWN = 6_000
"""Points of a Bland-Altman plot: more lie on each other, and make the page large."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two planes of the enlarged region on one grid, and what the second is."""

    estimate: Floats
    reference: Floats
    against: Literal["the truth", "the measured scan"]

    @property
    def first(self) -> str:
        return "estimate" if self.against == "the truth" else "block means of the estimate"


def _pair(material: Material) -> _Pair | str:
    """The estimate and what it is compared with: the truth, else the measured scan by block means; or why not."""
    crops = material.crops
    estimate = crops["estimate"].astype(np.float64)
    if "truth" in crops:
        return _Pair(estimate, crops["truth"].astype(np.float64), "the truth")
    if "measured" not in crops:
        return "Neither a truth nor the measured scan was given to compare with."
    hidden = (f for axis, f in enumerate(material.view.factor) if axis not in material.view.shown)
    if any(f > 1 for f in hidden):
        return "Block means of one plane are not what was measured: the result is finer in depth."
    measured = crops["measured"].astype(np.float64)
    split = [n for size, f in zip(measured.shape, material.view.fine, strict=True) for n in (size, f)]
    return _Pair(estimate.reshape(split).mean((1, 3)), measured, "the measured scan")


def quantities(material: Material) -> Table:
    """Bias and slope by region of intensity: against the truth, or against the measured scan by block means."""
    title = "Quantities"
    pair = _pair(material)
    if isinstance(pair, str):
        return Table(title, reason=pair)
    from medsr.trust import bias_by_region

    exact = pair.against == "the truth"
    found = bias_by_region(pair.estimate, pair.reference, banded_by="reference" if exact else "mean")
    rows = [
        [
            _plain(row.region),
            f"{row.samples:,}",
            *(number(getattr(row, name), 3) for name in ("reference", "value", "deviation")),
            _slope(row, banded_by_mean=not exact),
        ]
        for row in found
        if row.samples
    ]
    against = pair.against if exact else f"{pair.against} ({pair.first})"
    note = (
        f"In the enlarged region, in {material.values}s: mean of the reference, which is {against}; bias and standard "
        "deviation of the estimate minus it; slope of the estimate on it by least squares, 1 where contrasts are kept."
    )
    if exact:
        note += " In a narrow band the noise of the truth makes it less."
    else:
        note += " Bands are of the mean of both, within which a slope says nothing."
    return Table(title, ("values", "samples", "reference", "bias", "sd", "slope"), rows, note)


def _slope(row: RegionBias, *, banded_by_mean: bool) -> str:
    """The slope in a region, where it means something: samples chosen by what they sum to bend the line."""
    slope = row.line.slope
    if not math.isfinite(slope) or (banded_by_mean and row.region.startswith("band")):
        return "–"
    return f"{slope:.3f}".replace("-", "−")


def _plain(text: str) -> str:
    """Large numbers without exponents."""
    return re.sub(r"\d[\d.]*e\+\d+", lambda found: number(float(found[0])), text)


def bland_altman_plot(material: Material) -> tuple[Figure | None, str]:
    """(the plot or None, why there is none): the estimate against the truth, else against the measured scan."""
    pair = _pair(material)
    if isinstance(pair, str):
        return None, pair
    from medsr.trust import bland_altman

    found = bland_altman(pair.estimate, pair.reference)
    if found.reason:
        return None, f"Not measured: {found.reason}."
    step = -(-found.mean.size // DRAWN)
    drawn = found.mean[::step], found.difference[::step]
    uri, beyond = agreement_svg(
        *drawn,
        bias=found.bias,
        limits=(found.lower, found.upper),
        labels=(f"mean of both, {material.values}", "difference"),
    )
    caption = _caption(material, pair, found, (drawn[0].size, beyond))
    return Figure(uri, f"Bland-Altman plot of the {pair.first} against {pair.against}", caption), ""


def _caption(material: Material, pair: _Pair, found: BlandAltman, points: tuple[int, int]) -> str:
    drawn, beyond = points
    alike = found.independent > 0.99 * found.samples
    worth = "" if alike else f", worth about {number(found.independent, 2)} independent ones"
    few = f"; {drawn:,} evenly taken ones are drawn" if drawn < found.samples else ""
    few += (
        f"{', of which' if few else ';'} {beyond:,} lie{'s' if beyond == 1 else ''} beyond the axis" if beyond else ""
    )
    return (
        f"{pair.first[:1].upper()}{pair.first[1:]} minus {pair.against}, over the mean of both, in the enlarged region "
        f"in {material.values}s: n = {found.samples:,} samples{worth}{few}. "
        f"Bias {_with_ends(found.bias)}; limits of agreement, within which 95 % of normal differences lie, "
        f"{_with_ends(found.lower)} and {_with_ends(found.upper)}; in brackets and as areas 95 % intervals. "
        f"{_tilt(found)}Samples of one scan are not several subjects."
    )


def _with_ends(value: Any) -> str:
    at, low, high = (number(v) for v in value)
    return f"{at} ({low} to {high})"


def _tilt(found: BlandAltman) -> str:
    if not math.isfinite(found.slope):
        return ""
    return f"Slope of the difference on the mean {number(found.slope, 2)}: 0 where contrasts are kept. "
