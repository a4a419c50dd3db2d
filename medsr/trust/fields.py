"""Fields: the parts of a fine scan in which structures are planted, and ladders: the sizes that are planted there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsr.metrics import smoothed
from medsr.scan import Region, Scan
from medsr.trial import Survey, Trial
from medsr.trust.structures import Filter, Kind, bank

__all__ = ["Field", "Kinds", "Ladder", "fields_of", "foreground_of", "ladders_of"]

Kinds = Literal["auto", "speck", "punctum", "filament"]

SPECKS_UM = (100.0, 150.0, 200.0, 300.0, 400.0)
SPECKS = (2.0, 3.0, 4.0, 6.0, 8.0)
"""Diameters of specks at 50 um a sample, for scans that do not say their spacing."""
PUNCTA = (2.0, 3.0, 4.0, 6.0)
FILAMENTS = (2.0, 3.0, 4.0)
SIDE = 1024
"""Most fine samples along the side of a field."""
PLANES = 16
"""Most planes of a stack that fields are taken from."""


@dataclass(frozen=True, slots=True)
class Field:
    """A part of one plane of the fine scan.

    Attributes:
        index: of the plane, along all axes but the last two.
        rows, columns: fine samples, whole coarse ones.
    """

    index: tuple[int, ...]
    rows: slice
    columns: slice

    @property
    def region(self) -> Region:
        """In the fine scan."""
        return (*(slice(i, i + 1) for i in self.index), self.rows, self.columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Samples along y and x."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def coarse(self, factor: Sequence[int]) -> Region:
        """In the coarse scan."""
        full = (1,) * (len(self.region) - len(factor)) + tuple(factor)
        return tuple(slice(s.start // f, -(-s.stop // f)) for s, f in zip(self.region, full, strict=True))


@dataclass(frozen=True, slots=True)
class Ladder:
    """The sizes of one kind.

    Attributes:
        kind: of structure.
        sizes: in `unit`.
        unit: "um", or "sample".
        steps: distance of samples along y and x in that unit.
    """

    kind: Kind
    sizes: tuple[float, ...]
    unit: str
    steps: tuple[float, float]

    @property
    def filters(self) -> tuple[Filter, ...]:
        """The filters that measure these sizes."""
        return bank(self.kind, self.sizes, self.steps)


def ladders_of(scan: Scan, kind: Kinds = "auto") -> tuple[Ladder, ...]:
    """The sizes that are planted in a scan.

    Args:
        scan: the fine one.
        kind: "auto": specks for DICOM, puncta and filaments for all else. Specks are 100 to 400 um, and 2 to 8 samples
            where the spacing is unknown or does not suit (100 um below a sample, 400 um above 16). Puncta and filaments
            are 2 to 6 samples wide: near the limit of the sampling, whatever it is.
    """
    kinds: tuple[Kind, ...]
    if kind == "auto":
        kinds = ("speck",) if scan.reader.startswith("dicom") else ("punctum", "filament")
    else:
        kinds = (kind,)
    spacing = [scan.grid.spacing_of(axis) for axis in scan.grid.axes[-2:]]
    made = []
    for each in kinds:
        sizes = {"speck": SPECKS, "punctum": PUNCTA, "filament": FILAMENTS}[each]
        ladder = Ladder(each, sizes, "sample", (1.0, 1.0))
        known = [s for s in spacing if s is not None]
        if each == "speck" and len(known) == 2 and SPECKS_UM[0] >= max(known) and SPECKS_UM[-1] <= 16 * min(known):
            ladder = Ladder(each, SPECKS_UM, "um", (known[0], known[1]))
        made.append(ladder)
    return tuple(made)


def fields_of(trial: Trial, survey: Survey, *, count: int, seed: int) -> tuple[Field, ...]:
    """Up to `count` fields of at most 1024 x 1024 fine samples, drawn among those that are at least half foreground.

    They depend on the scan, the factor and the seed alone, never on a method. Where too few are half foreground, those
    with most of it are taken. Of a stack up to 16 planes are looked at: evenly spread ones, with that of most detail.
    """
    lead = trial.shape[:-2]
    total = math.prod(lead)
    few = min(PLANES, total, max(1, count))
    picks = (np.arange(few) + 0.5) * total // few
    if lead:
        best = np.ravel_multi_index(survey.plane, lead)
        picks[np.abs(picks - best).argmin()] = best
    found: list[tuple[float, Field]] = []
    for pick in picks.astype(int):
        index = tuple(int(i) for i in np.unravel_index(pick, lead)) if lead else ()
        plane = trial.scan.read((*(slice(i, i + 1) for i in index), *(slice(0, n) for n in trial.shape[-2:])))
        mask = foreground_of(trial.scan.intensity.to_unit(plane).reshape(trial.shape[-2:]), survey)
        for rows, columns in product(*(_cuts(n, f) for n, f in zip(mask.shape, trial.factor[-2:], strict=True))):
            found.append((float(mask[rows, columns].mean()), Field(index, rows, columns)))
    generator = np.random.default_rng([seed, 1])
    order = generator.permutation(len(found))
    good = [found[i][1] for i in order if found[i][0] >= 0.5]
    if len(good) < count:
        rest = sorted((found[i] for i in order if found[i][0] < 0.5), key=lambda each: -each[0])
        good += [field for share, field in rest if share > 0.02][: count - len(good)]
    return tuple(good[:count])


def foreground_of(unit: NDArray[Any], survey: Survey) -> NDArray[np.bool_]:
    """Where a plane (y, x) in unit intensity shows tissue or signal: nowhere in a plane that lies all below it."""
    return np.asarray((smoothed(unit, 2.0) > survey.threshold) & np.isfinite(unit))


def _cuts(size: int, factor: int) -> list[slice]:
    """Equal fields side by side along an axis, each of whole coarse samples."""
    coarse = size // factor
    count = math.ceil(coarse / max(1, SIDE // factor))
    edges = [coarse * i // count * factor for i in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]
