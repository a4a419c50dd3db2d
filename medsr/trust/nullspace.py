"""NullSpace: what of a fine scan its measurement leaves open, in octave bands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsr.methods.consistent import Consistent
from medsr.methods.interpolation import Cubic

if TYPE_CHECKING:
    from medsr.methods.projection import Known

__all__ = ["Band", "NullSpace"]

Floats = NDArray[np.float64]

COARSE = 2.0
"""Period in coarse samples below which the coarse grid holds nothing (its sampling limit)."""
HALF = math.sqrt(2 * math.log(2)) / (2 * math.pi)
"""Standard deviation, in periods, of the Gaussian that passes half the amplitude at that period."""
TRUNCATE = 5.0
"""Standard deviations at which a Gaussian is cut."""


@dataclass(frozen=True, slots=True)
class Band:
    """An octave of periods.

    Attributes:
        number: 1 is the finest.
        shortest, longest: period in coarse samples; infinite: all that are longer.
    """

    number: int
    shortest: float
    longest: float

    def __str__(self) -> str:
        if math.isinf(self.longest):
            return f"band {self.number}: periods above {self.shortest:g} coarse samples"
        return f"band {self.number}: periods of {self.shortest:.3g} to {self.longest:.3g} coarse samples"


class NullSpace:
    """What of a fine scan its measurement leaves open.

    Of a fine scan x the measurement A x is taken and interpolated back, cubic and then made consistent, so that
    degraded again it gives A x once more. What is left,

        n = x - C A x,    C = cubic + A^T (A A^T + ridge)^-1 (1 - A cubic),    A C = 1,

    lies in the null space of A: A n = 0, and no measurement speaks for it or against it. I - C A is a projection, on
    the null space along the smooth scans C y. The orthogonal one, x - A^T (A A^T)^-1 A x, lies in it too, but stands
    against scans that are stairs of blocks or dots: a flat field under a blur, and every slope, would count.

    n is split into octaves by differences of Gaussians that pass half the amplitude at the period between two of
    them. The bands add up to n. The energy of a band is the root of its mean square in a box one longest period wide.

    Args:
        degradation: A, the mean; noise is left out. Where A A^T is ill conditioned (see `Consistent`) a ridge keeps the
            inverse tame, and A n = 0 holds as far as it allows.

    Attributes:
        bands: finest first; the last holds what is longer than two coarse samples.
        halo: coarse samples, for each axis of the factor, beyond which nothing matters to the energies.

    References:
        S. Bhadra, V. A. Kelkar, F. J. Brooks, M. A. Anastasio: On hallucinations in tomographic image reconstruction,
        2021, doi:10.1109/TMI.2021.3077857 (the null-space part as the place of what was not measured).
    """

    def __init__(self, degradation: Known) -> None:
        self.degradation = degradation
        self.factor = tuple(degradation.factor)
        self._smooth = Consistent(Cubic(self.factor), degradation, noise=0.0)
        octaves = math.ceil(math.log2(max(self.factor)))
        edges = [COARSE / 2**k for k in range(octaves)][::-1]
        ends = [COARSE / max(self.factor), *edges, math.inf]
        self.bands = tuple(Band(i, *ends[i - 1 : i + 1]) for i in range(1, len(ends)))
        self.halo = tuple(
            own + smooth + math.ceil(self._reach(axis) / f)
            for axis, (own, smooth, f) in enumerate(zip(degradation.halo, self._smooth.halo, self.factor, strict=True))
        )

    def part(self, fine: Floats) -> Floats:
        """n of a fine scan (..., *size * factor), unit intensity; leading axes are scans of their own."""
        spatial = fine.shape[fine.ndim - len(self.factor) :]
        high = torch.from_numpy(np.ascontiguousarray(fine, np.float64)).reshape(-1, 1, *spatial)
        with torch.inference_mode():
            smooth = self._smooth(self.degradation.mean(high))
        return np.asarray(fine - smooth.numpy().reshape(fine.shape), np.float64)

    def split(self, part: Floats) -> Floats:
        """The bands of n along a new first axis; their sum is n."""
        passed = [part, *(self._blurred(part, band.longest) for band in self.bands[:-1])]
        following = [*passed[1:], np.zeros_like(part)]
        return np.stack([finer - coarser for finer, coarser in zip(passed, following, strict=True)])

    def energies(self, fine: Floats) -> Floats:
        """Local root mean square of each band of n along a new first axis, unit intensity."""
        bands = self.split(self.part(fine))
        for band, values in zip(self.bands, bands, strict=True):
            np.square(values, out=values)
            for axis, f in enumerate(self.factor):
                width = self._window(band, f)
                if width > 1:
                    along = axis - len(self.factor)
                    values[...] = ndimage.correlate1d(values, np.full(width, 1 / width), along, mode="nearest")
        return np.sqrt(bands, out=bands)

    def _blurred(self, part: Floats, period: float) -> Floats:
        for axis, f in enumerate(self.factor):
            if self._is_cut(period, f):
                along, sigma = axis - len(self.factor), HALF * period * f
                part = ndimage.gaussian_filter1d(part, sigma, along, mode="nearest", truncate=TRUNCATE)
        return part

    def _is_cut(self, period: float, factor: int) -> bool:
        """Whether the fine samples of an axis hold shorter periods than this one."""
        return factor > 1 and period * factor > 2

    def _window(self, band: Band, factor: int) -> int:
        """Fine samples, an odd number; 1 along axes that are not refined."""
        period = band.longest if math.isfinite(band.longest) else 2 * COARSE
        return 2 * int(period * factor / 2) + 1 if factor > 1 else 1

    def _reach(self, axis: int) -> int:
        """Fine samples that Gaussians and windows need."""
        f = self.factor[axis]
        cuts = [int(TRUNCATE * HALF * b.longest * f + 0.5) for b in self.bands[:-1] if self._is_cut(b.longest, f)]
        return max(cuts, default=0) + max(self._window(b, f) // 2 for b in self.bands)
