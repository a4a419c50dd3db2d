"""Kernels: the widths, zeros and transfer functions that physics asks for."""

import math

import numpy as np
import pytest
import torch
from scipy import special

from medsr.degradation import (
    Airy,
    Degradation,
    DetectorMTF,
    FineGrid,
    Gaussian,
    confocal_fwhm_um,
    widefield_fwhm_um,
)
from medsr.degradation.microscope import FWHM_PER_SIGMA


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("fwhm_um", [0.3, 0.8, 2.5])
def test_gaussian_has_the_width_asked_for(fwhm_um, half):
    (part,) = Gaussian(fwhm_um=fwhm_um).parts(FineGrid((2,), (0.1,), (half,)))
    place = (np.arange(part.weights.size) - (part.weights.size - 1) / 2) * 0.1
    assert part.weights.size % 2 == (0 if half else 1)
    sd = math.sqrt(float(part.weights @ place**2))
    assert sd * FWHM_PER_SIGMA == pytest.approx(fwhm_um, rel=2e-3)


def test_rotated_gaussian_has_its_axes_in_micrometers():
    grid = FineGrid((2, 2), (0.1, 0.2), (False, False))
    (part,) = Gaussian(fwhm_um=(2.0, 0.8), angle_deg=30).parts(grid)
    y = (np.arange(part.weights.shape[0]) - part.weights.shape[0] // 2)[:, None] * 0.1
    x = (np.arange(part.weights.shape[1]) - part.weights.shape[1] // 2)[None, :] * 0.2
    second = [[float((part.weights * a * b).sum()) for b in (y, x)] for a in (y, x)]
    values, vectors = np.linalg.eigh(second)
    np.testing.assert_allclose(np.sqrt(values) * FWHM_PER_SIGMA, [0.8, 2.0], rtol=5e-3)
    wide = vectors[:, 1] * np.sign(vectors[0, 1])
    assert math.degrees(math.atan2(wide[1], wide[0])) == pytest.approx(30, abs=0.5)


def test_quarter_turns_stay_separable():
    grid = FineGrid((2, 2), (0.1, 0.1), (False, False))
    turned = Gaussian(fwhm_um=(1.0, 0.4), angle_deg=90).parts(grid)
    plain = Gaussian(fwhm_um=(0.4, 1.0)).parts(grid)
    assert all(np.array_equal(a.weights, b.weights) for a, b in zip(turned, plain, strict=True))


def test_airy_is_dark_where_it_should_be():
    """Zeros at 0.610 and 1.117 wavelength / na (Born and Wolf), and 83.8 % of the light within the first."""
    na, wavelength = 0.5, 0.5
    grid = FineGrid((2, 2), (0.01, 0.01), (False, False))
    (part,) = Airy(na, wavelength).parts(grid)
    middle = part.weights.shape[0] // 2
    profile = part.weights[middle, middle:] / part.weights[middle, middle]
    assert profile[61] < 1e-5
    assert profile[112] < 1e-5
    assert profile[round(0.5145 * 50)] == pytest.approx(0.5, abs=0.02)  # FWHM = 1.029 wavelength / (2 na)
    y, x = np.indices(part.weights.shape) - middle
    inside = part.weights[np.hypot(y, x) <= 61].sum()
    total = 1 - special.j0(8 * math.pi) ** 2 - special.j1(8 * math.pi) ** 2  # within the cut at 4 wavelength / na
    assert inside * total == pytest.approx(0.838, abs=0.003)


@pytest.mark.parametrize("na, index", [(0.2, 1.0), (0.75, 1.0), (1.2, 1.333), (1.4, 1.518)])
def test_widefield_widths_equal_the_published_formula(na, index):
    """Closed forms of the 3D nonparaxial widefield Gaussian, and the paraxial ones for a small aperture."""
    axial, lateral = (w / FWHM_PER_SIGMA for w in widefield_fwhm_um(na, 0.52, refractive_index=index))
    k, c = 2 * math.pi * index / 0.52, math.cos(math.asin(na / index))
    t = c**1.5
    assert lateral == pytest.approx(math.sqrt(7 * (1 - t) / (4 - 7 * t + 3 * c**3.5)) / k, rel=1e-9)
    root = math.sqrt(4 * c**5 - 25 * c**3.5 + 42 * c**2.5 - 25 * t + 4)
    assert axial == pytest.approx(5 * math.sqrt(7) * (1 - t) / (math.sqrt(6) * k * root), rel=1e-6)
    if na == 0.2:
        assert lateral == pytest.approx(0.225 * 0.52 / na, rel=0.02)
        assert axial == pytest.approx(2 * math.sqrt(6) * index * 0.52 / (2 * math.pi * na**2), rel=0.02)


def test_confocal_widths():
    """A point pinhole adds the curvatures; at one Airy unit only the excitation is left in the plane (paraxial)."""
    wide = widefield_fwhm_um(0.3, 0.52, refractive_index=1.0)
    laser = widefield_fwhm_um(0.3, 0.488, refractive_index=1.0)
    point = confocal_fwhm_um(0.3, 0.52, excitation_um=0.488, pinhole_au=0, refractive_index=1.0)
    np.testing.assert_allclose(point, [(a**-2 + b**-2) ** -0.5 for a, b in zip(wide, laser, strict=True)])
    tiny = confocal_fwhm_um(0.3, 0.52, excitation_um=0.488, pinhole_au=0.01, refractive_index=1.0)
    np.testing.assert_allclose(tiny, point, rtol=1e-3)
    one = confocal_fwhm_um(0.3, 0.52, excitation_um=0.488, pinhole_au=1, refractive_index=1.0)
    assert one[1] == pytest.approx(laser[1], rel=0.01)
    assert point[0] < one[0] < laser[0]


def test_confocal_pinhole_equals_the_paraxial_bessel_formula():
    """2 q**2 J1(v) J2(v) / (v (1 - J0(v)**2 - J1(v)**2)), v = q a, q = 2 pi na / wavelength."""
    na, emission, excitation, au = 0.1, 0.52, 0.488, 0.6
    q, v = 2 * math.pi * na / emission, 0.6 * 0.61 * 2 * math.pi
    detection = 2 * q**2 * special.j1(v) * special.jn(2, v) / (v * (1 - special.j0(v) ** 2 - special.j1(v) ** 2))
    expected = FWHM_PER_SIGMA / math.sqrt((2 * math.pi * na / excitation) ** 2 / 2 + detection)
    got = confocal_fwhm_um(na, emission, excitation_um=excitation, pinhole_au=au, refractive_index=1.0)
    assert got[1] == pytest.approx(expected, rel=5e-3)


def test_microscope_refuses_impossible_apertures():
    with pytest.raises(ValueError, match="refractive index above na; found na 1.4"):
        widefield_fwhm_um(1.4, 0.5, refractive_index=1.333)
    assert Gaussian.widefield(1.4, 0.5).axial_fwhm_um > Gaussian.widefield(1.4, 0.5).fwhm_um
    assert Gaussian.confocal(1.2, 0.52, excitation_um=0.488).fwhm_um < Gaussian.widefield(1.2, 0.52).fwhm_um


MTFS = {
    "gaussian": DetectorMTF("gaussian", f50_per_mm=2.5),
    "lorentzian": DetectorMTF("lorentzian", f50_per_mm=2.0),
    "table": DetectorMTF.measured([0, 1, 2, 3, 4, 5, 6, 8, 10], [1, 0.93, 0.8, 0.66, 0.53, 0.42, 0.33, 0.19, 0.1]),
}


@pytest.mark.parametrize("name", MTFS)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("axes", [1, 2])
def test_kernel_has_the_mtf_asked_for(name, half, axes):
    """The transform of the weights, along an axis and at an angle, up to 90 % of the band (80 % between samples)."""
    spacing_um = 50.0
    (part,) = MTFS[name].parts(FineGrid((2,) * axes, (spacing_um,) * axes, (half,) * axes))
    place = np.arange(part.weights.shape[0]) - (part.weights.shape[0] - 1) / 2
    cycles = np.linspace(0, 0.4 if half else 0.45, 17)
    for direction in np.eye(axes)[:1].tolist() + ([[0.6, 0.8]] if axes == 2 else []):
        own = []
        for f in cycles:
            wave = np.ones(())
            for d in direction:
                wave = np.multiply.outer(wave, np.exp(-2j * np.pi * f * d * place))
            own.append((part.weights * wave).sum())
        asked = MTFS[name].at(cycles / (spacing_um * 1e-3))
        assert np.abs(np.imag(own)).max() < 1e-12
        np.testing.assert_allclose(np.real(own), asked, atol=0.005)


def test_mtf_curves():
    for form in ("gaussian", "lorentzian", "exponential"):
        curve = DetectorMTF(form, f50_per_mm=3.0)
        np.testing.assert_allclose(curve.at(np.array([0.0, 3.0])), [1.0, 0.5])
    beyond = MTFS["table"].at(np.array([12.0, 14.0]))
    np.testing.assert_allclose(beyond, [0.1 * 0.1 / 0.19, 0.1 * (0.1 / 0.19) ** 2])
    with pytest.raises(ValueError, match="ascending"):
        DetectorMTF.measured([1, 1], [0.5, 0.4])
    with pytest.raises(ValueError, match="f50_per_mm above 0"):
        DetectorMTF("gaussian")
    with pytest.raises(ValueError, match="expected gaussian, lorentzian"):
        DetectorMTF("box", f50_per_mm=1.0)


def test_slice_profile_blurs_z_only():
    impulse = torch.zeros(1, 1, 33, 5, 5, dtype=torch.float64)
    impulse[0, 0, 16, 2, 2] = 1
    profile = Gaussian(axial_fwhm_um=2.0)
    low = Degradation((1, 1, 1), kernel=profile, spacing_um=(0.5, None, None)).mean(impulse)[0, 0]
    assert float(low[:, 2, 2].sum()) == pytest.approx(1)
    assert float(low[16 + 2, 2, 2] / low[16, 2, 2]) == pytest.approx(0.5, abs=1e-3)
