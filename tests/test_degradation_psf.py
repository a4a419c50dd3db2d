"""Blurs of a range that are no Gaussians: the laws of a degradation, their width, and what is refused."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from medsr.degradation import Airy, Degradation, DegradationRange, DetectorMTF, FineGrid, Gaussian
from medsr.degradation.shapes import psf_of_fwhm
from tests import laws_degradation as laws

AIRY = DegradationRange(psf="airy", fwhm_um=(0.2, 0.4), axial_fwhm_um=(0.5, 0.9))
DETECTOR = DegradationRange(psf="detector", fwhm_um=(0.2, 0.4))


def drawn(blurs: DegradationRange, factor: tuple[int, ...], sampling: str, seed: int = 0) -> Degradation:
    blurs = blurs.model_copy(update={"sampling": sampling})
    found = blurs.sample(torch.Generator().manual_seed(seed), factor, laws.SPACING_UM[len(factor)])
    assert isinstance(found, Degradation)
    return found


@pytest.mark.parametrize("sampling", ["area", "point", "cubic"])
@pytest.mark.parametrize("factor", [(2, 2), (3, 2), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("blurs", [AIRY, DETECTOR], ids=["airy", "detector"])
def test_the_laws_hold(blurs: DegradationRange, factor: tuple[int, ...], sampling: str) -> None:
    degradation = drawn(blurs, factor, sampling)
    coarse = 3 if len(factor) == 3 else 5
    laws.adjointness(degradation, coarse)
    laws.gradient_is_adjoint(degradation, coarse)
    laws.linearity(degradation, coarse)
    laws.flat_field(degradation, coarse)
    laws.ramp_in_micrometers(degradation)
    if len(factor) == 2:
        laws.blob_stays(degradation)
        laws.context_suffices(degradation)


def test_the_width_is_the_one_that_was_asked() -> None:
    """On a grid of a hundredth of it: an Airy pattern at half its peak, and a detector's image of a thin line."""
    grid = FineGrid((1, 1), (0.01, 0.01), (False, False))
    weights = Airy.of_fwhm(0.3).parts(grid)[-1].weights
    middle = weights[len(weights) // 2]
    assert _width(middle) * 0.01 == pytest.approx(0.3, rel=1e-3)
    assert Airy.of_fwhm(0.3).fwhm_um == pytest.approx(0.3)
    assert Airy(0.9, 0.52).fwhm_um == pytest.approx(0.5145 * 0.52 / 0.9, rel=1e-4)
    curve = DetectorMTF.of_fwhm(100.0)
    frequency = np.arange(0, 2000.0, 0.05)  # cycles per millimeter
    places = np.array([0.0, 0.05])  # millimeters: the middle, and half the width
    line = (curve.at(frequency) * np.cos(2 * np.pi * frequency * places[:, None])).sum(1) - curve.at(np.zeros(1)) / 2
    assert line[1] / line[0] == pytest.approx(0.5, abs=2e-3)
    assert curve.fwhm_um == pytest.approx(100.0)
    assert DetectorMTF("gaussian", f50_per_mm=4.0).fwhm_um == pytest.approx(2 * math.log(2) / (math.pi * 4.0) * 1e3)
    assert DetectorMTF.measured([1.0, 2.0], [0.8, 0.5]).fwhm_um is None
    for wrong in (0.0, -1.0):
        with pytest.raises(ValueError, match="above 0"):
            DetectorMTF.of_fwhm(wrong)
        with pytest.raises(ValueError, match="above 0"):
            Airy.of_fwhm(wrong)


def _width(line: np.ndarray) -> float:
    fine = np.interp(np.linspace(0, len(line) - 1, 100 * len(line)), np.arange(len(line)), line)
    return float((fine >= fine.max() / 2).sum()) * (len(line) - 1) / (100 * len(line) - 1)


def test_a_range_makes_the_shape_it_names() -> None:
    generator = torch.Generator().manual_seed(1)
    airy = [AIRY.sample(generator, (1, 2, 2), (0.3, 0.1, 0.1)).kernel for _ in range(50)]
    assert all(isinstance(kernel, Airy) for kernel in airy)
    widths = [(kernel.fwhm_um, kernel.axial_fwhm_um) for kernel in airy]
    assert 0.2 <= min(w for w, _ in widths) < 0.22
    assert 0.38 < max(w for w, _ in widths) <= 0.4
    assert 0.5 <= min(z for _, z in widths) < max(z for _, z in widths) <= 0.9
    center = DETECTOR.center((2, 2), (0.1, 0.1)).kernel
    assert isinstance(center, DetectorMTF)
    assert center.fwhm_um == pytest.approx(0.3)
    assert AIRY.center((2, 2), (0.1, 0.1)).kernel.fwhm_um == pytest.approx(0.3)
    scope = DegradationRange(psf="airy", na=0.5, wavelength_um=0.52, refractive_index=1.0)
    said = Gaussian.widefield(0.5, 0.52, refractive_index=1.0).axial_fwhm_um
    assert scope.center((2, 2), (0.1, 0.1)).kernel == Airy(0.5, 0.52, axial_fwhm_um=said)
    point = DegradationRange(psf="airy", fwhm_um=(0.0, 0.0)).center((2, 2), (0.1, 0.1))
    assert point.kernel == psf_of_fwhm("airy", 0.0) == Gaussian(0.0)
    # The same draws as a Gaussian's: only the shape differs.
    plain = DegradationRange(fwhm_um=(0.2, 0.4), photons=(50, 500))
    shaped = plain.model_copy(update={"psf": "airy"})
    one, other = (r.sample(torch.Generator().manual_seed(4), (2, 2), (0.1, 0.1)) for r in (plain, shaped))
    assert one.noise == other.noise
    assert other.kernel.fwhm_um == pytest.approx(one.kernel.fwhm_um[0])


@pytest.mark.parametrize("blurs", [AIRY, DETECTOR, DegradationRange(psf="detector", fwhm_um=(0.02, 0.5))])
def test_no_drawn_blur_reaches_further_than_the_range_says(blurs: DegradationRange) -> None:
    reach = blurs.reach((2, 2), (0.1, 0.1))
    generator = torch.Generator().manual_seed(0)
    halos = [blurs.sample(generator, (2, 2), (0.1, 0.1)).halo for _ in range(40)]
    assert all(h <= r for halo in halos for h, r in zip(halo, reach, strict=True))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"psf": "airy", "fwhm_samples": (1, 2)}, r"expected fwhm_um \(or na and wavelength_um\).*found fwhm_samples"),
        ({"psf": "detector", "fwhm_samples": (1, 2)}, "expected fwhm_um with detector.*found fwhm_samples"),
        ({"psf": "detector"}, "found none"),
        ({"psf": "detector", "na": 0.5, "wavelength_um": 0.5}, "found na"),
        ({"psf": "airy", "fwhm_um": (1, 2), "anisotropy": 2}, "which is round, found 2"),
        ({"psf": "detector", "fwhm_um": (1, 2), "anisotropy": 1.5}, "which is round, found 1.5"),
        ({"psf": "detector", "fwhm_um": (1, 2), "axial_fwhm_um": (1, 2)}, "expected no axial_fwhm_um with detector"),
        ({"psf": "disk"}, "airy"),
    ],
)
def test_a_shape_that_can_not_be_is_refused(fields: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        DegradationRange(**fields)
