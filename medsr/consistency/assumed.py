"""What is known or assumed of how a scan became coarse: the factor, the degradation, the noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medsr.consistency.noise_curve import NoiseCurve, estimate_noise, rounding_sd

if TYPE_CHECKING:
    from medsr.degradation import Degradation, DegradationRange, PoissonGaussian, SecondOrder
    from medsr.scan import Factor, Intensity, Scan

__all__ = ["assumed_degradation", "assumed_noise", "degradation_words", "factor_between", "noise_variance"]


def factor_between(low: Scan, estimate: Scan) -> Factor:
    """Fine samples for each coarse one, along every axis.

    Raises:
        ValueError: other axes, or a shape that is no whole multiple.
    """
    if low.grid.axes != estimate.grid.axes or any(e % n for e, n in zip(estimate.shape, low.shape, strict=True)):
        raise ValueError(
            f"estimate: expected the axes {''.join(low.grid.axes)} and a whole multiple of {low.shape}, found "
            f"{''.join(estimate.grid.axes)} and {estimate.shape}; give the scan the result was made of"
        )
    return tuple(e // n for e, n in zip(estimate.shape, low.shape, strict=True))


def assumed_degradation(
    given: Degradation | SecondOrder | DegradationRange | None, factor: Factor, estimate: Scan
) -> Degradation | SecondOrder:
    """The degradation between two scans: the one given, the middle of a range, or the mean over each coarse sample.

    Args:
        factor: along every axis; leading axes that are not refined may be left out by what is given.
        estimate: gives the spacing for a range in micrometers.

    Raises:
        ValueError: a degradation of another factor.
    """
    from medsr.degradation import Degradation, DegradationRange

    used = [i for i, f in enumerate(factor) if f > 1]
    axes = max(2 if len(factor) > 1 else 1, len(factor) - used[0] if used else 0)
    if given is None:
        return Degradation(factor[-axes:])
    if isinstance(given, DegradationRange):
        return given.center(factor[-axes:], (estimate.grid.spacing_um or (None,) * len(factor))[-axes:])
    own = tuple(given.factor)
    if len(own) > len(factor) or (1,) * (len(factor) - len(own)) + own != factor:
        raise ValueError(f"degradation: expected the factor {factor} between the scans, found {own}; give that of both")
    return given


def degradation_words(known: Degradation | SecondOrder, *, given: bool) -> str:
    """What was taken for the degradation."""
    text = repr(known)
    return f"degraded by {text}" if given else f"degraded by {text} (assumed: the mean over each coarse sample)"


def assumed_noise(
    given: PoissonGaussian | NoiseCurve | float | None,
    asked: Degradation | SecondOrder | DegradationRange | None,
    known: Degradation | SecondOrder,
    low: Scan,
) -> tuple[PoissonGaussian | NoiseCurve, str]:
    """The noise model, and what to say of it: the one given, else that of a degradation, else estimated from the scan.

    Args:
        given: a model, one standard deviation in unit intensity, or None.
        asked: the degradation as it was given; the middle of a range of noise is not the noise of this scan.
        known: the degradation that was taken.
        low: the measured scan.

    Raises:
        ValueError: a standard deviation below 0.
    """
    from medsr.degradation import DegradationRange, PoissonGaussian

    if given is None and not isinstance(asked, DegradationRange) and isinstance(known.noise, PoissonGaussian):
        given = known.noise
    if given is None:
        curve = estimate_noise(low)
        return curve, f"noise estimated from the scan, {curve.describe(low.intensity)}"
    if isinstance(given, NoiseCurve):
        return given, f"noise given as a curve, {given.describe(low.intensity)}"
    if isinstance(given, (int, float)):
        if not (math.isfinite(given) and given >= 0):
            raise ValueError(f"noise: expected a standard deviation of at least 0, found {given}")
        given = PoissonGaussian(None, float(given))
    return given, f"noise of {given!r}"


def noise_variance(
    model: PoissonGaussian | NoiseCurve, mean: NDArray[np.float64], intensity: Intensity
) -> NDArray[np.float64]:
    """Variance of a coarse sample about its mean (any shape), unit intensity; with that of its rounding."""
    floor = rounding_sd(intensity) ** 2
    if isinstance(model, NoiseCurve):
        return np.maximum(model.sd(mean) ** 2, floor)  # what was estimated holds the rounding
    import torch

    variance: Any = model.variance(torch.from_numpy(mean)).numpy()
    return np.asarray(variance, np.float64) + floor
