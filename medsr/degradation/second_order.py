"""SecondOrder: blur, resizing and noise twice, as where a scan was resampled before it came to us."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsr.degradation.kernels import FineGrid, Kernel, Part, Weights, cubic
from medsr.degradation.noise import Noise
from medsr.degradation.operator import Degradation, Sampling
from medsr.scan import Factor, validate_factor

__all__ = ["Resizing", "SecondOrder", "ringing_line", "resizing_weights"]

Resizing = Literal["area", "linear", "cubic"]
Array = NDArray[np.float64]

RINGING_REACH = 10
"""Coarse samples on either side at which the ringing kernel is cut (Wang et al. 2021: kernels of 21)."""

EDGE = 1e-12
"""What lies within this of a kernel's border lies on it: positions are sums of fractions."""


class SecondOrder:
    """Blur, resizing and noise, then blur, sampling and noise: y = (k2 * ((k1 * x) resized + n1)) sampled + n2.

    A coarse sample stands for a block of `factor` fine samples. Between the passes the block holds `between` samples,
    more or fewer than the fine ones, evenly spaced: whole numbers, so that the grids of all three meet at the borders
    of a block. Every step keeps a flat field and a ramp in their places, border aside. There is no compression and no
    sharpening, which no instrument does.

    Args:
        factor: fine samples for each coarse one, for the last axes, slowest first; such as (4, 4) or (1, 2, 2).
        between: samples of the grid between the passes for each coarse one, one an axis.
        kernels: blur of either pass, as in `Degradation`: widths in samples are of coarse samples for both; None: none.
        noises: what is added after either pass; None: nothing.
        resizing: how the first pass is resized; see `resizing_weights`.
        sampling: how a coarse sample reads the second pass; see `medsr.degradation.operator.sampling_weights`.
        ringing: highest frequency that is kept at the end, as a share of the coarse grid's Nyquist frequency, along
            the refined axes: edges ring, as where the raw data of a magnetic resonance scan end; None: all are kept.
        spacing_um: spacing of the fine samples for the factor's axes, needed by kernels in micrometers.

    Raises:
        ValueError: a factor, sampling, kernel, count or frequency that is not valid, or a spacing that a kernel needs
            and is unknown.

    References:
        X. Wang et al., "Real-ESRGAN: Training real-world blind super-resolution with pure synthetic data", 2021,
        sections 3.2 and 3.3, arXiv:2107.10833.
    """

    def __init__(
        self,
        factor: Factor,
        *,
        between: tuple[int, ...],
        kernels: tuple[Kernel | None, Kernel | None] = (None, None),
        noises: tuple[Noise | None, Noise | None] = (None, None),
        resizing: Resizing = "cubic",
        sampling: Sampling = "area",
        ringing: float | None = None,
        spacing_um: tuple[float | None, ...] | None = None,
    ) -> None:
        self.factor = validate_factor(factor)
        axes = len(self.factor)
        if len(between) != axes or min(between) < 1:
            raise ValueError(f"between: expected {axes} counts of at least 1, found {between}")
        if ringing is not None and not 0 < ringing <= 1:
            raise ValueError(f"ringing: expected a share of the Nyquist frequency above 0, at most 1; found {ringing}")
        self.between, self.kernels, self.noises = tuple(between), kernels, noises
        self.resizing: Resizing = resizing
        self.sampling: Sampling = sampling
        self.ringing = ringing
        fine = (None,) * axes if spacing_um is None else tuple(spacing_um)
        middle = tuple(
            None if s is None else s * f / b for s, f, b in zip(fine, self.factor, self.between, strict=True)
        )
        first = None if kernels[0] is None else _OnFine(kernels[0], self.factor)
        self._blur = Degradation((1,) * axes, kernel=first, spacing_um=fine)
        self._resized = tuple(map(functools.partial(_Axis.of, kind=resizing), self.factor, self.between))
        self._second = Degradation(
            self.between, kernel=kernels[1], sampling=sampling, noise=noises[1], spacing_um=middle
        )
        lines = [np.ones(1) if f == 1 or ringing is None else ringing_line(ringing) for f in self.factor]
        self._ringing = Degradation((1,) * axes, kernel=None if ringing is None else Weights(*lines))

    def __repr__(self) -> str:
        parts = [repr(self.factor), f"between={self.between}", f"resizing={self.resizing!r}"]
        parts.append(f"sampling={self.sampling!r}")
        named = (("kernels", self.kernels), ("noises", self.noises))
        parts += [f"{name}={value!r}" for name, value in named if value != (None, None)]
        parts += [] if self.ringing is None else [f"ringing={self.ringing:.3g}"]
        return f"SecondOrder({', '.join(parts)})"

    @property
    def kernel(self) -> Kernel | None:
        """The blur of the first pass."""
        return self.kernels[0]

    @property
    def noise(self) -> Noise | None:
        """The noise of the second pass."""
        return self.noises[1]

    @property
    def separable(self) -> bool:
        """Whether each axis is blurred, resized and sampled on its own, so that `mean` is one matrix for each axis."""
        return self._blur.separable and self._second.separable

    @property
    def halo(self) -> tuple[int, ...]:
        """Coarse samples of context, for each axis of the factor, beyond which nothing matters to a coarse sample."""
        reaches = []
        for axis, f in enumerate(self.factor):
            blur, blocks = self._blur.halo[axis], self._resized[axis].blocks
            reaches.append(math.ceil(blur / f) + blocks + self._second.halo[axis] + self._ringing.halo[axis])
        return tuple(reaches)

    def mean(self, high: Tensor) -> Tensor:
        """The coarse scan without noise: linear, and gradients pass; shapes and types as in `Degradation.mean`.

        Raises:
            ValueError: too few axes, or a size that is no multiple of the factor.
        """
        return self._ringing.mean(self._second.mean(self._first(high)))

    def adjoint(self, low: Tensor) -> Tensor:
        """The exact transpose of `mean`, border included; shapes and types as in `Degradation.adjoint`.

        Raises:
            ValueError: too few axes.
        """
        y = self._second.adjoint(self._ringing.adjoint(low))
        with torch.autocast(y.device.type, enabled=False):
            for axis, resized in zip(reversed(range(-len(self.factor), 0)), reversed(self._resized), strict=True):
                y = resized.transposed(y, axis)
        return self._blur.adjoint(y)

    def __call__(self, high: Tensor, generator: torch.Generator) -> Tensor:
        """The coarse scan with the noise of both passes, which follows from the generator's state; shapes as in `mean`.

        The ringing comes last and colors the noise too, as the end of the raw data does.
        """
        middle = self._first(high)
        if self.noises[0] is not None:
            middle = self.noises[0](middle, generator)
        return self._ringing.mean(self._second(middle, generator))

    def _first(self, high: Tensor) -> Tensor:
        """The first pass without noise: (n, 1, *fine) to (n, 1, *coarse * between)."""
        size = tuple(high.shape[high.ndim - len(self.factor) :])
        if high.ndim < len(self.factor) or any(n % f or n == 0 for n, f in zip(size, self.factor, strict=True)):
            raise ValueError(
                f"fine size {size}: expected multiples of the factor {self.factor}, at least one block along each "
                "axis; crop the scan first"
            )
        x = self._blur.mean(high)
        with torch.autocast(x.device.type, enabled=False):
            for axis, resized in zip(range(-len(self.factor), 0), self._resized, strict=True):
                x = resized(x, axis)
        return x


@dataclass(frozen=True, slots=True)
class _OnFine:
    """A kernel of the fine grid whose widths in samples are of coarse ones."""

    kernel: Kernel
    factor: Factor

    def parts(self, grid: FineGrid) -> tuple[Part, ...]:
        """The weights, by the size of the coarse samples."""
        return self.kernel.parts(FineGrid(self.factor, grid.spacing_um, grid.half))


@dataclass(frozen=True, eq=False, slots=True)
class _Axis:
    """One axis resized: each block of samples becomes a block of others, by a matrix that is the same for all.

    Attributes:
        weights: ((2 blocks + 1) * into, out): what the samples of a block and its neighbors give to the others.
        blocks: neighbors on either side that matter.
    """

    weights: Array
    blocks: int

    @classmethod
    def of(cls, into: int, out: int, *, kind: Resizing) -> _Axis:
        """Blocks of `into` samples resized to `out`."""
        weights = resizing_weights(kind, into, out)
        return cls(weights, (weights.shape[0] // into - 1) // 2)

    @property
    def _into(self) -> int:
        into: int = self.weights.shape[0] // (2 * self.blocks + 1)
        return into

    def __call__(self, x: Tensor, axis: int) -> Tensor:
        """(..., n * into, ...) to (..., n * out, ...)."""
        if self._same:
            return x
        matrix, edge = self._matrix(x), self.blocks * self._into
        x = x.movedim(axis, -1)
        first, last = x[..., :1], x[..., -1:]
        x = torch.cat([first.expand(*x.shape[:-1], edge), x, last.expand(*x.shape[:-1], edge)], -1)
        return (x.unfold(-1, matrix.shape[0], self._into) @ matrix).flatten(-2).movedim(-1, axis)

    def transposed(self, y: Tensor, axis: int) -> Tensor:
        """The exact transpose of the call: (..., n * out, ...) to (..., n * into, ...)."""
        if self._same:
            return y
        matrix, into, edge = self._matrix(y), self._into, self.blocks * self._into
        y = y.movedim(axis, -1)
        cells = y.reshape(*y.shape[:-1], -1, matrix.shape[1]) @ matrix.T
        n = cells.shape[-2]
        whole = cells.new_zeros(*cells.shape[:-2], (n + 2 * self.blocks) * into)
        for block in range(2 * self.blocks + 1):
            part = cells[..., block * into : (block + 1) * into].flatten(-2)
            whole[..., block * into : (block + n) * into] += part
        x = whole[..., edge : edge + n * into].clone()
        x[..., 0] += whole[..., :edge].sum(-1)
        x[..., -1] += whole[..., edge + n * into :].sum(-1)
        return x.movedim(-1, axis)

    @property
    def _same(self) -> bool:
        return self.weights.shape[0] == self.weights.shape[1] and bool((self.weights == np.eye(self._into)).all())

    def _matrix(self, like: Tensor) -> Tensor:
        return torch.from_numpy(self.weights).to(like.device, like.dtype)


def resizing_weights(kind: Resizing, into: int, out: int) -> Array:
    """The matrix that resizes blocks of `into` samples to `out`, both evenly spaced over the block.

    "area": the mean over the part of the block a new sample stands for; "linear", "cubic": the triangle and MATLAB's
    cubic, a = -0.5, widened where the new samples are fewer. Each column sums to 1, and its center of mass is where
    the new sample lies: a kernel that is cut to a grid of another spacing is off by up to a tenth of a sample, so the
    weights are tilted by that much.

    Returns:
        ((2 b + 1) * into, out): weights of the samples of a block with b neighbors on either side.

    Raises:
        ValueError: an unknown name.
    """
    if kind not in get_args(Resizing):
        raise ValueError(f"resizing: expected one of {', '.join(get_args(Resizing))}; found {kind!r}")
    if into == out:
        return np.eye(into)
    width = max(into / out, 1.0)  # of the kernel, in samples of the block: never narrower than one of them
    radius = {"area": 0.5 * width + 0.5, "linear": width, "cubic": 2 * width}[kind]
    blocks = math.ceil((radius + 0.5) / into)
    place = np.arange(-blocks * into, (blocks + 1) * into, dtype=np.float64)
    target = (np.arange(out) + 0.5) * into / out - 0.5
    away = place[:, None] - target
    if kind == "area":
        low, high = np.maximum(away - 0.5, -width / 2), np.minimum(away + 0.5, width / 2)
        weights = np.maximum(high - low, 0.0)
    elif kind == "linear":
        weights = np.maximum(1 - np.abs(away) / width, 0.0)
    else:
        weights = cubic(away / width)
    weights[np.abs(away) > radius - EDGE] = 0.0
    weights /= weights.sum(0)
    # A tilt over the samples in use: it sums to 0 and moves the center of mass to where the new sample lies.
    used = weights != 0
    tilt = np.where(used, away - np.where(used, away, 0.0).sum(0) / used.sum(0), 0.0)
    moment = (tilt * away).sum(0)
    weights -= tilt * (weights * away).sum(0) / np.where(moment > EDGE, moment, 1.0)
    rows = np.flatnonzero(np.abs(weights).max(1))
    kept = max(-(-(blocks * into - int(rows[0])) // into), int(rows[-1]) // into - blocks, 0)
    return np.asarray(weights[(blocks - kept) * into : (blocks + kept + 1) * into], np.float64)


def ringing_line(cutoff: float) -> Array:
    """An ideal low pass along one axis, cut after ten samples: weights of sum 1, symmetric.

    The pass band of a Cartesian raw-data space is a box, hence one line an axis; the paper's, for photographs, is a
    disk.

    Args:
        cutoff: highest frequency that is kept, as a share of the Nyquist frequency.
    """
    line = cutoff * np.sinc(cutoff * np.arange(-RINGING_REACH, RINGING_REACH + 1))
    return np.asarray(line / line.sum(), np.float64)
