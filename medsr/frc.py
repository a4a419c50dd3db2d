"""Fourier ring correlation: up to which detail two arrays agree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["FourierRings", "Resolution", "RingCurve", "frc_curve", "frc_resolution", "frc_um", "hole_free_block"]

Array = NDArray[Any]

WHOLE = {1: 4096, 2: 1024, 3: 256}
"""The longest axis that enters whole, by the number of axes; a longer one enters in half-overlapping blocks."""
BATCH = 2**22
"""Samples transformed at a time."""


@dataclass(frozen=True, slots=True)
class RingCurve:
    """A Fourier ring (3D: shell) correlation, from the lowest frequency to the highest.

    Attributes:
        frequency: mean frequency of each ring, cycles per `unit`.
        correlation: -1..1 for each ring.
        counts: Fourier samples in each ring.
        unit: "um", or "sample" where the spacing is unknown.
        limit: the highest frequency the samples can hold (Nyquist), cycles per `unit`.
    """

    frequency: NDArray[np.float64]
    correlation: NDArray[np.float64]
    counts: NDArray[np.float64]
    unit: str
    limit: float


@dataclass(frozen=True, slots=True)
class Resolution:
    """The period at which a ring correlation falls below its threshold.

    Attributes:
        value: in `unit`; nan where there is no crossing.
        unit: "um" or "sample".
        reason: why there is no value; empty where there is one.
    """

    value: float
    unit: str
    reason: str = ""


class FourierRings:
    """Sums of a Fourier ring correlation; the planes of a stack and the blocks of a large plane add up.

    Each block loses its mean and is tapered by a Hann window, which blurs frequencies by one to two rings: a signal
    that ends abruptly at ring r comes out finer by up to 2 / r. A block that holds NaN is passed over, because a hole
    that both arrays share would itself correlate.

    Args:
        shape: of the arrays that `add` will receive.
        axes: axes the frequency is measured along; the others are summed over. None: all.
        spacing_um: distance of samples for each of `axes`; with an unknown entry all is measured in samples.
        block: samples of a block for each of `axes`; None: the whole axis, or half of `WHOLE` where it is longer.
        sector: (which of `axes`, least angle, greatest angle): only frequencies at that angle in degrees to that axis.
        shift: samples by which the second array's samples lie further along each of `axes`; such a shift of known size
            would turn the phases and is turned back.

    Attributes:
        added: blocks that were added so far.

    References:
        W. O. Saxton, W. Baumeister, 1982, doi:10.1111/j.1365-2818.1982.tb00405.x (ring correlation).
        P. B. Rosenthal, R. Henderson, 2003, doi:10.1016/j.jmb.2003.07.013 (the threshold of 1/7).
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        axes: Sequence[int] | None = None,
        spacing_um: Sequence[float | None] | None = None,
        block: Sequence[int] | None = None,
        sector: tuple[int, float, float] | None = None,
        shift: Sequence[float] | None = None,
    ) -> None:
        self.shape = tuple(shape)
        self.axes = tuple(a % len(self.shape) for a in (range(len(self.shape)) if axes is None else axes))
        sizes = [self.shape[a] for a in self.axes]
        longest = WHOLE[len(self.axes)]
        self.block = tuple(block or [n if n <= longest else longest // 2 for n in sizes])
        known = [s for s in spacing_um or () if s is not None]
        self.unit = "um" if len(known) == len(self.axes) else "sample"
        self.spacing = tuple(known) if self.unit == "um" else (1.0,) * len(self.axes)
        self.sector, self.added = sector, 0
        self._prepare(shift or (0.0,) * len(self.axes))

    def _prepare(self, shift: Sequence[float]) -> None:
        """Ring number, weight, frequency and turn of each sample of a block's half spectrum."""
        last = len(self.axes) - 1
        bins = [
            (scipy.fft.rfftfreq if i == last else scipy.fft.fftfreq)(n, s)
            for i, (n, s) in enumerate(zip(self.block, self.spacing, strict=True))
        ]
        along = np.meshgrid(*bins, indexing="ij", sparse=True)
        radius = np.sqrt(sum(np.square(f) for f in along))
        turns = [f * d * s for f, d, s in zip(along, shift, self.spacing, strict=True) if d]
        self._turn = np.exp(2j * np.pi * sum(turns)) if turns else np.ones(())
        self.limit = 0.5 / min(self.spacing)
        if self.sector:
            axis, least, most = self.sector
            others = [s for i, s in enumerate(self.spacing) if i != axis]
            self.limit = 0.5 / (self.spacing[axis] if least <= 0 else min(others))
        steps = [1 / (n * s) for n, s in zip(self.block, self.spacing, strict=True)]
        # As wide as the coarsest step, so that rings are filled, yet never fewer than 48 rings where steps allow.
        width = max(min(steps), min(max(steps), self.limit / 48))
        weight = np.full(self.block[last] // 2 + 1, 2.0)
        weight[0] = 1.0
        if self.block[last] % 2 == 0:
            weight[-1] = 1.0
        inside = (radius <= self.limit * (1 + 1e-9)) & (radius > 0)
        if self.sector:
            angle = np.degrees(np.arccos(np.minimum(1, np.abs(along[axis]) / np.where(radius > 0, radius, 1))))
            inside &= (angle >= least) & (angle <= most)
        self._ring = np.where(inside, np.rint(radius / width), 0).astype(np.intp)
        weights = np.broadcast_to(weight, radius.shape) * inside
        rings = int(self._ring.max()) + 1
        self._weight = weights
        self._counts = np.bincount(self._ring.ravel(), weights.ravel(), rings).astype(np.float64)
        self._frequency = np.bincount(self._ring.ravel(), (weights * radius).ravel(), rings)
        self._sums = np.zeros((3, rings))
        self._window = np.ones(())
        for n in self.block:  # Hann, its zeros half a sample outside
            self._window = np.multiply.outer(self._window, np.square(np.sin(np.pi * (np.arange(n) + 0.5) / n)))

    def add(self, first: Array, second: Array) -> None:
        """Add two arrays of `shape`, any dtype.

        Raises:
            ValueError: a shape differs.
        """
        if first.shape != self.shape or second.shape != self.shape:
            raise ValueError(f"expected two arrays of shape {self.shape}, found {first.shape} and {second.shape}")
        if min(self.block) < 4:
            return
        places = [_starts(self.shape[a], n) for a, n in zip(self.axes, self.block, strict=True)]
        for corner in product(*places):
            at = dict(zip(self.axes, zip(corner, self.block, strict=True), strict=True))
            for lead in self._batches():
                region = tuple(lead.get(a) or slice(at[a][0], sum(at[a])) for a in range(len(self.shape)))
                self._add_blocks(*(self._blocks(x[region]) for x in (first, second)))

    def _batches(self) -> Iterator[dict[int, slice]]:
        """Regions of the axes that are summed over, few enough samples to be transformed at once."""
        others = [a for a in range(len(self.shape)) if a not in self.axes]
        size = math.prod(self.block)
        steps: list[list[slice]] = []
        for a in reversed(others):
            count = max(1, min(self.shape[a], BATCH // size))
            size *= count
            steps.insert(0, [slice(i, i + count) for i in range(0, self.shape[a], count)])
        for cut in product(*steps):
            yield dict(zip(others, cut, strict=True))

    def _blocks(self, part: Array) -> NDArray[np.float64]:
        """(blocks, *block) in float64."""
        moved = np.moveaxis(part, self.axes, range(-len(self.axes), 0))
        return np.asarray(moved, np.float64).reshape(-1, *self.block)

    def _add_blocks(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> None:
        along = tuple(range(1, first.ndim))
        free = np.isfinite(first).all(along) & np.isfinite(second).all(along)
        if not free.any():
            return
        spectra = []
        for x in (first[free], second[free]):
            tapered = (x - x.mean(along, keepdims=True)) * self._window
            spectra.append(scipy.fft.rfftn(tapered, axes=along))
        one, two = spectra
        self.added += len(one)
        products = ((one * two.conj() * self._turn).real, np.abs(one) ** 2, np.abs(two) ** 2)
        for total, part in zip(self._sums, products, strict=True):
            total += np.bincount(self._ring.ravel(), (self._weight * part.sum(0)).ravel(), total.size)

    def power(self) -> NDArray[np.float64]:
        """Power density of the first arrays in each ring of `curve`: values squared per (cycle per unit) ** axes.

        White noise of variance v has the density v times the product of the spacings, everywhere.
        """
        one = self._sums[1]
        use = (self._counts > 0) & (np.sqrt(one * self._sums[2]) > 0)
        scale = math.prod(self.spacing) / (np.square(self._window).sum() * max(1, self.added))
        return np.asarray(one[use] / self._counts[use] * scale, np.float64)

    def curve(self) -> RingCurve:
        """The correlation of all that was added; empty where no block was free of NaN and not constant."""
        cross, one, two = self._sums
        power = np.sqrt(one * two)
        use = (self._counts > 0) & (power > 0)
        frequency = self._frequency[use] / self._counts[use]
        return RingCurve(frequency, cross[use] / power[use], self._counts[use], self.unit, self.limit)


def frc_curve(
    first: Array,
    second: Array,
    *,
    axes: Sequence[int] | None = None,
    spacing_um: Sequence[float | None] | None = None,
) -> RingCurve:
    """Fourier ring correlation of two planes, or shell correlation of two stacks.

    Rings are cut by physical frequency, so that anisotropic spacing is no trouble. With NaN holes the block size is
    the largest for which hole-free blocks cover a quarter of the array.

    Args:
        first, second: same shape.
        axes: axes the frequency is measured along, such as (-2, -1) for a stack plane by plane; None: all.
        spacing_um: distance of samples for each of `axes`; None or an unknown entry: cycles per sample.

    Raises:
        ValueError: the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"expected arrays of one shape, found {first.shape} and {second.shape}")
    along = tuple(a % first.ndim for a in (range(first.ndim) if axes is None else axes))
    known = np.isfinite(first) & np.isfinite(second)
    block = None if known.all() else hole_free_block(known, along)
    rings = FourierRings(first.shape, axes=along, spacing_um=spacing_um, block=block)
    rings.add(first, second)
    return rings.curve()


def hole_free_block(known: NDArray[np.bool_], axes: Sequence[int]) -> tuple[int, ...]:
    """Size of a ring correlation's blocks for an array with holes, for each of `axes`."""
    sizes = [known.shape[a] for a in axes]
    best = tuple(min(n, 32) for n in sizes)
    for side in (512, 256, 128, 64):
        block = tuple(min(n, side) for n in sizes)
        window = [1] * known.ndim
        for a, n in zip(axes, block, strict=True):
            window[a] = n
        whole = [slice(None)] * known.ndim
        for a, n in zip(axes, block, strict=True):
            whole[a] = slice(n // 2, known.shape[a] - (n - 1) // 2, max(1, n // 4))
        free = ndimage.minimum_filter(known, window, mode="constant", cval=0)[tuple(whole)]
        if free.mean() >= 0.25:
            return block
    return best


def frc_resolution(curve: RingCurve, *, threshold: float = 1 / 7) -> Resolution:
    """The period (1 / frequency) at which a ring correlation first falls below `threshold` and stays there for three
    rings on average.

    Returns:
        the value in the curve's unit; nan with a reason where there is no crossing.
    """
    below = curve.correlation < threshold
    if not below.size:
        return Resolution(math.nan, curve.unit, "no block free of holes and not constant")
    for i in np.flatnonzero(below):
        ahead = slice(i, i + 3)
        if np.average(curve.correlation[ahead], weights=curve.counts[ahead]) >= threshold:
            continue
        if i == 0:
            return Resolution(math.nan, curve.unit, "below the threshold from the lowest frequency on")
        part = (curve.correlation[i - 1] - threshold) / (curve.correlation[i - 1] - curve.correlation[i])
        crossing = curve.frequency[i - 1] + part * (curve.frequency[i] - curve.frequency[i - 1])
        return Resolution(float(1 / crossing), curve.unit)
    return Resolution(
        math.nan, curve.unit, f"above the threshold up to the sampling limit ({1 / curve.limit:.4g} {curve.unit})"
    )


def frc_um(
    first: Array,
    second: Array,
    *,
    spacing_um: Sequence[float | None] | None,
    axes: Sequence[int] | None = None,
    threshold: float = 1 / 7,
) -> float:
    """Resolution by Fourier ring correlation in micrometers; nan without a crossing or where a spacing is unknown."""
    found = frc_resolution(frc_curve(first, second, axes=axes, spacing_um=spacing_um), threshold=threshold)
    return found.value if found.unit == "um" else math.nan


def _starts(size: int, block: int) -> list[int]:
    """First samples of half-overlapping blocks that cover an axis evenly."""
    count = 1 if size <= block else math.ceil((size - block) / (block / 2)) + 1
    return [int(s) for s in np.linspace(0, max(0, size - block), count).round()]
