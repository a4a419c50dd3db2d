"""consistency_map: a result, degraded again, against the measured scan in units of the expected noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsr.consistency.assumed import (
    assumed_degradation,
    assumed_noise,
    degradation_words,
    factor_between,
    noise_variance,
)
from medsr.consistency.cells import cells_of, pooled, regions_of
from medsr.io.lazy import BlockArray
from medsr.scan import Factor, Intensity, Region, Scan

if TYPE_CHECKING:
    from medsr.consistency.noise_curve import NoiseCurve
    from medsr.degradation import Degradation, DegradationRange, PoissonGaussian, SecondOrder

__all__ = ["EXPECTED_BEYOND", "ConsistencyMap", "FlaggedRegion", "consistency_map"]

Array = NDArray[Any]

BEYOND = 3.0
"""Sigma from which a sample counts as a contradiction."""
EXPECTED_BEYOND = math.erfc(BEYOND / math.sqrt(2))
"""Share of normal noise beyond it: 0.27 %."""
LEAST = 4
"""Samples of a flagged region that touch: by chance fewer than 1 in 10 ** 9 samples begins one (19 shapes of four)."""
SHARE = 0.1
"""Share of the samples of a cell beyond the limit that flags it, where a cell holds many."""
WINDOW = 16
"""Coarse samples along y and x of the windows among which the worst is found."""
WORK = 1 << 22
"""Fine samples degraded at a time."""
LISTED = 50
"""Regions that are kept, those with the largest peak first."""
DOUBTED_RMS, DOUBTED_SHARE = 1.2, 0.01
"""Figures from which a reader is warned: rms of z, and share of samples beyond 3 sigma."""

Box = tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True, slots=True)
class FlaggedRegion:
    """A part of the coarse scan.

    Attributes:
        start, stop: first coarse sample, and the one behind the last, for each axis of the scan.
        box_um: its edges (least, greatest) along each axis in micrometers; None for an axis without spacing.
        samples: coarse samples beyond 3 sigma in it.
        z: the deviation of largest magnitude in it, in sigma, with its sign; of the worst window: its rms.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    box_um: Box
    samples: int
    z: float

    def __str__(self) -> str:
        return f"{_place(self)}: {self.z:+.1f} sigma, {self.samples} samples"


@dataclass(frozen=True, slots=True)
class ConsistencyMap:
    """How far a result contradicts the scan it was made of.

    Attributes:
        z: (A estimate - low) / sigma on the coarse grid as a lazy scan of float32; NaN where a hole takes part.
        rms: root of the mean square of z; 1 for the true scene, below 1 for a result that follows the scan's noise.
        mean: of z: an offset of the whole scan.
        beyond: share of samples beyond 3 sigma; `EXPECTED_BEYOND` for normal noise.
        samples: coarse samples that were compared.
        regions: connected parts of at least four samples beyond 3 sigma, largest peak first, at most 50.
        found: how many there are.
        worst: the window of 16 x 16 coarse samples with the greatest rms z; None where nothing was compared.
        noise: what was taken for the noise, in words.
        degradation: what was taken for the degradation, in words.
    """

    z: Scan
    rms: float
    mean: float
    beyond: float
    samples: int
    regions: tuple[FlaggedRegion, ...]
    found: int
    worst: FlaggedRegion | None
    noise: str
    degradation: str

    def doubts(self) -> tuple[str, ...]:
        """What of it asks for a look, in sentences; none if all is well."""
        if not self.samples:
            return ()
        found = []
        if self.found:
            many = self.found > 1
            found.append(
                f"{self.found} region{'s' if many else ''} of the estimate contradict{'' if many else 's'} the "
                "measured scan beyond 3 sigma"
            )
        if self.rms > DOUBTED_RMS or self.beyond > DOUBTED_SHARE:
            found.append(
                f"the estimate does not reproduce the measured scan: rms {self.rms:.2f} sigma, "
                f"{100 * self.beyond:.2g} % beyond 3 sigma; the degradation or the noise may be another one"
            )
        return tuple(found)

    def describe(self) -> str:
        """One line for a history."""
        if not self.samples:
            return "consistency with the measured scan: nothing to compare (all holes)"
        flagged = "no region" if not self.found else f"{self.found} region{'s' if self.found > 1 else ''}"
        beyond = "under 0.01 %" if 0 < self.beyond < 1e-4 else f"{100 * self.beyond:.2f} %"
        worst = f", worst window rms {self.worst.z:.2f} at {_place(self.worst)}" if self.worst else ""
        return (
            f"consistency with the measured scan: rms {self.rms:.3f} sigma, {beyond} beyond 3 sigma "
            f"({100 * EXPECTED_BEYOND:.2f} % expected), {flagged} flagged{worst}; {self.degradation}; {self.noise}"
        )


def consistency_map(
    low: Scan,
    estimate: Scan,
    *,
    degradation: Degradation | SecondOrder | DegradationRange | None = None,
    noise: PoissonGaussian | NoiseCurve | float | None = None,
    work: int | None = None,
) -> ConsistencyMap:
    """Degrade an estimate again and compare it with the measured scan, sample by sample.

    For each coarse sample

        z = (A x - y) / sigma(A x),   sigma**2 = noise variance at A x, plus a gray level**2 / 12 for the rounding of y,

    x being the estimate, y the scan, A the mean of the degradation. If x is the true scene and A and the noise are
    right, z is normal with variance 1: its rms is 1 and 0.27 % lie beyond 3. A method that was made from y follows its
    noise, so its rms is below 1, and exactly 0 with a hard consistency. Only what is beyond contradicts the scan.
    What A does not see (the invented detail above the coarse sampling limit) never shows in z.

    Computed block by block in bounded memory: about 4 million fine samples at a time; `z` computes what is asked for.

    Args:
        low: the measured scan.
        estimate: of the same field, finer by whole numbers; each is read through its own intensity line.
        degradation: how the scan became coarse; a range stands for its middle, with the estimate's spacing; None: the
            mean over each coarse sample, without blur.
        noise: its model in unit intensity: `PoissonGaussian`, a `NoiseCurve`, or one standard deviation. None: that of
            a given `Degradation` that has one; else estimated from the scan itself by `estimate_noise`, for the middle
            of a range of noise is not the noise of this scan.
        work: fine samples degraded at a time; None: about 4 million, some 200 MB.

    Raises:
        ValueError: shapes that are no whole multiples, or a degradation of another factor.

    References:
        A. Foi, M. Trimeche, V. Katkovnik, K. Egiazarian: Practical Poissonian-Gaussian noise modeling and fitting for
        single-image raw-data, 2008, equation 3, doi:10.1109/TIP.2008.2001399 (variance as a line of the signal).
    """
    factor = factor_between(low, estimate)
    known = assumed_degradation(degradation, factor, estimate)
    model, words = assumed_noise(noise, degradation, known, low)
    block = _block(low.shape, known.factor, WORK if work is None else work)
    load = _Compared(low, estimate, known, model, block)
    itemsize = np.dtype(np.float32).itemsize
    data = BlockArray(low.shape, np.dtype(np.float32), block=block, load=load, keep=math.prod(block) * itemsize)
    scan = Scan(data, low.grid, Intensity(-BEYOND, BEYOND, np.dtype(np.float32), units="sigma"))
    sums = _Sums(scan, block)
    return sums.result(scan, noise=words, degradation=degradation_words(known, given=degradation is not None))


def _block(shape: tuple[int, ...], factor: Factor, work: int) -> tuple[int, ...]:
    """Coarse samples compared at a time; whole windows along y and x."""
    lead = len(shape) - len(factor)
    block = [1] * lead + list(shape[lead:])
    grown = math.prod(factor)
    least = [WINDOW if i >= len(block) - 2 else 1 for i in range(len(block))]
    while math.prod(block) * grown > work:
        long = [a for a in range(lead, len(block)) if block[a] > least[a]]
        if not long:
            break
        axis = max(long, key=lambda a: block[a])
        block[axis] = -(-block[axis] // (2 * least[axis])) * least[axis]
    return tuple(block)


class _Compared:
    """Decodes a block of z."""

    def __init__(
        self, low: Scan, estimate: Scan, degradation: Degradation | SecondOrder, noise: Any, block: Sequence[int]
    ) -> None:
        self.low, self.estimate, self.degradation = low, estimate, degradation
        self.noise, self.block = noise, tuple(block)

    def __call__(self, index: tuple[int, ...]) -> Array:
        spans = zip(index, self.block, self.low.shape, strict=True)
        return self.at(tuple(slice(i * b, min(n, (i + 1) * b)) for i, b, n in spans))

    def at(self, region: Region) -> Array:
        """z of a region of the coarse scan, float32; its surroundings are read as far as the degradation reaches."""
        lead = len(region) - len(self.degradation.factor)
        factor, halo = ((*[fill] * lead, *own) for fill, own in ((1, self.degradation.factor), (0, self.halo)))
        outer = tuple(
            slice(max(0, r.start - h), min(n, r.stop + h)) for r, h, n in zip(region, halo, self.low.shape, strict=True)
        )
        inner = tuple(slice(r.start - o.start, r.stop - o.start) for r, o in zip(region, outer, strict=True))
        fine = tuple(slice(o.start * f, o.stop * f) for o, f in zip(outer, factor, strict=True))
        mean = self._degraded(self.estimate.read(fine), factor, halo)[inner]
        stored = self.low.read(region)
        unit = self.low.intensity.to_unit(stored).astype(np.float64)
        unit[self.low.intensity.holes(stored)] = np.nan
        spread = np.sqrt(noise_variance(self.noise, np.where(np.isfinite(mean), mean, 0.0), self.low.intensity))
        return np.asarray((mean - unit) / spread, np.float32)

    @property
    def halo(self) -> tuple[int, ...]:
        return tuple(self.degradation.halo)

    def _degraded(self, stored: Array, factor: Factor, halo: Sequence[int]) -> NDArray[np.float64]:
        """A of fine stored values; NaN where a hole is within reach."""
        import torch

        intensity = self.estimate.intensity
        holes = intensity.holes(stored) if intensity.may_have_holes else np.zeros((), bool)
        unit = intensity.to_unit(stored).astype(np.float64)
        if holes.all() and holes.shape:
            return np.full([n // f for n, f in zip(stored.shape, factor, strict=True)], np.nan)
        if holes.any():
            nearest = ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
            unit = unit[tuple(nearest)]
        with torch.inference_mode():
            low = self.degradation.mean(torch.from_numpy(unit)).numpy()
        if holes.any():
            for axis, f in enumerate(factor):
                holes = np.logical_or.reduceat(holes, range(0, holes.shape[axis], f), axis)
            reached = ndimage.maximum_filter(holes, [2 * h + 1 for h in halo], mode="constant", cval=0)
            low = np.where(reached, np.nan, low)
        return np.asarray(low)


class _Sums:
    """One pass over z: moments, windows, and the cells in which regions are found."""

    def __init__(self, scan: Scan, block: Sequence[int]) -> None:
        self.shape = scan.shape
        self.window = tuple(WINDOW if i >= len(self.shape) - 2 else 1 for i in range(len(self.shape)))
        windows = [-(-n // w) for n, w in zip(self.shape, self.window, strict=True)]
        self.squares, self.count = np.zeros(windows), np.zeros(windows)
        self.total, self.flagged = 0.0, 0
        self.cell = cells_of(self.shape)
        cells = [-(-n // c) for n, c in zip(self.shape, self.cell, strict=True)]
        self.hits, self.peak = np.zeros(cells, np.int32), np.zeros(cells, np.float32)
        for region in regions_of(self.shape, block):
            self._add(region, scan.read(region))

    def _add(self, region: Region, z: Array) -> None:
        known = np.isfinite(z)
        values = np.where(known, z, 0.0).astype(np.float64)
        self.total += float(values.sum())
        at = tuple(slice(r.start // w, -(-r.stop // w)) for r, w in zip(region, self.window, strict=True))
        self.squares[at] += pooled(values**2, self.window)
        self.count[at] += pooled(known.astype(np.float64), self.window)
        beyond = np.nonzero(np.abs(values) > BEYOND)
        self.flagged += beyond[0].size
        places = tuple((b + r.start) // c for b, r, c in zip(beyond, region, self.cell, strict=True))
        found = values[beyond].astype(np.float32)
        np.add.at(self.hits, places, 1)
        order = np.argsort(np.abs(found), kind="stable")  # of equal places the last one written stays
        inside = tuple(p[order] for p in places)
        larger = np.abs(found[order]) > np.abs(self.peak[inside])
        self.peak[tuple(p[larger] for p in inside)] = found[order][larger]

    def result(self, scan: Scan, *, noise: str, degradation: str) -> ConsistencyMap:
        samples = int(self.count.sum())
        regions = self.regions_of(scan)
        mean, rms, beyond = math.nan, math.nan, math.nan
        if samples:
            mean, rms, beyond = (
                self.total / samples,
                math.sqrt(self.squares.sum() / samples),
                self.flagged / samples,
            )
        return ConsistencyMap(
            scan,
            rms=rms,
            mean=mean,
            beyond=beyond,
            samples=samples,
            regions=tuple(regions[:LISTED]),
            found=len(regions),
            worst=self._worst(scan) if samples else None,
            noise=noise,
            degradation=degradation,
        )

    def regions_of(self, scan: Scan) -> list[FlaggedRegion]:
        """Connected cells, face to face, within each time and channel."""
        full = math.prod(self.cell)
        marked = self.hits >= (1 if full == 1 else max(LEAST, math.ceil(SHARE * full)))
        spatial = sum(a in "zyx" for a in scan.grid.axes)
        lead = len(self.shape) - spatial
        found = []
        for index in np.ndindex(marked.shape[:lead]):
            labels, _ = ndimage.label(marked[index])
            sizes = np.bincount(labels.ravel(), self.hits[index].ravel())
            for number, box in enumerate(ndimage.find_objects(labels), start=1):
                if box is None or sizes[number] < LEAST:
                    continue
                inside = np.where(labels[box] == number, self.peak[index][box], 0.0)
                peak = float(inside.flat[int(np.abs(inside).argmax())])
                cells = (*(slice(i, i + 1) for i in index), *box)
                found.append(self._region(scan, cells, self.cell, samples=int(sizes[number]), z=peak))
        return sorted(found, key=lambda r: (-abs(r.z), r.start))

    def _worst(self, scan: Scan) -> FlaggedRegion:
        """A window that holds at least a quarter of its samples, unless none does."""
        enough = self.count >= min(math.prod(self.window) / 4, float(self.count.max()))
        rms = np.sqrt(np.where(enough, self.squares / np.maximum(self.count, 1), 0.0))
        at = np.unravel_index(int(rms.argmax()), rms.shape)
        cells = tuple(slice(int(i), int(i) + 1) for i in at)
        place = self._region(scan, cells, self.window, samples=0, z=float(rms[at]))
        beyond = int((np.abs(scan.read(tuple(map(slice, place.start, place.stop)))) > BEYOND).sum())
        return FlaggedRegion(place.start, place.stop, place.box_um, beyond, place.z)

    def _region(self, scan: Scan, cells: Region, size: Sequence[int], *, samples: int, z: float) -> FlaggedRegion:
        start = tuple(c.start * s for c, s in zip(cells, size, strict=True))
        stop = tuple(min(n, c.stop * s) for c, s, n in zip(cells, size, self.shape, strict=True))
        grid = scan.grid
        spacing = grid.spacing_um or (None,) * len(grid.axes)
        box = tuple(
            None if s is None else (o + (a - 0.5) * s, o + (b - 0.5) * s)
            for o, s, a, b in zip(grid.origin_um, spacing, start, stop, strict=True)
        )
        return FlaggedRegion(start, stop, box, samples, z)


def _place(region: FlaggedRegion) -> str:
    """Its box in micrometers where they are known, else in coarse samples; slowest axis first."""
    parts = [
        f"{a}..{b - 1}" if um is None else f"{um[0]:.5g}..{um[1]:.5g} um"
        for a, b, um in zip(region.start, region.stop, region.box_um, strict=True)
    ]
    return f"({', '.join(parts)})"
