"""Retrieval: planes of a library that show what a coarse plane shows, verified and registered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsr.degradation import Degradation
from medsr.methods.registration import (
    Features,
    Overview,
    Placement,
    Plane,
    band_overview,
    bundled,
    find_features,
    line_between,
    local_flow,
    match,
    overview,
    verify,
)
from medsr.scan import Factor, Scan

__all__ = ["ExemplarLibrary", "Found", "band_digest", "read_plane", "retrieve"]

Image = NDArray[np.float64]

CANDIDATES = 20
"""Planes that retrieval proposes."""

VERIFIED = 8
"""Of them, how many are verified, those with most bundled matches first."""

GAINS = (0.4, 2.5)
"""Contrast of a plane in parts of that of a reference, within which the reference is used."""


class ExemplarLibrary(Protocol):
    """Fine planes that can be searched: `medsr.library.Library`, or one of your own.

    Attributes:
        factor, degradation: how the coarse band of the fine planes was made.
        names: of the scans; a provenance map counts in them.
        identity: what decides the result, in a few characters.
        inputs: SHA-256 of the files of its scans, as `medsr.io.digest.input_digest` gives it.
        held_bytes: memory that it holds for keypoints, at most.
    """

    @property
    def factor(self) -> Factor: ...  # noqa: D102
    @property
    def degradation(self) -> Degradation: ...  # noqa: D102
    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def identity(self) -> str: ...  # noqa: D102
    @property
    def inputs(self) -> frozenset[str]: ...  # noqa: D102
    @property
    def held_bytes(self) -> int: ...  # noqa: D102

    def refused(self, spacing_um: tuple[float | None, ...] | None) -> dict[int, str]:
        """Scans that cannot serve a plane of this fine spacing along y and x, by their number, with the reason."""
        ...

    def candidates(self, features: Features, *, most: int, leave_out: frozenset[int]) -> list[int]:
        """Numbers of the planes most alike, best first; `leave_out` names scans."""
        ...

    def features(self, plane: int) -> Features:
        """Keypoints of a plane."""
        ...

    def scan_of(self, plane: int) -> int:
        """Number of the scan that a plane belongs to."""
        ...

    def plane(self, plane: int) -> Plane:
        """Its samples."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A reference of one plane.

    Attributes:
        plane, scan: its numbers in the library.
        inliers: keypoints that agree.
        placement: where it lies.
        gain, offset: that bring its values to those of the plane.
    """

    plane: int
    scan: int
    inliers: int
    placement: Placement
    gain: float
    offset: float


def retrieve(
    low: Callable[[slice, slice], Any],
    size: tuple[int, int],
    library: ExemplarLibrary,
    *,
    most: int,
    leave_out: frozenset[int] = frozenset(),
) -> tuple[Found, ...]:
    """Retrieve, verify and register the references of a coarse plane, best first.

    Args:
        low: reads a region of the plane in unit intensity.
        size: its samples along y and x.
        library: where references come from.
        most: references, at most.
        leave_out: scans of the library that cannot serve.
    """
    factor = library.factor
    seen = overview(low, size, factor)
    features = find_features(seen)
    if len(features.positions) == 0:
        return ()
    ranked: list[tuple[int, int, int, Features, NDArray[np.intp]]] = []
    for plane in library.candidates(features, most=CANDIDATES, leave_out=leave_out):
        theirs = library.features(plane)
        pairs = match(features, theirs)
        ranked.append((-bundled(features, pairs, step=seen.step), len(ranked), plane, theirs, pairs))
    verified = []
    residual = float(max(2, *factor) * seen.step)
    for _, rank, plane, theirs, pairs in sorted(ranked, key=lambda r: r[:2])[:VERIFIED]:
        agreed = verify(features, theirs, pairs, residual=residual)
        if agreed is not None:
            verified.append((-agreed[1], rank, plane, agreed[0]))
    best = sorted(verified, key=lambda v: v[:2])[:most]
    placed = (_registered(seen, library, plane, matrix, -inliers) for inliers, _, plane, matrix in best)
    return tuple(found for found in placed if found is not None)


def _registered(seen: Overview, library: ExemplarLibrary, plane: int, matrix: Image, inliers: int) -> Found | None:
    """The reference of a verified plane; None where its contrast is far from the plane's."""
    theirs = band_overview(library.plane(plane), library.degradation)
    placement = local_flow(seen, theirs, matrix)
    gain, offset = _line(seen, theirs, placement)
    if not GAINS[0] <= gain <= GAINS[1]:
        return None
    return Found(plane, library.scan_of(plane), inliers, placement, gain, offset)


def _line(seen: Overview, theirs: Overview, placement: Placement) -> tuple[float, float]:
    """Gain and offset between a plane and its registered reference, over their overviews."""
    rows, columns = ((np.arange(n, dtype=np.float64) + 0.5) * seen.step - 0.5 for n in seen.image.shape)
    place = placement.points(rows, columns)
    place = (place + 0.5) / theirs.step - 0.5
    limit = np.array(theirs.image.shape)[:, None, None] - 1.0
    inside = np.all((place >= 0) & (place <= limit), axis=0).astype(np.float64)
    values = ndimage.map_coordinates(theirs.image, place, order=1, mode="nearest")
    return line_between(values, seen.image, inside)


def band_digest(degradation: Degradation) -> str:
    """SHA-256 of the weights of a coarse sample, rounded to 1e-6: what decides the band, however it was described."""
    size = [2 * h + 1 for h in degradation.halo]
    one = torch.zeros(1, 1, *size, dtype=torch.float64)
    one[(0, 0, *degradation.halo)] = 1
    weights = np.rint(degradation.adjoint(one).numpy() * 1e6).astype("<i4")
    return hashlib.sha256(str(weights.shape).encode() + weights.tobytes()).hexdigest()


def read_plane(scan: Scan, index: tuple[int, ...], rows: slice, columns: slice) -> NDArray[np.float32]:
    """A region of one plane of a scan in unit intensity; holes have the middle of the unit line."""
    region = (*(slice(i, i + 1) for i in index), rows, columns)
    stored = scan.read(region)
    unit = scan.intensity.to_unit(stored)
    if scan.intensity.may_have_holes:
        unit = np.where(scan.intensity.holes(stored), np.float32(0.5), unit)
    return unit.reshape(unit.shape[-2:])
