"""Consistency: the measured scan comes back, exactly where that is possible, on real data; laws, tiles, adaptation."""

import copy
import math
from itertools import product

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import medsr
from medsr.data import NUCLEI
from medsr.degradation import (
    Airy,
    Degradation,
    DegradationRange,
    DetectorMTF,
    Gaussian,
    PoissonGaussian,
    SecondOrder,
    Weights,
)
from medsr.methods import Consistent, Cubic, FindsDegradation, KnowsDegradation, Lanczos, Linear
from medsr.methods.projection import project, projection
from medsr.scan import Grid, Intensity, Scan
from medsr.upscaler import Composed, Upscaler, describe, fingerprint
from tests import laws
from tests.methods_asked import mammogram, network, noise, real_scan

EXACT = {
    "area-2": Degradation((2, 2)),
    "area-4": Degradation((4, 4)),
    "area-3-2": Degradation((3, 2)),
    "point-2": Degradation((2, 2), sampling="point"),
    "point-3": Degradation((3, 3), sampling="point"),
    "cubic-2": Degradation((2, 2), sampling="cubic"),
    "cubic-4": Degradation((4, 4), sampling="cubic"),
    "gauss-2": Degradation((2, 2), kernel=Gaussian(fwhm_samples=1.0)),
    "gauss-uneven-3": Degradation((3, 3), kernel=Gaussian(fwhm_samples=(0.6, 1.2)), sampling="point"),
    "one-axis-4": Degradation((4,), kernel=Gaussian(fwhm_samples=1.0)),
    "lopsided-2": Degradation((2, 2), kernel=[np.array([3.0, 2, 1]), np.array([1.0, 4, 2])]),
    "gauss-1-2-2": Degradation((1, 2, 2), kernel=Gaussian(fwhm_samples=0.8)),
    "blurred-z-1-2-2": Degradation((1, 2, 2), kernel=Gaussian(axial_fwhm_samples=1.2)),
    "slices-4-1-1": Degradation((4, 1, 1), kernel=Gaussian(axial_fwhm_samples=1.0)),
    "cubic-2-2-2": Degradation((2, 2, 2), sampling="cubic"),
}
"""Well conditioned, separable: the scan comes back to rounding."""
ITERATED = {
    "turned-2": Degradation((2, 2), kernel=Gaussian(fwhm_samples=(1.5, 0.8), angle_deg=30)),
    "airy-2": Degradation((2, 2), kernel=Airy(0.5, 0.52), spacing_um=(0.3, 0.3)),
    "detector-2": Degradation((2, 2), kernel=DetectorMTF("lorentzian", 4.0), spacing_um=(50.0, 50.0)),
    "turned-1-2-2": Degradation((1, 2, 2), kernel=Gaussian(fwhm_samples=(1.2, 0.7), angle_deg=60)),
    "twice-2": SecondOrder((2, 2), between=(3, 3), kernels=(Gaussian(fwhm_samples=0.5), None)),
}
"""Not separable: a fixed number of steps."""
WIDE = {
    "gauss-wide-2": Degradation((2, 2), kernel=Gaussian(fwhm_samples=2.0)),
    "gauss-wide-4": Degradation((4, 4), kernel=Gaussian(fwhm_samples=3.0)),
}
"""So wide that a ridge holds the condition."""
ALL = {**EXACT, **ITERATED, **WIDE}


def real_pair(degradation) -> tuple[torch.Tensor, torch.Tensor]:
    """A part of a shipped scan, and its coarse scan; float64."""
    axes = len(degradation.factor)
    fine = {1: mammogram()[:, :, 100], 2: mammogram()[..., :144, :192], 3: real_scan()[..., :24, 60:120, 60:132]}[axes]
    fine = fine[(..., *(slice(n // f * f) for n, f in zip(fine.shape[2:], degradation.factor, strict=True)))].double()
    return degradation.mean(fine), fine


def psnr(estimate: torch.Tensor, truth: torch.Tensor) -> float:
    return float(-10 * torch.log10((estimate - truth).square().mean()))


def dense(degradation, size: tuple[int, ...]) -> torch.Tensor:
    """A as a matrix, (coarse, fine)."""
    fine = tuple(n * f for n, f in zip(size, degradation.factor, strict=True))
    basis = torch.eye(math.prod(fine), dtype=torch.float64).reshape(-1, 1, *fine)
    return degradation.mean(basis).flatten(1).T


# ---------------------------------------------------------------- the scan comes back


@pytest.mark.parametrize("name", EXACT)
def test_the_scan_comes_back_to_rounding(name):
    degradation = EXACT[name]
    low, fine = real_pair(degradation)
    method = Consistent(Cubic(degradation.factor), degradation)
    estimate = method(low)
    assert estimate.dtype == torch.float64
    assert float((degradation.mean(estimate) - low).abs().max()) < 1e-10
    assert psnr(estimate, fine) >= psnr(Cubic(degradation.factor)(low), fine)
    assert "ridge" not in repr(method)


@pytest.mark.parametrize("name", [*ITERATED, *WIDE])
def test_the_scan_nearly_comes_back_where_the_kernel_is_hard(name):
    degradation = ALL[name]
    low, fine = real_pair(degradation)
    plain, method = Cubic(degradation.factor), Consistent(Cubic(degradation.factor), degradation)
    before, after = (float((degradation.mean(m(low)) - low).square().mean().sqrt()) for m in (plain, method))
    assert after < before / (1000 if name in ITERATED else 10)
    assert psnr(method(low), fine) > psnr(plain(low), fine)
    assert len(method.condition) == (1 if name in ITERATED else 2)
    assert all(c > 100 for c in method.condition) == (name in WIDE)
    assert ("ridge" in repr(method)) == (name in WIDE)


@pytest.mark.parametrize("name", ["cubic-2", "gauss-uneven-3", "lopsided-2", "blurred-z-1-2-2", "slices-4-1-1"])
def test_it_is_the_pseudo_inverse_borders_included(name):
    degradation = EXACT[name]
    size = {2: (7, 9), 3: (4, 3, 4)}[len(degradation.factor)]
    low = noise(1, 1, *size).double()
    estimate = Lanczos(degradation.factor)(low)
    matrix = dense(degradation, size)
    asked = torch.linalg.pinv(matrix) @ (low.flatten() - matrix @ estimate.flatten())
    expected = estimate + asked.reshape(estimate.shape)
    torch.testing.assert_close(project(estimate, low, degradation), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["cubic-4", "gauss-2", "lopsided-2"])
def test_the_cut_filter_of_a_long_axis_is_the_whole_inverse(name):
    """Blocks with windows, and the borders of their own, against one solution for the whole length."""
    weights = EXACT[name]
    degradation = Degradation(weights.factor[:1], kernel=_first(weights), sampling=weights.sampling)
    for count in (300, 413):
        low = noise(1, 1, count).double()
        matrix = dense(degradation, (count,))
        expected = matrix.T @ torch.linalg.solve(matrix @ matrix.T, low.flatten())
        found = project(torch.zeros(1, 1, count * weights.factor[0], dtype=torch.float64), low, degradation)
        torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=1e-12)


def _first(degradation: Degradation):
    kernel = degradation.kernel
    return [kernel.arrays[0]] if isinstance(kernel, Weights) else kernel


@pytest.mark.parametrize("name", ALL)
def test_twice_is_once(name):
    degradation = ALL[name]
    low, _ = real_pair(degradation)
    made = projection(degradation)
    once = made(Lanczos(degradation.factor)(low), low)
    change = float((made(once, low) - once).abs().max())
    first = float((once - Lanczos(degradation.factor)(low)).abs().max())
    assert change <= {True: 1e-10, False: first / 2 if name in WIDE else first * 2e-3}[name in EXACT]


@pytest.mark.parametrize("name", ["area-2", "gauss-2", "turned-2", "gauss-wide-2"])
def test_the_error_never_grows_whatever_the_estimate(name):
    degradation = ALL[name]
    low, fine = real_pair(degradation)
    generator = torch.Generator().manual_seed(3)
    made = projection(degradation)
    for spread in (0.001, 0.1, 1.0):
        estimate = fine + spread * torch.randn(fine.shape, generator=generator, dtype=torch.float64)
        assert float((made(estimate, low) - fine).norm()) <= float((estimate - fine).norm())
    estimate = fine * 1.1 - 0.02
    assert float((made(estimate, low) - fine).norm()) < 0.3 * float((estimate - fine).norm())


def test_a_network_that_goes_astray_is_called_back():
    """Weights disturbed after training: the re-degraded error falls at least ten times; the true error falls too."""
    disturbed = copy.deepcopy(network("srresnet-2", 12))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in disturbed.parameters():
            weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=generator) if weight.numel() > 1 else 0
    low, fine = (x.float() for x in real_pair(EXACT["area-2"]))
    for name in ("area-2", "gauss-2", "turned-2"):
        degradation = ALL[name]
        low = degradation.mean(fine)
        method = Consistent(disturbed, degradation)
        with torch.inference_mode():
            astray, back = disturbed(low), method(low)
        before, after = ((degradation.mean(x) - low).square().mean().sqrt() for x in (astray, back))
        assert before > 1e-3
        assert after < before / 10
        assert psnr(back, fine) > psnr(astray, fine)


def photographs(folder, count: int):
    for path in sorted(folder.glob("*.png"))[:count]:
        yield torch.from_numpy(np.asarray(Image.open(path).convert("L"), np.float64) / 0xFF)[None, None]


@pytest.mark.shared
@pytest.mark.parametrize("sampling", ["area", "cubic"])
@pytest.mark.parametrize("factor", [(2, 2), (4, 4)])
def test_cubic_gains_on_every_photograph_and_micrograph(shared_data, factor, sampling):
    fluorescence = sorted((shared_data / "dev" / "micro" / "w2s_widefield_8bit").glob("*.tif"))[:6]
    scans = [*photographs(shared_data / "dev" / "bench" / "T91", 20)]
    planes = (tifffile.imread(path)[:256, :256].astype(np.float64) / 0xFF for path in fluorescence)
    scans += [torch.from_numpy(plane)[None, None] for plane in planes]
    degradation = Degradation(factor, sampling=sampling)
    method, gains = Consistent(Cubic(factor), degradation), []
    for scan in scans:
        fine = scan[(..., *(slice(n // f * f) for n, f in zip(scan.shape[2:], factor, strict=True)))]
        low = degradation.mean(fine)
        gains.append(psnr(method(low), fine) - psnr(Cubic(factor)(low), fine))
    assert min(gains) > 0
    assert np.mean(gains[:20]) > 0.25


# ---------------------------------------------------------------- the laws of every method


@pytest.fixture(
    params=[
        *("area-2", "area-3-2", "point-3", "cubic-4", "gauss-2", "lopsided-2", "gauss-1-2-2", "slices-4-1-1"),
        *("turned-2", "turned-1-2-2", "gauss-wide-4", "network", "lanczos", "noise"),
    ]
)
def method(request):
    if request.param == "network":
        return Consistent(network("srresnet-2", 12), EXACT["gauss-2"])
    if request.param == "lanczos":
        return Consistent(Lanczos((3, 3)), Degradation((3, 3), sampling="cubic"))
    if request.param == "noise":
        return Consistent(Cubic((2, 2)), EXACT["gauss-2"], noise=0.01)
    return Consistent(Cubic(ALL[request.param].factor), ALL[request.param])


def test_is_an_upscaler_made_of_another(method):
    assert isinstance(method, Upscaler)
    assert isinstance(method, Composed)
    assert isinstance(method, KnowsDegradation)
    (inner,) = method.parts
    assert method.adapt(None) is method
    assert method.factor == inner.factor
    assert all(h >= i for h, i in zip(method.halo, inner.halo, strict=True))
    assert str(method.factor) in repr(method)
    low = noise(2, 1, *(9,) * len(method.factor))
    with torch.inference_mode():
        found = method(low)
        torch.testing.assert_close(method.around(low, [inner]), found, rtol=0, atol=0)
        torch.testing.assert_close(torch.cat([method(low[:1]), method(low[1:])]), found, rtol=0, atol=1e-6)
    assert found.dtype == torch.float32
    torch.testing.assert_close(copy.deepcopy(method)(low), found, rtol=0, atol=0)


def test_tiled_equals_whole(method):
    """Scans far larger than the halo along one axis, with noise that the estimate contradicts everywhere."""
    if len(method.factor) == 2:
        low = mammogram()[..., :20, :150].contiguous()
        low = low + 0.05 * torch.randn(low.shape, generator=torch.Generator().manual_seed(1))
        laws.tiled_equals_whole(method, low, (20, 40))
        laws.tiled_equals_whole(method, low.transpose(2, 3).contiguous(), (67, 13))
        return
    low = real_scan()[..., :9, :16, :100]
    laws.tiled_equals_whole(method, low, (9, 16, 33))
    laws.tiled_equals_whole(method, low.movedim(2, 4).contiguous(), (9, 60, 5))


def test_the_halo_is_needed():
    """A correction of a shorter reach would show at the seams: the halo is no mere precaution."""
    method = Consistent(Cubic((2, 2)), WIDE["gauss-wide-2"])
    method.halo = tuple(h // 3 for h in method.halo)
    low = mammogram()[..., :40, :]
    with pytest.raises(AssertionError, match="differ from the whole"):
        laws.tiled_equals_whole(method, low, (40, 31))


def test_flat_stays_flat(method):
    for size in (9, 3, 1):
        laws.flat_stays_flat(method, (size,) * len(method.factor), tolerance=2e-6)


def test_gray_levels_survive(method):
    laws.gray_levels_survive(method)


def test_commutes_with_the_intensity_line(method):
    low = noise(1, 1, *(13,) * len(method.factor))
    for gain, offset in [(1.0, 0.3), (1.0, 40.0), (0.01, 0.0), (3.0, -1.0), (250.0, 40.0)]:
        laws.commutes_with_line(method, low, gain, offset)


@pytest.mark.parametrize("name", ["area-2", "cubic-4", "turned-2", "gauss-1-2-2"])
def test_samples_lie_where_the_grid_says(name):
    """A ramp stays the same ramp: neither the method nor the degradation moves it, so there is nothing to correct."""
    method = Consistent(Cubic(ALL[name].factor), ALL[name])
    axes = len(method.factor)
    grid = Grid(("z", "y", "x")[-axes:], (0.3, 0.25, 0.25)[-axes:], (1.0, -2.0, 3.0)[-axes:])
    size = {2: (140, 140), 3: (8, 60, 60)}[axes]
    border = tuple(min(h, n // 2 - 3) * f for h, n, f in zip(method.halo, size, method.factor, strict=True))
    laws.ramp_stays_in_place(method, grid, grid.refine(method.factor), size, border=border, tolerance=2e-5)


# ---------------------------------------------------------------- noise


def test_noise_is_not_printed_into_the_estimate():
    """With the right noise the error is below that of the plain method and of the exact one; the residual is noise."""
    clean, fine = real_pair(EXACT["gauss-2"])
    sigma = 0.02
    low = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    smooth = as_if_denoised(clean)
    degradation = EXACT["gauss-2"]
    doubt = float((degradation.mean(smooth) - clean).square().mean().sqrt())
    found = {}
    for noise_sd in (0.0, sigma):
        method = Consistent(Cubic((2, 2)), degradation, noise=noise_sd, doubt=doubt)
        estimate = method.around(low, [lambda _: smooth])
        residual = float((degradation.mean(estimate) - low).square().mean().sqrt())
        found[noise_sd] = psnr(estimate, fine), residual
    assert found[sigma][0] > found[0.0][0] + 3
    assert found[sigma][0] > psnr(smooth, fine)
    assert found[0.0][1] < 1e-10
    assert 0.3 * sigma < found[sigma][1] < 1.05 * sigma
    assert "noise 0.02 of doubt 0.01, ridge" in repr(Consistent(Cubic((2, 2)), degradation, noise=sigma))


def as_if_denoised(clean: torch.Tensor) -> torch.Tensor:
    """What a denoising method might make: fine samples from a scan without noise."""
    return Linear((2, 2))(clean)


@pytest.mark.parametrize("name", ["area-2", "gauss-2", "turned-2"])
def test_a_flat_contradiction_is_shrunk_by_the_wiener_gain(name):
    degradation = ALL[name]
    method = Consistent(Cubic((2, 2)), degradation, noise=0.02, doubt=0.01)
    low = torch.full((1, 1, 90, 90), 0.6)
    found = method.around(low, [lambda low: torch.full((1, 1, 180, 180), 0.5)])
    assert float(found[0, 0, 90, 90]) == pytest.approx(0.5 + 0.1 / 5, abs=3e-5)


def test_the_noise_is_that_of_the_degradation_unless_said():
    noisy = Degradation((2, 2), noise=PoissonGaussian(photons=200, read_noise=0.01))
    expected = math.sqrt(0.5 / 200 + 1e-4)
    assert f"noise {expected:.6f}"[:-1] in repr(Consistent(Cubic((2, 2)), noisy))
    assert "noise" not in repr(Consistent(Cubic((2, 2)), noisy, noise=0.0))
    range_ = DegradationRange(read_noise=(0.0, 0.04))
    assert "noise 0.02 of doubt" in repr(Consistent(Cubic((2, 2)), range_))

    class Drawn:
        def __call__(self, signal, generator):
            return PoissonGaussian(read_noise=0.03)(signal, generator)

    assert "noise 0.030" in repr(Consistent(Cubic((2, 2)), Degradation((2, 2), noise=Drawn())))


# ---------------------------------------------------------------- which degradation


def scan_of(spacing_um) -> Scan:
    data = np.zeros((20, 24), np.uint16)
    return Scan(data, Grid(("y", "x"), spacing_um), Intensity(0, 9, data.dtype))


def test_a_range_is_met_with_the_spacing_of_the_scan():
    range_ = DegradationRange(fwhm_um=(0.2, 0.4))
    asked = Consistent(Cubic((2, 2)), range_)
    assert asked.degradation is None
    assert asked.condition == ()
    with pytest.raises(ValueError, match="call adapt"):
        asked(noise(1, 1, 5, 5))
    adapted = asked.adapt(scan_of((0.2, 0.2)))
    expected = Consistent(Cubic((2, 2)), range_.center((2, 2), (0.1, 0.1)))
    low = noise(1, 1, 30, 30)
    torch.testing.assert_close(adapted(low), expected(low), rtol=0, atol=0)
    assert describe(adapted) == describe(expected)
    again = adapted.adapt(scan_of((0.4, 0.4)))
    assert describe(again) == describe(Consistent(Cubic((2, 2)), range_.center((2, 2), (0.2, 0.2))))
    assert describe(again) != describe(adapted)  # the same words, other weights
    with pytest.raises(ValueError, match="needs the fine spacing along y"):
        asked.adapt(scan_of(None))


class Estimates(Cubic):
    """A method that finds the blur of a scan when it is adapted to it."""

    found_degradation = None

    def adapt(self, scan):
        told = type(self)(self.factor)
        told.found_degradation = EXACT["gauss-2"]
        return told


def test_a_method_that_knows_its_degradation_is_believed():
    scan = scan_of((0.2, 0.2))
    for asked in (None, DegradationRange(fwhm_um=(0.1, 0.2)), DegradationRange(fwhm_samples=(0.1, 0.2))):
        method = Consistent(Estimates((2, 2)), asked).adapt(scan)
        assert method.degradation is EXACT["gauss-2"]
        assert method.parts[0].found_degradation is EXACT["gauss-2"]
    given = Consistent(Estimates((2, 2)), EXACT["cubic-2"]).adapt(scan)
    assert given.degradation is EXACT["cubic-2"]
    assert Consistent(Cubic((2, 2))).adapt(scan).degradation.sampling == "area"
    assert isinstance(Estimates((2, 2)), FindsDegradation)
    assert not isinstance(Cubic((2, 2)), FindsDegradation)


def test_its_description_is_its_identity():
    made = {describe(Consistent(Cubic(d.factor), d)) for d in ALL.values()}
    made |= {describe(Consistent(Cubic((2, 2)), EXACT["gauss-2"], noise=n)) for n in (0.01, 0.02)}
    made |= {describe(Consistent(Lanczos((2, 2)), EXACT["area-2"]))}
    assert len(made) == len(ALL) + 3
    assert describe(Consistent(Cubic((2, 2)), EXACT["area-2"])) == "Cubic((2, 2)), consistent with area (2, 2)"
    named = describe(Consistent(Cubic((2, 2)), EXACT["gauss-2"]))
    assert named.startswith("Cubic((2, 2)), consistent with area (2, 2) of Gaussian(fwhm_samples=1.0) [")
    weighed = (Consistent(network("srresnet-2", steps), EXACT["area-2"]) for steps in (0, 12))
    assert len(set(map(fingerprint, weighed))) == 2


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="of the method's factor"):
        Consistent(Cubic((2, 2)), EXACT["area-4"])
    for wrong in ({"noise": -1.0}, {"noise": math.nan}, {"doubt": 0.0}):
        with pytest.raises(ValueError, match="noise of at least 0 and doubt above 0"):
            Consistent(Cubic((2, 2)), EXACT["area-2"], **wrong)


# ---------------------------------------------------------------- a whole scan


def test_a_scan_in_tiles_with_holes():
    """Through `upscale`: tiles agree to one gray level, the degraded result gives the scan, holes stay holes."""
    stored = tifffile.imread(NUCLEI)[14].astype(np.float32)
    stored[40:50, 60:75] = np.nan
    scan = Scan(stored, Grid(("y", "x"), (0.3, 0.3)), Intensity(0, 4000, stored.dtype))
    method = Consistent(Cubic((2, 2)), DegradationRange(fwhm_um=(0.2, 0.3)), noise=0.0)
    whole = medsr.upscale(scan, method)
    tiled = medsr.upscale(scan, method, tile=(70, 90))
    assert "consistent with area (2, 2) of Gaussian" in whole.history[-1]
    levels = np.abs(whole.data - tiled.data) * 65535 / 4000
    assert np.nanmax(levels) <= 1
    holes = np.isnan(whole.data)
    assert np.array_equal(holes, np.isnan(stored).repeat(2, 0).repeat(2, 1))
    degradation = method.adapt(scan).degradation
    again = degradation.mean(torch.from_numpy(np.where(holes, 0, whole.data) / 4000).double()[None, None])[0, 0]
    far = np.s_[60:, 90:]  # of the hole, which was filled while it was upscaled
    assert float((again - torch.from_numpy(stored / 4000))[far].abs().max()) < 1e-6


def test_every_size_is_taken():
    for (name, degradation), size in product(ALL.items(), (1, 2, 5)):
        low = noise(1, 1, *(size,) * len(degradation.factor)).double()
        estimate = Consistent(Cubic(degradation.factor), degradation)(low)
        off = float((degradation.mean(estimate) - low).abs().max())
        assert math.isfinite(off)
        assert off < 1e-10 or name not in EXACT
