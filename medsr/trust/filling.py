"""Filling: a small structure taken out of a plane and its place filled in from the surroundings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["filled"]

Array = NDArray[Any]
Floats = NDArray[np.float64]

FADE = 2.0
"""Samples over which the filling goes over into what was measured."""
RING = 1.0
"""Width of the surroundings that are fitted, in radii of the hole, and at least `LEAST` samples."""
LEAST = 4.0
TRIES = 60
"""Places about a hole that are tried for its noise."""


def filled(
    plane: Array, quiet: NDArray[np.bool_], place: tuple[float, float], *, radius: float, generator: np.random.Generator
) -> tuple[tuple[slice, slice], Floats] | None:
    """A disk of a plane without what stood in it: a smooth background and the noise of a place beside it.

    The background is a surface of second order fitted (least squares) to a ring about the hole. The noise, with its
    grain, is what another disk nearby leaves beyond its own surface. Both go over into the measured values by a cosine
    of 2 samples.

    Args:
        plane: (y, x), finite where `quiet` is.
        quiet: True where nothing stands out, so that noise may be taken there.
        place: center (y, x) in samples.
        radius: of the hole in samples.
        generator: draws the place of the noise.

    Returns:
        Where, and the new values there; None where the hole is too near an edge, or nothing about it is quiet.
    """
    wide = math.ceil(radius + FADE + max(LEAST, RING * radius)) + 1
    row, column = (round(p) for p in place)
    box = slice(row - wide, row + wide + 1), slice(column - wide, column + wide + 1)
    if not _inside(box, plane.shape):
        return None
    y, x = np.ogrid[-wide : wide + 1, -wide : wide + 1]
    distance = np.hypot(y - (place[0] - row), x - (place[1] - column))
    ring = (distance > radius + FADE) & np.isfinite(plane[box])
    background = _surface(np.asarray(plane[box], np.float64), ring)
    share = np.where(distance <= radius, 1.0, 0.5 + 0.5 * np.cos(np.pi * np.clip((distance - radius) / FADE, 0.0, 1.0)))
    hole = share > 0
    for _ in range(TRIES):
        turn, far = generator.uniform(0, 2 * math.pi), generator.uniform(2.0, 4.0) * (radius + FADE)
        other = tuple(
            slice(s.start + d, s.stop + d)
            for s, d in zip(box, (round(far * math.sin(turn)), round(far * math.cos(turn))), strict=True)
        )
        donor = other[0], other[1]
        if not _inside(donor, plane.shape) or not quiet[donor][hole].all():
            continue
        values = np.asarray(plane[donor], np.float64)
        noise = values - _surface(values, quiet[donor])
        return box, np.where(hole, plane[box] * (1 - share) + (background + noise) * share, plane[box])
    return None


def _inside(box: tuple[slice, slice], shape: tuple[int, ...]) -> bool:
    return all(s.start >= 0 and s.stop <= n for s, n in zip(box, shape, strict=True))


def _surface(values: Floats, used: NDArray[np.bool_]) -> Floats:
    """The surface of second order through the used values, everywhere."""
    half = values.shape[0] // 2
    y, x = (np.indices(values.shape) - half) / half
    terms = np.stack([np.ones_like(y), y, x, y * y, x * y, x * x], -1)
    fit, *_ = np.linalg.lstsq(terms[used], values[used], rcond=None)
    return np.asarray(terms @ fit)
