"""The texture of coarse training scans, made coarse as in training, for the card."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medsr.card import TextureRange
from medsr.recipe import Recipe
from medsr.scan import Factor, Region, Scan
from medsr.texture import Texture, crop_regions, texture_of, texture_of_crops
from medsr.training.data import Portion, Shelf
from medsr.transforms import cut_patch

__all__ = ["training_texture"]

MOST = 64
"""Scans that are looked at, evenly over all; fewer are looked at several times, degraded in several ways."""

LOOKS = 8
"""Degraded scans looked at, at least."""

DEPTH = 5
"""Coarse planes around one that is measured, where z is refined or blurred."""


def training_texture(portions: Sequence[Portion], recipe: Recipe, shelf: Shelf) -> TextureRange | None:
    """The range over coarse scans; None where none is large enough, or spacings that the degradation needs are unknown.

    Coarse scans of real pairs are taken as they are. Random numbers follow from the recipe's seed, and no others move.
    """
    picks = np.unique(np.linspace(0, len(portions) - 1, min(MOST, len(portions))).round().astype(int))
    found: list[Texture | None] = []
    for pick in picks:
        portion = portions[pick]
        if portion.low is not None:
            found.append(texture_of(shelf.open(portion.low)))
            continue
        scan = shelf.open(portion)
        for look in range(-(-LOOKS // len(picks))):
            generator = torch.Generator().manual_seed(recipe.seed + 1000 * int(pick) + look)
            try:
                found.append(_coarse_texture(scan, recipe, generator))
            except ValueError:  # training itself says what it misses
                return None
    known = [texture for texture in found if texture is not None]
    return TextureRange.over(known) if known else None


def _coarse_texture(scan: Scan, recipe: Recipe, generator: torch.Generator) -> Texture | None:
    factor = recipe.method.factor
    spacing = scan.grid.spacing_um
    fine = None if spacing is None else spacing[-len(factor) :]
    degrade = recipe.degradation.sample(generator, factor, fine)
    full = scan.grid.pad_factor(factor)
    shape = tuple(n // f for n, f in zip(scan.shape, full, strict=True))
    crops = []
    for region in crop_regions(shape):
        first, size, plane = _fine_block(region, shape, factor)
        high = torch.as_tensor(cut_patch(scan, first, size, margin=(0,) * len(size))).as_subclass(Tensor)[None]
        low = degrade(high, generator)[0, 0]
        crops.append(np.asarray((low[plane] if low.ndim == 3 else low).numpy(), np.float32))
    span = abs(scan.intensity.white - scan.intensity.black)
    return texture_of_crops(crops, step=1 / max(1e-30, span), dtype=scan.intensity.dtype)


def _fine_block(region: Region, shape: Sequence[int], factor: Factor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """First fine sample and size of what is degraded to have a coarse plane, and which of its planes that is."""
    dims, lead = len(factor), len(shape) - len(factor)
    parts, plane = list(region), 0
    if dims == 3:
        at = parts[-3].start
        start = max(0, min(at - DEPTH // 2, shape[-3] - DEPTH))
        parts[-3], plane = slice(start, min(start + DEPTH, shape[-3])), at - start
    steps = (1,) * lead + tuple(factor)
    first = tuple(part.start * f for part, f in zip(parts, steps, strict=True))
    size = tuple((part.stop - part.start) * f for part, f in zip(parts[lead:], factor, strict=True))
    return first, size, plane
