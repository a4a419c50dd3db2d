"""Psf: the shapes of a blur that a width alone tells, and the kernel of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from medsr.degradation.kernels import Kernel

__all__ = ["Psf", "psf_of_fwhm"]

Psf = Literal["gaussian", "airy", "detector"]


def psf_of_fwhm(psf: Psf, fwhm_um: float, axial_fwhm_um: float | None = None) -> Kernel:
    """A blur of a shape and a full width at half maximum in the plane, with a Gaussian along z.

    Args:
        psf: "gaussian"; "airy", `Airy.of_fwhm`; "detector", `DetectorMTF.of_fwhm`, whose width is that of a thin line
            and which leaves z as it is.
        fwhm_um: micrometers; 0: a point, whatever the shape.
        axial_fwhm_um: along z, micrometers; None: none.
    """
    from medsr.degradation.kernels import Airy, Gaussian
    from medsr.degradation.mtf import DetectorMTF

    if psf == "gaussian" or fwhm_um == 0:
        return Gaussian(fwhm_um, axial_fwhm_um=axial_fwhm_um)
    return Airy.of_fwhm(fwhm_um, axial_fwhm_um=axial_fwhm_um) if psf == "airy" else DetectorMTF.of_fwhm(fwhm_um)
