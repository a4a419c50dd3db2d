"""What a page says besides its pictures: tables, curves and figures, or why there are none."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medsr.frc import Resolution, RingCurve, frc_curve, frc_resolution
from medsr.metrics import nrmse, psnr_db, ssim
from medsr.report.figures import Band, Curve, curves_svg
from medsr.report.intervals import inside
from medsr.report.material import Material
from medsr.report.reasons import reason_of

if TYPE_CHECKING:
    from medsr.consistency.map import ConsistencyMap, FlaggedRegion

__all__ = ["Figure", "Table", "accuracy", "consistency_table", "curves", "profile", "resolutions"]

Array = NDArray[Any]
THRESHOLD = 1 / 7
SHOWN_REGIONS = 12
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its caption; `alt` says what it shows to who does not see it."""

    uri: str
    alt: str
    caption: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table, or in `reason` why there is none."""

    title: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""
    reason: str = ""
    texts: frozenset[int] = field(default_factory=lambda: frozenset({0}))


def number(value: float | None, digits: int = 3) -> str:
    """A number as it is read; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 1e-4:
        base, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{base} × 10{str(int(power)).translate(RAISED)}".replace("-", "−")
    text = f"{value:.{digits}g}"
    if "e" in text or abs(value) >= 999.5:  # a whole number is said whole: 423, not 420
        text = f"{value:,.0f}"
    return text.replace("-", "−")


def signed(value: float) -> str:
    """A deviation in sigma, with its sign."""
    return f"{value:+.1f}".replace("-", "−")


def percent(share: float) -> str:
    """A small share in percent."""
    if not math.isfinite(share):
        return "–"
    return "< 0.01 %" if 0 < share < 1e-4 else f"{100 * share:.2f} %"


def accuracy(material: Material) -> Table:
    """PSNR, SSIM and NRMSE of cubic and estimate in the enlarged region."""
    title = "Agreement with the truth"
    if material.truth is None:
        return Table(title, reason="No finer measurement of the same field was given, so no error can be stated.")
    line = material.estimate.intensity
    slope = line.slope if line.units else 1.0
    data_range = abs((line.white - line.black) * slope)
    truth = material.crops["truth"]
    head = ["method", "PSNR, dB", "SSIM", "NRMSE"]
    rows = [
        [
            name,
            number(psnr_db(material.crops[name], truth, data_range=data_range), 4),
            number(ssim(material.crops[name], truth, data_range=data_range), 4),
            number(nrmse(material.crops[name], truth, data_range=data_range), 3),
        ]
        for name in ("cubic", "estimate")
        if name in material.crops
    ]
    note = "In the enlarged region; the range is the distance of black and white of the scan's intensity line."
    if material.band is not None:
        head.append("truth inside the interval")
        for row in rows:
            row.append(percent(inside(material.band, truth)) if row[0] == "estimate" else "–")
        note += " The promise of the interval is an average over scans: one region neither keeps nor breaks it."
    return Table(title, head, rows, note)


def resolutions(material: Material) -> Table:
    """Resolution before and after."""
    title = "Resolution before and after"
    if material.low is None:
        return Table(title, reason="The measured scan was not given, so there is no before.")
    from medsr.trust import resolution_table

    try:
        found = resolution_table(material.low, material.estimate, material.truth)
    except ValueError as error:
        return Table(title, reason=f"Not measured: {reason_of(error, material.name)}.")
    rows = []
    for row in found:
        share, place, seen, digits = _samples_of(material, row.along), "", (row.before, row.after), 3
        if row.measure == "FRC with the truth":
            share, digits = 1.0, 2  # measured on the truth's grid
            if row.along == "yx" == "".join(material.view.axes):  # as the curve says it
                seen, place = (_with_truth(material, "cubic")[1], _with_truth(material, "estimate")[1]), ", region"
        rows.append([f"{row.measure}, along {row.along}{place}", *map(_resolution, seen, (share, 1.0), (digits,) * 2)])
        if material.truth is not None and row.truth is not None:
            rows[-1].append(_resolution(row.truth))
    width = max(len(row) for row in rows)
    rows = [[*row, *["–"] * (width - len(row))] for row in rows]
    note = (
        "Shortest period, measured where the scan varies most; smaller is finer. How fine detail looks is not whether "
        "it is right: only a correlation with the truth says that."
    )
    if any(row[0].endswith(", region") for row in rows):
        note += " The last row is of the enlarged region, of the scan by cubic interpolation and of the estimate."
    if None in material.spacing:
        note += " The spacing is unknown: all periods are in fine samples, those of the estimate."
    return Table(title, ("measure", "measured", "estimate", "truth")[:width], rows, note, texts=frozenset(range(width)))


def _samples_of(material: Material, along: str) -> float:
    """Fine samples that a coarse one is wide."""
    axes = material.estimate.grid.axes
    return float(max(f for a, f in zip(axes, material.view.factor, strict=True) if a in along))


def _resolution(found: Resolution, share: float = 1.0, digits: int = 3) -> str:
    """A period in micrometers, or in fine samples, of which there are `share` to one of those it was measured in."""
    if math.isfinite(found.value):
        value, unit = (found.value, "µm") if found.unit == "um" else (share * found.value, "fine samples")
        return f"{number(value, digits)} {unit}"
    said = re.sub(
        r"([\d.]+) samples?\b", lambda at: f"{number(share * float(at[1]), digits)} fine samples", found.reason
    )
    return f"none: {re.sub(r'(?<=[0-9]) um', ' µm', said)}"


def consistency_table(found: ConsistencyMap, material: Material) -> Table:
    """The regions that contradict the measured scan, in the coordinates of the maps' axes."""
    title = "Flagged regions"
    if not found.found:
        return Table(title, reason="No region of at least four touching samples lies beyond 3 sigma.")
    rows = [
        [place_of(r, material), plane_said(r, found, material), str(r.samples), signed(r.z)]
        for r in found.regions[:SHOWN_REGIONS]
    ]
    note = f"The {len(rows)} with the largest peak of {found.found:,}." if found.found > len(rows) else ""
    head = ("where, from the edge of the scan", "shown", "coarse samples", "peak, sigma")
    return Table(title, head, rows, note, texts=frozenset({0, 1}))


def place_of(region: FlaggedRegion, material: Material) -> str:
    """Where a part of the coarse scan lies along rows and columns, as the axes of the maps count."""
    view = material.view
    top, left, bottom, right = material.extent(*(slice(region.start[a], region.stop[a]) for a in view.shown))
    spans = zip(view.axes, ((top, bottom), (left, right)), strict=True)
    return ", ".join(f"{a} {number(s, 4)} to {number(e, 4)}" for a, (s, e) in spans) + f" {material.unit}"


def plane_said(region: FlaggedRegion, found: ConsistencyMap, material: Material) -> str:
    """Where a part of the coarse scan is to be seen: in the frame, in the shown plane, or which planes hold it."""
    view, grid = material.view, found.z.grid
    if view.crosses(region.start, region.stop):
        return "in the frame" if view.frames(region.start, region.stop) else "in the shown plane"
    said = []
    for axis, (name, count, start, stop) in enumerate(
        zip(grid.axes, found.z.shape, region.start, region.stop, strict=True)
    ):
        if axis not in view.shown and count > 1:
            last = f" to {stop}" if stop > start + 1 else ""
            said.append(f"plane{'s' if last else ''} {name} {start + 1}{last} of {count}")
    return ", ".join(said)


def profile(material: Material) -> Figure:
    """Values along the row of the region with most detail, with the interval where there is one."""
    crops, view = material.crops, material.view
    coarse, fine = _detailed_row(material)
    fine_rows, fine_columns = view.fine if "measured" in crops else (1, 1)
    step, origin = material.steps[1], view.columns.start * fine_columns
    drawn: dict[str, Curve] = {}
    for name, plane in crops.items():
        if name == "measured":
            x = (origin + (np.arange(plane.shape[1]) + 0.5) * fine_columns) * step
            drawn[name] = Curve(x, plane[coarse], steps=True)
        else:
            drawn[name] = Curve((origin + np.arange(plane.shape[1]) + 0.5) * step, plane[fine])
    ends = _part(drawn, max(24, 160 // fine_columns))
    drawn = {n: Curve(c.x[use], c.y[use], c.steps) for n, c in drawn.items() for use in [_between(c.x, ends)]}
    band = None
    if material.band is not None:
        lower, upper = (plane[fine] for plane in material.band)
        x = (origin + np.arange(lower.size) + 0.5) * step
        use = _between(x, ends)
        band = Band(x[use], lower[use], upper[use], "interval")
    row = (view.rows.start * fine_rows + fine + 0.5) * material.steps[0]
    rows, columns = view.axes
    where = f"{rows} = {number(row, 4)} {material.unit}"
    uri = curves_svg(drawn, f"{columns}, {material.unit}", material.values, band=band)
    caption = (
        f"Values along the most detailed row of the region, {where} from the edge of the scan. Measured samples are "
        "steps as wide as they are: of a curve only the mean over a step was measured."
    )
    if band is not None and material.ends is not None:
        caption += f" The area is the calibrated interval{f' ({w})' if (w := material.ends.words) else ''}."
    named = [*drawn, *(["interval"] if band is not None else [])]
    return Figure(uri, f"Line profile along {columns} of {', '.join(named)}", caption)


def _detailed_row(material: Material) -> tuple[int, int]:
    """The row of the region with most detail, in coarse and in fine samples."""
    crops = material.crops
    guide = crops.get("measured", crops["estimate"])
    rough = np.nansum(np.abs(np.diff(guide.astype(np.float64), axis=1)), axis=1)
    # A row at the border of the region is a poor example; of equal rows the middle one.
    margin = max(1, guide.shape[0] // 10) if guide.shape[0] > 4 else 0
    coarse = margin + int(rough[margin : guide.shape[0] - margin].argmax())
    high = material.view.fine[0] if "measured" in crops else 1
    return coarse, coarse * high + high // 2


def _part(drawn: Mapping[str, Curve], limit: int) -> tuple[float, float]:
    """Ends of the most detailed part, short enough that single samples show."""
    first = next(iter(drawn.values()))
    if first.x.size <= limit:
        return -math.inf, math.inf
    sums = np.convolve(np.abs(np.diff(np.nan_to_num(first.y))), np.ones(limit - 1), "valid")
    left = int(sums.argmax())
    return float(first.x[left]), float(first.x[min(first.x.size, left + limit) - 1])


def _between(x: Array, ends: tuple[float, float]) -> NDArray[np.bool_]:
    """Which places lie between two ends."""
    return np.asarray((x >= ends[0] - 1e-9) & (x <= ends[1] + 1e-9))


def curves(material: Material) -> list[tuple[str, Figure]]:
    """(title, figure): power spectra of the region, and ring correlations with the truth where there is one."""
    from medsr.trust import power_spectrum

    fine = material.spacing
    coarse = tuple(None if s is None else s * f for s, f in zip(fine, material.view.fine, strict=True))
    unit = "sample" if None in fine else "µm"
    spectra: dict[str, Curve] = {}
    for name, plane in material.crops.items():
        if min(plane.shape) < 8:
            continue
        spacing: Sequence[float | None] = coarse if name == "measured" else fine
        if unit == "sample":
            spacing = [float(f) for f in material.view.fine] if name == "measured" else [1.0, 1.0]
        found = power_spectrum(plane.astype(np.float64), spacing_um=spacing)
        use = found.power > 0
        if use.any():
            spectra[name] = Curve(found.frequency[use], found.power[use])
    figures = []
    if spectra:
        limit = _coarse_limit(material, coarse)
        marks = [(limit, "coarse sampling limit")] if limit is not None else []
        uri = curves_svg(spectra, f"frequency, cycles per {unit}", "power density", logarithmic=True, marks=marks)
        caption = (
            "Power spectrum of the enlarged region. Beyond the coarse sampling limit nothing was measured: what is "
            "there was computed."
        )
        figures.append(("Power spectrum", Figure(uri, "Power spectra of " + ", ".join(spectra), caption)))
    if "truth" in material.crops:
        figures.append(("Ring correlation with the truth", _rings(material, unit)))
    return figures


def _coarse_limit(material: Material, coarse: Sequence[float | None]) -> float | None:
    if "measured" not in material.crops:
        return None
    known = [s for s in coarse if s is not None]
    return 0.5 / max(known) if len(known) == 2 else 0.5 / max(material.view.fine)


def _with_truth(material: Material, name: str) -> tuple[RingCurve, Resolution]:
    """Ring correlation of "cubic" or "estimate" with the truth in the enlarged region."""
    first, truth = (material.crops[n].astype(np.float64) for n in (name, "truth"))
    curve = frc_curve(first, truth, spacing_um=material.spacing)
    return curve, frc_resolution(curve)


def _rings(material: Material, unit: str) -> Figure:
    drawn, said = dict[str, Curve](), []
    for name in ("cubic", "estimate"):
        if name not in material.crops:
            continue
        curve, found = _with_truth(material, name)
        drawn[name] = Curve(curve.frequency, curve.correlation)
        said.append(f"{name}: {_resolution(found, digits=2)}")
    uri = curves_svg(drawn, f"frequency, cycles per {unit}", "ring correlation", level=(THRESHOLD, "1/7"))
    caption = f"Fourier ring correlation with the truth in the enlarged region. Resolution at 1/7: {'; '.join(said)}."
    return Figure(uri, "Fourier ring correlation with the truth of " + " and ".join(drawn), caption)
