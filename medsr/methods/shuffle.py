"""Pixel shuffle along any axes, and the ICNR start that leaves no checkerboard."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from medsr.scan import Factor

__all__ = ["icnr_", "pixel_shuffle", "prime_stages"]


def pixel_shuffle(features: Tensor, factor: Factor) -> Tensor:
    """Move channels to the grid: (n, c * prod(factor), *size) to (n, c, *size * factor), in 1D, 2D or 3D.

    Channel (c, i, j, ..) becomes sample (size * factor + (i, j, ..)) of channel c; for equal factors in 2D this is
    `torch.nn.PixelShuffle`.

    References:
        W. Shi et al., "Real-time single image and video super-resolution using an efficient sub-pixel convolutional
        neural network", 2016, equation 4, doi:10.1109/CVPR.2016.207.
    """
    n, wide, *size = features.shape
    channels = wide // math.prod(factor)
    dims = len(factor)
    split = features.reshape(n, channels, *factor, *size)
    order = [axis for d in range(dims) for axis in (2 + dims + d, 2 + d)]
    fine = (s * f for s, f in zip(size, factor, strict=True))
    return split.permute(0, 1, *order).reshape(n, channels, *fine)


@torch.no_grad()
def icnr_(weight: Tensor, factor: Factor, initialize: Callable[[Tensor], Tensor]) -> Tensor:
    """Fill a kernel (c * prod(factor), in, *taps) that a pixel shuffle follows, so that it starts as a repetition.

    All samples of a cell start from the same kernel, hence equal: no checkerboard at the start.

    Args:
        weight: changed in place.
        factor: that of the pixel shuffle.
        initialize: fills a tensor in place, such as `torch.nn.init.kaiming_normal_`.

    References:
        A. Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017, arXiv:1707.02937.
    """
    repeats = math.prod(factor)
    one = initialize(torch.empty(weight.shape[0] // repeats, *weight.shape[1:], dtype=weight.dtype))
    return weight.copy_(one.repeat_interleave(repeats, dim=0))


def prime_stages(factor: Factor) -> tuple[Factor, ...]:
    """Split a factor into stages of primes: (4, 4) to (2, 2), (2, 2); (2, 4) to (2, 2), (1, 2); (3, 3) to (3, 3)."""
    primes = [_primes(f) for f in factor]
    count = max(len(p) for p in primes)
    padded = [p + [1] * (count - len(p)) for p in primes]
    return tuple(zip(*padded, strict=True))


def _primes(number: int) -> list[int]:
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found
