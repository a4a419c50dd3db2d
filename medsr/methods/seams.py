"""measured_halo: how much context a tile needs, where the layers reach much further than matters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medsr.methods.interpolation import reach
from medsr.methods.network import Network

__all__ = ["HALF_A_GRAY_LEVEL", "MARGIN", "measured_halo", "with_margin"]

HALF_A_GRAY_LEVEL = 0.5 / 65536
"""Largest seam, in unit intensity: below it the stored gray values are the same, or differ by one rounding."""

MARGIN = 1.5
"""What a measured halo is multiplied by: another scan may need more than those it was measured on."""

TOLD = 2
"""A halo counts as measured where the scan has at least this many times as much context."""

KEPT = 16
"""Coarse samples beside a cut that are compared, at least."""

BAND = {2: 64, 3: 24}
"""Coarse samples across the axis that is measured, at most, in 2D and 3D."""

Corner = Sequence[int]


@torch.no_grad()
def measured_halo(network: Network, low: Tensor, *, tolerance: float = HALF_A_GRAY_LEVEL) -> tuple[int, ...]:
    """The least halo with which parts of a scan differ from the whole by at most `tolerance`.

    Along each axis a band of the scan is cut from either side, with less and less context; then the scan along all
    axes at once. The answer is that of this scan and these weights: measure several, and take `with_margin`. Where the
    scan holds less than twice the context that turns out to be needed, it cannot tell, and the answer for that axis is
    the exact reach of the layers.

    Args:
        network: in eval mode.
        low: (n, 1, *size) in unit intensity, real samples; along each axis some four times the halo that is expected.
        tolerance: largest difference, unit intensity.

    Returns:
        coarse samples for each axis, at most `network.halo`.

    Raises:
        ValueError: `low` has other axes than the network.
    """
    size, exact = tuple(low.shape[2:]), network.halo
    if len(size) != len(exact):
        raise ValueError(f"measured_halo: expected (n, 1, *size) with {len(exact)} sizes, found {tuple(low.shape)}")
    found = [_along(network, low, axis, tolerance) for axis in range(len(size))]
    # A part that is cut along all axes at once: what the cuts change may add up.
    whole = network(low)
    first = [n // 2 - min(KEPT, n) // 2 for n in size]
    last = [a + min(KEPT, n) for a, n in zip(first, size, strict=True)]
    while found != list(exact) and _seam(network, low, whole, first, last, found) > tolerance:
        found = [min(h + 1, e) for h, e in zip(found, exact, strict=True)]
    return tuple(found)


def with_margin(network: Network, halos: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The halo to use of a network: the largest measured along each axis, times `MARGIN`, at most the exact reach."""
    largest = [max(along) for along in zip(*halos, strict=True)]
    return tuple(min(e, math.ceil(h * MARGIN)) for h, e in zip(largest, network.halo, strict=True))


def _along(network: Network, low: Tensor, axis: int, tolerance: float) -> int:
    """The least halo along one axis for which the parts at either end fit; the exact reach where that is unknown."""
    exact, least = network.halo[axis], reach(network.factor)[axis]
    for other, n in enumerate(low.shape[2:]):
        width = min(n, BAND[low.ndim - 2])
        low = low if other == axis else low.narrow(2 + other, (n - width) // 2, width)
    size = tuple(low.shape[2:])
    n = size[axis]
    kept = max(min(KEPT, n // 2), n // 4)
    cuts = [[(0, other) for other in size] for _ in range(2)]
    cuts[0][axis], cuts[1][axis] = (0, kept), (n - kept, n)
    whole = network(low)

    def enough(halo: int) -> bool:
        around = [halo if other == axis else 0 for other in range(len(size))]
        return all(
            _seam(network, low, whole, [a for a, _ in cut], [b for _, b in cut], around) <= tolerance for cut in cuts
        )

    small, large = least, min(exact, (n - kept) // TOLD)
    if small >= large or not enough(large):
        return exact
    while small < large:
        middle = (small + large) // 2
        small, large = (small, middle) if enough(middle) else (middle + 1, large)
    return small


def _seam(network: Network, low: Tensor, whole: Tensor, first: Corner, last: Corner, halo: Corner) -> float:
    """Largest difference between the samples first..last, computed with a halo around them, and the whole."""
    size = low.shape[2:]
    read = [slice(max(0, a - h), min(n, b + h)) for a, b, h, n in zip(first, last, halo, size, strict=True)]
    places = list(zip(first, last, [part.start for part in read], network.factor, strict=True))
    own = [slice((a - start) * f, (b - start) * f) for a, b, start, f in places]
    there = [slice(a * f, b * f) for a, b, _, f in places]
    every = (slice(None), slice(None))
    part = network(low[(*every, *read)])[(*every, *own)]
    return float((part - whole[(*every, *there)]).abs().max())
