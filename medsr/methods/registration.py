"""Registration: where a plane lies in another one, from keypoints, then from gray values block by block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsr.degradation import Degradation
from medsr.methods.interpolation import interpolate, reach
from medsr.scan import Factor
from medsr.tiles import plan_tiles

__all__ = [
    "Features",
    "Overview",
    "Placement",
    "Plane",
    "band_overview",
    "bundled",
    "find_features",
    "local_flow",
    "match",
    "line_between",
    "overview",
    "sampled",
    "verify",
]

Array = NDArray[Any]
Image = NDArray[np.float64]

LARGEST_OVERVIEW = 768
"""Samples of the longest side of the image in which keypoints are sought; a larger plane is reduced by whole blocks."""

STRIP = 2**19
"""Fine samples that are made at a time for an overview, or one row of blocks."""

MOST_KEYPOINTS = 2000
"""Keypoints that are kept of a plane."""

CONTRAST = 0.004
"""Least contrast of a keypoint in an image stretched to 0..1; a tenth of the default, because the band is soft."""

RATIO = 0.8
"""Largest distance of a match in parts of that of the second nearest (Lowe 2004, section 7.1)."""

BUNDLE = 64
"""Side in overview samples of the cells whose matches support each other."""

TRIALS = 1000
LEAST_INLIERS = 12
SCALES = (0.8, 1.25)
"""Singular values an affine map may have."""

NODE = 16
"""Overview samples from one node of the local displacement to the next."""

WINDOW = 12.0
"""Standard deviation, in overview samples, of the window in which a local displacement is estimated."""

LARGEST_STEP = 6.0
"""Largest local displacement in overview samples."""

SPLINE_MARGIN = 24
"""Samples around a box after which the recursive filter of the cubic spline has forgotten the edge (0.27^24)."""


class Plane(Protocol):
    """One fine plane, read by regions."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples along y and x."""
        ...

    def read(self, rows: slice, columns: slice) -> Array:
        """A region in unit intensity, float32, without holes."""
        ...


@dataclass(frozen=True, slots=True)
class Overview:
    """A plane in the coarse band on the fine grid, `step` fine samples to one of its own."""

    image: Image
    step: int


@dataclass(frozen=True, slots=True)
class Features:
    """Keypoints of a plane.

    Attributes:
        positions: (n, 2) float32, fine samples along y and x.
        descriptors: (n, 128) uint8, SIFT.
    """

    positions: NDArray[np.float32]
    descriptors: NDArray[np.uint8]

    def roots(self) -> NDArray[np.float32]:
        """Descriptors of unit length, the square root of each entry taken (Arandjelovic and Zisserman 2012)."""
        values = self.descriptors.astype(np.float32)
        total: NDArray[np.float32] = np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1e-6))
        return total


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the samples of a plane lie in a reference: q = matrix (p, 1) + flow(p), fine samples along y and x.

    Attributes:
        matrix: (2, 3).
        flow: (2, rows, columns), the local displacement at nodes.
        spacing: fine samples between nodes; node 0 lies at fine position (step - 1) / 2.
        first: fine position of node 0.
    """

    matrix: Image
    flow: Image
    spacing: float
    first: float

    def at(self, rows: slice, columns: slice) -> Image:
        """Positions in the reference of a region's samples, (2, rows, columns)."""
        return self.points(*(np.arange(s.start, s.stop, dtype=np.float64) for s in (rows, columns)))

    def points(self, rows: Image, columns: Image) -> Image:
        """The same of any fine positions along y and x."""
        y, x = rows[:, None], columns[None, :]
        m = self.matrix
        nodes = np.broadcast_arrays((y - self.first) / self.spacing, (x - self.first) / self.spacing)
        moved = [ndimage.map_coordinates(part, nodes, order=1, mode="nearest") for part in self.flow]
        return np.stack([m[i, 0] * y + m[i, 1] * x + m[i, 2] + moved[i] for i in range(2)])


def overview(low: Callable[[slice, slice], Array], size: tuple[int, int], factor: Factor) -> Overview:
    """A coarse plane interpolated to the fine grid, then reduced by whole blocks to a bounded size.

    Args:
        low: reads a region of the coarse plane, unit intensity.
        size: coarse samples along y and x.
        factor: refinement of y and x.
    """
    fine = [n * f for n, f in zip(size, factor, strict=True)]
    step = max(1, math.ceil(max(fine) / LARGEST_OVERVIEW))
    image = np.zeros([max(1, n // step) for n in fine])
    strip = (
        max(1, STRIP // (fine[1] * factor[0] * step)) * step
    )  # whole blocks, never more than a part of a large plane
    for tile in plan_tiles(size, factor, halo=reach(factor), tile=(strip, size[1])):
        part = torch.from_numpy(np.array(low(*tile.read), np.float64))[None, None]
        band = interpolate(part, factor)[0, 0].numpy()[tile.keep]
        top = -(-tile.target[0].start // step)
        cut = band[top * step - tile.target[0].start :, : image.shape[1] * step]
        rows = min(len(cut) // step, len(image) - top)
        if rows > 0:
            blocks = cut[: rows * step].reshape(rows, step, image.shape[1], step)
            image[top : top + rows] = blocks.mean((1, 3))
    return Overview(image, step)


def band_overview(plane: Plane, degradation: Degradation) -> Overview:
    """A fine plane in the band of its coarse version: degraded, interpolated, reduced; read in strips."""
    factor, halo = degradation.factor, degradation.halo
    size = plane.shape[0] // factor[0], plane.shape[1] // factor[1]

    def coarse(rows: slice, columns: slice) -> Array:
        start = [max(0, s.start - h) for s, h in zip((rows, columns), halo, strict=True)]
        stop = [min(n, s.stop + h) for s, h, n in zip((rows, columns), halo, size, strict=True)]
        here = [slice(a * f, b * f) for a, b, f in zip(start, stop, factor, strict=True)]
        high = torch.from_numpy(np.array(plane.read(here[0], here[1]), np.float64))[None, None]
        inner = tuple(slice(s.start - a, s.stop - a) for s, a in zip((rows, columns), start, strict=True))
        cut: Array = degradation.mean(high)[0, 0].numpy()[inner]
        return cut

    return overview(coarse, size, factor)


def stretched(image: Image) -> NDArray[np.float32]:
    """The image from its 1 to its 99 percentile as 0..1, clipped: gain and offset do not matter to keypoints."""
    low, high = np.percentile(image, (1, 99))
    # Below this the percentiles differ by rounding only, and there is nothing to find.
    return np.asarray(np.clip((image - low) / max(high - low, 1e-6), 0, 1), np.float32)


def find_features(seen: Overview, *, most: int = MOST_KEYPOINTS) -> Features:
    """SIFT keypoints of an overview; of more than `most` an even share.

    References:
        D. G. Lowe, Distinctive image features from scale-invariant keypoints, 2004,
        doi:10.1023/B:VISI.0000029664.99615.94.
    """
    from skimage.feature import SIFT  # takes a second to import

    detector = SIFT(upsampling=1, c_dog=CONTRAST)
    none = Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8))
    if min(seen.image.shape) < 16:
        return none
    try:
        detector.detect_and_extract(stretched(seen.image))
    except RuntimeError:  # its way to say that there are no keypoints
        return none
    keep = np.unique(np.linspace(0, len(detector.keypoints) - 1, most).round().astype(int))
    fine = (detector.positions[keep] + 0.5) * seen.step - 0.5
    return Features(fine.astype(np.float32), detector.descriptors[keep].astype(np.uint8))


def match(here: Features, there: Features) -> NDArray[np.intp]:
    """Pairs of keypoints that are nearest to each other and clearly nearer than the second, (n, 2)."""
    if min(len(here.positions), len(there.positions)) < 2:
        return np.zeros((0, 2), np.intp)
    likeness = here.roots() @ there.roots().T
    second, first = np.partition(likeness, -2, axis=1)[:, -2:].T
    near, back = likeness.argmax(1), likeness.argmax(0)
    distance, next_distance = (np.sqrt(np.maximum(0, 2 - 2 * v)) for v in (first, second))
    sure = (back[near] == np.arange(len(near))) & (distance < RATIO * next_distance)
    return np.stack([np.flatnonzero(sure), near[sure]], 1)


def bundled(here: Features, pairs: NDArray[np.intp], *, step: int) -> int:
    """Matches that have another one in their cell: the score by which candidates are ranked.

    Descriptors near each other vote together (Yue et al. 2013, section III-A): one match alone is mostly chance.
    """
    if not len(pairs):
        return 0
    cells = (here.positions[pairs[:, 0]] // (BUNDLE * step)).astype(np.int64)
    _, counts = np.unique(cells, axis=0, return_counts=True)
    return int(counts[counts > 1].sum())


def verify(here: Features, there: Features, pairs: NDArray[np.intp], *, residual: float) -> tuple[Image, int] | None:
    """The affine map (2, 3) from here to there and its inliers, or None where fewer than 12 agree.

    RANSAC for a similarity with a fixed random state, then least squares for an affine map over its inliers.

    Args:
        here, there: keypoints.
        pairs: from `match`.
        residual: largest distance of an inlier in fine samples.

    References:
        M. A. Fischler, R. C. Bolles, Random sample consensus, 1981, doi:10.1145/358669.358692.
    """
    from skimage.measure import ransac
    from skimage.transform import SimilarityTransform

    if len(pairs) < LEAST_INLIERS:
        return None
    source = here.positions[pairs[:, 0]].astype(np.float64)
    target = there.positions[pairs[:, 1]].astype(np.float64)
    _, inliers = ransac(
        (source, target), SimilarityTransform, min_samples=2, residual_threshold=residual, max_trials=TRIALS, rng=0,
        is_model_valid=lambda model, *_: SCALES[0] <= model.scale <= SCALES[1],
    )  # fmt: skip
    if inliers is None or inliers.sum() < LEAST_INLIERS:
        return None
    whole = np.c_[source, np.ones(len(source))]
    for _ in range(3):
        matrix = np.linalg.lstsq(whole[inliers], target[inliers], rcond=None)[0].T
        inliers = np.linalg.norm(whole @ matrix.T - target, axis=1) <= residual
        if inliers.sum() < LEAST_INLIERS:
            return None
    sizes = np.linalg.svd(matrix[:, :2], compute_uv=False)
    if sizes.min() < SCALES[0] or sizes.max() > SCALES[1] or np.linalg.det(matrix[:, :2]) < 0:
        return None
    return matrix, int(inliers.sum())


def local_flow(fixed: Overview, moving: Overview, matrix: Image, *, rounds: int = 8) -> Placement:
    """The affine map refined by a displacement for each block: Lucas and Kanade's least squares in a Gaussian window.

    Gain and offset between the two are fitted as well. Where the image says nothing of the displacement it stays 0.

    Args:
        fixed, moving: overviews of the plane and of the reference; the steps may differ.
        matrix: (2, 3), from `verify`.
        rounds: of warping and solving.

    References:
        B. D. Lucas, T. Kanade, An iterative image registration technique with an application to stereo vision, 1981,
        equation 10 for a displacement.
    """
    shape = fixed.image.shape
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij"))
    fine = (grid + 0.5) * fixed.step - 0.5
    start = np.einsum("ij,jyx->iyx", matrix[:, :2], fine) + matrix[:, 2, None, None]
    start = (start + 0.5) / moving.step - 0.5
    soft = [ndimage.gaussian_filter(seen.image, 1.0) for seen in (fixed, moving)]
    slopes = [ndimage.spline_filter(part) for part in np.gradient(soft[1])]
    spline = ndimage.spline_filter(soft[1])
    flow = np.zeros_like(start)
    limit = np.array(moving.image.shape, np.float64)[:, None, None] - 1.0
    for _ in range(rounds):
        place = start + flow
        inside = np.all((place >= 0) & (place <= limit), axis=0).astype(np.float64)
        if inside.sum() < 64:
            break
        seen = ndimage.map_coordinates(spline, place, order=3, mode="nearest", prefilter=False)
        gain, offset = line_between(seen, soft[0], inside)
        gy, gx = (gain * ndimage.map_coordinates(s, place, order=3, mode="nearest", prefilter=False) for s in slopes)
        error = soft[0] - gain * seen - offset
        yy, xx, yx, ye, xe = (
            ndimage.gaussian_filter(inside * part, WINDOW)
            for part in (gy * gy, gx * gx, gy * gx, gy * error, gx * error)
        )
        calm = 0.02 * float((yy + xx).mean()) + 1e-12  # draws the displacement to 0 where slopes are small
        yy, xx = yy + calm, xx + calm
        det = yy * xx - yx * yx
        step = np.stack([xx * ye - yx * xe, yy * xe - yx * ye]) / det
        flow = np.clip(flow + np.clip(step, -1, 1), -LARGEST_STEP, LARGEST_STEP)
        flow = np.stack([ndimage.gaussian_filter(part, WINDOW / 3) for part in flow])
    nodes = flow[:, NODE // 2 :: NODE, NODE // 2 :: NODE] * moving.step
    if 0 in nodes.shape:
        nodes = flow[:, :1, :1] * moving.step
    first = (NODE // 2 + 0.5) * fixed.step - 0.5
    return Placement(matrix, nodes, float(NODE * fixed.step), first)


def line_between(values: Image, wanted: Image, weight: Image) -> tuple[float, float]:
    """Gain and offset that bring `values` nearest to `wanted` in weighted least squares."""
    total = max(float(weight.sum()), 1e-12)
    a, b = float((weight * values).sum()) / total, float((weight * wanted).sum()) / total
    spread = float((weight * (values - a) ** 2).sum())
    gain = float((weight * (values - a) * (wanted - b)).sum()) / spread if spread > 1e-12 * total else 1.0
    return gain, b - gain * a


def sampled(plane: Plane, place: Image) -> tuple[Image, NDArray[np.bool_]]:
    """A plane at positions (2, rows, columns) by cubic splines, and where they lie inside it.

    Only the box around the positions is read.

    References:
        M. Unser, Splines: a perfect fit for signal and image processing, 1999, doi:10.1109/79.799930.
    """
    limit = np.array(plane.shape, np.float64)[:, None, None] - 0.5  # a sample reaches half a spacing
    inside = np.all((place >= -0.5) & (place <= limit), axis=0)
    if not inside.any():
        return np.zeros(place.shape[1:]), inside
    box = []
    for along, n in zip(place, plane.shape, strict=True):
        used = along[inside]
        box.append(slice(max(0, int(used.min()) - SPLINE_MARGIN), min(n, int(used.max()) + SPLINE_MARGIN + 2)))
    part = ndimage.spline_filter(np.asarray(plane.read(box[0], box[1]), np.float64), mode="mirror")
    moved = place - np.array([s.start for s in box], np.float64)[:, None, None]
    values = ndimage.map_coordinates(part, moved, order=3, mode="mirror", prefilter=False)
    return np.where(inside, values, 0.0), inside
