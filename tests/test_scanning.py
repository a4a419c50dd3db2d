"""Noise of scanning: its statistics, its seeds, its range; what a network learns to take off in the same step."""

import pytest
import torch

from medsr.degradation import Degradation, DegradationRange, PoissonGaussian, ScanningNoise
from medsr.methods import Cubic
from medsr.recipe import SrresnetRecipe
from tests import laws_degradation as laws
from tests.methods_asked import real_scan


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("noise", [ScanningNoise(0.05), ScanningNoise(2.0, width=0.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_statistics(noise, dtype):
    laws.noise_statistics(noise, [-0.3, 0.0, 0.04, 0.5, 1.0, 1.7], dtype)


def test_variance_follows_the_mean_around():
    """A dark sample beside a bright half is noisier than one in the dark; in a flat field it is the share itself."""
    signal = torch.zeros(400, 64, 64, dtype=torch.float64)
    signal[..., 32:] = 1.0
    noise = ScanningNoise(0.05, width=3.0)
    spread = (noise(signal, generator()) - signal).var(dim=(0, 1))
    assert float(spread[60]) == pytest.approx(0.05, rel=0.03)
    assert float(spread[31]) == pytest.approx(0.05 * 0.434, rel=0.05)  # half a step of the error function inside
    assert float(spread[5]) < 1e-6
    torch.testing.assert_close(spread, noise.variance(signal)[0, 0], rtol=0.05, atol=1e-6)


def test_salt_and_pepper_are_shares_of_the_samples():
    signal = torch.full((1000, 1000), 0.4)
    noisy = ScanningNoise(salt=0.01, pepper=0.03)(signal, generator())
    assert float((noisy == 1).double().mean()) == pytest.approx(0.01, rel=0.05)
    assert float((noisy == 0).double().mean()) == pytest.approx(0.03, rel=0.05)
    assert float((noisy == signal).double().mean()) == pytest.approx(0.96, rel=0.01)
    assert bool((ScanningNoise(salt=1.0)(signal, generator()) == 1).all())
    assert bool((ScanningNoise(pepper=1.0)(signal, generator()) == 0).all())


def test_noise_follows_the_generator_and_passes_gradients():
    noise = ScanningNoise(0.05, salt=0.02, pepper=0.02, detector=PoissonGaussian(100.0, 0.01))
    degradation = Degradation((4, 4), sampling="point", noise=noise)
    high = torch.rand(1, 1, 32, 32, generator=generator(3))
    laws.follows_generator(degradation, high)
    kept = ScanningNoise(0.05)
    high.requires_grad_()
    Degradation((4, 4), sampling="point", noise=kept)(high, generator()).sum().backward()
    torch.testing.assert_close(high.grad, degradation.adjoint(torch.ones(1, 1, 8, 8)))
    assert ScanningNoise()(high, generator()).equal(high)


def test_the_noise_of_the_detector_comes_first():
    signal = torch.full((500, 500), 0.5, dtype=torch.float64)
    both = ScanningNoise(0.02, detector=PoissonGaussian(None, 0.1))(signal, generator())
    assert float(both.var()) == pytest.approx(0.01 + 0.01, rel=0.02)


@pytest.mark.parametrize(
    "values", [{"local_variance": -1.0}, {"width": float("nan")}, {"salt": 0.6, "pepper": 0.6}, {"pepper": -0.1}]
)
def test_noise_errors(values):
    with pytest.raises(ValueError, match="scanning noise: expected finite values"):
        ScanningNoise(**values)


def test_a_range_draws_scanning_noise():
    wide = DegradationRange(
        sampling="point", local_variance=(0.01, 0.05), salt_pepper=(0.0, 0.01), read_noise=(0.1, 0.1)
    )
    drawn = [wide.sample(generator(seed), (4, 4)).noise for seed in range(40)]
    assert all(isinstance(noise, ScanningNoise) and noise.detector == PoissonGaussian(None, 0.1) for noise in drawn)
    assert 0.01 <= min(n.local_variance for n in drawn) < 0.02 < 0.04 < max(n.local_variance for n in drawn) <= 0.05
    assert all(noise.salt == noise.pepper <= 0.005 for noise in drawn)
    assert len({noise.salt for noise in drawn}) == 40
    middle = wide.center((4, 4)).noise
    assert (middle.local_variance, middle.salt) == (pytest.approx(0.03), pytest.approx(0.0025))
    assert DegradationRange(salt_pepper=(0, 0.1)).center((2, 2)).noise.local_variance == 0
    assert DegradationRange(sampling="point").center((4, 4)).noise is None


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"local_variance": (0.05, 0.01)}, "0 <= from <= to"),
        ({"local_variance": (-0.1, 0.01)}, "0 <= from <= to"),
        ({"salt_pepper": (0.5, 1.5)}, "shares of at most 1"),
        ({"salt_pepper": (0.0, 0.1), "second": {}}, "keep one of them"),
    ],
)
def test_range_errors(values, match):
    with pytest.raises(ValueError, match=match):
        DegradationRange(**values)


def test_a_network_that_refines_z_takes_the_noise_off_in_the_same_step():
    """Trained for seconds with photon and read noise in its degradation: less noise than cubic, no less structure.

    Noise is what two acquisitions of the same held-out stack differ by; where the stack is darkest and flattest, and
    everywhere.
    """
    torch.manual_seed(0)
    spacing = (0.29, 0.26, 0.26)
    wide = DegradationRange(axial_fwhm_um=(0.8, 0.8), photons=(50.0, 200.0), read_noise=(0.02, 0.05))
    recipe = SrresnetRecipe(factor=(4, 1, 1), features=8, blocks=2, head_kernel=3, tail_kernel=3)
    built, stack, draws = recipe.build().train(), real_scan()[..., :28, :, :], generator(1)
    optimizer = torch.optim.Adam(built.parameters(), 4e-3)
    for _ in range(40):
        y, x = (int(torch.randint(n, (1,), generator=draws)) for n in (160 - 24, 256 - 24))
        high = stack[..., y : y + 24, x : x + 24]
        low = wide.sample(draws, built.factor, spacing)(high, draws)
        optimizer.zero_grad()
        (built(low) - high).abs().mean().backward()
        optimizer.step()
    built.eval()

    held = stack[..., 176:256, 100:180]
    degradation = wide.center(built.factor, spacing)
    lows = [degradation(held, generator(seed)) for seed in (10, 11)]
    rough = (held - torch.nn.functional.avg_pool3d(held, 5, 1, 2)).abs()
    flat = torch.nn.functional.avg_pool3d(rough, 9, 1, 4) < 0.02
    assert 0.05 < float(flat.float().mean()) < 0.95
    noises, errors = {}, {}
    with torch.inference_mode():
        for name, method in (("network", built), ("cubic", Cubic(built.factor))):
            one, other = (method(low) for low in lows)
            noises[name] = float((one - other)[flat].std())
            errors[name] = float((one - held).square().mean().sqrt())
    assert noises["network"] < 0.7 * noises["cubic"], noises
    assert errors["network"] < 0.9 * errors["cubic"], errors
