"""suspicions: maps that need no truth and say where a result may have been invented; parent_of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsr.checkpoint import TrainedUpscaler, load_checkpoint, load_upscaler
from medsr.consistency.assumed import (
    assumed_degradation,
    assumed_noise,
    degradation_words,
    factor_between,
    noise_variance,
)
from medsr.consistency.noise_curve import NoiseCurve, rounding_sd
from medsr.holes import refined
from medsr.io.lazy import BlockArray
from medsr.methods.interpolation import Cubic
from medsr.plan import Device, Plan, plan
from medsr.scan import Factor, Intensity, Region, Scan
from medsr.trust.distances import Bound, LearnedWidths
from medsr.trust.nullspace import Band, NullSpace
from medsr.upscaler import checkpoints_of, describe
from medsr.upscaling import upscaled_blocks

if TYPE_CHECKING:
    from medsr.degradation import Degradation, DegradationRange, PoissonGaussian, SecondOrder
    from medsr.trust.intervals import Intervals
    from medsr.upscaler import Upscaler

__all__ = ["Suspicion", "find_parent", "parent_of", "suspicions"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
At = Callable[[Region], Floats]

WORK = 1 << 20
"""Fine samples computed at a time."""
SIGMA = "sigma of the coarse noise"
PIXEL = "pixel.ckpt"
"""What a training leaves of its pixel phase."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A map that needs no truth: larger is more likely invented.

    Attributes:
        name: what it measures.
        scan: the map on the grid of the result, float32, computed where it is asked for; `intensity.units` names its
            unit; NaN where the scan or the result has a hole.
        note: what it says and does not say.
    """

    name: str
    scan: Scan
    note: str


def suspicions(
    low: Scan,
    estimate: Scan,
    *,
    degradation: Degradation | SecondOrder | DegradationRange | None = None,
    noise: PoissonGaussian | NoiseCurve | None = None,
    parent: Upscaler | None = None,
    intervals: Intervals | LearnedWidths | None = None,
    device: Device = "auto",
) -> tuple[Suspicion, ...]:
    """Maps of where a result may have been invented, from the scan, the result and networks alone.

    In this order, as far as there is what they need: the departure from the parent, the interval, the null-space energy
    of each band (finest first, see `NullSpace`), the departure from cubic. None of them sees the truth: they say where
    a method decided by itself, not whether it decided wrongly. Which one finds inventions is a question to an audit.

    Maps in sigma are divided by the standard deviation of the coarse scan's noise at the level measured there: the one
    given, that of a given `Degradation` with noise, else estimated from the scan (`estimate_noise`).

    Each map is computed block by block (about a million fine samples) when it is read, with the halo that makes blocks
    equal the whole; making them costs the estimate of the noise alone.

    Args:
        low: the measured scan.
        estimate: of the same field, finer by whole numbers.
        degradation: how the scan became coarse; a range stands for its middle; None: the mean over each coarse sample.
        noise: of the coarse scan, in unit intensity, where it is known better than from this scan alone.
        parent: the pixel-trained upscaler from which an adversarial one went on (`parent_of`); None: no such map.
        intervals: calibrated ones, or widths as they were learned, without a promise. Those of the parent: how far the
            result lies from their middle, in half widths, so that above 1 it lies outside. Of any other upscaler they
            are taken for the result's own: their half width.
        device: where parent and intervals run.

    Raises:
        ValueError: shapes that are no whole multiples, or a degradation or an upscaler of another factor.
    """
    factor = factor_between(low, estimate)
    known = assumed_degradation(degradation, factor, estimate)
    model, said_of_noise = assumed_noise(noise, degradation, known, low)
    here = _Pair(low, estimate, factor, model)
    made = []
    if parent is not None:
        made.append(
            here.map("departure from the parent", here.departure(parent, device=device), SIGMA, _parent_note(parent))
        )
    if intervals is not None:
        made.append(_interval(here, intervals, parent, device=device))
    space = NullSpace(known)
    energies = here.blocks(_Energies(here, space), bands=len(space.bands))
    said = f"{degradation_words(known, given=degradation is not None)}; {said_of_noise}"
    for index, band in enumerate(space.bands):
        data = _Sheet(energies, index)
        made.append(here.shown(f"null-space energy, {band}", data, SIGMA, _band_note(band, low, said)))
    cubic = Cubic(known.factor)
    note = (
        "How far the result lies from cubic interpolation of the measured scan. Every method that sharpens departs "
        "from it at every edge, rightly or wrongly."
    )
    made.append(here.map("departure from cubic", here.departure(cubic, device="cpu"), SIGMA, note))
    return tuple(made)


def parent_of(run: Path | str) -> TrainedUpscaler | None:
    """The pixel-trained upscaler that a run's adversarial phase started from; None where there is none.

    See `find_parent` for the reason.

    Raises:
        CheckpointError: the run has no usable checkpoint.
    """
    return find_parent(run)[0]


def find_parent(run: Path | str) -> tuple[TrainedUpscaler | None, str]:
    """The parent of a run, or why there is none.

    Args:
        run: a run folder, or a checkpoint file in one.

    Returns:
        The upscaler of `pixel.ckpt` beside the checkpoint, if the checkpoint says it went on from these very weights;
        and a reason, empty where there is one.

    Raises:
        CheckpointError: the run, or its `pixel.ckpt`, is no usable checkpoint.
    """
    run = Path(run)
    upscaler = load_upscaler(run)
    path = (run if run.is_dir() else run.parent) / PIXEL
    if not upscaler.card.parents:
        return None, f"{upscaler.path.name} went on from no other weights: it was trained in one phase"
    if not path.is_file():
        return None, f"{upscaler.path.name} went on from other weights, but {PIXEL} is not beside it; give its run"
    parent = load_upscaler(path)
    if load_checkpoint(path).sha256 not in upscaler.card.parents:
        return None, f"{upscaler.path.name} went on from other weights than those of the {PIXEL} beside it"
    return parent, ""


def _parent_note(parent: Upscaler) -> str:
    return (
        f"How far the result lies from that of the network it went on from, which was trained on pixels alone "
        f"({describe(parent)}). It shows what the adversarial training added; what both invented does not show."
    )


def _band_note(band: Band, low: Scan, said: str) -> str:
    spacing = {s for s in (low.grid.spacing_of(a) for a in ("y", "x")) if s is not None}
    lengths = ""
    if len(spacing) == 1:
        (step,) = spacing
        ends = f"{band.shortest * step:.3g}"
        lengths = f" ({ends} um and more)" if math.isinf(band.longest) else f" ({ends} to {band.longest * step:.3g} um)"
    return (
        f"Local root mean square of the part of the result that no measurement speaks for or against, {band}{lengths}; "
        f"{said}. True detail finer than the measurement counts as much as invented detail."
    )


def _interval(
    here: _Pair, intervals: Intervals | LearnedWidths, parent: Upscaler | None, *, device: Device
) -> Suspicion:
    if isinstance(intervals, LearnedWidths):
        bounds, made_by = (Bound(intervals, "lower"), Bound(intervals, "upper")), intervals.inner
    else:
        bounds, made_by = (intervals.lower, intervals.upper), intervals.upscaler
    ends = [_Made(here.low, end, here.factor, device=device) for end in bounds]
    line = here.low.intensity
    least = math.sqrt(3) * rounding_sd(line)  # half a gray level: an interval is never narrower than its rounding
    promise = bounds[0].promise
    weights = checkpoints_of(made_by)
    of_parent = parent is not None and bool(weights) and weights == checkpoints_of(parent)

    def half_width(region: Region) -> tuple[Floats, Floats]:
        lower, upper = (end.at(region) for end in ends)
        return (lower + upper) / 2, np.maximum(np.abs(upper - lower) / 2, least)

    def departed(region: Region) -> Floats:
        middle, half = half_width(region)
        return np.abs(here.unit(region) - middle) / half

    def relative(region: Region) -> Floats:
        return half_width(region)[1] / here.sigma(region)

    if of_parent:
        note = (
            f"How far the result lies from the middle of the interval of the network it went on from ({promise}); "
            "above 1 it lies outside. What the parent did not know either is inside."
        )
        return here.map("departure from the parent's interval", departed, "half widths", note)
    note = (
        f"Half the width of the interval ({promise}). It says how far off the result may be, not that it is; a "
        "structure that was invented within it does not show."
    )
    return here.map("half width of the interval", relative, SIGMA, note)


class _Pair:
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
        other = _Made(self.low, upscaler, self.factor, device=device)
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

    def map(self, name: str, at: At, units: str, note: str) -> Suspicion:
        """A map computed from regions of the coarse scan."""
        return self.shown(name, self.blocks(at), units, note)

    def shown(self, name: str, data: Any, units: str, note: str) -> Suspicion:
        """A map of values that are there."""
        line = Intensity(0.0, 1.0, np.dtype(np.float32), units=units)
        return Suspicion(name, Scan(data, self.estimate.grid, line), note)


class _Energies:
    """Energies of the bands in a region of the coarse scan, in sigma."""

    def __init__(self, here: _Pair, space: NullSpace) -> None:
        self.here, self.space = here, space
        self.halo = (*[0] * (len(here.factor) - len(space.factor)), *space.halo)

    def __call__(self, region: Region) -> Floats:
        outer = self._around(region, 1)
        unit = self.here.unit(outer)
        if np.isnan(unit).all():
            inner = tuple((r.stop - r.start) * f for r, f in zip(region, self.here.factor, strict=True))
            return np.full((len(self.space.bands), *inner), np.nan)
        if np.isnan(unit).any():
            outer = self._around(region, 3)  # so that the sample a hole is filled with is the same for every block
            unit = self.here.unit(outer)
        holes = np.isnan(unit)
        if holes.any():
            unit = _filled(unit, holes, dims=len(self.space.factor))
        energies = self.space.energies(unit)
        energies[:, holes] = np.nan
        inside = tuple(slice(r.start - o.start, r.stop - o.start) for r, o in zip(region, outer, strict=True))
        return np.asarray(energies[(slice(None), *self.here.fine(inside))] / self.here.sigma(region))

    def _around(self, region: Region, times: int) -> Region:
        spans = zip(region, self.halo, self.here.low.shape, strict=True)
        return tuple(slice(max(0, r.start - times * h), min(n, r.stop + times * h)) for r, h, n in spans)


class _Made:
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
        line = self.low.intensity
        stored = np.empty([t.stop - t.start for t in target], line.dtype)
        blocks = upscaled_blocks(self.low, self.upscaler, chosen=self._plan, device=self.device, target=target)
        for place, values in blocks:
            stored[tuple(slice(p.start - t.start, p.stop - t.start) for p, t in zip(place, target, strict=True))] = (
                values
            )
        return _in_unit(line, stored)


class _Sheet:
    """One entry of a lazy array's first axis."""

    def __init__(self, whole: BlockArray, index: int) -> None:
        self.whole, self.index = whole, index
        self.shape, self.dtype = whole.shape[1:], whole.dtype

    def __getitem__(self, region: Any, /) -> NDArray[Any]:
        rest = region if isinstance(region, tuple) else (region,)
        return self.whole[(self.index, *rest)]


def _unit(scan: Scan, region: Region) -> Floats:
    return _in_unit(scan.intensity, scan.read(region))


def _in_unit(line: Intensity, stored: NDArray[Any]) -> Floats:
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
