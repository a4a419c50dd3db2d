"""The nouns: Grid, Intensity, Scan, Region, Factor (NumPy only)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "Axis",
    "Factor",
    "Grid",
    "Intensity",
    "LazyArray",
    "Region",
    "Scan",
    "ScanError",
    "robust_intensity",
    "sample_values",
    "validate_factor",
]

Axis = Literal["t", "c", "z", "y", "x"]
Factor = tuple[int, ...]
Region = tuple[slice, ...]
Array = NDArray[Any]

CACHED = 1 << 15
"""Samples that are converted at a time."""

AXES: tuple[Axis, ...] = ("t", "c", "z", "y", "x")
SPATIAL: frozenset[str] = frozenset("zyx")


class ScanError(ValueError):
    """What a file or array says cannot be honored: expected, found and cure, the file first."""


@runtime_checkable
class LazyArray(Protocol):
    """Anything that slices to NumPy: an array, a zarr array, a reader's lazy view."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples along each axis."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored values."""
        ...

    def __getitem__(self, region: Any, /) -> Any: ...


def validate_factor(factor: Factor | int) -> Factor:
    """Return `factor` as a tuple of one to three integers of at least 1.

    Raises:
        ValueError: an entry is no integer, is below 1, or there are more than three.
    """
    entries = (factor,) if isinstance(factor, (int, np.integer)) else tuple(factor)
    if not 1 <= len(entries) <= 3 or any(int(f) != f or f < 1 for f in entries):
        raise ValueError(
            f"factor: expected 1 to 3 whole numbers of at least 1, slowest axis first "
            f"such as (4, 4) or (1, 2, 2); found {factor!r}"
        )
    return tuple(int(f) for f in entries)


@dataclass(frozen=True, slots=True)
class Grid:
    """Where samples lie; slowest axis first.

    Attributes:
        axes: names of the axes, in the order "t", "c", "z", "y", "x"; those absent are left out.
        spacing_um: distance between samples for each axis in micrometers; an entry is None for "t" and "c" and
            where the file does not say. None as a whole where no axis is known; never a guess of 1.0.
        origin_um: center of the first sample for each axis in micrometers (0 where the spacing is unknown).

    Raises:
        ValueError: axes out of order or twice, a length that differs, a spacing that is not above zero.
    """

    axes: tuple[Axis, ...]
    spacing_um: tuple[float | None, ...] | None = None
    origin_um: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        axes: tuple[Axis, ...] = tuple(self.axes)
        if not axes or list(axes) != [a for a in AXES if a in axes]:
            raise ValueError(f'Grid.axes: expected a subset of "t", "c", "z", "y", "x" in that order; found {axes!r}')
        spacing = self.spacing_um
        if spacing is not None:
            spacing = tuple(None if s is None else float(s) for s in spacing)
            if len(spacing) != len(axes):
                raise ValueError(f"Grid.spacing_um: expected one entry for each axis of {axes}; found {spacing!r}")
            if any(s is not None and not (math.isfinite(s) and s > 0) for s in spacing):
                raise ValueError(f"Grid.spacing_um: expected micrometers above 0, or None for unknown; found {spacing}")
            if all(s is None for s in spacing):
                spacing = None
        origin = tuple(float(o) for o in self.origin_um) or (0.0,) * len(axes)
        if len(origin) != len(axes) or not all(map(math.isfinite, origin)):
            raise ValueError(f"Grid.origin_um: expected one finite entry for each axis of {axes}; found {origin!r}")
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "spacing_um", spacing)
        object.__setattr__(self, "origin_um", origin)

    def spacing_of(self, axis: Axis) -> float | None:
        """Spacing along one axis in micrometers; None when unknown or when the grid has no such axis."""
        if self.spacing_um is None or axis not in self.axes:
            return None
        return self.spacing_um[self.axes.index(axis)]

    def pad_factor(self, factor: Factor) -> Factor:
        """`factor` with a 1 for each leading axis it does not name.

        Raises:
            ValueError: the factor has more entries than the grid has axes, or would refine "t" or "c".
        """
        factor = validate_factor(factor)
        lead = len(self.axes) - len(factor)
        full = (1,) * lead + factor if lead >= 0 else ()
        if lead < 0 or any(f > 1 and a not in SPATIAL for f, a in zip(full, self.axes, strict=True)):
            raise ValueError(
                f"factor {factor}: expected at most one entry for each spatial axis of {''.join(self.axes)!r}; "
                "give as many entries as there are axes to refine, slowest first"
            )
        return full

    def refine(self, factor: Factor) -> Grid:
        """The grid with `factor` samples where one was; the field of view is kept, so the origin moves by half the
        difference of the two cells."""
        return self._scaled(factor, finer=True)

    def coarsen(self, factor: Factor) -> Grid:
        """The inverse of `refine`: one sample where `factor` were."""
        return self._scaled(factor, finer=False)

    def crop(self, start: tuple[int, ...]) -> Grid:
        """The grid of a region whose first sample has the indices `start` (one for each axis)."""
        spacing = self.spacing_um or (None,) * len(self.axes)
        moved = tuple(o + i * (s or 0.0) for o, i, s in zip(self.origin_um, start, spacing, strict=True))
        return replace(self, origin_um=moved)

    def _scaled(self, factor: Factor, *, finer: bool) -> Grid:
        full = self.pad_factor(factor)
        if self.spacing_um is None:
            return self
        spacing: list[float | None] = []
        origin: list[float] = []
        for s, o, f in zip(self.spacing_um, self.origin_um, full, strict=True):
            new = None if s is None else (s / f if finer else s * f)
            spacing.append(new)
            origin.append(o if s is None or new is None else o + (new - s) / 2)
        return Grid(self.axes, tuple(spacing), tuple(origin))


@dataclass(frozen=True, slots=True)
class Intensity:
    """The line between stored values and the unit interval, and what a stored value means.

    `unit = (stored - black) / (white - black)`. It is a line, not a window: values outside black..white map outside
    0..1 and come back unchanged.

    Attributes:
        black: stored value that maps to 0. `black > white` is MONOCHROME1 (a high value is dark).
        white: stored value that maps to 1.
        dtype: type of the stored values, native byte order.
        bits: significant bits where the file says so (DICOM BitsStored, packed TIFF); None: those of the dtype.
        slope, intercept, units: calibration of the file; quantity = slope * stored + intercept, in `units`
            ("HU", "um"; empty where the file does not say). Recorded, never applied to the data.
        window: (low, high) stored values the file proposes for display; recorded, never applied to the data.
        padding: closed range of stored values that mean "nothing was measured here" (DICOM pixel padding, a no-data
            value); such samples are holes, as NaN is: never interpolated, never measured, kept as they are.

    Raises:
        ValueError: black equals white, or either is not finite.
    """

    black: float
    white: float
    dtype: np.dtype[Any]
    bits: int | None = None
    slope: float = 1.0
    intercept: float = 0.0
    units: str = ""
    window: tuple[float, float] | None = None
    padding: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        dtype = np.dtype(self.dtype).newbyteorder("=")
        if dtype.kind not in "iuf":
            raise ValueError(f"Intensity.dtype: expected integers or floats, found {dtype}")
        black, white = float(self.black), float(self.white)
        if not (math.isfinite(black) and math.isfinite(white)) or black == white:
            raise ValueError(f"Intensity: expected two different finite values, found black={black} white={white}")
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "black", black)
        object.__setattr__(self, "white", white)

    def to_unit(self, stored: Array) -> NDArray[np.float32]:
        """Stored values (any shape) to unit intensity, float32; never clips; NaN stays NaN."""
        span = self.white - self.black
        return ((np.asarray(stored, np.float64) - self.black) * (1.0 / span)).astype(np.float32)

    def to_stored(self, unit: Array) -> Array:
        """Unit intensity (any shape) to stored values of `dtype`: rounded half to even for integers and clipped to
        the range of the dtype only.

        Raises:
            ValueError: a NaN or infinity meets an integer dtype, which has no value for it.
        """
        # Up to 16 bits float32 is exact enough: its error stays below 0.02 of a stored unit.
        narrow = self.dtype.kind in "iu" and self.dtype.itemsize <= 2
        stored = np.empty(np.shape(unit), self.dtype)
        flat, target = np.ascontiguousarray(unit).reshape(-1), stored.reshape(-1)
        # Piece by piece, so that the passes over a piece stay in the cache.
        for start in range(0, flat.size, CACHED):
            piece = slice(start, start + CACHED)
            values = np.multiply(flat[piece], self.white - self.black, dtype=np.float32 if narrow else np.float64)
            values += self.black
            if self.dtype.kind == "f":
                with np.errstate(over="ignore"):
                    target[piece] = values
                continue
            if not np.isfinite(values).all():
                raise ValueError(f"to_stored: expected finite values for {self.dtype}, found NaN or infinity")
            info = np.iinfo(self.dtype)
            np.rint(values, out=values)
            np.clip(values, info.min, info.max, out=values)
            target[piece] = values
        return stored

    def holes(self, stored: Array) -> NDArray[np.bool_]:
        """True where a sample (any shape, stored values) was not measured: NaN, infinity or padding."""
        stored = np.asarray(stored)
        found = ~np.isfinite(stored) if stored.dtype.kind == "f" else np.zeros(stored.shape, bool)
        if self.padding is not None:
            found |= (stored >= min(self.padding)) & (stored <= max(self.padding))
        return found

    @property
    def may_have_holes(self) -> bool:
        """False where no stored value can be a hole: integers without padding."""
        return self.dtype.kind == "f" or self.padding is not None

    def at(self, quantity: Array) -> Array:
        """Stored value at which the calibrated quantity (in `units`) is reached; the inverse of the calibration."""
        return (np.asarray(quantity, np.float64) - self.intercept) / self.slope


@dataclass(frozen=True, slots=True)
class Scan:
    """An image on a calibrated grid with a known intensity line.

    Attributes:
        data: anything that slices to NumPy, axes as in `grid.axes`; usually lazy.
        grid: where the samples lie.
        intensity: what the samples mean.
        history: what was done, oldest first; never a patient's identity.
        warnings: what a user of this scan should know (unknown spacing, a varying step); never identity.
        reader: the name of the reader that made it.

    Raises:
        ValueError: the data's number of axes or dtype differs from what grid and intensity say, or an axis is empty.
    """

    data: LazyArray
    grid: Grid
    intensity: Intensity
    history: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    reader: str = field(default="array", compare=False)

    def __post_init__(self) -> None:
        shape, dtype = tuple(self.data.shape), np.dtype(self.data.dtype)
        if len(shape) != len(self.grid.axes):
            raise ValueError(f"Scan: expected {len(self.grid.axes)} axes {self.grid.axes}, found data of shape {shape}")
        if 0 in shape:
            raise ValueError(f"Scan: expected at least one sample along each axis, found data of shape {shape}")
        if dtype.newbyteorder("=") != self.intensity.dtype:
            raise ValueError(f"Scan: expected data of {self.intensity.dtype} as its intensity says, found {dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples along each axis."""
        return tuple(int(n) for n in self.data.shape)

    def read(self, region: Region | None = None) -> Array:
        """Stored values of a region (one slice for each axis; None: all), native byte order."""
        part = self.data[region if region is not None else (slice(None),) * len(self.shape)]
        return np.ascontiguousarray(np.asarray(part), dtype=self.intensity.dtype)

    def noted(self, *lines: str) -> Scan:
        """The same scan with `lines` added to its history."""
        return replace(self, history=self.history + lines)


def sample_values(data: LazyArray, *, planes: int = 16, block: int = 256, blocks: int = 8) -> Array:
    """A deterministic sample of the values of `data`, flat.

    At most `planes` planes, evenly spaced, are read; of a plane wider than `blocks * block` samples only a lattice of
    `blocks` x `blocks` blocks, so that an image larger than memory costs what a small one does. Of more than two
    million values an even share is kept.
    """
    counts = data.shape[:-2]
    total = math.prod(counts)
    picks = np.unique(np.linspace(0, total - 1, min(planes, total)).round().astype(int))
    parts: list[Array] = []
    for pick in picks:
        index = [slice(int(i), int(i) + 1) for i in np.unravel_index(pick, counts)] if counts else []
        rows = [_spread(n, block, blocks) for n in data.shape[-2:]]
        parts += [np.asarray(data[(*index, *window)]).ravel() for window in product(*rows)]
    values = np.concatenate(parts)
    # An odd step does not fall into the beat of a detector's columns.
    return values[:: values.size >> 20 | 1]


def _spread(size: int, block: int, blocks: int) -> Iterator[slice]:
    if size <= block * blocks:
        yield slice(0, size)
        return
    for start in np.linspace(0, size - block, blocks).round().astype(int):
        yield slice(int(start), int(start) + block)


def robust_intensity(values: Array, dtype: DTypeLike, *, padding: tuple[float, float] | None = None) -> Intensity:
    """The line from the 0.1 to the 99.9 percentile of `values` (any shape, stored units), which neither a hot pixel
    nor a saturated edge can move.

    Samples within 2 % of the observed extreme that stand apart from all others (a gap of more than 8 % of the range)
    are left out of the percentiles where they are saturated (within 2 % of the limit of an integer dtype, at most a
    quarter of the samples) or few (at most 1 %); so is `padding`, a closed range of stored values. A constant scan
    gets a line one stored unit long.

    Raises:
        ValueError: no finite value is left.
    """
    dtype = np.dtype(dtype)
    kept = np.asarray(values).ravel()
    if kept.dtype.kind == "f":
        kept = kept[np.isfinite(kept)]
    kept = kept.astype(np.float64)
    if padding is not None:
        inside = kept[(kept < min(padding)) | (kept > max(padding))]
        kept = inside if inside.size else kept
    if kept.size == 0:
        raise ValueError("expected at least one finite value, found none (all NaN or infinite)")
    limits = (math.inf, -math.inf) if dtype.kind == "f" else (np.iinfo(dtype).max, np.iinfo(dtype).min)
    for sign, limit in zip((1.0, -1.0), limits, strict=True):
        kept = sign * _without_outliers(sign * kept, limit=sign * float(limit))
    low, high = (float(v) for v in np.percentile(kept, (0.1, 99.9)))
    if low == high:
        low, high = float(kept.min()), float(kept.max())
    if low == high:
        high = low + (1.0 if dtype.kind != "f" else max(abs(low), 1.0) * 1e-3)
    return Intensity(low, high, dtype, padding=padding)


def _without_outliers(values: Array, *, limit: float) -> Array:
    """Drop isolated clusters at the upper extreme, whose physical limit is `limit` (rule of `robust_intensity`)."""
    for _ in range(8):
        top, span = values.max(), values.max() - values.min()
        rest = values[values < top - 0.02 * span]
        share = 0.25 if top >= limit - 0.02 * abs(limit) else 0.01
        if span == 0 or rest.size < (1 - share) * values.size or rest.min() == rest.max():
            return values
        if np.percentile(rest, 99.9) > top - 0.1 * span:
            return values
        values = rest
    return values
