"""Where a scan has tissue or signal: places for patches, probed once for each scan."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsr.metrics import foreground_threshold
from medsr.scan import Region, Scan, ScanError, sample_values

__all__ = ["ForegroundMap", "patch_region"]

MAX_PLACES = 4096
"""Places probed in a scan; a quarter of them in a large one."""

LARGE = 2**26
"""Samples above which a scan is probed more sparsely. A matter of its shape alone, never of the memory or the processes
of a machine, so that a recipe draws the same patches everywhere."""

MAX_LEADING = 32
"""Planes (or time points, channels) probed of a scan with more axes than a patch."""

PROBE = 32
"""Samples of each axis looked at to probe a place: spread over the patch; of a large scan those in its middle."""


class ForegroundMap:
    """Places for patches on a coarse lattice over a scan, each with its share of foreground.

    Foreground is what lies above `foreground_threshold` of a sample of the scan, in unit intensity, so that the bright
    background of MONOCHROME1 counts as background. The lattice costs at most a few thousand small reads, whatever the
    size of the scan.

    Args:
        scan: what patches are drawn from; may be larger than memory.
        patch: samples of a patch for the scan's last axes.

    Raises:
        ScanError: the scan is smaller than the patch along an axis, or holds no finite value.
    """

    def __init__(self, scan: Scan, patch: tuple[int, ...]) -> None:
        lead = len(scan.shape) - len(patch)
        if lead < 0 or any(n < p for n, p in zip(scan.shape[lead:], patch, strict=False)):
            raise ScanError(f"expected a scan of at least {patch} samples along its last axes, found {scan.shape}")
        self.threshold = _threshold(scan)
        self._room = scan.shape[:lead] + tuple(n - p + 1 for n, p in zip(scan.shape[lead:], patch, strict=True))
        self._size = (1,) * lead + tuple(patch)
        self._large = math.prod(scan.shape) > LARGE
        self._lattice = _lattice(self._room, lead, patch, budget=MAX_PLACES // 4 if self._large else MAX_PLACES)
        places = [self._place(index) for index in np.ndindex(*self._lattice)]
        probed = np.array([self._probe(scan, place, patch, lead) for place in places])
        self.share: NDArray[np.float64] = probed[:, 0].reshape(self._lattice)
        self._whole = probed[:, 1] == 1.0

    def draw(self, random: np.random.RandomState, foreground: float) -> tuple[int, ...]:
        """First sample of a patch with at least `foreground` of its samples above the threshold, for each axis.

        Where hardly any place has that much, the tenth of all places that has most is drawn from. Places with holes
        (NaN, padding) are avoided while others are left.
        """
        choice = self._allowed(foreground)
        index = np.unravel_index(choice[random.randint(len(choice))], self._lattice)
        first = []
        for i, count, room in zip(index, self._lattice, self._room, strict=True):
            low, high = int(i) * room // count, (int(i) + 1) * room // count
            first.append(low + int(random.randint(max(1, high - low))))
        return tuple(first)

    def places(self, count: int) -> list[tuple[int, ...]]:
        """First samples of up to `count` patches that do not overlap, those with most foreground first."""
        share = self.share.ravel() + self._whole
        chosen: list[tuple[int, ...]] = []
        for flat in np.argsort(-share, kind="stable"):
            place = self._place(np.unravel_index(flat, self._lattice))
            if all(self._apart(place, other) for other in chosen):
                chosen.append(place)
            if len(chosen) == count:
                break
        return chosen

    def _apart(self, one: tuple[int, ...], other: tuple[int, ...]) -> bool:
        return any(abs(a - b) >= size for a, b, size in zip(one, other, self._size, strict=True))

    def _allowed(self, foreground: float) -> NDArray[np.intp]:
        share = np.where(self._whole, self.share.ravel(), -1.0) if self._whole.any() else self.share.ravel()
        enough = np.flatnonzero(share >= foreground)
        few = max(1, share.size // 20)
        return enough if enough.size >= few else np.sort(np.argsort(-share, kind="stable")[: 2 * few])

    def _place(self, index: Sequence[int | np.intp]) -> tuple[int, ...]:
        """First sample of the patch in the middle of a lattice cell."""
        cells = zip(index, self._lattice, self._room, strict=True)
        return tuple((2 * int(i) + 1) * room // (2 * count) for i, count, room in cells)

    def _probe(self, scan: Scan, place: tuple[int, ...], patch: tuple[int, ...], lead: int) -> tuple[float, float]:
        """Share of foreground and share of finite samples of the patch at a place."""
        region: list[slice] = [slice(i, i + 1) for i in place[:lead]]
        for first, size in zip(place[lead:], patch, strict=True):
            if self._large:
                middle = first + (size - min(size, PROBE)) // 2
                region.append(slice(middle, middle + min(size, PROBE)))
            else:
                region.append(slice(first, first + size, max(1, size // PROBE)))
        stored = np.asarray(scan.data[tuple(region)])
        known = ~scan.intensity.holes(stored)
        bright = scan.intensity.to_unit(stored) > self.threshold
        return float(np.mean(bright & known)), float(np.mean(known))


def _threshold(scan: Scan) -> float:
    values = sample_values(scan.data)
    values = values[:: max(1, values.size // 400_000)]
    try:
        return foreground_threshold(scan.intensity.to_unit(values[~scan.intensity.holes(values)]))
    except ValueError as error:
        raise ScanError(str(error)) from error


def _lattice(room: tuple[int, ...], lead: int, patch: tuple[int, ...], *, budget: int) -> tuple[int, ...]:
    """Places along each axis: half a patch apart, and no more in all than the budget allows."""
    counts = [min(size, max(1, round(MAX_LEADING ** (1 / lead)))) for size in room[:lead]]
    side = max(1, int((budget / int(np.prod(counts, dtype=int))) ** (1 / len(patch))))
    counts += [min(side, max(1, -(-2 * size // p))) for size, p in zip(room[lead:], patch, strict=True)]
    return tuple(counts)


def patch_region(first: tuple[int, ...], patch: tuple[int, ...]) -> Region:
    """The region of a patch that starts at `first`; leading axes are one sample deep."""
    lead = len(first) - len(patch)
    return tuple(slice(f, f + n) for f, n in zip(first, (1,) * lead + patch, strict=True))
