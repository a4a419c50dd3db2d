"""Ensemble: the mean over flips, turns and methods; it commutes with what it is a mean of, and tiles agree."""

import copy
import itertools

import numpy as np
import pytest
import torch

import medsr
from medsr.degradation import Degradation, Gaussian
from medsr.methods import Consistent, Cubic, Ensemble, Lanczos, Linear
from medsr.scan import Grid, Intensity, Scan
from medsr.upscaler import Composed, Upscaler, describe, fingerprint
from tests import laws
from tests.methods_asked import SIZES, SPACING, coarse_and_fine, mammogram, network, noise, real_scan


def scan_of(axes: str, spacing_um) -> Scan:
    data = np.zeros((8, 20, 24)[-len(axes) :], np.uint16)
    return Scan(data, Grid(tuple(axes), spacing_um), Intensity(0, 9, data.dtype))


SQUARE = {2: scan_of("yx", (0.2, 0.2)), 3: scan_of("zyx", (0.5, 0.2, 0.2))}
MADE = {
    "cubic-2": lambda: Ensemble(Cubic((2, 2))),
    "lanczos-3-2": lambda: Ensemble(Lanczos((3, 2))),
    "two": lambda: Ensemble([Cubic((2, 2)), Linear((2, 2))]),
    "network-2": lambda: Ensemble(network("srresnet-2", 12)),
    "network-1-2-2": lambda: Ensemble(network("srresnet-1-2-2", 12)),
    "network-4-1-1": lambda: Ensemble(network("srresnet-4-1-1", 12)),
    "mixed": lambda: Ensemble([Cubic((2, 2)), network("srresnet-2", 12), network("srresnet-2", 0)]),
    "as-they-stand": lambda: Ensemble([network("srresnet-2", 12), network("srresnet-2", 0)], flips=False),
}
VIEWS = {"lanczos-3-2": 4, "network-4-1-1": 2, "as-they-stand": 1}
"""Views on a square plane; 8 of all others."""


@pytest.fixture(params=MADE)
def method(request):
    made = MADE[request.param]()
    return made.adapt(SQUARE[len(made.factor)])


def test_is_an_upscaler_made_of_others(method, request):
    assert isinstance(method, Upscaler)
    assert isinstance(method, Composed)
    assert method.adapt(SQUARE[len(method.factor)]) is method
    assert len(method.views) == VIEWS.get(request.node.callspec.id, 8)
    assert str(method.factor) in repr(method)
    low = noise(2, 1, *SIZES[len(method.factor)])
    with torch.inference_mode():
        found = method(low)
        torch.testing.assert_close(method.around(low, method.parts), found, rtol=0, atol=0)
        torch.testing.assert_close(copy.deepcopy(method)(low), found, rtol=0, atol=0)
    assert found.dtype == torch.float32


def test_tiled_equals_whole(method):
    size = {2: SIZES[2], 3: (17, 11, 13)}[len(method.factor)]
    scan = real_scan() if len(size) == 3 else mammogram()
    low = scan[(..., *(slice(n) for n in size))]
    for tile in list(laws.tile_sizes(size))[: 4 - len(size)]:
        laws.tiled_equals_whole(method, low, tile)


def test_flat_stays_flat(method):
    for size in (SIZES[len(method.factor)], (3,) * len(method.factor), (1,) * len(method.factor)):
        laws.flat_stays_flat(method, size, tolerance=1e-6)


@pytest.mark.parametrize("name", ["cubic-2", "network-2", "network-4-1-1"])
def test_gray_levels_survive(name):
    laws.gray_levels_survive(MADE[name]())


def test_commutes_with_the_intensity_line(method):
    low = noise(1, 1, *(n // 2 for n in SIZES[len(method.factor)]))
    for gain, offset in [(1.0, 0.3), (1.0, 40.0), (0.01, 0.0), (3.0, -1.0), (250.0, 40.0)]:
        laws.commutes_with_line(method, low, gain, offset)


def test_commutes_with_every_view_exactly(method):
    """Bit for bit: the sum does not depend on the order of its terms. A network alone does not commute."""
    if len(method.views) == 1:
        pytest.skip("without flips it commutes with none")
    low = noise(1, 1, *(10 + n // 3 for n in SIZES[len(method.factor)]))
    with torch.inference_mode():
        whole = method(low)
        for view in method.views:
            assert torch.equal(method(view.of(low)), view.of(whole)), view
        if isinstance(method.parts[0], torch.nn.Module):
            alone, view = method.parts[0], method.views[-1]
            assert not torch.equal(alone(view.of(low)), view.of(alone(low)))


@pytest.mark.parametrize("kind", [Linear, Cubic, Lanczos])
@pytest.mark.parametrize("factor", [(2,), (2, 2), (3, 2), (4, 1, 1), (2, 2, 2)])
def test_of_a_method_that_commutes_it_is_that_method(kind, factor):
    axes = "zyx"[-len(factor) :]
    method = Ensemble(kind(factor)).adapt(scan_of(axes, (0.2,) * len(factor)))
    low = noise(1, 1, *SIZES.get(len(factor), (40,)))
    torch.testing.assert_close(method(low), kind(factor)(low), rtol=0, atol=3e-7)


@pytest.mark.parametrize(
    ("factor", "spacing", "count"),
    [
        ((2,), (0.2,), 2),
        ((2, 2), (0.2, 0.2), 8),
        ((2, 2), (0.2, 0.3), 4),
        ((2, 2), None, 4),
        ((2, 2), (None, 0.2), 4),
        ((3, 2), (0.2, 0.2), 4),
        ((1, 2), (0.2, 0.2), 2),
        ((4, 1, 1), (0.5, 0.2, 0.2), 2),
        ((1, 2, 2), (0.5, 0.2, 0.2), 8),
        ((2, 2, 2), (0.2, 0.2, 0.2), 16),
        ((2, 2, 2), (0.5, 0.2, 0.2), 16),
        ((2, 2, 2), (0.2, 0.2, 0.5), 8),
    ],
)
def test_how_many_views(factor, spacing, count):
    made = Ensemble(Cubic(factor))
    turned = count == 16 or (count == 8 and factor != (2, 2, 2))
    assert len(made.views) == (count // 2 if turned else count)
    adapted = made.adapt(scan_of("zyx"[-len(factor) :], spacing))
    assert len(adapted.views) == len(set(adapted.views)) == count
    turns = " with quarter turns" if turned else ""
    assert describe(adapted) == f"Ensemble of {count} views{turns}: Cubic({factor})"


def test_a_blur_at_an_angle_leaves_views_out():
    """Flipped, the scan would have another blur than the one the method corrects for: only the half turn is left."""
    angled = Degradation((2, 2), kernel=Gaussian(fwhm_samples=(1.4, 0.8), angle_deg=30))
    uneven = Degradation((2, 2), kernel=Gaussian(fwhm_samples=(1.4, 0.8)))
    for degradation, count in ((angled, 2), (uneven, 4), (Degradation((2, 2)), 8)):
        method = Ensemble(Consistent(Cubic((2, 2)), degradation)).adapt(SQUARE[2])
        assert len(method.views) == count
        low = mammogram()[..., :60, :70]
        estimate = method(low)
        assert float((degradation.mean(estimate) - low).abs().max()) < 2e-5


class Tall(Cubic):
    """Cubic, with a halo that is larger along y."""

    def __init__(self, factor):
        super().__init__(factor)
        self.halo = (7, 2)


def test_the_halo_holds_in_every_view():
    made = Ensemble([Tall((2, 2)), Lanczos((2, 2))])
    assert made.halo == (7, 3)
    assert made.adapt(SQUARE[2]).halo == (7, 7)
    assert Ensemble([Tall((2, 2)), Lanczos((2, 2))], flips=False).halo == (7, 3)


def test_the_mean_of_several_is_their_mean():
    members = [network("srresnet-2", 12), network("srresnet-2", 0), Cubic((2, 2))]
    low = noise(1, 1, 20, 24)
    with torch.inference_mode():
        each = torch.stack([m(low).double() for m in members])
        expected = each.mean(0).float()
        plain = Ensemble(members, flips=False)
        assert torch.equal(plain(low), expected)
        assert torch.equal(Ensemble(members[::-1], flips=False)(low), expected)
        mean, spread = plain.spread(low)
        assert torch.equal(mean, expected)
        torch.testing.assert_close(spread, each.std(0).float(), rtol=1e-5, atol=1e-8)
        assert spread.dtype == mean.dtype == torch.float32


def test_the_spread_of_views_is_taken_where_they_lie_alike():
    method = MADE["network-2"]().adapt(SQUARE[2])
    low = noise(2, 1, 20, 24)
    with torch.inference_mode():
        each = torch.stack([view.back(method.parts[0](view.of(low))).double() for view in method.views])
        mean, spread = method.spread(low, method.parts)
        torch.testing.assert_close(mean, method(low), rtol=0, atol=3e-7)
        torch.testing.assert_close(spread, each.std(0).float(), rtol=1e-5, atol=1e-8)
        assert float(Ensemble(Cubic((2, 2))).spread(low)[1].max()) < 1e-6
    with pytest.raises(ValueError, match="expected two or more members for a deviation, found 1"):
        Ensemble(Cubic((2, 2)), flips=False).spread(low)


def test_it_is_never_worse_than_its_members_on_average():
    """And on patches of the stack better than the network alone, by a little."""
    method = MADE["network-2"]().adapt(SQUARE[2])
    low, high = coarse_and_fine((2, 2), (64, 64), 8, torch.Generator().manual_seed(7))
    with torch.inference_mode():
        mean = float((method(low) - high).square().mean())
        each = [float((v.back(method.parts[0](v.of(low))) - high).square().mean()) for v in method.views]
    assert mean <= np.mean(each) * (1 + 1e-6)
    assert mean < each[0]


class KnowsItsPlace(Cubic):
    """A method that must know where its tile lies."""

    def at(self, origin):
        return self


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"Cubic\(\(2, 2\)\) with \(2, 2\) and Lanczos\(\(4, 4\)\) with \(4, 4\)"):
        Ensemble([Cubic((2, 2)), Lanczos((4, 4))])
    with pytest.raises(ValueError, match="at least one method"):
        Ensemble([])
    placed = KnowsItsPlace((2, 2))
    for member in (placed, Consistent(placed, Degradation((2, 2))), Ensemble(placed, flips=False)):
        with pytest.raises(ValueError, match=r"expected methods that may be flipped, found .*KnowsItsPlace"):
            Ensemble([Cubic((2, 2)), member])
        assert Ensemble([Cubic((2, 2)), member], flips=False).halo == (2, 2)


def test_its_description_and_weights_are_its_identity():
    first, second = network("srresnet-2", 0), network("srresnet-2", 12)
    made = [Ensemble(first), Ensemble(second), Ensemble([first, second]), Ensemble(first, flips=False)]
    made += [Ensemble(first).adapt(SQUARE[2])]
    assert len(set(map(fingerprint, made))) == len(made)
    assert all("\n" not in repr(m) for m in made)


def test_around_a_correction_both_ways():
    """A corrected ensemble and an ensemble of corrected methods are the same: the correction is linear."""
    degradation, low = Degradation((2, 2), sampling="cubic"), mammogram()[..., :40, :50]
    corrected = Consistent(Ensemble(network("srresnet-2", 12)), degradation)
    of_corrected = Ensemble(Consistent(network("srresnet-2", 12), degradation))
    with torch.inference_mode():
        torch.testing.assert_close(corrected(low), of_corrected(low), rtol=0, atol=1e-6)
        assert corrected.adapt(SQUARE[2]).parts[0].halo == of_corrected.adapt(SQUARE[2]).parts[0].parts[0].halo


def test_a_scan_in_tiles():
    plane = mammogram()[0, 0, :90, :100].numpy()
    for spacing, axes in itertools.product(((70.0, 70.0), SPACING[2]), (("y", "x"),)):
        scan = Scan(plane, Grid(axes, spacing), Intensity(0, 1, plane.dtype))
        method = MADE["mixed"]()
        whole, tiled = medsr.upscale(scan, method), medsr.upscale(scan, method, tile=(31, 40))
        assert f"Ensemble of {8 if spacing[0] == spacing[1] else 4} views" in whole.history[-1]
        assert float(np.abs(whole.data - tiled.data).max()) <= laws.GRAY_LEVEL
