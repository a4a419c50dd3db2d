"""EdgesWithDetail: texture from one exemplar, in a layer of its own, added to the estimate of the edge prior."""

from __future__ import annotations

import copy
import hashlib
import math
from itertools import product
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from medsr.methods.edges import Edges, Span, fitted, forward_differences, spread_tiles
from medsr.methods.gradient_profile import TINY, edge_profiles, shifted
from medsr.scan import Factor, Scan

__all__ = ["Detail", "EdgesWithDetail"]

MARGIN = 2
"""Fine samples by which a patch is larger than its coarse sample, at either end."""
FEATURES = 12
"""Principal components by which patches are compared."""
NEAREST = 8
"""Patches of the exemplar that a patch takes its detail from."""
PATCHES = 50_000
"""Patches of the exemplar that are kept, evenly spread."""
LOUDEST = 2.0
"""Times its own strength that the detail of a patch is added at most, whatever the contrast of the scan."""
NEARBY = 8
"""Fine samples within which an edge is compared with its surroundings."""
OUTSTANDING = 2.0
"""Gradients this many times the mean of their surroundings are strong edges."""
STEPS = 3
"""Steps of the solver for the detail."""
TILES = 4
"""Tiles along each of the last two axes in which the share of the detail is measured."""


class Detail(NamedTuple):
    """What an exemplar adds.

    Attributes:
        layer: (n, 1, *size * factor), unit intensity; add it to the estimate of the edge prior.
        energy_share: of its gradient in the gradient of the sum: sum |grad layer|^2 / sum |grad sum|^2; 0 of a flat
            field.
    """

    layer: Tensor
    energy_share: float


class _Library(NamedTuple):
    """The exemplar's patches.

    Attributes:
        axes: (patch samples, features), principal components of its normalized patches.
        tree: of the features.
        detail: (patches, patch samples), what the edge prior does not restore.
        contrast: standard deviation of each patch as the edge prior shows it.
    """

    axes: NDArray[np.float64]
    tree: Any
    detail: NDArray[np.float32]
    contrast: NDArray[np.float64]


class EdgesWithDetail:
    """An Upscaler: the edge prior, and fine texture as an exemplar has it.

    The exemplar is made coarse and upscaled again. Where a patch of the scan looks like one of those, it is given what
    that one lost. Strong edges are left to the edge prior. The coarse scan of the result stays the same.

    The detail is invented: it is likely, not measured. Do not measure on it and do not diagnose from it. It can be had
    as a layer of its own (`detail_layer`), and the history says how much it is. With `strength=0` the result is that of
    `edges`, bit for bit. Detail is blind to the level of the scan. It grows with its contrast, but never beyond
    twice the exemplar's own; a flat field stays flat.

    Args:
        edges: the edge prior.
        exemplar: one fine scan of the same kind, with fine samples as the result's: a scan, or an array in unit
            intensity; with as many axes as the factor.
        strength: of the detail, from 0 (none) to 1.

    Attributes:
        factor: refinement of each axis.
        halo: coarse samples of context for each axis.

    Raises:
        ValueError: a strength outside 0..1; an exemplar with other axes, with holes, or smaller than four coarse
            samples along an axis.

    References:
        Y.-W. Tai, S. Liu, M. S. Brown, S. Lin, "Super resolution using edge prior and single image detail synthesis",
        2010, doi:10.1109/CVPR.2010.5539933. The patch transfer here is medsr's own reading of its idea.
    """

    def __init__(self, edges: Edges, exemplar: Scan | NDArray[Any], *, strength: float = 0.5) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength: expected 0 (no detail) to 1, found {strength}")
        self.edges = edges
        self.strength = float(strength)
        self.factor: Factor = edges.factor
        self.told = ""
        unit = _unit(exemplar, self.factor)
        self.digest = hashlib.sha256(repr(unit.shape).encode() + unit.tobytes()).hexdigest()[:12]
        self._library = None if self.strength == 0 else _learned(edges, unit)
        spans = [
            Span(f).solved(edges.degradation.halo[a], STEPS).grown(MARGIN).cells().grown(MARGIN)
            for a, f in enumerate(self.factor)
        ]
        seen = [Span(f).solved(edges.degradation.halo[a], STEPS).grown(NEARBY + 3) for a, f in enumerate(self.factor)]
        self.halo = tuple(
            h + (0 if self.strength == 0 else a.joined(b).coarse())
            for h, a, b in zip(edges.halo, spans, seen, strict=True)
        )

    def __repr__(self) -> str:
        told = f", {self.told}" if self.told else ""
        return f"EdgesWithDetail({self.edges}, exemplar={self.digest}, strength={self.strength:g}{told})"

    def adapt(self, scan: Scan) -> Self:
        """The method with the edge prior adapted, and the share of the detail measured in tiles all over the scan."""
        adapted = copy.copy(self)
        adapted.edges = self.edges.adapt(scan)
        added = total = 0.0
        side = max(16, 2 * max(self.halo)) if len(self.factor) < 3 else 24
        for tile in spread_tiles(scan, len(self.factor), count=TILES, side=side):
            low = torch.from_numpy(np.ascontiguousarray(tile))[None, None]
            with torch.inference_mode():
                energies = adapted._energies(*adapted._layers(low))
            added, total = added + energies[0], total + energies[1]
        adapted.told = f"detail has {added / max(total, TINY):.2%} of the gradient energy"
        return adapted

    def __call__(self, low: Tensor, /) -> Tensor:
        """(n, 1, *size) in unit intensity to (n, 1, *size * factor); float32, or float64 for float64 input."""
        if self._library is None:
            return self.edges(low)
        estimate, layer = self._layers(low)
        return estimate + layer

    def detail_layer(self, low: Tensor) -> Detail:
        """The detail that is added to (n, 1, *size), and its share of the energy of the gradient."""
        estimate, layer = self._layers(low)
        added, total = self._energies(estimate, layer)
        return Detail(layer, added / max(total, TINY))

    @staticmethod
    def _energies(estimate: Tensor, layer: Tensor) -> tuple[float, float]:
        """Sums of the squared gradients of the layer and of the whole."""
        both = estimate + layer
        added, total = (sum(float(d.double().square().sum()) for d in forward_differences(x, 2)) for x in (layer, both))
        return added, total

    def _layers(self, low: Tensor) -> tuple[Tensor, Tensor]:
        estimate = self.edges(low)
        if self._library is None:
            return estimate, torch.zeros_like(estimate)
        parts = []
        for field in estimate.flatten(0, 1):
            texture = _transferred(self._library, field, self.factor)
            parts.append(texture * (1 - strong_edges(field, self.edges.threshold or 0.0)))
        wanted = self.strength * torch.stack(parts).reshape(estimate.shape)
        # What is added must have the gradient of the texture and vanish when made coarse.
        degradation = self.edges.degradation
        slopes = forward_differences(torch.zeros_like(wanted), 2)
        return estimate, wanted + fitted(-degradation.mean(wanted), slopes, degradation, steps=STEPS)


def strong_edges(field: Tensor, threshold: float) -> Tensor:
    """From 0 to 1 for each sample of (*size): whether it is within two samples of an edge that stands out."""
    profiles = edge_profiles(field, threshold=threshold)
    strength = profiles.strength.reshape(profiles.size)
    around = strength
    for axis in range(field.ndim):
        around = torch.stack([shifted(around, axis, k) for k in range(-NEARBY, NEARBY + 1)]).mean(0)
    outstanding = strength**2 / (strength**2 + (OUTSTANDING * around) ** 2).clamp(min=TINY)
    found = profiles.weight.reshape(profiles.size) * outstanding
    for axis in range(field.ndim):
        near = [math.exp(-((k / 2) ** 2)) * shifted(found, axis, k) for k in range(-2, 3)]
        found = torch.stack(near).amax(0)
    return found


def _unit(exemplar: Scan | NDArray[Any], factor: Factor) -> NDArray[np.float32]:
    """The exemplar in unit intensity, cut to whole coarse samples."""
    unit = exemplar.intensity.to_unit(exemplar.read()) if isinstance(exemplar, Scan) else np.asarray(exemplar)
    unit = unit.astype(np.float32)
    if unit.ndim > len(factor) and all(n == 1 for n in unit.shape[: -len(factor)]):
        unit = unit.reshape(unit.shape[-len(factor) :])
    if unit.ndim != len(factor) or any(n < 4 * f for n, f in zip(unit.shape, factor, strict=True)):
        raise ValueError(
            f"exemplar: expected {len(factor)} axes with at least {tuple(4 * f for f in factor)} samples, "
            f"found {unit.shape}"
        )
    if not np.isfinite(unit).all():
        raise ValueError("exemplar: expected finite values, found holes (NaN); crop them away")
    return np.ascontiguousarray(unit[tuple(slice(n // f * f) for n, f in zip(unit.shape, factor, strict=True))])


def _windows(field: Tensor, factor: Factor, step: Factor) -> Tensor:
    """Patches of (*size) with MARGIN samples around a coarse sample, edges repeated: (*places, *patch)."""
    for axis, (n, f, s) in enumerate(zip(field.shape, factor, step, strict=False)):
        place = torch.arange(-MARGIN, n + MARGIN, device=field.device).clamp(0, n - 1)
        field = field.index_select(axis, place).unfold(axis, f + 2 * MARGIN, s)
    return field


def _learned(edges: Edges, unit: NDArray[np.float32]) -> _Library:
    """The patches of the exemplar as the edge prior shows them, and what they lack."""
    high = torch.from_numpy(unit)[None, None]
    with torch.inference_mode():
        shown = edges(edges.degradation.mean(high))[0, 0]
    lost = high[0, 0] - shown
    ones = (1,) * len(edges.factor)
    dense = [_windows(x, edges.factor, ones) for x in (shown, lost)]
    places = math.prod(dense[0].shape[: len(ones)])
    picks = np.unique(np.linspace(0, places - 1, min(places, PATCHES)).round().astype(np.int64))
    index = tuple(torch.from_numpy(i) for i in np.unravel_index(picks, dense[0].shape[: len(ones)]))
    patches, missing = (x[index].flatten(1).double().numpy() for x in dense)
    normal, contrast = _normalized(patches)
    _, vectors = np.linalg.eigh(normal.T @ normal)
    axes = vectors[:, ::-1][:, :FEATURES]
    # One sign for each component, so that the library is the same on every machine.
    axes = np.ascontiguousarray(axes * np.where(axes.sum(0) < 0, -1.0, 1.0))
    return _Library(axes, cKDTree(normal @ axes), missing.astype(np.float32), contrast)


def _normalized(patches: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Patches less their mean, of norm 1 (0 where flat), and their standard deviations."""
    patches = patches - patches.mean(1, keepdims=True)
    contrast = patches.std(1)
    norm = contrast * math.sqrt(patches.shape[1])
    return patches / np.maximum(norm, TINY)[:, None], contrast


def _transferred(library: _Library, field: Tensor, factor: Factor) -> Tensor:
    """Texture for an estimate (*size): for each coarse sample a mean of the detail of the nearest patches.

    The weight of a neighbor falls to 0 where the first one left out would take its place, so that rounding, which may
    exchange the two, changes nothing (R. Franke and G. Nielson 1980, doi:10.1002/nme.1620151110).
    """
    windows = _windows(field, factor, factor)
    cells = windows.shape[: len(factor)]
    normal, contrast = _normalized(windows.flatten(0, len(factor) - 1).flatten(1).double().cpu().numpy())
    count = min(NEAREST + 1, library.tree.n)
    distance, index = library.tree.query(normal @ library.axes, k=count)
    distance, index = distance.reshape(-1, count), index.reshape(-1, count)
    left_out = np.maximum(distance[:, -1:], TINY)
    share = distance[:, :-1] / left_out
    weight = ((1 - share) / (share + 0.05)) ** 2
    weight /= weight.sum(1, keepdims=True) + 1e-3
    # Patches of norm 1: 1 - d^2 / 2 is their correlation.
    likeness = np.clip(1 - distance[:, :-1] ** 2 / 2, 0, 1)
    detail = np.zeros((len(normal), library.detail.shape[1]))
    for k in range(count - 1):
        ratio = contrast / np.maximum(library.contrast[index[:, k]], TINY)
        ratio /= np.hypot(1, ratio / LOUDEST)
        detail += (weight[:, k] * likeness[:, k] * ratio)[:, None] * library.detail[index[:, k]]
    patch = tuple(f + 2 * MARGIN for f in factor)
    pieces = torch.from_numpy(detail).to(field.device, field.dtype).reshape(*cells, *patch)
    return _laid(pieces, factor, patch)


def _laid(pieces: Tensor, factor: Factor, patch: tuple[int, ...]) -> Tensor:
    """Overlapping patches (*cells, *patch) as one field, weighted by tents; what lies beyond the edges is left out."""
    axes = len(factor)
    cells = pieces.shape[:axes]
    size = [n * f + 2 * MARGIN for n, f in zip(cells, factor, strict=True)]
    total, mass = pieces.new_zeros(size), pieces.new_zeros(size)
    tents = [[min(i + 1, n - i) for i in range(n)] for n in patch]
    by_offset = pieces.flatten(axes).movedim(-1, 0)
    for number, offset in enumerate(product(*(range(n) for n in patch))):
        tent = float(math.prod(tents[a][i] for a, i in enumerate(offset)))
        place = tuple(slice(o, o + (n - 1) * f + 1, f) for o, n, f in zip(offset, cells, factor, strict=True))
        total[place] += tent * by_offset[number]
        mass[place] += tent
    inner = tuple(slice(MARGIN, n - MARGIN) for n in size)
    return total[inner] / mass[inner]
