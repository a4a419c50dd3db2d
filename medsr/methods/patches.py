"""Patches that are spread evenly over a scan, where it shows something: what a whole scan is judged by."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsr.scan import Scan, ScanError

__all__ = ["signal_patches"]

PLACES = 256
"""Places looked at in a scan, at most."""

PLANES = 16
"""Planes (time points, channels) looked at of a scan with more axes than a patch."""

SHARE = 3
"""One place in so many is of use: those whose samples vary most."""


def signal_patches(scan: Scan, size: tuple[int, ...], *, count: int) -> Tensor:
    """Up to `count` patches from places evenly spread over the whole scan, of those that show most; always the same.

    Places are an even lattice; those with holes or without any variation are left out, and of the third that varies
    most (more where that is fewer than `count`) every so many is taken.

    Args:
        scan: may be larger than memory; at most 256 small pieces of it are read.
        size: samples of a patch for the scan's last axes; less where the scan is smaller.
        count: patches wanted.

    Returns:
        (n, 1, *size), float32, unit intensity; n is 0 where the scan shows nothing.

    Raises:
        ScanError: the scan has fewer axes than a patch.
    """
    lead = len(scan.shape) - len(size)
    if lead < 0:
        raise ScanError(f"expected a scan of at least {len(size)} axes, found shape {scan.shape}")
    size = tuple(min(n, s) for n, s in zip(scan.shape[lead:], size, strict=True))
    found: list[NDArray[np.float32]] = []
    for place in _places(scan.shape, size):
        region = tuple(slice(f, f + n) for f, n in zip(place, (1,) * lead + size, strict=True))
        stored = scan.read(region)
        if not scan.intensity.holes(stored).any():
            found.append(np.asarray(scan.intensity.to_unit(stored), np.float32).reshape(1, *size))
    spread = np.array([float(patch.std()) if patch.max() > patch.min() else 0.0 for patch in found])
    telling = np.flatnonzero(spread > 0)
    telling = np.sort(telling[np.argsort(-spread[telling], kind="stable")][: max(count, len(telling) // SHARE)])
    picks = telling[np.unique(np.linspace(0, max(0, len(telling) - 1), min(count, len(telling))).round().astype(int))]
    chosen = [torch.from_numpy(found[int(i)]) for i in picks]
    return torch.stack(chosen) if chosen else torch.zeros(0, 1, *size)


def _places(shape: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """First samples of the patches of an even lattice."""
    lead = len(shape) - len(size)
    planes = _even(math.prod(shape[:lead]), PLANES)
    side = max(1, int((PLACES / len(planes)) ** (1 / len(size)) + 1e-9))
    lines = [_even(n - s + 1, min(side, -(-n // s))) for n, s in zip(shape[lead:], size, strict=True)]
    starts = [tuple(int(i) for i in np.unravel_index(plane, shape[:lead])) if lead else () for plane in planes]
    return [start + place for start in starts for place in product(*lines)]


def _even(room: int, count: int) -> list[int]:
    """Up to `count` of 0..room - 1: the middles of as many equal pieces."""
    return [(2 * i + 1) * room // (2 * min(room, count)) for i in range(min(room, count))]
