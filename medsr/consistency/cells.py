"""Cells, blocks and sums over them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsr.scan import Region

__all__ = ["cells_of", "pooled", "regions_of"]

Array = NDArray[Any]

CELLS = 1 << 23
"""Most cells of the map in which regions are found; a larger scan has several samples in a cell."""


def cells_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Samples of a cell along each axis, so that there are at most `CELLS` of them."""
    cell = [1] * len(shape)
    while math.prod(-(-n // c) for n, c in zip(shape, cell, strict=True)) > CELLS:
        axis = max(range(len(shape)), key=lambda a: shape[a] / cell[a])
        cell[axis] *= 2
    return tuple(cell)


def regions_of(shape: Sequence[int], block: Sequence[int]) -> Iterator[Region]:
    """Blocks that fill a shape."""
    starts = (range(0, n, b) for n, b in zip(shape, block, strict=True))
    for corner in product(*starts):
        yield tuple(slice(s, min(n, s + b)) for s, b, n in zip(corner, block, shape, strict=True))


def pooled(values: Array, window: Sequence[int]) -> Array:
    """Sums over windows side by side."""
    for axis, width in enumerate(window):
        values = np.add.reduceat(values, range(0, values.shape[axis], width), axis)
    return values
