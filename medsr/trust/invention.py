"""suspicions: maps that need no truth and say where a result may have been invented; parent_of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsr.checkpoint import TrainedUpscaler, load_checkpoint, load_upscaler
from medsr.consistency.assumed import (
    assumed_degradation,
    assumed_noise,
    degradation_words,
    factor_between,
)
from medsr.consistency.noise_curve import NoiseCurve, rounding_sd
from medsr.methods.interpolation import Cubic
from medsr.plan import Device
from medsr.scan import Factor, Region, Scan
from medsr.trust.distances import Bound, LearnedWidths
from medsr.trust.nullspace import Band, NullSpace
from medsr.trust.pair import Around, Made, Pair, Share, Sheet
from medsr.upscaler import checkpoints_of, describe

if TYPE_CHECKING:
    from medsr.degradation import Degradation, DegradationRange, PoissonGaussian, SecondOrder
    from medsr.trust.intervals import Intervals
    from medsr.upscaler import Upscaler

__all__ = ["Suspicion", "find_parent", "parent_of", "suspicions"]

Floats = NDArray[np.float64]

SHARE = "share of the local detail"
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

    In this order, as far as there is what they need: the departure from the parent, the interval, the share of local
    detail that the parent has not, the share that no measurement speaks for, the null-space energy of each band
    (finest first, see `NullSpace`), the departure from cubic. None of them sees the truth: they say where a method
    decided by itself, not whether it decided wrongly. Which one finds inventions is a question to an audit.

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
    here = Pair(low, estimate, factor, model)
    made = []
    if parent is not None:
        made.append(
            Suspicion(
                "departure from the parent",
                here.map(here.departure(parent, device=device), SIGMA),
                _parent_note(parent),
            )
        )
    if intervals is not None:
        made.append(_interval(here, intervals, parent, device=device))
    space = NullSpace(known)
    if parent is not None:
        made.append(_share_beside(here, parent, space.factor, device=device))
    made.append(_share_unseen(here, space))
    energies = here.blocks(_energies(here, space), bands=len(space.bands))
    said = f"{degradation_words(known, given=degradation is not None)}; {said_of_noise}"
    for index, band in enumerate(space.bands):
        data = Sheet(energies, index)
        made.append(Suspicion(f"null-space energy, {band}", here.shown(data, SIGMA), _band_note(band, low, said)))
    cubic = Cubic(known.factor)
    note = (
        "How far the result lies from cubic interpolation of the measured scan. Every method that sharpens departs "
        "from it at every edge, rightly or wrongly."
    )
    made.append(Suspicion("departure from cubic", here.map(here.departure(cubic, device="cpu"), SIGMA), note))
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
    here: Pair, intervals: Intervals | LearnedWidths, parent: Upscaler | None, *, device: Device
) -> Suspicion:
    if isinstance(intervals, LearnedWidths):
        bounds, made_by = (Bound(intervals, "lower"), Bound(intervals, "upper")), intervals.inner
    else:
        bounds, made_by = (intervals.lower, intervals.upper), intervals.upscaler
    ends = [Made(here.low, end, here.factor, device=device) for end in bounds]
    line = here.low.intensity
    least = math.sqrt(3) * rounding_sd(line)  # half a gray level: an interval is never narrower than its rounding
    promise, promised = bounds[0].promise, not isinstance(intervals, LearnedWidths)
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
        name = "departure from the parent's interval" if promised else "departure from the parent's learned widths"
        return Suspicion(name, here.map(departed, "half widths"), note)
    note = (
        f"Half the width of the interval ({promise}). It says how far off the result may be, not that it is; a "
        "structure that was invented within it does not show."
    )
    name = "half width of the interval" if promised else "half of the learned width"
    return Suspicion(name, here.map(relative, SIGMA), note)


def _energies(here: Pair, space: NullSpace) -> Around:
    """Energies of the bands, in sigma."""

    def made(unit: Floats, region: Region) -> Floats:
        return np.asarray(space.energies(unit) / here.sigma(region))

    return Around(here, space.halo, made)


def _share_beside(here: Pair, parent: Upscaler, factor: Factor, *, device: Device) -> Suspicion:
    other = Made(here.low, parent, here.factor, device=device)

    def departed(unit: Floats, region: Region) -> Floats:
        apart = unit - other.at(region)
        return np.where(np.isfinite(apart), apart, 0.0)  # holes are left out in the end

    share = Share(here, factor, departed)
    note = (
        "Local root mean square of the departure from the parent over that of all detail there: 0 is detail that the "
        "parent has too, 1 detail it has nothing of. Strong and faint structures are judged alike."
    )
    return Suspicion("detail beside the parent", here.map(Around(here, share.halo, share), SHARE), note)


def _share_unseen(here: Pair, space: NullSpace) -> Suspicion:
    share = Share(here, space.factor, lambda unit, _region: space.part(unit))
    halo = tuple(map(sum, zip(share.halo, space.halo, strict=True)))
    note = (
        "Local root mean square of the part of the result that no measurement speaks for or against, over that of all "
        "detail there. True detail finer than the measurement counts as much as invented detail."
    )
    return Suspicion("unseen detail", here.map(Around(here, halo, share), SHARE), note)
