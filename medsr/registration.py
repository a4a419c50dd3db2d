"""register: how a coarse and a fine scan of one field lie on each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.signal.windows import tukey
from skimage.registration import phase_cross_correlation

from medsr.scan import Factor, Scan, ScanError

__all__ = ["Frame", "Registration", "RegistrationRule", "frames_of", "register"]

RegistrationRule = Literal["whole", "resample"]
Array = NDArray[Any]
Frame = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]
"""Coarse samples, the means of the fine ones that lie there, and where there are holes."""

FIELD_TOLERANCE = 0.01
"""Difference of field of view or spacing up to which two scans show the same; beyond, the pair is refused."""

MOST_SHIFT = 16
"""Coarse samples of shift that are corrected, at most; and never more than a quarter of the field."""

MOST_RESIDUAL = 0.25
"""Coarse samples that may be left after whole fine samples were cropped."""

PRECISION = 0.02
"""Coarse samples to which a shift is known."""

APART = 0.5
"""Coarse samples by which quarters of the field may shift differently: beyond, the field is turned, scaled or bent."""

LEAST_CORRELATION = 0.5
"""Correlation of the smoothed coarse scan with the smoothed means of the fine one, below which nothing is matched."""

WIDEST = {1: 2**16, 2: 2048, 3: 160}
"""Coarse samples along an axis that are looked at together, for frames of one to three axes."""

FRAMES = 8
"""Planes (time points, channels) looked at of scans with more axes than the factor."""

LEAST_SIDE = 16
"""Coarse samples a quarter of the field must have along each axis to be registered by itself."""


@dataclass(frozen=True, slots=True)
class Registration:
    """How the two scans of a pair lie on each other; every tuple has an entry for each axis of the scans.

    Attributes:
        low_start, high_start: first coarse and first fine sample of what both show.
        shape: coarse samples of it.
        shift: coarse samples by which the fine scan has to be moved to lie on the coarse one, as the files have them.
        residual: what is left of it after whole fine samples were cropped, in coarse samples.
        correlation: of the smoothed coarse scan with the smoothed means of the fine one.
        quarters: parts of the field whose own shifts were compared; below 2 a turn could not have been seen.
        resample: whether the coarse scan is to be interpolated by the residual.
    """

    low_start: tuple[int, ...]
    high_start: tuple[int, ...]
    shape: tuple[int, ...]
    shift: tuple[float, ...]
    residual: tuple[float, ...]
    correlation: float
    quarters: int
    resample: bool = False


def register(
    low: Scan, high: Scan, factor: Factor, *, rule: RegistrationRule = "whole", name: str = "pair"
) -> Registration:
    """How a coarse and a fine scan of one field lie on each other, measured on what they show.

    The fine scan, averaged over each coarse sample, is shifted onto the coarse one by the peak of their cross
    correlation. Whole fine samples are corrected by cropping; what is left is measured again. Quarters of the field are
    registered by themselves: where they disagree, the two differ by more than a shift.

    Args:
        low, high: the two scans, with the same axes.
        factor: fine samples for each coarse one, for the last axes.
        rule: "whole": a shift of more than a quarter of a coarse sample that cropping leaves is refused. "resample":
            the coarse scan is to be interpolated by it.
        name: of the pair, for errors.

    Raises:
        ScanError: sizes, spacings or fields of view do not fit, what they show differs, or they are turned, scaled or
            shifted too far against each other.

    References:
        M. Guizar-Sicairos, S. T. Thurman, J. R. Fienup: Efficient subpixel image registration algorithms, 2008,
        doi:10.1364/OL.33.000156.
    """
    full = _fitting(low, high, factor, name)
    dims = len(factor)
    lead = len(full) - dims
    coarse = tuple(min(n, m // f) for n, m, f in zip(low.shape, high.shape, full, strict=True))
    if min(coarse[lead:]) < LEAST_SIDE and not _is_flat(coarse[lead:], full[lead:]):
        raise ScanError(f"{name}: expected at least {LEAST_SIDE} coarse samples along each axis, found {coarse[lead:]}")
    found = Registration((0,) * len(full), (0,) * len(full), coarse, (0.0,) * len(full), (0.0,) * len(full), 0.0, 0)
    offset, residual, correlation = [0] * dims, np.zeros(dims), 0.0
    for attempt in range(4):
        frames = list(frames_of(low, high, found, full, dims=dims))
        if not frames:
            raise ScanError(f"{name}: expected a place that both measured, found holes everywhere; check the files")
        correlation, residual = _shift_of(frames)
        step = np.rint(-residual * np.array(full[lead:])).astype(int)
        if correlation < LEAST_CORRELATION or not step.any() or attempt == 3:
            break
        offset = [o + int(s) for o, s in zip(offset, step, strict=True)]
        far = [abs(o) / f for o, f in zip(offset, full[lead:], strict=True)]
        if any(d > min(MOST_SHIFT, n / 4) for d, n in zip(far, coarse[lead:], strict=True)):
            raise ScanError(
                f"{name}: expected a shift of at most {MOST_SHIFT} coarse samples and a quarter of the field, found "
                f"{_figures(far)}; crop the scans to one field"
            )
        found = _cropped(found, low, high, full, offset)
    shift = [r - o / f for r, o, f in zip(residual, offset, full[lead:], strict=True)]
    found = replace(
        found, shift=_padded(shift, lead), residual=_padded(residual, lead), correlation=correlation,
        resample=rule == "resample" and bool(np.abs(residual).max() > 0),
    )  # fmt: skip
    if correlation < LEAST_CORRELATION:
        raise ScanError(
            f"{name}: expected the coarse and the fine scan to show the same, found a correlation of {correlation:.2f} "
            f"(at least {LEAST_CORRELATION}); check that the names match and the factor is {list(factor)}"
        )
    found = replace(found, quarters=_checked_quarters(frames, name))
    if rule == "whole" and np.abs(residual).max() > MOST_RESIDUAL + PRECISION:
        raise ScanError(
            f"{name}: expected at most {MOST_RESIDUAL} coarse samples of shift after whole fine samples were cropped, "
            f"found {_figures(residual)}; set data.registration: resample to interpolate the coarse scan"
        )
    return found


def frames_of(low: Scan, high: Scan, registration: Registration, full: Factor, *, dims: int) -> Iterator[Frame]:
    """Coarse samples and means of the fine ones that lie there now, and where there are holes; a few frames, of large
    ones the middle."""
    lead = len(full) - dims
    counts = registration.shape[:lead]
    total = math.prod(counts)
    inner = [min(n, WIDEST[dims]) for n in registration.shape[lead:]]
    first = [(n - i) // 2 for n, i in zip(registration.shape[lead:], inner, strict=True)]
    for pick in np.unique(np.linspace(0, total - 1, min(FRAMES, total)).round().astype(int)):
        index = [int(i) for i in np.unravel_index(pick, counts)] if counts else []
        start, size = [*index, *first], [*(1,) * lead, *inner]
        coarse = tuple(slice(a + s, a + s + n) for a, s, n in zip(registration.low_start, start, size, strict=True))
        fine = tuple(
            slice(a + s * f, a + (s + n) * f)
            for a, s, n, f in zip(registration.high_start, start, size, full, strict=True)
        )
        stored, known = low.read(coarse), high.read(fine)
        holes = low.intensity.holes(stored).reshape(inner) | (_means(high.intensity.holes(known), full) > 0).reshape(
            inner
        )
        sides = (stored.astype(np.float64).reshape(inner), _means(known.astype(np.float64), full).reshape(inner))
        if holes.any() and not holes.all():
            nearest = tuple(ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True))
            sides = (sides[0][nearest], sides[1][nearest])
        if not holes.all():
            yield *sides, holes


def _fitting(low: Scan, high: Scan, factor: Factor, name: str) -> Factor:
    """The factor for every axis, where sizes, spacings and fields of view are those of a pair."""
    if low.grid.axes != high.grid.axes:
        found = f"{''.join(low.grid.axes)} and {''.join(high.grid.axes)}"
        raise ScanError(f"{name}: expected the same axes in low and high, found {found}")
    try:
        full = high.grid.pad_factor(factor)
    except ValueError as error:
        raise ScanError(f"{name}: {error}") from error
    for number, (axis, n, m, f) in enumerate(zip(low.grid.axes, low.shape, high.shape, full, strict=True)):
        coarse, fine = low.grid.spacing_of(axis), high.grid.spacing_of(axis)
        if number < len(full) - len(factor) and n != m:
            raise ScanError(f"{name}: expected as many samples along {axis} in low and high, found {n} and {m}")
        if coarse is not None and fine is not None and abs(coarse / (fine * f) - 1) > FIELD_TOLERANCE:
            raise ScanError(
                f"{name}: expected a spacing along {axis} in low {f} times that in high, found {coarse:.6g} and "
                f"{fine:.6g} um (a ratio of {coarse / fine:.4g}); check the files, or method.factor"
            )
        if abs(m - n * f) > max(f - 1, FIELD_TOLERANCE * n * f):
            raise ScanError(
                f"{name}: expected {n * f} samples along {axis} in high for {n} in low and a factor of {f}, found {m}; "
                "crop both to one field, or check method.factor"
            )
    return full


def _is_flat(size: Sequence[int], factor: Sequence[int]) -> bool:
    """Whether only axes that are not refined are short: a stack of few planes can be registered."""
    return all(n >= LEAST_SIDE or f == 1 for n, f in zip(size, factor, strict=True))


def _cropped(found: Registration, low: Scan, high: Scan, full: Factor, offset: Sequence[int]) -> Registration:
    """The registration of a fine scan whose sample `factor * i + offset` is the first of coarse sample i."""
    lead = len(full) - len(offset)
    starts, fines, sizes = list(found.low_start), list(found.high_start), list(found.shape)
    for axis, d in enumerate(offset, start=lead):
        f = full[axis]
        starts[axis] = max(0, -(d // f))  # the first coarse sample whose fine ones all exist
        fines[axis] = starts[axis] * f + d
        sizes[axis] = min(low.shape[axis] - starts[axis], (high.shape[axis] - fines[axis]) // f)
    return replace(found, low_start=tuple(starts), high_start=tuple(fines), shape=tuple(sizes))


def _means(fine: Array, full: Factor) -> NDArray[np.float64]:
    """Means over the fine samples of each coarse one."""
    split: list[int] = []
    for n, f in zip(fine.shape, full, strict=True):
        split += [n // f, f]
    with np.errstate(invalid="ignore"):
        return np.asarray(fine.reshape(split).mean(axis=tuple(range(1, 2 * len(full), 2))), np.float64)


def _shift_of(frames: Sequence[Frame]) -> tuple[float, NDArray[np.float64]]:
    """Correlation and shift (coarse samples) of the frames that correlate, the median of each."""
    found = [(_correlation(one, other), _shift(one, other)) for one, other, _ in frames]
    after = [(_correlation(one, _moved(other, s)), s) for (one, other, _), (_, s) in zip(frames, found, strict=True)]
    sound = [entry for entry in after if entry[0] >= LEAST_CORRELATION]
    if not sound:
        return max(c for c, _ in after), np.zeros(frames[0][0].ndim)
    return float(np.median([c for c, _ in sound])), np.median([s for _, s in sound], axis=0)


def _shift(one: Array, other: Array) -> NDArray[np.float64]:
    """Samples by which `other` has to be moved to lie on `one`.

    The peak of their cross correlation begins; it is drawn towards no shift along an axis of few samples or slow
    changes, so the correlation of what both show at whole shifts around is climbed, and its peak fitted by a Gaussian.
    """
    first, second = _banded(one), _banded(other)
    begun, _, _ = phase_cross_correlation(_tapered(first), _tapered(second), normalization=None)
    place = tuple(round(float(s)) if n > 1 else 0 for s, n in zip(begun, one.shape, strict=True))
    seen: dict[tuple[int, ...], float] = {}

    def at(shift: tuple[int, ...]) -> float:
        if shift not in seen:
            seen[shift] = _overlap_correlation(first, second, shift)
        return seen[shift]

    for _ in range(4 * MOST_SHIFT):
        best = max((place, *_neighbors(place, one.shape)), key=at)
        if best == place:
            break
        place = best
    shift = np.array(place, np.float64)
    for axis, n in enumerate(one.shape):
        if n > 1:
            before, after = (at(tuple(s + d * (a == axis) for a, s in enumerate(place))) for d in (-1, 1))
            shift[axis] += _peak(before, at(place), after)
    return shift


def _neighbors(place: tuple[int, ...], size: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for axis, n in enumerate(size):
        for step in (-1, 1) if n > 1 else ():
            yield tuple(s + step * (a == axis) for a, s in enumerate(place))


def _peak(before: float, middle: float, after: float) -> float:
    """Where between -1/2 and 1/2 a Gaussian through three values has its peak; a parabola where one is not above 0."""
    if min(before, middle, after) > 0:
        before, middle, after = math.log(before), math.log(middle), math.log(after)
    bend = before - 2 * middle + after
    return min(0.5, max(-0.5, 0.5 * (before - after) / bend)) if bend < 0 else 0.0


def _overlap_correlation(one: Array, other: Array, shift: Sequence[int]) -> float:
    """Correlation of `one` with `other` moved by whole samples, over what both show."""
    here = tuple(slice(max(0, s), n + min(0, s)) for s, n in zip(shift, one.shape, strict=True))
    there = tuple(slice(max(0, -s), n + min(0, -s)) for s, n in zip(shift, one.shape, strict=True))
    first, second = one[here], other[there]
    if 2 * first.size < one.size:
        return -1.0
    spread = math.sqrt(float(np.vdot(first, first)) * float(np.vdot(second, second)))
    return float(np.vdot(first, second)) / spread if spread > 0 else 0.0


def _tapered(frame: Array) -> NDArray[np.float64]:
    """Without the jump at the edges."""
    for axis, n in enumerate(frame.shape):
        if n > 4:
            frame = frame * tukey(n, 0.25).reshape([-1 if a == axis else 1 for a in range(frame.ndim)])
    return np.asarray(frame, np.float64)


def _banded(frame: Array) -> NDArray[np.float64]:
    """Structures of a few samples, without noise and slow shading."""
    return np.asarray(ndimage.gaussian_filter(frame, 1.0) - ndimage.gaussian_filter(frame, 8.0), np.float64)


def _moved(frame: Array, shift: Array) -> Array:
    return np.asarray(ndimage.shift(frame, shift, order=1, mode="nearest"))


def _correlation(one: Array, other: Array) -> float:
    smooth = [ndimage.gaussian_filter(side, 2.0).ravel() for side in (one, other)]
    if min(float(np.ptp(side)) for side in smooth) == 0:
        return 0.0
    return float(np.corrcoef(smooth[0], smooth[1])[0, 1])


def _checked_quarters(frames: Sequence[Frame], name: str) -> int:
    """Parts of the field that could be registered by themselves.

    Raises:
        ScanError: their shifts disagree.
    """
    size = frames[0][0].shape
    halves = [[slice(0, n // 2), slice(n - n // 2, n)] if n // 2 >= LEAST_SIDE else [slice(0, n)] for n in size]
    if len(size) == 3:
        halves[0] = [slice(0, size[0])]
    shifts = []
    for part in product(*halves):
        pieces = [(one[part], other[part], holes[part]) for one, other, holes in frames if not holes[part].all()]
        correlation, shift = _shift_of(pieces) if pieces else (0.0, np.zeros(len(size)))
        if correlation >= LEAST_CORRELATION:
            shifts.append(shift)
    if len(shifts) < 2:
        return len(shifts)
    apart = np.ptp(np.array(shifts), axis=0)
    if apart.max() > APART:
        raise ScanError(
            f"{name}: expected one shift all over the field, found quarters that differ by {_figures(apart)} coarse "
            "samples: the two are turned, scaled or bent against each other; register them with a tool that corrects it"
        )
    return len(shifts)


def _padded(values: Sequence[float] | Array, lead: int) -> tuple[float, ...]:
    return (0.0,) * lead + tuple(float(v) for v in values)


def _figures(values: Sequence[float] | Array) -> str:
    return " x ".join(f"{float(v):.2f}" for v in values)
