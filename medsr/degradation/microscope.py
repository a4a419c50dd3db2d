"""Widths of a microscope's point spread function from its aperture and wavelength."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray

__all__ = ["FWHM_PER_SIGMA", "confocal_fwhm_um", "widefield_fwhm_um"]

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))

Curvatures = tuple[float, float]  # 1 / sigma**2 along z and in the plane, per square micrometer


def widefield_fwhm_um(na: float, wavelength_um: float, *, refractive_index: float = 1.518) -> tuple[float, float]:
    """Full widths at half maximum (axial, lateral) of the Gaussian that approximates a widefield microscope.

    The Gaussian has the curvature of the scalar Debye intensity at its peak, without the paraxial approximation: the
    "3D nonparaxial WFFM" of the reference. With alpha = asin(na / n), t = cos(alpha)**1.5 and k = 2 pi n / wavelength,
    sigma_lateral = sqrt(7 (1 - t) / (4 - 7 t + 3 cos(alpha)**3.5)) / k, which for a small aperture is
    sqrt(2) / (2 pi) * wavelength / na = 0.225 wavelength / na (the least-squares fit to an Airy disk is 0.21).

    Args:
        na: numerical aperture of the objective.
        wavelength_um: emission wavelength in vacuum.
        refractive_index: of the immersion and the sample (oil 1.518, glycerol 1.47, water 1.333, air 1).

    Raises:
        ValueError: a value is not above 0, or the aperture is not below the refractive index.

    References:
        Zhang, Zerubia, Olivo-Marin 2007, Gaussian approximations of fluorescence microscope point-spread function
        models, doi:10.1364/AO.46.001819.
    """
    axial, lateral = _curvatures(na, wavelength_um, refractive_index, pinhole_um=0.0)
    return FWHM_PER_SIGMA / math.sqrt(axial), FWHM_PER_SIGMA / math.sqrt(lateral)


def confocal_fwhm_um(
    na: float,
    wavelength_um: float,
    *,
    excitation_um: float,
    pinhole_au: float = 1.0,
    refractive_index: float = 1.518,
) -> tuple[float, float]:
    """Full widths at half maximum (axial, lateral) of the Gaussian that approximates a laser scanning confocal.

    The response is the excitation spot times the emission spot blurred by the pinhole; its curvature at the peak is
    the sum of theirs ("3D LSCM" of the reference, here without the paraxial approximation).

    Args:
        na: numerical aperture of the objective.
        wavelength_um: emission wavelength in vacuum.
        excitation_um: wavelength of the laser in vacuum.
        pinhole_au: diameter of the pinhole in Airy units (1.22 wavelength_um / na); 0 is a point.
        refractive_index: of the immersion and the sample.

    Raises:
        ValueError: a value is not above 0 (the pinhole: below 0), or the aperture is not below the refractive index.

    References:
        Zhang, Zerubia, Olivo-Marin 2007, doi:10.1364/AO.46.001819.
    """
    if not pinhole_au >= 0:
        raise ValueError(f"pinhole_au: expected a diameter of at least 0 Airy units, found {pinhole_au}")
    excitation = _curvatures(na, excitation_um, refractive_index, pinhole_um=0.0)
    detection = _curvatures(na, wavelength_um, refractive_index, pinhole_um=pinhole_au * 0.61 * wavelength_um / na)
    axial, lateral = (e + max(d, 0.0) for e, d in zip(excitation, detection, strict=True))
    return FWHM_PER_SIGMA / math.sqrt(axial), FWHM_PER_SIGMA / math.sqrt(lateral)


@lru_cache(maxsize=64)
def _curvatures(na: float, wavelength_um: float, refractive_index: float, *, pinhole_um: float) -> Curvatures:
    """1 / sigma**2 at the peak of the Debye intensity integrated over a disk of radius `pinhole_um`.

    Amplitude at (rho, z): integral of sqrt(cos) sin J0(k rho sin) exp(i k z cos) over the cone of light; its Taylor
    series to the second order in z gives the axial curvature, the divergence theorem on the disk the lateral one.
    """
    from scipy.special import j0, j1

    if not (na > 0 and wavelength_um > 0 and refractive_index > na):
        raise ValueError(
            f"expected na > 0, a wavelength above 0 um and a refractive index above na; found na {na}, wavelength "
            f"{wavelength_um} um, refractive index {refractive_index} (oil 1.518, glycerol 1.47, water 1.333, air 1)"
        )
    k = 2 * math.pi * refractive_index / wavelength_um
    nodes, weights = leggauss(96)
    alpha = math.asin(na / refractive_index)
    theta = (nodes + 1) * alpha / 2
    sine, cosine = np.sin(theta), np.cos(theta)
    weight = weights * np.sqrt(cosine) * sine

    def moment(rho: NDArray[np.float64], power: int) -> NDArray[np.float64]:
        return np.asarray(j0(k * np.multiply.outer(rho, sine)) @ (weight * cosine**power), np.float64)

    if pinhole_um == 0:
        mean = weight / weight.sum()
        spread = float(mean @ cosine**2 - (mean @ cosine) ** 2)
        return 2 * k**2 * spread, float(k**2 * (mean @ sine**2))
    rho = (nodes + 1) * pinhole_um / 2
    area = weights * rho * pinhole_um / 2
    m0, m1, m2 = (moment(rho, power) for power in (0, 1, 2))
    light = float(area @ m0**2)
    edge = 2 * float(moment(np.array([pinhole_um]), 0)[0] * (j1(k * pinhole_um * sine) @ (weight * k * sine)))
    return float(2 * k**2 * (area @ (m0 * m2 - m1**2)) / light), pinhole_um * edge / (2 * light)
