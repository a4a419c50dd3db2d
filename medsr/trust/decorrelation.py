"""Resolution by decorrelation analysis: the highest frequency whose phases a sharpened image still agrees with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from medsr.frc import Resolution
from medsr.trust.sharpness import unit_and_steps

__all__ = ["Decorrelation", "decorrelation_analysis"]

Array = NDArray[Any]

RADII = 50
FILTERS = 10
BINS = 4096
"""Rings of equal width that the spectrum is summed in before anything else."""
SMALLEST = 32
"""Samples along an axis below which curves have too few points."""
LOWEST_PEAK = 0.05
"""Height below which a peak is noise."""
FALL = 5e-4
"""By how much a curve must fall after its peak for it to be one."""
EDGE = 20
"""Samples over which the border is faded to the mean."""


@dataclass(frozen=True, slots=True)
class Decorrelation:
    """The result of a decorrelation analysis.

    Attributes:
        value: resolution in `unit` (twice the distance of samples over the highest peak position); nan: none.
        unit: "um" or "sample".
        reason: why there is no value; empty where there is one.
        position: of the highest peak, as a fraction of the highest frequency.
        height: of the peak of the unfiltered curve, which rises with the signal-to-noise ratio.
    """

    value: float
    unit: str
    reason: str
    position: float
    height: float

    @property
    def resolution(self) -> Resolution:
        """Value, unit and reason alone."""
        return Resolution(self.value, self.unit, self.reason)


def decorrelation_analysis(
    image: Array,
    *,
    spacing_um: Sequence[float | None] | None = None,
    sector: tuple[int, float] | None = None,
) -> Decorrelation:
    """Resolution of a plane without a second image and without a threshold.

    d(r) correlates the spectrum with its own phases inside a radius r. High-pass filters of growing strength move the
    peak of d outward until only noise is left; the furthest peak is the resolution. It measures how far structure
    stands out from noise: detail that a method invented counts as detail. An image whose noise was removed, or that
    was interpolated, gives the end of its own band.

    Args:
        image: plane, or stack (..., y, x) whose planes' power is averaged; samples with NaN are not allowed.
        spacing_um: distance of samples along the two axes; an unknown entry: in samples.
        sector: (0 or 1, degrees): only frequencies within that angle of that axis; None: all.

    Raises:
        ValueError: fewer than two axes; NaN or infinity.

    References:
        A. Descloux, K. S. Grussmayer, A. Radenovic, 2019, doi:10.1038/s41592-019-0515-7.
    """
    if image.ndim < 2:
        raise ValueError(f"image: expected (..., y, x), found shape {image.shape}")
    unit, steps = unit_and_steps(spacing_um)
    if min(image.shape[-2:]) < SMALLEST:
        reason = f"an axis has {min(image.shape[-2:])} samples, at least {SMALLEST} are needed"
        return Decorrelation(math.nan, unit, reason, math.nan, math.nan)
    coarsest = steps[sector[0]] if sector else max(steps)
    rings = _Rings.of(image, steps, 0.5 / coarsest, sector)
    if not rings.square.sum() > 0:
        return Decorrelation(math.nan, unit, "the image is constant", math.nan, math.nan)
    position, height = _furthest(rings, max(image.shape[-2:]))
    if not position > 0:
        reason = "no peak: the image is noise, or its detail reaches no frequency above the lowest"
        return Decorrelation(math.nan, unit, reason, 0.0, height)
    return Decorrelation(2 * coarsest / position, unit, "", position, height)


@dataclass(frozen=True, slots=True)
class _Rings:
    """Sums over thin rings; all curves follow from them because phases cancel: I conj(I / |I|) = |I|."""

    radius: NDArray[np.float64]
    count: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    square: NDArray[np.float64]

    @staticmethod
    def of(image: Array, spacing: Sequence[float], limit: float, sector: tuple[int, float] | None) -> _Rings:
        size = tuple(n - (n + 1) % 2 for n in image.shape[-2:])  # odd, so that frequency 0 is the center
        planes = image.reshape(-1, *image.shape[-2:])[:, : size[0], : size[1]]
        window = np.multiply.outer(*(_faded(n) for n in size))
        fy, fx = scipy.fft.fftfreq(size[0], spacing[0])[:, None], scipy.fft.rfftfreq(size[1], spacing[1])[None]
        radius = np.hypot(fy, fx) / limit
        inside = (radius < 1) & (radius > 0)
        if sector:
            angle = np.degrees(np.arctan2(*((np.abs(fx), np.abs(fy)) if sector[0] == 0 else (np.abs(fy), np.abs(fx)))))
            inside &= angle <= sector[1]
        weight = np.where(np.arange(radius.shape[1]) == 0, 1.0, 2.0) * inside
        ring = np.minimum(radius * BINS, BINS - 1).astype(np.intp).ravel()
        power = np.zeros(radius.shape)
        for plane in planes:
            values = np.asarray(plane, np.float64)
            if not np.isfinite(values).all():
                raise ValueError("image: expected finite values, found NaN or infinity; give a region without holes")
            power += np.abs(scipy.fft.rfft2((values - values.mean()) * window)) ** 2
        power /= len(planes)
        parts = (radius, np.ones(()), np.sqrt(power), power)
        sums = np.stack([np.bincount(ring, (weight * x).ravel(), BINS) for x in parts])
        count = sums[1]
        used = count > 0
        return _Rings(sums[0, used] / count[used], count[used], sums[2, used], sums[3, used])

    def curve(self, radii: NDArray[np.float64], strength: float | None) -> NDArray[np.float64]:
        """d(r) for the image under the high-pass filter 1 - exp(-2 g² r²); None: no filter."""
        passed = 1.0 if strength is None else -np.expm1(-2 * (strength * self.radius) ** 2)
        # Descloux et al. 2019, equation 1: <I, M_r I / |I|> / (|I| |M_r I / |I||)
        total = np.append(0, np.cumsum(passed * self.magnitude))
        number = np.append(0, np.cumsum(self.count))
        norm = math.sqrt(float((passed**2 * self.square).sum()))
        at = np.searchsorted(self.radius, radii)
        return np.asarray(total[at] / np.maximum(norm * np.sqrt(number[at]), 1e-300))


def _faded(size: int) -> NDArray[np.float64]:
    """A window that is flat but for raised-cosine borders."""
    width = min(EDGE, size // 4)
    ramp = np.sin(np.pi / 2 * (np.arange(width) + 0.5) / width) ** 2
    return np.concatenate([ramp, np.ones(size - 2 * width), ramp[::-1]])


def _peak(curve: NDArray[np.float64]) -> tuple[int, float]:
    """Place and height of the highest point that is followed by a fall; place 0 where none is."""
    last = len(curve)
    while last > 1:
        place = int(curve[:last].argmax())
        if place == 0:
            return 0, 0.0
        if place < last - 1 and curve[place] - curve[place:last].min() >= FALL:
            return place, float(curve[place])
        last -= 1
    return 0, 0.0


def _furthest(rings: _Rings, size: int) -> tuple[float, float]:
    """Position of the furthest peak over all filters, in two rounds, and the height of the first peak."""
    radii = np.linspace(0, 1, RADII)
    place, height = _peak(rings.curve(radii, None))
    best = float(radii[place]) if height >= LOWEST_PEAK else 0.0
    widest = 2 / radii[place] if place else size / 2
    strengths = np.append(size / 4, np.geomspace(widest, 0.15, FILTERS))
    for _ in range(2):
        found = []
        for strength in strengths:
            place, top = _peak(rings.curve(radii, float(strength)))
            found.append(float(radii[place]) if top >= LOWEST_PEAK else 0.0)
        best = max(best, *found)
        # The last filter that reached furthest, and the next: the best one lies between.
        which = int(np.flatnonzero(np.array(found) == max(found))[-1])
        first, second = (which, which + 1) if which + 1 < len(strengths) else (which - 1, which)
        strengths = np.geomspace(strengths[first], strengths[second], FILTERS)
        radii = np.linspace(max(0.0, best - 1 / (RADII - 1)), min(1.0, best + 0.4), RADII)
    return best, height
