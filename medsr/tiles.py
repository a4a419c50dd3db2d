"""Tile, plan_tiles: which samples are read, and which of the result are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from medsr.scan import Factor, Region

__all__ = ["Tile", "plan_tiles", "region_shape", "split", "whole"]


@dataclass(frozen=True, slots=True)
class Tile:
    """One unit of compute; every region has one slice for each axis of the scan.

    Attributes:
        read: coarse samples to read, the halo included, clipped to the scan.
        keep: fine samples of the tile's own result to keep, counted from the result's first sample.
        target: where the kept samples lie in the whole result.
    """

    read: Region
    keep: Region
    target: Region


def whole(shape: Sequence[int]) -> Region:
    """The region that covers an array of `shape`."""
    return tuple(slice(0, n) for n in shape)


def region_shape(region: Region) -> tuple[int, ...]:
    """Samples of a region along each axis."""
    return tuple(int(s.stop - s.start) for s in region)


def plan_tiles(
    shape: Sequence[int], factor: Factor, *, halo: Sequence[int], tile: Sequence[int], target: Region | None = None
) -> Iterator[Tile]:
    """Cut the result, or its region `target`, into tiles with an exact halo.

    Each tile of the result belongs to exactly one Tile and the tiles cover the target. At the border of the scan the
    halo ends with the scan, so a method meets the true border there and nowhere else; hence the tiled result equals
    the whole one.

    Args:
        shape: coarse samples along each axis of the scan.
        factor: refinement of each axis (as many entries as `shape`).
        halo: coarse samples of context on each side, for each axis.
        tile: coarse samples a tile is responsible for, at most, for each axis.
        target: region of the result in fine samples; None: all of it.

    Yields:
        tiles in the order of their target, last axis fastest.
    """
    goal = target if target is not None else whole([n * f for n, f in zip(shape, factor, strict=True)])
    starts = []
    for goal_axis, f, step in zip(goal, factor, tile, strict=True):
        first, last = goal_axis.start // f, math.ceil(goal_axis.stop / f)
        count = max(1, math.ceil((last - first) / step))
        even = math.ceil((last - first) / count)
        starts.append([(a, min(a + even, last)) for a in range(first, last, even)])
    for cut in product(*starts):
        read, keep, place = [], [], []
        for (a, b), n, f, h, axis in zip(cut, shape, factor, halo, goal, strict=True):
            read_a, read_b = max(0, a - h), min(n, b + h)
            fine_a, fine_b = max(a * f, axis.start), min(b * f, axis.stop)
            read.append(slice(read_a, read_b))
            keep.append(slice(fine_a - read_a * f, fine_b - read_a * f))
            place.append(slice(fine_a, fine_b))
        yield Tile(tuple(read), tuple(keep), tuple(place))


def split(tile: Tile, shape: Sequence[int], factor: Factor, *, halo: Sequence[int]) -> tuple[Tile, Tile] | None:
    """Two tiles for the halves of `tile` along its axis with the most kept coarse samples; None if each is 1."""
    kept = [math.ceil(s.stop / f) - s.start // f for s, f in zip(tile.target, factor, strict=True)]
    axis = max(range(len(kept)), key=lambda i: kept[i])
    if kept[axis] < 2:
        return None
    sizes = list(kept)
    sizes[axis] = math.ceil(kept[axis] / 2)
    first, second = plan_tiles(shape, factor, halo=halo, tile=sizes, target=tile.target)
    return first, second
