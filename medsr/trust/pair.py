"""Pair: a scan and its result, read in unit intensity, and maps of both that are computed block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsr.consistency.assumed import noise_variance
from medsr.consistency.noise_curve import NoiseCurve
from medsr.holes import refined
from medsr.io.lazy import BlockArray
from medsr.plan import Device, Plan, plan
from medsr.scan import Factor, Intensity, Region, Scan
from medsr.upscaler import describe
from medsr.upscaling import upscaled_region

if TYPE_CHECKING:
    from medsr.degradation import PoissonGaussian
    from medsr.upscaler import Upscaler

__all__ = ["Around", "At", "Made", "Pair", "Share", "Sheet", "in_unit"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
At = Callable[[Region], Floats]
"""Values in a region of the coarse scan, on the fine grid."""

WORK = 1 << 20
"""Fine samples computed at a time."""


class Pair:
    """A scan and its result, read in unit intensity; maps of both."""

    def __init__(self, low: Scan, estimate: Scan, factor: Factor, model: PoissonGaussian | NoiseCurve) -> None:
        self.low, self.estimate, self.factor, self.model = low, estimate, factor, model
        self.block = _block(low.shape, factor)

    def fine(self, region: Region) -> Region:
        """A region of the coarse scan in fine samples."""
        return tuple(slice(r.start * f, r.stop * f) for r, f in zip(region, self.factor, strict=True))

    def unit(self, region: Region) -> Floats:
        """The result in a region of the coarse scan; holes NaN."""
        return _unit(self.estimate, self.fine(region))

    def sigma(self, region: Region) -> Floats:
        """Standard deviation of the noise on the fine grid; NaN in holes of the scan."""
        level = _unit(self.low, region)
        known = np.isfinite(level)
        spread = np.sqrt(noise_variance(self.model, np.where(known, level, 0.0), self.low.intensity))
        return np.asarray(refined(np.where(known, spread, np.nan), self.factor))

    def departure(self, upscaler: Upscaler, *, device: Device) -> At:
        """How far the result lies from that of an upscaler, in sigma."""
        other = Made(self.low, upscaler, self.factor, device=device)
        return lambda region: np.abs(self.unit(region) - other.at(region)) / self.sigma(region)

    def blocks(self, at: At, *, bands: int = 0) -> BlockArray:
        """A lazy array on the grid of the result; with `bands` along a first axis."""
        fine = tuple(b * f for b, f in zip(self.block, self.factor, strict=True))
        lead = (bands,) if bands else ()

        def load(index: tuple[int, ...]) -> NDArray[Any]:
            spans = zip(index[len(lead) :], self.block, self.low.shape, strict=True)
            region = tuple(slice(i * b, min(n, (i + 1) * b)) for i, b, n in spans)
            return np.asarray(at(region), np.float32)

        itemsize = np.dtype(np.float32).itemsize
        return BlockArray(
            (*lead, *self.estimate.shape),
            np.dtype(np.float32),
            block=(*lead, *fine),
            load=load,
            keep=math.prod((*lead, *fine)) * itemsize,
        )

    def map(self, at: At, units: str) -> Scan:
        """A map computed from regions of the coarse scan."""
        return self.shown(self.blocks(at), units)

    def shown(self, data: Any, units: str) -> Scan:
        """A map of values that are there."""
        line = Intensity(0.0, 1.0, np.dtype(np.float32), units=units)
        return Scan(data, self.estimate.grid, line)


class Around:
    """What needs the surroundings of a region: the result with holes filled, read with a halo.

    Args:
        here: scan and result.
        halo: coarse samples along the axes of the degradation's factor.
        made: from the filled result, (..., y, x) in unit intensity, and its region of the coarse scan to values of the
            result's shape, with or without a first axis of their own.
    """

    def __init__(self, here: Pair, halo: tuple[int, ...], made: Callable[[Floats, Region], Floats]) -> None:
        self.here, self.made, self.dims = here, made, len(halo)
        self.halo = (*[0] * (len(here.factor) - len(halo)), *halo)

    def __call__(self, region: Region) -> Floats:
        """Values in a region; holes NaN."""
        outer = self._outer(region, 1)
        unit = self.here.unit(outer)
        if np.isnan(unit).any() and not np.isnan(unit).all():
            outer = self._outer(region, 3)  # so that the sample a hole is filled with is the same for every block
            unit = self.here.unit(outer)
        holes = np.isnan(unit)
        if holes.any():
            unit = _filled(unit, holes, dims=self.dims)
        values = self.made(unit, outer)
        values[(..., holes)] = np.nan
        inside = tuple(slice(r.start - o.start, r.stop - o.start) for r, o in zip(region, outer, strict=True))
        where: Any = (..., *self.here.fine(inside))
        return np.asarray(values[where])

    def _outer(self, region: Region, times: int) -> Region:
        spans = zip(region, self.halo, self.here.low.shape, strict=True)
        return tuple(slice(max(0, r.start - times * h), min(n, r.stop + times * h)) for r, h, n in spans)


class Share:
    """The share of the local detail of a result that a part of it makes up.

    Local root mean square of the part over that of all detail, the deviation of the result in a box one longest period
    of the finest band wide, with the noise of the scan in quadrature: where there is no detail there is no share.
    """

    def __init__(self, here: Pair, factor: Factor, part: Callable[[Floats, Region], Floats]) -> None:
        self.here, self.part = here, part
        self.widths = tuple(2 * f + 1 if f > 1 else 1 for f in factor)
        # Twice the box: of the deviations from a mean the mean is taken.
        self.halo = tuple(-(-2 * (w // 2) // f) for w, f in zip(self.widths, factor, strict=True))

    def __call__(self, unit: Floats, region: Region) -> Floats:
        """The share at each sample of a region whose result is `unit`."""
        sigma = self.here.sigma(region)
        around = np.square(unit - self._mean(unit))
        detail = self._mean(around) + np.square(np.where(np.isfinite(sigma), sigma, 0.0))
        part = self._mean(np.square(self.part(unit, region)))
        return np.sqrt(part / np.maximum(detail, np.finfo(np.float64).tiny))

    def _mean(self, values: Floats) -> Floats:
        for axis, width in enumerate(self.widths):
            if width > 1:
                # Not uniform_filter1d: its running sum depends on where it begins, and squares come out below 0.
                weights = np.full(width, 1 / width)
                values = ndimage.correlate1d(values, weights, axis - len(self.widths), mode="nearest")
        return values


class Made:
    """What an upscaler makes of a region of the scan, rounded as a result is; in unit intensity, holes NaN."""

    def __init__(self, low: Scan, upscaler: Upscaler, factor: Factor, *, device: Device) -> None:
        own = low.grid.pad_factor(tuple(upscaler.factor))
        if own != factor:
            raise ValueError(
                f"{describe(upscaler)}: expected the factor {factor} between scan and result, found {own}; give the "
                "parent and the intervals of the method that made the result"
            )
        self.low, self.upscaler, self.factor, self.device = low, upscaler.adapt(low), factor, device
        self._plan: Plan | None = None

    def at(self, region: Region) -> Floats:
        """A region of the coarse scan on the fine grid."""
        if self._plan is None:
            self._plan = plan(self.low, self.upscaler, device=self.device)
        target = tuple(slice(r.start * f, r.stop * f) for r, f in zip(region, self.factor, strict=True))
        stored = upscaled_region(self.low, self.upscaler, target, chosen=self._plan, device=self.device)
        return in_unit(self.low.intensity, stored)


class Sheet:
    """One entry of a lazy array's first axis."""

    def __init__(self, whole: BlockArray, index: int) -> None:
        self.whole, self.index = whole, index
        self.shape, self.dtype = whole.shape[1:], whole.dtype

    def __getitem__(self, region: Any, /) -> NDArray[Any]:
        rest = region if isinstance(region, tuple) else (region,)
        return self.whole[(self.index, *rest)]


def _unit(scan: Scan, region: Region) -> Floats:
    return in_unit(scan.intensity, scan.read(region))


def in_unit(line: Intensity, stored: NDArray[Any]) -> Floats:
    """Stored values (any shape) in unit intensity, float64, holes NaN."""
    unit = line.to_unit(stored).astype(np.float64)
    if line.may_have_holes:
        unit[line.holes(stored)] = np.nan
    return unit


def _filled(unit: Floats, holes: Bools, *, dims: int) -> Floats:
    """Each hole with the nearest sample of its own plane or stack; one of holes alone with 0."""
    filled = np.where(holes, 0.0, unit)
    lead = unit.shape[: unit.ndim - dims]
    for index in np.ndindex(lead):
        own = holes[index]
        if own.any() and not own.all():
            nearest = ndimage.distance_transform_edt(own, return_distances=False, return_indices=True)
            filled[index] = unit[index][tuple(nearest)]
    return filled


def _block(shape: Sequence[int], factor: Factor) -> tuple[int, ...]:
    """Coarse samples computed at a time: planes of their own, volumes where depth is refined."""
    first = min((i for i, f in enumerate(factor) if f > 1), default=len(factor) - 1)
    lead = min(first, max(0, len(shape) - 2))
    block = [1] * lead + list(shape[lead:])
    while math.prod(block) * math.prod(factor) > WORK and max(block) > 1:
        axis = max(range(len(block)), key=lambda a: block[a])
        block[axis] = -(-block[axis] // 2)
    return tuple(block)
