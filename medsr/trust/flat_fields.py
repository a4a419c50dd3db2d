"""What upscaling makes of flat fields: their level, and the power of their noise by band."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medsr.trust.quantification import Line, ordinary
from medsr.trust.sharpness import NoisePower

if TYPE_CHECKING:
    from medsr.upscaler import Upscaler

__all__ = ["BandNoise", "FlatField", "flat_field_curve", "noise_power_ratio"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FlatField:
    """What a method makes of flat fields.

    Attributes:
        value: largest departure of the mean from its level; 0 for a method that keeps flat fields.
        unit: "unit intensity".
        reason: why there is no value.
        level, mean: levels in, and the mean of what came out.
        spread: largest less smallest value within each result: a pattern the method prints onto nothing.
        line: of mean on level (ordinary).
    """

    value: float
    unit: str
    reason: str
    level: Floats
    mean: Floats
    spread: Floats
    line: Line


@dataclass(frozen=True, slots=True)
class BandNoise:
    """Noise power in a band of frequencies, after over before.

    Attributes:
        low, high: ends of the band, cycles per `unit`.
        value: ratio of the noise power densities; nan where there is none.
        unit: of the frequencies, "um" or "sample".
        reason: why there is no value; empty where there is one.
    """

    low: float
    high: float
    value: float
    unit: str
    reason: str = ""


def flat_field_curve(upscaler: Upscaler, levels: Sequence[float], *, size: int | None = None) -> FlatField:
    """What a method makes of flat fields of the given levels, borders included.

    Args:
        upscaler: any; adapted to a scan where it needs to be.
        levels: unit intensity; below 0 and above 1 too, where scans go there.
        size: coarse samples along each axis; None: four more than the halo on both sides, at most 96.

    Raises:
        ValueError: no level, or one that is not finite.
    """
    import torch

    level = np.asarray(levels, np.float64)
    if not level.size or not np.isfinite(level).all():
        raise ValueError(f"levels: expected one or more finite numbers, found {list(levels)}")
    sizes = [size or min(96, 2 * h + 4) for h in upscaler.halo]
    means, spreads = [], []
    with torch.no_grad():
        for value in level:
            result = upscaler(torch.full((1, 1, *sizes), float(value), dtype=torch.float32)).double()
            means.append(float(result.mean()))
            spreads.append(float(result.max() - result.min()))
    mean = np.array(means)
    worst = float(np.abs(mean - level.astype(np.float32)).max())
    reason = "" if math.isfinite(worst) else "the method gives NaN or infinity on a flat field"
    return FlatField(worst, "unit intensity", reason, level, mean, np.array(spreads), ordinary(level, mean))


def noise_power_ratio(before: NoisePower, after: NoisePower, *, bands: int = 4) -> tuple[BandNoise, ...]:
    """Noise power density after over before, in bands of equal width up to the finer sampling limit.

    Both spectra (of `medsr.trust.noise_power`) must be of the same flat field in the same units of intensity. Where the
    coarse scan holds no frequency there is no ratio: the noise there was made by the method.

    Raises:
        ValueError: units that differ, a spectrum without a value, fewer than one band.
    """
    if before.unit != after.unit or before.reason or after.reason or bands < 1:
        raise ValueError(
            f"expected two measured spectra in one unit and one band or more; found {before.unit!r} "
            f"({before.reason or 'measured'}) and {after.unit!r} ({after.reason or 'measured'}), {bands} bands"
        )
    return tuple(_band_noise(before, after, bands))


def _band_noise(before: NoisePower, after: NoisePower, bands: int) -> Iterator[BandNoise]:
    edges = np.linspace(0, max(before.frequency.max(), after.frequency.max()), bands + 1)
    for low, high in pairwise(edges.tolist()):
        power = []
        for noise in (before, after):
            inside = (noise.frequency > low) & (noise.frequency <= high * (1 + 1e-9))
            whole = noise.frequency.max() >= high * (1 - 0.02)
            power.append(
                float(np.average(noise.radial[inside], weights=noise.frequency[inside]))
                if inside.any() and whole
                else math.nan
            )
        if not all(map(math.isfinite, power)) or not power[0] > 0:
            which = "the scan before" if not (math.isfinite(power[0]) and power[0] > 0) else "the scan after"
            yield BandNoise(low, high, math.nan, before.unit, f"{which} holds nothing in this band")
        else:
            yield BandNoise(low, high, power[1] / power[0], before.unit)
