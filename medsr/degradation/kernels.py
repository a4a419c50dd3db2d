"""Point spread functions in micrometers, sampled on the fine grid."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from medsr.degradation.microscope import FWHM_PER_SIGMA, confocal_fwhm_um, widefield_fwhm_um
from medsr.scan import Factor

__all__ = ["Airy", "FineGrid", "Gaussian", "Kernel", "Part", "Weights"]

Array = NDArray[np.float64]

AIRY_FWHM = 0.514497
"""Full width at half maximum of the Airy pattern in units of wavelength / na: it is 1/2 at v = 1.6163399."""

NARROWEST_ROTATED = 0.35  # sd in fine samples below which a ridge at an angle would be sampled as a staircase


def cubic(x: Array) -> Array:
    """Keys' cubic with a = -0.5 (doi:10.1109/TASSP.1981.1163711, equation 15)."""
    d = np.abs(x)
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.asarray(np.where(d <= 1, near, np.where(d < 2, far, 0.0)), np.float64)


class Part(NamedTuple):
    """Weights over some axes of the factor; those of several parts are multiplied.

    Attributes:
        axes: which axes of the factor, ascending; more than one means that the weights do not separate.
        weights: one axis of samples for each of `axes`, symmetric about its middle unless given so, sum 1.
    """

    axes: tuple[int, ...]
    weights: Array


@dataclass(frozen=True, slots=True)
class FineGrid:
    """Where a kernel is asked to give its samples.

    Attributes:
        factor: fine samples for each coarse one, slowest axis first.
        spacing_um: distance between fine samples for each axis; None where unknown.
        half: for each axis, True: at the positions ..., -1/2, 1/2, ... (an even number of samples), because the coarse
            sample lies between two fine ones; False: at ..., -1, 0, 1, ...
    """

    factor: Factor
    spacing_um: tuple[float | None, ...]
    half: tuple[bool, ...]

    def step_um(self, axis: int, *, cure: str) -> float:
        """Distance between fine samples along an axis.

        Raises:
            ValueError: it is unknown; `cure` says what to do.
        """
        step = self.spacing_um[axis]
        if step is None:
            name = "zyx"[3 - len(self.factor) + axis]
            raise ValueError(
                f"a kernel in micrometers needs the fine spacing along {name}, found unknown; "
                f"set the spacing of the scan, or give {cure}"
            )
        return step

    def positions(self, axis: int, radius: float) -> Array:
        """Sample positions within `radius` fine samples of the center, at least the ones next to it."""
        if self.half[axis]:
            reach = max(math.ceil(radius + 0.5 - 1e-9), 1)
            return np.arange(2 * reach, dtype=np.float64) - (reach - 0.5)
        reach = max(math.ceil(radius - 1e-9), 0)
        return np.arange(-reach, reach + 1, dtype=np.float64)


class Kernel(Protocol):
    """A point spread function: anything that gives its weights on a fine grid."""

    def parts(self, grid: FineGrid) -> tuple[Part, ...]:
        """The weights for the axes of `grid`; an axis in no part is not blurred."""
        ...


def _pair(value: float | tuple[float, float]) -> tuple[float, float]:
    pair = (value, value) if isinstance(value, (int, float)) else tuple(value)
    if len(pair) != 2 or not all(math.isfinite(v) and v >= 0 for v in pair):
        raise ValueError(f"width: expected one number or (y, x), each at least 0; found {value!r}")
    return float(pair[0]), float(pair[1])


def _gauss(positions: Array, sigma: float) -> Array:
    if sigma < 0.05:  # narrower than anything a sample can tell from a point
        weights = (np.abs(positions) == np.abs(positions).min()).astype(np.float64)
    else:
        weights = np.exp(-0.5 * (positions / sigma) ** 2)
    return np.asarray(weights / weights.sum(), np.float64)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A Gaussian, isotropic or not, turned in the plane if asked; sampled at points (not integrated over a sample).

    Give the in-plane width in micrometers or in coarse samples, not both; an axis without a width is not blurred.

    Attributes:
        fwhm_um: full width at half maximum in the plane in micrometers, one number or (y, x).
        fwhm_samples: the same in coarse samples, for scans of unknown spacing.
        axial_fwhm_um: width along z in micrometers (a slice profile); used where the factor has three axes.
        axial_fwhm_samples: the same in coarse samples.
        angle_deg: turns the widths (y, x) in the plane; the direction of the first becomes (cos, sin) in (y, x). At an
            angle no width is taken below 0.35 standard deviations of a fine sample, lest it become a staircase.

    Raises:
        ValueError: no width or one width twice, or one below 0.
    """

    fwhm_um: float | tuple[float, float] | None = None
    fwhm_samples: float | tuple[float, float] | None = None
    axial_fwhm_um: float | None = None
    axial_fwhm_samples: float | None = None
    angle_deg: float = 0.0

    def __post_init__(self) -> None:
        plane = [w for w in (self.fwhm_um, self.fwhm_samples) if w is not None]
        axial = [w for w in (self.axial_fwhm_um, self.axial_fwhm_samples) if w is not None]
        if len(plane) > 1 or len(axial) > 1 or not (plane or axial):
            raise ValueError(f"expected each width once, in micrometers or in coarse samples; found {self}")
        for width in plane + list(axial):
            _pair(width)

    @classmethod
    def widefield(cls, na: float, wavelength_um: float, *, refractive_index: float = 1.518) -> Self:
        """The Gaussian of a widefield microscope; see `widefield_fwhm_um`."""
        axial, lateral = widefield_fwhm_um(na, wavelength_um, refractive_index=refractive_index)
        return cls(fwhm_um=lateral, axial_fwhm_um=axial)

    @classmethod
    def confocal(
        cls,
        na: float,
        wavelength_um: float,
        *,
        excitation_um: float,
        pinhole_au: float = 1.0,
        refractive_index: float = 1.518,
    ) -> Self:
        """The Gaussian of a laser scanning confocal microscope; see `confocal_fwhm_um`."""
        axial, lateral = confocal_fwhm_um(
            na,
            wavelength_um,
            excitation_um=excitation_um,
            pinhole_au=pinhole_au,
            refractive_index=refractive_index,
        )
        return cls(fwhm_um=lateral, axial_fwhm_um=axial)

    def parts(self, grid: FineGrid) -> tuple[Part, ...]:
        """Weights out to four standard deviations.

        Raises:
            ValueError: a width is in micrometers and the spacing of its axis is unknown.
        """
        axes = len(grid.factor)
        parts: list[Part] = []
        if axes == 3 and (self.axial_fwhm_um is not None or self.axial_fwhm_samples is not None):
            step = 1 / grid.factor[0]
            if self.axial_fwhm_um is not None:
                step = grid.step_um(0, cure="a width in samples")
            width = self.axial_fwhm_um if self.axial_fwhm_um is not None else self.axial_fwhm_samples
            parts.append(_line(grid, 0, (width or 0.0) / FWHM_PER_SIGMA / step))
        if self.fwhm_um is None and self.fwhm_samples is None:
            return tuple(parts)
        widths = _pair(self.fwhm_um if self.fwhm_um is not None else self.fwhm_samples or 0.0)
        plane = tuple(range(max(axes - 2, 0), axes))
        if self.fwhm_um is not None:
            steps = tuple(grid.step_um(a, cure="fwhm_samples") for a in plane)
        else:
            steps = tuple(1 / grid.factor[a] for a in plane)
        sigmas = tuple(w / FWHM_PER_SIGMA for w in widths)
        turned = self.angle_deg % 180
        if len(plane) == 2 and widths[0] != widths[1] and turned not in (0.0, 90.0):
            return (*parts, _turned(grid, sigmas, steps, math.radians(turned)))
        if turned == 90.0:
            sigmas = sigmas[::-1]
        lines = (_line(grid, a, s / step) for a, s, step in zip(plane, sigmas[-len(plane) :], steps, strict=True))
        return (*parts, *lines)


def _line(grid: FineGrid, axis: int, sigma: float) -> Part:
    return Part((axis,), _gauss(grid.positions(axis, 4 * sigma), sigma))


def _turned(grid: FineGrid, sigmas: tuple[float, ...], steps: tuple[float, ...], angle: float) -> Part:
    floor = NARROWEST_ROTATED * max(steps)
    first, second = (max(s, floor) ** 2 for s in sigmas)
    cosine, sine = math.cos(angle), math.sin(angle)
    yy = first * cosine**2 + second * sine**2
    xx = first * sine**2 + second * cosine**2
    yx = (first - second) * cosine * sine
    axes = (len(grid.factor) - 2, len(grid.factor) - 1)
    y = grid.positions(axes[0], 4 * math.sqrt(yy) / steps[0])[:, None] * steps[0]
    x = grid.positions(axes[1], 4 * math.sqrt(xx) / steps[1])[None, :] * steps[1]
    distance = (xx * y**2 - 2 * yx * y * x + yy * x**2) / (xx * yy - yx**2)
    weights = np.exp(-0.5 * distance)
    return Part(axes, weights / weights.sum())


@dataclass(frozen=True, slots=True)
class Airy:
    """The Airy pattern of a widefield microscope in focus, (2 J1(v) / v)**2 with v = 2 pi na r / wavelength; sampled at
    points (not integrated over a sample).

    Attributes:
        na: numerical aperture.
        wavelength_um: emission wavelength in vacuum.
        radius_um: where the pattern is cut and normalized; None: 4 wavelength / na, which holds 97 % of the light.
        axial_fwhm_um: width of a Gaussian along z; used where the factor has three axes.

    Raises:
        ValueError: a value is not above 0.
    """

    na: float
    wavelength_um: float
    radius_um: float | None = None
    axial_fwhm_um: float | None = None

    def __post_init__(self) -> None:
        if not (self.na > 0 and self.wavelength_um > 0 and (self.radius_um is None or self.radius_um > 0)):
            raise ValueError(f"expected na, wavelength_um and radius_um above 0, found {self}")

    @classmethod
    def of_fwhm(cls, fwhm_um: float, *, axial_fwhm_um: float | None = None) -> Self:
        """The pattern of a full width at half maximum in the plane, micrometers, by its ratio of wavelength to aperture
        alone.

        Raises:
            ValueError: the width is not above 0.
        """
        return cls(1.0, fwhm_um / AIRY_FWHM, axial_fwhm_um=axial_fwhm_um)

    @property
    def fwhm_um(self) -> float:
        """Full width at half maximum in the plane, micrometers."""
        return AIRY_FWHM * self.wavelength_um / self.na

    def parts(self, grid: FineGrid) -> tuple[Part, ...]:
        """Weights out to `radius_um`.

        Raises:
            ValueError: the spacing in the plane is unknown, or the factor has a single axis.
        """
        from scipy.special import j1

        axes = _plane(grid, "Airy")
        steps = [grid.step_um(a, cure="a Gaussian with fwhm_samples") for a in axes]
        radius = self.radius_um or 4 * self.wavelength_um / self.na
        y, x = (grid.positions(a, radius / s) * s for a, s in zip(axes, steps, strict=True))
        r = np.hypot(y[:, None], x[None, :])
        v = np.maximum(2 * math.pi * self.na / self.wavelength_um * r, 1e-9)
        weights = (2 * j1(v) / v) ** 2 * (r <= max(radius, float(r.min())))
        return (*_axial(grid, self.axial_fwhm_um), Part(axes, weights / weights.sum()))


def _plane(grid: FineGrid, name: str) -> tuple[int, int]:
    axes = len(grid.factor)
    if axes < 2:
        raise ValueError(f"{name}: expected a factor with two or three axes, found {grid.factor}; use a Gaussian")
    return axes - 2, axes - 1


def _axial(grid: FineGrid, fwhm_um: float | None) -> tuple[Part, ...]:
    return () if fwhm_um is None else Gaussian(axial_fwhm_um=fwhm_um).parts(grid)


@dataclass(frozen=True, eq=False, init=False)
class Weights:
    """A measured kernel on the fine grid: one array over all axes of the factor, or one line for each axis.

    The weights are used as they are, about the middle of the array, after division by their sum. Where the middle
    would put a coarse sample between two positions the grid has, a pair mean (1/2, 1/2) closes the gap; with sampling
    "point" a windowed sinc, which averages nothing away.

    Attributes:
        arrays: a single array with as many axes as the factor, or one 1D array an axis (separable).

    Raises:
        ValueError: weights that are empty, not finite, or do not sum to something above 0.
    """

    arrays: tuple[Array, ...]

    def __init__(self, *arrays: Array) -> None:
        clean = tuple(np.array(a, np.float64) for a in arrays)
        if not clean or any(a.size == 0 or not np.isfinite(a).all() or a.sum() <= 0 for a in clean):
            raise ValueError("kernel: expected finite weights with a sum above 0 (a flat field has to stay flat)")
        object.__setattr__(self, "arrays", tuple(a / a.sum() for a in clean))

    def __repr__(self) -> str:
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(array, np.float64).tobytes() for array in self.arrays))
        sizes = ", ".join(" x ".join(map(str, array.shape)) for array in self.arrays)
        return f"Weights({sizes}; sha256 {digest.hexdigest()[:16]})"

    def parts(self, grid: FineGrid) -> tuple[Part, ...]:
        """The weights, checked against the axes of the factor.

        Raises:
            ValueError: neither one array over all axes nor one line for each.
        """
        axes = len(grid.factor)
        if len(self.arrays) == 1 and self.arrays[0].ndim == axes:
            return (Part(tuple(range(axes)), self.arrays[0]),)
        if len(self.arrays) == axes and all(a.ndim == 1 for a in self.arrays):
            return tuple(Part((i,), a) for i, a in enumerate(self.arrays))
        raise ValueError(
            f"kernel: expected one array with {axes} axes or {axes} lines for the factor {grid.factor}; "
            f"found shapes {[a.shape for a in self.arrays]}"
        )
