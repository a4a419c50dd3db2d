"""Height maps: texture parameters against surfaces whose values are known, leveling, slopes in the loss, holes."""

import math

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage
from scipy.special import ellipe
from torch import nn

from medsr.data import NUCLEI, SURFACE
from medsr.holes import HOLE_REACH, fill_holes
from medsr.io import read_scan
from medsr.methods import Cubic, Linear, SRResNet
from medsr.methods.leveled import Leveled
from medsr.plan import plan
from medsr.scan import Grid, Intensity, Scan, robust_intensity
from medsr.surface import SURFACE_COLUMNS, surface_parameters, surface_rows
from medsr.training.losses import pixel_loss_of
from medsr.upscaler import Composed, fingerprint
from medsr.upscaling import upscale
from tests import laws
from tests.methods_asked import mammogram, network, noise, real_scan


def sine(
    shape: tuple[int, int] = (256, 480), *, amplitude: float = 0.3, period: int = 60, spacing: float = 0.25
) -> np.ndarray:
    """Along x, whole periods; micrometers."""
    x = np.arange(shape[1])[None] + 0.5
    return np.broadcast_to(amplitude * np.sin(2 * np.pi * x / period), shape).copy()


# ISO 25178-2


def test_a_sine_has_the_known_parameters() -> None:
    """Heights exactly; the slope of a chord of h out of a wave w is sinc(h / w) of the wave's."""
    amplitude, period, spacing = 0.3, 60, 0.25
    wave = period * spacing
    found = surface_parameters(sine(), (0.5, spacing), form=0)
    assert found.sa == pytest.approx(2 * amplitude / math.pi, rel=1e-3)
    assert found.sq == pytest.approx(amplitude / math.sqrt(2), rel=1e-9)
    assert found.ssk == pytest.approx(0, abs=1e-9)
    assert found.sku == pytest.approx(1.5, rel=1e-9)
    assert found.sp == pytest.approx(amplitude, rel=2e-3)
    assert found.sz == pytest.approx(2 * amplitude, rel=2e-3)
    steepest = 2 * math.pi * amplitude / wave
    whole = surface_parameters(sine((8, 481)), (0.5, spacing), form=0)  # cells: whole periods
    assert whole.sdq == pytest.approx(steepest / math.sqrt(2) * np.sinc(1 / period), rel=1e-9)
    arc = 2 / math.pi * math.sqrt(1 + steepest**2) * ellipe(steepest**2 / (1 + steepest**2))  # length of a period
    assert whole.sdr == pytest.approx(100 * (arc - 1), rel=2e-3)
    turned = surface_parameters(sine((8, 481)).T, (spacing, 0.5), form=0)
    assert (turned.sdq, turned.sdr) == pytest.approx((whole.sdq, whole.sdr))


def test_a_plane_has_its_slope_and_nothing_once_it_is_taken_off() -> None:
    y, x = np.mgrid[:40, :50]
    plane = 7 + 0.3 * 0.2 * y - 0.4 * 0.5 * x
    tilted = surface_parameters(plane, (0.2, 0.5), form=0)
    assert tilted.sdq == pytest.approx(0.5)
    assert tilted.sdr == pytest.approx(100 * (math.sqrt(1.25) - 1))
    level = surface_parameters(plane, (0.2, 0.5))
    assert level.sq < 1e-12
    assert level.sz < 1e-11
    assert level.sdq == pytest.approx(0, abs=1e-10)
    assert level.sdr == pytest.approx(0, abs=1e-10)
    bowl = plane + 1e-3 * (x - 20.0) ** 2 - 2e-3 * x * y + 1e-3 * y**2
    assert surface_parameters(bowl, (0.2, 0.5)).sq > 0.1
    assert surface_parameters(bowl, (0.2, 0.5), form=2).sq < 1e-10
    assert surface_parameters(bowl + 1e4, None, form=2).sq < 1e-8


def test_the_form_is_what_least_squares_say_around_holes() -> None:
    heights = read_scan(SURFACE).read().astype(np.float64)
    known = np.isfinite(heights)
    y, x = np.nonzero(known)
    terms = np.stack([np.ones(y.size), x, y, x * x, x * y, y * y], axis=1).astype(float)
    for degree, count in ((0, 1), (1, 3), (2, 6)):
        fit, *_ = np.linalg.lstsq(terms[:, :count], heights[known], rcond=None)
        rest = heights[known] - terms[:, :count] @ fit
        found = surface_parameters(heights, (0.26, 0.26), form=degree)
        assert found.samples == known.sum()
        assert found.sa == pytest.approx(np.abs(rest).mean(), rel=1e-9)
        assert found.sq == pytest.approx(rest.std(), rel=1e-9)
        assert found.ssk == pytest.approx((rest**3).mean() / rest.std() ** 3, rel=1e-6)
        assert found.sku == pytest.approx((rest**4).mean() / rest.std() ** 4, rel=1e-6)
        assert (found.sp, found.sv) == pytest.approx((rest.max(), -rest.min()))
    assert found.sdq is not None


def test_bands_of_a_large_map_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    heights = read_scan(SURFACE).read()
    whole = surface_parameters(heights, (0.26, 0.26))
    for band in (1, 700, 256 * 255, 256 * 256):
        monkeypatch.setattr("medsr.surface.BAND", band)
        found = surface_parameters(heights, (0.26, 0.26))
        for name in ("sa", "sq", "ssk", "sku", "sz", "sdq", "sdr", "samples"):
            assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-9), (band, name)


def test_slopes_need_a_length_and_a_spacing() -> None:
    heights = sine((16, 120))
    micrometers = surface_parameters(heights, (0.5, 0.25))
    nanometers = surface_parameters(heights * 1e3, (0.5, 0.25), units="nm")
    assert nanometers.sdq == pytest.approx(micrometers.sdq)
    assert nanometers.sdr == pytest.approx(micrometers.sdr)
    assert nanometers.sq == pytest.approx(1e3 * micrometers.sq)
    for spacing, units in (((0.5, 0.25), ""), ((0.5, 0.25), "HU"), (None, "um"), ((None, 0.25), "um")):
        unknown = surface_parameters(heights, spacing, units=units)
        assert (unknown.sdq, unknown.sdr) == (None, None)
        assert unknown.sq == micrometers.sq
    flat = surface_parameters(np.full((4, 4), 3.0), (1, 1))
    assert (flat.sq, flat.ssk, flat.sku, flat.sdq) == (0, None, None, 0)
    with pytest.raises(ValueError, match="two axes"):
        surface_parameters(heights[None], None)
    with pytest.raises(ValueError, match="at least 3 measured samples"):
        surface_parameters(np.full((4, 4), np.nan), None)


def test_rows_compare_what_all_maps_have() -> None:
    heights = read_scan(SURFACE).read()
    cut = heights.copy()
    cut[:40] = np.nan
    rows = surface_rows(heights, {"raised": heights + 0.5, "cut": cut}, (0.26, 0.26))
    assert [row["method"] for row in rows] == ["original", "raised", "cut"]
    assert all(tuple(row) == SURFACE_COLUMNS for row in rows)
    assert len({row["samples"] for row in rows}) == 1
    raised = rows[1]
    assert raised["height_bias"] == pytest.approx(0.5, abs=1e-6)
    assert raised["height_rmse"] == pytest.approx(0.5, abs=1e-6)
    assert raised["slope_rmse"] == pytest.approx(0, abs=1e-5)
    assert raised["sq"] == pytest.approx(rows[0]["sq"], rel=1e-6)
    assert surface_rows(heights, {}, None)[0]["slope_rmse"] is None
    with pytest.raises(ValueError, match="maps of one shape"):
        surface_rows(heights, {"small": heights[1:]}, None)


def test_interpolation_smooths_and_the_rows_say_so() -> None:
    """An area mean, made fine again by cubic, has less slope than the surface it came from."""
    plane = np.asarray(tifffile.imread(NUCLEI)[12], np.float64) / 1e4
    coarse = plane.reshape(128, 2, 128, 2).mean((1, 3))
    fine = Cubic((2, 2))(torch.from_numpy(coarse)[None, None])[0, 0].numpy()
    original, cubic = surface_rows(plane, {"cubic": fine}, (0.26, 0.26))
    assert cubic["sdq"] < 0.9 * original["sdq"]
    assert cubic["sdr"] < original["sdr"]
    assert abs(cubic["height_bias"]) < 1e-3 * original["sq"]


# slopes in the loss


def test_the_slope_loss_is_what_it_says() -> None:
    high = torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    estimate = torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(1))
    plain = pixel_loss_of("l1")
    off = (estimate - high).double().numpy()
    rows, columns = np.abs(np.diff(off, axis=2)).mean(), np.abs(np.diff(off, axis=3)).mean()
    for factor, expected in (((2, 2), rows + columns), ((1, 2), columns), ((3, 1), rows)):
        loss = pixel_loss_of("l1", factor=factor, slope_weight=0.7)
        assert float(loss(estimate, high)) == pytest.approx(float(plain(estimate, high)) + 0.7 * expected, rel=1e-5)
    assert float(pixel_loss_of("l1", factor=(2, 2))(estimate, high)) == float(plain(estimate, high))
    ramp = torch.arange(8.0).expand(1, 1, 6, 8)
    loss = pixel_loss_of("mse", factor=(2, 2), slope_weight=1.0)
    assert float(loss(ramp + 5, ramp)) == pytest.approx(25)  # a constant has no slope
    assert float(loss(1.5 * ramp, 1.5 * ramp)) == 0
    assert float(loss(0.5 * ramp, ramp) - pixel_loss_of("mse")(0.5 * ramp, ramp)) == pytest.approx(0.5)
    assert float(loss(ramp[..., :1], ramp[..., :1])) == 0


def test_the_slope_loss_makes_slopes_better() -> None:
    """The same network, the same steps: with it the slopes of the estimate are nearer to the truth's."""
    image = mammogram()[..., :64, :64]
    low = nn.functional.avg_pool2d(image, 2)

    def slopes_off(weight: float) -> float:
        torch.manual_seed(0)
        model = SRResNet((2, 2), features=8, blocks=1, head_kernel=3, tail_kernel=3)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        loss = pixel_loss_of("l1", factor=(2, 2), slope_weight=weight)
        for _ in range(60):
            optimizer.zero_grad()
            loss(model(low), image).backward()
            optimizer.step()
        off = model(low).detach() - image
        return float(off.diff(dim=2).abs().mean() + off.diff(dim=3).abs().mean())

    assert slopes_off(2.0) < slopes_off(0.0)


# leveling


def tilt(size: tuple[int, ...], slopes: tuple[float, ...], factor: tuple[int, ...] | None = None) -> torch.Tensor:
    plane = torch.zeros((), dtype=torch.float64)
    for axis, (n, slope) in enumerate(zip(size, slopes, strict=True)):
        f = 1 if factor is None else factor[axis]
        place = (torch.arange(n * f, dtype=torch.float64) + 0.5) / f - 0.5
        plane = plane + (slope * place).reshape([-1 if a == axis else 1 for a in range(len(size))])
    return plane[None, None]


def as_scan(unit: np.ndarray) -> Scan:
    return Scan(unit, Grid(("z", "y", "x")[-unit.ndim :]), Intensity(0, 1, unit.dtype))


METHODS = {"cubic": Cubic((2, 2)), "linear-1-2": Linear((1, 2))}


@pytest.mark.parametrize("name", [*METHODS, "srresnet-2", "srresnet-3-2", "srresnet-1-2-2", "srresnet-4-1-1"])
def test_tilting_a_scan_tilts_the_result_edges_included(name: str) -> None:
    method = METHODS[name] if name in METHODS else network(name, 12)
    size = (24, 20) if len(method.factor) == 2 else (9, 12, 11)
    slopes = (0.21, -0.13, 0.4)[: len(size)]
    low = noise(1, 1, *size)
    straight, tilted = (
        Leveled(method).adapt(as_scan(scan[0, 0].numpy())) for scan in (low, (low + tilt(size, slopes)).float())
    )
    with torch.inference_mode():
        difference = tilted((low + tilt(size, slopes)).float()) - straight(low)
        plain = method((low + tilt(size, slopes)).float()) - method(low)
    expected = tilt(size, slopes, method.factor)
    assert float((difference - expected).abs().max()) < 2e-5
    assert float((plain - expected).abs().max()) > 1e-2  # what leveling is for: edges bend
    assert isinstance(tilted, Composed)
    assert (tilted.factor, tilted.halo) == (method.factor, method.halo)


@pytest.mark.parametrize("name", ["srresnet-2", "srresnet-1-2-2"])
def test_tiles_of_a_leveled_scan_equal_the_whole(name: str) -> None:
    size = (60, 52) if name == "srresnet-2" else (11, 30, 28)
    low = (real_scan()[(0, 0, *([12] if len(size) == 2 else []))][tuple(slice(n) for n in size)])[None, None]
    low = (low + tilt(size, (0.05, -0.02, 0.03)[: len(size)])).float()
    leveled = Leveled(network(name, 12)).adapt(as_scan(low[0, 0].numpy()))
    for tile in laws.tile_sizes(size):
        laws.tiled_equals_whole(leveled, low, tile)


def test_a_leveled_height_map_through_upscale() -> None:
    """The shipped surface, tilted: holes stay, tiles agree, and the tilt comes back."""
    surface = read_scan(SURFACE)
    heights = surface.read()
    plane = tilt(heights.shape, (0.05, 0.08))[0, 0].numpy()
    tilted = (heights + plane).astype(np.float32)
    scan = Scan(tilted, surface.grid, robust_intensity(tilted, tilted.dtype))
    method = Leveled(network("srresnet-2", 12))
    whole = upscale(scan, method)
    tiled = upscale(scan, method, tile=(70, 90))
    np.testing.assert_array_equal(np.isnan(whole.read()), np.isnan(heights).repeat(2, 0).repeat(2, 1))
    np.testing.assert_allclose(tiled.read(), whole.read(), atol=2e-4)
    assert "Leveled" in whole.history[-1]
    flat = Scan(plane.astype(np.float32), surface.grid, robust_intensity(plane, np.float32))
    fine = upscale(flat, method).read()
    np.testing.assert_allclose(fine, tilt(heights.shape, (0.05, 0.08), (2, 2))[0, 0].numpy(), atol=1e-4)
    bent = upscale(flat, network("srresnet-2", 12)).read()
    assert np.abs(bent - tilt(heights.shape, (0.05, 0.08), (2, 2))[0, 0].numpy()).max() > 1e-2
    assert plan(scan, method.adapt(scan)).factor == (2, 2)


def test_the_plane_is_that_of_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    heights = read_scan(SURFACE)
    adapted = Leveled(Cubic((2, 2))).adapt(heights)
    unit = heights.intensity.to_unit(heights.read()).astype(float)
    y, x = np.nonzero(np.isfinite(unit))
    fit, *_ = np.linalg.lstsq(np.stack([y, x, np.ones(y.size)], 1).astype(float), unit[y, x], rcond=None)
    assert adapted.slopes == pytest.approx(tuple(fit[:2]), rel=1e-5)
    monkeypatch.setattr("medsr.methods.leveled.BLOCK", {2: 16, 3: 4})
    spread = Leveled(Cubic((2, 2))).adapt(heights)  # blocks of a large map: near, not equal
    assert spread.slopes != adapted.slopes
    stack = np.stack([unit + level for level in (0.0, 5.0, -3.0)]).astype(np.float32)
    drifting = Scan(stack, Grid(("t", "y", "x")), Intensity(0, 1, np.dtype(np.float32)))
    monkeypatch.undo()
    assert Leveled(Cubic((2, 2))).adapt(drifting).slopes == pytest.approx(adapted.slopes, rel=1e-4)
    assert fingerprint(adapted) != fingerprint(spread)


def test_methods_that_an_offset_changes_are_refused() -> None:
    scan = as_scan(noise(20, 20).numpy())

    class Rooted(nn.Module):
        factor, halo = (2, 2), (2, 2)

        def adapt(self, scan: Scan) -> "Rooted":
            return self

        def forward(self, low: torch.Tensor) -> torch.Tensor:
            return Cubic((2, 2))(low.clamp_min(0).sqrt())

    class Looking(Rooted):
        def forward(self, low: torch.Tensor) -> torch.Tensor:
            return Cubic((2, 2))(low)

        def at(self, origin: tuple[int, ...]) -> "Looking":
            return self

    with pytest.raises(ValueError, match="passes an offset through unchanged, found Rooted"):
        Leveled(Rooted()).adapt(scan)
    with pytest.raises(ValueError, match="looks up where in the scan"):
        Leveled(Looking()).adapt(scan)
    model = network("srresnet-2", 12)
    assert fingerprint(Leveled(model)) != fingerprint(Leveled(network("srresnet-2", 0)))


# holes


def hole(size: int = 64) -> np.ndarray:
    holes = np.zeros((size, size), bool)
    holes[20:50, 15:55] = True
    return holes


def test_what_a_hole_is_filled_with_depends_on_its_reach_only() -> None:
    unit, holes = noise(64, 64).numpy(), hole()
    filled = fill_holes(unit, holes, dims=2)
    np.testing.assert_array_equal(filled[~holes], unit[~holes])
    assert np.isfinite(filled).all()
    changed = unit.copy()
    changed[:, :15] += 1.0
    moved = np.nonzero((np.abs(fill_holes(changed, holes, dims=2) - filled) > 1e-5) & holes)[1]
    assert moved.max() <= 14 + HOLE_REACH
    middle = filled[20 + HOLE_REACH : 50 - HOLE_REACH, 15 + HOLE_REACH : 55 - HOLE_REACH]
    assert (middle == 0.5).all()
    assert fill_holes(unit, np.ones_like(holes), dims=2) == pytest.approx(0.5)
    stack = np.stack([unit, unit[::-1]])
    both = fill_holes(stack, np.stack([holes, holes]), dims=2)
    np.testing.assert_allclose(both[0], filled, atol=1e-5)


def test_a_slope_goes_on_into_a_hole() -> None:
    for size, slopes in (((64, 64), (0.02, -0.03)), ((24, 28, 26), (0.02, 0.01, -0.03)), ((90,), (0.04,))):
        plane = (40 + tilt(size, slopes)[0, 0].numpy()).astype(np.float32)
        holes = np.zeros(size, bool)
        holes[tuple(slice(9, 9 + 5) for _ in size)] = True
        filled = fill_holes(np.where(holes, np.nan, plane).astype(np.float32), holes, dims=len(size))
        assert np.abs(filled - plane).max() < 0.5 * max(map(abs, slopes))


def test_holes_filled_by_their_slopes_disturb_less_than_by_their_nearest_samples() -> None:
    """Holes as a real map has them, in an image that is known beneath them."""
    holes = np.isnan(read_scan(SURFACE).read())
    plane = np.asarray(tifffile.imread(NUCLEI)[12], np.float32) / 4e4 + tilt((256, 256), (0.01, 0.01))[0, 0].numpy()
    image = plane.astype(np.float32)
    nearest = ndimage.distance_transform_edt(holes, return_distances=False, return_indices=True)
    known = ~holes.repeat(2, 0).repeat(2, 1)
    rim = known & (ndimage.distance_transform_edt(known) <= 4)
    off = {}
    for name, filled in (("planes", fill_holes(image, holes, dims=2)), ("nearest", image[tuple(nearest)])):
        fine, true = (Cubic((2, 2))(torch.from_numpy(side)[None, None])[0, 0].numpy() for side in (filled, image))
        off[name] = float(np.sqrt(np.mean((fine - true)[rim] ** 2)))
    assert off["planes"] < 0.9 * off["nearest"]
