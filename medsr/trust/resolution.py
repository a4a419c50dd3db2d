"""How fine the detail is that a scan resolves: ring correlation of one image, sectors of a volume, power spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medsr.frc import FourierRings, Resolution, RingCurve, frc_resolution, hole_free_block
from medsr.trust.independence import Independence, sample_independence

__all__ = ["OneImageResolution", "PowerSpectrum", "fsc_sectors", "one_image_frc", "power_spectrum"]

Array = NDArray[Any]
Calibration = Literal["two-images", "published", "none"]
Spacing = Sequence[float | None] | None

THRESHOLD = 1 / 7
CONE = 30.0
"""Degrees around an axis that its sector reaches."""
TAPER = 35 / 18
"""By how much a Hann window lowers the number of independent frequencies, for each axis."""
PUBLISHED = (0.95988146, 0.97979108, 13.90441896, 0.55146136)
"""Calibration curve a exp(c (x - b)) + d of Koho et al. for a crossing at x of the split images' band."""
LOUDEST = 0.5
"""Three standard deviations of a ring of pure noise, above which the ring (of too few samples) is not judged."""
LEAST_RINGS = 3
"""Rings whose mean decides whether a curve has fallen; so many must stand out before it."""
FANO = (0.8, 1.25)
"""Variance of the noise over the mean that passes for counted photons."""


@dataclass(frozen=True, slots=True)
class OneImageResolution:
    """The resolution of a single image by Fourier ring correlation.

    Attributes:
        value: period in `unit`; nan where there is none.
        unit: "um" or "sample".
        reason: why there is no value; empty where there is one.
        independence: the test of validity, as measured.
        curve: the correlation, calibrated unless "published" or "none" was asked; None where the test failed.
        split: how the image was divided.
    """

    value: float
    unit: str
    reason: str
    independence: Independence
    curve: RingCurve | None
    split: Literal["diagonal", "binomial"]

    @property
    def resolution(self) -> Resolution:
        """Value, unit and reason alone."""
        return Resolution(self.value, self.unit, self.reason)


@dataclass(frozen=True, slots=True)
class PowerSpectrum:
    """Mean power at each frequency.

    Attributes:
        frequency: cycles per `unit`, ascending.
        power: values squared times `unit` for each axis; its integral over all frequencies is the variance.
        unit: "um" or "sample".
        limit: the highest frequency the samples can hold, cycles per `unit`.
        reason: why it is empty; empty where it is not.
    """

    frequency: NDArray[np.float64]
    power: NDArray[np.float64]
    unit: str
    limit: float
    reason: str = ""


def one_image_frc(
    image: Array,
    *,
    spacing_um: Spacing = None,
    split: Literal["diagonal", "binomial"] = "diagonal",
    calibration: Calibration = "two-images",
    gain: float = 1.0,
    offset: float = 0.0,
    seed: int = 0,
) -> OneImageResolution:
    """Resolution of one image: it is split into two with independent noise, and these are correlated.

    "diagonal": every second sample of every second row against its diagonal neighbors, both diagonals averaged; the
    phase of the known shift is turned back. Finds periods of at least four samples. "binomial": each photon goes to
    one of two images by the toss of a coin; finds periods of at least two samples, and needs counts.

    Both need noise that is white, which is tested first: an image that was interpolated, filtered or made by a network
    is refused, because its halves agree by construction. So is one whose structure is as fine as its samples and far
    above the noise, which cannot be told from it. Where a ring holds too few samples to tell 1/7 from chance, three
    standard deviations of noise are the threshold instead: the result of a small image comes out too coarse.

    Args:
        image: plane or stack, (..., y, x); planes of a stack add up; blocks with NaN are passed over.
        spacing_um: distance of samples along y and x; an unknown entry: the result is in samples.
        calibration: "two-images" gives what two whole images like this one would (noise is white, so a correlation r
            of halves with m times the noise power becomes m r / (1 + (m - 1) r), m = 4 diagonal, 2 binomial);
            "published" gives the fitted curve of Koho et al., which holds the shift of the halves (diagonal only);
            "none" the halves as they are.
        gain, offset: photons = (value - offset) / gain, for "binomial".
        seed: of the coin.

    Raises:
        ValueError: fewer than two axes, a gain that is not above 0, a calibration that is not for this split.

    References:
        S. Koho et al., 2019, doi:10.1038/s41467-019-11024-z (diagonal split and calibration).
        B. Rieger, I. Droste, F. Gerritsma, T. ten Brink, S. Stallinga, Single image Fourier ring correlation, Optics
        Express 32, 21767, 2024 (binomial split).
    """
    if image.ndim < 2 or not gain > 0 or (calibration == "published" and split == "binomial"):
        raise ValueError(
            "expected an image (..., y, x), a gain above 0, and calibration 'published' only for the diagonal split; "
            f"found shape {image.shape}, gain {gain}, {calibration!r} and {split!r}"
        )
    known = tuple(spacing_um or (None, None))
    unit = "sample" if None in known else "um"
    test = sample_independence(image)
    if split == "binomial":
        # The mean of photons is (value - offset) / gain, the variance that of the values / gain**2.
        test = sample_independence((np.asarray(image, np.float64) - offset) / gain)
        if not test.reason and not FANO[0] <= test.fano <= FANO[1]:
            reason = f"invalid: variance over mean is {test.fano:.2f}, expected 1 for photons; give gain and offset"
            test = replace(test, reason=reason)
    if test.reason:
        return OneImageResolution(math.nan, unit, test.reason, test, None, split)
    if split == "diagonal":
        curve, noise = _diagonal(image, known, turned=calibration != "published")
        parts = 4.0
    else:
        curve, noise = _binomial(image, known, gain, offset, np.random.default_rng(seed))
        parts = 2.0
    chance = 3 * noise / math.sqrt(LEAST_RINGS)
    limit = np.maximum(THRESHOLD, chance)
    if calibration == "two-images":
        curve = replace(curve, correlation=_whole(curve.correlation, parts))
        limit = np.maximum(THRESHOLD, _whole(chance, parts))
    found = _crossing(curve, limit, usable=3 * noise < LOUDEST)
    value = found.value
    if calibration == "published" and math.isfinite(value):
        a, b, c, d = PUBLISHED
        x = 1 / (value * curve.limit)
        # Koho et al. count the split images' samples as if they were the image's own.
        value = value / 2 / (a * math.exp(c * (x - b)) + d)
    return OneImageResolution(value, unit, found.reason, test, curve, split)


def _crossing(curve: RingCurve, limit: NDArray[np.float64], *, usable: NDArray[np.bool_]) -> Resolution:
    """Where a curve falls below a limit for each ring, after at least three rings that stand out."""
    if not usable.any():
        return Resolution(math.nan, curve.unit, "too few samples: every ring is noise; give a larger region")
    seen = replace(
        curve,
        frequency=curve.frequency[usable],
        correlation=(curve.correlation - limit)[usable],
        counts=curve.counts[usable],
    )
    found = frc_resolution(seen, threshold=0.0)
    if found.reason.startswith("above"):
        finest = 1 / curve.limit
        return replace(
            found, reason=f"finer than {finest:.4g} {curve.unit}, the finest period that this split can tell"
        )
    lowest = seen.frequency[:LEAST_RINGS][-1]
    if found.reason or 1 / found.value < lowest:
        return Resolution(math.nan, curve.unit, "nothing stands out from the noise")
    return found


def _whole(correlation: NDArray[np.float64], parts: float) -> NDArray[np.float64]:
    """What halves with `parts` times the noise power would give without it; chance below 0 is left as it is."""
    positive = np.maximum(correlation, 0)
    return np.where(correlation > 0, parts * positive / (1 + (parts - 1) * positive), correlation)


def _diagonal(image: Array, spacing: Spacing, *, turned: bool) -> tuple[RingCurve, NDArray[np.float64]]:
    """Correlation of the two pairs of diagonal neighbors, and its standard deviation in pure noise."""
    even = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
    known = [s for s in spacing or () if s is not None]
    coarse = [2 * s for s in known] if len(known) == 2 else [2.0, 2.0]
    pairs = (
        (even[..., ::2, ::2], even[..., 1::2, 1::2], (0.5, 0.5)),
        (even[..., ::2, 1::2], even[..., 1::2, ::2], (0.5, -0.5)),
    )
    curves = []
    for first, second, shift in pairs:
        rings = _rings(first, second, coarse, shift if turned else None)
        rings.add(first, second)
        curves.append(rings.curve())
    one, two = (c if len(known) == 2 else replace(c, unit="sample") for c in curves)
    if one.correlation.size != two.correlation.size:
        return one, _noise(one, rings)
    return replace(one, correlation=(one.correlation + two.correlation) / 2), _noise(one, rings) / math.sqrt(2)


def _binomial(
    image: Array, spacing: Spacing, gain: float, offset: float, generator: np.random.Generator
) -> tuple[RingCurve, NDArray[np.float64]]:
    """Correlation of two images among which the photons were divided, and its standard deviation in pure noise."""
    rings = None
    planes = image.reshape(-1, *image.shape[-2:])
    known = np.isfinite(planes)
    block = None if known.all() else hole_free_block(known, (1, 2))
    for plane, free in zip(planes, known, strict=True):
        photons = np.rint(np.maximum((np.where(free, plane, 0).astype(np.float64) - offset) / gain, 0)).astype(np.int64)
        first = np.where(free, generator.binomial(photons, 0.5), np.nan)
        second = np.where(free, photons - first, np.nan)
        rings = rings or FourierRings(plane.shape, spacing_um=spacing, block=block)
        rings.add(first, second)
    if rings is None:
        raise ValueError("image: expected at least one plane, found none")
    curve = rings.curve()
    return curve, _noise(curve, rings)


def _rings(first: Array, second: Array, spacing: Spacing, shift: Sequence[float] | None) -> FourierRings:
    known = np.isfinite(first) & np.isfinite(second)
    axes = (first.ndim - 2, first.ndim - 1)
    block = None if known.all() else hole_free_block(known, axes)
    return FourierRings(first.shape, axes=axes, spacing_um=spacing, block=block, shift=shift)


def _noise(curve: RingCurve, rings: FourierRings) -> NDArray[np.float64]:
    """Standard deviation of the correlation of two images of independent white noise, for each ring."""
    return np.sqrt(TAPER ** len(rings.axes) / (curve.counts * max(1, rings.added)))


def fsc_sectors(
    first: Array, second: Array, *, spacing_um: Spacing = None, cone: float = CONE
) -> dict[str, Resolution]:
    """Fourier shell correlation of two volumes, in plane and along the depth.

    The threshold is 1/7; in shells of a sector that hold too few samples to tell it from chance, three standard
    deviations of noise, at most one half.

    Args:
        first, second: same shape, (z, y, x), with independent noise; such as an estimate and the truth.
        spacing_um: distance of samples along z, y and x.
        cone: degrees around z that count as depth, and around the plane that count as plane.

    Returns:
        resolutions under "all", "yx" and "z".

    Raises:
        ValueError: the shapes differ or are not three-dimensional.

    References:
        S. Koho et al., 2019, doi:10.1038/s41467-019-11024-z (sectioned shells).
    """
    if first.ndim != 3 or first.shape != second.shape:
        raise ValueError(f"expected two volumes (z, y, x) of one shape, found {first.shape} and {second.shape}")
    sectors = {"all": None, "yx": (0, 90.0 - cone, 90.0), "z": (0, 0.0, cone)}
    found = {}
    known = np.isfinite(first) & np.isfinite(second)
    block = None if known.all() else hole_free_block(known, (0, 1, 2))
    for name, sector in sectors.items():
        rings = FourierRings(first.shape, spacing_um=spacing_um, block=block, sector=sector)
        rings.add(first, second)
        curve = rings.curve()
        limit = np.clip(3 * _noise(curve, rings) / math.sqrt(LEAST_RINGS), THRESHOLD, LOUDEST)
        found[name] = frc_resolution(replace(curve, correlation=curve.correlation - limit), threshold=0.0)
    return found


def power_spectrum(image: Array, *, axes: Sequence[int] | None = None, spacing_um: Spacing = None) -> PowerSpectrum:
    """The mean power of rings, or shells, of equal frequency; along one axis with `axes=(-1,)`.

    Blocks lose their mean and are tapered by a Hann window; those with NaN are passed over.

    Args:
        image: any number of axes; those not in `axes` are averaged over.
        axes: axes the frequency is measured along; None: all.
        spacing_um: distance of samples for each of `axes`; an unknown entry: all in samples.
    """
    along = tuple(a % image.ndim for a in (range(image.ndim) if axes is None else axes))
    known = np.isfinite(image)
    block = None if known.all() else hole_free_block(known, along)
    rings = FourierRings(image.shape, axes=along, spacing_um=spacing_um, block=block)
    rings.add(image, image)
    curve = rings.curve()
    reason = "" if curve.frequency.size else "no block free of holes and not constant"
    return PowerSpectrum(curve.frequency, rings.power(), curve.unit, curve.limit, reason)
