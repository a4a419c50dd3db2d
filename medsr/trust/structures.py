"""Small structures: specks, puncta and filaments, area-sampled, and the filters that measure them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

__all__ = [
    "Filter",
    "Kind",
    "Responses",
    "Structure",
    "amplitude",
    "bank",
    "local_deviation",
    "neighborhood",
    "rendered",
    "template",
]

Array = NDArray[Any]
Floats = NDArray[np.float64]
Box = tuple[slice, slice]

Kind = Literal["speck", "punctum", "filament"]

OVERSAMPLING = 10
"""Points along each axis over which a sample is averaged, as the area of a detector's element does."""
LONG = 8.0
"""Length of a filament in its widths."""
ANGLES = 12
"""Directions of the filters for filaments, over half a turn: 15 degrees apart."""
SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


@dataclass(frozen=True, slots=True)
class Structure:
    """One small bright structure in a plane.

    Attributes:
        kind: "speck": a disk of one contrast; "punctum": a Gaussian; "filament": a line with a Gaussian profile.
        position: of its center along y and x, in samples from the center of the plane's first sample.
        size: diameter of a speck, width at half the peak of the others, in `unit`.
        unit: "um" or "sample".
        contrast: peak over the surroundings before sampling, in unit intensity.
        sigma: standard deviation of the matched amplitude over the surroundings in the truth, in unit intensity.
        angle: direction of a filament in degrees from the x axis to the y axis; 0 for the others.
    """

    kind: Kind
    position: tuple[float, float]
    size: float
    unit: str
    contrast: float
    sigma: float
    angle: float = 0.0

    @property
    def length(self) -> float:
        """Of a filament, in `unit`; the size for the others."""
        return LONG * self.size if self.kind == "filament" else self.size

    @property
    def cnr(self) -> float:
        """Contrast over the deviation of the surroundings at this size."""
        return self.contrast / self.sigma if self.sigma > 0 else math.inf


def neighborhood(structure: Structure, steps: Sequence[float]) -> tuple[Box, NDArray[np.bool_]]:
    """The samples in which a structure is planted and measured: where (it may reach out of the plane), and which there.

    Args:
        structure: position may lie between samples.
        steps: distance of samples along y and x in the structure's unit.
    """
    center = [round(p) for p in structure.position]
    offset = [p - c for p, c in zip(structure.position, center, strict=True)]
    around = _around(structure.kind, structure.size, structure.angle, steps, offset)
    rows, columns = (slice(c - n // 2, c + n // 2 + 1) for c, n in zip(center, around.shape, strict=True))
    return (rows, columns), around


def rendered(structure: Structure, steps: Sequence[float]) -> tuple[Box, Floats, NDArray[np.bool_]]:
    """The structure of contrast 1 on the samples of its plane.

    Args:
        structure, steps: as in `neighborhood`.

    Returns:
        Where, the mean over each sample's area from 0 to 1 (0 outside of the neighborhood), and the neighborhood, both
        (rows, columns).
    """
    box, around = neighborhood(structure, steps)
    offset = [p - round(p) for p in structure.position]
    return box, _shape(structure.kind, structure.size, structure.angle, steps, offset, around), around


def template(structure: Structure, steps: Sequence[float]) -> tuple[Box, Floats]:
    """Weights whose sum with the samples is the amplitude of the structure; where as in `rendered`.

    They are the structure less its best plane in its neighborhood, scaled so that the structure itself gives 1: an
    offset and a slope of the background give 0.
    """
    box, shape, around = rendered(structure, steps)
    return box, _weights(shape, around)


def amplitude(plane: Array, structure: Structure, steps: Sequence[float]) -> float:
    """Contrast with which a structure of this form stands at its place in a plane; nan at an edge or a hole.

    Args:
        plane: (y, x), any units.
        structure: form and place; its own contrast is not looked at.
        steps: as in `rendered`.
    """
    box, weights = template(structure, steps)
    if any(s.start < 0 or s.stop > n for s, n in zip(box, plane.shape, strict=True)):
        return math.nan
    return float((np.asarray(plane[box], np.float64) * weights)[weights != 0].sum())


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """A filter that gives, at each sample, the amplitude of one form centered there.

    Attributes:
        kind, size, angle: the form.
        weights: (rows, columns), odd sizes.
        footprint: True where the form has at least half of its peak.
    """

    kind: Kind
    size: float
    angle: float
    weights: Floats
    footprint: NDArray[np.bool_]

    @property
    def reach(self) -> int:
        """Samples from its center to its farthest edge."""
        return int(max(self.weights.shape)) // 2


def bank(kind: Kind, sizes: Sequence[float], steps: Sequence[float]) -> tuple[Filter, ...]:
    """The filters of one kind: one a size, for filaments one a size and direction."""
    angles = [180.0 * i / ANGLES for i in range(ANGLES)] if kind == "filament" else [0.0]
    filters = []
    for size in sizes:
        for angle in angles:
            around = _around(kind, size, angle, steps, (0.0, 0.0))
            shape = _shape(kind, size, angle, steps, (0.0, 0.0), around)
            filters.append(Filter(kind, size, angle, _weights(shape, around), shape >= 0.5 * shape.max()))
    return tuple(filters)


class Responses:
    """A plane through filters, by one transform of the plane; holes are filled with their nearest value.

    Args:
        plane: (y, x).
        reach: of the largest filter that will be asked for.
    """

    def __init__(self, plane: Array, reach: int) -> None:
        values = np.asarray(plane, np.float32)
        holes = ~np.isfinite(values)
        if holes.any():
            nearest = ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
            values = values[tuple(nearest)]
        self._shape, self._reach = values.shape, reach
        # Single precision counts small contrasts well only without the pedestal they stand on.
        padded = np.pad(values - np.float32(values.mean(dtype=np.float64)), reach, mode="reflect")
        self._size = [scipy.fft.next_fast_len(n + reach, real=True) for n in padded.shape]
        self._transform = scipy.fft.rfft2(padded, self._size)

    def by(self, each: Filter) -> NDArray[np.float32]:
        """The amplitude of the filter's form at each sample, float32, of the plane's shape."""
        half = [n // 2 for n in each.weights.shape]
        kernel = np.zeros(self._size, np.float32)
        kernel[tuple(slice(n) for n in each.weights.shape)] = each.weights[::-1, ::-1]
        found = scipy.fft.irfft2(self._transform * scipy.fft.rfft2(kernel), self._size)
        start = [self._reach + h for h in half]
        return np.asarray(found[tuple(slice(s, s + n) for s, n in zip(start, self._shape, strict=True))], np.float32)


def local_deviation(response: Array, known: NDArray[np.bool_], *, block: int, least: float) -> NDArray[np.float32]:
    """Standard deviation of a response about each sample, robustly: from the medians of blocks, linear between them.

    Args:
        response: (y, x).
        known: True where it counts; a block of which that is less than a tenth takes the deviation of all.
        block: samples of a block's side.
        least: what it is at least.
    """
    parts = [np.array_split(np.arange(n), max(1, round(n / block))) for n in response.shape]
    used = response[known]
    whole = SIGMA * float(np.median(np.abs(used - np.median(used)))) if used.size else 0.0
    table = np.full([len(p) for p in parts], whole, np.float32)
    for i, rows in enumerate(parts[0]):
        for j, columns in enumerate(parts[1]):
            box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
            values = response[box][known[box]]
            if values.size >= block * block // 10:
                table[i, j] = SIGMA * float(np.median(np.abs(values - np.median(values))))
    centers = [np.array([p.mean() for p in part]) for part in parts]
    places = [np.interp(np.arange(n), c, np.arange(len(c))) for n, c in zip(response.shape, centers, strict=True)]
    low = [np.floor(p).astype(int) for p in places]
    high = [np.minimum(k + 1, len(c) - 1) for k, c in zip(low, centers, strict=True)]
    share = [(p - k).astype(np.float32) for p, k in zip(places, low, strict=True)]
    rows_between = table[low[0]] * (1 - share[0][:, None]) + table[high[0]] * share[0][:, None]
    between = rows_between[:, low[1]] * (1 - share[1]) + rows_between[:, high[1]] * share[1]
    return np.asarray(np.maximum(between, least), np.float32)


def _around(
    kind: Kind, size: float, angle: float, steps: Sequence[float], offset: Sequence[float]
) -> NDArray[np.bool_]:
    """The neighborhood of a form `offset` samples from the middle one; odd sizes."""
    far = 1.5 * max(steps) + (1.0 if kind == "speck" else 1.5) * size
    along, turn = _along(kind, size), math.radians(angle)
    spans = far + along * abs(math.sin(turn)), far + along * abs(math.cos(turn))
    half = [math.ceil(span / step) for span, step in zip(spans, steps, strict=True)]
    y, x = ((np.arange(-h, h + 1) - o) * step for h, o, step in zip(half, offset, steps, strict=True))
    return _distance(y[:, None], x, along, turn) <= far


def _shape(
    kind: Kind,
    size: float,
    angle: float,
    steps: Sequence[float],
    offset: Sequence[float],
    around: NDArray[np.bool_],
) -> Floats:
    """A form of peak 1, averaged over the area of each sample of its neighborhood."""
    y, x = (
        ((np.arange(n * OVERSAMPLING) + 0.5) / OVERSAMPLING - 0.5 - n // 2 - o) * step
        for n, o, step in zip(around.shape, offset, steps, strict=True)
    )
    distance = _distance(y[:, None], x, _along(kind, size), math.radians(angle))
    if kind == "speck":
        fine = np.asarray(distance <= size / 2, np.float64)
    else:
        fine = np.exp(-4 * math.log(2) * np.square(distance / size))
    cells = around.shape[0], OVERSAMPLING, around.shape[1], OVERSAMPLING
    return np.where(around, fine.reshape(cells).mean((1, 3)), 0.0)


def _along(kind: Kind, size: float) -> float:
    """From the center of a form to the end of its axis: the rest of a filament's half length is its rounded end."""
    return 0.5 * (LONG - 1) * size if kind == "filament" else 0.0


def _distance(y: Array, x: Array, along: float, turn: float) -> Floats:
    """From each point to the axis of a form."""
    onto = np.clip(x * math.cos(turn) + y * math.sin(turn), -along, along)
    # About four times as fast as hypot.
    return np.asarray(np.sqrt(np.square(y - onto * math.sin(turn)) + np.square(x - onto * math.cos(turn))))


def _weights(shape: Floats, around: NDArray[np.bool_]) -> Floats:
    y, x = np.indices(shape.shape)[:, around].astype(np.float64)
    plane = np.stack([np.ones_like(y), y - y.mean(), x - x.mean()], 1)
    fit, *_ = np.linalg.lstsq(plane, shape[around], rcond=None)
    rest = shape[around] - plane @ fit
    weights = np.zeros_like(shape)
    weights[around] = rest / np.square(rest).sum()
    return weights
