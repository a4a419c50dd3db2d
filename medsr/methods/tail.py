"""FoldedTail: the last pixel shuffle and the convolution after it as one convolution before the shuffle."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsr.methods.shuffle import pixel_shuffle
from medsr.scan import Factor

__all__ = ["FoldedTail", "fold", "with_edge_cells"]

LANES = 16
"""Output channels a vector unit computes at once (AVX-512 in float32); a convolution with fewer leaves it idle."""

MOST_GROWTH = 1.25
"""Growth of the kernel that doubling the outputs is worth."""


class FoldedTail(nn.Module):
    """A pixel shuffle by `stage`, then a k-wide convolution with repeated edges, at the cost of the coarse grid.

    Fine sample s * n + p reads the fine sample s * n + p + d for each tap d. That is sample (p + d) mod s of cell
    n + floor((p + d) / s), hence a channel of that cell before the shuffle. So the pair of layers equals one
    convolution over cells, to a channel for each p, followed by a shuffle of few channels: exact algebra, and at
    k = 9, s = 2 the 81 taps of each fine sample become 25 of each cell, whose features need not be moved.

    The convolution makes `group` neighboring cells at once where the outputs of one would leave a vector unit idle.

    Args:
        weight: (out, c, *taps) of the convolution at fine resolution, odd widths.
        bias: (out,) or None.
        stage: factor of the shuffle, one entry an axis.
        multiple: what the sizes of the input are multiples of; a group divides it.
        edges: repeat the first and last fine sample beyond the edges, as the fine convolution does. False is cheaper
            and right only for what lies at least `radius` cells inside; nearer to an edge there are zeros.

    Attributes:
        radius: cells of context on either side, one an axis.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stage: Factor,
        *,
        multiple: tuple[int, ...] | None = None,
        edges: bool = True,
    ) -> None:
        super().__init__()
        self.stage, self.edges = stage, edges
        self.radius = tuple(math.ceil(k // 2 / s) for k, s in zip(weight.shape[2:], stage, strict=True))
        self.group = _group(weight.shape[0] * math.prod(stage), self.radius, multiple or (1,) * len(stage))
        self.weight = nn.Parameter(fold(weight, stage, group=self.group), requires_grad=False)
        repeats = self.weight.shape[0] // weight.shape[0]
        self.bias = None if bias is None else nn.Parameter(bias.detach().repeat_interleave(repeats), False)

    def forward(self, cells: Tensor) -> Tensor:
        """(n, c * prod(stage), *size) to (n, out, *size * stage), in the type of the weights."""
        convolve = functional.conv2d if cells.ndim == 4 else functional.conv3d
        cells = cells.to(self.weight.dtype)
        if self.edges:
            cells = with_edge_cells(cells, self.stage, self.radius)
        # Never padded by the convolution itself: one kind of kernel, so that both kinds of edges round alike.
        grouped = convolve(cells, self.weight, self.bias, stride=self.group)
        fine = pixel_shuffle(grouped, tuple(s * u for s, u in zip(self.stage, self.group, strict=True)))
        if not self.edges:
            ends = [r * s for r, s in zip(self.radius, self.stage, strict=True)]
            fine = functional.pad(fine, [end for end in reversed(ends) for _ in range(2)])
        return fine


@torch.no_grad()
def fold(weight: Tensor, stage: Factor, *, group: tuple[int, ...] | None = None) -> Tensor:
    """The kernel over cells that equals a kernel over the fine samples of a pixel shuffle by `stage`.

    Args:
        weight: (out, c, *taps), odd widths.
        stage: fine samples of a cell along each axis.
        group: cells computed at once along each axis, the stride of the convolution; None: one.

    Returns:
        (out * prod(stage * group), c * prod(stage), *widths), the channels in the order of `pixel_shuffle`; widths
        are 2 * ceil(k // 2 / s) + group.
    """
    group = group or (1,) * len(stage)
    out, channels, *taps = weight.shape
    radius = [math.ceil(k // 2 / s) for k, s in zip(taps, stage, strict=True)]
    wide = [s * u for s, u in zip(stage, group, strict=True)]
    folded = weight.new_zeros(out, *wide, channels, *stage, *(2 * r + u for r, u in zip(radius, group, strict=True)))
    for phase in product(*map(range, wide)):
        for tap in product(*map(range, taps)):
            place = [p + t - k // 2 for p, t, k in zip(phase, tap, taps, strict=True)]
            within = (at % s for at, s in zip(place, stage, strict=True))
            cell = (at // s + r for at, s, r in zip(place, stage, radius, strict=True))
            target: tuple[Any, ...] = (slice(None), *phase, slice(None), *within, *cell)
            source: tuple[Any, ...] = (slice(None), slice(None), *tap)
            folded[target] = weight[source]
    return folded.flatten(0, len(stage)).flatten(1, 1 + len(stage))


def with_edge_cells(cells: Tensor, stage: Factor, radius: tuple[int, ...]) -> Tensor:
    """Cells before a pixel shuffle with `radius` more on either side, such that after the shuffle the first and last
    fine sample are repeated: a cell beyond an edge holds the edge's own phase in every phase of that axis.

    Args:
        cells: (n, c * prod(stage), *size).
        stage: factor of the shuffle.
        radius: cells to add on either side of each axis.
    """
    channel = torch.arange(cells.shape[1], device=cells.device)
    step = math.prod(stage)
    for axis, (s, r) in enumerate(zip(stage, radius, strict=True)):
        step //= s
        if r == 0:
            continue
        zeroth = channel - channel // step % s * step
        first = cells.narrow(2 + axis, 0, 1).index_select(1, zeroth)
        last = cells.narrow(2 + axis, cells.shape[2 + axis] - 1, 1).index_select(1, zeroth + (s - 1) * step)
        cells = torch.cat([first] * r + [cells] + [last] * r, 2 + axis)
    return cells


def _group(outputs: int, radius: tuple[int, ...], multiple: tuple[int, ...]) -> tuple[int, ...]:
    """Cells computed at once, one an axis: doubled until the lanes are full or the kernel grows by too much.

    A divisor of two radii, for without edges that is what the result is shorter by.
    Never along the last axis: there kernels of a stride sum in an order that depends on the size of the tile.
    """
    group = [1] * len(radius)
    for axis, (r, m) in enumerate(zip(radius[:-1], multiple, strict=False)):
        while m % (2 * group[axis]) == 0 and outputs * math.prod(group) < LANES:
            if r % group[axis] or 2 * r + 2 * group[axis] > MOST_GROWTH * (2 * r + group[axis]):
                break
            group[axis] *= 2
    return tuple(group)
