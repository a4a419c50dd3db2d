"""Leveled: any method that commutes with an offset, on a scan without its tilt; the tilt is added back exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medsr.upscaler import Composed, Placed, Run, Upscaler, describe

if TYPE_CHECKING:
    from medsr.scan import Factor, Region, Scan

__all__ = ["Leveled"]

BLOCKS = 8
"""Blocks along each axis that are looked at of a scan larger than they are together."""

BLOCK = {1: 65536, 2: 256, 3: 40}
"""Samples of a block along each axis, for factors of one to three entries."""

FRAMES = 16
"""Planes (time points, channels) looked at of scans with more axes than the factor."""

OFFSET = 3.0
"""Constant in unit intensity that a method is asked to commute with, in `adapt`."""

TOLERANCE = 1e-4
"""Largest error of it, in unit intensity: several times what float32 rounds off."""


class Leveled(nn.Module):
    """A method applied to a scan without its tilt.

    `adapt` fits one plane to all measured samples. Around each tile the plane's slopes are taken off, counted from the
    tile's first sample, and added back after it at the positions of the fine samples. Tiles then differ from the whole
    by constants, which the method passes through unchanged: so the tiled result is the whole one, and tilting a scan
    tilts the result, edges included.

    Of a method that adds detail to an interpolation this keeps slopes out of what the network sees, which it may not
    have met in training, and out of the repeated edge, where any method bends a tilted surface.

    Args:
        upscaler: any method; `adapt` asks it whether it commutes with an offset.
        slopes: unit intensity for each coarse sample, for each axis of the factor; None: none yet, `adapt` fits them.

    Attributes:
        factor, halo: those of the method.

    Raises (adapt):
        ValueError: the method does not commute with an offset, or must know where its tile lies (`Placed`).
    """

    def __init__(self, upscaler: Upscaler, *, slopes: tuple[float, ...] | None = None) -> None:
        super().__init__()
        self.factor: Factor = tuple(upscaler.factor)
        self.halo = tuple(upscaler.halo)
        self.slopes = (0.0,) * len(self.factor) if slopes is None else tuple(slopes)
        self._upscaler = (upscaler,)
        self._networks = nn.ModuleList(u for u in self._upscaler if isinstance(u, nn.Module))  # so that it is moved

    @property
    def parts(self) -> tuple[Upscaler, ...]:
        """The method."""
        return self._upscaler

    def adapt(self, scan: Scan) -> Self:
        """The method adapted to the scan as it is, and the scan's tilt."""
        part = self._upscaler[0].adapt(scan)
        if _must_be_placed(part):
            raise ValueError(
                f"Leveled: expected a method that may be given a tile without its tilt, found {describe(part)}, which "
                "looks up where in the scan a tile lies; use it as it is"
            )
        _check_offset(part)
        return type(self)(part, slopes=_slopes(scan, len(self.factor))).train(self.training)

    def forward(self, low: Tensor) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 1, *size * factor), float32."""
        return self.around(low, self.parts)

    def around(self, low: Tensor, runs: Sequence[Run]) -> Tensor:
        """The estimate of a tile without its tilt, and the tilt; shapes as in `forward`."""
        fine = runs[0](low - self._plane(low, (1,) * len(self.factor)))
        return fine + self._plane(fine, self.factor)

    def _plane(self, like: Tensor, factor: Factor) -> Tensor:
        """The tilt at the samples of a tile that is `factor` times refined; 0 at its first coarse sample."""
        plane = torch.zeros((), dtype=torch.float64)
        for axis, (slope, f) in enumerate(zip(self.slopes, factor, strict=True), start=2):
            place = (torch.arange(like.shape[axis], dtype=torch.float64) + 0.5) / f - 0.5  # block-centered
            plane = plane + (slope * place).reshape([-1 if a == axis else 1 for a in range(like.ndim)])
        return plane.to(like.device, like.dtype)

    def __repr__(self) -> str:
        tilt = ", ".join(f"{slope:.6g}" for slope in self.slopes)
        return f"Leveled (slopes {tilt} a coarse sample): {describe(self._upscaler[0])}"


def _must_be_placed(upscaler: Upscaler) -> bool:
    if isinstance(upscaler, Composed):
        return any(map(_must_be_placed, upscaler.parts))
    return isinstance(upscaler, Placed)


@torch.no_grad()
def _check_offset(upscaler: Upscaler) -> None:
    """Ask a method for a small scan and for the same with a constant added.

    Raises:
        ValueError: the results differ by more than the constant.
    """
    parameters = upscaler.parameters() if isinstance(upscaler, nn.Module) else iter(())
    device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    size = (8,) * len(upscaler.factor)
    low = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0)).to(device)
    training = upscaler.training if isinstance(upscaler, nn.Module) else False
    if isinstance(upscaler, nn.Module):
        upscaler.eval()
    off = float((upscaler(low + OFFSET) - upscaler(low) - OFFSET).abs().max())
    if isinstance(upscaler, nn.Module):
        upscaler.train(training)
    if not off <= TOLERANCE:
        raise ValueError(
            f"Leveled: expected a method that passes an offset through unchanged, found {describe(upscaler)}, whose "
            f"result is {off:.2g} off for an offset of {OFFSET}; use it as it is, or train one with norm: none"
        )


def _slopes(scan: Scan, dims: int) -> tuple[float, ...]:
    """Slopes of the least-squares plane along the last `dims` axes, unit intensity for each sample; each frame along
    the other axes has a level of its own, so that drift from plane to plane tilts nothing."""
    shape, lead = scan.shape[-dims:], len(scan.shape) - dims
    normal, right = np.zeros((dims, dims)), np.zeros(dims)
    for index in _spread(scan.shape[:lead]):
        sums = _Sums(dims)
        for block in product(*(_blocks(n, BLOCK[dims]) for n in shape)):
            region: Region = (*(slice(i, i + 1) for i in index), *block)
            stored = scan.read(region).reshape([s.stop - s.start for s in block])
            known = ~scan.intensity.holes(stored)
            unit = scan.intensity.to_unit(stored).astype(np.float64)
            places = [
                np.broadcast_to(
                    (np.arange(s.start, s.stop) / n - 0.5).reshape([-1 if a == axis else 1 for a in range(dims)]),
                    known.shape,
                )[known]
                for axis, (s, n) in enumerate(zip(block, shape, strict=True))
            ]
            sums.add(np.stack(places), unit[known])
        within = sums.within()
        normal, right = normal + within[0], right + within[1]
    found, *_ = np.linalg.lstsq(normal, right, rcond=1e-9)
    return tuple(float(slope) / n for slope, n in zip(found, shape, strict=True))


class _Sums:
    """Sums of a frame from which its covariances follow; counted about the frame's first value."""

    def __init__(self, dims: int) -> None:
        self._count, self._about = 0, 0.0
        self._x, self._xx = np.zeros(dims), np.zeros((dims, dims))
        self._z, self._xz = 0.0, np.zeros(dims)

    def add(self, places: NDArray[np.float64], values: NDArray[np.float64]) -> None:
        """(dims, n) places and n values."""
        if not values.size:
            return
        self._about = self._about if self._count else float(values.mean())
        values = values - self._about
        self._count += values.size
        self._x, self._xx = self._x + places.sum(1), self._xx + places @ places.T
        self._z, self._xz = self._z + float(values.sum()), self._xz + places @ values

    def within(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums of products of what places, and places and values, differ from their means."""
        count = max(1, self._count)
        return self._xx - np.outer(self._x, self._x) / count, self._xz - self._x * self._z / count


def _spread(counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Indices of at most FRAMES frames, evenly spread."""
    total = int(np.prod(counts, dtype=np.int64))
    for pick in np.unique(np.linspace(0, total - 1, min(FRAMES, total)).round().astype(int)):
        yield tuple(int(i) for i in np.unravel_index(pick, counts)) if counts else ()


def _blocks(size: int, block: int) -> list[slice]:
    """All of an axis, or of a long one blocks evenly spread."""
    if size <= block * BLOCKS:
        return [slice(first, min(size, first + block)) for first in range(0, size, block)]
    return [slice(int(a), int(a) + block) for a in np.linspace(0, size - block, BLOCKS).round().astype(int)]
