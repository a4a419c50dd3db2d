"""Planting: small structures put into a fine scan, and real ones taken out of it, before it is made coarse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsr.scan import Intensity, Region, Scan
from medsr.trial import Survey, Trial
from medsr.trust.fields import Field, Ladder, foreground_of
from medsr.trust.filling import filled
from medsr.trust.structures import (
    Filter,
    Kind,
    Responses,
    Structure,
    amplitude,
    local_deviation,
    neighborhood,
    rendered,
)

__all__ = ["CONTRASTS", "SEEN", "Planted", "altered_scan", "deviation_of", "plant"]

Array = NDArray[Any]
Floats = NDArray[np.float64]
Box = tuple[slice, slice]

CONTRASTS: Mapping[Kind, tuple[float, ...]] = {
    "speck": (3.0, 5.0, 8.0, 12.0, 20.0),
    "punctum": (3.0, 5.0, 8.0, 12.0),
    "filament": (3.0, 5.0, 8.0, 12.0),
}
"""Contrasts that are planted, in standard deviations of the matched amplitude over the surroundings of the place."""
SEEN = 4.0
"""Standard deviations of the surroundings from which on a structure counts as seen."""
PROMINENT = 5.0
"""The same from which on a real structure is taken out: well seen."""
LEFT = 2.0
"""What may be left at its place, else the filling is given up."""
MARGIN = 40
"""Samples at the border of a field where nothing is planted or judged: filters and methods see past it."""
GAP = 3
"""Samples between the neighborhoods of two structures."""
BLOCK = 96
"""Samples of a side of the blocks over which the deviation of the surroundings is taken."""
TRIES = 1000
"""Places that are tried for the structures of one size."""


@dataclass(frozen=True, slots=True)
class Planted:
    """A field, and what was done to it.

    Attributes:
        field: where.
        planted, removed: positions in samples of the field.
        plain, altered: the field in unit intensity, before and after, (y, x); rounded as the file stores it.
        stored: `altered` in the stored type of the trial's scan.
        known: True where samples are judged: foreground, away from holes and from the border of the field.
        rounding: standard deviation of the rounding to stored values, in unit intensity.
    """

    field: Field
    planted: tuple[Structure, ...]
    removed: tuple[Structure, ...]
    plain: NDArray[np.float32]
    altered: NDArray[np.float32]
    stored: Array
    known: NDArray[np.bool_]
    rounding: float


def plant(
    trial: Trial,
    field: Field,
    survey: Survey,
    ladders: Sequence[Ladder],
    *,
    planted: int,
    removed: int,
    seed: int,
    line: Intensity | None = None,
) -> Planted:
    """Plant structures in a field, and take real ones out of it.

    Places are drawn from `seed` among samples of the foreground where the truth shows nothing of its own above 4
    standard deviations, with neighborhoods that do not overlap; each size and contrast comes as often as the others. A
    structure is brighter than what is around it in unit intensity, where bright is what the file shows bright:
    attenuating in a radiograph (also in one of MONOCHROME1, whose line falls), emitting in fluorescence. Where a
    structure would leave the range that the file can store, or meet its padding, another place is taken, and fewer are
    planted in the end.

    Args:
        trial: the fine scan with its degradation.
        field: of it.
        survey: what is foreground.
        ladders: kinds and sizes.
        planted, removed: how many, at most.
        seed: of places, directions and noise.
        line: intensity line of the scan as its file stores it, for its limits and its rounding: a trial makes floats of
            a scan with padding. None: that of the trial's scan.
    """
    line = line or trial.scan.intensity
    stored = trial.scan.read(field.region).reshape(field.shape)
    plain = trial.scan.intensity.to_unit(stored)
    known = _judged(plain, survey)
    filters = [f for ladder in ladders for f in ladder.filters]
    responses = Responses(plain, max(f.reach for f in filters))
    least = _rounding(line)
    busy = np.zeros(field.shape, np.float32)
    sigmas: dict[Filter, NDArray[np.float32]] = {}
    best = np.full(field.shape, -1, np.int16)
    peak = np.zeros(field.shape, np.float32)
    for number, each in enumerate(filters):
        response = responses.by(each)
        sigma = deviation_of(response, known, each, least=least)
        sigmas[each] = sigma
        ratio = response / sigma
        np.maximum(busy, np.abs(ratio), out=busy)
        if each.kind != "filament":
            best[ratio > peak] = number
            np.maximum(peak, ratio, out=peak)
    work = _Work(plain.astype(np.float64), known, busy, line, np.random.default_rng([seed, 2]))
    gone = _remove(work, filters, sigmas, best, peak, ladders, removed)
    there = _plant(work, sigmas, ladders, planted)
    values = stored.copy()
    values[work.touched] = line.to_stored(work.values[work.touched])
    altered = trial.scan.intensity.to_unit(values)
    return Planted(field, tuple(there), tuple(gone), plain, altered, values, known, least)


def altered_scan(scan: Scan, done: Sequence[Planted]) -> Scan:
    """The fine scan with the altered fields in their places; read from the original elsewhere."""
    return replace(scan, data=_Altered(scan, done))


def deviation_of(response: Array, known: NDArray[np.bool_], each: Filter, *, least: float) -> NDArray[np.float32]:
    """Standard deviation of a filter's response about each sample; at least that of rounding noise."""
    floor = least * math.sqrt(float(np.square(each.weights).sum()))
    return local_deviation(response, known, block=max(BLOCK, 8 * each.reach), least=floor)


class _Altered:
    """Samples of a scan with some fields replaced."""

    def __init__(self, scan: Scan, done: Sequence[Planted]) -> None:
        self._scan, self._done = scan, tuple(done)
        self.shape = scan.shape
        self.dtype = scan.intensity.dtype

    def __getitem__(self, region: Region) -> Array:
        box = [range(*s.indices(n)) for s, n in zip(region, self.shape, strict=True)]
        values = self._scan.read(tuple(slice(b.start, b.stop) for b in box)).copy()
        for each in self._done:
            cuts = [_common(b, s) for b, s in zip(box, each.field.region, strict=True)]
            if all(len(c) for c in cuts):
                target = tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(cuts, box, strict=True))
                corner = each.field.rows.start, each.field.columns.start
                rows, columns = (slice(c.start - o, c.stop - o) for c, o in zip(cuts[-2:], corner, strict=True))
                values[target] = each.stored[rows, columns]
        return values


def _common(first: range, second: slice) -> range:
    return range(max(first.start, second.start), min(first.stop, second.stop))


class _Work:
    """A field while it is changed."""

    def __init__(
        self,
        values: Floats,
        known: NDArray[np.bool_],
        busy: NDArray[np.float32],
        line: Intensity,
        generator: np.random.Generator,
    ) -> None:
        self.values, self.known, self.busy, self.generator = values, known, busy, generator
        self.taken = np.zeros(values.shape, bool)
        self.touched = np.zeros(values.shape, bool)
        self.line = line
        self.least, self.most = _limits(line)

    def free(self, box: Box, around: NDArray[np.bool_], *, quiet: bool) -> bool:
        """Whether a neighborhood lies inside, on known samples, apart from all others and, if asked, quiet."""
        if any(s.start < 0 or s.stop > n for s, n in zip(box, self.values.shape, strict=True)):
            return False
        if self.taken[box][around].any() or not self.known[box][around].all():
            return False
        return not quiet or bool((self.busy[box][around] < SEEN).all())

    def take(self, box: Box, around: NDArray[np.bool_]) -> None:
        """Mark a neighborhood, and a little about it, as used."""
        wide = tuple(slice(max(0, s.start - GAP), s.stop + GAP) for s in box)
        mark = np.zeros(self.taken[wide].shape, bool)
        mark[tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, wide, strict=True))] = around
        self.taken[wide] |= ndimage.binary_dilation(mark, iterations=GAP)

    def put(self, box: Box, values: Floats) -> bool:
        """Write new values where they can be stored; False: they cannot."""
        changed = (values != self.values[box]) & np.isfinite(self.values[box])
        new = values[changed]
        if not new.size or not np.isfinite(new).all() or new.min() < self.least or new.max() > self.most:
            return False
        if self.line.holes(self.line.to_stored(new)).any():
            return False
        self.values[box] = values
        self.touched[box] |= changed
        return True


def _remove(
    work: _Work,
    filters: Sequence[Filter],
    sigmas: Mapping[Filter, NDArray[np.float32]],
    best: NDArray[np.int16],
    peak: NDArray[np.float32],
    ladders: Sequence[Ladder],
    count: int,
) -> list[Structure]:
    """Take out prominent compact structures, drawn among all there are; a filament has no end to be cut out at."""
    tops = (peak == ndimage.maximum_filter(peak, 7)) & (peak > PROMINENT) & work.known
    rows, columns = np.nonzero(tops)
    gone: list[Structure] = []
    quiet = work.known & (work.busy < SEEN)
    for pick in work.generator.permutation(len(rows)):
        if len(gone) >= count:
            break
        row, column = int(rows[pick]), int(columns[pick])
        each = filters[best[row, column]]
        ladder = next(a for a in ladders if a.kind == each.kind and each.size in a.sizes)
        sigma = float(sigmas[each][row, column])
        there = Structure(each.kind, (float(row), float(column)), each.size, ladder.unit, 0.0, sigma)
        there = replace(there, contrast=amplitude(work.values, there, ladder.steps))
        box, around = neighborhood(there, ladder.steps)
        radius = (0.5 if each.kind == "speck" else 1.0) * each.size / min(ladder.steps) + 1.5
        if not math.isfinite(there.contrast) or not work.free(box, around, quiet=False):
            continue
        filling = filled(work.values, quiet, (row, column), radius=radius, generator=work.generator)
        if filling is None or work.taken[filling[0]].any():
            continue
        before = work.values[filling[0]].copy()
        work.values[filling[0]] = filling[1]
        left = amplitude(work.values, there, ladder.steps)
        work.values[filling[0]] = before
        if abs(left) <= LEFT * sigma and work.put(*filling):
            work.take(box, around)
            work.take(filling[0], np.ones(filling[1].shape, bool))
            gone.append(there)
    return gone


def _plant(
    work: _Work, sigmas: Mapping[Filter, NDArray[np.float32]], ladders: Sequence[Ladder], count: int
) -> list[Structure]:
    """Put structures of every size and contrast at places drawn by chance."""
    forms = [(ladder, size, cnr) for ladder in ladders for size in ladder.sizes for cnr in CONTRASTS[ladder.kind]]
    # Chance says which forms come once more than others.
    counts = {forms[k]: len(range(i, count, len(forms))) for i, k in enumerate(work.generator.permutation(len(forms)))}
    there: list[Structure] = []
    # The largest first, for small ones find room between them.
    for ladder, size in sorted({form[:2]: None for form in forms}, key=lambda form: -_extent(*form)):
        room = ndimage.distance_transform_edt(work.known & (work.busy < SEEN) & ~work.taken)
        rows, columns = np.nonzero(room > size / max(ladder.steps))
        wanted = [cnr for cnr in CONTRASTS[ladder.kind] for _ in range(counts[ladder, size, cnr])]
        work.generator.shuffle(wanted)
        for pick in work.generator.permutation(len(rows))[:TRIES]:
            if not wanted:
                break
            row, column = int(rows[pick]), int(columns[pick])
            if work.taken[row, column]:
                continue
            cnr = wanted[-1]
            angle = float(work.generator.uniform(0, 180)) if ladder.kind == "filament" else 0.0
            shift = work.generator.uniform(-0.5, 0.5, 2)
            sigma = float(sigmas[_nearest(sigmas, ladder.kind, size, angle)][row, column])
            place = float(row + shift[0]), float(column + shift[1])
            each = Structure(ladder.kind, place, size, ladder.unit, cnr * sigma, sigma, angle)
            box, around = neighborhood(each, ladder.steps)
            if not work.free(box, around, quiet=True):
                continue
            if work.put(box, work.values[box] + each.contrast * rendered(each, ladder.steps)[1]):
                work.take(box, around)
                there.append(each)
                wanted.pop()
    return there


def _extent(ladder: Ladder, size: float) -> float:
    return size / min(ladder.steps) * (4 if ladder.kind == "filament" else 1)


def _nearest(filters: Mapping[Filter, Any], kind: Kind, size: float, angle: float) -> Filter:
    """The filter of this size whose direction is nearest."""
    same = [f for f in filters if f.kind == kind and f.size == size]
    return min(same, key=lambda f: abs((f.angle - angle + 90) % 180 - 90))


def _rounding(intensity: Intensity) -> float:
    """Standard deviation of the rounding to stored values, in unit intensity; a trifle for floats."""
    step = 1.0 if intensity.dtype.kind in "iu" else 1e-6 * abs(intensity.white - intensity.black)
    return step / abs(intensity.white - intensity.black) / math.sqrt(12)


def _limits(intensity: Intensity) -> tuple[float, float]:
    """Least and most unit intensity that can be stored."""
    if intensity.dtype.kind == "f":
        return -math.inf, math.inf
    bits = 8 * intensity.dtype.itemsize if intensity.bits is None else intensity.bits
    first = -(2 ** (bits - 1)) if intensity.dtype.kind == "i" else 0
    span = intensity.white - intensity.black
    ends = [(end - intensity.black) / span for end in (first, first + 2**bits - 1)]
    return min(ends), max(ends)


def _judged(plain: NDArray[np.float32], survey: Survey) -> NDArray[np.bool_]:
    holes = ~np.isfinite(plain)
    inner = np.zeros(plain.shape, bool)
    margin = [min(MARGIN, n // 6) for n in plain.shape]
    inner[tuple(slice(m, n - m) for m, n in zip(margin, plain.shape, strict=True))] = True
    if holes.any():
        inner &= ~ndimage.binary_dilation(holes, iterations=MARGIN // 2)
    return inner & foreground_of(plain, survey)
