"""The laws every degradation is asked: one function a law, and the degradations they are asked of."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medsr.degradation import Airy, Degradation, DetectorMTF, Gaussian, PoissonGaussian, Weights
from medsr.scan import Factor, Grid

SPACING_UM = {1: (0.1,), 2: (0.1, 0.14), 3: (0.3, 0.1, 0.14)}
FACTORS: tuple[Factor, ...] = ((3,), (2, 2), (3, 3), (4, 4), (1, 2), (3, 2), (2, 2, 2), (1, 4, 4), (4, 1, 1), (3, 2, 1))
KERNELS = {
    "none": None,
    "gaussian": Gaussian(fwhm_um=(0.5, 0.3), axial_fwhm_um=0.9),
    "samples": Gaussian(fwhm_samples=1.2, axial_fwhm_samples=0.8),
    "rotated": Gaussian(fwhm_um=(0.6, 0.25), axial_fwhm_um=0.9, angle_deg=33.0),
    "airy": Airy(0.9, 0.5, radius_um=1.0, axial_fwhm_um=0.7),
    "mtf": DetectorMTF("gaussian", f50_per_mm=1200.0),
}


def _weights(count: int, axes: int) -> Weights:
    """A measured kernel that is symmetric, does not separate and has an odd or even number of samples an axis."""
    line = np.arange(count) - (count - 1) / 2
    square = sum(a**2 for a in np.meshgrid(*[line] * axes, indexing="ij"))
    return Weights(1 / (1 + square) ** 1.5)


def _cases() -> dict[str, Callable[[], Degradation]]:
    cases: dict[str, Callable[[], Degradation]] = {}
    for sampling in ("area", "point", "cubic"):
        for name, kernel in KERNELS.items():
            for factor in FACTORS:
                if len(factor) == 1 and name == "airy":
                    continue  # an Airy pattern needs a plane
                kind = f"{sampling}-{name}-{'x'.join(map(str, factor))}"
                cases[kind] = lambda f=factor, k=kernel, s=sampling: Degradation(
                    f, kernel=k, sampling=s, spacing_um=SPACING_UM[len(f)]
                )
        for count in (4, 5):
            for factor in ((2, 2), (3, 3), (2, 3), (2, 1, 2)):
                kind = f"{sampling}-weights{count}-{'x'.join(map(str, factor))}"
                cases[kind] = lambda f=factor, n=count, s=sampling: Degradation(
                    f, kernel=_weights(n, len(f)), sampling=s
                )
    return cases


CASES = _cases()


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _fine(degradation: Degradation, coarse: int) -> tuple[int, ...]:
    return tuple(f * (coarse + i) for i, f in enumerate(degradation.factor))


def _room(degradation: Degradation) -> tuple[int, ...]:
    """Coarse samples along each axis such that several lie beyond the reach of the border."""
    return tuple(2 * h + 5 for h in degradation.halo)


def adjointness(degradation: Degradation, coarse: int) -> None:
    """<mean(x), y> == <x, adjoint(y)> in float64, also where the kernel is larger than the scan."""
    fine = _fine(degradation, coarse)
    x = _random(2, 1, *fine)
    mean = degradation.mean(x)
    y = _random(*mean.shape, seed=1)
    assert mean.shape == (2, 1, *(n // f for n, f in zip(fine, degradation.factor, strict=True)))
    left, right = (mean * y).sum(), (x * degradation.adjoint(y)).sum()
    assert abs(left - right) <= 1e-12 * mean.norm() * y.norm()


def gradient_is_adjoint(degradation: Degradation, coarse: int) -> None:
    """What autograd sends back through `mean` is `adjoint`, and the other way round."""
    x = _random(1, 1, *_fine(degradation, coarse)).requires_grad_()
    mean = degradation.mean(x)
    y = _random(*mean.shape, seed=1).requires_grad_()
    (back,) = torch.autograd.grad(mean, x, y.detach())
    torch.testing.assert_close(back, degradation.adjoint(y.detach()), rtol=1e-12, atol=1e-12)
    (forth,) = torch.autograd.grad(degradation.adjoint(y), y, x.detach())
    torch.testing.assert_close(forth, mean.detach(), rtol=1e-12, atol=1e-12)


def linearity(degradation: Degradation, coarse: int) -> None:
    """mean(a x + b y) == a mean(x) + b mean(y)."""
    fine = _fine(degradation, coarse)
    x, y = _random(1, 1, *fine), _random(1, 1, *fine, seed=1)
    torch.testing.assert_close(
        degradation.mean(0.7 * x - 3 * y),
        0.7 * degradation.mean(x) - 3 * degradation.mean(y),
        rtol=1e-12,
        atol=1e-12,
    )


def flat_field(degradation: Degradation, coarse: int) -> None:
    """A flat field stays flat, up to and including the border, in both precisions."""
    for dtype, atol in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        flat = torch.full((1, 1, *_fine(degradation, coarse)), 0.625, dtype=dtype)
        mean = degradation.mean(flat)
        assert mean.dtype == dtype
        torch.testing.assert_close(mean, torch.full_like(mean, 0.625), rtol=0, atol=atol)


def ramp_in_micrometers(degradation: Degradation) -> None:
    """A ramp along any axis is the same ramp in micrometers, where `Grid.coarsen` puts the coarse samples."""
    axes = len(degradation.factor)
    room = _room(degradation)
    fine = tuple(n * f for n, f in zip(room, degradation.factor, strict=True))
    grid = Grid(("z", "y", "x")[3 - axes :], SPACING_UM[axes], (1.0, -2.0, 3.0)[:axes])
    coarse = grid.coarsen(degradation.factor)
    for axis in range(axes):
        shape = [-1 if i == axis else 1 for i in range(axes)]
        high = torch.from_numpy(_positions(grid, axis, fine[axis])).reshape(shape).expand(1, 1, *fine)
        low = degradation.mean(high)[0, 0]
        inside = low[tuple(slice(h, n - h) for h, n in zip(degradation.halo, room, strict=True))]
        expected = _positions(coarse, axis, room[axis])[degradation.halo[axis] : room[axis] - degradation.halo[axis]]
        torch.testing.assert_close(
            inside, torch.from_numpy(expected).reshape(shape).expand_as(inside), rtol=0, atol=1e-11
        )


def _positions(grid: Grid, axis: int, size: int) -> np.ndarray:
    assert grid.spacing_um is not None
    spacing = grid.spacing_um[axis]
    assert spacing is not None
    return grid.origin_um[axis] + spacing * np.arange(size)


def blob_stays(degradation: Degradation) -> None:
    """The centroid of a blob, in coarse samples, moves by less than 0.01."""
    room = tuple(2 * h + 9 for h in degradation.halo)
    blob, true = torch.ones(1, 1, dtype=torch.float64), []
    for axis, (n, f) in enumerate(zip(room, degradation.factor, strict=True)):
        true.append((n - 1) / 2 + (0.3, -0.2, 0.4)[axis])
        place = (np.arange(n * f) - (f - 1) / 2) / f  # fine samples in coarse indices
        line = torch.from_numpy(np.exp(-0.5 * ((place - true[axis]) / 0.9) ** 2))
        blob = blob[..., None] * line
    low = degradation.mean(blob)[0, 0]
    for axis, n in enumerate(room):
        others = tuple(i for i in range(len(room)) if i != axis)
        profile = low.sum(others) if others else low
        centroid = float((profile * torch.arange(n)).sum() / profile.sum())
        assert abs(centroid - true[axis]) < 0.01


def context_suffices(degradation: Degradation) -> None:
    """A cut-out with `halo` coarse samples of context gives what the whole scan gives."""
    room = tuple(3 * h + 6 for h in degradation.halo)
    whole = _random(1, 1, *(n * f for n, f in zip(room, degradation.factor, strict=True)))
    low = degradation.mean(whole)
    part, kept, mine = [...], [...], [...]
    for h, n, f in zip(degradation.halo, room, degradation.factor, strict=True):
        start, stop = h + 1, h + 4
        part.append(slice((start - h) * f, min(stop + h, n) * f))
        kept.append(slice(start, stop))
        mine.append(slice(h, h + 3))
    torch.testing.assert_close(degradation.mean(whole[tuple(part)])[tuple(mine)], low[tuple(kept)])


def follows_generator(degradation: Degradation, high: Tensor) -> None:
    """The same generator state gives the same scan bit for bit, another one another; the global state is untouched."""
    before = torch.random.get_rng_state()
    first, again, other = (degradation(high, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def noise_statistics(noise: PoissonGaussian, levels: list[float], dtype: torch.dtype) -> None:
    """At each level the mean is the signal and the variance the one the noise says, within five standard errors."""
    count = 120_000
    for level in levels:
        signal = torch.full((count,), level, dtype=dtype)
        values = noise(signal, torch.Generator().manual_seed(11)).to(torch.float64)
        assert values.isfinite().all()
        said = float(noise.variance(signal)[0])
        resolution = 4 * torch.finfo(dtype).eps * max(abs(level), 1e-3)
        assert abs(float(values.mean()) - float(signal[0])) <= 5 * math.sqrt(said / count) + resolution
        centered = values - values.mean()
        fourth = float((centered**4).mean())
        error = math.sqrt(max(fourth - said**2, 0.0) / count)
        assert abs(float(centered.square().mean()) - said) <= 5 * error + resolution**2
