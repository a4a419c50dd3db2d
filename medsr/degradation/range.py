"""What a method has to expect: ranges of blur and noise, and one degradation drawn from them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medsr.scan import Factor, validate_factor

if TYPE_CHECKING:
    import torch

    from medsr.degradation.operator import Degradation

__all__ = ["DegradationRange"]

Range = tuple[float, float]
Spacing = tuple[float | None, ...]


class DegradationRange(BaseModel):
    """The degradations a method has to expect; one is drawn for each training patch.

    Widths and read noise are drawn evenly, photons and the anisotropy evenly on a logarithmic scale. Blur is what lies
    between the fine scan and the coarse one, beyond the reading of the coarse sample itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sampling: Literal["area", "point", "cubic"] = Field(
        "area", description="area: pixels integrate (cameras, detectors); point: scanning, no antialias; cubic: MATLAB"
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
    na: float | None = Field(None, gt=0, le=2, description="numerical aperture of a widefield microscope, fixed blur")
    wavelength_um: float | None = Field(None, gt=0, le=20, description="its emission wavelength, micrometers")
    refractive_index: float = Field(1.518, ge=1, le=2, description="its immersion: oil 1.518, water 1.333, air 1")

    @field_validator("fwhm_um", "fwhm_samples", "axial_fwhm_um", "photons", "read_noise")
    @classmethod
    def _ordered(cls, value: Range | None) -> Range | None:
        if value is not None and not 0 <= value[0] <= value[1]:
            raise ValueError(f"expected [from, to] with 0 <= from <= to, found {list(value)}")
        return value

    @field_validator("photons")
    @classmethod
    def _some(cls, value: Range | None) -> Range | None:
        if value is not None and value[0] < 1e-3:
            raise ValueError(f"expected photons above 0 (leave it out for no photon noise), found {list(value)}")
        return value

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

    def sample(self, generator: torch.Generator, factor: Factor, spacing_um: Spacing | None = None) -> Degradation:
        """One degradation of the range; the same generator state gives the same one.

        Args:
            generator: moves on by the same amount whatever the range.
            factor: fine samples for each coarse one.
            spacing_um: fine spacing for the factor's axes; needed by widths in micrometers.

        Raises:
            ValueError: a width is in micrometers and the spacing of its axis is unknown.
        """
        import torch

        draw = torch.rand(6, generator=generator, dtype=torch.float64, device=generator.device).tolist()
        return self._at(draw, factor, spacing_um)

    def center(self, factor: Factor, spacing_um: Spacing | None = None) -> Degradation:
        """The degradation in the middle of every range (photons: geometric mean; round blur); arguments as in `sample`.

        Raises:
            ValueError: a width is in micrometers and the spacing of its axis is unknown.
        """
        return self._at([0.5, 0.5, 0.0, 0.0, 0.5, 0.5], factor, spacing_um)

    def _at(self, draw: list[float], factor: Factor, spacing_um: Spacing | None) -> Degradation:
        """The degradation at the fractions (width, axial width, anisotropy, angle, photons, read noise)."""
        from medsr.degradation.kernels import Gaussian
        from medsr.degradation.noise import PoissonGaussian
        from medsr.degradation.operator import Degradation

        factor = validate_factor(factor)
        kernel = None
        axial = _between(self.axial_fwhm_um, draw[1])
        spread = math.sqrt(self.anisotropy ** draw[2])
        if self.na is not None and self.wavelength_um is not None:
            kernel = Gaussian.widefield(self.na, self.wavelength_um, refractive_index=self.refractive_index)
            kernel = kernel if axial is None else replace(kernel, axial_fwhm_um=axial)
        elif self.fwhm_um is not None:
            um = _between(self.fwhm_um, draw[0]) or 0.0
            kernel = Gaussian((um * spread, um / spread), axial_fwhm_um=axial, angle_deg=180 * draw[3])
        elif self.fwhm_samples is not None:
            samples = _between(self.fwhm_samples, draw[0]) or 0.0
            kept = [float(f > 1) for f in (1, *factor)[-2:]]
            whole = all(kept)  # a blur can only be turned where both axes have one
            widths = (samples * spread, samples / spread) if whole else (samples * kept[0], samples * kept[1])
            kernel = Gaussian(
                fwhm_samples=widths,
                axial_fwhm_um=axial,
                axial_fwhm_samples=samples if axial is None and len(factor) == 3 and factor[0] > 1 else None,
                angle_deg=180 * draw[3] if whole else 0.0,
            )
        elif axial is not None:
            kernel = Gaussian(axial_fwhm_um=axial)
        photons = _between(self.photons, draw[4], logarithmic=True)
        read = _between(self.read_noise, draw[5])
        noise = None if photons is None and read is None else PoissonGaussian(photons, read or 0.0)
        return Degradation(factor, kernel=kernel, sampling=self.sampling, noise=noise, spacing_um=spacing_um)


def _between(range_: Range | None, fraction: float, *, logarithmic: bool = False) -> float | None:
    if range_ is None:
        return None
    low, high = range_
    if logarithmic:
        return float(low * (high / low) ** fraction)
    return low + (high - low) * fraction
