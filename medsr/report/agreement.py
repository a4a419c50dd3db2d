"""Whether intensities survive: bias and slope by region, and a Bland-Altman plot of the enlarged region."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from medsr.report.figures import RC, SIZE, STYLES, _legend, _svg
from medsr.report.material import Material
from medsr.report.noise import scan_noise
from medsr.report.sections import Figure, Table, number

if TYPE_CHECKING:
    from medsr.trust.quantification import BlandAltman, RegionBias

__all__ = ["bland_altman_plot", "quantities"]

Floats = NDArray[np.float64]

DRAWN = 6_000
"""Points of a Bland-Altman plot: more lie on each other, and make the page large."""
DROWNED = 0.2
"""Share of the noise in the variance of a scan from which its slope is not said: it would be wrong by up to 6 %."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two planes of the enlarged region on one grid, and what the second is."""

    estimate: Floats
    reference: Floats
    against: Literal["the truth", "the measured scan"]

    @property
    def exact(self) -> bool:
        """Whether the reference is finer knowledge, not what the estimate was made of."""
        return self.against == "the truth"

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

    found = bias_by_region(pair.estimate, pair.reference, banded_by="reference" if pair.exact else "mean")
    rows = [
        [
            _plain(row.region),
            f"{row.samples:,}",
            *(number(getattr(row, name), 3) for name in ("reference", "value", "deviation")),
            _slope(row.line.slope if pair.exact else _slope_of_the_measured(material, pair, row)),
        ]
        for row in found
        if row.samples
    ]
    against = pair.against if pair.exact else f"{pair.against} ({pair.first})"
    note = (
        f"In the enlarged region, in {material.values}s: mean of the reference, which is {against}; bias and standard "
        "deviation of the estimate minus it; "
    )
    if pair.exact:
        note += (
            "slope of the estimate on it by least squares, 1 where contrasts are kept. Noise that the truth has and "
            "the estimate has not makes it less, in a narrow band most."
        )
    else:
        note += (
            "slope of the estimate on it with the scan's noise taken for the only error (Deming), 1 where contrasts "
            f"are kept and left out where noise makes more than {100 * DROWNED:.0f} % of the scan's variance. It is a "
            "test of consistency only: what lies between the measured samples it does not see. Bands, foreground and "
            "background are of the mean of both, within which a slope says nothing; noise that was removed makes the "
            "bias of the lowest band too high and that of the highest too low."
        )
    return Table(title, ("values", "samples", "reference", "bias", "sd", "slope"), rows, note)


def _slope(slope: float) -> str:
    return f"{slope:.3f}".replace("-", "−") if math.isfinite(slope) else "–"


def _slope_of_the_measured(material: Material, pair: _Pair, row: RegionBias) -> float:
    """The slope on a noisy scan of block means without noise: Deming's line where the reference alone errs."""
    from medsr.trust import ordinary

    if row.region != "all" or material.low is None:
        return math.nan
    known = np.isfinite(pair.estimate) & np.isfinite(pair.reference)
    noise = float(np.square(scan_noise(material.low, pair.reference[known])).mean())
    if not noise <= DROWNED * float(pair.reference[known].var()):
        return math.nan
    turned = ordinary(pair.estimate, pair.reference).slope
    return 1 / turned if turned else math.nan


def _plain(text: str) -> str:
    """The ends of a band as numbers are read elsewhere: no exponents, thousands apart."""
    name, bracket, ends = text.partition(" (")
    return name + bracket + re.sub(r"-?\d[\d.]*(?:e[+-]\d+)?", lambda found: number(float(found[0]), 4), ends)


def bland_altman_plot(material: Material) -> tuple[Figure | None, str]:
    """(the plot or None, why there is none): the estimate against the truth, else against the measured scan."""
    pair = _pair(material)
    if isinstance(pair, str):
        return None, pair
    from medsr.trust import bland_altman

    found = bland_altman(pair.estimate, pair.reference)
    if found.reason:
        return None, f"Not measured: {found.reason}."
    count = found.mean.size
    # By chance, not every n-th: a step that divides the width of the region would show a few columns only.
    use = np.arange(count) if count <= DRAWN else np.random.default_rng(0).choice(count, DRAWN, replace=False)
    use.sort()
    labels = f"mean of both, {material.values}", "difference"
    uri, beyond = _drawn(found.mean[use], found.difference[use], found, labels)
    caption = _caption(material, pair, found, (use.size, beyond))
    return Figure(uri, f"Bland-Altman plot of the {pair.first} against {pair.against}", caption), ""


def _drawn(mean: Floats, difference: Floats, found: BlandAltman, labels: tuple[str, str]) -> tuple[str, int]:
    """A Bland-Altman plot with limits by fifths where one pair is false; and how many points lie beyond its axis."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    bias, limits = found.bias, (found.lower, found.upper)
    steps = found.fifths if found.uneven else ()
    ends = [v for limit in limits for v in limit] + [v for fifth in steps for v in fifth.limits]
    reach = 1.25 * max(abs(v - bias[0]) for v in ends if math.isfinite(v))
    # A few far points must not press all others into a line.
    reach = max(reach, 1.05 * float(np.quantile(np.abs(difference - bias[0]), 0.999))) or 1.0
    color = STYLES["estimate"][0]
    with matplotlib.rc_context(RC):
        figure = Drawing(figsize=SIZE)
        axes = figure.add_subplot()
        # As a picture: thousands of drawn circles would be a page of their own.
        axes.plot(
            *(mean, difference, "o"), color="#33597d", markersize=2.2, markeredgewidth=0, alpha=0.22, rasterized=True
        )
        for (at, low, high), dashes, label in [
            (bias, "-", "bias"),
            *((limit, "--", "_" if i else f"limits, {_inside(found)} inside") for i, limit in enumerate(limits)),
        ]:
            if math.isfinite(low):
                axes.axhspan(low, high, color=color, alpha=0.25, linewidth=0)
            axes.axhline(at, color=color, linestyle=dashes, linewidth=1.6, label=label)
        if steps:
            edges = [steps[0].start, *(fifth.stop for fifth in steps)]
            for side, label in ((0, "limits by fifths"), (1, "_")):
                heights = [fifth.limits[side] for fifth in steps]
                axes.stairs(heights, edges, baseline=None, color="#222222", linewidth=1.4, label=label)
        axes.axhline(0, color="#222222", linewidth=0.8)
        axes.set_ylim(bias[0] - reach, bias[0] + reach)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        _legend(figure, 3 if steps else 2)
        return _svg(figure), int((np.abs(difference - bias[0]) > reach).sum())


def _inside(found: BlandAltman) -> str:
    return f"{100 * found.inside:.1f} %"


def _caption(material: Material, pair: _Pair, found: BlandAltman, points: tuple[int, int]) -> str:
    drawn, beyond = points
    few = f"; {drawn:,} drawn by chance are shown" if drawn < found.samples else ""
    few += (
        f"{', of which' if few else ';'} {beyond:,} lie{'s' if beyond == 1 else ''} beyond the axis" if beyond else ""
    )
    return (
        f"{pair.first[:1].upper()}{pair.first[1:]} minus {pair.against}, over the mean of both, in the enlarged region "
        f"in {material.values}s: n = {found.samples:,} samples{few}. "
        f"Bias {_with_ends(found.bias)}; limits of agreement, bias ± 1.96 standard deviations, "
        f"{_with_ends(found.lower)} and {_with_ends(found.upper)}; {_inside(found)} of the samples lie inside. "
        f"{_fifths(found)}{_trust(found)}{_tilt(pair, found)}Samples of one scan are not several subjects."
    )


def _with_ends(value: tuple[float, float, float]) -> str:
    at, low, high = (number(v) for v in value)
    return f"{at} ({low} to {high})" if math.isfinite(value[1]) else at


def _fifths(found: BlandAltman) -> str:
    """What the limits are worth by intensity, where the spread depends on it."""
    if not found.uneven:
        return ""
    first, last = (f"{100 * fifth.inside:.1f} %" for fifth in (found.fifths[0], found.fifths[-1]))
    return (
        f"The spread depends on the intensity, so these limits are false by intensity: {first} lie inside in the "
        f"lowest fifth of the means, {last} in the highest. The steps are the limits of each of the fifths. "
    )


def _trust(found: BlandAltman) -> str:
    size = f"{found.block} × {found.block}"
    if not math.isfinite(found.bias[1]):
        return f"No intervals: {found.blocks} blocks of {size} samples are too few, and single samples err together. "
    return f"In brackets and as areas 95 % intervals from {found.blocks} blocks of {size} samples drawn anew. "


def _tilt(pair: _Pair, found: BlandAltman) -> str:
    if not math.isfinite(found.slope):
        return ""
    said = f"Slope of the difference on the mean {number(found.slope, 2)}"
    if pair.exact:
        return f"{said}: 0 where contrasts are kept and both are equally noisy; removed noise tilts it too. "
    return (
        f"{said}: removed noise tilts it as lost contrast does (so it does a slope by least squares). Without a truth "
        "this is a test of consistency only. "
    )
