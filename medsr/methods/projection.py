"""What makes an estimate agree with the measured scan: the pseudo-inverse of a degradation, applied to what is left."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsr.degradation import Degradation, SecondOrder

__all__ = ["Known", "Projection", "project", "projection", "response"]

Array = NDArray[np.float64]
Known = Degradation | SecondOrder
"""A degradation whose mean is linear and has a transpose."""

LARGEST_CONDITION = 100.0
"""Condition number of A A^T, for each axis or for a kernel that does not separate, above which a ridge holds it there:
noise is then amplified at most 10 times, and a tile needs at most about 60 samples of context."""
UNSEEN = 1e-7
"""Share of a residual that may come from beyond the reach: with residuals below 1, far below one of 65,536 levels."""
NOTHING = 1e-14
"""Share below which the filter of an axis is cut off."""
STEPS_LEAVE = 1e-3
"""Share of a residual that the steps of an iterated inverse leave at most."""
KEPT_MATRICES = 16
"""Sizes of short axes whose matrices are kept ready."""
BLOCK = 64
"""Coarse samples of one matrix product along an axis."""


class Axis(NamedTuple):
    """The pseudo-inverse along one axis: A^T (A A^T + ridge)^-1 with replicated edges.

    Attributes:
        factor: fine samples of a coarse one.
        line: weights with which a coarse sample reads fine ones, from `before` fine samples ahead of its block on.
        before: a whole number of blocks.
        ridge: what is added to the diagonal of A A^T.
        reach: coarse samples beyond which no residual matters to a fine sample.
        kept: the same for the filter, which is cut where nothing of float64 is left.
        middle: (2 * kept + 1, factor): from the residuals around a coarse sample to its fine ones, far from any edge.
        edge: (2 * kept, kept * factor): from the first residuals to the first fine samples.
        far_edge: the same at the end of the axis.
    """

    factor: int
    line: Array
    before: int
    ridge: float
    reach: int
    kept: int
    middle: Array
    edge: Array
    far_edge: Array


class Steps(NamedTuple):
    """Chebyshev's iteration for (A A^T + ridge)^-1, the same for every residual.

    Attributes:
        lowest, highest: eigenvalues of A A^T + ridge lie between them.
        ridge: what is added to the diagonal of A A^T.
        number: how many steps.
    """

    lowest: float
    highest: float
    ridge: float
    number: int


class Projection:
    """The correction that a degradation asks of an estimate; made by `projection`.

    Attributes:
        degradation: the degradation it inverts.
        reach: for each axis, coarse samples of the residual beyond which nothing matters to a fine sample.
        condition: for each axis, the largest by the smallest eigenvalue of A A^T, before any ridge; a single number
            where the kernel does not separate.
        ridge: what is laid on A A^T, in the order of `condition`; 0: the result returns the measured scan.
        shrink: factor of the correction; below 1 for noise where each coarse sample reads its own block alone.
    """

    def __init__(
        self,
        degradation: Known,
        *,
        reach: tuple[int, ...],
        condition: tuple[float, ...],
        ridge: tuple[float, ...],
        shrink: float = 1.0,
        axes: tuple[Axis | None, ...] = (),
        steps: Steps | None = None,
    ) -> None:
        self.degradation, self.reach, self.condition = degradation, reach, condition
        self.ridge, self.shrink = ridge, shrink
        self._axes, self._steps = axes, steps
        self._matrices: OrderedDict[tuple[int, int, str], tuple[Tensor, ...]] = OrderedDict()

    def __call__(self, estimate: Tensor, low: Tensor) -> Tensor:
        """The estimate plus the correction; see `project`."""
        plain = not self._axes and self._steps is None
        corrected = [
            self._plain(one, measured) if plain else self._full(one, measured)
            for one, measured in zip(torch.split(estimate, 1), torch.split(low, 1), strict=True)
        ]
        return corrected[0] if len(corrected) == 1 else torch.cat(corrected)

    def _plain(self, estimate: Tensor, low: Tensor) -> Tensor:
        """Block means only: the residual of a block is added to each of its samples."""
        factor = self.degradation.factor
        mean = estimate
        for axis, f in enumerate(factor, start=2):
            if f > 1:
                own = mean.reshape(*mean.shape[:axis], -1, f, *mean.shape[axis + 1 :])
                mean = sum((own.select(axis + 1, k) for k in range(1, f)), own.select(axis + 1, 0)) / f
        residual = (low - mean) * self.shrink
        blocks, places = estimate, list(residual.shape[:2])
        for axis, f in reversed(list(enumerate(factor, start=2))):
            blocks = blocks.reshape(*blocks.shape[:axis], -1, f, *blocks.shape[axis + 1 :])
        for n in residual.shape[2:]:
            places += [n, 1]
        return (blocks + residual.reshape(places)).reshape(estimate.shape)

    def _full(self, estimate: Tensor, low: Tensor) -> Tensor:
        """In float64, so that an inverse that amplifies does not amplify roundings."""
        with torch.autocast(estimate.device.type, enabled=False):
            change = low.double() - self.degradation.mean(estimate.double())
            if self._steps is not None:
                change = self.degradation.adjoint(self._iterated(change, self._steps))
            else:
                for i, axis in enumerate(self._axes):
                    if axis is not None:
                        change = self._spread(change, i, axis)
            return estimate + change.to(estimate.dtype)

    def _spread(self, residual: Tensor, index: int, axis: Axis) -> Tensor:
        """Residuals to the correction they ask for, along one axis: (..., n, ...) to (..., n * factor, ...)."""
        moved = residual.movedim(index + 2, -1)
        count, kept = moved.shape[-1], axis.kept
        if count <= 4 * kept + 1:
            (whole,) = self._made(index, count, residual.device)
            return (moved @ whole).movedim(-1, index + 2)
        middle, first, last = self._made(index, 0, residual.device)
        blocks = -(-(count - 2 * kept) // BLOCK)
        missing = blocks * BLOCK + 2 * kept - count
        windows = torch.nn.functional.pad(moved, (0, missing)).unfold(-1, BLOCK + 2 * kept, BLOCK)
        inner = (windows @ middle).flatten(-2)[..., : (count - 2 * kept) * axis.factor]
        parts = (moved[..., : 2 * kept] @ first, inner, moved[..., count - 2 * kept :] @ last)
        return torch.cat(parts, -1).movedim(-1, index + 2)

    def _made(self, index: int, count: int, device: torch.device) -> tuple[Tensor, ...]:
        """The matrices of an axis of `count` coarse samples, or (count 0) of a long one; made once, then kept."""
        key = (index, count, str(device))
        if key not in self._matrices:
            axis = self._axes[index]
            if axis is None:
                raise ValueError(f"axis {index}: expected one that is refined or blurred, found neither")
            if count:
                made: Sequence[Array] = (_inverse(axis.line, axis.before, axis.factor, count, axis.ridge),)
            else:
                made = (_banded(axis.middle, axis.factor), axis.edge, axis.far_edge)
            self._matrices[key] = tuple(torch.from_numpy(np.ascontiguousarray(m)).to(device) for m in made)
            if len(self._matrices) > KEPT_MATRICES:
                self._matrices.popitem(last=False)
        return self._matrices[key]

    def _iterated(self, residual: Tensor, steps: Steps) -> Tensor:
        mean, adjoint = self.degradation.mean, self.degradation.adjoint
        return _chebyshev(residual, lambda z: mean(adjoint(z)) + steps.ridge * z, steps)


def project(estimate: Tensor, low: Tensor, degradation: Known) -> Tensor:
    """The estimate nearest to `estimate` that, degraded, gives `low`: x + A^T (A A^T)^-1 (y - A x).

    Args:
        estimate: (n, 1, *size * factor), unit intensity, float32 or float64.
        low: (n, 1, *size), the measured scan.
        degradation: A; its noise is left out.

    Returns:
        The same shape and type as `estimate`.
    """
    return projection(degradation)(estimate, low)


def projection(degradation: Known, *, doubtful: float = 0.0) -> Projection:
    """The projection of a degradation, made once for all tiles.

    Args:
        degradation: A; its noise is left out.
        doubtful: variance of the noise by that of what the residual would be without it; 0: agree exactly, where
            A A^T is well conditioned.
    """
    shape = response(degradation)
    if isinstance(degradation, SecondOrder) or not degradation.separable:
        return _joint(degradation, doubtful)
    lines = [_line(shape, axis) for axis in range(shape.ndim)]
    asked = [_is_read(line, f) for line, f in zip(lines, degradation.factor, strict=True)]
    ones = (1.0,) * shape.ndim
    if all(_is_block(line, f) for line, f in zip(lines, degradation.factor, strict=True)):
        return Projection(
            degradation,
            reach=(0,) * shape.ndim,
            condition=ones,
            ridge=(0.0,) * shape.ndim,
            shrink=1 / (1 + doubtful),
        )
    share = (1 + doubtful) ** (1 / sum(asked)) - 1  # so that a flat residual is shrunk by 1 / (1 + doubtful) in all
    axes, conditions = list[Axis | None](), list[float]()
    for line, f, is_asked in zip(lines, degradation.factor, asked, strict=True):
        found, own = _axis(line, f, share) if is_asked else (None, 1.0)
        axes.append(found)
        conditions.append(own)
    return Projection(
        degradation,
        reach=tuple(0 if axis is None else axis.reach for axis in axes),
        condition=tuple(conditions),
        ridge=tuple(0.0 if axis is None else axis.ridge for axis in axes),
        axes=tuple(axes),
    )


def response(degradation: Known) -> Array:
    """What one coarse sample reads of fine ones, far from any edge: an odd number of blocks along each axis."""
    size = tuple(2 * h + 1 for h in degradation.halo)
    one = torch.zeros(1, 1, *size, dtype=torch.float64)
    one[(0, 0, *degradation.halo)] = 1
    return np.asarray(degradation.adjoint(one)[0, 0].numpy(), np.float64)


def _line(shape: Array, axis: int) -> Array:
    """The weights along one axis of a separable response, whose others sum to 1."""
    return np.asarray(shape.sum(tuple(a for a in range(shape.ndim) if a != axis)), np.float64)


def _is_read(line: Array, factor: int) -> bool:
    return bool(factor > 1 or np.count_nonzero(line) > 1)


def _is_block(line: Array, factor: int) -> bool:
    """Whether a coarse sample is the mean of its own block."""
    middle = line[(line.size - factor) // 2 : (line.size + factor) // 2]
    return float(np.abs(middle - 1 / factor).max()) < 1e-12 and abs(float(np.abs(line).sum()) - 1) < 1e-12


def _matrix(line: Array, before: int, factor: int, count: int) -> Array:
    """A along an axis of `count` coarse samples: (count, count * factor), the fine edges repeated."""
    matrix = np.zeros((count, count * factor))
    rows = np.arange(count)[:, None]
    columns = np.clip(rows * factor - before + np.arange(line.size), 0, count * factor - 1)
    np.add.at(matrix, (np.broadcast_to(rows, columns.shape), columns), np.broadcast_to(line, columns.shape))
    return matrix


def _inverse(line: Array, before: int, factor: int, count: int, ridge: float) -> Array:
    """The transpose of A^T (A A^T + ridge)^-1: (count, count * factor), from residuals in a row to fine samples."""
    matrix = _matrix(line, before, factor, count)
    return np.asarray(np.linalg.solve(matrix @ matrix.T + ridge * np.eye(count), matrix), np.float64)


def _axis(line: Array, factor: int, share: float) -> tuple[Axis, float]:
    """The pseudo-inverse along an axis, and the condition number before its ridge."""
    before = (line.size - factor) // 2
    blocks = line.size // factor
    tried = _matrix(line, before, factor, 8 * blocks + 65)
    found = np.linalg.eigvalsh(tried @ tried.T)
    lowest, highest = max(float(found[0]), 0.0), float(found[-1])
    flat = float((tried @ tried.T)[tried.shape[0] // 2].sum())
    ridge = max(share * flat, (highest - LARGEST_CONDITION * lowest) / (LARGEST_CONDITION - 1), 0.0)
    kept = blocks
    while True:
        count = 4 * kept + 1
        made = _inverse(line, before, factor, count, ridge).reshape(count, count, factor)
        # what the fine samples of the middle block and of the first one read, by the distance of the residual
        middle, first = np.abs(made[:, 2 * kept]).max(1), np.abs(made[:, 0]).max(1)
        apart = np.maximum(middle[2 * kept :], middle[2 * kept :: -1])
        apart = np.maximum(apart, first[: 2 * kept + 1])
        beyond = np.append(np.cumsum(apart[::-1])[::-1], 0.0)
        if beyond[kept + 1] <= NOTHING * beyond[0]:
            break
        kept += max(4, kept // 4)
    reach = int(np.argmax(beyond <= UNSEEN)) - 1
    axis = Axis(
        factor,
        line,
        before,
        ridge,
        max(reach, 0),
        kept,
        made[kept : 3 * kept + 1, 2 * kept],
        made[: 2 * kept, :kept].reshape(2 * kept, -1),
        made[-2 * kept :, -kept:].reshape(2 * kept, -1),
    )
    return axis, highest / lowest if lowest > 0 else math.inf


def _banded(middle: Array, factor: int) -> Array:
    """The filter of the middle as a matrix from BLOCK + 2 * kept residuals to the fine samples of BLOCK of them."""
    width = middle.shape[0]
    matrix = np.zeros((BLOCK + width - 1, BLOCK, factor))
    for j in range(BLOCK):
        matrix[j : j + width, j] = middle
    return matrix.reshape(BLOCK + width - 1, -1)


def _joint(degradation: Known, doubtful: float) -> Projection:
    """The projection of a kernel whose axes do not separate: bounds of A A^T, then the steps they ask for."""
    symbol = _symbol(degradation)
    lowest, flat = max(float(symbol.min()), 0.0), float(symbol.flat[0])
    highest = max(float(symbol.max()), _largest(degradation))
    ridge = max(doubtful * flat, (highest - LARGEST_CONDITION * lowest) / (LARGEST_CONDITION - 1), 0.0)
    root = math.sqrt((highest + ridge) / (lowest + ridge))
    count = max(1, math.ceil(math.log(2 / STEPS_LEAVE) / math.log((root + 1) / max(root - 1, 1e-9))))
    steps = Steps(lowest + ridge, highest + ridge, ridge, count)
    made = torch.from_numpy(symbol + ridge)
    inverse = _chebyshev(torch.ones_like(made), lambda z: made * z, steps)
    spread = np.abs(np.fft.fftshift(np.fft.ifftn(inverse.numpy()).real))
    reach = tuple(
        0 if spread.shape[axis] == 1 else _decayed(_line(spread, axis)) + halo
        for axis, halo in enumerate(degradation.halo)
    )
    return Projection(
        degradation,
        reach=reach,
        condition=(highest / lowest if lowest > 0 else math.inf,),
        ridge=(ridge,),
        steps=steps,
    )


def _symbol(degradation: Known) -> Array:
    """Eigenvalues of A A^T far from any edge, on a grid of frequencies: the transform of its own response."""
    size = tuple(4 * h + 1 for h in degradation.halo)
    one = torch.zeros(1, 1, *size, dtype=torch.float64)
    one[(0, 0, *(n // 2 for n in size))] = 1
    own = degradation.mean(degradation.adjoint(one))[0, 0].numpy()
    grid = tuple(1 if n == 1 else max(128, 2 ** math.ceil(math.log2(4 * n))) for n in size)
    wide = np.zeros(grid)
    wide[tuple(slice(n) for n in size)] = own
    wide = np.roll(wide, [-(n // 2) for n in size], range(len(size)))
    return np.asarray(np.fft.fftn(wide).real, np.float64)


def _largest(degradation: Known) -> float:
    """The largest eigenvalue of A A^T with all edges near, by repeated application; a little is added."""
    vector = torch.ones(1, 1, *(4 * h + 3 for h in degradation.halo), dtype=torch.float64)
    grown = 1.0
    for _ in range(50):
        vector = vector / vector.norm()
        vector = degradation.mean(degradation.adjoint(vector))
        grown = float(vector.norm())
    return 1.02 * grown


def _decayed(spread: Array) -> int:
    """Samples from the middle beyond which the rest is no share of the whole."""
    middle = spread.size // 2
    apart = spread[middle:0:-1]
    beyond = np.append(np.cumsum(apart[::-1])[::-1], 0.0) / spread.sum()
    return int(np.argmax(beyond <= UNSEEN))


def _chebyshev(residual: Tensor, apply: Callable[[Tensor], Tensor], steps: Steps) -> Tensor:
    """(A A^T + ridge)^-1 of residuals, by a polynomial that does not depend on them, so that tiles agree.

    Y. Saad, Iterative methods for sparse linear systems, 2003, doi:10.1137/1.9780898718003, algorithm 12.1.
    """
    center, half = (steps.highest + steps.lowest) / 2, (steps.highest - steps.lowest) / 2
    if half < 1e-12 * center:
        return residual / center
    ratio = center / half
    old = 1 / ratio
    step = residual / center
    total = step
    for _ in range(steps.number):
        new = 1 / (2 * ratio - old)
        left = residual - apply(total)
        step = new * old * step + (2 * new / half) * left
        total, old = total + step, new
    return total
