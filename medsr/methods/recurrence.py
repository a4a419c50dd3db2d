"""SelfExemplars: detail from the scan itself, whose patches recur at its own coarser scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsr.degradation import Degradation
from medsr.methods.back_projection import back_projected
from medsr.methods.interpolation import interpolate, reach
from medsr.methods.retrieval import read_plane
from medsr.scan import Factor, Scan, validate_factor
from medsr.tiles import plan_tiles

__all__ = ["SelfExemplars"]

Image = NDArray[np.float64]

SIDE = 7
"""Samples of a patch."""

SEARCH = 4
"""Largest distance, in coarse samples, of a patch's exemplar from the place the patch itself has in the coarse scan."""

BLOCK = 128
"""Fine samples a side that are matched at a time."""

EXACT = 1e-10
"""Squared unit intensity below which costs do not differ."""

LEAST_WEIGHT = 0.01


class SelfExemplars:
    """An Upscaler that learns from the scan itself: small patches recur across scales.

    The scan and its own coarser version are pairs of fine and coarse patches. A patch of the interpolated scan looks,
    around its own place, for the coarser patch most alike, and takes over what that one lacked. In a stack the
    neighboring planes give pairs as well. Where nothing is alike the result is cubic interpolation. A 2D method.

    Attributes:
        factor: refinement of y and x.
        halo: coarse samples of context for each of them.

    Args:
        factor: refinement of y and x.
        degradation: how the coarse scan was made of the fine one; None: the mean over each coarse sample.
        neighbors: planes before and after that give exemplars, where the scan is a stack and the method is adapted.
        tolerance: cost of a patch, in parts of its variance, at which a match becomes poor.
        steps: of back-projection; 0: none.

    Raises:
        ValueError: a factor that is not for two axes, or a setting out of range.

    References:
        D. Glasner, S. Bagon, M. Irani, Super-resolution from a single image, 2009, doi:10.1109/ICCV.2009.5459271.
        G. Freedman, R. Fattal, Image and video upscaling from local self-examples, 2011,
        doi:10.1145/1944846.1944852: that near its own place is where a patch recurs.
    """

    def __init__(
        self,
        factor: Factor | int,
        *,
        degradation: Degradation | None = None,
        neighbors: int = 1,
        tolerance: float = 0.1,
        steps: int = 4,
    ) -> None:
        self.factor = validate_factor((factor, factor) if isinstance(factor, int) else factor)
        self.degradation = Degradation(self.factor) if degradation is None else degradation
        if len(self.factor) != 2 or self.degradation.factor != self.factor:
            raise ValueError(
                f"exemplars: expected a factor for y and x, found {self.factor} and {self.degradation}; a stack is "
                "taken plane by plane with a factor such as (2, 2), and z is not refined: leave the method out"
            )
        if neighbors < 0 or tolerance <= 0 or steps < 0:
            raise ValueError(
                "SelfExemplars: expected neighbors >= 0, tolerance > 0 and steps >= 0, "
                f"found {neighbors}, {tolerance} and {steps}"
            )
        self.neighbors, self.tolerance, self.steps = neighbors, tolerance, steps
        self._band = _band_kernel(self.degradation)
        # From a result to the center of its patch, and on to the patch's edge: in the interpolated scan, and in the
        # coarse one, where the exemplar lies farther off and its band is wide.
        half = SIDE // 2
        self._context = tuple(
            max(math.ceil(2 * half / f) + r, math.ceil(half / f) + 1 + SEARCH + half + k // 2)
            for f, r, k in zip(self.factor, reach(self.factor), self._band.shape, strict=True)
        )
        back = [h + r for h, r in zip(self.degradation.halo, reach(self.factor), strict=True)]
        self.halo = tuple(c + steps * b for c, b in zip(self._context, back, strict=True))
        self._scan: Scan | None = None

    def __repr__(self) -> str:
        return (
            f"SelfExemplars({self.factor}, degradation={self.degradation}, neighbors={self.neighbors}, "
            f"tolerance={self.tolerance:g}, steps={self.steps})"
        )

    def adapt(self, scan: Scan) -> SelfExemplars:
        """The upscaler for this scan, from which it reads the neighbors of a plane."""
        adapted = SelfExemplars(
            self.factor, degradation=self.degradation, neighbors=self.neighbors, tolerance=self.tolerance,
            steps=self.steps,
        )  # fmt: skip
        adapted._scan = scan
        return adapted

    def at(self, origin: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        """How a tile of the adapted scan is run whose first sample, halo included, is `origin`."""
        scan = self._scan
        if scan is None or len(origin) < 3 or scan.grid.axes[-3] != "z" or self.neighbors == 0:
            return self
        near = range(max(0, origin[-3] - self.neighbors), min(scan.shape[-3], origin[-3] + self.neighbors + 1))
        planes = [(*origin[:-3], z) for z in near if z != origin[-3]]

        def run(low: Tensor) -> Tensor:
            part = [slice(o, o + n) for o, n in zip(origin[-2:], low.shape[2:], strict=True)]
            others = [read_plane(scan, index, part[0], part[1]).astype(np.float64) for index in planes]
            return self._estimate(low, others)

        return run

    def __call__(self, low: Tensor, /) -> Tensor:
        """(n, 1, *size) to (n, 1, *size * factor), float32; each image gives its own exemplars."""
        return torch.cat([self._estimate(one, []) for one in torch.split(low, 1)])

    def _estimate(self, low: Tensor, others: Sequence[Image]) -> Tensor:
        fine = interpolate(low, self.factor)
        planes = [low[0, 0].detach().cpu().double().numpy(), *others]
        side = tuple(max(1, BLOCK // f) for f in self.factor)
        size = (low.shape[2], low.shape[3])
        for block in plan_tiles(size, self.factor, halo=self._context, tile=side):
            detail = self._detail([plane[block.read] for plane in planes])
            fine[0, 0, block.target[0], block.target[1]] += torch.from_numpy(detail[block.keep]).to(fine)
        return back_projected(fine, low, self.degradation, steps=self.steps).float()

    def _detail(self, planes: Sequence[Image]) -> Image:
        """Detail of a block of coarse samples; the first plane is the block, the others are its neighbors."""
        estimate = interpolate(torch.from_numpy(planes[0])[None, None], self.factor)[0, 0].numpy()
        half = SIDE // 2
        stride = tuple(_stride(f) for f in self.factor)
        centers = [np.arange(0, n, s) for n, s in zip(estimate.shape, stride, strict=True)]
        wanted = sliding_window_view(np.pad(estimate, half, mode="edge"), (SIDE, SIDE))[:: stride[0], :: stride[1]]
        wanted, spread = _centered(wanted)
        best, found = np.full(spread.shape, np.inf), np.zeros((*spread.shape, SIDE * SIDE))
        # A coarse sample q and its `factor` fine ones have one place: the patch's own in the coarser scale.
        own = [c // f for c, f in zip(centers, self.factor, strict=True)]
        for plane in planes:
            band = _filtered(plane, self._band)
            given, energy = _centered(sliding_window_view(np.pad(band, half, mode="edge"), (SIDE, SIDE)))
            lacks = sliding_window_view(np.pad(plane - band, half, mode="edge"), (SIDE, SIDE))
            lacks = lacks.reshape(*plane.shape, SIDE * SIDE)
            where = np.zeros(spread.shape, np.int64)
            least = best.copy()
            for dy, dx in product(range(-SEARCH, SEARCH + 1), repeat=2):
                y, x = (np.clip(q + d, 0, n - 1) for q, d, n in zip(own, (dy, dx), plane.shape, strict=True))
                rows, columns = np.ix_(y, x)
                product_ = np.einsum("yxk,yxk->yx", wanted, given[rows, columns])
                cost = np.maximum(0, spread + energy[rows, columns] - 2 * product_ / SIDE**2)
                cost += EXACT * (dy * dy + dx * dx + 1e-2 * dy + 1e-3 * dx)
                better = cost < least
                least[better] = cost[better]
                where[better] = (rows * plane.shape[1] + columns)[better]
            better = least < best
            best = least
            found[better] = lacks.reshape(-1, SIDE * SIDE)[where[better]]
        weight = np.exp(-best / (self.tolerance * (spread + EXACT)))
        weight[weight < LEAST_WEIGHT] = 0.0
        return _laid(found, weight, estimate.shape, stride)


def _stride(factor: int) -> int:
    """Fine samples from one patch to the next: a divisor of the factor, so that every tile has the same patches."""
    return next(s for s in (2, 3, 1) if factor % s == 0)


def _centered(patches: NDArray[Any]) -> tuple[Image, Image]:
    """Patches (rows, columns, SIDE^2) without their means, and their variances."""
    flat = patches.reshape(*patches.shape[:2], SIDE * SIDE)
    flat = flat - flat.mean(-1, keepdims=True)
    return flat, np.einsum("yxk,yxk->yx", flat, flat) / SIDE**2


def _laid(found: Image, weight: Image, shape: tuple[int, ...], stride: tuple[int, ...]) -> Image:
    """Patches over their places: sum of w^2 d over sum of w."""
    half = SIDE // 2
    total, norm = (np.zeros([n + 2 * half for n in shape]) for _ in range(2))
    squared = weight * weight
    for k, (oy, ox) in enumerate(product(range(SIDE), repeat=2)):
        spans = zip((oy, ox), weight.shape, stride, strict=True)
        place = tuple(slice(o, o + (n - 1) * s + 1, s) for o, n, s in spans)
        total[place] += squared * found[..., k]
        norm[place] += weight
    inner = tuple(slice(half, half + n) for n in shape)
    return np.where(norm[inner] > 0, total[inner] / np.where(norm[inner] > 0, norm[inner], 1.0), 0.0)


def _band_kernel(degradation: Degradation) -> Image:
    """Weights with which degrading and interpolating a sample act, in the mean over its places in the coarse grid.

    In the mean, because a tile does not know where the grid of a still coarser scan would begin.
    """
    factor = degradation.factor
    wide = [h + r + 1 for h, r in zip(degradation.halo, reach(factor), strict=True)]
    size = [(2 * w + 1) * f for w, f in zip(wide, factor, strict=True)]
    kernel = np.zeros([2 * w * f + 1 for w, f in zip(wide, factor, strict=True)])
    for phase in np.ndindex(*factor):
        one = torch.zeros(1, 1, *size, dtype=torch.float64)
        place = [w * f + p for w, f, p in zip(wide, factor, phase, strict=True)]
        one[(0, 0, *place)] = 1
        response = interpolate(degradation.mean(one), factor)[0, 0].numpy()
        padded = np.pad(response, [(f, f) for f in factor])
        here = tuple(slice(p + f - w * f, p + f + w * f + 1) for p, f, w in zip(place, factor, wide, strict=True))
        kernel += padded[here] / math.prod(factor)
    used = [np.flatnonzero(np.abs(kernel).max(1 - axis) > 1e-12) for axis in range(2)]
    half = [max(n // 2 - int(u[0]), int(u[-1]) - n // 2) for n, u in zip(kernel.shape, used, strict=True)]
    cut = tuple(slice(n // 2 - h, n // 2 + h + 1) for n, h in zip(kernel.shape, half, strict=True))
    return np.asarray(kernel[cut] / kernel[cut].sum())


def _filtered(plane: Image, kernel: Image) -> Image:
    """Correlation with the kernel as a sum of separable ones: one for most blurs."""
    left, sizes, right = np.linalg.svd(kernel)
    total = np.zeros_like(plane)
    for i, size in enumerate(sizes):
        if size > 1e-9 * sizes[0]:
            half = ndimage.correlate1d(plane, left[:, i] * size, axis=0, mode="nearest")
            total += ndimage.correlate1d(half, right[i], axis=1, mode="nearest")
    return total
