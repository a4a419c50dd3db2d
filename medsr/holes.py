"""Holes (NaN, padding): filled from their rim for the method, and put back after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medsr.scan import Factor

__all__ = ["HOLE_REACH", "fill_holes", "refined"]

HOLE_REACH = 8
"""Passes of the normalized convolution that fills NaN holes; also the halo these need, in coarse samples."""


def fill_holes(unit: NDArray[np.float32], holes: NDArray[np.bool_], *, dims: int) -> NDArray[np.float32]:
    """Fill NaN holes from their rim by normalized convolution, so that a method sees no cliff.

    Each of `HOLE_REACH` passes fills the hole samples next to known ones with the mean of their known neighbors; what
    lies deeper becomes 0.5, the middle of the unit line. The result at a sample depends on its surroundings within
    `HOLE_REACH` samples only, hence tiles agree.

    Args:
        unit: unit intensity, any number of leading axes.
        holes: True where `unit` is to be filled.
        dims: number of trailing axes along which samples are neighbors.

    References:
        H. Knutsson, C.-F. Westin: Normalized and differential convolution, CVPR 1993, doi:10.1109/CVPR.1993.341081.
    """
    known = torch.from_numpy(~holes).float().reshape(-1, 1, *unit.shape[-dims:])
    value = torch.from_numpy(np.where(holes, np.float32(0), unit)).reshape(known.shape)
    pool = {1: nn.functional.avg_pool1d, 2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}[dims]
    for _ in range(HOLE_REACH):
        weight = pool(known, 3, stride=1, padding=1)
        mean = pool(value * known, 3, stride=1, padding=1) / weight.clamp_min(1e-6)
        rim = (known == 0) & (weight > 1e-4)
        value = torch.where(rim, mean, value)
        known = torch.where(rim, 1.0, known)
    return torch.where(known > 0, value, 0.5).numpy().reshape(unit.shape)


def refined(samples: NDArray[Any], factor: Factor) -> NDArray[Any]:
    """Samples on the refined grid, each repeated over the fine samples of its cell; any leading axes."""
    for axis, f in zip(range(-len(factor), 0), factor, strict=True):
        samples = np.repeat(samples, f, axis)
    return samples
