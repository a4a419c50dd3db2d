"""Curve: the share of a scan's samples outside their intervals as the intervals are scaled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsr.degradation import Degradation, DegradationRange
from medsr.engines import REFERENCE, Engine, build_engine
from medsr.holes import refined
from medsr.metrics import foreground_mask
from medsr.plan import Device, Plan, plan, torch_device
from medsr.scan import Region, Scan
from medsr.tiles import Tile, region_shape
from medsr.trial import Index, Survey, Trial, survey_of
from medsr.trust.distances import Bound, Distances
from medsr.upscaling import read_tiles

__all__ = ["HALF_WIDTHS", "INTENSITIES", "SCALINGS", "SPANS", "Curve", "Over", "curve_of", "needed_scaling", "shares"]

Array = NDArray[Any]
Over = Literal["whole", "foreground"]

PER_OCTAVE = 64
"""Scalings between one and its double: steps of 1.1 %."""
SCALINGS: NDArray[np.float64] = 2.0 ** (np.arange(-8 * PER_OCTAVE, 12 * PER_OCTAVE + 1) / PER_OCTAVE)
"""Scalings that are tried, fixed before any scan is seen."""
HALF_WIDTHS: NDArray[np.float64] = 2.0 ** (np.arange(-20 * PER_OCTAVE, 3 * PER_OCTAVE + 1) / PER_OCTAVE)
"""Half widths of constant intervals that are tried, in unit intensity."""
INTENSITIES: NDArray[np.float64] = np.arange(1, 10) / 10
"""Edges of the strata of intensity: tenths of the way from black to white; the first and last are open."""
SPANS: NDArray[np.float64] = 2.0 ** np.arange(-14.0, 1.0)
"""Edges of the strata of width before scaling, in unit intensity; the first and last are open."""


@dataclass(frozen=True, slots=True)
class Curve:
    """How many samples of a scan lie inside their intervals at each scaling.

    Attributes:
        samples: (2, scalings + 1) counts, all and foreground: entry j holds those that scaling j is the first to cover;
            the last, those that none covers.
        constants: the same for intervals of the half widths `HALF_WIDTHS`.
        by_intensity, by_width: (strata, scalings + 1), all samples.
        widths: (2,) sums of the widths before scaling.
    """

    samples: NDArray[np.int64]
    constants: NDArray[np.int64]
    by_intensity: NDArray[np.int64]
    by_width: NDArray[np.int64]
    widths: NDArray[np.float64]

    def counts(self, over: Over) -> int:
        """How many samples were measured."""
        return int(self.samples[_row(over)].sum())

    def risk(self, over: Over) -> NDArray[np.float64]:
        """Share outside at each of `SCALINGS`."""
        return shares(self.samples[_row(over)])

    def constant(self, over: Over) -> NDArray[np.float64]:
        """Share outside constant intervals of each of `HALF_WIDTHS`."""
        return shares(self.constants[_row(over)])

    def width(self, over: Over) -> float:
        """Mean width before scaling, in unit intensity."""
        return float(self.widths[_row(over)] / max(1, self.counts(over)))


def shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share that is not yet covered, from counts of what each entry is the first to cover; the last is dropped."""
    return np.asarray(1 - np.cumsum(counts, -1)[..., :-1] / np.maximum(1, counts.sum(-1, keepdims=True)))


def needed_scaling(truth: Array, estimate: Array, down: Array, up: Array, *, slack: float = 0.0) -> Array:
    """For each sample the scaling above which its interval holds the truth; any shape.

    Args:
        truth, estimate: in one unit.
        down, up: distances, above 0.
        slack: half a gray level, by which rounding to stored integers moves an end at most.
    """
    below = (estimate - truth - slack) / down
    above = (truth - estimate - slack) / up
    return np.asarray(np.maximum(below, above))


def curve_of(
    method: Distances,
    scan: Scan,
    *,
    degradation: Degradation | DegradationRange | None = None,
    memory: int | None = None,
    device: Device = "auto",
) -> Curve:
    """Make a scan coarse, upscale it, and count for each scaling the samples inside.

    The ends count as they are written: rounded to the stored type.

    Args:
        method: not adapted yet.
        scan: a fine scan.
        degradation: as in `evaluate`.
        memory, device: as in `plan`.

    Raises:
        ScanError: a scan without finite values, or one that cannot be read.
    """
    trial = Trial(scan, method.factor, degradation)
    survey = survey_of(trial)
    measuring = _Measuring(trial, survey, method.adapt(trial.low), memory=memory, device=device)
    total: Curve | None = None
    for index in trial.frames():
        frame = measuring.frame(index)
        total = frame if total is None else _sum(total, frame)
    if total is None:
        raise ValueError("curve_of: expected a scan of at least one frame, found none")
    return total


class _Measuring:
    """One scan being measured, frame by frame."""

    def __init__(self, trial: Trial, survey: Survey, method: Distances, *, memory: int | None, device: Device) -> None:
        self.trial, self.survey = trial, survey
        self.device = torch_device(device)
        bound = Bound(method, "upper")
        self.plan: Plan = plan(trial.low, bound, memory=memory, device=device)
        self.method = method
        if self.device.type == "cuda":
            bound.to(self.device)
        self.engines = [build_engine(part, REFERENCE, device=self.device) for part in method.parts]
        line = trial.scan.intensity
        self.slack = 0.5 / abs(line.white - line.black) if line.dtype.kind in "iu" else 0.0

    def frame(self, index: Index) -> Curve:
        """What one frame adds."""
        trial = self.trial
        target = trial.region(index, trial.shape)
        truth = trial.scan.intensity.to_unit(trial.fine(index)).astype(np.float64)
        found = np.full((3, *truth.shape), np.nan)
        for region, values in self._tiles(target):
            found[(slice(None), *region[trial.lead :])] = values.reshape(
                3, *(s.stop - s.start for s in region[trial.lead :])
            )
        estimate, down, up = found
        known = np.isfinite(truth) & np.isfinite(estimate)
        if known.any():
            front = foreground_mask(truth.astype(np.float32), threshold=self.survey.threshold) & known
        else:
            front = known
        return _counted(truth[known], estimate[known], down[known], up[known], front[known], self.slack)

    def _tiles(self, target: Region) -> Iterator[tuple[Region, NDArray[np.float32]]]:
        """Estimate and distances (3, *region) of each tile; NaN where the coarse scan has a hole."""
        dims = len(self.method.factor)
        for tile in self.plan.tiles(self.trial.low, target):
            loaded = read_tiles(self.trial.low, [tile], dims=dims)
            origin = tuple(s.start for s in tile.read)
            runs = [partial(_run, engine, origin, self.device) for engine in self.engines]
            with torch.inference_mode():
                three = torch.cat(self.method.distances(loaded.low.to(self.device), runs)).cpu()
            keep: tuple[slice, ...] = (slice(None), slice(0, 1), *tile.keep[-dims:])
            values = three.numpy()[keep].reshape(3, *region_shape(tile.target))
            yield tile.target, _without_holes(values, loaded.holes[0], tile, self.plan.factor)


def _run(engine: Engine, origin: tuple[int, ...], device: torch.device, low: Tensor) -> Tensor:
    return engine(low.cpu(), None, [origin]).to(device)


def _without_holes(
    values: NDArray[np.float32], holes: NDArray[np.bool_] | None, tile: Tile, factor: tuple[int, ...]
) -> NDArray[np.float32]:
    return values if holes is None else np.where(refined(holes, factor)[tile.keep], np.float32(np.nan), values)


def _counted(truth: Array, estimate: Array, down: Array, up: Array, front: NDArray[np.bool_], slack: float) -> Curve:
    """Counts over flat samples."""
    # A sample on the very edge, where rounding decides, is taken as outside: `side="right"`.
    first = np.searchsorted(SCALINGS, needed_scaling(truth, estimate, down, up, slack=slack), side="right")
    flat = np.searchsorted(HALF_WIDTHS, np.abs(truth - estimate) - slack, side="right")
    level = np.searchsorted(INTENSITIES, estimate, side="right")
    span = np.searchsorted(SPANS, down + up, side="right")
    return Curve(
        np.stack([_count(first, len(SCALINGS)), _count(first[front], len(SCALINGS))]),
        np.stack([_count(flat, len(HALF_WIDTHS)), _count(flat[front], len(HALF_WIDTHS))]),
        _joint(level, first, len(INTENSITIES) + 1),
        _joint(span, first, len(SPANS) + 1),
        np.array([(down + up).sum(), (down + up)[front].sum()]),
    )


def _count(first: Array, steps: int) -> NDArray[np.int64]:
    return np.bincount(first, minlength=steps + 1).astype(np.int64)


def _joint(stratum: Array, first: Array, strata: int) -> NDArray[np.int64]:
    wide = len(SCALINGS) + 1
    return np.bincount(stratum * wide + first, minlength=strata * wide).astype(np.int64).reshape(strata, wide)


def _sum(a: Curve, b: Curve) -> Curve:
    return Curve(
        a.samples + b.samples,
        a.constants + b.constants,
        a.by_intensity + b.by_intensity,
        a.by_width + b.by_width,
        a.widths + b.widths,
    )


def _row(over: Over) -> int:
    return 0 if over == "whole" else 1
