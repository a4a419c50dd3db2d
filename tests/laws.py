"""The laws that every method, reader and degradation is asked; each is a function that fails with the figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from medsr.scan import Factor, Grid, Intensity

GRAY_LEVEL = 1 / 65535
"""The largest difference between a tile and the whole: one of 65,536 levels, in unit intensity."""


class Method(Protocol):
    """What the laws use of an Upscaler."""

    @property
    def factor(self) -> Factor: ...
    @property
    def halo(self) -> tuple[int, ...]: ...
    def __call__(self, low: Tensor, /) -> Tensor: ...


class LinearOperator(Protocol):
    """What the adjointness law uses of a Degradation."""

    @property
    def factor(self) -> Factor: ...
    def mean(self, high: Tensor) -> Tensor: ...
    def adjoint(self, low: Tensor) -> Tensor: ...


# ---------------------------------------------------------------- law 1: tiled equals whole


def assemble_from_tiles(method: Method, low: Tensor, tile: tuple[int, ...]) -> Tensor:
    """A plain tiler to compare with: each tile is cut with the method's halo, which ends where the scan ends."""
    size = low.shape[2:]
    fine = low.new_full((*low.shape[:2], *(n * f for n, f in zip(size, method.factor, strict=True))), float("nan"))
    for corner in product(*(range(0, n, t) for n, t in zip(size, tile, strict=True))):
        read, keep, place = [], [], []
        for start, n, t, f, halo in zip(corner, size, tile, method.factor, method.halo, strict=True):
            stop, first = min(n, start + t), max(0, start - halo)
            read.append(slice(first, min(n, stop + halo)))
            keep.append(slice((start - first) * f, (stop - first) * f))
            place.append(slice(start * f, stop * f))
        fine[(..., *place)] = method(low[(..., *read)])[(..., *keep)]
    return fine


def tiled_equals_whole(method: Method, low: Tensor, tile: tuple[int, ...], *, tolerance: float = GRAY_LEVEL) -> None:
    """Any tile size gives the values of the whole."""
    with torch.inference_mode():
        whole, parts = method(low), assemble_from_tiles(method, low, tile)
    expected = (*low.shape[:2], *(n * f for n, f in zip(low.shape[2:], method.factor, strict=True)))
    assert tuple(whole.shape) == expected, f"{method}: expected {expected} of {tuple(low.shape)}, found {whole.shape}"
    worst = float((parts - whole).abs().max())
    assert worst <= tolerance, f"{method}: tiles of {tile} differ from the whole by {worst:.2e} (> {tolerance:.1e})"


def halo_is_exact(method: Method, size: tuple[int, ...]) -> None:
    """A cell in the middle depends on every axis up to the halo and not beyond: neither too little nor wasted.

    `method` must take float64, so that the faintest dependence is seen; `size` must exceed twice the halo.
    """
    middle = tuple(n // 2 for n in size)
    assert all(m >= h + 1 and n - 1 - m >= h + 1 for m, n, h in zip(middle, size, method.halo, strict=True)), size
    generator = torch.Generator().manual_seed(5)
    low = torch.rand(1, 1, *size, generator=generator, dtype=torch.float64).requires_grad_()
    cell = tuple(slice(m * f, (m + 1) * f) for m, f in zip(middle, method.factor, strict=True))
    fine = method(low)[(..., *cell)]
    weights = torch.randn(fine.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((fine * weights).sum(), low)
    for axis, (m, h) in enumerate(zip(middle, method.halo, strict=True)):
        others = tuple(a for a in range(gradient.ndim) if a != axis + 2)
        used = torch.nonzero(gradient.abs().amax(others)).flatten()
        found = (m - int(used.min()), int(used.max()) - m)
        assert found == (h, h), f"{method}: axis {axis} reaches {found} coarse samples, halo says {h}"


# ---------------------------------------------------------------- law 2: every stored value survives


def every_stored_value_survives(intensity: Intensity, stored: np.ndarray[Any, Any]) -> None:
    """to_stored(to_unit(v)) == v."""
    back = intensity.to_stored(intensity.to_unit(stored))
    lost = np.flatnonzero(back != stored)
    assert back.dtype == stored.dtype
    assert not lost.size, f"{intensity}: {lost.size} of {stored.size} values changed, first {stored.flat[lost[0]]}"


def gray_levels_survive(method: Method, *, least: int = 60_000, width: int = 1) -> None:
    """A ramp through all 65,536 values of uint16 keeps at least `least` of them on its way to unit intensity, through
    the method and back.

    The ramp runs along the axis of the largest factor; the other axes are `width` samples wide.
    """
    intensity = Intensity(0, 65535, np.dtype(np.uint16))
    axis = int(np.argmax(method.factor))
    line = intensity.to_unit(np.arange(65536, dtype=np.uint16))
    size = [65536 if a == axis else width for a in range(len(method.factor))]
    shape = [65536 if a == axis else 1 for a in range(len(method.factor))]
    low = torch.from_numpy(line).reshape(1, 1, *shape).expand(1, 1, *size).contiguous()
    with torch.inference_mode():
        stored = intensity.to_stored(method(low).numpy())
    kept = len(np.unique(stored))
    assert kept > least, f"{method}: {kept} of 65,536 gray levels are left (at least {least})"


# ---------------------------------------------------------------- law 3: samples lie where the grid says


def positions_um(grid: Grid, size: tuple[int, ...]) -> list[np.ndarray[Any, Any]]:
    """Coordinates in micrometers of the samples along each axis, shaped to broadcast."""
    assert grid.spacing_um is not None
    lines = [o + np.arange(n) * float(s or 0) for o, s, n in zip(grid.origin_um, grid.spacing_um, size, strict=True)]
    return [line.reshape([-1 if a == axis else 1 for a in range(len(size))]) for axis, line in enumerate(lines)]


def ramp_stays_in_place(
    transform: Callable[[Tensor], Tensor],
    before: Grid,
    after: Grid,
    size: tuple[int, ...],
    *,
    border: tuple[int, ...],
    tolerance: float = 1e-9,
) -> None:
    """A ramp in micrometers on the grid `before` is the same ramp on the grid `after`, for every axis.

    Args:
        transform: (1, 1, *size) to (1, 1, *other size), float64: a method, or the mean of a degradation.
        before, after: the grids of input and output, spacing known for every axis.
        size: samples of the input.
        border: samples of the output left out at either end of each axis, where the edge is felt.
        tolerance: largest deviation, in spacings of the coarser grid along the axis.
    """
    for axis in range(len(size)):
        ramp = np.broadcast_to(positions_um(before, size)[axis], size)
        with torch.inference_mode():
            found = transform(torch.from_numpy(ramp.copy())[None, None])[0, 0].numpy()
        expected = np.broadcast_to(positions_um(after, found.shape)[axis], found.shape)
        inner = tuple(slice(b, n - b) for b, n in zip(border, found.shape, strict=True))
        assert before.spacing_um is not None
        assert after.spacing_um is not None
        coarse = max(float(before.spacing_um[axis] or 0), float(after.spacing_um[axis] or 0))
        off = (found - expected)[inner] / coarse
        assert off.size, f"nothing of {found.shape} is left inside the border {border}"
        worst, mean = float(np.abs(off).max()), float(off.mean())
        assert worst <= tolerance, f"{transform}: axis {axis} is off by {worst:.2e} coarse samples, mean {mean:.2e}"


def blob_stays_in_place(method: Method, grid: Grid, size: tuple[int, ...], *, tolerance: float = 0.01) -> None:
    """The centroid of a blob, in micrometers, is where it was; `tolerance` in coarse samples.

    For methods whose detail may bend a ramp. The centroid is that of the image times a window around the blob.
    """
    assert grid.spacing_um is not None
    spots = positions_um(grid, size)
    center = [float(s.mean()) + 0.3 * float(d or 0) for s, d in zip(spots, grid.spacing_um, strict=True)]

    def bump(places: list[np.ndarray[Any, Any]], width: float) -> np.ndarray[Any, Any]:
        steps = (float(d or 0) for d in grid.spacing_um or ())
        return np.exp(-0.5 * sum(((p - c) / (width * d)) ** 2 for p, c, d in zip(places, center, steps, strict=True)))

    low = torch.from_numpy(bump(spots, 1.5).astype(np.float32))[None, None]
    with torch.inference_mode():
        fine = method(low)[0, 0].numpy().astype(np.float64)
    places = positions_um(grid.refine(method.factor), fine.shape)
    mass = fine * bump(places, 6.0)
    for axis, (spot, where) in enumerate(zip(places, center, strict=True)):
        off = (float((mass * spot).sum() / mass.sum()) - where) / float(grid.spacing_um[axis] or 0)
        assert abs(off) <= tolerance, f"{method}: blob moved by {off:+.4f} coarse samples along axis {axis}"


# ---------------------------------------------------------------- law 4: adjointness


def adjoint_is_transpose(degradation: LinearOperator, low_size: tuple[int, ...], *, tolerance: float = 1e-10) -> None:
    """<mean(x), y> == <x, adjoint(y)> in float64."""
    generator = torch.Generator().manual_seed(0)
    high_size = tuple(n * f for n, f in zip(low_size, degradation.factor, strict=True))
    x = torch.randn(2, 1, *high_size, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 1, *low_size, generator=generator, dtype=torch.float64)
    left, right = float((degradation.mean(x) * y).sum()), float((x * degradation.adjoint(y)).sum())
    bound = tolerance * float(x.norm() * y.norm())
    assert abs(left - right) <= bound, f"{degradation}: <mean(x), y> = {left}, <x, adjoint(y)> = {right}"


# ---------------------------------------------------------------- flat fields and the intensity line


def flat_stays_flat(
    method: Method, size: tuple[int, ...], *, levels: tuple[float, ...] = (0.0, 0.1, 0.5, 1.0), tolerance: float = 1e-3
) -> None:
    """A flat field keeps its level at every sample within `tolerance` of the unit interval (0.1 %), edges included."""
    for level in levels:
        with torch.inference_mode():
            fine = method(torch.full((1, 1, *size), level))
        worst, ripple = float((fine - level).abs().max()), float(fine.max() - fine.min())
        assert worst <= tolerance, f"{method}: flat field of {level} is off by {worst:.2e}, ripple {ripple:.2e}"


def commutes_with_line(method: Method, low: Tensor, gain: float, offset: float, *, tolerance: float = 1e-5) -> None:
    """method(gain * low + offset) == gain * method(low) + offset for gain > 0; `tolerance` relative to the values."""
    with torch.inference_mode():
        left, right = method(gain * low + offset), gain * method(low) + offset
    worst = float((left - right).abs().max() / right.abs().max())
    assert worst <= tolerance, f"{method}: gain {gain} and offset {offset} change the picture by {worst:.2e}"


def tile_sizes(size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Tiles that do not divide `size`, and one larger than it."""
    yield tuple(max(1, n // 3) for n in size)
    yield tuple(max(1, n // 2 + 1) for n in size)
    yield tuple(n + 3 for n in size)
