"""surface_parameters: texture of a height map by the definitions of ISO 25178-2."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LENGTHS_UM", "SURFACE_COLUMNS", "SurfaceParameters", "surface_parameters", "surface_rows"]

Array = NDArray[Any]
Spacing = tuple[float | None, float | None]

LENGTHS_UM = {"nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "mm": 1e3, "m": 1e6}
"""Micrometers of each unit of length a height can have."""

BAND = 2**21
"""Samples computed at a time, so that temporaries stay small however large the map is."""


@dataclass(frozen=True, slots=True)
class SurfaceParameters:
    """Texture of a surface whose form was removed; heights in the units of the map.

    Attributes:
        sa: arithmetical mean height.
        sq: root mean square height.
        ssk: skewness, without unit; None where sq is 0.
        sku: kurtosis, without unit (3 of a Gaussian); None where sq is 0.
        sp, sv: maximum peak height and maximum pit height, both counted from the mean plane and not below 0.
        sz: maximum height, sp + sv.
        sdq: root mean square gradient, without unit; None where spacing or unit of height are unknown.
        sdr: developed interfacial area ratio, percent; None as sdq.
        samples: that were measured.
    """

    sa: float
    sq: float
    ssk: float | None
    sku: float | None
    sp: float
    sv: float
    sz: float
    sdq: float | None
    sdr: float | None
    samples: int


SURFACE_COLUMNS = (
    "method",
    *(field.name for field in fields(SurfaceParameters)),
    "height_bias",
    "height_rmse",
    "slope_rmse",
    "units",
)
"""Keys of the rows of `surface_rows`, in their order."""


def surface_parameters(
    height: Array, spacing_um: Spacing | None, *, form: int = 1, units: str = "um"
) -> SurfaceParameters:
    """Areal texture parameters of a height map.

    First the form is removed: the polynomial in x and y of total degree `form` that fits the measured samples best by
    least squares. No filter is applied before or after (the map is taken for its own S-F surface), so compare only maps
    of one spacing and one evaluation area.

    The integrals over the evaluation area are means over measured samples. Slopes are those of the edges between
    neighboring samples; a cell of four samples gives the mean of the squares over its two edges along each axis. The
    area of a cell is the mean of the two ways to split it into triangles. Cells with a hole in a corner are left out.

    Args:
        height: (rows, columns); NaN and infinity are holes.
        spacing_um: of rows and columns, in micrometers; None: unknown.
        form: degree of the form that is removed: 0 (mean), 1 (plane) or 2 (second degree).
        units: of the heights: nm, um, mm or m; anything else is no length, and gives no slopes.

    Raises:
        ValueError: the map has not two axes, another degree, or fewer measured samples than the form has terms.

    References:
        ISO 25178-2:2012, Geometrical product specifications, surface texture: areal, terms, definitions and parameters:
        height parameters (clause 4.1) and hybrid parameters (clause 4.3).
        K. J. Stout et al.: The development of methods for the characterisation of roughness in three dimensions,
        EUR 15178 EN, 1993: the sums over edges and cells.
    """
    height = np.asarray(height)
    if height.ndim != 2 or form not in (0, 1, 2):
        raise ValueError(
            "surface: expected a map with two axes and a form of degree 0, 1 or 2, found shape "
            f"{height.shape} and {form}"
        )
    level = _form(height, form)
    sums, count = np.zeros(4), 0
    highest, lowest = -math.inf, math.inf
    gradient = area = 0.0
    cells = 0
    steps = _steps(spacing_um, units)
    for rows in _bands(height.shape):
        z = _leveled(height, level, rows)
        known = z[:-1] if rows.stop < height.shape[0] else z  # the last row of a band is the first of the next
        known = known[np.isfinite(known)]
        if known.size:
            sums += [np.abs(known).sum(), (known**2).sum(), (known**3).sum(), (known**4).sum()]
            highest, lowest, count = (
                max(highest, float(known.max())),
                min(lowest, float(known.min())),
                count + known.size,
            )
        if steps is not None:
            found = _cells(z, *steps)
            gradient, area, cells = gradient + found[0], area + found[1], cells + found[2]
    mean, sq = sums / count, math.sqrt(sums[1] / count)
    flat = sq == 0
    return SurfaceParameters(
        sa=float(mean[0]),  # Sa = 1/A ∬ |z| dx dy
        sq=sq,  # Sq = sqrt(1/A ∬ z² dx dy)
        ssk=None if flat else float(mean[2] / sq**3),  # Ssk = 1/Sq³ (1/A ∬ z³ dx dy)
        sku=None if flat else float(mean[3] / sq**4),  # Sku = 1/Sq⁴ (1/A ∬ z⁴ dx dy)
        sp=max(0.0, highest),
        sv=max(0.0, -lowest),
        sz=max(0.0, highest) + max(0.0, -lowest),  # Sz = Sp + Sv
        sdq=math.sqrt(gradient / cells) if cells else None,  # Sdq = sqrt(1/A ∬ (∂z/∂x)² + (∂z/∂y)² dx dy)
        sdr=100 * area / cells if cells else None,  # Sdr = 1/A ∬ (sqrt(1 + (∂z/∂x)² + (∂z/∂y)²) - 1) dx dy
        samples=count,
    )


def surface_rows(
    truth: Array, estimates: Mapping[str, Array], spacing_um: Spacing | None, *, form: int = 1, units: str = "um"
) -> list[dict[str, Any]]:
    """A row of parameters for the measured map and for each estimate of it, over the samples that all of them have.

    Beside the parameters: the mean of estimate minus truth (`height_bias`), its root mean square (`height_rmse`), both
    in `units`, before any form is removed; and the root mean square difference of slopes (`slope_rmse`, without unit).

    Args:
        truth: (rows, columns).
        estimates: maps of the same shape and units, by name.
        spacing_um, form, units: as in `surface_parameters`.

    Returns:
        Dictionaries with the keys `SURFACE_COLUMNS`, "original" first; what does not exist is None.

    Raises:
        ValueError: as `surface_parameters`, or the shapes differ.
    """
    maps = {"original": np.asarray(truth, np.float64), **{n: np.asarray(e, np.float64) for n, e in estimates.items()}}
    shapes = {found.shape for found in maps.values()}
    if len(shapes) != 1:
        raise ValueError(f"surface: expected maps of one shape, found {sorted(shapes)}; crop or resample first")
    known = np.logical_and.reduce([np.isfinite(found) for found in maps.values()])
    maps = {name: np.where(known, found, np.nan) for name, found in maps.items()}
    steps = _steps(spacing_um, units)
    rows = []
    for name, found in maps.items():
        off = found - maps["original"]
        row: dict[str, Any] = {"method": name, **asdict(surface_parameters(found, spacing_um, form=form, units=units))}
        row |= {"height_bias": float(np.nanmean(off)), "height_rmse": math.sqrt(float(np.nanmean(off**2)))}
        slopes = None if steps is None else _cells(off, *steps)
        row["slope_rmse"] = math.sqrt(slopes[0] / slopes[2]) if slopes is not None and slopes[2] else None
        rows.append({column: row.get(column, units) for column in SURFACE_COLUMNS})
    return rows


def _steps(spacing_um: Spacing | None, units: str) -> tuple[float, float] | None:
    """Distance of rows and of columns in the unit of the heights; None where either is unknown."""
    if spacing_um is None or units.strip() not in LENGTHS_UM:
        return None
    rows, columns = spacing_um
    if rows is None or columns is None:
        return None
    unit = LENGTHS_UM[units.strip()]
    return rows / unit, columns / unit


def _cells(z: Array, dy: float, dx: float) -> tuple[float, float, int]:
    """Sums over the cells of four known samples: of the squared gradient, and of the share of area beyond the plane's;
    and their number."""
    a, b, c, d = z[:-1, :-1], z[:-1, 1:], z[1:, :-1], z[1:, 1:]
    known = np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & np.isfinite(d)
    a, b, c, d = a[known], b[known], c[known], d[known]
    top, bottom, left, right = (b - a) / dx, (d - c) / dx, (c - a) / dy, (d - b) / dy
    squares = (top**2 + bottom**2 + left**2 + right**2) / 2
    # A triangle with a right angle in the plane has sqrt(1 + slope along x squared + slope along y squared) times
    # half the area of the cell; of each split there are two, of both splits four.
    legs = ((top, left), (bottom, right), (top, right), (bottom, left))
    areas = sum(_excess(along_x, along_y) for along_x, along_y in legs) / 4
    return float(squares.sum()), float(np.sum(areas)), int(known.sum())


def _excess(along_x: Array, along_y: Array) -> Array:
    """sqrt(1 + s) - 1 with s the sum of squares, without losing the digits of small slopes."""
    squared = along_x**2 + along_y**2
    return np.asarray(squared / (1 + np.sqrt(1 + squared)))


def _form(height: Array, degree: int) -> NDArray[np.float64]:
    """Coefficients of the terms of `_terms` that fit the measured samples best."""
    count = {0: 1, 1: 3, 2: 6}[degree]
    normal, right, samples = np.zeros((count, count)), np.zeros(count), 0
    about = 0.0
    for rows in _bands(height.shape):
        band = np.asarray(height[rows], np.float64)
        band = band[:-1] if rows.stop < height.shape[0] else band
        known = np.isfinite(band)
        if not known.any():
            continue
        about = about if samples else float(band[known].mean())
        terms = np.stack([np.broadcast_to(t, known.shape)[known] for t in _terms(rows, height.shape, count, len(band))])
        normal += terms @ terms.T
        right += terms @ (band[known] - about)
        samples += int(known.sum())
    if samples < count:
        raise ValueError(
            f"surface: expected at least {count} measured samples for a form of degree {degree}, found {samples}"
        )
    found, *_ = np.linalg.lstsq(normal, right, rcond=None)
    found[0] += about
    return np.asarray(found, np.float64)


def _terms(rows: slice, shape: Sequence[int], count: int, length: int) -> list[NDArray[np.float64]]:
    """1, x, y, x², xy, y², with x and y from -1 to 1 over the whole map."""
    y = (2 * (rows.start + np.arange(length)) / max(1, shape[0] - 1) - 1)[:, None]
    x = (2 * np.arange(shape[1]) / max(1, shape[1] - 1) - 1)[None]
    return [np.ones((1, 1)), x, y, x**2, x * y, y**2][:count]


def _leveled(height: Array, level: NDArray[np.float64], rows: slice) -> NDArray[np.float64]:
    """Rows of the map without its form; holes are NaN."""
    band = np.asarray(height[rows], np.float64)
    terms = _terms(rows, height.shape, len(level), len(band))
    form = sum(coefficient * term for coefficient, term in zip(level, terms, strict=True))
    return np.where(np.isfinite(band), band - form, np.nan)


def _bands(shape: Sequence[int]) -> Iterator[slice]:
    """Rows of about BAND samples; each band has the first row of the next as its last."""
    step = max(1, BAND // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, min(shape[0], start + step + 1))
        if start + step + 1 >= shape[0]:
            return
