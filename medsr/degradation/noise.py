"""Photon and read noise in unit intensity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from medsr.scan import Intensity

__all__ = ["Noise", "PoissonGaussian"]

MANY = 1e7  # photons above which a normal deviate stands for a Poisson one (skewness below 3.2e-4)


class Noise(Protocol):
    """What a detector adds to a signal in unit intensity."""

    def __call__(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """The signal with noise added; same shape, dtype and device."""
        ...


@dataclass(frozen=True, slots=True)
class PoissonGaussian:
    """Photon noise (Poisson) plus read noise (Gaussian).

    The mean of the result is the signal everywhere; below `zero`, where no photon is expected, only read noise is
    added. Gradients pass to the signal as if the noise were a constant.

    Attributes:
        photons: photons counted when the signal rises from `zero` by 1; negative where a higher stored value means
            fewer photons (MONOCHROME1); None: no photon noise.
        read_noise: standard deviation of the read noise, unit intensity.
        zero: unit intensity at which no photon is counted.

    Raises:
        ValueError: photons is 0, read_noise is below 0, or a value is not finite.
    """

    photons: float | None = None
    read_noise: float = 0.0
    zero: float = 0.0

    def __post_init__(self) -> None:
        known = [v for v in (self.photons, self.read_noise, self.zero) if v is not None]
        if not all(map(math.isfinite, known)) or self.photons == 0 or self.read_noise < 0:
            raise ValueError(f"noise: expected finite photons other than 0 and read_noise of at least 0; found {self}")

    @classmethod
    def from_detector(
        cls, gain: float, read_noise: float, *, offset: float = 0.0, intensity: Intensity | None = None
    ) -> Self:
        """The noise of a detector given in stored counts.

        Args:
            gain: stored counts for each photon (detected electron).
            read_noise: standard deviation of the read noise in stored counts.
            offset: stored value without light.
            intensity: the line between stored values and unit intensity; None: unit intensity is stored counts.

        Raises:
            ValueError: gain is not above 0.
        """
        if not (math.isfinite(gain) and gain > 0):
            raise ValueError(f"gain: expected stored counts for each photon above 0, found {gain}")
        black, span = (0.0, 1.0) if intensity is None else (intensity.black, intensity.white - intensity.black)
        return cls(photons=span / gain, read_noise=read_noise / abs(span), zero=(offset - black) / span)

    def variance(self, signal: Tensor) -> Tensor:
        """Variance of the noise at a mean signal (any shape), unit intensity squared."""
        if self.photons is None:
            return torch.full_like(signal, self.read_noise**2)
        return ((signal - self.zero) / self.photons).clamp(min=0) + self.read_noise**2

    def __call__(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """The signal (any shape, float32 or float64) with noise; the same generator state gives the same noise.

        Drawn on the generator's device in float64, and normal above 10 million photons (skewness below 0.0004 there).
        """
        clean = signal.detach().to(generator.device, torch.float64)
        noise = torch.zeros_like(clean)
        if self.photons is not None:
            noise += _poisson_deviation((self.photons * (clean - self.zero)).clamp(min=0), generator) / self.photons
        if self.read_noise > 0:
            noise += self.read_noise * _normal(clean, generator)
        return signal + noise.to(signal.device, signal.dtype)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _poisson_deviation(expected: Tensor, generator: torch.Generator) -> Tensor:
    """Poisson counts minus their expectation (float64, photons)."""
    deviation = torch.poisson(expected.clamp(max=MANY), generator) - expected
    many = expected > MANY
    if bool(many.any()):
        deviation = torch.where(many, expected.sqrt() * _normal(expected, generator), deviation)
    return deviation
