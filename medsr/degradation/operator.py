"""Degradation: how a fine scan becomes a coarse one, y = (k * x) sampled + noise, in unit intensity."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medsr.degradation.kernels import FineGrid, Kernel, Weights, cubic
from medsr.degradation.noise import Noise
from medsr.scan import Factor, validate_factor

__all__ = ["Degradation", "Sampling", "sampling_weights"]

Sampling = Literal["area", "point", "cubic"]
Array = NDArray[np.float64]

HALFWAY = 8
"""Fine samples on either side by which a point halfway between two of them is read (Lanczos)."""

BLOCK = 64  # coarse samples of one matrix product along an axis; keeps the banded matrix small and the BLAS busy


class Stage(NamedTuple):
    """Weights over some axes, and the fine position of the first weight relative to that of coarse sample 0."""

    axes: tuple[int, ...]
    weights: Array
    start: tuple[int, ...]


def sampling_weights(sampling: Sampling, factor: int) -> Array:
    """Weights (1D, sum 1, symmetric about the middle of the block) with which one coarse sample reads the fine ones.

    "area": the mean over the block (a detector pixel integrates). "point": the scan at the middle of the block (a
    scanning microscope skips what lies between: no antialias). For an even factor that is halfway between two fine
    samples: a kernel is sampled there directly, and without one the scan is read there by a windowed sinc of 16
    samples, which passes all but the last tenth of the band (the mean of the two neighbors would halve the noise and
    be an antialias). "cubic": MATLAB's antialiased cubic, a = -0.5.

    Raises:
        ValueError: an unknown name.
    """
    if sampling == "area":
        return np.full(factor, 1 / factor)
    if sampling == "point":
        return np.ones(1)
    if sampling == "cubic":
        count = 4 * factor - factor % 2
        weights = cubic((np.arange(count) - (count - 1) / 2) / factor)
        return np.asarray(weights / weights.sum(), np.float64)
    raise ValueError(f"sampling: expected one of {', '.join(get_args(Sampling))}; found {sampling!r}")


class Degradation:
    """Blur, sampling and noise of a coarser acquisition, in unit intensity.

    Coarse sample i lies at the middle of its block of fine samples, at fine position factor * i + (factor - 1) / 2, as
    `Grid.coarsen` says. Beyond its edge the fine scan is continued by its last sample. All weights sum to 1.

    Args:
        factor: fine samples for each coarse one, for the last axes, slowest first; such as (4, 4) or (1, 2, 2).
        kernel: blur before sampling: a `Gaussian`, `Airy`, `DetectorMTF`, `Weights`, an array over all axes of the
            factor, or one 1D array an axis; None: no blur.
        sampling: how a coarse sample reads the blurred scan; see `sampling_weights`.
        noise: what the detector adds, such as `PoissonGaussian`; None: nothing.
        spacing_um: spacing of the fine samples for the factor's axes, needed by kernels in micrometers; entries or the
            whole may be None for unknown.

    Raises:
        ValueError: a factor, sampling or kernel that is not valid, or a spacing that the kernel needs and is unknown.
    """

    def __init__(
        self,
        factor: Factor,
        *,
        kernel: Kernel | Array | Sequence[Array] | None = None,
        sampling: Sampling = "area",
        noise: Noise | None = None,
        spacing_um: tuple[float | None, ...] | None = None,
    ) -> None:
        self.factor = validate_factor(factor)
        self.sampling: Sampling = sampling
        self.noise = noise
        spacing = (None,) * len(self.factor) if spacing_um is None else tuple(spacing_um)
        if len(spacing) != len(self.factor):
            raise ValueError(f"spacing_um: expected one entry for each axis of {self.factor}, found {spacing_um}")
        self.kernel: Kernel | None
        if isinstance(kernel, np.ndarray):
            self.kernel = Weights(kernel)
        elif isinstance(kernel, Sequence):
            self.kernel = Weights(*kernel)
        else:
            self.kernel = kernel
        half = tuple(sampling == "point" and f % 2 == 0 for f in self.factor)
        self._stages = self._compose(FineGrid(self.factor, spacing, half))

    def __repr__(self) -> str:
        parts = [repr(self.factor), f"sampling={self.sampling!r}"]
        named = (("kernel", self.kernel), ("noise", self.noise))
        parts += [f"{name}={value!r}" for name, value in named if value is not None]
        return f"Degradation({', '.join(parts)})"

    def _compose(self, grid: FineGrid) -> tuple[Stage, ...]:
        """Kernel and sampling weights of each group of axes as one set of weights."""
        parts = () if self.kernel is None else self.kernel.parts(grid)
        named = [axis for part in parts for axis in part.axes]
        last = len(self.factor)
        if len(set(named)) != len(named) or any(
            len(part.axes) > 1 and part.axes != tuple(range(last - len(part.axes), last)) for part in parts
        ):
            raise ValueError(
                f"kernel: expected each axis in at most one part, and parts of several axes over the last ones; "
                f"found {[part.axes for part in parts]}"
            )
        blurred = [(part.axes, part.weights) for part in parts]
        blurred += [((axis,), np.ones(1)) for axis in range(len(self.factor)) if axis not in named]
        stages = []
        for axes, kernel in blurred:
            weights = kernel
            for i, axis in enumerate(axes):
                factor = self.factor[axis]
                weights = _convolve(weights, sampling_weights(self.sampling, factor), i)
                if (weights.shape[i] - factor) % 2:  # the middle lies between positions of the fine grid
                    weights = _convolve(weights, _halfway() if self.sampling == "point" else np.array([0.5, 0.5]), i)
            # middle of the weights = middle of the block: start + (length - 1) / 2 = (factor - 1) / 2
            start = tuple((self.factor[a] - n) // 2 for a, n in zip(axes, weights.shape, strict=True))
            if weights.size > 1 or any(self.factor[a] > 1 for a in axes):
                stages.append(Stage(axes, weights / weights.sum(), start))
        return tuple(stages)

    @property
    def halo(self) -> tuple[int, ...]:
        """Coarse samples of context, for each axis of the factor, beyond which nothing matters to a coarse sample."""
        reach = dict.fromkeys(range(len(self.factor)), 0)
        for stage in self._stages:
            for axis, start in zip(stage.axes, stage.start, strict=True):
                reach[axis] = math.ceil(max(0, -start) / self.factor[axis])
        return tuple(reach.values())

    @property
    def separable(self) -> bool:
        """Whether each axis is blurred and sampled on its own, so that `mean` is one matrix for each axis."""
        return all(len(stage.axes) == 1 for stage in self._stages)

    def mean(self, high: Tensor) -> Tensor:
        """The coarse scan without noise: linear, and gradients pass.

        Args:
            high: fine samples, (n, 1, *fine), unit intensity; any leading axes will do. float64 is kept, every other
                type computes in and returns float32 (on a GPU in float64 inside: its float32 may be TF32).

        Returns:
            (n, 1, *coarse) with coarse = fine / factor.

        Raises:
            ValueError: too few axes, or a size that is no multiple of the factor.
        """
        lead, size = self._split(high)
        if any(n % f or n == 0 for n, f in zip(size, self.factor, strict=True)):
            whole = tuple(n // f * f for n, f in zip(size, self.factor, strict=True))
            raise ValueError(
                f"fine size {size}: expected multiples of the factor {self.factor}; crop to {whole} first"
                if all(whole)
                else f"fine size {size}: expected at least one block of the factor {self.factor} along each axis"
            )
        with torch.autocast(high.device.type, enabled=False):
            x = _precise(high).reshape(-1, *size)
            for stage in self._stages:
                x = _filter(x, stage, self.factor)
            return x.reshape(*lead, *x.shape[1:]).to(_kept(high))

    def adjoint(self, low: Tensor) -> Tensor:
        """The exact transpose of `mean`, border included: <mean(x), y> equals <x, adjoint(y)>.

        Args:
            low: coarse samples, (n, 1, *coarse); any leading axes will do.

        Returns:
            (n, 1, *fine) with fine = coarse * factor.

        Raises:
            ValueError: too few axes.
        """
        lead, size = self._split(low)
        with torch.autocast(low.device.type, enabled=False):
            y = _precise(low).reshape(-1, *size)
            for stage in reversed(self._stages):
                y = _filter_transposed(y, stage, self.factor)
            return y.reshape(*lead, *y.shape[1:]).to(_kept(low))

    def __call__(self, high: Tensor, generator: torch.Generator) -> Tensor:
        """The coarse scan with noise; shapes as in `mean`, the noise follows from the generator's state."""
        low = self.mean(high)
        return low if self.noise is None else self.noise(low, generator)

    def _split(self, x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        axes = len(self.factor)
        if x.ndim < axes:
            raise ValueError(f"expected (n, 1, *size) with {axes} axes of size, found shape {tuple(x.shape)}")
        return tuple(x.shape[: x.ndim - axes]), tuple(x.shape[x.ndim - axes :])


def _halfway() -> Array:
    """Weights that read a scan halfway between two samples: a sinc with the window of its main lobe (Duchon 1979)."""
    places = np.arange(HALFWAY * 2) - (HALFWAY - 0.5)
    weights = np.sinc(places) * np.sinc(places / HALFWAY)
    return np.asarray(weights / weights.sum(), np.float64)


def _kept(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.float64 if x.is_cuda or x.dtype == torch.float64 else torch.float32)


def _convolve(weights: Array, line: Array, axis: int) -> Array:
    """Full convolution of N-D weights with a line along one axis."""
    shape = list(weights.shape)
    length = shape[axis]
    shape[axis] += len(line) - 1
    out = np.zeros(shape)
    for i, value in enumerate(line):
        out[(slice(None),) * axis + (slice(i, i + length),)] += value * weights
    return out


def _extend(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Continue an axis by its edge samples; a negative count cuts instead. Any count, however small the axis."""
    size = x.shape[axis]
    x = x.narrow(axis, max(-before, 0), size - max(-before, 0) - max(-after, 0))
    parts = [x]
    if before > 0:
        parts.insert(0, x.narrow(axis, 0, 1).expand(_sized(x, axis, before)))
    if after > 0:
        parts.append(x.narrow(axis, x.shape[axis] - 1, 1).expand(_sized(x, axis, after)))
    return torch.cat(parts, axis) if len(parts) > 1 else x


def _extend_transposed(y: Tensor, axis: int, before: int, after: int) -> Tensor:
    """The transpose of `_extend`: what was continued is added to the edge, what was cut is zero."""
    first, last = max(before, 0), y.shape[axis] - max(after, 0)
    left = y.narrow(axis, 0, first).sum(axis, keepdim=True)
    right = y.narrow(axis, last, y.shape[axis] - last).sum(axis, keepdim=True)
    head, tail = y.narrow(axis, first, 1), y.narrow(axis, last - 1, 1)
    if last - first == 1:
        parts = [left + head + right]
    else:
        parts = [left + head, y.narrow(axis, first + 1, last - first - 2), tail + right]
    if before < 0:
        parts.insert(0, y.new_zeros(_sized(y, axis, -before)))
    if after < 0:
        parts.append(y.new_zeros(_sized(y, axis, -after)))
    return torch.cat(parts, axis)


def _sized(x: Tensor, axis: int, count: int) -> list[int]:
    shape = list(x.shape)
    shape[axis] = count
    return shape


class Bands(NamedTuple):
    """Banded matrices that turn windows of fine samples along the last axis of a stage into blocks of coarse ones.

    Attributes:
        rows: offsets along the other axes of the stage, one tuple for each matrix.
        matrices: (row, window, block).
        blocks: windows along the axis.
        step: fine samples from one window to the next.
        reach: fine samples of all windows together.
    """

    rows: list[tuple[int, ...]]
    matrices: Tensor
    blocks: int
    step: int
    reach: int


def _bands(stage: Stage, factor: int, coarse: int, like: Tensor) -> Bands:
    length = stage.weights.shape[-1]
    block = min(BLOCK, coarse)
    blocks = -(-coarse // block)
    window = (block - 1) * factor + length
    rows = [row for row in np.ndindex(stage.weights.shape[:-1]) if stage.weights[row].any()]
    matrices = np.zeros((len(rows), window, block))
    column = np.arange(block)[:, None]
    for matrix, row in zip(matrices, rows, strict=True):
        matrix[column * factor + np.arange(length), column] = stage.weights[row]
    step = block * factor
    tensor = torch.from_numpy(matrices).to(like.device, like.dtype)
    return Bands(rows, tensor, blocks, step, (blocks - 1) * step + window)


def _margins(stage: Stage, factors: Factor, coarse: Sequence[int], reach: int) -> list[tuple[int, int, int]]:
    """(axis, before, after) by which the fine scan is continued so that every weight finds a sample."""
    margins = []
    for axis, start, length, n in zip(stage.axes, stage.start, stage.weights.shape, coarse, strict=True):
        factor = factors[axis]
        span = reach if axis == stage.axes[-1] else (n - 1) * factor + length
        margins.append((axis + 1, -start, span + start - n * factor))
    return margins


def _picked(stage: Stage, factors: Factor, coarse: Sequence[int], row: tuple[int, ...]) -> tuple[slice, ...]:
    """Where the fine samples of one row of weights lie along the axes before the last one of a stage."""
    index = [slice(None)] * (stage.axes[0] + 1)
    for axis, offset, n in zip(stage.axes[:-1], row, coarse, strict=False):
        index.append(slice(offset, offset + (n - 1) * factors[axis] + 1, factors[axis]))
    return tuple(index)


def _filter(x: Tensor, stage: Stage, factors: Factor) -> Tensor:
    """Filter and sample the axes of a stage: for each row of weights, windows of the fine scan times a band."""
    last = stage.axes[-1] + 1
    coarse = [x.shape[a + 1] // factors[a] for a in stage.axes]
    bands = _bands(stage, factors[stage.axes[-1]], coarse[-1], x)
    for axis, before, after in _margins(stage, factors, coarse, bands.reach):
        x = _extend(x, axis, before, after)
    windows = x.movedim(last, -1).unfold(-1, bands.matrices.shape[1], bands.step)
    terms = (
        windows[_picked(stage, factors, coarse, row)] @ matrix
        for row, matrix in zip(bands.rows, bands.matrices, strict=True)
    )
    total: Tensor = functools.reduce(torch.add, terms)
    return total.flatten(-2)[..., : coarse[-1]].movedim(-1, last)


def _filter_transposed(y: Tensor, stage: Stage, factors: Factor) -> Tensor:
    last = stage.axes[-1] + 1
    coarse = [y.shape[a + 1] for a in stage.axes]
    bands = _bands(stage, factors[stage.axes[-1]], coarse[-1], y)
    margins = _margins(stage, factors, coarse, bands.reach)
    _, window, block = bands.matrices.shape
    y = functional.pad(y.movedim(last, -1), (0, bands.blocks * block - coarse[-1]))
    y = y.reshape(*y.shape[:-1], bands.blocks, block)
    starts = torch.arange(bands.blocks, device=y.device) * bands.step
    place = (starts[:, None] + torch.arange(window, device=y.device)).flatten()
    shape = list(y.shape[:-2])
    for (axis, before, after), n in zip(margins[:-1], coarse, strict=False):
        shape[axis] = before + n * factors[axis - 1] + after
    x = y.new_zeros(*shape, bands.reach)
    for row, matrix in zip(bands.rows, bands.matrices, strict=True):
        spread = (y @ matrix.T).flatten(-2)
        x[_picked(stage, factors, coarse, row)] += spread.new_zeros(*spread.shape[:-1], bands.reach).index_add(
            -1, place, spread
        )
    x = x.movedim(-1, last)
    for axis, before, after in margins:
        x = _extend_transposed(x, axis, before, after)
    return x
