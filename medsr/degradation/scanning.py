"""Noise of a scanning microscope: local variance, and samples lost to salt and pepper."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medsr.degradation.noise import Noise

__all__ = ["ScanningNoise"]

REACH = 4.0
"""Widths of the smoothing that are summed over on either side; beyond lies less than 1e-4 of its weight."""


@dataclass(frozen=True, slots=True)
class ScanningNoise:
    """Normal noise whose variance follows the local brightness, then salt and pepper, in unit intensity.

    A sample of a point-scanning electron or laser microscope is one short stay of the beam. Its noise is taken as
    normal, with a variance in proportion to the mean signal around it, as the recipe of point-scanning
    super-resolution does for electron micrographs; a share of samples is lost to the brightest or the darkest level.
    Use it with `Degradation(sampling="point")`, for a scan that skips what lies between.

    Attributes:
        local_variance: variance where the signal around is 1, unit intensity squared (paper, electrons: 0.05).
        width: standard deviation of the Gaussian over which the signal around is averaged, coarse samples along the
            last two axes (paper: 3 fine samples at a factor of 4).
        salt: share of samples that become 1 (paper, fluorescence: 0.005).
        pepper: share of samples that become 0 (the same).
        detector: noise that comes before, such as `PoissonGaussian`; None: nothing.

    Raises:
        ValueError: a value that is not finite or below 0, or shares that sum to more than 1.

    References:
        L. Fang et al., "Deep learning-based point-scanning super-resolution imaging", 2021,
        doi:10.1038/s41592-021-01080-z.
    """

    local_variance: float = 0.0
    width: float = 0.75
    salt: float = 0.0
    pepper: float = 0.0
    detector: Noise | None = None

    def __post_init__(self) -> None:
        values = (self.local_variance, self.width, self.salt, self.pepper)
        if not all(math.isfinite(v) and v >= 0 for v in values) or self.salt + self.pepper > 1:
            raise ValueError(
                "scanning noise: expected finite values of at least 0, and salt and pepper of at most 1 together; "
                f"found {self}"
            )

    def variance(self, signal: Tensor) -> Tensor:
        """Variance of the normal noise at a signal, (.., rows, columns) or any shape of fewer axes; 0 below 0."""
        return (_smooth(signal, self.width) * self.local_variance).clamp(min=0)

    def __call__(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """The signal (any shape, float32 or float64) with noise; the same generator state gives the same noise.

        Drawn on the generator's device in float64. Gradients pass as if the normal noise were a constant, and not
        through salt and pepper.
        """
        if self.detector is not None:
            signal = self.detector(signal, generator)
        clean = signal.detach().to(generator.device, torch.float64)
        if self.local_variance > 0:
            normal = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
            signal = signal + (self.variance(clean).sqrt() * normal).to(signal.device, signal.dtype)
        if self.salt + self.pepper > 0:
            chance = torch.rand(clean.shape, generator=generator, dtype=clean.dtype, device=clean.device)
            chance = chance.to(signal.device)
            signal = signal.masked_fill(chance < self.salt, 1.0)
            signal = signal.masked_fill(chance >= 1 - self.pepper, 0.0) if self.pepper > 0 else signal
        return signal


def _smooth(signal: Tensor, width: float) -> Tensor:
    """A Gaussian mean along the last two axes, the edges repeated."""
    if width == 0 or signal.ndim == 0:
        return signal
    radius = max(1, math.ceil(REACH * width))
    place = torch.arange(-radius, radius + 1, dtype=signal.dtype, device=signal.device)
    weights = torch.exp(-0.5 * (place / width) ** 2)
    weights = weights / weights.sum()
    for axis in range(max(0, signal.ndim - 2), signal.ndim):
        lines = signal.movedim(axis, -1)
        padded = functional.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="replicate")
        signal = functional.conv1d(padded, weights[None, None]).reshape(lines.shape).movedim(-1, axis)
    return signal
