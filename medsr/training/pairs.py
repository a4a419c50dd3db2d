"""Real registered pairs: which can be learned from, and the one line of gray values that ties their sides together."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.io import Source
from medsr.pairing import Pair, gray_line, gray_points, with_line
from medsr.recipe import Recipe
from medsr.registration import Registration, register
from medsr.scan import ScanError
from medsr.training.data import Portion, Shelf
from medsr.training.errors import TrainingError

__all__ = ["Match", "figures_of", "match_pair", "rows_of", "tied"]

log = logging.getLogger("medsr.training")

MOST_CHANGE = 0.1
"""Share of black to white by which the gray values of low and high may differ without being matched: what a network
that keeps flat fields cannot learn, it would blur about."""


@dataclass(frozen=True, slots=True)
class Match:
    """A pair that can be learned from.

    Attributes:
        portion: what both show of the fine scan, and inside it of the coarse one.
        registration: how they lie on each other.
        points: stored values of both at the same places, from `gray_points`.
    """

    portion: Portion
    registration: Registration
    points: NDArray[np.float64]


def match_pair(pair: Pair, recipe: Recipe, shelf: Shelf) -> Match:
    """Register the two scans of a pair.

    Raises:
        ScanError: a scan cannot be read, or they are no pair; see `register`.
    """
    factor, name = recipe.method.factor, str(pair.high.path)
    low, high = shelf.open(Portion(pair.low)), shelf.open(Portion(pair.high))
    found = register(low, high, factor, rule=recipe.data.registration, name=name)
    full = high.grid.pad_factor(factor)
    coarse = tuple((a, a + n) for a, n in zip(found.low_start, found.shape, strict=True))
    fine = tuple((a, a + n * f) for a, n, f in zip(found.high_start, found.shape, full, strict=True))
    shift = found.residual if found.resample else ()
    portion = Portion(pair.high, crop=fine, low=Portion(pair.low, crop=coarse, shift=shift))
    try:
        parts = shelf.open(portion.low or portion), shelf.open(portion)
    except ScanError as error:
        raise ScanError(f"{name}: {error}") from error
    return Match(portion, found, gray_points(*parts, factor))


def tied(
    portions: Sequence[Portion],
    matches: Mapping[Source, Match],
    *,
    learned: Collection[Source],
    recipe: Recipe,
    shelf: Shelf,
) -> tuple[list[Portion], tuple[float, float]]:
    """The portions with both sides of each pair on one line, and gain and offset of that line.

    Unit intensity is that of the coarse scan, which is what a network is given when it is used. Without
    `data.match_intensity` the fine scan's stored values are compared with it as they are; with it through one line for
    the whole run, fitted on the pairs that are learned from, never one for each pair: that would hide what differs.

    Raises:
        TrainingError: the values differ by more than `MOST_CHANGE` and are not to be matched, or no line fits them.
    """
    try:
        gain, offset = gray_line([matches[source].points for source in matches if source in learned])
    except ScanError as error:
        raise TrainingError(f"data.pairs: {error}") from error
    if not recipe.data.match_intensity:
        _check_values(portions, gain, offset, shelf)
        gain, offset = 1.0, 0.0
    done = []
    for portion in portions:
        if portion.low is not None:
            line = with_line(shelf.open(portion.low).intensity, shelf.open(portion).intensity, gain, offset)
            portion = replace(portion, line=(line.black, line.white))
        done.append(portion)
    return done, (gain, offset)


def figures_of(matches: Sequence[Match], line: tuple[float, float]) -> dict[str, float]:
    """What a training card says of its pairs; no names."""
    found = [match.registration for match in matches]
    return {
        "count": float(len(found)),
        "largest_shift": max(float(np.abs(r.shift).max()) for r in found),
        "largest_residual": max(float(np.abs(r.residual).max()) for r in found),
        "least_correlation": min(r.correlation for r in found),
        "resampled": float(sum(r.resample for r in found)),
        "gain": line[0],
        "offset": line[1],
    }


def rows_of(matches: Sequence[Match]) -> dict[str, list[Any]]:
    """The same for each pair, for the log of a run; no names."""
    found = [match.registration for match in matches]
    return {
        "shift": [[round(s, 3) for s in r.shift] for r in found],
        "residual": [[round(s, 3) for s in r.residual] for r in found],
        "correlation": [round(r.correlation, 4) for r in found],
        "quarters": [r.quarters for r in found],
        "resampled": [r.resample for r in found],
    }


def _check_values(portions: Sequence[Portion], gain: float, offset: float, shelf: Shelf) -> None:
    """Refuse gray values that differ between the two sides."""
    for portion in portions:
        line = shelf.open(portion.low or portion).intensity
        ends = [abs(gain * value + offset - value) for value in (line.black, line.white)]
        if max(ends) > MOST_CHANGE * abs(line.white - line.black):
            raise TrainingError(
                f"data.pairs: expected equal gray values in low and high, found high = {gain:.4g} * low {offset:+.4g} "
                "(stored values, all pairs); set data.match_intensity: true, and results will be in the values of low"
            )
