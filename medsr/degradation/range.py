"""What a method has to expect: ranges of blur and noise, and one degradation drawn from them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["DegradationRange"]

Range = tuple[float, float]


class DegradationRange(BaseModel):
    """The degradations a method is trained for."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    sampling: Literal["area", "point", "cubic"] = Field("area", description="how a coarse sample is read")
    fwhm_um: Range | None = Field(None, description="in-plane blur")
    fwhm_samples: Range | None = Field(None, description="blur in coarse samples")
    axial_fwhm_um: Range | None = Field(None, description="blur along z")
    anisotropy: float = Field(1.0, ge=1, description="largest ratio of the in-plane widths")
    photons: Range | None = Field(None, description="photons at white")
    read_noise: Range | None = Field(None, description="sd of the read noise in unit intensity")
    na: float | None = Field(None, gt=0, description="numerical aperture")
    wavelength_um: float | None = Field(None, gt=0, description="wavelength")
