"""Linear, Cubic, Lanczos: block-centered interpolation, the baselines and the path around every network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor

from medsr.scan import Factor, validate_factor

if TYPE_CHECKING:
    from medsr.scan import Scan

__all__ = ["INTERPOLATIONS", "Cubic", "Interpolation", "InterpolationKind", "Lanczos", "Linear", "interpolate", "reach"]

InterpolationKind = Literal["linear", "cubic", "lanczos"]

BLOCK_SAMPLES = 2**20
"""Fine samples computed at a time on the CPU: a few MiB, so that temporaries stay in the cache and never grow."""


def linear_kernel(distance: float) -> float:
    """Triangle of half width 1 at a distance in coarse samples."""
    return max(0.0, 1.0 - abs(distance))


def cubic_kernel(distance: float) -> float:
    """Cubic convolution with a = -1/2, exact for parabolas (Keys 1981, equation 15)."""
    d = abs(distance)
    if d < 1:
        return (1.5 * d - 2.5) * d * d + 1.0
    return ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0 if d < 2 else 0.0


def lanczos_kernel(distance: float) -> float:
    """Sinc times sinc window of half width 3 (Duchon 1979); its weights are normalized in `interpolate`."""
    d = abs(distance)
    if d >= 3 or d == 0:
        return 1.0 if d == 0 else 0.0
    if d == int(d):
        return 0.0
    return 3 * math.sin(math.pi * d) * math.sin(math.pi * d / 3) / (math.pi * d) ** 2


KERNELS: dict[InterpolationKind, tuple[Callable[[float], float], int]] = {
    "linear": (linear_kernel, 1),
    "cubic": (cubic_kernel, 2),
    "lanczos": (lanczos_kernel, 3),
}


def reach(factor: Factor, *, kind: InterpolationKind = "cubic") -> tuple[int, ...]:
    """Coarse samples on either side that an interpolated value depends on, one an axis; 0 where the factor is 1."""
    return tuple(0 if f == 1 else KERNELS[kind][1] for f in factor)


Phases = list[list[tuple[int, float]]]


def _phases(kind: InterpolationKind, factor: int) -> Phases:
    """For each of `factor` fine samples of a coarse cell: (coarse neighbor, weight), the cell's own sample left out.

    Fine sample p of a cell lies (p + 1/2) / factor - 1/2 coarse samples from its center. The weights of all taps sum
    to 1, so the cell's own weight need not be kept: value = own + sum of weight * (neighbor - own).
    """
    kernel, radius = KERNELS[kind]
    taps = list(range(-radius, radius + 1))
    phases = []
    for p in range(factor):
        place = (p + 0.5) / factor - 0.5
        weights = [kernel(k - place) for k in taps]
        total = sum(weights)
        phases.append([(k, w / total) for k, w in zip(taps, weights, strict=True) if k != 0 and w != 0.0])
    return phases


def interpolate(low: Tensor, factor: Factor, *, kind: InterpolationKind = "cubic") -> Tensor:
    """Refine the last axes of `low` by separable interpolation on the block-centered grid.

    The field of view is kept: `factor` fine samples fill each coarse cell (half-pixel exact). Beyond the edges the
    last sample is repeated. A flat field is returned bit for bit, and each value depends on the coarse samples within
    `reach` only, so a tile with that halo gives the values of the whole.

    Args:
        low: (n, c, *size), as many sizes as the factor has entries (1, 2 or 3); any range. Half precision is
            computed in float32. Differentiable.
        factor: refinement of each axis.
        kind: "linear"; "cubic" (Keys, a = -1/2); "lanczos" (3 lobes, normalized).

    Returns:
        (n, c, *size * factor), float32, or float64 for float64 input.

    Raises:
        ValueError: the number of axes differs from that of the factor, or the input holds no floats.

    References:
        R. G. Keys, "Cubic convolution interpolation for digital image processing", 1981,
        doi:10.1109/TASSP.1981.1163711.
        C. E. Duchon, "Lanczos filtering in one and two dimensions", 1979,
        doi:10.1175/1520-0450(1979)018<1016:LFIOAT>2.0.CO;2.
    """
    if low.ndim != len(factor) + 2 or not low.is_floating_point():
        raise ValueError(
            f"interpolate: expected floats of shape (n, c, *size) with {len(factor)} sizes for the factor {factor}, "
            f"found {low.dtype} of shape {tuple(low.shape)}"
        )
    low = low.to(torch.promote_types(low.dtype, torch.float32))
    size = tuple(low.shape[2:])
    phases = [_phases(kind, f) for f in factor]
    radii = reach(factor, kind=kind)
    in_one = low.device.type != "cpu" or torch.compiler.is_compiling()
    if in_one or (low.requires_grad and torch.is_grad_enabled()):
        return _interpolated(low, tuple(slice(0, n) for n in size), radii, phases)
    fine = low.new_empty(*low.shape[:2], *(n * f for n, f in zip(size, factor, strict=True)))
    limit = max(1, BLOCK_SAMPLES // max(1, math.prod(factor) * low.shape[0] * low.shape[1]))
    for block in _blocks(size, limit):
        part = fine
        for axis, (s, f) in enumerate(zip(block, factor, strict=True), start=2):
            part = part.narrow(axis, s.start * f, (s.stop - s.start) * f)
        part.copy_(_interpolated(low, block, radii, phases))
    return fine


def _blocks(size: tuple[int, ...], limit: int) -> Iterator[tuple[slice, ...]]:
    """Regions of at most `limit` samples that fill `size`, cut along the slowest axes first."""
    block = list(size)
    for axis in range(len(block)):
        rest = math.prod(block[axis + 1 :])
        block[axis] = min(size[axis], max(1, limit // max(1, rest)))
    starts = [range(0, n, b) for n, b in zip(size, block, strict=True)]
    for corner in product(*starts):
        yield tuple(slice(s, min(n, s + b)) for s, n, b in zip(corner, size, block, strict=True))


def _interpolated(low: Tensor, block: tuple[slice, ...], radii: tuple[int, ...], phases: list[Phases]) -> Tensor:
    """The fine samples of one block of coarse cells."""
    for axis, (part, radius) in enumerate(zip(block, radii, strict=True), start=2):
        low = _window(low, axis, part.start - radius, part.stop + radius)
    for axis, (radius, along) in enumerate(zip(radii, phases, strict=True), start=2):
        if radius:
            low = _refined(low, axis, radius, along)
    return low


def _window(low: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """Samples start..stop of an axis, the first and last repeated beyond the edges."""
    size = low.shape[axis]
    if start >= 0 and stop <= size:
        return low.narrow(axis, start, stop - start)
    return low.index_select(axis, torch.arange(start, stop, device=low.device).clamp(0, size - 1))


def _refined(padded: Tensor, axis: int, radius: int, phases: Phases) -> Tensor:
    """One axis refined; `padded` brings `radius` samples more than wanted at either end.

    Sums of shifted slices: faster on the CPU than a convolution with one channel, and on a GPU always true float32.
    """
    count = padded.shape[axis] - 2 * radius
    own = padded.narrow(axis, radius, count)
    steps = {k: padded.narrow(axis, radius + k, count) - own for k in range(-radius, radius + 1) if k != 0}
    fine = []
    for phase in phases:
        value = own
        for k, weight in phase:
            value = torch.add(value, steps[k], alpha=weight)
        fine.append(value)
    return torch.stack(fine, axis + 1).flatten(axis, axis + 1)


class Interpolation:
    """An Upscaler that interpolates; `Linear`, `Cubic` and `Lanczos` say how.

    Attributes:
        factor: refinement of the last one to three axes.
        halo: coarse samples of context for each of these axes; 0 where the factor is 1.
    """

    kind: ClassVar[InterpolationKind]

    def __init__(self, factor: Factor | int) -> None:
        self.factor = validate_factor(factor)
        self.halo = reach(self.factor, kind=self.kind)

    def adapt(self, scan: Scan) -> Self:  # noqa: ARG002 the contract of an Upscaler
        """Itself: an interpolation needs to know nothing of the scan."""
        return self

    def __call__(self, low: Tensor, /) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 1, *size * factor); float32, or float64 for float64 input."""
        return interpolate(low, self.factor, kind=self.kind)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.factor})"


class Linear(Interpolation):
    """Linear interpolation: never overshoots, blurs most."""

    kind = "linear"


class Cubic(Interpolation):
    """Cubic convolution with a = -1/2: the baseline of the super-resolution literature.

    References:
        R. G. Keys, 1981, doi:10.1109/TASSP.1981.1163711.
    """

    kind = "cubic"


class Lanczos(Interpolation):
    """Windowed sinc with 3 lobes, normalized: sharpest of the three, rings most.

    Not exact for a ramp: positions deviate by up to two hundredths of a coarse sample, without a mean shift.

    References:
        C. E. Duchon, 1979, doi:10.1175/1520-0450(1979)018<1016:LFIOAT>2.0.CO;2.
    """

    kind = "lanczos"


INTERPOLATIONS: dict[InterpolationKind, type[Interpolation]] = {"linear": Linear, "cubic": Cubic, "lanczos": Lanczos}
"""The interpolations by the name a command line calls them."""
