"""Kernel codes: a kernel becomes a few numbers, and from them its width and its shape come back."""

import math
import pickle

import numpy as np
import pytest
import torch

from medsr.degradation import Airy, Degradation, DegradationRange, DetectorMTF, Gaussian, Weights
from medsr.methods.kernel_code import KernelCode, blur_of, kernel_fwhm_samples, render_kernel
from medsr.transforms import RandDegraded
from tests.methods_asked import mammogram

ROUND = DegradationRange(fwhm_samples=(0.5, 2.5))
TURNED = DegradationRange(fwhm_samples=(0.7, 2.0), anisotropy=2.0)
DEEP = DegradationRange(fwhm_um=(0.3, 0.9), axial_fwhm_um=(0.6, 2.0))
DEEP_SPACING = (0.25, 0.1, 0.1)


def coder_of(blurs: DegradationRange, factor: tuple[int, ...] = (2, 2), spacing=None, seed: int = 0) -> KernelCode:
    coder = KernelCode(len(factor), size=23 if len(factor) == 3 else None)
    coder.learn(blurs, factor, [spacing], seed=seed)
    return coder


@pytest.fixture(scope="module")
def round_coder() -> KernelCode:
    return coder_of(ROUND)


def widths_found(coder: KernelCode, kernels, factor, spacing=None) -> torch.Tensor:
    rendered = [render_kernel(kernel, factor, spacing, size=coder.size) for kernel in kernels]
    return coder.match(coder.encode(torch.stack(rendered))).fwhm_samples


def test_the_width_of_a_round_kernel_comes_back(round_coder: KernelCode) -> None:
    asked = torch.linspace(0.55, 2.45, 40)
    found = widths_found(round_coder, [Gaussian(fwhm_samples=float(w)) for w in asked], (2, 2))
    assert float((found / asked[:, None] - 1).abs().max()) < 0.02


@pytest.mark.parametrize(
    ("blurs", "factor", "spacing"), [(TURNED, (2, 2), None), (DEEP, (2, 2, 2), DEEP_SPACING)], ids=["turned", "deep"]
)
def test_widths_of_kernels_that_are_not_round_come_back(blurs, factor, spacing) -> None:
    coder = coder_of(blurs, factor, spacing)
    generator = torch.Generator().manual_seed(5)
    kernels = [blur_of(blurs.sample(generator, factor, spacing)) for _ in range(40)]
    asked = torch.tensor([kernel_fwhm_samples(kernel, factor, spacing) for kernel in kernels])
    off = (widths_found(coder, kernels, factor, spacing) / asked - 1).abs()
    assert float(off.mean()) < 0.02
    assert float(off.max()) < 0.1


def test_micrometers_are_samples_times_the_coarse_spacing() -> None:
    wide = kernel_fwhm_samples(Gaussian(fwhm_um=(0.4, 0.6), axial_fwhm_um=1.5), (1, 2, 2), DEEP_SPACING)
    assert wide == pytest.approx((1.5 / 0.25, 0.4 / 0.2, 0.6 / 0.2))
    turned = kernel_fwhm_samples(Gaussian(fwhm_samples=(3.0, 1.0), angle_deg=90), (2, 2))
    assert turned == pytest.approx((1.0, 3.0))
    assert kernel_fwhm_samples(None, (2, 2)) == (0.0, 0.0)


@pytest.mark.parametrize(
    "kernel",
    [
        Airy(0.9, 0.9, axial_fwhm_um=0.8),
        DetectorMTF("lorentzian", f50_per_mm=400.0),
        DetectorMTF("exponential", f50_per_mm=400.0),
        DetectorMTF("gaussian", f50_per_mm=800.0),
        DetectorMTF.measured([400.0, 800.0, 1600.0, 3200.0], [0.9, 0.6, 0.2, 0.01]),
        Weights(np.hanning(11)[:, None] * np.hanning(15)[None]),
    ],
    ids=["airy", "lorentzian", "exponential", "gaussian", "table", "weights"],
)
def test_every_kernel_has_a_width_that_its_samples_show(kernel) -> None:
    """Against the half maximum of the rendered kernel: its middle line for Airy, else its projection."""
    spacing = (0.04, 0.05)
    found = kernel_fwhm_samples(kernel, (2, 2), spacing)
    weights = render_kernel(kernel, (2, 2), spacing, size=121, least=0.5).double().numpy()
    for axis, width in enumerate(found):
        profile = weights.take(60, 1 - axis) if isinstance(kernel, Airy) else weights.sum(1 - axis)
        fine = np.interp(np.linspace(0, 120, 120_001), np.arange(121), profile)
        seen = float((fine >= fine.max() / 2).sum()) * 1e-3 / 2
        # The band of the fine grid rounds off the cusp of a Lorentzian's line; a table reads its line as it is seen.
        assert width == pytest.approx(seen, rel=0.12 if getattr(kernel, "form", "") == "lorentzian" else 0.04)
        assert width > 1


@pytest.mark.parametrize("psf", ["airy", "detector"])
def test_widths_of_a_microscope_and_a_detector_come_back(psf) -> None:
    """Codes learned from the device's own kernels, not from Gaussians."""
    blurs = DegradationRange(psf=psf, fwhm_um=(0.1, 0.3))
    coder = KernelCode(2, size=41)
    coder.learn(blurs, (2, 2), [(0.1, 0.1)], seed=0)
    assert coder.widths.amin(0).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert coder.widths.amax(0).tolist() == pytest.approx([1.5, 1.5], abs=0.01)
    asked = torch.linspace(0.11, 0.29, 12)
    kernels = [blur_of(blurs.model_copy(update={"fwhm_um": (w, w)}).center((2, 2), (0.1, 0.1))) for w in asked.tolist()]
    rendered = torch.stack([render_kernel(kernel, (2, 2), (0.1, 0.1), size=41) for kernel in kernels])
    found = coder.match(coder.encode(rendered)).fwhm_samples * 0.2
    assert float((found / asked[:, None] - 1).abs().max()) < 0.01


@pytest.mark.parametrize(
    ("blurs", "factor", "spacing"),
    [
        (DegradationRange(na=0.5, wavelength_um=0.52, axial_fwhm_um=(0.5, 1.0)), (2, 2), (0.1, 0.1)),
        (DegradationRange(fwhm_samples=(1.0, 1.0)), (2, 2), None),
        (DegradationRange(fwhm_samples=(1.0, 1.0), anisotropy=2.0), (1, 2, 1), None),
        (DegradationRange(fwhm_samples=(0.0, 0.02)), (2, 2), None),
    ],
    ids=["axial", "one", "one-axis", "points"],
)
def test_one_blur_is_no_family(blurs, factor, spacing) -> None:
    with pytest.raises(ValueError, match=r"expected a range of blurs along a refined axis .* found one blur only"):
        KernelCode(len(factor)).learn(blurs, factor, [spacing], seed=0)
    assert blurs.blur_varies(factor) == (blurs.fwhm_samples == (0.0, 0.02))
    assert blurs.blur_varies((2, 2, 2)) == (blurs.fwhm_samples != (1.0, 1.0) or blurs.anisotropy > 1)


def test_a_code_can_be_shown_as_its_kernel(round_coder: KernelCode) -> None:
    kernel = render_kernel(Gaussian(fwhm_samples=1.3), (2, 2), size=21)
    shown = round_coder.decode(round_coder.encode(kernel[None]))[0]
    assert float((shown - kernel).norm() / kernel.norm()) < 1e-3
    assert float(round_coder.encode(round_coder.mean[None]).abs().max()) < 1e-5


def test_kernels_of_a_microscope_and_a_detector_have_a_width(round_coder: KernelCode) -> None:
    """None is a Gaussian; by codes of Gaussians each is matched with the closest one."""
    spacing = (0.065, 0.065)
    airy = [Airy(na, 0.52, radius_um=0.6) for na in (0.8, 1.0, 1.2)]
    found = widths_found(round_coder, airy, (2, 2), spacing)[:, 0] * 0.13  # micrometers
    for width, na in zip(found.tolist(), (0.8, 1.0, 1.2), strict=True):
        assert width == pytest.approx(0.51 * 0.52 / na, rel=0.2)  # the rings take from what is left for the Gaussian
    assert bool((found.diff() < 0).all())
    sharp, soft = widths_found(
        round_coder, [DetectorMTF("gaussian", f) for f in (4.0, 2.5)], (2, 2), (60.0, 60.0)
    )  # cycles per millimeter
    for found, f50 in ((sharp, 4.0), (soft, 2.5)):
        assert float(found[0]) * 120 == pytest.approx(2 * math.log(2) / (math.pi * f50) * 1000, rel=0.03)


def test_it_follows_from_the_range_and_the_seed_and_travels() -> None:
    first, again, other = coder_of(ROUND), coder_of(ROUND), coder_of(ROUND, seed=1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.members, other.members)
    # Another seed draws other members of the same family: the same components.
    kernel = render_kernel(Gaussian(fwhm_samples=1.3), (2, 2), size=21)[None]
    torch.testing.assert_close(first.encode(kernel)[:, :2], other.encode(kernel)[:, :2], rtol=0.15, atol=0.15)
    assert torch.equal(pickle.loads(pickle.dumps(first)).encode(kernel), first.encode(kernel))


def test_what_has_no_code_is_said() -> None:
    with pytest.raises(ValueError, match=r"9 fine samples .* raise method\.kernel_size"):
        render_kernel(Gaussian(fwhm_samples=4.0), (2, 2), size=9)
    second = DegradationRange.model_validate({"fwhm_samples": (1, 2), "second": {}})
    with pytest.raises(ValueError, match="found two passes"):
        blur_of(second.sample(torch.Generator().manual_seed(0), (2, 2)))
    with pytest.raises(ValueError, match="needs the fine spacing"):
        render_kernel(Gaussian(fwhm_um=0.3), (2, 2), size=21)


def test_the_kernel_beside_a_patch_is_the_one_that_made_it() -> None:
    """Degraded once more by the kernel that came with it, the fine patch gives the coarse one."""
    high = mammogram()[0, :, :64, :64]
    degrade = RandDegraded("high", TURNED, (2, 2), kernel_keys="kernel")
    item = degrade.set_random_state(seed=3)({"high": high})
    again = Degradation((2, 2), kernel=item["kernel"].double().numpy()).mean(high[None])[0]
    inner = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(again[inner], item["low"][inner], rtol=0, atol=2e-5)
    assert tuple(item["kernel"].shape) == (21, 21)
    plain = RandDegraded("high", TURNED, (2, 2)).set_random_state(seed=3)({"high": high})
    assert "kernel" not in plain
    assert torch.equal(plain["low"], item["low"])
    with pytest.raises(ValueError, match="a kernel key for each"):
        RandDegraded(["a", "b"], TURNED, (2, 2), low_keys=["c", "d"], kernel_keys="kernel")
