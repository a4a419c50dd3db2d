"""Gradient profiles: where the edges of a scan are, how sharp they are, and by what ratio to sharpen them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PROFILE_REACH", "Profiles", "edge_profiles", "gradient", "gradient_ratio", "profile_ratio", "shifted"]

LENGTH = 8
"""Fine samples to which a profile is followed on either side of its edge."""
STEP = 0.5
"""Fine samples from one place on a profile to the next."""
REACH = 5
"""Fine samples along its normal within which a sample looks for its edge."""
SMOOTHING = 4
"""Reach, in fine samples, of the mean over the neighbors of an edge that steadies its sharpness."""
SHAPE = 1.6
"""Exponent of the generalized Gaussian that gradient profiles of pictures follow (Sun et al. 2008, section 2.2)."""
ALPHA = math.sqrt(math.gamma(3 / SHAPE) / math.gamma(1 / SHAPE))
RISE = 20.0
"""How fast a profile is forgotten where it rises again: by exp(-RISE * rise / height of the edge)."""
FALL = 4.0
"""How fast an edge is out of sight behind a valley: by exp(-FALL * fall / height of the edge)."""
FOOT = 0.1
"""Share of the height of the edge below which a profile has ended."""
CURVED = 0.02
"""Curvature, as a share of the height, that makes a crest of the gradient an edge."""
SUPPORT = 3.0
"""Sharpnesses from the edge beyond which the gradient is left as it is."""
FAINT = 0.05
"""Weight of the gradient as it is, against that of an edge met along the normal."""
TRUST = 5.0
"""Weight of the neighbors' sharpness against an edge's own (gamma in Sun et al. 2008, equation 8)."""
PROFILE_REACH = 1 + LENGTH + SMOOTHING + REACH
"""Fine samples along an axis that the ratio at a sample depends on: gradient, profile, neighbors, search."""
CHUNK = 2**16
"""Samples computed at a time: their rows stay in the cache."""
TINY = 1e-30


class Profiles(NamedTuple):
    """The edges of one scan, a value for each fine sample.

    Attributes:
        size: fine samples along each axis.
        strength: norm of the gradient, in intensity for each fine sample; flat.
        normal: unit vector along the gradient, (samples, axes); 0 where there is no gradient.
        weight: from 0 (no edge) to 1 (the crest of a gradient well above the noise); flat.
        sharpness: of the edge there, in fine samples; flat; meaningless where the weight is 0.
    """

    size: tuple[int, ...]
    strength: Tensor
    normal: Tensor
    weight: Tensor
    sharpness: Tensor


def shifted(x: Tensor, axis: int, step: int) -> Tensor:
    """The sample `step` further along an axis at each place; the last one is repeated beyond the edge."""
    size = x.shape[axis]
    place = torch.arange(size, device=x.device).add_(step).clamp_(0, size - 1)
    return x.index_select(axis, place)


def gradient(x: Tensor) -> Tensor:
    """Central differences of (*size) in intensity for each sample, (*size, axes)."""
    return torch.stack([(shifted(x, a, 1) - shifted(x, a, -1)) / 2 for a in range(x.ndim)], -1)


class _Lines:
    """Straight lines through some of the samples of a field, each along the normal of its sample.

    Places are counted from the sample itself, so that a value does not depend on where the sample lies in the field.
    """

    def __init__(self, size: tuple[int, ...], samples: Tensor, normal: Tensor) -> None:
        self.size = size
        self.normal = normal
        self.place: list[Tensor] = []
        rest = samples
        for n in reversed(size):
            self.place.insert(0, rest % n)
            rest = rest // n

    def read(self, rows: Tensor, distance: float) -> Tensor:
        """Multilinear interpolation of `rows` (samples of the field, columns) at a signed distance in samples."""
        sides = []
        for axis, n in enumerate(self.size):
            move = self.normal[:, axis] * distance
            whole = move.floor()
            share = (move - whole)[:, None]
            first = self.place[axis] + whole.to(torch.int64)
            sides.append(((first.clamp(0, n - 1), 1 - share), ((first + 1).clamp(0, n - 1), share)))
        total = rows.new_zeros(1)
        for corner in itertools.product(*sides):
            index, weight = corner[0]
            for n, (along, share) in zip(self.size[1:], corner[1:], strict=True):
                index = index * n + along
                weight = weight * share
            total = total + rows.index_select(0, index) * weight
        return total


def _chunks(samples: Tensor) -> Iterator[Tensor]:
    yield from torch.split(samples, CHUNK)


def _crest(lines: _Lines, strength: Tensor, rows: Tensor) -> Tensor:
    """From 0 to 1: how much each sample is on the crest of the gradient along its normal; 0 on a ramp.

    A parabola through the sample and its neighbors at +-1 has its top at slope / curvature: 1 where the top is at the
    sample, 0 where it is more than a sample away.
    """
    ahead, behind = lines.read(rows, 1.0)[:, 0], lines.read(rows, -1.0)[:, 0]
    curvature = (2 * strength - ahead - behind).clamp(min=0)
    slope = (ahead - behind) / 2
    top = (curvature**2 - slope**2).clamp(min=0)
    return top / (curvature**2 + slope**2 + (CURVED * strength) ** 2).clamp(min=TINY)


def _spread(lines: _Lines, strength: Tensor, rows: Tensor) -> Tensor:
    """Sharpness of the profiles through some samples: sqrt(sum m d^2 / sum m) (Sun et al. 2008, equation 2).

    A profile ends where it has fallen to its foot, or rises again: softly, so that rounding moves no end.
    """
    height = strength.clamp(min=TINY)
    total, moment = (strength - FOOT * strength).clone(), torch.zeros_like(strength)
    for side in (1, -1):
        before, rise = strength, torch.zeros_like(strength)
        for k in range(1, round(LENGTH / STEP) + 1):
            here = lines.read(rows, side * k * STEP)[:, 0]
            rise = rise + (here - before).clamp(min=0)
            mass = torch.exp(-RISE * rise / height) * (torch.minimum(here, height) - FOOT * height).clamp(min=0)
            total = total + mass
            moment = moment + mass * (k * STEP) ** 2
            before = here
    return (moment / total.clamp(min=TINY)).sqrt()


def _neighborly(field: Tensor) -> Tensor:
    """A mean over the neighbors within `SMOOTHING` samples along each axis (binomial weights), edges repeated."""
    for axis in range(field.ndim):
        for _ in range(SMOOTHING):
            field = field / 2 + (shifted(field, axis, -1) + shifted(field, axis, 1)) / 4
    return field


def edge_profiles(field: Tensor, *, threshold: float) -> Profiles:
    """Find the edges of a scan and how sharp each is.

    An edge is a crest of the gradient along its own normal. Its weight counts gradients below `threshold` less and
    less, so that no rounding makes or breaks an edge. Its sharpness is the root mean square width of the gradient
    profile, and is drawn to that of the neighboring edges.

    Args:
        field: (*size), fine samples.
        threshold: of the gradient, in intensity for each fine sample; 0: none.
    """
    size = tuple(field.shape)
    slope = gradient(field).reshape(-1, field.ndim)
    strength = slope.square().sum(1).sqrt()
    normal = slope / strength.clamp(min=TINY)[:, None]
    rows = strength[:, None]
    seen = strength.square() / (strength.square() + threshold**2).clamp(min=TINY)
    weight, sharpness = torch.zeros_like(strength), torch.zeros_like(strength)
    for samples in _chunks(torch.nonzero(strength).flatten()):
        lines = _Lines(size, samples, normal[samples])
        weight[samples] = _crest(lines, strength[samples], rows) * seen[samples]
    for samples in _chunks(torch.nonzero(weight).flatten()):
        lines = _Lines(size, samples, normal[samples])
        sharpness[samples] = _spread(lines, strength[samples], rows)
    # Neighbors on edges pull: one step towards the minimum of equation 8, with weights from the distance alone.
    around = _neighborly(weight.reshape(size)).flatten()
    pulled = _neighborly((weight * sharpness).reshape(size)).flatten()
    sharpness = (weight * sharpness + TRUST * pulled) / (weight + TRUST * around).clamp(min=TINY)
    return Profiles(size, strength, normal, weight, sharpness)


def profile_ratio(distance: float, coarse: Tensor, fine: Tensor) -> Tensor:
    """Ratio of a sharp to a blurred gradient profile at a distance from the edge (Sun et al. 2008, equations 3, 11).

    Both are generalized Gaussians of the same mass; `coarse` and `fine` are their sharpnesses in samples.
    """
    d = ALPHA * abs(distance)
    ratio = coarse / fine * torch.exp((d / coarse) ** SHAPE - (d / fine) ** SHAPE)
    return ratio.clamp(0.0, 4.0)


def gradient_ratio(profiles: Profiles, wanted: Tensor) -> Tensor:
    """By what to multiply the gradient at each fine sample so that its edge gets the sharpness `wanted`.

    Each sample looks along its normal for edges that it reaches uphill; what it meets counts by weight.

    Args:
        profiles: the edges.
        wanted: sharpness in fine samples for each sample of an edge; flat.

    Returns:
        (*size), from 0 to 4; 1 far from edges.
    """
    weight = profiles.weight
    rows = torch.stack([profiles.strength, weight, weight * profiles.sharpness, weight * wanted], 1)
    ratio = torch.ones_like(weight)
    for samples in _chunks(torch.nonzero(profiles.strength).flatten()):
        lines = _Lines(profiles.size, samples, profiles.normal[samples])
        own = rows[samples]
        total, change = _met(own, 0.0, torch.ones_like(own[:, 0]))
        for side in (1, -1):
            before, fall = own[:, 0], torch.zeros_like(own[:, 0])
            for k in range(1, REACH + 1):
                here = lines.read(rows, float(side * k))
                fall = fall + (before - here[:, 0]).clamp(min=0)
                reached = torch.exp(-FALL * fall / here[:, 0].clamp(min=TINY))
                part, bent = _met(here, float(k), reached)
                total, change = total + part, change + bent
                before = here[:, 0]
        ratio[samples] = 1 + change / (total + FAINT)
    return ratio.reshape(profiles.size)


def _met(here: Tensor, distance: float, reached: Tensor) -> tuple[Tensor, Tensor]:
    """Weight of the edge at a place on the normals, and that weight times the change of the gradient it asks for."""
    edge = here[:, 1].clamp(min=TINY)
    coarse, fine = (here[:, 2] / edge).clamp(min=0.3), (here[:, 3] / edge).clamp(min=0.3)
    part = here[:, 1] * reached
    inside = (1 - (distance / (SUPPORT * coarse)) ** 4).clamp(min=0)
    return part, part * inside * (profile_ratio(distance, coarse, fine) - 1)
