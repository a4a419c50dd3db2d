"""What a method has to expect: ranges of blur and noise, and one degradation drawn from them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medsr.degradation.shapes import Psf, psf_of_fwhm
from medsr.scan import Factor, validate_factor

if TYPE_CHECKING:
    import torch

    from medsr.degradation.kernels import Kernel
    from medsr.degradation.noise import Noise
    from medsr.degradation.operator import Degradation
    from medsr.degradation.second_order import Resizing, SecondOrder

__all__ = ["DegradationRange", "SecondOrderRange"]

Range = tuple[float, float]
Spacing = tuple[float | None, ...]

MOST_BETWEEN = 8.0
"""Samples between two passes for each fine one: more cost memory and change nothing."""

MIDDLE = (0.5, 0.5, 0.0, 0.0, 0.5, 0.5)
"""Fractions of the middle of a pass: width, axial width, anisotropy, angle, photons, read noise."""

SECOND_DRAWS = 9
"""Random numbers a second pass needs: those of a pass, the samples between, the kind of resizing, the ringing."""

SCANNING_DRAWS = 2
"""Random numbers the noise of scanning needs: its variance, and the share of lost samples."""

ALMOST_ALONG = 1e-9
"""Of half a turn: an angle that is no axis, and no other than one for all else."""

BETWEEN_ENDS = 16
"""Parts a range of detector widths is looked at in, for its reach: a narrow one may ring further than a wide one."""

RESIZINGS: tuple[Resizing, ...] = ("area", "linear", "cubic")
"""How a first pass may have been resized (Wang et al. 2021, section 3.1)."""


class SecondOrderRange(BaseModel):
    """The second pass of a degradation: a scan that was resampled once more before it came to us.

    The blur and the noise of the `DegradationRange` it belongs to are those of the first pass, which is then resized at
    random; these are those of the second, which ends at the coarse grid. Nothing is compressed or sharpened.

    References:
        X. Wang et al., "Real-ESRGAN: Training real-world blind super-resolution with pure synthetic data", 2021,
        sections 3.2 and 3.3, arXiv:2107.10833.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    between: Range = Field(
        (0.5, 1.5), description="samples of the grid between the passes for each fine one, from..to; whole a coarse one"
    )
    fwhm_um: Range | None = Field(None, description="in-plane blur of the second pass from..to, micrometers")
    fwhm_samples: Range | None = Field(None, description="the same in coarse samples, along every refined axis")
    axial_fwhm_um: Range | None = Field(None, description="blur along z of the second pass from..to, micrometers")
    anisotropy: float = Field(1.0, ge=1, le=20, description="largest ratio of its two in-plane widths; 1: round")
    photons: Range | None = Field(None, description="photons at white in the second pass; none: no photon noise")
    read_noise: Range | None = Field(None, description="sd of the second read noise, unit intensity; none: no noise")
    ringing: Range | None = Field(
        None, description="highest frequency kept at the end, share of Nyquist from..to such as [0.6, 1.0]; none: all"
    )

    @field_validator("between", "fwhm_um", "fwhm_samples", "axial_fwhm_um", "photons", "read_noise", "ringing")
    @classmethod
    def _ordered(cls, value: Range | None) -> Range | None:
        return _checked_order(value)

    @field_validator("photons")
    @classmethod
    def _some(cls, value: Range | None) -> Range | None:
        return _checked_photons(value)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.between[1] <= 0 or self.between[1] > MOST_BETWEEN:
            raise ValueError(f"between: expected [from, to] with 0 < to <= {MOST_BETWEEN}, found {list(self.between)}")
        if self.ringing is not None and not 0 < self.ringing[0] <= self.ringing[1] <= 1:
            raise ValueError(f"ringing: expected shares above 0 and at most 1, found {list(self.ringing)}")
        if self.fwhm_um is not None and self.fwhm_samples is not None:
            raise ValueError("second: expected one in-plane blur, found fwhm_um and fwhm_samples; keep one of them")
        if self.anisotropy > 1 and self.fwhm_um is None and self.fwhm_samples is None:
            raise ValueError("second: anisotropy above 1 needs fwhm_um or fwhm_samples")
        return self


class DegradationRange(BaseModel):
    """The degradations a method has to expect; one is drawn for each training patch.

    Widths and read noise are drawn evenly, photons and the anisotropy evenly on a logarithmic scale. Blur is what lies
    between the fine scan and the coarse one, beyond the reading of the coarse sample itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sampling: Literal["area", "point", "cubic"] = Field(
        "area", description="area: pixels integrate (cameras, detectors); point: scanning, no antialias; cubic: MATLAB"
    )
    psf: Psf = Field(
        "gaussian",
        description="in-plane shape of the blur: gaussian; airy: widefield; detector: scintillator (width of a line)",
    )
    fwhm_um: Range | None = Field(None, description="in-plane blur, full width at half maximum from..to, micrometers")
    fwhm_samples: Range | None = Field(
        None, description="the same in coarse samples, along every refined axis, z too; for unknown spacing"
    )
    axial_fwhm_um: Range | None = Field(None, description="blur along z from..to, micrometers (slice profile)")
    anisotropy: float = Field(
        1.0, ge=1, le=20, description="largest ratio of the two in-plane widths, at a random angle; 1: round"
    )
    photons: Range | None = Field(None, description="photons counted at white from..to; none: no photon noise")
    read_noise: Range | None = Field(None, description="sd of the read noise from..to, unit intensity; none: no noise")
    local_variance: Range | None = Field(
        None,
        description="scanning: variance of normal noise where the signal is 1, from..to; none: no such noise",
    )
    salt_pepper: Range | None = Field(
        None, description="scanning: share of samples lost to white or black, half each, from..to; none: none"
    )
    na: float | None = Field(None, gt=0, le=2, description="numerical aperture of a widefield microscope, fixed blur")
    wavelength_um: float | None = Field(None, gt=0, le=20, description="its emission wavelength, micrometers")
    refractive_index: float = Field(1.518, ge=1, le=2, description="its immersion: oil 1.518, water 1.333, air 1")
    second: SecondOrderRange | None = Field(
        None, description="a second pass of blur, sampling and noise, for scans that were resampled; none: one pass"
    )

    @field_validator(
        "fwhm_um", "fwhm_samples", "axial_fwhm_um", "photons", "read_noise", "local_variance", "salt_pepper"
    )
    @classmethod
    def _ordered(cls, value: Range | None) -> Range | None:
        return _checked_order(value)

    @field_validator("photons")
    @classmethod
    def _some(cls, value: Range | None) -> Range | None:
        return _checked_photons(value)

    @model_validator(mode="after")
    def _scanned_once(self) -> Self:
        if self.salt_pepper is not None and self.salt_pepper[1] > 1:
            raise ValueError(f"salt_pepper: expected shares of at most 1, found {list(self.salt_pepper)}")
        if self._scans and self.second is not None:
            raise ValueError("second: expected none with local_variance or salt_pepper; keep one of them")
        return self

    @property
    def _scans(self) -> bool:
        return self.local_variance is not None or self.salt_pepper is not None

    @model_validator(mode="after")
    def _one_blur(self) -> Self:
        if (self.na is None) != (self.wavelength_um is None):
            raise ValueError("degradation: expected na and wavelength_um both or neither")
        named = [k for k in ("fwhm_um", "fwhm_samples", "na") if getattr(self, k) is not None]
        if len(named) > 1:
            raise ValueError(f"degradation: expected one in-plane blur, found {' and '.join(named)}; keep one of them")
        if self.na is not None and self.na >= self.refractive_index:
            raise ValueError(
                f"degradation: expected na below refractive_index {self.refractive_index}, found na {self.na}; "
                "oil is 1.518, water 1.333, air 1"
            )
        if self.anisotropy > 1 and self.fwhm_um is None and self.fwhm_samples is None:
            raise ValueError("degradation: anisotropy above 1 needs fwhm_um or fwhm_samples")
        return self

    @model_validator(mode="after")
    def _shaped(self) -> Self:
        if self.psf == "gaussian":
            return self
        if self.fwhm_um is None and not (self.psf == "airy" and self.na is not None):
            found = "fwhm_samples" if self.fwhm_samples is not None else "na" if self.na is not None else "none"
            more = " (or na and wavelength_um)" if self.psf == "airy" else ""
            raise ValueError(
                f"psf: expected fwhm_um{more} with {self.psf}, whose shape is told in micrometers, found {found}; give "
                "it, or leave psf out for a Gaussian"
            )
        if self.anisotropy > 1:
            raise ValueError(
                f"psf: expected anisotropy 1 with {self.psf}, which is round, found {self.anisotropy}; leave one out"
            )
        if self.psf == "detector" and self.axial_fwhm_um is not None:
            raise ValueError("psf: expected no axial_fwhm_um with detector, which blurs in the plane; leave one out")
        return self

    @property
    def in_micrometers(self) -> bool:
        """Whether a blur of it, of either pass, has a width in micrometers, which only a spacing turns into samples."""
        widths = [self.fwhm_um, self.axial_fwhm_um, self.na]
        if self.second is not None:
            widths += [self.second.fwhm_um, self.second.axial_fwhm_um]
        return any(width is not None for width in widths)

    def told(self, factor: Factor) -> Degradation | None:
        """What a method that is not trained can be told: the middle of one pass, where no scan's spacing decides it."""
        from medsr.degradation.operator import Degradation

        if self.in_micrometers or self.second is not None:
            return None
        made = self.center(factor)
        return made if isinstance(made, Degradation) else None

    def blur_varies(self, factor: Factor) -> bool:
        """Whether scans of a factor meet more than one blur: a width along z counts where the factor has a z."""
        axial = self.axial_fwhm_um if len(factor) == 3 else None
        ranges = [each for each in (self.fwhm_um, self.fwhm_samples, axial) if each is not None]
        turned = self.anisotropy > 1 and (self.fwhm_um is not None or all(f > 1 for f in factor[-2:]))
        return turned or any(low != high for low, high in ranges)

    def sample(
        self, generator: torch.Generator, factor: Factor, spacing_um: Spacing | None = None
    ) -> Degradation | SecondOrder:
        """One degradation of the range; the same generator state gives the same one.

        Args:
            generator: moves on by the same amount whatever the range; by another one where there is a second pass
                or the noise of scanning.
            factor: fine samples for each coarse one.
            spacing_um: fine spacing for the factor's axes; needed by widths in micrometers.

        Raises:
            ValueError: a width is in micrometers and the spacing of its axis is unknown.
        """
        import torch

        count = len(MIDDLE) + (SECOND_DRAWS if self.second is not None else SCANNING_DRAWS if self._scans else 0)
        draw = torch.rand(count, generator=generator, dtype=torch.float64, device=generator.device).tolist()
        return self._at(draw, factor, spacing_um)

    def center(self, factor: Factor, spacing_um: Spacing | None = None) -> Degradation | SecondOrder:
        """The degradation in the middle of every range (photons: geometric mean; round blur); arguments as in `sample`.

        Raises:
            ValueError: a width is in micrometers and the spacing of its axis is unknown.
        """
        return self._at([*MIDDLE, *MIDDLE, 0.5, 0.5, 0.5], factor, spacing_um)

    def reach(self, factor: Factor, spacing_um: Spacing | None = None) -> tuple[int, ...]:
        """The largest halo a degradation of the range can have: what a margin around a patch has to allow for.

        Arguments as in `sample`. Round or turned, equal axes have equal reach.

        Returns:
            coarse samples for each axis of the factor.

        Raises:
            ValueError: a width is in micrometers and the spacing of its axis is unknown.
        """
        counts, kinds = [0.5], [0.5]
        turned = self.anisotropy > 1
        if self.second is not None:
            counts = _fractions(self.second.between, validate_factor(factor))
            kinds = [(i + 0.5) / len(RESIZINGS) for i in range(len(RESIZINGS))]
            turned = turned or self.second.anisotropy > 1
        widths = [i / BETWEEN_ENDS for i in range(BETWEEN_ENDS + 1)] if self.psf == "detector" else [1.0]
        halos = []
        # Along an axis a blur reaches furthest where its larger width lies on it; exactly on it, a narrow one is not
        # widened as at an angle (Gaussian.angle_deg), hence the hair's breadth beside.
        for angle in (ALMOST_ALONG, 0.5 + ALMOST_ALONG) if turned else (0.0,):
            for count, kind, width in itertools.product(counts, kinds, widths):
                wide = (width, 1.0, 1.0, angle, 0.5, 0.5)
                halos.append(self._at([*wide, 1.0, *wide[1:], count, kind, 0.5], factor, spacing_um).halo)
        return tuple(max(axis) for axis in zip(*halos, strict=True))

    def _at(self, draw: list[float], factor: Factor, spacing_um: Spacing | None) -> Degradation | SecondOrder:
        """The degradation at the fractions (width, axial width, anisotropy, angle, photons, read noise), and with a
        second pass those of it, then (samples between the passes, resizing, ringing)."""
        from medsr.degradation.kernels import Airy, Gaussian
        from medsr.degradation.operator import Degradation
        from medsr.degradation.second_order import SecondOrder

        factor = validate_factor(factor)
        if self.na is not None and self.wavelength_um is not None:
            kernel: Kernel | None = Gaussian.widefield(
                self.na, self.wavelength_um, refractive_index=self.refractive_index
            )
            axial = _between(self.axial_fwhm_um, draw[1])
            if axial is not None and isinstance(kernel, Gaussian):
                kernel = replace(kernel, axial_fwhm_um=axial)
            if self.psf == "airy" and isinstance(kernel, Gaussian):
                kernel = Airy(self.na, self.wavelength_um, axial_fwhm_um=kernel.axial_fwhm_um)
        elif self.psf != "gaussian":
            kernel = psf_of_fwhm(
                self.psf, _between(self.fwhm_um, draw[0]) or 0.0, _between(self.axial_fwhm_um, draw[1])
            )
        else:
            kernel = _blur(self, draw, factor)
        noise = _noise(self, draw)
        if self._scans:
            noise = _scanning(self, draw[len(MIDDLE) :], noise)
        if self.second is None:
            return Degradation(factor, kernel=kernel, sampling=self.sampling, noise=noise, spacing_um=spacing_um)
        more, (count, kind, ringing) = draw[6:12], draw[12:]
        return SecondOrder(
            factor,
            between=tuple(_count(self.second.between, count, f) for f in factor),
            kernels=(kernel, _blur(self.second, more, factor)),
            noises=(noise, _noise(self.second, more)),
            resizing=RESIZINGS[min(int(kind * len(RESIZINGS)), len(RESIZINGS) - 1)],
            sampling=self.sampling,
            ringing=_between(self.second.ringing, ringing),
            spacing_um=spacing_um,
        )


def _checked_order(value: Range | None) -> Range | None:
    if value is not None and not 0 <= value[0] <= value[1]:
        raise ValueError(f"expected [from, to] with 0 <= from <= to, found {list(value)}")
    return value


def _checked_photons(value: Range | None) -> Range | None:
    if value is not None and value[0] < 1e-3:
        raise ValueError(f"expected photons above 0 (leave it out for no photon noise), found {list(value)}")
    return value


def _blur(widths: DegradationRange | SecondOrderRange, draw: list[float], factor: Factor) -> Kernel | None:
    """The Gaussian at the fractions (width, axial width, anisotropy, angle, ...)."""
    from medsr.degradation.kernels import Gaussian

    axial = _between(widths.axial_fwhm_um, draw[1])
    spread = math.sqrt(widths.anisotropy ** draw[2])
    if widths.fwhm_um is not None:
        um = _between(widths.fwhm_um, draw[0]) or 0.0
        return Gaussian((um * spread, um / spread), axial_fwhm_um=axial, angle_deg=180 * draw[3])
    if widths.fwhm_samples is not None:
        samples = _between(widths.fwhm_samples, draw[0]) or 0.0
        kept = [float(f > 1) for f in (1, *factor)[-2:]]
        whole = all(kept)  # a blur can only be turned where both axes have one
        pair = (samples * spread, samples / spread) if whole else (samples * kept[0], samples * kept[1])
        return Gaussian(
            fwhm_samples=pair,
            axial_fwhm_um=axial,
            axial_fwhm_samples=samples if axial is None and len(factor) == 3 and factor[0] > 1 else None,
            angle_deg=180 * draw[3] if whole else 0.0,
        )
    return None if axial is None else Gaussian(axial_fwhm_um=axial)


def _noise(levels: DegradationRange | SecondOrderRange, draw: list[float]) -> Noise | None:
    """The noise at the fractions (..., photons, read noise)."""
    from medsr.degradation.noise import PoissonGaussian

    photons = _between(levels.photons, draw[4], logarithmic=True)
    read = _between(levels.read_noise, draw[5])
    return None if photons is None and read is None else PoissonGaussian(photons, read or 0.0)


def _scanning(levels: DegradationRange, draw: list[float], detector: Noise | None) -> Noise:
    """The noise of scanning at the fractions (local variance, lost samples, ...), after that of the detector."""
    from medsr.degradation.scanning import ScanningNoise

    lost = (_between(levels.salt_pepper, draw[1]) or 0.0) / 2
    variance = _between(levels.local_variance, draw[0]) or 0.0
    return ScanningNoise(variance, salt=lost, pepper=lost, detector=detector)


def _count(between: Range, fraction: float, factor: int) -> int:
    """Samples between the passes for each coarse one: every whole number of the range as likely as the others."""
    least, most = _counts(between, factor)
    return least + min(int(fraction * (most - least + 1)), most - least)


def _counts(between: Range, factor: int) -> tuple[int, int]:
    """The fewest and the most samples between the passes for each coarse one."""
    if factor == 1:
        return 1, 1
    least, most = max(1, math.ceil(between[0] * factor - 1e-9)), math.floor(between[1] * factor + 1e-9)
    if least > most:  # no whole number in the range: the one nearest to its middle
        least = most = max(1, round((between[0] + between[1]) / 2 * factor))
    return least, most


def _fractions(between: Range, factor: Factor) -> list[float]:
    """Fractions that give every set of counts, one an axis, which can be drawn."""
    sizes = {most - least + 1 for least, most in (_counts(between, f) for f in factor)}
    cuts = sorted({i / size for size in sizes for i in range(size)} | {1.0})
    return [(a + b) / 2 for a, b in itertools.pairwise(cuts)]


def _between(range_: Range | None, fraction: float, *, logarithmic: bool = False) -> float | None:
    if range_ is None:
        return None
    low, high = range_
    if logarithmic:
        return float(low * (high / low) ** fraction)
    return low + (high - low) * fraction
