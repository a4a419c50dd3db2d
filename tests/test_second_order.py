"""A second pass of degradation: the laws of the first, grids that meet, what is drawn, and what it does to a scan."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from medsr.degradation import (
    Degradation,
    DegradationRange,
    Gaussian,
    PoissonGaussian,
    SecondOrder,
    SecondOrderRange,
)
from medsr.degradation.second_order import resizing_weights, ringing_line
from tests import laws_degradation as laws
from tests.laws import adjoint_is_transpose
from tests.methods_asked import mammogram

WIDE = (Gaussian(fwhm_um=(0.6, 0.25), axial_fwhm_um=0.9, angle_deg=33.0), Gaussian(fwhm_samples=(0.9, 0.4)))
CASES = {
    f"{resizing}-{sampling}-{'x'.join(map(str, factor))}-{'x'.join(map(str, between))}": (
        factor, between, resizing, sampling
    )
    for factor, between, resizing, sampling in (
        ((2, 2), (3, 1), "cubic", "area"),
        ((2, 2), (1, 3), "area", "cubic"),
        ((4, 4), (3, 5), "area", "area"),
        ((4, 4), (6, 2), "linear", "point"),
        ((3, 3), (2, 2), "linear", "area"),
        ((3, 2), (4, 2), "cubic", "point"),
        ((1, 4, 4), (1, 3, 5), "area", "cubic"),
        ((4, 1, 1), (3, 1, 1), "cubic", "area"),
        ((2, 2, 2), (3, 1, 2), "linear", "area"),
    )
}  # fmt: skip


def second_order(name: str, *, ringing: float | None = None, noises=(None, None)) -> SecondOrder:
    factor, between, resizing, sampling = CASES[name]
    return SecondOrder(
        factor, between=between, kernels=WIDE, noises=noises, resizing=resizing, sampling=sampling, ringing=ringing,
        spacing_um=laws.SPACING_UM[len(factor)],
    )  # fmt: skip


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------- the laws


@pytest.mark.parametrize("ringing", [None, 0.7])
@pytest.mark.parametrize("name", CASES)
def test_laws_of_the_mean(name, ringing):
    degradation = second_order(name, ringing=ringing)
    for coarse in (1, 4):
        laws.adjointness(degradation, coarse)
    adjoint_is_transpose(degradation, (3, 4, 5)[: len(degradation.factor)], tolerance=1e-12)
    laws.gradient_is_adjoint(degradation, 2)
    laws.linearity(degradation, 3)
    laws.flat_field(degradation, 4)


@pytest.mark.parametrize("name", CASES)
def test_samples_lie_where_the_grid_says(name):
    degradation = second_order(name)
    laws.context_suffices(degradation)
    laws.ramp_in_micrometers(degradation)
    laws.blob_stays(degradation)


def test_ringing_keeps_samples_in_place():
    degradation = second_order("area-area-4x4-3x5", ringing=0.6)
    laws.context_suffices(degradation)
    laws.ramp_in_micrometers(degradation)
    laws.blob_stays(degradation)


@pytest.mark.parametrize("name", ["area-area-4x4-3x5", "cubic-area-4x1x1-3x1x1"])
def test_the_noise_follows_from_the_generator(name):
    degradation = second_order(name, noises=(PoissonGaussian(500.0), PoissonGaussian(None, 0.01)), ringing=0.8)
    high = torch.rand(1, 1, *(8 * f for f in degradation.factor), generator=drawn())
    laws.follows_generator(degradation, high)
    assert degradation(high, drawn()).dtype == torch.float32


# ---------------------------------------------------------------- the parts


@pytest.mark.parametrize("kind", ["area", "linear", "cubic"])
def test_resizing_reproduces_lines_for_every_pair_of_counts(kind):
    for into in range(1, 7):
        for out in range(1, 9):
            weights = resizing_weights(kind, into, out)
            blocks = (weights.shape[0] // into - 1) // 2
            place = np.arange(-blocks * into, (blocks + 1) * into) - (into - 1) / 2
            target = ((np.arange(out) + 0.5) / out - 0.5) * into
            np.testing.assert_allclose(weights.sum(0), 1, atol=1e-14)
            np.testing.assert_allclose(place @ weights, target, atol=1e-13)
            assert np.abs(weights).max() <= 1 + 1e-12
            assert weights.min() > -0.15


def test_shrinking_by_a_whole_number_is_the_block_mean():
    x = torch.rand(1, 1, 8, 12, generator=drawn(), dtype=torch.float64)
    mean = SecondOrder((4, 4), between=(2, 1), resizing="area").mean(x)
    torch.testing.assert_close(mean, Degradation((4, 4)).mean(x), rtol=0, atol=1e-14)


def test_as_many_samples_between_as_before_is_two_blurs_and_one_sampling():
    x = torch.rand(1, 1, 24, 24, generator=drawn(), dtype=torch.float64)
    blur = Gaussian(fwhm_samples=0.8)
    found = SecondOrder((2, 2), between=(2, 2), kernels=(blur, None)).mean(x)
    torch.testing.assert_close(found, Degradation((2, 2), kernel=blur).mean(x), rtol=0, atol=1e-13)


def test_noise_of_the_first_pass_is_smoothed_by_the_second():
    """White noise between the passes comes out weaker and correlated; that of the second is white as it is."""
    flat = torch.full((1, 1, 256, 256), 0.5)
    noise, blur = PoissonGaussian(None, 0.05), Gaussian(fwhm_samples=1.5)
    kernels = (None, blur)
    first = SecondOrder((2, 2), between=(2, 2), kernels=kernels, noises=(noise, None))(flat, drawn())[0, 0] - 0.5
    second = SecondOrder((2, 2), between=(2, 2), kernels=kernels, noises=(None, noise))(flat, drawn())[0, 0] - 0.5
    assert float(second.std()) == pytest.approx(0.05, rel=0.02)
    assert 0.008 < float(first.std()) < 0.013
    assert correlation(first) > 0.3
    assert abs(correlation(second)) < 0.03


def correlation(field: Tensor) -> float:
    """Of neighbors along the last axis."""
    return float((field[:, 1:] * field[:, :-1]).mean() / field.square().mean())


def test_edges_ring_after_a_low_pass():
    """Gibbs: an overshoot of about nine percent of the step beside it, undershoot on the other side."""
    step = torch.zeros(1, 1, 8, 128, dtype=torch.float64)
    step[..., 64:] = 1
    rung = SecondOrder((1, 2), between=(1, 2), ringing=0.5).mean(step)[0, 0, 4]
    assert 0.05 < float(rung.max()) - 1 < 0.13
    assert 0.05 < -float(rung.min()) < 0.13
    plain = SecondOrder((1, 2), between=(1, 2), ringing=1.0).mean(step)[0, 0, 4]
    torch.testing.assert_close(plain, Degradation((1, 2)).mean(step)[0, 0, 4], rtol=0, atol=1e-12)
    assert abs(ringing_line(0.3).sum() - 1) < 1e-12


# ---------------------------------------------------------------- the range


RANGE = DegradationRange(
    fwhm_samples=(0.2, 1.5), anisotropy=2.0, photons=(200, 2000), read_noise=(0.0, 0.01),
    second=SecondOrderRange(
        between=(0.5, 1.5), fwhm_samples=(0.0, 1.0), photons=(500, 5000), ringing=(0.6, 1.0),
    ),
)  # fmt: skip


def test_a_range_without_second_pass_draws_what_it_drew():
    """Recorded before there was a second pass: the blur, the photons and the state the generator is left in."""
    generator = drawn(7)
    plain = RANGE.model_copy(update={"second": None}).sample(generator, (2, 2))
    assert isinstance(plain, Degradation)
    assert isinstance(plain.noise, PoissonGaussian)
    draw = torch.rand(7, generator=drawn(7), dtype=torch.float64)
    assert plain.noise.photons == pytest.approx(200 * 10 ** float(draw[4]))
    assert float(torch.rand(1, generator=generator, dtype=torch.float64)) == float(draw[6])


def test_the_same_generator_state_draws_the_same_degradation():
    one, same, other = (RANGE.sample(drawn(seed), (4, 4)) for seed in (3, 3, 4))
    assert isinstance(one, SecondOrder)
    assert repr(one) == repr(same) != repr(other)
    high = torch.rand(1, 1, 32, 32, generator=drawn())
    assert torch.equal(one(high, drawn(1)), same(high, drawn(1)))


def test_every_count_and_kind_of_resizing_is_drawn():
    generator = drawn()
    found = [RANGE.sample(generator, (1, 4, 4)) for _ in range(200)]
    assert {d.between for d in found} == {(1, n, n) for n in (2, 3, 4, 5, 6)}
    assert {d.resizing for d in found} == {"area", "linear", "cubic"}
    assert {len(d.factor) for d in found} == {3}
    assert all(0.6 <= d.ringing <= 1 for d in found)


def test_the_center_and_the_reach():
    center = RANGE.center((2, 2))
    assert isinstance(center, SecondOrder)
    assert center.between == (2, 2)
    assert repr(center) == repr(RANGE.center((2, 2)))
    generator = drawn()
    for factor in ((2, 2), (3, 2), (1, 4, 4)):
        halos = [RANGE.sample(generator, factor).halo for _ in range(200)]
        assert all(r >= max(h) for r, h in zip(RANGE.reach(factor), zip(*halos, strict=True), strict=True))
    assert DegradationRange().reach((2, 2)) == DegradationRange().center((2, 2)).halo == (0, 0)


def test_a_count_that_no_range_holds_is_the_nearest():
    narrow = DegradationRange(second=SecondOrderRange(between=(0.6, 0.7)))
    assert narrow.sample(drawn(), (2, 2)).between == (1, 1)
    assert narrow.sample(drawn(), (3, 2)).between == (2, 1)


def test_widths_in_micrometers_need_the_spacing():
    range_ = DegradationRange(second=SecondOrderRange(fwhm_um=(0.1, 0.2)))
    with pytest.raises(ValueError, match="needs the fine spacing along y, found unknown"):
        range_.sample(drawn(), (2, 2))
    assert isinstance(range_.sample(drawn(), (2, 2), (0.1, 0.1)), SecondOrder)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"between": (1.5, 0.5)}, "from <= to"),
        ({"between": (0.0, 0.0)}, "0 < to"),
        ({"between": (1.0, 9.0)}, "<= 8"),
        ({"ringing": (0.0, 1.0)}, "shares above 0"),
        ({"ringing": (0.5, 1.2)}, "at most 1"),
        ({"photons": (0.0, 1.0)}, "photons above 0"),
        ({"fwhm_um": (0, 1), "fwhm_samples": (0, 1)}, "keep one"),
        ({"anisotropy": 2.0}, "needs fwhm_um"),
        ({"jpeg": (30, 95)}, "Extra inputs"),
    ],
)
def test_an_impossible_second_pass_is_refused(settings, reason):
    with pytest.raises(ValidationError, match=reason):
        SecondOrderRange(**settings)


def test_impossible_operators_are_refused():
    with pytest.raises(ValueError, match="2 counts of at least 1, found"):
        SecondOrder((2, 2), between=(0, 2))
    with pytest.raises(ValueError, match="share of the Nyquist"):
        SecondOrder((2, 2), between=(2, 2), ringing=1.5)
    with pytest.raises(ValueError, match="expected one of area, linear, cubic"):
        SecondOrder((2, 2), between=(1, 1), resizing="nearest")
    with pytest.raises(ValueError, match="multiples of the factor"):
        SecondOrder((2, 2), between=(2, 2)).mean(torch.zeros(1, 1, 5, 4))


def test_a_mammogram_degraded_twice_is_the_same_breast():
    """No shift, no change of level, blurred and noisy."""
    high = mammogram()
    low = RANGE.center((4, 4))(high, drawn())
    assert low.shape == (1, 1, 64, 64)
    reference = Degradation((4, 4)).mean(high)
    assert float((low - reference).mean().abs()) < 2e-3
    away = [float((low - reference.roll(shift, axis)).square().mean()) for axis in (2, 3) for shift in (-1, 0, 1)]
    assert away[1] == min(away[:3])
    assert away[4] == min(away[3:])
