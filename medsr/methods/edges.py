"""Edges: the gradient profile prior of Sun, Xu and Shum; edges become as sharp as those of fine scans."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from medsr.degradation import Degradation
from medsr.methods.gradient_profile import PROFILE_REACH, edge_profiles, gradient_ratio, shifted
from medsr.methods.interpolation import interpolate, reach
from medsr.methods.profile_map import SCANS, ProfileMap
from medsr.scan import Factor, validate_factor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medsr.scan import Scan

__all__ = ["Edges", "Span", "fitted", "forward_differences", "spread_tiles"]

WEIGHT = 0.1
"""Weight of the gradient against the coarse samples (beta in Sun et al. 2008, equation 14)."""
SLOWEST = 0.1
"""Smallest eigenvalue that the iteration is made for; slower ones are what the interpolation has right already."""
NOISE = 1.5
"""Gradients below this many times that of the noise are no edges."""
FAINTEST = 0.002
"""Nor are those below this share of the range from the 0.1 to the 99.9 percentile, for each fine sample."""
TILES = 8
"""Tiles along each of the last two axes from which the noise of a scan is measured."""


class Edges:
    """An Upscaler that sharpens the edges of a cubic interpolation by the gradient profile prior.

    Where an edge is, the gradient of the interpolation is replaced by that of a sharper edge, as sharp as such edges
    are in fine scans; the scan that has this gradient and becomes the given one when made coarse is solved for, by a
    fixed number of steps. So each result depends on a bounded neighborhood, and tiles give what the whole gives.
    Everything is measured in fine samples; where nothing says otherwise the result is the cubic interpolation, made
    consistent with the coarse samples. Offset and gain pass through; `adapt` measures what is too faint to be an edge,
    once over the whole scan.

    Args:
        factor: refinement of the last one to three axes.
        degradation: how the scan became coarse; None: area mean. Its noise does not matter.
        profiles: how sharp edges are; see `learn_profiles`.
        threshold: gradient in unit intensity for each fine sample below which edges are left alone, softly; None: 0,
            until `adapt` measures it.
        steps: of the solver; None: 8, or 6 where the degradation reaches beyond its block. More have a larger halo.

    Attributes:
        factor: refinement of each axis.
        halo: coarse samples of context for each axis.

    Raises:
        ValueError: a degradation of another factor, a negative threshold, or no steps.

    References:
        J. Sun, Z. Xu, H.-Y. Shum, "Image super-resolution using gradient profile prior", 2008,
        doi:10.1109/CVPR.2008.4587659; "Gradient profile prior and its applications in image super-resolution and
        enhancement", 2011, doi:10.1109/TIP.2010.2095871.
    """

    def __init__(
        self,
        factor: Factor | int,
        *,
        degradation: Degradation | None = None,
        profiles: ProfileMap = SCANS,
        threshold: float | None = None,
        steps: int | None = None,
    ) -> None:
        self.factor = validate_factor(factor)
        self.degradation = Degradation(self.factor) if degradation is None else degradation
        if self.degradation.factor != self.factor:
            raise ValueError(f"degradation: expected one of factor {self.factor}, found {self.degradation.factor}")
        if steps is None:
            steps = 6 if any(self.degradation.halo) else 8
        if steps < 1 or (threshold is not None and not 0 <= threshold < math.inf):
            raise ValueError(
                f"expected at least 1 step and a threshold of at least 0, found steps={steps} threshold={threshold}"
            )
        self.profiles = profiles
        self.threshold = threshold
        self.steps = steps
        self.halo = tuple(
            span.grown(PROFILE_REACH + 2).joined(span.solved(self.degradation.halo[a], 1)).coarse(r)
            for a, r in enumerate(reach(self.factor))
            for span in [Span(self.factor[a]).solved(self.degradation.halo[a], steps - 1)]
        )

    def __repr__(self) -> str:
        threshold = 0.0 if self.threshold is None else self.threshold
        profiles = f"{self.profiles.name}-{self.profiles.digest}"
        return (
            f"Edges({self.factor}, degradation={self.degradation}, profiles={profiles}, "
            f"threshold={threshold:.9g}, steps={self.steps})"
        )

    def adapt(self, scan: Scan) -> Self:
        """The method with a threshold for this scan, from its noise and its range; itself where one was given."""
        if self.threshold is not None:
            return self
        adapted = copy.copy(self)
        adapted.threshold = faintest_edge(scan, self.factor)
        return adapted

    def __call__(self, low: Tensor, /) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 1, *size * factor); float32, or float64 for float64 input."""
        low = low.to(torch.promote_types(low.dtype, torch.float32))
        fine = interpolate(low, self.factor)
        threshold = self.threshold or 0.0
        targets = []
        for field in fine.flatten(0, 1):
            profiles = edge_profiles(field, threshold=threshold)
            wanted = self.profiles.wanted(profiles.sharpness, profiles.normal, self.factor)
            ratio = gradient_ratio(profiles, wanted)
            # What the sharper gradient adds to the gradient, between neighboring samples of each axis.
            changes = [
                ((ratio + shifted(ratio, a, 1)) / 2 - 1) * d for a, d in enumerate(forward_differences(field, 0))
            ]
            targets.append(torch.stack(changes))
        target = torch.stack(targets).movedim(1, 0).reshape(len(self.factor), *fine.shape)
        missing = low - self.degradation.mean(fine)
        return fine + fitted(missing, list(target), self.degradation, steps=self.steps)


def forward_differences(field: Tensor, lead: int) -> list[Tensor]:
    """Of each axis after the first `lead`: the next sample less this one; 0 at the last."""
    return [shifted(field, axis, 1) - field for axis in range(lead, field.ndim)]


def fitted(missing: Tensor, target: list[Tensor], degradation: Degradation, *, steps: int) -> Tensor:
    """The x that minimizes |D x - missing|^2 + WEIGHT |grad x - target|^2 (Sun et al. 2008, equation 14), nearly.

    Chebyshev's iteration from 0 (G. Golub and R. Varga 1961, doi:10.1007/BF01386013): its steps are fixed beforehand,
    hence the same in a tile and in the whole, and as fast as conjugate gradients here.

    Args:
        missing: (n, 1, *size), coarse samples.
        target: one (n, 1, *size * factor) for each axis, differences to the next sample; 0 at the last.
        degradation: D.
        steps: of the iteration.
    """
    cells = math.prod(degradation.factor)

    def descent(x: Tensor | None) -> Tensor:
        low = missing if x is None else missing - degradation.mean(x)
        down = degradation.adjoint(low) * cells
        for axis, wanted in enumerate(target, start=2):
            off = wanted if x is None else wanted - (shifted(x, axis, 1) - x)
            down = down + WEIGHT * _gathered(off, axis)
        return down

    fastest = 1.05 + 4 * WEIGHT * len(target)
    middle, half = (fastest + SLOWEST) / 2, (fastest - SLOWEST) / 2
    step = descent(None) / middle
    x, rate = step, half / middle
    for _ in range(steps - 1):
        faster = 1 / (2 * middle / half - rate)
        step = faster * rate * step + 2 * faster / half * descent(x)
        x, rate = x + step, faster
    return x


def _gathered(differences: Tensor, axis: int) -> Tensor:
    """The transpose of the forward difference; what the last sample differs from beyond the edge does not count."""
    count = differences.shape[axis] - 1
    inner = differences.narrow(axis, 0, count)
    none = torch.zeros_like(differences.narrow(axis, 0, 1))
    return torch.cat([none, inner], axis) - torch.cat([inner, none], axis)


class Span:
    """Fine samples, from first to last and along one axis, that the fine samples 0 .. factor - 1 depend on."""

    def __init__(self, factor: int, first: int = 0, last: int | None = None) -> None:
        self.factor = factor
        self.first = first
        self.last = factor - 1 if last is None else last

    def grown(self, count: int) -> Span:
        """By `count` samples at either end."""
        return Span(self.factor, self.first - count, self.last + count)

    def joined(self, other: Span) -> Span:
        """Both, and what lies between."""
        return Span(self.factor, min(self.first, other.first), max(self.last, other.last))

    def cells(self, count: int = 0) -> Span:
        """To whole coarse samples, and `count` of them more at either end."""
        f = self.factor
        return Span(f, (self.first // f - count) * f, (self.last // f + count + 1) * f - 1)

    def solved(self, halo: int, steps: int) -> Span:
        """Before some steps of `fitted`: each looks through D and its transpose, and at the next sample."""
        span = self
        for _ in range(steps):
            span = span.grown(1).joined(span.cells(2 * halo))
        return span

    def coarse(self, more: int = 0) -> int:
        """Coarse samples beyond 0 on the farther side, and `more`."""
        return max(-(self.first // self.factor), self.last // self.factor) + more


def spread_tiles(scan: Scan, axes: int, *, count: int, side: int) -> list[NDArray[np.float32]]:
    """Tiles in unit intensity, (*size) with the last `axes` axes, spread evenly over a scan; those with holes left out.

    Args:
        scan: where from.
        axes: of a tile.
        count: tiles along each of the last two axes; of the leading ones up to 8 places are taken.
        side: coarse samples of a tile along an axis, or all there are.
    """
    shape = scan.shape
    starts = []
    for axis, n in enumerate(shape):
        width = min(n, side if axis >= len(shape) - axes else 1)
        places = count if axis >= len(shape) - 2 else 8 if axis < len(shape) - axes else 2
        starts.append([(int(s), int(s) + width) for s in np.unique(np.linspace(0, n - width, places).round())])
    while math.prod(map(len, starts)) > 8 * count * count:
        longest = max(range(len(starts) - 2), key=lambda a: len(starts[a]))
        starts[longest] = starts[longest][::2]
    tiles = []
    for number in np.ndindex(*(len(s) for s in starts)):
        stored = scan.read(tuple(slice(*starts[a][i]) for a, i in enumerate(number)))
        if not scan.intensity.holes(stored).any():
            tiles.append(scan.intensity.to_unit(stored).reshape(stored.shape[len(shape) - axes :]))
    return tiles


def faintest_edge(scan: Scan, factor: Factor) -> float:
    """Gradient, in unit intensity for each fine sample, below which an edge cannot be told from noise.

    The noise is that of the median tile: the median size of its second differences along each axis, which structure
    moves little (J. Immerkaer 1996, doi:10.1006/cviu.1996.0060, with a median for the mean). Flat tiles do not count.
    """
    tiles = spread_tiles(scan, len(factor), count=TILES, side=32)
    if not tiles:
        return 0.0
    found = []
    for tile in tiles:
        # The last two axes alone: planes of a stack may be far apart.
        high, norm = tile.astype(np.float64), 1.0
        for axis in range(max(0, tile.ndim - 2), tile.ndim):
            if tile.shape[axis] > 2:
                high, norm = np.diff(high, 2, axis=axis), norm * 6
        # 0.6745: median size of a unit normal
        found.append(float(np.median(np.abs(high))) / 0.6745 / math.sqrt(norm))
    busy = [noise for noise in found if noise > 0]
    noise = float(np.median(busy)) if busy else 0.0
    bottom, top = np.percentile(np.concatenate([tile.ravel() for tile in tiles]), (0.1, 99.9))
    finest = math.sqrt(sum(1 / f**2 for f in factor))
    return max(NOISE * noise * finest, FAINTEST * float(top - bottom))
