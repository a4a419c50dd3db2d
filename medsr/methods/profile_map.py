"""ProfileMap: how sharp an edge was before a scan became coarse, learned from fine scans of the same kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsr.degradation import Degradation
from medsr.methods.gradient_profile import TINY, edge_profiles, shifted
from medsr.methods.interpolation import interpolate
from medsr.scan import Factor, Scan, validate_factor

__all__ = ["NATURAL", "SCANS", "Curve", "ProfileMap", "learn_profiles"]

BIN = 0.2
"""Width, in fine samples, of the classes of sharpness that are averaged."""
PLENTY = 0.004
"""Share of all edges that a class needs to be told."""


@dataclass(frozen=True)
class Curve:
    """Sharpness in the fine scan by sharpness after cubic interpolation, both in fine samples.

    Attributes:
        factor: fine samples for each coarse one.
        coarse: sharpness in the interpolated scan, rising.
        fine: sharpness of the same edges in the fine scan.
    """

    factor: int
    coarse: tuple[float, ...]
    fine: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.coarse, self.coarse[1:], strict=False))
        if len(self.coarse) < 2 or len(self.fine) != len(self.coarse) or not rising or min(self.fine) <= 0:
            raise ValueError(
                f"Curve: expected two or more rising sharpnesses and as many above 0; found {self.coarse}, {self.fine}"
            )

    def __call__(self, sharpness: Tensor) -> Tensor:
        """Piecewise linear; beyond the last point the edge is as much blurred as there, and none is made softer."""
        x, y = (torch.tensor(v, dtype=sharpness.dtype, device=sharpness.device) for v in (self.coarse, self.fine))
        place = torch.searchsorted(x, sharpness.contiguous()).clamp(1, len(self.coarse) - 1)
        share = ((sharpness - x[place - 1]) / (x[place] - x[place - 1])).clamp(0, 1)
        wanted = y[place - 1] + share * (y[place] - y[place - 1]) + (sharpness - x[-1]).clamp(min=0)
        return torch.minimum(wanted, sharpness)


@dataclass(frozen=True)
class ProfileMap:
    """The curves of some factors, and the name by which a history calls them.

    Attributes:
        name: of what they were learned from.
        curves: one for each factor above 1 that was learned.

    Raises:
        ValueError: no curve, or two of one factor.
    """

    name: str
    curves: tuple[Curve, ...]

    def __post_init__(self) -> None:
        factors = [curve.factor for curve in self.curves]
        if not factors or len(set(factors)) != len(factors):
            raise ValueError(f"ProfileMap {self.name!r}: expected one curve for each factor, found factors {factors}")

    @property
    def digest(self) -> str:
        """Eight digits that tell these curves from others of the same name."""
        return hashlib.sha256(repr(self.curves).encode()).hexdigest()[:8]

    def wanted(self, sharpness: Tensor, normal: Tensor, factor: Factor) -> Tensor:
        """Sharpness that the edges had: the mean of the axes' curves, weighted by the square of the normal.

        Along an axis of factor 1 nothing was lost. For a factor that was not learned the nearest one's curve is used,
        with the interpolated sharpness in units of the coarse sample.

        Args:
            sharpness: of the interpolated scan in fine samples; flat.
            normal: unit vectors, (samples, axes).
            factor: of the axes.
        """
        total = torch.zeros_like(sharpness)
        for axis, f in enumerate(factor):
            share = normal[:, axis].square()
            if f == 1:
                total = total + share * sharpness
                continue
            curve = min(self.curves, key=lambda c: (abs(c.factor - f), c.factor))
            total = total + share * torch.minimum(curve(sharpness * (curve.factor / f)), sharpness)
        return total


def learn_profiles(
    scans: Iterable[Scan | NDArray[Any]],
    factor: Factor | int,
    degradation: Degradation | None = None,
    *,
    name: str = "learned",
    contrast: float = 0.016,
) -> ProfileMap:
    """Learn from fine scans how sharp edges are before and after they become coarse.

    Each scan is made coarse and interpolated. Edges of the interpolation are paired with edges of the scan within one
    sample, and averaged by class of sharpness, strong edges more.

    Args:
        scans: fine ones, of the kind that is to be upscaled: scans, or arrays in unit intensity; with as many axes as
            the factor (of a scan with more, each plane or volume is one).
        factor: of the upscaling.
        degradation: how coarse scans arise; None: area mean.
        name: what a history calls the map.
        contrast: gradient, in unit intensity for each fine sample, below which edges count little.

    Raises:
        ValueError: scans too small or with too few edges.

    References:
        J. Sun, Z. Xu, H.-Y. Shum, "Image super-resolution using gradient profile prior", 2008,
        doi:10.1109/CVPR.2008.4587659, section 2.3.
    """
    factor = validate_factor(factor)
    degradation = degradation or Degradation(factor)
    sums: dict[int, NDArray[np.float64]] = {f: np.zeros((3, 64)) for f in factor if f > 1}
    for scan in scans:
        unit = scan.intensity.to_unit(scan.read()) if isinstance(scan, Scan) else np.asarray(scan, np.float32)
        size = tuple(n // f * f for n, f in zip(unit.shape[-len(factor) :], factor, strict=True))
        cut: tuple[Any, ...] = (..., *(slice(n) for n in size))
        whole = unit[cut].reshape(-1, *size)
        for field in torch.from_numpy(np.ascontiguousarray(whole)):
            _count_edges(sums, field, factor, degradation, contrast)
    curves = []
    for f, (mass, coarse, fine) in sums.items():
        kept = mass > PLENTY * mass.sum()
        if kept.sum() < 2:
            raise ValueError(
                f"learn_profiles: expected edges of different sharpness for factor {f}, found too few; "
                "give more or larger scans, or a lower contrast"
            )
        pairs = [np.round(v[kept] / mass[kept], 3).tolist() for v in (coarse, fine)]
        curves.append(Curve(f, tuple(pairs[0]), tuple(pairs[1])))
    return ProfileMap(name, tuple(curves))


def _count_edges(
    sums: dict[int, NDArray[np.float64]], field: Tensor, factor: Factor, degradation: Degradation, contrast: float
) -> None:
    """Add the edges of one fine scan to the sums of each factor: mass, coarse and fine sharpness by class."""
    low = degradation.mean(field[None, None])
    before = edge_profiles(interpolate(low, factor)[0, 0], threshold=contrast)
    after = edge_profiles(field, threshold=contrast)
    mass = (after.weight * after.strength.square()).reshape(after.size)
    found, moment = (_within_one(v).flatten() for v in (mass, mass * after.sharpness.reshape(after.size)))
    sharpness = moment / found.clamp(min=TINY)
    kept = (before.weight > 0) & (found > 0)
    place = (before.sharpness[kept] / BIN).long().clamp(max=63).numpy()
    for f, total in sums.items():
        along = before.normal[:, [f == g for g in factor]].square().sum(1)
        weight = (before.weight * found * along)[kept].double().numpy()
        for row, value in zip(total, (None, before.sharpness, sharpness), strict=True):
            np.add.at(row, place, weight if value is None else weight * value[kept].double().numpy())


def _within_one(field: Tensor) -> Tensor:
    """Sum over the neighbors within one sample along each axis."""
    for axis in range(field.ndim):
        field = field + shifted(field, axis, 1) + shifted(field, axis, -1)
    return field


NATURAL = ProfileMap(
    "natural",
    (
        Curve(2, (0.5, 1.1, 1.7, 2.3, 2.9), (0.91, 1.01, 1.22, 1.29, 1.43)),
        Curve(3, (1.1, 1.7, 2.3, 2.9), (0.98, 1.13, 1.20, 1.25)),
        Curve(4, (1.1, 1.7, 2.3, 2.9, 3.5), (0.99, 1.08, 1.14, 1.18, 1.21)),
    ),
)
"""Of photographs made coarse by MATLAB's cubic: in focus, and sharper than most scans."""
SCANS = ProfileMap(
    "scans",
    (
        Curve(2, (0.944, 1.296, 1.690, 2.086, 2.486), (1.139, 1.246, 1.346, 1.419, 1.517)),
        Curve(3, (0.943, 1.312, 1.694, 2.090, 2.488, 2.888), (1.128, 1.223, 1.300, 1.348, 1.366, 1.374)),
        Curve(4, (1.123, 1.510, 1.895, 2.295, 2.691, 3.088, 3.288), (1.169, 1.238, 1.282, 1.323, 1.333, 1.322, 1.327)),
    ),
)
"""Of the shipped mammogram and stack of nuclei made coarse by area mean, as `learn_profiles` finds them."""
